package cms_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"slices"
	"testing"

	"github.com/postern-pki/postern/protocol/cms"
)

var allCiphers = []cms.Cipher{cms.AES128CBC, cms.AES192CBC, cms.AES256CBC, cms.DES3CBC}

func envelop(t testing.TB, h holder, content []byte, c cms.Cipher) []byte {
	t.Helper()
	der, err := cms.Envelop(rand.Reader, content, h.parsed(t), c)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestEnvelopeRoundTrip(t *testing.T) {
	h, other := rsaHolder(t), ecHolder(t, elliptic.P256())
	for _, c := range allCiphers {
		for _, size := range []int{0, 1, 7, 8, 15, 16, 17, 1000} {
			want := bytes.Repeat([]byte{byte(size)}, size) // ends like padding
			der := envelop(t, h, want, c)
			for form, in := range map[string][]byte{"DER": der, "BER": parseTLV(t, der).indefinite()} {
				in, err := cms.DER(in, cms.DefaultLimits())
				if err != nil {
					t.Fatal(err)
				}
				e, err := cms.ParseEnvelope(in)
				if err != nil {
					t.Fatal(err)
				}
				if len(e.Recipients) != 1 || !e.Recipients[0].Names(h.parsed(t)) || e.Recipients[0].Names(other.parsed(t)) || e.Recipients[0].Names(nil) {
					t.Errorf("%v: recipients %v", c, e.Recipients)
				}
				got, err := openWith(e, h.key.(*rsa.PrivateKey))
				if err != nil || !bytes.Equal(got, want) || e.Cipher != c {
					t.Errorf("%v, %d octets, %s: got %q by %v, %v", c, size, form, got, e.Cipher, err)
				}
			}
		}
	}
}

// TestOpenHasOneError: keys, paddings and lengths of all kinds.
//
// Covers: S-087
func TestOpenHasOneError(t *testing.T) {
	h := rsaHolder(t)
	for _, c := range allCiphers {
		e, err := cms.ParseEnvelope(envelop(t, h, content, c))
		if err != nil {
			t.Fatal(err)
		}
		secret, err := unwrap(h.key.(*rsa.PrivateKey), e.Recipients[0], e.Cipher)
		if err != nil {
			t.Fatal(err)
		}
		with := func(change func(e *cms.Envelope)) cms.Envelope {
			x := *e
			x.Ciphertext, x.IV = bytes.Clone(e.Ciphertext), bytes.Clone(e.IV)
			change(&x)
			return x
		}
		size := len(e.IV)
		for name, tt := range map[string]struct {
			e   cms.Envelope
			key []byte
		}{
			"no key":           {*e, nil},
			"a short key":      {*e, secret[1:]},
			"a long key":       {*e, append(bytes.Clone(secret), 0)},
			"no ciphertext":    {with(func(e *cms.Envelope) { e.Ciphertext = nil }), secret},
			"half a block":     {with(func(e *cms.Envelope) { e.Ciphertext = e.Ciphertext[size/2:] }), secret},
			"no IV":            {with(func(e *cms.Envelope) { e.IV = nil }), secret},
			"single DES":       {with(func(e *cms.Envelope) { e.Cipher = cms.DESCBC }), secret},
			"no cipher":        {with(func(e *cms.Envelope) { e.Cipher = 0 }), secret},
			"padding of zeros": {with(func(e *cms.Envelope) { flipLast(e, size, pad(content, size)) }), secret},
			"padding too long": {with(func(e *cms.Envelope) { flipLast(e, size, 0x80) }), secret},
			"padding uneven":   {with(func(e *cms.Envelope) { e.Ciphertext[len(e.Ciphertext)-size-2] ^= 1 }), secret},
		} {
			if got, err := tt.e.Open(tt.key); !errors.Is(err, cms.ErrOpen) || err.Error() != cms.ErrOpen.Error() || got != nil {
				t.Errorf("%v, %s: got %q, %v", c, name, got, err)
			}
		}
		if got, err := e.Open(secret); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%v: got %q, %v", c, got, err)
		}
	}
}

func pad(content []byte, size int) byte { return byte(size - len(content)%size) }

// flipLast changes the last octet of the content as it will be decrypted, by
// way of the block before.
func flipLast(e *cms.Envelope, size int, by byte) { e.Ciphertext[len(e.Ciphertext)-size-1] ^= by }

// TestEveryPaddingOctet: of the 256 values of the last octet, with all others
// zero, only 1 is a padding.
func TestEveryPaddingOctet(t *testing.T) {
	h := rsaHolder(t)
	e, err := cms.ParseEnvelope(envelop(t, h, make([]byte, 31), cms.AES128CBC))
	if err != nil {
		t.Fatal(err)
	}
	secret, err := unwrap(h.key.(*rsa.PrivateKey), e.Recipients[0], e.Cipher)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 256 {
		x := *e
		x.Ciphertext = bytes.Clone(e.Ciphertext)
		x.Ciphertext[15] ^= 1 ^ byte(i)
		if _, err := x.Open(secret); (err == nil) != (i == 1) {
			t.Errorf("last octet %d: %v", i, err)
		}
	}
}

