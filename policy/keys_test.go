package policy_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"slices"
	"strings"
	"testing"

	"github.com/postern-pki/postern/policy"
)

// withEC is the demo profile for ECDSA keys too.
func withEC(t *testing.T, clients string) policy.Source {
	t.Helper()
	src := edited(t, "key: {rsa: {min: 2048, max: 4096}", "key: {rsa: {min: 2048, max: 4096}, ecdsa: {curves: [P-256, P-384]}")
	text := strings.Replace(string(src.Data), "rsa: [digitalSignature, keyEncipherment]", "rsa: [digitalSignature, keyEncipherment], ecdsa: [digitalSignature, keyAgreement]", 1)
	src.Data = []byte(strings.Replace(text, "clients: {", "clients: {"+clients+", ", 1))
	return src
}

func ecFacts(t *testing.T, c elliptic.Curve) policy.Facts {
	t.Helper()
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	f := good(t)
	f.CSRSignature = "ECDSA-SHA256"
	f.Key = policy.KeyFacts{Type: "ECDSA", Bits: int64(c.Params().BitSize), Curve: c.Params().Name, SPKI: base64.StdEncoding.EncodeToString(der)}
	return f
}

// Covers: S-171, S-173
func TestECDSAKeys(t *testing.T) {
	s, err := policy.Load(withEC(t, "password_recipient: true"))
	if err != nil {
		t.Fatal(err)
	}
	p256, p384, p521 := ecFacts(t, elliptic.P256()), ecFacts(t, elliptic.P384()), ecFacts(t, elliptic.P521())
	for name, tt := range map[string]struct {
		facts  policy.Facts
		change func(*policy.Facts)
		want   string
	}{
		"P-256":                   {p256, func(*policy.Facts) {}, ""},
		"P-384 with SHA-384":      {p384, func(f *policy.Facts) { f.CSRSignature = "ECDSA-SHA384" }, ""},
		"P-521":                   {p521, func(*policy.Facts) {}, "key.ecdsa.curves"},
		"SHA-1":                   {p256, func(f *policy.Facts) { f.CSRSignature = "ECDSA-SHA1" }, "clients.csr"},
		"an RSA signature":        {p256, func(f *policy.Facts) { f.CSRSignature = "SHA256-RSA" }, "clients.csr"},
		"another curve's name":    {p384, func(f *policy.Facts) { f.Key.Curve = "P-256" }, "key.spki"},
		"another length":          {p256, func(f *policy.Facts) { f.Key.Bits = 384 }, "key.spki"},
		"no DER":                  {p256, func(f *policy.Facts) { f.Key.SPKI = "" }, "key.spki"},
		"an RSA key by that name": {p256, func(f *policy.Facts) { f.Key.SPKI = good(t).Key.SPKI }, "key.spki"},
		"Ed25519":                 {p256, func(f *policy.Facts) { f.Key.Type = "Ed25519" }, "key.type"},
		"RSA, as ever":            {good(t), func(*policy.Facts) {}, ""},
		"RSA with its signature":  {good(t), func(f *policy.Facts) { f.CSRSignature = "ECDSA-SHA256" }, "clients.csr"},
		"certified for another":   {p256, func(f *policy.Facts) { f.KeyOtherSubject = 1 }, "key.reuse"},
		"a point that is on no curve": {p256, func(f *policy.Facts) {
			der, _ := base64.StdEncoding.DecodeString(f.Key.SPKI)
			der[len(der)-1] ^= 1
			f.Key.SPKI = base64.StdEncoding.EncodeToString(der)
		}, "key.spki"},
	} {
		f := tt.facts
		tt.change(&f)
		d := s.Decide(f)
		if got := broken(d); tt.want == "" && len(got) > 0 || tt.want != "" && !slices.Contains(got, tt.want) {
			t.Errorf("%s: broke %q, want %q", name, got, tt.want)
		}
	}
	for usage, f := range map[x509.KeyUsage]policy.Facts{
		x509.KeyUsageDigitalSignature | x509.KeyUsageKeyAgreement: p256, x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment: good(t),
	} {
		if c, ok := s.Decide(f).Template(); !ok || c.KeyUsage != usage {
			t.Errorf("%s: usage %v, want %v", f.Key.Type, c, usage)
		}
	}
}

