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
	"time"

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

// A PendingError says, signed by the RA, that the CA has not decided. Pending is
// what [Client.Poll] goes on with; [Open] leaves it nil.
type PendingError struct {
	TransactionID string
	Pending       *Pending
}

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
	Seen          *Nonces         // if not nil, the reply's senderNonce must be new to it
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
	der, err := cms.DER(r.DER, cms.Limits{Bytes: maxCRL}) // what is taken from the network is bounded by what was asked
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
	content, err := OpenContent(r, e)
	if err != nil {
		return nil, err
	}
	return result(content, e)
}

// OpenContent is [Open] for a reply that may hold something else than the
// certificate of a request: it returns the content of the envelope, which is to be
// verified by itself.
func OpenContent(r *Reply, e Expectations) ([]byte, error) {
	rep, err := Inspect(r)
	if err != nil {
		return nil, err
	}
	if err := rep.verify(e); err != nil {
		return nil, err
	}
	switch s := rep.Status; {
	case s != scep.StatusSuccess && s != scep.StatusPending && s != scep.StatusFailure:
		return nil, fmt.Errorf("%w: pkiStatus %d", ErrReply, s)
	case s != scep.StatusFailure && rep.FailInfo >= 0:
		return nil, fmt.Errorf("%w: a failInfo without a failure", ErrReply)
	case s == scep.StatusSuccess:
		return rep.decrypt(e)
	case rep.Signed.Content != nil: // RFC 8894, sections 3.3.2.2 and 3.3.2.3
		return nil, fmt.Errorf("%w: an envelope without success", ErrReply)
	case s == scep.StatusPending:
		return nil, &PendingError{TransactionID: e.TransactionID}
	case rep.FailInfo < 0:
		return nil, fmt.Errorf("%w: a failure without failInfo", ErrReply)
	}
	return nil, &FailError{rep.FailInfo, failInfoName(rep.FailInfo), rep.FailInfoText}
}

// strong reports whether a digest is one that RFC 8894 does not call legacy.
func strong(h crypto.Hash) bool {
	return h == crypto.SHA256 || h == crypto.SHA384 || h == crypto.SHA512
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
	if d := r.Signed.Digest; !strong(d) && (d != crypto.SHA1 || !e.LegacySHA1) {
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
	case e.Seen != nil && !e.Seen.Add(r.SenderNonce):
		return fmt.Errorf("%w: the senderNonce was used before", ErrReply)
	}
	return nil
}

// result finds the certificate that was asked for.
func result(content []byte, e Expectations) (*Result, error) {
	certs, err := issuedCertificates(content)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(certs, func(c *x509.Certificate) bool { return bytes.Equal(c.RawSubjectPublicKeyInfo, e.PublicKey) })
	if i < 0 {
		return nil, fmt.Errorf("%w: none of %d holds the key of the request", ErrCertificate, len(certs))
	}
	cert := certs[i]
	if cert.IsCA {
		return nil, fmt.Errorf("%w: it is a CA's", ErrCertificate)
	}
	if err := e.CA.vouches(cert, time.Now()); err != nil {
		return nil, err
	}
	chain := append([]*x509.Certificate{e.CA.CA}, e.CA.Chain...)
	return &Result{Certificate: cert, Chain: chain, TransactionID: e.TransactionID}, nil
}

// issuedCertificates reads the certificates of a reply.
func issuedCertificates(content []byte) ([]*x509.Certificate, error) {
	der, err := cms.DER(content, cms.Limits{Bytes: maxAnswer})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReply, err)
	}
	raw, err := cms.ParseCertsOnly(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReply, err)
	}
	certs, err := parseCertificates(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	return certs, nil
}

// recipients counts them, of any kind (RFC 5652, section 6.1); 0 if it is no
// EnvelopedData.
func recipients(der []byte) int {
	in := cryptobyte.String(der)
	var info, explicit, body, all cryptobyte.String
	var kind asn1.ObjectIdentifier
	var version int
	const tag0 = cbasn1.Tag(0xa0)
	if !in.ReadASN1(&info, cbasn1.SEQUENCE) || !info.ReadASN1ObjectIdentifier(&kind) || !info.ReadASN1(&explicit, tag0) ||
		!explicit.ReadASN1(&body, cbasn1.SEQUENCE) || !body.ReadASN1Integer(&version) || !body.SkipOptionalASN1(tag0) ||
		!body.ReadASN1(&all, cbasn1.SET) {
		return 0
	}
	n := 0
	for ; !all.Empty(); n++ {
		var one cryptobyte.String
		var tag cbasn1.Tag
		if !all.ReadAnyASN1(&one, &tag) {
			return 0
		}
	}
	return n
}

// decrypt opens the envelope. That it tells its failures apart is no oracle: only
// what the RA signed for this request gets here.
func (r *Rep) decrypt(e Expectations) ([]byte, error) {
	der, err := cms.DER(r.Signed.Content, cms.Limits{Bytes: maxCRL})
	if err != nil {
		return nil, fmt.Errorf("%w: envelope: %w", ErrReply, err)
	}
	if n := recipients(der); n != 1 { // each of them can read it
		return nil, fmt.Errorf("%w: it is enciphered to %d recipients", ErrReply, n)
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
