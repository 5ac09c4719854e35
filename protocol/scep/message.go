// Package scep speaks the Simple Certificate Enrollment Protocol (RFC 8894) to
// devices: it turns HTTP requests into a [protocol.Request] and outcomes into
// CertRep messages. It decides nothing.
//
// # What a caller may rely on
//
// Every body, query and structure is bounded before it is read, and nothing that
// a stranger sends makes it panic. No key is used for a message whose signature
// does not verify, but for signing its refusal. From the moment that the
// RA-decrypt key was used until the request is proven, all failures look the
// same: one failInfo, one text, sent on a grid of 50 ms. Whatever is refused is
// recorded before it is answered. A fault of the appliance is 503, never a
// FAILURE, which a device would take as final.
//
// # What it does not protect against
//
// It neither limits rates nor sets the timeouts of connections: the listener
// does. An envelope is not bound to its signer by the protocol; that the CSR has
// the key of a self-signed signer is checked, and the authority checks the rest.
// A self-signed signer proves no more than that it has a key.
package scep

import (
	"encoding/asn1"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/postern-pki/postern/protocol/cms"
)

// Message types (RFC 8894, section 3.2.1.2).
const (
	CertRep    = 3
	RenewalReq = 17
	PKCSReq    = 19
	CertPoll   = 20
	GetCert    = 21
	GetCRL     = 22
)

// Values of pkiStatus (RFC 8894, section 3.2.1.3).
const (
	StatusSuccess = 0
	StatusFailure = 2
	StatusPending = 3
)

// Values of failInfo (RFC 8894, section 3.2.1.4).
const (
	BadAlg          = 0
	BadMessageCheck = 1
	BadRequest      = 2
	BadTime         = 3
	BadCertID       = 4
)

// Attributes (RFC 8894, section 3.2.1). All but failInfoText are in VeriSign's
// arc, that one in PKIX's.
var (
	OIDMessageType    = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 2}
	OIDPKIStatus      = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 3}
	OIDFailInfo       = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 4}
	OIDSenderNonce    = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 5}
	OIDRecipientNonce = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 6}
	OIDTransactionID  = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 7}
	OIDFailInfoText   = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 24, 1}
)

// The errors of [ParseMessage].
var (
	// ErrAttributes says that a message has no usable transactionID or nonce,
	// so that no answer can be addressed to its sender.
	ErrAttributes = errors.New("scep: attributes")
	// ErrMessageType says that the messageType alone is missing or no decimal
	// number; it is 0 then, and the rest of the message is filled in.
	ErrMessageType = errors.New("scep: message type")
)

// Lengths in octets. RFC 8894, section 3.2.1 bounds neither; 512 is more than any
// client sends, and nonces should have 16 octets but are echoed as they come.
const (
	maxTransactionID = 512
	maxNonce         = 64
)

// visibleString is a universal tag that cryptobyte has no name for.
const visibleString = cbasn1.Tag(26)

// A Message is what the signed attributes of a pkiMessage say about it.
type Message struct {
	Type             int
	TransactionID    string // valid UTF-8, unchecked otherwise
	RawTransactionID []byte // the value's DER, for an echo with the same string type
	SenderNonce      []byte
}

// ParseMessage reads the attributes that every request must have (RFC 8894,
// section 3.2.1) and ignores all others: clients add attributes of their own. Any
// error is [ErrAttributes] or [ErrMessageType]. The result keeps references to
// attrs.
func ParseMessage(attrs []cms.Attribute) (Message, error) {
	var m Message
	var ok bool
	m.RawTransactionID = find(attrs, OIDTransactionID)
	if m.TransactionID, ok = text(m.RawTransactionID); !ok || m.TransactionID == "" || len(m.TransactionID) > maxTransactionID {
		return Message{}, fmt.Errorf("%w: transactionID", ErrAttributes)
	}
	nonce := cryptobyte.String(find(attrs, OIDSenderNonce))
	var octets cryptobyte.String
	if !nonce.ReadASN1(&octets, cbasn1.OCTET_STRING) || !nonce.Empty() || len(octets) == 0 || len(octets) > maxNonce {
		return Message{}, fmt.Errorf("%w: senderNonce", ErrAttributes)
	}
	m.SenderNonce = octets
	number, ok := text(find(attrs, OIDMessageType))
	if !ok {
		return m, fmt.Errorf("%w: missing", ErrMessageType)
	}
	if m.Type, ok = decimal(number); !ok {
		return m, fmt.Errorf("%w: not a decimal number", ErrMessageType)
	}
	return m, nil
}

// find returns the value of the first attribute of a type; nil if there is none.
// That there is at most one is seen to by package cms.
func find(attrs []cms.Attribute, oid asn1.ObjectIdentifier) []byte {
	for _, a := range attrs {
		if a.Type.Equal(oid) {
			return a.Value
		}
	}
	return nil
}

// text reads a string. RFC 8894, section 3.2.1 wants PrintableString, but clients
// send other types, and characters that PrintableString does not have.
func text(der []byte) (string, bool) {
	in := cryptobyte.String(der)
	var value cryptobyte.String
	var tag cbasn1.Tag
	if !in.ReadAnyASN1(&value, &tag) || !in.Empty() {
		return "", false
	}
	switch tag {
	case cbasn1.UTF8String:
		return string(value), utf8.Valid(value)
	case cbasn1.PrintableString, cbasn1.IA5String, visibleString:
		for _, b := range value {
			if b >= utf8.RuneSelf {
				return "", false
			}
		}
		return string(value), true
	default:
		return "", false
	}
}

// decimal reads a number in its one spelling: no sign, no zero in front.
func decimal(s string) (int, bool) {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, false
	}
	return int(n), true
}
