package cms_test

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/postern-pki/postern/protocol/cms"
)

// Covers: S-125
func TestSignedRoundTrip(t *testing.T) {
	for name, h := range map[string]holder{
		"RSA": rsaHolder(t), "P-256": ecHolder(t, elliptic.P256()), "P-384": ecHolder(t, elliptic.P384()),
	} {
		for _, digest := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
			for _, content := range [][]byte{content, {}, nil} {
				t.Run(fmt.Sprintf("%s %v %d octets", name, digest, len(content)), func(t *testing.T) {
					other := ecHolder(t, elliptic.P256())
					o := cms.SignOptions{Digest: digest, Content: content, Attributes: []cms.Attribute{transaction("x")}, Chain: [][]byte{other.cert, h.cert}}
					s, err := parseAndVerify(sign(t, h, o))
					if err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(s.Content, content) || (s.Content == nil) != (content == nil) {
						t.Errorf("content %q, want %q", s.Content, content)
					}
					if s.Digest != digest || !bytes.Equal(s.Signer.Raw, h.cert) {
						t.Errorf("digest %v of another signer", s.Digest)
					}
					if len(s.Certificates) != 3 || !bytes.Equal(s.Certificates[0].Raw, h.cert) || !bytes.Equal(s.Certificates[1].Raw, other.cert) {
						t.Error("the certificates are not in the order given")
					}
					if want := name == "RSA"; s.SignatureAlgorithm.Equal(cms.OIDRSAEncryption) != want {
						t.Errorf("signature algorithm %v", s.SignatureAlgorithm)
					}
				})
			}
		}
	}
}

func TestSignUsesTheKeyOnce(t *testing.T) {
	h := rsaHolder(t)
	key := &counter{Signer: h.key}
	if _, err := cms.Sign(cms.SignOptions{Certificate: h.parsed(t), Key: key, Digest: crypto.SHA256, Content: content}); err != nil || key.n != 1 {
		t.Errorf("%d signatures, %v", key.n, err)
	}
}

func TestSignRefuses(t *testing.T) {
	h, other := rsaHolder(t), ecHolder(t, elliptic.P256())
	good := cms.SignOptions{Certificate: h.parsed(t), Key: h.key, Digest: crypto.SHA256, Content: content}
	for name, change := range map[string]func(o *cms.SignOptions){
		"no key":             func(o *cms.SignOptions) { o.Key = nil },
		"the key of another": func(o *cms.SignOptions) { o.Key = other.key },
		"no certificate":     func(o *cms.SignOptions) { o.Certificate = nil },
		"MD5":                func(o *cms.SignOptions) { o.Digest = crypto.MD5 },
		"no digest":          func(o *cms.SignOptions) { o.Digest = 0 },
		"an attribute twice": func(o *cms.SignOptions) { o.Attributes = slices.Repeat([]cms.Attribute{transaction("a")}, 2) },
		"a messageDigest of one's own": func(o *cms.SignOptions) {
			o.Attributes = []cms.Attribute{{Type: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}, Value: []byte{4, 0}}}
		},
		"an attribute of two values": func(o *cms.SignOptions) {
			o.Attributes = []cms.Attribute{{Type: asn1.ObjectIdentifier{1, 2, 3}, Value: []byte{5, 0, 5, 0}}}
		},
		"an attribute without value":   func(o *cms.SignOptions) { o.Attributes = []cms.Attribute{{Type: asn1.ObjectIdentifier{1, 2, 3}}} },
		"a chain with something after": func(o *cms.SignOptions) { o.Chain = [][]byte{append(bytes.Clone(other.cert), 0)} },
	} {
		t.Run(name, func(t *testing.T) {
			o := good
			change(&o)
			if der, err := cms.Sign(o); err == nil {
				t.Errorf("signed %x", der)
			}
		})
	}
}

// TestTampering flips each bit of what the signature covers, and of itself.
//
// Covers: S-052
func TestTampering(t *testing.T) {
	for name, h := range map[string]holder{"RSA": rsaHolder(t), "ECDSA": ecHolder(t, elliptic.P256())} {
		der := signed(t, h).der()
		s, err := parseAndVerify(der)
		if err != nil {
			t.Fatal(err)
		}
		for part, b := range map[string][]byte{"content": s.Content, "attributes": s.SignedAttrs[4:], "signature": s.Signature} {
			t.Run(name+" "+part, func(t *testing.T) {
				at := bytes.Index(der, b)
				for i := range b {
					changed := bytes.Clone(der)
					changed[at+i] ^= 1 << (i % 8)
					if _, err := parseAndVerify(changed); err == nil {
						t.Fatalf("octet %d of the %s changed, and it still verifies", i, part)
					}
				}
			})
		}
	}
}

