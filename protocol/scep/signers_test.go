package scep_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/cms"
)

// sha256WithRSA is its AlgorithmIdentifier.
func sha256WithRSA() []byte {
	return tlv(0x30, []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 5, 0})
}

// certificate writes one by hand: serial and names as they are given, with no
// extensions, and a signature that is none.
func certificate(t testing.TB, pub crypto.PublicKey, version, serial, name, validity []byte) []byte {
	t.Helper()
	tbs := tlv(0x30, version, tlv(0x02, serial), sha256WithRSA(), name, validity, name, must(x509.MarshalPKIXPublicKey(pub))(t))
	return tlv(0x30, tbs, sha256WithRSA(), tlv(0x03, []byte{0}, make([]byte, 256)))
}

// tlv is an element of any tag.
func tlv(tag byte, parts ...[]byte) []byte {
	out := der(asn1.TagOctetString, slices.Concat(parts...))
	out[0] = tag
	return out
}

// Signer certificates that crypto/x509 refuses, or that say little: each is a key
// and a name. Their dates mean nothing: devices' clocks are wrong.
// Covers: S-100, S-101, S-102, S-104
func TestOddSigners(t *testing.T) {
	w := newWorld(t)
	pub := w.device.key.Public()
	v3, dates := []byte{0xa0, 3, 2, 1, 2}, tlv(0x30, tlv(0x17, []byte("000101000000Z")), tlv(0x17, []byte("491231235959Z")))
	name := func(tag byte, value string) []byte {
		return tlv(0x30, tlv(0x31, tlv(0x30, []byte{6, 3, 0x55, 4, 3}, tlv(tag, []byte(value)))))
	}
	cn := name(0x0c, "device")
	for what, c := range map[string]struct {
		cert []byte
		odd  bool
	}{
		"as it should be":              {certificate(t, pub, v3, []byte{1}, cn, dates), false},
		"a negative serial":            {certificate(t, pub, v3, []byte{0xff}, cn, dates), true},
		"serial zero":                  {certificate(t, pub, v3, []byte{0}, cn, dates), false},
		"a serial of 40 octets":        {certificate(t, pub, v3, bytes.Repeat([]byte{7}, 40), cn, dates), false},
		"a padded serial":              {certificate(t, pub, v3, []byte{0, 0, 1}, cn, dates), true},
		"version 1":                    {certificate(t, pub, nil, []byte{1}, cn, dates), false},
		"@ in a PrintableString":       {certificate(t, pub, v3, []byte{1}, name(0x13, "a_b@c"), dates), true},
		"Latin-1 in a UTF8String":      {certificate(t, pub, v3, []byte{1}, name(0x0c, "Ger\xe4t"), dates), true},
		"a BMPString cut in half":      {certificate(t, pub, v3, []byte{1}, name(0x1e, "abc"), dates), true},
		"a TeletexString":              {certificate(t, pub, v3, []byte{1}, name(0x14, "Ger\xe4t"), dates), false},
		"an empty name":                {certificate(t, pub, v3, []byte{1}, []byte{0x30, 0}, dates), false},
		"dates that are none":          {certificate(t, pub, v3, []byte{1}, cn, tlv(0x30, tlv(0x17, []byte("today")), tlv(0x17, []byte("ever")))), true},
		"dates that ended long ago":    {certificate(t, pub, v3, []byte{1}, cn, tlv(0x30, tlv(0x17, []byte("700101000000Z")), tlv(0x17, []byte("700102000000Z")))), false},
		"dates that have yet to begin": {certificate(t, pub, v3, []byte{1}, cn, tlv(0x30, tlv(0x17, []byte("480101000000Z")), tlv(0x17, []byte("490102000000Z")))), false},
	} {
		w.submitted = nil
		r := w.certRep(t, w.post(t, w.message(t, func(r *request) { r.signer.cert = c.cert })))
		if r.status != "0" || len(w.submitted) != 1 {
			t.Errorf("%s: status %q, %q", what, r.status, r.failText)
			continue
		}
		e := must(cms.ParseEnvelope(must(cms.DER(r.Content, cms.DefaultLimits()))(t)))(t)
		if !e.Recipients[0].Names(must(cms.ParseCertificate(c.cert))(t)) {
			t.Errorf("%s: the answer is to somebody else", what)
		}
		if got := w.submitted[0].Client.Traits&protocol.TraitOddCertificate != 0; got != c.odd {
			t.Errorf("%s: traits %v", what, w.submitted[0].Client.Traits.Words())
		}
	}
}

