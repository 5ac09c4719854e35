package cms_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"io"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/cms"
)

var content = []byte("the content of the message")

// A holder has a key and a self-signed certificate for it.
type holder struct {
	key  crypto.Signer
	cert []byte
}

func newHolder(t testing.TB, name string, key crypto.Signer) holder {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, SubjectKeyId: []byte(name),
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return holder{key, der}
}

var newRSAKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func rsaHolder(t testing.TB) holder {
	t.Helper()
	key, err := newRSAKey()
	if err != nil {
		t.Fatal(err)
	}
	return newHolder(t, "rsa", key)
}

func ecHolder(t testing.TB, c elliptic.Curve) holder {
	t.Helper()
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return newHolder(t, "ec", key)
}

func (h holder) parsed(t testing.TB) *cms.Certificate {
	t.Helper()
	c, err := cms.ParseCertificate(h.cert)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// transaction is an attribute as SCEP has it: a PrintableString, whatever is in it.
func transaction(s string) cms.Attribute {
	return cms.Attribute{Type: asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 7}, Value: element(0x13, []byte(s))}
}

func sign(t testing.TB, h holder, o cms.SignOptions) []byte {
	t.Helper()
	o.Certificate, o.Key = h.parsed(t), h.key
	if o.Digest == 0 {
		o.Digest = crypto.SHA256
	}
	der, err := cms.Sign(o)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// signed is a message of h with two attributes of its own, taken apart.
func signed(t testing.TB, h holder) *tlv {
	t.Helper()
	return parseTLV(t, sign(t, h, cms.SignOptions{Content: content, Attributes: []cms.Attribute{
		transaction("abc"), {Type: asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 5}, Value: element(4, make([]byte, 16))},
	}}))
}

// The places of a SignedData's parts.
var (
	pathSigned     = []int{1, 0}
	pathContent    = []int{1, 0, 2}
	pathCerts      = []int{1, 0, 3}
	pathSigners    = []int{1, 0, 4}
	pathSigner     = []int{1, 0, 4, 0}
	pathAttributes = []int{1, 0, 4, 0, 3}
	pathSignature  = []int{1, 0, 4, 0, 5}
)

// resign signs the attributes of m as they stand.
func resign(t testing.TB, m *tlv, key crypto.Signer) {
	t.Helper()
	attrs := m.at(pathAttributes...).der()
	attrs[0] = 0x31
	h := crypto.SHA256.New()
	h.Write(attrs)
	signature, err := key.Sign(rand.Reader, h.Sum(nil), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	m.at(pathSignature...).value = signature
}

func parseAndVerify(der []byte) (*cms.Signed, error) {
	der, err := cms.DER(der, cms.DefaultLimits())
	if err != nil {
		return nil, err
	}
	s, err := cms.ParseSigned(der)
	if err != nil {
		return nil, err
	}
	return s, s.Verify()
}

// counter is a key that counts its signatures.
type counter struct {
	crypto.Signer
	n int
}

func (c *counter) Sign(r io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	c.n++
	return c.Signer.Sign(r, digest, o)
}
