package client

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"io"
	"slices"
	"strconv"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
)

// A FailError is a refusal that the RA signed (RFC 8894, section 3.2.1.4).
type FailError struct {
	FailInfo int
	Name     string // such as badRequest; "unknown" for a number that is none
	Text     string // failInfoText, cut; "" if there is none
}

// Error implements error.
func (e *FailError) Error() string {
	s := fmt.Sprintf("the CA refused: %s (%d)", e.Name, e.FailInfo)
	if e.Text != "" {
		s += ": " + e.Text
	}
	return s
}

// A PendingError says, signed by the RA, that the CA has not decided.
type PendingError struct{ TransactionID string }

// Error implements error.
func (e *PendingError) Error() string {
	return "the CA has not decided yet: transaction " + e.TransactionID
}

// Expectations are what a reply has to match, and what opens it.
type Expectations struct {
	CA            *CA
	TransactionID string
	SenderNonce   []byte          // of the request
	Signer        []byte          // DER of the request's signer, to whom the reply is enciphered
	SignerKey     *rsa.PrivateKey // of Signer
	PublicKey     []byte          // SubjectPublicKeyInfo of the CSR
	LegacySHA1    bool            // whether the reply may be signed with SHA-1
	LegacyDES3    bool            // whether the reply may be enciphered with triple DES
}

// A Result is an enrollment that succeeded.
type Result struct {
	Certificate   *x509.Certificate
	Chain         []*x509.Certificate // the CA that signed it, up to the root
	TransactionID string
}

// A Rep is what a reply says, parsed and not verified: Open verifies.
type Rep struct {
	Signed         *cms.Signed
	MessageType    int // this and the next two are -1 if they are missing
	Status         int
	FailInfo       int
	FailInfoText   string
	TransactionID  string
	SenderNonce    []byte
	RecipientNonce []byte
}

// Inspect parses a reply. What it returns proves nothing.
func Inspect(r *Reply) (*Rep, error) {
	der, err := cms.DER(r.DER, cms.Limits{Bytes: maxAnswer})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReply, err)
	}
	signed, err := cms.ParseSigned(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReply, err)
	}
	rep := &Rep{Signed: signed}
	if rep.MessageType, err = number(signed, scep.OIDMessageType); err != nil {
		return nil, err
	}
	if rep.Status, err = number(signed, scep.OIDPKIStatus); err != nil {
		return nil, err
	}
	if rep.FailInfo, err = number(signed, scep.OIDFailInfo); err != nil {
		return nil, err
	}
	text := []cbasn1.Tag{cbasn1.PrintableString, cbasn1.UTF8String, cbasn1.IA5String}
	rep.FailInfoText = clean(string(value(signed, scep.OIDFailInfoText, text...)))
	rep.TransactionID = string(value(signed, scep.OIDTransactionID, text...))
	rep.SenderNonce = value(signed, scep.OIDSenderNonce, cbasn1.OCTET_STRING)
	rep.RecipientNonce = value(signed, scep.OIDRecipientNonce, cbasn1.OCTET_STRING)
	return rep, nil
}

// value returns the contents of an attribute, nil if it is missing, empty, or of
// another type than one of tags.
func value(s *cms.Signed, oid asn1.ObjectIdentifier, tags ...cbasn1.Tag) []byte {
	i := slices.IndexFunc(s.Attributes, func(a cms.Attribute) bool { return a.Type.Equal(oid) })
	if i < 0 {
		return nil
	}
	in := cryptobyte.String(s.Attributes[i].Value)
	var contents cryptobyte.String
	var tag cbasn1.Tag
	if !in.ReadAnyASN1(&contents, &tag) || !in.Empty() || len(contents) == 0 || !slices.Contains(tags, tag) {
		return nil
	}
	return contents
}

// number reads a decimal number in a string, without sign or leading zeros.
func number(s *cms.Signed, oid asn1.ObjectIdentifier) (int, error) {
	if !slices.ContainsFunc(s.Attributes, func(a cms.Attribute) bool { return a.Type.Equal(oid) }) {
		return -1, nil
	}
	text := string(value(s, oid, cbasn1.PrintableString, cbasn1.UTF8String, cbasn1.IA5String))
	n, err := strconv.ParseUint(text, 10, 8)
	if err != nil || strconv.FormatUint(n, 10) != text {
		return -1, fmt.Errorf("%w: attribute %v is no number", ErrReply, oid)
	}
	return int(n), nil
}

// Open verifies a reply and returns the certificate in it. A [FailError] and a
// [PendingError] are what the RA signed for this very request; any other error
// says nothing about what the CA decided.
func Open(r *Reply, e Expectations) (*Result, error) {
	rep, err := Inspect(r)
	if err != nil {
		return nil, err
	}
	if err := rep.verify(e); err != nil {
		return nil, err
	}
	switch rep.Status {
	case scep.StatusSuccess:
		return rep.success(e)
	case scep.StatusPending:
		return nil, &PendingError{e.TransactionID}
	case scep.StatusFailure:
		if rep.FailInfo < 0 {
			return nil, fmt.Errorf("%w: a failure without failInfo", ErrReply)
		}
		return nil, &FailError{rep.FailInfo, failInfoName(rep.FailInfo), rep.FailInfoText}
	default:
		return nil, fmt.Errorf("%w: pkiStatus %d", ErrReply, rep.Status)
	}
}

