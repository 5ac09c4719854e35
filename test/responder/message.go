package responder

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"time"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/pkcs10"
)

// A message is what an answer needs to know of a request. transaction and nonce are
// DER.
type message struct {
	raw                []byte
	kind               string
	transaction, nonce []byte
	signed             *cms.Signed // nil if package cms does not read it
}

// readMessage reads the attributes of any message, also of one that package cms
// refuses.
func readMessage(raw []byte) (*message, bool) {
	m := &message{raw: raw, transaction: scan(raw, 7), nonce: scan(raw, 5)}
	if kind := scan(raw, 2); len(kind) > 2 {
		m.kind = string(kind[2:])
	}
	var whole asn1.RawValue
	if rest, err := asn1.Unmarshal(raw, &whole); err != nil || len(rest) > 0 || m.transaction == nil || m.nonce == nil {
		return nil, false
	}
	m.signed, _ = cms.ParseSigned(raw)
	return m, true
}

// scan returns the value of an attribute, by looking for its type.
func scan(raw []byte, last byte) []byte {
	i := bytes.Index(raw, []byte{0x06, 0x0a, 0x60, 0x86, 0x48, 0x01, 0x86, 0xf8, 0x45, 0x01, 0x09, last})
	if i < 0 {
		return nil
	}
	var set, value asn1.RawValue
	if _, err := asn1.Unmarshal(raw[i+12:], &set); err != nil {
		return nil
	}
	if _, err := asn1.Unmarshal(set.Bytes, &value); err != nil {
		return nil
	}
	return value.FullBytes
}

// A decision is what an answer says.
type decision struct {
	status, failInfo, text string
	content                []byte
}

func (s *Server) refuse(failInfo, text string) decision {
	if s.Words != "" {
		text = s.Words
	}
	if s.FailInfo != "" {
		failInfo = s.FailInfo
	}
	return decision{status: "2", failInfo: failInfo, text: text}
}

// decide says what becomes of a message.
func (s *Server) decide(m *message) decision {
	broken := func(class string) decision {
		if s.Oracle {
			return s.refuse("2", class)
		}
		return s.refuse("1", "the message does not prove what it says")
	}
	for _, old := range []string{"DES", "MD5", "SHA-1", "3DES"} {
		if shows(m.raw, old) {
			if slices.Contains(s.Takes, old) {
				return broken("no request")
			}
			return s.refuse("0", "the algorithm is not allowed")
		}
	}
	if m.signed == nil {
		return s.refuse("2", "the message cannot be read")
	}
	if !s.NoSignature && m.signed.Verify() != nil {
		return s.refuse("1", "the message does not prove what it says")
	}
	if s.Grants != 0 && m.kind == big.NewInt(int64(s.Grants)).String() {
		return decision{status: "3"}
	}
	if !slices.Contains([]string{"17", "19", "20", "21", "22"}, m.kind) {
		return s.refuse("2", "no such type")
	}
	content, class := open(m.signed.Content)
	if class != "" {
		return broken(class)
	}
	switch m.kind {
	case "20":
		s.Polls++
		if s.csr == nil {
			return s.refuse("4", "no such transaction")
		}
		return s.enrollment()
	case "21", "22":
		return s.look(m.kind, content)
	}
	csr, err := pkcs10.Parse(content)
	if err != nil || csr.CheckSignature() != nil {
		return broken("no request")
	}
	s.csr = csr
	return s.enrollment()
}

// open returns what an envelope holds, or what is wrong with it.
func open(der []byte) (content []byte, class string) {
	envelope, err := cms.ParseEnvelope(der)
	if err != nil || len(envelope.Recipients) != 1 {
		return nil, "envelope"
	}
	//lint:ignore SA1019 RFC 8894 has no other key transport
	key, err := rsa.DecryptPKCS1v15(nil, keys()[raKey], envelope.Recipients[0].EncryptedKey) //nolint:staticcheck // as above
	if err != nil {
		return nil, "RSA padding"
	}
	if len(key) != envelope.Cipher.KeySize() {
		return nil, "key length"
	}
	if content, err = envelope.Open(key); err != nil {
		return nil, "block padding"
	}
	return content, ""
}