// TestSignedStructure changes one thing in a good message at a time.
//
// Covers: S-050, S-052, S-053, S-056, S-182
func TestSignedStructure(t *testing.T) {
	h, other := rsaHolder(t), ecHolder(t, elliptic.P256())
	oid := func(der ...byte) *tlv { return &tlv{tag: 6, value: der} }
	for name, tt := range map[string]struct {
		change func(m *tlv)
		want   error
	}{
		"nothing":                           {func(*tlv) {}, nil},
		"something after the ContentInfo":   {func(m *tlv) { m.add(null) }, cms.ErrTrailing},
		"something after the content":       {func(m *tlv) { m.at(1).add(null) }, cms.ErrTrailing},
		"something after the SignedData":    {func(m *tlv) { m.at(pathSigned...).add(null) }, cms.ErrTrailing},
		"something after the eContent":      {func(m *tlv) { m.at(pathContent...).add(null) }, cms.ErrTrailing},
		"something in the eContent":         {func(m *tlv) { m.at(1, 0, 2, 1).add(null) }, cms.ErrTrailing},
		"something among the digests":       {func(m *tlv) { m.at(1, 0, 1).add(null) }, cms.ErrMalformed},
		"something among the certificates":  {func(m *tlv) { m.at(pathCerts...).add(null) }, cms.ErrMalformed},
		"something after a certificate":     {func(m *tlv) { m.at(1, 0, 3, 0).add(null) }, cms.ErrTrailing},
		"something after the SignerInfo":    {func(m *tlv) { m.at(pathSigner...).add(null) }, cms.ErrTrailing},
		"something after the issuer":        {func(m *tlv) { m.at(1, 0, 4, 0, 1).add(null) }, cms.ErrMalformed},
		"something after the digest":        {func(m *tlv) { m.at(1, 0, 4, 0, 2).add(null, null) }, cms.ErrMalformed},
		"something after the algorithm":     {func(m *tlv) { m.at(1, 0, 4, 0, 4).add(null) }, cms.ErrMalformed},
		"something after an attribute":      {func(m *tlv) { m.at(pathAttributes...).at(0).add(null) }, cms.ErrTrailing},
		"an attribute of two values":        {func(m *tlv) { m.at(pathAttributes...).at(3, 1).add(null) }, cms.ErrMalformed},
		"an attribute of no value":          {func(m *tlv) { m.at(pathAttributes...).at(3, 1).kids = nil }, cms.ErrMalformed},
		"an attribute twice":                {func(m *tlv) { a := m.at(pathAttributes...); a.add(a.at(3)) }, cms.ErrMalformed},
		"no attributes":                     {func(m *tlv) { m.at(pathAttributes...).kids = nil }, cms.ErrMalformed},
		"65 attributes":                     {func(m *tlv) { fill(m.at(pathAttributes...), 65) }, cms.ErrTooMany},
		"a SignerInfo too few":              {func(m *tlv) { m.at(pathSigners...).kids = nil }, cms.ErrMalformed},
		"a SignerInfo too many":             {func(m *tlv) { s := m.at(pathSigners...); s.add(s.at(0)) }, cms.ErrTooMany},
		"no certificate":                    {func(m *tlv) { m.at(pathCerts...).kids = nil }, cms.ErrMalformed},
		"another's certificate alone":       {func(m *tlv) { m.at(pathCerts...).kids[0] = parseTLV(t, other.cert) }, cms.ErrMalformed},
		"the signer's certificate last":     {func(m *tlv) { c := m.at(pathCerts...); c.kids = []*tlv{parseTLV(t, other.cert), c.at(0)} }, nil},
		"the signer's certificate twice":    {func(m *tlv) { c := m.at(pathCerts...); c.add(c.at(0)) }, nil},
		"two certificates of one name":      {func(m *tlv) { m.at(pathCerts...).add(twin(t, h)) }, cms.ErrMalformed},
		"17 certificates":                   {func(m *tlv) { c := m.at(pathCerts...); c.kids = slices.Repeat(c.kids, 17) }, cms.ErrTooMany},
		"an OBJECT IDENTIFIER as the value": {func(m *tlv) { m.at(1, 0, 2, 1).kids[0] = oid(42) }, cms.ErrMalformed},
		"another eContentType":              {func(m *tlv) { m.at(1, 0, 2).kids[0] = oid(42, 3) }, cms.ErrMalformed},
		"another version":                   {func(m *tlv) { m.at(1, 0, 0).value = []byte{9} }, cms.ErrMalformed},
		"an unknown digest":                 {func(m *tlv) { m.at(1, 0, 4, 0, 2).kids[0] = oid(42, 3) }, cms.ErrAlgorithm},
		"a digest with parameters":          {func(m *tlv) { m.at(1, 0, 4, 0, 2).kids = []*tlv{m.at(1, 0, 4, 0, 2, 0), oid(42)} }, cms.ErrMalformed},
		"an unknown signature algorithm":    {func(m *tlv) { m.at(1, 0, 4, 0, 4).kids[0] = oid(42, 3) }, cms.ErrAlgorithm},
		"an algorithm of another key": {func(m *tlv) {
			m.at(1, 0, 4, 0, 4).kids = []*tlv{oid(0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2)}
		}, cms.ErrAlgorithm},
		"sha256WithRSAEncryption": {func(m *tlv) {
			m.at(1, 0, 4, 0, 4).kids[0] = oid(0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11)
		}, nil},
		"sha512WithRSAEncryption over SHA-256": {func(m *tlv) {
			m.at(1, 0, 4, 0, 4).kids[0] = oid(0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 13)
		}, cms.ErrAlgorithm},
		"a key identifier of nobody": {func(m *tlv) { m.at(pathSigner...).kids[1] = &tlv{tag: 0x80, value: []byte("nobody")} }, cms.ErrMalformed},
		"a key identifier":           {func(m *tlv) { m.at(pathSigner...).kids[1] = &tlv{tag: 0x80, value: []byte("rsa")} }, nil},
		"an empty key identifier":    {func(m *tlv) { m.at(pathSigner...).kids[1] = &tlv{tag: 0x80} }, cms.ErrMalformed},
		"unsigned attributes":        {func(m *tlv) { m.at(pathSigner...).add(&tlv{tag: 0xa1}) }, nil},
		"an empty signature":         {func(m *tlv) { m.at(pathSignature...).value = nil }, cms.ErrSignature},
		"no content any more":        {func(m *tlv) { m.at(pathContent...).kids = m.at(pathContent...).kids[:1] }, cms.ErrDigest},
	} {
		t.Run(name, func(t *testing.T) {
			m := signed(t, h)
			tt.change(m)
			if _, err := parseAndVerify(m.der()); !errors.Is(err, tt.want) || err != nil && tt.want == nil {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// fill gives attrs n attributes of different types.
func fill(attrs *tlv, n int) {
	for i := len(attrs.kids); i < n; i++ {
		attrs.add(&tlv{tag: 0x30, kids: []*tlv{{tag: 6, value: []byte{42, byte(i)}}, {tag: 0x31, kids: []*tlv{null}}}})
	}
}

// twin is a certificate with the issuer and the serial number of h's, and not
// its signature.
func twin(t *testing.T, h holder) *tlv {
	c := parseTLV(t, h.cert)
	c.at(2).value[5] ^= 1
	return c
}

// Covers: S-052, S-055
func TestAttributesMustBeThoseOfRFC5652(t *testing.T) {
	h := rsaHolder(t)
	find := func(m *tlv, last byte) int {
		for i, a := range m.at(pathAttributes...).kids {
			if o := a.at(0).value; len(o) == 9 && o[7] == 9 && o[8] == last {
				return i
			}
		}
		t.Fatal("no such attribute")
		return 0
	}
	for name, tt := range map[string]struct {
		change func(m *tlv)
		want   error
	}{
		"no contentType":         {func(m *tlv) { a, i := m.at(pathAttributes...), find(m, 3); a.kids = slices.Delete(a.kids, i, i+1) }, cms.ErrMalformed},
		"no messageDigest":       {func(m *tlv) { a, i := m.at(pathAttributes...), find(m, 4); a.kids = slices.Delete(a.kids, i, i+1) }, cms.ErrMalformed},
		"contentType not data":   {func(m *tlv) { m.at(pathAttributes...).at(find(m, 3), 1, 0).value[8] = 2 }, cms.ErrMalformed},
		"messageDigest a string": {func(m *tlv) { m.at(pathAttributes...).at(find(m, 4), 1, 0).tag = 12 }, cms.ErrMalformed},
		"messageDigest empty":    {func(m *tlv) { m.at(pathAttributes...).at(find(m, 4), 1, 0).value = nil }, cms.ErrMalformed},
		"messageDigest cut":      {func(m *tlv) { d := m.at(pathAttributes...).at(find(m, 4), 1, 0); d.value = d.value[:31] }, cms.ErrDigest},
		"a strange attribute":    {func(m *tlv) { fill(m.at(pathAttributes...), 6) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			m := signed(t, h)
			tt.change(m)
			resign(t, m, h.key)
			if _, err := parseAndVerify(m.der()); !errors.Is(err, tt.want) || err != nil && tt.want == nil {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// TestUnsortedAttributes: some clients sign the attributes as they send them,
// unsorted; others sign them sorted, as they should, and send them unsorted.
func TestUnsortedAttributes(t *testing.T) {
	h := rsaHolder(t)
	for name, tt := range map[string]struct {
		change func(m *tlv)
		want   error
	}{
		"signed as sent":          {func(m *tlv) { slices.Reverse(m.at(pathAttributes...).kids); resign(t, m, h.key) }, nil},
		"signed sorted":           {func(m *tlv) { slices.Reverse(m.at(pathAttributes...).kids) }, nil},
		"signed in another order": {func(m *tlv) { slices.Reverse(m.at(pathAttributes...).kids); resign(t, m, h.key); swap(m) }, cms.ErrSignature},
		"signed with the [0] tag": {func(m *tlv) { resignAs(t, m, h.key) }, cms.ErrSignature},
	} {
		t.Run(name, func(t *testing.T) {
			m := signed(t, h)
			tt.change(m)
			s, err := parseAndVerify(m.der())
			if !errors.Is(err, tt.want) || err != nil && tt.want == nil {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			attrs := m.at(pathAttributes...).der()
			if attrs[0] = 0x31; !bytes.Equal(s.SignedAttrs, attrs) {
				t.Error("the attributes are not in the order received")
			}
			if err := cms.Verify(s.Signer, s.Digest, s.SignedAttrs, s.Signature, s.Content); !errors.Is(err, tt.want) || err != nil && tt.want == nil {
				t.Errorf("the second look says %v", err)
			}
		})
	}
}

func swap(m *tlv) {
	k := m.at(pathAttributes...).kids
	k[1], k[2] = k[2], k[1]
}

func resignAs(t *testing.T, m *tlv, key crypto.Signer) {
	h := crypto.SHA256.New()
	h.Write(m.at(pathAttributes...).der())
	signature, err := key.Sign(rand.Reader, h.Sum(nil), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	m.at(pathSignature...).value = signature
}

func TestVerifyRefuses(t *testing.T) {
	h := rsaHolder(t)
	s, err := parseAndVerify(signed(t, h).der())
	if err != nil {
		t.Fatal(err)
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil || len(pub) == 0 {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		got, want error
	}{
		"nobody":              {cms.Verify(nil, s.Digest, s.SignedAttrs, s.Signature, s.Content), cms.ErrMalformed},
		"another RSA signer":  {cms.Verify(ecHolder(t, elliptic.P256()).parsed(t), s.Digest, s.SignedAttrs, s.Signature, s.Content), cms.ErrSignature},
		"an Ed25519 signer":   {cms.Verify(newHolder(t, "ed", key).parsed(t), s.Digest, s.SignedAttrs, s.Signature, s.Content), cms.ErrAlgorithm},
		"no digest":           {cms.Verify(s.Signer, 0, s.SignedAttrs, s.Signature, s.Content), cms.ErrAlgorithm},
		"MD5":                 {cms.Verify(s.Signer, crypto.MD5, s.SignedAttrs, s.Signature, s.Content), cms.ErrAlgorithm},
		"another digest":      {cms.Verify(s.Signer, crypto.SHA512, s.SignedAttrs, s.Signature, s.Content), cms.ErrDigest},
		"other content":       {cms.Verify(s.Signer, s.Digest, s.SignedAttrs, s.Signature, []byte("other")), cms.ErrDigest},
		"no attributes":       {cms.Verify(s.Signer, s.Digest, nil, s.Signature, s.Content), cms.ErrMalformed},
		"attributes and more": {cms.Verify(s.Signer, s.Digest, append(bytes.Clone(s.SignedAttrs), 0), s.Signature, s.Content), cms.ErrTrailing},
		"attributes as [0]":   {cms.Verify(s.Signer, s.Digest, append([]byte{0xa0}, s.SignedAttrs[1:]...), s.Signature, s.Content), cms.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			if !errors.Is(tt.got, tt.want) {
				t.Errorf("got %v, want %v", tt.got, tt.want)
			}
		})
	}
}

// Covers: S-039a
func TestCertsOnlyKeepsTheOrder(t *testing.T) {
	a, b, c := ecHolder(t, elliptic.P384()).cert, rsaHolder(t).cert, ecHolder(t, elliptic.P256()).cert
	for _, want := range [][][]byte{{a, b, c}, {c, b, a}, {b, a, c}, {a}} {
		der, err := cms.CertsOnly(want)
		if err != nil {
			t.Fatal(err)
		}
		again, err := cms.DER(der, cms.DefaultLimits())
		if err != nil || !bytes.Equal(again, der) {
			t.Errorf("not DER: %v", err)
		}
		got, err := cms.ParseCertsOnly(der)
		if err != nil || !slices.EqualFunc(got, want, bytes.Equal) {
			t.Errorf("got %d certificates, %v", len(got), err)
		}
	}
	if _, err := cms.CertsOnly(nil); err == nil {
		t.Error("a list of no certificate")
	}
	if _, err := cms.CertsOnly([][]byte{{0x30}}); !errors.Is(err, cms.ErrMalformed) {
		t.Errorf("half a certificate: %v", err)
	}
}
