package client

import (
	"crypto"
	"crypto/rand"
	"encoding/asn1"
	"fmt"
	"io"
	"strconv"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/postern-pki/postern/protocol/cms"
)

// Message types (RFC 8894, section 3.2.1.2).
const (
	CertRep    = 3
	RenewalReq = 17
	PKCSReq    = 19
)

// Attributes of a pkiMessage (RFC 8894, section 3.2.1); failInfoText is id-scep 1.
var (
	oidMessageType    = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 2}
	oidPKIStatus      = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 3}
	oidFailInfo       = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 4}
	oidSenderNonce    = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 5}
	oidRecipientNonce = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 6}
	oidTransactionID  = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 7}
	oidFailInfoText   = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 24, 1}
)

// A Message says what a request is made of. Nothing in it is checked, so that
// tests can make wrong ones; only a nil SenderNonce and an empty TransactionID
// leave the attribute out.
type Message struct {
	Type          int
	TransactionID string
	SenderNonce   []byte
	Signer        []byte   // DER; self-signed for PKCSReq, the old certificate for RenewalReq
	Chain         [][]byte // DER of further certificates in the message
	SignerKey     crypto.Signer
	Recipient     []byte // DER of the RA's decryption certificate
	CSR           []byte // DER; what the envelope has
	Cipher        cms.Cipher
	Digest        crypto.Hash
	Rand          io.Reader // default crypto/rand
}

// BuildRequest makes a pkiMessage.
func BuildRequest(m Message) (der []byte, err error) {
	random := m.Rand
	if random == nil {
		random = rand.Reader
	}
	to, err := cms.ParseCertificate(m.Recipient)
	if err != nil {
		return nil, fmt.Errorf("%w: recipient: %w", ErrRequest, err)
	}
	envelope, err := cms.Envelop(random, m.CSR, to, m.Cipher)
	if err != nil {
		return nil, fmt.Errorf("scep client: envelope: %w", err)
	}
	var attributes []cms.Attribute
	for _, a := range []struct {
		oid   asn1.ObjectIdentifier
		tag   cbasn1.Tag
		value []byte
	}{
		{oidTransactionID, cbasn1.PrintableString, []byte(m.TransactionID)},
		{oidMessageType, cbasn1.PrintableString, []byte(strconv.Itoa(m.Type))},
		{oidSenderNonce, cbasn1.OCTET_STRING, m.SenderNonce},
	} {
		if len(a.value) == 0 {
			continue
		}
		var b cryptobyte.Builder
		b.AddASN1(a.tag, func(b *cryptobyte.Builder) { b.AddBytes(a.value) })
		value, err := b.Bytes()
		if err != nil {
			return nil, fmt.Errorf("%w: attribute %v: %w", ErrRequest, a.oid, err)
		}
		attributes = append(attributes, cms.Attribute{Type: a.oid, Value: value})
	}
	signer, err := cms.ParseCertificate(m.Signer)
	if err != nil {
		return nil, fmt.Errorf("%w: signer: %w", ErrRequest, err)
	}
	der, err = cms.Sign(cms.SignOptions{
		Certificate: signer, Chain: m.Chain, Key: m.SignerKey, Digest: m.Digest, Attributes: attributes, Content: envelope,
	})
	if err != nil {
		return nil, fmt.Errorf("scep client: signing the request: %w", err)
	}
	return der, nil
}

// Nonce returns 16 random octets.
func Nonce(random io.Reader) ([]byte, error) {
	b := make([]byte, nonceSize)
	if _, err := io.ReadFull(random, b); err != nil {
		return nil, fmt.Errorf("scep client: random octets: %w", err)
	}
	return b, nil
}