// enrollment answers for the request that it knows.
func (s *Server) enrollment() decision {
	switch {
	case s.Pending:
		return decision{status: "3"}
	case s.Denied:
		return s.refuse("2", "denied: not one of ours")
	}
	if s.issued == nil || !s.issued.PublicKey.(*rsa.PublicKey).Equal(s.csr.PublicKey) {
		s.issued = s.Issue("device", s.csr.PublicKey, s.CA, caKey, nil)
	}
	content, err := cms.CertsOnly([][]byte{s.issued.Raw})
	if err != nil {
		s.t.Error(err)
	}
	return decision{status: "0", content: content}
}

// look answers a GetCert and a GetCRL.
func (s *Server) look(kind string, content []byte) decision {
	var q struct {
		Issuer asn1.RawValue
		Serial *big.Int
	}
	if _, err := asn1.Unmarshal(content, &q); err != nil {
		return s.refuse("2", "no issuer and serial number")
	}
	if !bytes.Equal(q.Issuer.FullBytes, s.CA.RawSubject) {
		return s.refuse("4", "no such issuer")
	}
	if kind == "22" {
		return decision{status: "0", content: s.crl()}
	}
	if s.issued == nil || s.issued.SerialNumber.Cmp(q.Serial) != 0 {
		return s.refuse("4", "no such certificate")
	}
	certs, err := cms.CertsOnly([][]byte{s.issued.Raw})
	if err != nil {
		s.t.Error(err)
	}
	return decision{status: "0", content: certs}
}

func (s *Server) crl() []byte {
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}
	for _, serial := range s.Revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: time.Now(), ReasonCode: 1})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, s.CA, keys()[caKey])
	if err != nil {
		s.t.Error(err)
	}
	out, err := cms.CRLOnly(der)
	if err != nil {
		s.t.Error(err)
	}
	return out
}

var (
	data          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	envelopedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3}
	singleDES     = asn1.ObjectIdentifier{1, 3, 14, 3, 2, 7}
	aes128        = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 2}
)

type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content asn1.RawValue
}

type recipient struct {
	Version int
	Name    struct {
		Issuer asn1.RawValue
		Serial asn1.RawValue
	}
	Algorithm pkix.AlgorithmIdentifier
	Key       []byte
}

type enveloped struct {
	Version    int
	Recipients []recipient `asn1:"set"`
	Content    struct {
		Type      asn1.ObjectIdentifier
		Algorithm pkix.AlgorithmIdentifier
		Sealed    asn1.RawValue
	}
}

// seal enciphers an answer, rightly or as wrong as the faults say: then nobody can
// open it.
func (s *Server) seal(content []byte, to *cms.Certificate) ([]byte, error) {
	if !s.DES && !s.Everybody {
		return cms.Envelop(rand.Reader, content, to, cms.AES128CBC)
	}
	ra, err := cms.ParseCertificate(s.RA.Raw)
	if err != nil {
		return nil, err
	}
	names := []*cms.Certificate{to}
	if s.Everybody {
		names = append(names, ra)
	}
	e := enveloped{}
	for _, c := range names {
		r := recipient{Algorithm: pkix.AlgorithmIdentifier{Algorithm: cms.OIDRSAEncryption, Parameters: asn1.NullRawValue}, Key: make([]byte, 256)}
		r.Name.Issuer, r.Name.Serial = asn1.RawValue{FullBytes: c.RawIssuer}, asn1.RawValue{Tag: asn1.TagInteger, Bytes: c.RawSerial}
		e.Recipients = append(e.Recipients, r)
	}
	e.Content.Type = data
	cipher, size := aes128, 16
	if s.DES {
		cipher, size = singleDES, 8
	}
	e.Content.Algorithm = pkix.AlgorithmIdentifier{Algorithm: cipher, Parameters: asn1.RawValue{Tag: asn1.TagOctetString, Bytes: make([]byte, size)}}
	e.Content.Sealed = asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, Bytes: make([]byte, 4*size)}
	der, err := asn1.Marshal(e)
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(contentInfo{envelopedData, asn1.RawValue{Class: 2, Tag: 0, IsCompound: true, Bytes: der}})
}
