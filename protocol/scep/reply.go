package scep

import (
	"context"
	"crypto"
	"crypto/rand"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/cms"
)

const (
	nonceSize       = 16  // RFC 8894, section 3.2.1.5
	minNonce        = 8   // so that ours do not repeat, whatever the client's length
	maxFailInfoText = 200 // characters; some clients show it in one line
)

var errOutcome = errors.New("scep: the authority's outcome makes no sense")

// failInfo maps every kind of refusal, also one that is not known here, to a
// failInfo (RFC 8894, section 3.2.1.4).
func failInfo(k protocol.Kind) int {
	switch k {
	case protocol.BadProof:
		return BadMessageCheck
	case protocol.BadAlgorithm:
		return BadAlg
	case protocol.BadTime:
		return BadTime
	case protocol.NotFound:
		return BadCertID
	case protocol.NotAllowed, protocol.Unsupported, protocol.Unclassified:
		return BadRequest
	default:
		return BadRequest
	}
}

// failInfoText is for people (RFC 8894, section 3.2.1.4.1): one sentence, and the
// id by which an operator finds the reasons in the log.
func failInfoText(say, id string) string {
	say = strings.ToValidUTF8(say, "?")
	suffix := " (request " + strings.ToValidUTF8(id, "?") + ")"
	room := max(0, maxFailInfoText-utf8.RuneCountInString(suffix))
	return firstRunes(firstRunes(say, room)+suffix, maxFailInfoText)
}

func firstRunes(s string, n int) string {
	for i := range s {
		if n == 0 {
			return s[:i]
		}
		n--
	}
	return s
}

// attributes collects signed attributes and the first error in encoding one.
type attributes struct {
	list []cms.Attribute
	err  error
}

func (a *attributes) add(oid asn1.ObjectIdentifier, tag cbasn1.Tag, value []byte) {
	var b cryptobyte.Builder
	b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes(value) })
	der, err := b.Bytes()
	if err != nil && a.err == nil {
		a.err = fmt.Errorf("scep: attribute %v: %w", oid, err)
	}
	a.list = append(a.list, cms.Attribute{Type: oid, Value: der})
}

func (a *attributes) number(oid asn1.ObjectIdentifier, n int) {
	a.add(oid, cbasn1.PrintableString, []byte(strconv.Itoa(n)))
}

// certRepAttributes are those of RFC 8894, section 3.2.1. The senderNonce is
// fresh in every reply: some clients refuse one that they saw before. It is as long
// as the client's, as some that send 8 octets take no other length.
func certRepAttributes(m Message, status int, refusal *protocol.Refusal, id string, words bool) ([]cms.Attribute, error) {
	var a attributes
	a.list = append(a.list, cms.Attribute{Type: OIDTransactionID, Value: m.RawTransactionID})
	a.number(OIDMessageType, CertRep)
	a.number(OIDPKIStatus, status)
	nonce := make([]byte, max(minNonce, len(m.SenderNonce)))
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("scep: nonce: %w", err)
	}
	a.add(OIDSenderNonce, cbasn1.OCTET_STRING, nonce)
	a.add(OIDRecipientNonce, cbasn1.OCTET_STRING, m.SenderNonce)
	if refusal != nil {
		a.number(OIDFailInfo, failInfo(refusal.Kind))
	}
	if refusal != nil && words { // some clients break on it (RFC 8894, appendix A)
		a.add(OIDFailInfoText, cbasn1.UTF8String, []byte(failInfoText(refusal.Say, id)))
	}
	return a.list, a.err
}

// certRep makes the answer (RFC 8894, section 3.3.2). signed and cipher are the
// request's; signed may be nil for what is no SUCCESS.
func (x *exchange) certRep(ctx context.Context, signed *cms.Signed, cipher cms.Cipher, o protocol.Outcome) ([]byte, error) {
	x.belongs(signed)
	var status int
	var content []byte
	var refusal *protocol.Refusal
	var err error
	switch o.Status {
	case protocol.Issued:
		status = StatusSuccess
		if content, err = x.issuedContent(o, signed, replyCipher(x.service, cipher)); err != nil {
			return nil, err
		}
	case protocol.Pending:
		status = StatusPending
	case protocol.Refused:
		status = StatusFailure
		if refusal = o.Refusal; refusal == nil {
			refusal = &protocol.Refusal{Say: "the request was refused"}
		}
	default:
		return nil, fmt.Errorf("%w: status %d", errOutcome, int(o.Status))
	}
	attrs, err := certRepAttributes(x.message, status, refusal, o.RequestID, !x.service.NoFailInfoText)
	if err != nil {
		return nil, err
	}
	key, err := x.keys.Signer(ctx, x.record.Profile, x.generation.RASign)
	if err != nil {
		return nil, fmt.Errorf("scep: RA signing key: %w", err)
	}
	ra, err := x.own.parse(x.generation.RASign)
	if err != nil {
		return nil, fmt.Errorf("scep: RA signing certificate: %w", err)
	}
	return cms.Sign(cms.SignOptions{
		Certificate: ra, Key: key, Digest: replyDigest(x.service, x.digest),
		Attributes: attrs, Content: content,
	})
}

// issuedContent is a pkcsPKIEnvelope with the issued certificate first and, if the
// profile wants it, its chain, or with a CRL alone (RFC 8894, section 3.3.2.1),
// encrypted to the certificate that signed the request and to no other that came
// with it, or under the challenge.
func (x *exchange) issuedContent(o protocol.Outcome, signed *cms.Signed, c cms.Cipher) ([]byte, error) {
	var content []byte
	var err error
	switch {
	case signed == nil:
		err = fmt.Errorf("%w: issued, and nobody to send it to", errOutcome)
	case o.CRL != nil:
		content, err = cms.CRLOnly(o.CRL)
	case len(o.Certificates) > 0:
		var list [][]byte
		if list, err = x.withChain(o.Certificates[0]); err == nil {
			content, err = cms.CertsOnly(list)
		}
	default:
		err = fmt.Errorf("%w: issued, but no certificate", errOutcome)
	}
	if err != nil {
		return nil, err
	}
	return x.envelop(content, signed.Signer, c)
}

// replyCipher is the request's, so that the client can read it, else what RFC
// 8894, section 2.9 has every client support.
func replyCipher(s protocol.Service, c cms.Cipher) cms.Cipher {
	if cipherAllowed(s, c) {
		return c
	}
	return cms.AES128CBC
}

// replyDigest is the request's, so that the client can check it: that may be SHA-1
// where the profile allows it. Else it is what RFC 8894, section 2.9 has every
// client support.
func replyDigest(s protocol.Service, h crypto.Hash) crypto.Hash {
	switch {
	case h == crypto.SHA384, h == crypto.SHA512, h == crypto.SHA1 && s.LegacySHA1:
		return h
	default:
		return crypto.SHA256
	}
}

// Legacy algorithms need their own switch, whatever the lists say.
func cipherAllowed(s protocol.Service, c cms.Cipher) bool {
	if c == cms.DES3CBC {
		return s.LegacyDES3
	}
	return c.KeySize() > 0 && slices.Contains(s.Ciphers, c.String())
}

func digestAllowed(s protocol.Service, h crypto.Hash) bool {
	if h == crypto.SHA1 {
		return s.LegacySHA1
	}
	return slices.Contains(s.Digests, h)
}
