package cms_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"math/big"
	"testing"

	"github.com/postern-pki/postern/protocol/cms"
)

// rsaSPKI is a SubjectPublicKeyInfo of any numbers.
func rsaSPKI(modulus, exponent *big.Int) []byte {
	number := func(n *big.Int) *tlv {
		b := n.Bytes()
		if len(b) == 0 || b[0] >= 0x80 {
			b = append([]byte{0}, b...)
		}
		return &tlv{tag: 2, value: b}
	}
	key := (&tlv{tag: 0x30, kids: []*tlv{number(modulus), number(exponent)}}).der()
	alg := &tlv{tag: 0x30, kids: []*tlv{{tag: 6, value: []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1}}, null}}
	return (&tlv{tag: 0x30, kids: []*tlv{alg, {tag: 3, value: append([]byte{0}, key...)}}}).der()
}

// Covers: S-182
func TestRSAKeyBounds(t *testing.T) {
	modulus := func(bits uint) *big.Int {
		return new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), bits-1), big.NewInt(1))
	}
	for name, tt := range map[string]struct {
		modulus  *big.Int
		exponent int64
		want     error
	}{
		"65537":                  {modulus(2048), 65537, nil},
		"3":                      {modulus(2048), 3, nil},
		"2^32 - 1":               {modulus(2048), 1<<32 - 1, nil},
		"2^32 + 1":               {modulus(2048), 1<<32 + 1, cms.ErrAlgorithm},
		"over 2^40":              {modulus(2048), 1<<41 + 1, cms.ErrAlgorithm},
		"1":                      {modulus(2048), 1, cms.ErrAlgorithm},
		"0":                      {modulus(2048), 0, cms.ErrMalformed},
		"an even exponent":       {modulus(2048), 65536, cms.ErrAlgorithm},
		"8192 bits":              {modulus(8192), 65537, nil},
		"8193 bits":              {modulus(8193), 65537, cms.ErrAlgorithm},
		"half a million bits":    {modulus(500_000), 65537, cms.ErrAlgorithm},
		"a modulus of zero":      {new(big.Int), 65537, cms.ErrMalformed},
		"a modulus that is even": {big.NewInt(1 << 40), 65537, cms.ErrAlgorithm},
	} {
		t.Run(name, func(t *testing.T) {
			pub, err := cms.ParsePublicKey(rsaSPKI(tt.modulus, big.NewInt(tt.exponent)))
			if !errors.Is(err, tt.want) || err != nil && tt.want == nil {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if k, ok := pub.(*rsa.PublicKey); err == nil && (!ok || k.N.Cmp(tt.modulus) != 0 || int64(k.E) != tt.exponent) {
				t.Errorf("got %v", pub)
			}
		})
	}
}

// TestCertificateStructure changes one thing in a good certificate at a time.
//
// Covers: S-101, S-182
func TestCertificateStructure(t *testing.T) {
	h := ecHolder(t, elliptic.P256())
	oid := func(der ...byte) *tlv { return &tlv{tag: 6, value: der} }
	const spki, extensions = 6, 7
	for name, tt := range map[string]struct {
		change func(m *tlv)
		want   error
	}{
		"nothing":                           {func(*tlv) {}, nil},
		"something after the signature":     {func(m *tlv) { m.add(null) }, cms.ErrTrailing},
		"something after the extensions":    {func(m *tlv) { m.at(0).add(null) }, cms.ErrTrailing},
		"something beside the extensions":   {func(m *tlv) { m.at(0, extensions).add(null) }, cms.ErrMalformed},
		"something in an extension":         {func(m *tlv) { m.at(0, extensions, 0, 0).add(null) }, cms.ErrMalformed},
		"something after the key":           {func(m *tlv) { m.at(0, spki).add(null) }, cms.ErrMalformed},
		"no serial number":                  {func(m *tlv) { m.at(0).kids[1].value = nil }, cms.ErrMalformed},
		"a negative serial number":          {func(m *tlv) { m.at(0).kids[1].value = []byte{0xfb} }, nil},
		"no extensions":                     {func(m *tlv) { m.at(0).kids = m.at(0).kids[:extensions] }, nil},
		"65 extensions":                     {func(m *tlv) { e := m.at(0, extensions, 0); e.kids = append(e.kids, extra(65)...) }, cms.ErrTooMany},
		"two key identifiers":               {func(m *tlv) { e := m.at(0, extensions, 0); e.add(e.kids...) }, cms.ErrMalformed},
		"a key of unknown type":             {func(m *tlv) { m.at(0, spki, 0).kids[0] = oid(42, 3) }, nil},
		"a key on an unknown curve":         {func(m *tlv) { m.at(0, spki, 0).kids[1] = oid(42, 3) }, nil},
		"a point that is not on the curve":  {func(m *tlv) { m.at(0, spki, 1).value[40] ^= 1 }, cms.ErrMalformed},
		"a point in half":                   {func(m *tlv) { p := m.at(0, spki, 1); p.value = p.value[:20] }, cms.ErrMalformed},
		"a validity that is no time at all": {func(m *tlv) { m.at(0, 4).kids = nil }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			m := parseTLV(t, h.cert)
			tt.change(m)
			c, err := cms.ParseCertificate(m.der())
			if !errors.Is(err, tt.want) || err != nil && tt.want == nil {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if err == nil && (!bytes.Equal(c.RawSerial, m.at(0, 1).value) || !bytes.Equal(c.RawSPKI, m.at(0, spki).der())) {
				t.Errorf("serial %x, key %x", c.RawSerial, c.RawSPKI)
			}
		})
	}
	c := h.parsed(t)
	x, err := x509.ParseCertificate(h.cert)
	if err != nil || string(c.SubjectKeyID) != "ec" || !bytes.Equal(c.RawIssuer, x.RawIssuer) || !bytes.Equal(c.RawSubject, x.RawSubject) {
		t.Errorf("got %+v, %v", c, err)
	}
}

func extra(n int) []*tlv {
	var all []*tlv
	for i := range n {
		all = append(all, &tlv{tag: 0x30, kids: []*tlv{{tag: 6, value: []byte{42, byte(i)}}, {tag: 4}}})
	}
	return all
}