// Covers: S-080
func TestEnvelopeStructure(t *testing.T) {
	h := rsaHolder(t)
	info, recipients := []int{1, 0, 2}, []int{1, 0, 1}
	recipient := []int{1, 0, 1, 0}
	for name, tt := range map[string]struct {
		change func(m *tlv)
		want   error
	}{
		"nothing":                         {func(*tlv) {}, nil},
		"something after the ContentInfo": {func(m *tlv) { m.add(null) }, cms.ErrTrailing},
		"something after the content":     {func(m *tlv) { m.at(1).add(null) }, cms.ErrTrailing},
		"something after EnvelopedData":   {func(m *tlv) { m.at(1, 0).add(null) }, cms.ErrTrailing},
		"something after a recipient":     {func(m *tlv) { m.at(recipient...).add(null) }, cms.ErrTrailing},
		"something after its serial":      {func(m *tlv) { m.at(recipient...).at(1).add(null) }, cms.ErrMalformed},
		"something after its algorithm":   {func(m *tlv) { m.at(recipient...).at(2).add(null) }, cms.ErrMalformed},
		"something after the ciphertext":  {func(m *tlv) { m.at(info...).add(null) }, cms.ErrTrailing},
		"something after the IV":          {func(m *tlv) { m.at(info...).at(1).add(null) }, cms.ErrMalformed},
		"another content type":            {func(m *tlv) { m.at(info...).at(0).value[8] = 2 }, cms.ErrMalformed},
		"another cipher":                  {func(m *tlv) { m.at(info...).at(1, 0).value[8] = 99 }, cms.ErrAlgorithm},
		"single DES":                      {func(m *tlv) { m.at(info...).at(1, 0).value = []byte{0x2b, 14, 3, 2, 7} }, cms.ErrAlgorithm},
		"an IV too short":                 {func(m *tlv) { iv := m.at(info...).at(1, 1); iv.value = iv.value[1:] }, cms.ErrMalformed},
		"no IV":                           {func(m *tlv) { a := m.at(info...).at(1); a.kids = a.kids[:1] }, cms.ErrMalformed},
		"no ciphertext":                   {func(m *tlv) { c := m.at(info...); c.kids = c.kids[:2] }, cms.ErrMalformed},
		"an empty ciphertext":             {func(m *tlv) { m.at(info...).at(2).value = nil }, cms.ErrMalformed},
		"half a block":                    {func(m *tlv) { c := m.at(info...).at(2); c.value = c.value[8:] }, cms.ErrMalformed},
		"ciphertext in segments":          {func(m *tlv) { segments(m.at(info...).at(2), 3) }, nil},
		"ciphertext in strange segments":  {func(m *tlv) { segments(m.at(info...).at(2), 3); m.at(info...).at(2, 1).tag = 12 }, cms.ErrMalformed},
		"no recipient":                    {func(m *tlv) { m.at(recipients...).kids = nil }, nil},
		"a recipient by password":         {func(m *tlv) { m.at(recipients...).add(&tlv{tag: 0xa3}) }, nil},
		"16 recipients":                   {func(m *tlv) { r := m.at(recipients...); r.kids = slices.Repeat(r.kids, 16) }, nil},
		"17 recipients":                   {func(m *tlv) { r := m.at(recipients...); r.kids = slices.Repeat(r.kids, 17) }, cms.ErrTooMany},
		"a recipient of another version":  {func(m *tlv) { m.at(recipient...).at(0).value = []byte{1} }, cms.ErrMalformed},
		"a recipient without a name":      {func(m *tlv) { m.at(recipient...).kids[1] = null }, cms.ErrMalformed},
		"another key transport":           {func(m *tlv) { m.at(recipient...).at(2, 0).value[8] = 7 }, nil},
		"key transport with parameters":   {func(m *tlv) { m.at(recipient...).at(2).kids[1] = &tlv{tag: 4} }, cms.ErrMalformed},
		"an originator":                   {func(m *tlv) { s := m.at(1, 0); s.kids = slices.Insert(s.kids, 1, &tlv{tag: 0xa0}) }, nil},
		"unprotected attributes":          {func(m *tlv) { m.at(1, 0).add(&tlv{tag: 0xa1}) }, nil},
		"a negative version":              {func(m *tlv) { m.at(1, 0, 0).value = []byte{0xff} }, cms.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			m := parseTLV(t, envelop(t, h, content, cms.AES128CBC))
			tt.change(m)
			if _, err := cms.ParseEnvelope(m.der()); !errors.Is(err, tt.want) || err != nil && tt.want == nil {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// segments makes an implicitly tagged string one of n segments.
func segments(n *tlv, count int) {
	n.tag |= 0x20
	step := len(n.value)/count + 1
	for part := range slices.Chunk(n.value, step) {
		n.add(&tlv{tag: 4, value: part})
	}
}

func TestEnvelopRefuses(t *testing.T) {
	h, ec := rsaHolder(t), ecHolder(t, elliptic.P256())
	for name, tt := range map[string]struct {
		to *cms.Certificate
		c  cms.Cipher
	}{
		"an ECDSA key": {ec.parsed(t), cms.AES128CBC}, "single DES": {h.parsed(t), cms.DESCBC}, "no cipher": {h.parsed(t), 0}, "an unknown cipher": {h.parsed(t), 77},
	} {
		if _, err := cms.Envelop(rand.Reader, content, tt.to, tt.c); !errors.Is(err, cms.ErrAlgorithm) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := cms.Envelop(bytes.NewReader(nil), content, h.parsed(t), cms.AES128CBC); err == nil {
		t.Error("encrypted without randomness")
	}
}

func TestCipherNames(t *testing.T) {
	for c, want := range map[cms.Cipher]string{
		cms.AES128CBC: "AES-128-CBC", cms.AES192CBC: "AES-192-CBC", cms.AES256CBC: "AES-256-CBC", cms.DES3CBC: "DES-EDE3-CBC",
		cms.DESCBC: "DES-CBC", 0: "unknown (0)", -1: "unknown (-1)", 99: "unknown (99)",
	} {
		if got := c.String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if known := c >= cms.AES128CBC && c <= cms.DESCBC; (c.OID() != nil) != known {
			t.Errorf("%v has OID %v", c, c.OID())
		}
	}
}