// A key that is too short to be verified by is told so, as routers of old that sign
// with 512 bits would else be told that their signature is wrong.
func TestShortSigner(t *testing.T) {
	w := newWorld(t)
	d := w.device.parsed(t)
	for bits, want := range map[uint]string{512: "the key that signed the message is too short", 1023: "the key that signed the message is too short", 1024: "the message does not prove what it says"} {
		n := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), bits), big.NewInt(1))
		short := certificate(t, &rsa.PublicKey{N: n, E: 65537}, nil, d.RawSerial, d.RawIssuer, tlv(0x30, tlv(0x17, []byte("000101000000Z")), tlv(0x17, []byte("491231235959Z"))))
		r := w.certRep(t, w.post(t, w.message(t, func(r *request) {
			r.message = func(b []byte) []byte { return withCertificate(t, b, short) }
		})))
		if r.status != "2" || !strings.HasPrefix(r.failText, want) || w.decrypts != 0 {
			t.Errorf("%d bits: status %q, failInfo %q, %q", bits, r.status, r.failInfo, r.failText)
		}
	}
}

// The signer is found by its identifier, wherever its certificate stands.
// Covers: S-053
func TestChainBeforeTheSigner(t *testing.T) {
	w := newWorld(t)
	for name, certs := range map[string][][]byte{
		"alone": {w.device.cert}, "chain first": {w.ca.cert, w.other.cert, w.device.cert}, "twice": {w.device.cert, w.ca.cert, w.device.cert},
	} {
		r := w.certRep(t, w.post(t, w.message(t, func(r *request) {
			r.message = func(b []byte) []byte { return withCertificate(t, b, slices.Concat(certs...)) }
		})))
		if r.status != "0" {
			t.Errorf("%s: status %q, %q", name, r.status, r.failText)
		}
		e := must(cms.ParseEnvelope(must(cms.DER(r.Content, cms.DefaultLimits()))(t)))(t)
		if len(e.Recipients) != 1 || !e.Recipients[0].Names(w.device.parsed(t)) {
			t.Errorf("%s: %d recipients", name, len(e.Recipients))
		}
	}
}

// A challenge of kilobytes is passed on: what it is worth is not the protocol's to
// say.
// Covers: S-093
func TestKilobyteChallenge(t *testing.T) {
	w := newWorld(t)
	csr := withChallenge(t, w.device.key, bytes.Repeat([]byte("0123456789abcdef"), 512))
	if c := w.certRep(t, w.post(t, w.message(t, func(r *request) { r.csr = func([]byte) []byte { return csr } }))); c.status != "0" || len(csr) < 8<<10 {
		t.Errorf("status %q, %q, for a CSR of %d octets", c.status, c.failText, len(csr))
	}
}

// withChallenge is a CSR with a challenge of any length, which OpenSSL and others
// bound at 255.
func withChallenge(t testing.TB, key crypto.Signer, challenge []byte) []byte {
	t.Helper()
	attribute := tlv(0x30, []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x07}, tlv(0x31, tlv(0x0c, challenge)))
	cn := tlv(0x30, tlv(0x31, tlv(0x30, []byte{6, 3, 0x55, 4, 3}, tlv(0x0c, []byte("device")))))
	info := tlv(0x30, []byte{2, 1, 0}, cn, must(x509.MarshalPKIXPublicKey(key.Public()))(t), tlv(0xa0, attribute))
	sum := crypto.SHA256.New()
	sum.Write(info)
	algorithm := sha256WithRSA()
	if _, ok := key.(*ecdsa.PrivateKey); ok {
		algorithm = tlv(0x30, []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02})
	}
	return tlv(0x30, info, algorithm, tlv(0x03, []byte{0}, must(key.Sign(rand.Reader, sum.Sum(nil), crypto.SHA256))(t)))
}

// The signer's name need not be the CSR's.
// Covers: S-102
func TestSignerOfAnotherName(t *testing.T) {
	w := newWorld(t)
	signer := certify(t, "somebody", w.device.key, nil)
	if c := w.certRep(t, w.post(t, w.message(t, func(r *request) { r.signer = signer }))); c.status != "0" {
		t.Errorf("status %q, %q", c.status, c.failText)
	}
}
