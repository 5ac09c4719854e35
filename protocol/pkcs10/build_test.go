package pkcs10_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"sync"
	"testing"
)

// el is a DER element of the given contents.
func el(tag byte, contents ...[]byte) []byte {
	value := slices.Concat(contents...)
	switch n := len(value); {
	case n < 0x80:
		return append([]byte{tag, byte(n)}, value...)
	case n < 0x100:
		return append([]byte{tag, 0x81, byte(n)}, value...)
	default:
		return append([]byte{tag, 0x82, byte(n >> 8), byte(n)}, value...)
	}
}

func oid(t testing.TB, numbers ...int) []byte {
	t.Helper()
	der, err := asn1.Marshal(asn1.ObjectIdentifier(numbers))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// attribute is one of several values.
func attribute(t testing.TB, numbers []int, values ...[]byte) []byte {
	t.Helper()
	return el(0x30, oid(t, numbers...), el(0x31, values...))
}

// extension is one that is not critical.
func extension(t testing.TB, numbers []int, value []byte) []byte {
	t.Helper()
	return el(0x30, oid(t, numbers...), el(4, value))
}

var (
	challenge         = []int{1, 2, 840, 113549, 1, 9, 7}
	unstructuredName  = []int{1, 2, 840, 113549, 1, 9, 2}
	extensionRequest  = []int{1, 2, 840, 113549, 1, 9, 14}
	extensionRequests = map[string][]int{
		"PKCS #9": extensionRequest, "Microsoft": {1, 3, 6, 1, 4, 1, 311, 2, 1, 14}, "VeriSign": {2, 16, 840, 1, 113733, 1, 9, 8},
	}
	altName = []int{2, 5, 29, 17}
	keyUse  = []int{2, 5, 29, 15}
)

// sans is an attribute that asks for names.
func sans(t testing.TB, names ...[]byte) []byte {
	t.Helper()
	return attribute(t, extensionRequest, el(0x30, extension(t, altName, el(0x30, names...))))
}

var newKey = sync.OnceValues(func() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) })

// A form says what a request has; nil means the usual.
type form struct {
	version, subject, spki []byte
	attributes             [][]byte // nil: none at all, not even an empty set
	afterAttributes        []byte
}

// build signs a request.
func build(t testing.TB, f form) []byte {
	t.Helper()
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	if f.version == nil {
		f.version = el(2, []byte{0})
	}
	if f.subject == nil {
		if f.subject, err = asn1.Marshal(pkix.Name{CommonName: "device"}.ToRDNSequence()); err != nil {
			t.Fatal(err)
		}
	}
	if f.spki == nil {
		if f.spki, err = x509.MarshalPKIXPublicKey(key.Public()); err != nil {
			t.Fatal(err)
		}
	}
	parts := [][]byte{f.version, f.subject, f.spki}
	if f.attributes != nil {
		parts = append(parts, el(0xa0, f.attributes...))
	}
	tbs := el(0x30, append(parts, f.afterAttributes)...)
	h := crypto.SHA256.New()
	h.Write(tbs)
	signature, err := key.Sign(rand.Reader, h.Sum(nil), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return el(0x30, tbs, el(0x30, oid(t, 1, 2, 840, 10045, 4, 3, 2)), el(3, []byte{0}, signature))
}

func keys(t testing.TB) map[string]crypto.Signer {
	t.Helper()
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p256, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]crypto.Signer{"RSA": r, "P-256": p256, "P-384": p384, "Ed25519": ed}
}