// A profile may take ECDSA keys alone.
func TestECDSAAlone(t *testing.T) {
	src := withEC(t, "password_recipient: true")
	src.Data = []byte(strings.NewReplacer("rsa: {min: 2048, max: 4096}, ", "", "rsa: [digitalSignature, keyEncipherment], ", "").Replace(string(src.Data)))
	s, err := policy.Load(src)
	if err != nil {
		t.Fatal(err)
	}
	if got := broken(s.Decide(ecFacts(t, elliptic.P256()))); len(got) != 0 {
		t.Errorf("P-256 broke %q", got)
	}
	if d := s.Decide(good(t)); !slices.Contains(broken(d), "key.type") || d.Reasons[0].Say != "the key has to be an ECDSA key" {
		t.Errorf("RSA: %+v", d.Reasons)
	}
	p, _ := s.Profile("demo")
	if !p.Clients.PasswordRecipient || p.Clients.AnySigner || p.Key.RSA.Max != 0 || !slices.Equal(p.Key.ECDSA.Curves, []string{"P-256", "P-384"}) {
		t.Errorf("%+v", p)
	}
}

func TestECDSARulesAreLoadedStrictly(t *testing.T) {
	for what, tt := range map[string]struct{ from, to, path, say string }{
		"another curve":         {"[P-256, P-384]", "[P-256, secp256k1]", "profiles[0].key.ecdsa.curves", "none of P-256, P-384"},
		"no curve":              {"[P-256, P-384]", "[]", "profiles[0].key.ecdsa.curves", "not empty"},
		"keys that encrypt":     {"ecdsa: [digitalSignature, keyAgreement]", "ecdsa: [keyEncipherment]", "profiles[0].usage.key.ecdsa", "no usage of an ECDSA key"},
		"keys of a CA":          {"ecdsa: [digitalSignature, keyAgreement]", "ecdsa: [keyCertSign]", "profiles[0].usage.key.ecdsa", "CA alone"},
		"no usages":             {", ecdsa: [digitalSignature, keyAgreement]", "", "profiles[0].usage.key.ecdsa", "missing"},
		"no way for the answer": {"password_recipient: true", "signer_key: same", "profiles[0].key.ecdsa", "no device could have the answer"},
		"a password: perhaps":   {"password_recipient: true", "password_recipient: maybe", "profiles[0].clients.password_recipient", "true or false"},
	} {
		src := withEC(t, "password_recipient: true")
		src.Data = []byte(strings.Replace(string(src.Data), tt.from, tt.to, 1))
		fs := faults(t, src)
		if !slices.ContainsFunc(fs, func(f policy.Fault) bool {
			return strings.HasPrefix(f.Path, tt.path) && strings.Contains(f.Say, tt.say)
		}) {
			t.Errorf("%s: %v", what, fs)
		}
	}
	for _, clients := range []string{"signer_key: any", "signer_key: any, password_recipient: true"} {
		if fs := faults(t, withEC(t, clients)); len(fs) != 0 {
			t.Errorf("%s: %v", clients, fs)
		}
	}
	src := edited(t, "digests: [SHA-256, SHA-512], ciphers: [AES-128-CBC, AES-256-CBC], legacy: {sha1: false, des3: false}", "signer_key: any")
	s, err := policy.Load(src)
	if err != nil {
		t.Fatal(err)
	}
	if p, _ := s.Profile("demo"); !p.Clients.AnySigner || len(p.Clients.Digests) != 3 || len(p.Clients.Ciphers) != 3 {
		t.Errorf("%+v", p.Clients)
	}
}