func failInfoName(n int) string {
	names := [...]string{"badAlg", "badMessageCheck", "badRequest", "badTime", "badCertId"}
	if n < 0 || n >= len(names) {
		return "unknown"
	}
	return names[n]
}

// verify says that the RA signed this reply, for this request.
func (r *Rep) verify(e Expectations) error {
	if e.CA == nil || e.CA.RASign == nil || e.CA.CA == nil {
		return fmt.Errorf("%w: there is no RA to expect", ErrReply)
	}
	if !bytes.Equal(r.Signed.Signer.Raw, e.CA.RASign.Raw) {
		return fmt.Errorf("%w: the signer is not the RA", ErrReply)
	}
	switch d := r.Signed.Digest; {
	case d == crypto.SHA256, d == crypto.SHA384, d == crypto.SHA512, d == crypto.SHA1 && e.LegacySHA1:
	default:
		return fmt.Errorf("%w: it is signed with %v", ErrReply, d)
	}
	if err := r.Signed.Verify(); err != nil {
		return fmt.Errorf("%w: %w", ErrReply, err)
	}
	switch {
	case r.MessageType != scep.CertRep:
		return fmt.Errorf("%w: messageType %d", ErrReply, r.MessageType)
	case r.TransactionID == "" || r.TransactionID != e.TransactionID:
		return fmt.Errorf("%w: another transactionID", ErrReply)
	case len(r.RecipientNonce) == 0 || subtle.ConstantTimeCompare(r.RecipientNonce, e.SenderNonce) != 1:
		return fmt.Errorf("%w: the recipientNonce is not the nonce of the request", ErrReply)
	case len(r.SenderNonce) == 0:
		return fmt.Errorf("%w: no senderNonce", ErrReply)
	case bytes.Equal(r.SenderNonce, e.SenderNonce):
		return fmt.Errorf("%w: the senderNonce is our own", ErrReply)
	}
	return nil
}

func (r *Rep) success(e Expectations) (*Result, error) {
	content, err := r.decrypt(e)
	if err != nil {
		return nil, err
	}
	der, err := cms.DER(content, cms.Limits{Bytes: maxAnswer})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReply, err)
	}
	raw, err := cms.ParseCertsOnly(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReply, err)
	}
	for _, one := range raw {
		cert, err := x509.ParseCertificate(one)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCertificate, err)
		}
		if !bytes.Equal(cert.RawSubjectPublicKeyInfo, e.PublicKey) {
			continue
		}
		if !issued(e.CA.CA, cert) {
			return nil, fmt.Errorf("%w: the CA did not sign it", ErrCertificate)
		}
		chain := append([]*x509.Certificate{e.CA.CA}, e.CA.Chain...)
		return &Result{Certificate: cert, Chain: chain, TransactionID: e.TransactionID}, nil
	}
	return nil, fmt.Errorf("%w: none of %d holds the key of the request", ErrCertificate, len(raw))
}

// decrypt opens the envelope. That it tells its failures apart is no oracle: only
// what the RA signed for this request gets here.
func (r *Rep) decrypt(e Expectations) ([]byte, error) {
	der, err := cms.DER(r.Signed.Content, cms.Limits{Bytes: maxAnswer})
	if err != nil {
		return nil, fmt.Errorf("%w: envelope: %w", ErrReply, err)
	}
	envelope, err := cms.ParseEnvelope(der)
	if err != nil {
		return nil, fmt.Errorf("%w: envelope: %w", ErrReply, err)
	}
	if envelope.Cipher == cms.DES3CBC && !e.LegacyDES3 {
		return nil, fmt.Errorf("%w: it is enciphered with %v", ErrReply, envelope.Cipher)
	}
	self, err := cms.ParseCertificate(e.Signer)
	if err != nil || e.SignerKey == nil {
		return nil, fmt.Errorf("%w: the request had no signer", ErrRequest)
	}
	i := slices.IndexFunc(envelope.Recipients, func(to cms.Recipient) bool {
		return to.Algorithm.Equal(cms.OIDRSAEncryption) && to.Names(self)
	})
	if i < 0 {
		return nil, fmt.Errorf("%w: it is not enciphered to the request's signer", ErrReply)
	}
	key := make([]byte, envelope.Cipher.KeySize())
	if _, err := io.ReadFull(rand.Reader, key); err != nil {
		return nil, fmt.Errorf("scep client: random octets: %w", err)
	}
	//lint:ignore SA1019 RFC 8894 has no other key transport; what is opened here the RA signed
	if err := rsa.DecryptPKCS1v15SessionKey(rand.Reader, e.SignerKey, envelope.Recipients[i].EncryptedKey, key); err != nil { //nolint:staticcheck // as above
		return nil, fmt.Errorf("%w: content key: %w", ErrReply, err)
	}
	content, err := envelope.Open(key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReply, err)
	}
	return content, nil
}
