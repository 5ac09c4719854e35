package lint_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/postern-pki/postern/hsm/lint"
)

// encode writes a TBS as DER: the inverse of lint.Parse, so that a test can break
// one field and leave the others alone.
func encode(tbs *lint.TBS) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		if tbs.Version != 0 {
			b.AddASN1(cbasn1.Tag(0).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) { b.AddASN1Int64(int64(tbs.Version)) })
		}
		b.AddASN1(cbasn1.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(tbs.Serial) })
		b.AddBytes(tbs.SignatureAlgorithm)
		b.AddBytes(tbs.Issuer)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, at := range []time.Time{tbs.NotBefore, tbs.NotAfter} {
				if at.Year() < 2050 {
					b.AddASN1UTCTime(at)
				} else {
					b.AddASN1GeneralizedTime(at)
				}
			}
		})
		b.AddBytes(tbs.Subject)
		b.AddBytes(tbs.SPKI)
		for n, id := range [][]byte{tbs.IssuerUniqueID, tbs.SubjectUniqueID} {
			if id != nil {
				b.AddASN1(cbasn1.Tag(n+1).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(id) })
			}
		}
		if len(tbs.Extensions) > 0 {
			b.AddASN1(cbasn1.Tag(3).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) { addExtensions(b, tbs.Extensions) })
		}
	})
	return b.BytesOrPanic()
}

func addExtensions(b *cryptobyte.Builder, all []lint.Extension) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, e := range all {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(e.ID)
				if e.Critical {
					b.AddASN1Boolean(true)
				}
				b.AddASN1OctetString(e.Value)
			})
		}
	})
}

// good returns the bytes of a device's certificate and the rules that it keeps.
func good(t testing.TB, pub crypto.PublicKey) ([]byte, lint.Rules) {
	t.Helper()
	ca, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	var outer struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(spki, &outer); err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC().Truncate(time.Second)
	parent := &x509.Certificate{Subject: pkix.Name{CommonName: "CA"}, SubjectKeyId: []byte("authority")}
	template := &x509.Certificate{
		SerialNumber: new(big.Int).Lsh(big.NewInt(5), 100), Subject: pkix.Name{CommonName: "a.corp.example", Organization: []string{"Example Corp"}, Country: []string{"DE"}},
		NotBefore: now, NotAfter: now.Add(time.Hour), DNSNames: []string{"a.corp.example", "*.b.example"}, IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1).To4()},
		URIs: []*url.URL{{Scheme: "urn", Opaque: "x"}}, EmailAddresses: []string{"a@corp.example"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, SubjectKeyId: lint.KeyID(outer.Key.Bytes), BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, ca)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c.RawTBSCertificate, lint.Rules{
		Issuer: c.RawIssuer, IssuerSPKI: []byte("other"), IssuerNotAfter: now.Add(2 * time.Hour), AuthorityKeyID: []byte("authority"),
		SignatureAlgorithm: []byte{0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02},
		Subject:            c.RawSubject, SPKI: spki,
		Names: &lint.Names{
			DNS: []string{"*.b.example", "a.corp.example"}, IP: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
			URI: []string{"urn:x"}, Email: []string{"a@corp.example"},
		},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 2}, {1, 3, 6, 1, 5, 5, 7, 3, 9}}, MaxValidity: time.Hour,
	}
}

func newKey(t testing.TB) *ecdsa.PublicKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &k.PublicKey
}

func TestACleanCertificateHasNoFindings(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	edKey, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, pub := range map[string]crypto.PublicKey{"P-256": newKey(t), "RSA": &rsaKey.PublicKey, "Ed25519": edKey} {
		t.Run(name, func(t *testing.T) {
			tbs, rules := good(t, pub)
			if found := lint.Check(tbs, rules); len(found) > 0 {
				t.Error(found)
			}
			if found := lint.Check(tbs, lint.Rules{}); len(found) > 0 {
				t.Errorf("without rules: %v", found)
			}
		})
	}
}

// A breakage breaks one rule of a clean certificate and keeps the others.
type breakage struct {
	rule   string
	mutate func(t *testing.T, c *lint.TBS, r *lint.Rules)
}

func ext(c *lint.TBS, last int) *lint.Extension {
	i := slices.IndexFunc(c.Extensions, func(e lint.Extension) bool { return e.ID.Equal(asn1.ObjectIdentifier{2, 5, 29, last}) })
	return &c.Extensions[i]
}

func drop(last int) func(*testing.T, *lint.TBS, *lint.Rules) {
	return func(_ *testing.T, c *lint.TBS, _ *lint.Rules) {
		c.Extensions = slices.DeleteFunc(c.Extensions, func(e lint.Extension) bool { return e.ID.Equal(asn1.ObjectIdentifier{2, 5, 29, last}) })
	}
}

func set(last int, value ...byte) func(*testing.T, *lint.TBS, *lint.Rules) {
	return func(_ *testing.T, c *lint.TBS, _ *lint.Rules) { ext(c, last).Value = value }
}

func critical(last int, critical bool) func(*testing.T, *lint.TBS, *lint.Rules) {
	return func(_ *testing.T, c *lint.TBS, _ *lint.Rules) { ext(c, last).Critical = critical }
}

func add(critical bool, id ...int) func(*testing.T, *lint.TBS, *lint.Rules) {
	return func(_ *testing.T, c *lint.TBS, _ *lint.Rules) {
		c.Extensions = append(c.Extensions, lint.Extension{ID: id, Critical: critical, Value: []byte{5, 0}})
	}
}

// named sets a subject of one attribute, which policy decided on as well.
func named(tag cbasn1.Tag, value string, id ...int) func(*testing.T, *lint.TBS, *lint.Rules) {
	return func(_ *testing.T, c *lint.TBS, r *lint.Rules) {
		var b cryptobyte.Builder
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(id)
					b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes([]byte(value)) })
				})
			})
		})
		c.Subject = b.BytesOrPanic()
		r.Subject = c.Subject
	}
}

// rekeyed gives the certificate another key, with the identifier that fits.
func rekeyed(asked bool, pub func(*testing.T) crypto.PublicKey) func(*testing.T, *lint.TBS, *lint.Rules) {
	return func(t *testing.T, c *lint.TBS, r *lint.Rules) {
		other, _ := good(t, pub(t))
		o, err := lint.Parse(other)
		if err != nil {
			t.Fatal(err)
		}
		c.SPKI, c.KeyBits = o.SPKI, o.KeyBits
		*ext(c, 14) = *ext(o, 14)
		if asked {
			r.SPKI = o.SPKI
		}
	}
}

func names(n lint.Names, der ...byte) func(*testing.T, *lint.TBS, *lint.Rules) {
	return func(_ *testing.T, c *lint.TBS, r *lint.Rules) { r.Names, ext(c, 17).Value = &n, der }
}

// where adds where the status is, as policy decided it, and changes what that was.
func where(change func(r *lint.Rules)) func(*testing.T, *lint.TBS, *lint.Rules) {
	return func(_ *testing.T, c *lint.TBS, r *lint.Rules) {
		url := func(s string) []byte { return append([]byte{0x86, byte(len(s))}, s...) }
		wrap := func(tag byte, parts ...[]byte) []byte {
			all := bytes.Join(parts, nil)
			return append([]byte{tag, byte(len(all))}, all...)
		}
		method := func(n byte) []byte { return []byte{6, 8, 0x2b, 6, 1, 5, 5, 7, 0x30, n} }
		c.Extensions = append(c.Extensions,
			lint.Extension{ID: []int{2, 5, 29, 31}, Value: wrap(0x30, wrap(0x30, wrap(0xa0, wrap(0xa0, url("http://a/")))))},
			lint.Extension{ID: []int{1, 3, 6, 1, 5, 5, 7, 1, 1}, Value: wrap(0x30, wrap(0x30, method(1), url("http://o/")), wrap(0x30, method(2), url("http://i/")))})
		r.Status = &lint.Status{CRL: []string{"http://a/"}, OCSP: []string{"http://o/"}, CAIssuers: []string{"http://i/"}}
		any := *r.Status
		r.AnyStatus = &any
		change(r)
	}
}

// A certificate that says where its status is, as was decided, breaks no rule.
func TestWhereTheStatusIs(t *testing.T) {
	tbs, rules := good(t, newKey(t))
	c, err := lint.Parse(tbs)
	if err != nil {
		t.Fatal(err)
	}
	where(func(*lint.Rules) {})(t, c, &rules)
	if found := lint.Check(encode(c), rules); len(found) > 0 {
		t.Errorf("%v", found)
	}
}

func breakages() map[string]breakage {
	noSerial := func(serial ...byte) breakage {
		return breakage{"serial", func(_ *testing.T, c *lint.TBS, _ *lint.Rules) { c.Serial = serial }}
	}
	cn := []int{2, 5, 4, 3}
	weak := func(t *testing.T) crypto.PublicKey {
		// A public key alone, of 1024 bits: an odd number will do.
		n := new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 1023), big.NewInt(1))
		return &rsa.PublicKey{N: n, E: 65537}
	}
	return map[string]breakage{
		"version 1":                   {"version", func(_ *testing.T, c *lint.TBS, _ *lint.Rules) { c.Version = 1 }},
		"no version":                  {"version", func(_ *testing.T, c *lint.TBS, _ *lint.Rules) { c.Version = 0 }},
		"serial zero":                 noSerial(0),
		"a short serial":              noSerial(0x7f, 1, 2, 3, 4, 5, 6, 7),
		"a negative serial":           noSerial(0x80, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
		"a serial of 160 bits":        noSerial(append([]byte{0, 0x80}, make([]byte, 19)...)...),
		"another signature algorithm": {"signature-algorithm", func(_ *testing.T, c *lint.TBS, _ *lint.Rules) { c.SignatureAlgorithm = []byte{0x30, 3, 6, 1, 0x2a} }},
		"another issuer":              {"issuer", func(_ *testing.T, c *lint.TBS, _ *lint.Rules) { c.Issuer = []byte{0x30, 0} }},
		"ends when it begins":         {"validity-order", func(_ *testing.T, c *lint.TBS, _ *lint.Rules) { c.NotAfter = c.NotBefore }},
		"a second too long":           {"validity-length", func(_ *testing.T, c *lint.TBS, _ *lint.Rules) { c.NotAfter = c.NotAfter.Add(time.Second) }},
		"outlives the CA":             {"validity-issuer", func(_ *testing.T, c *lint.TBS, r *lint.Rules) { r.IssuerNotAfter = c.NotAfter.Add(-time.Second) }},
		"another subject": {"subject", func(t *testing.T, c *lint.TBS, r *lint.Rules) {
			was := r.Subject
			named(12, "x", cn...)(t, c, r)
			r.Subject = was
		}},
		"subject is issuer":        {"subject-not-issuer", func(_ *testing.T, c *lint.TBS, r *lint.Rules) { c.Subject, r.Subject = c.Issuer, c.Issuer }},
		"a name with a newline":    {"subject-string", named(12, "a\nb", cn...)},
		"a name with NUL":          {"subject-string", named(12, "a\x00b", cn...)},
		"a name that is not UTF-8": {"subject-string", named(12, "a\xff", cn...)},
		"an empty name":            {"subject-string", named(12, "", cn...)},
		"a name as BMPString":      {"subject-string", named(30, "\x00a", cn...)},
		"@ in a PrintableString":   {"subject-string", named(19, "a@b", cn...)},
		"umlaut in an IA5String":   {"subject-string", named(22, "ä", cn...)},
		"a subject that is no name": {"subject-string", func(_ *testing.T, c *lint.TBS, r *lint.Rules) {
			c.Subject = []byte{0x30, 2, 5, 0}
			r.Subject = c.Subject
		}},
		"a CN of 65 characters":         {"subject-length", named(12, strings.Repeat("ä", 65), cn...)},
		"a country of 1 character":      {"subject-length", named(19, "D", 2, 5, 4, 6)},
		"another key":                   {"key", rekeyed(false, func(t *testing.T) crypto.PublicKey { return newKey(t) })},
		"RSA-1024":                      {"key-strength", rekeyed(true, weak)},
		"the CA's key":                  {"key-not-issuer", func(_ *testing.T, c *lint.TBS, r *lint.Rules) { r.IssuerSPKI = c.SPKI }},
		"an issuerUniqueID":             {"unique-ids", func(_ *testing.T, c *lint.TBS, _ *lint.Rules) { c.IssuerUniqueID = []byte{0, 1} }},
		"a subjectUniqueID":             {"unique-ids", func(_ *testing.T, c *lint.TBS, _ *lint.Rules) { c.SubjectUniqueID = []byte{0, 1} }},
		"an extension twice":            {"extension-repeated", func(_ *testing.T, c *lint.TBS, _ *lint.Rules) { c.Extensions = append(c.Extensions, *ext(c, 37)) }},
		"an unknown extension":          {"extension-unknown", add(false, 1, 2, 3)},
		"an unknown critical one":       {"extension-critical-unknown", add(true, 1, 2, 3)},
		"name constraints":              {"extension-critical-unknown", add(true, 2, 5, 29, 30)},
		"no basicConstraints":           {"basic-constraints", drop(19)},
		"a CA":                          {"basic-constraints", set(19, 0x30, 3, 1, 1, 0xff)},
		"cA FALSE written out":          {"basic-constraints", set(19, 0x30, 3, 1, 1, 0)},
		"a pathLen alone":               {"basic-constraints", set(19, 0x30, 3, 2, 1, 0)},
		"keyCertSign":                   {"key-usage", set(15, 3, 2, 2, 4)},
		"cRLSign":                       {"key-usage", set(15, 3, 2, 1, 2)},
		"a usage that is not allowed":   {"key-usage", set(15, 3, 2, 6, 0x40)},
		"no usage":                      {"key-usage", set(15, 3, 1, 0)},
		"keyUsage not critical":         {"key-usage", critical(15, false)},
		"keyUsage is missing":           {"key-usage-present", drop(15)},
		"an EC key that enciphers":      {"key-usage-fits-key", set(15, 3, 2, 5, 0x20)},
		"OCSP signing":                  {"extended-key-usage", set(37, 0x30, 10, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 9)},
		"any usage":                     {"extended-key-usage", set(37, 0x30, 6, 6, 4, 0x55, 0x1d, 0x25, 0)},
		"an extended usage not allowed": {"extended-key-usage", set(37, 0x30, 10, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 1)},
		"an empty extKeyUsage":          {"extended-key-usage", set(37, 0x30, 0)},
		"extKeyUsage is missing":        {"extended-key-usage-present", drop(37)},
		"a name too many":               {"subject-alternative-name", set(17, 0x30, 3, 0x82, 1, 'a')},
		"names left out":                {"subject-alternative-name", drop(17)},
		"an empty subjectAltName":       {"subject-alternative-name", set(17, 0x30, 0)},
		"a directoryName":               {"subject-alternative-name", set(17, 0x30, 4, 0xa4, 2, 0x30, 0)},
		"an address of 5 bytes":         {"subject-alternative-name", set(17, 0x30, 7, 0x87, 5, 1, 2, 3, 4, 5)},
		"subjectAltName critical":       {"subject-alternative-name-critical", critical(17, true)},
		"an empty label":                {"dns-name", names(lint.Names{DNS: []string{"a..b"}}, 0x30, 6, 0x82, 4, 'a', '.', '.', 'b')},
		"a NUL in a dNSName":            {"dns-name", names(lint.Names{DNS: []string{"a\x00b"}}, 0x30, 5, 0x82, 3, 'a', 0, 'b')},
		"a wildcard inside":             {"dns-name", names(lint.Names{DNS: []string{"a.*"}}, 0x30, 5, 0x82, 3, 'a', '.', '*')},
		"a point of another kind":       {"crl-distribution-points", add(false, 2, 5, 29, 31)},
		"a critical point": {"crl-distribution-points", func(t *testing.T, c *lint.TBS, r *lint.Rules) {
			where(func(*lint.Rules) {})(t, c, r)
			ext(c, 31).Critical = true
		}},
		"another point":               {"crl-distribution-points", where(func(r *lint.Rules) { r.Status.CRL = []string{"http://b/"} })},
		"a point that is not allowed": {"crl-distribution-points", where(func(r *lint.Rules) { r.AnyStatus.CRL = []string{"http://b/"} })},
		"access of another kind":      {"authority-info-access", add(false, 1, 3, 6, 1, 5, 5, 7, 1, 1)},
		"another responder":           {"authority-info-access", where(func(r *lint.Rules) { r.Status.OCSP = nil })},
		"another CA's certificate":    {"authority-info-access", where(func(r *lint.Rules) { r.Status.CAIssuers = nil })},
		"a responder not allowed":     {"authority-info-access", where(func(r *lint.Rules) { r.AnyStatus.OCSP = nil })},
		"another key's identifier":    {"subject-key-identifier", set(14, 4, 1, 1)},
		"no subjectKeyIdentifier":     {"subject-key-identifier", drop(14)},
		"another CA's identifier":     {"authority-key-identifier", set(35, 0x30, 3, 0x80, 1, 1)},
		"no authorityKeyIdentifier":   {"authority-key-identifier", drop(35)},
	}
}

func TestEachRuleIsBrokenAlone(t *testing.T) {
	covered := map[string]bool{"structure": true}
	for name, b := range breakages() {
		covered[b.rule] = true
		t.Run(name, func(t *testing.T) {
			tbs, rules := good(t, newKey(t))
			c, err := lint.Parse(tbs)
			if err != nil {
				t.Fatal(err)
			}
			b.mutate(t, c, &rules)
			broken := encode(c)
			found := lint.Check(broken, rules)
			if len(found) != 1 || found[0].Rule != b.rule || found[0].Say == "" {
				t.Errorf("found %v, want %s alone", found, b.rule)
			}
			rules.Except = []string{b.rule}
			if silent := len(lint.Check(broken, rules)) == 0; silent != lint.Excusable(b.rule) {
				t.Errorf("an exception for %s: silent %v, excusable %v", b.rule, silent, lint.Excusable(b.rule))
			}
		})
	}
	for _, name := range lint.All() {
		if !covered[name] {
			t.Errorf("no certificate breaks %s", name)
		}
	}
}

func TestEmptySubjectNeedsACriticalName(t *testing.T) {
	tbs, rules := good(t, newKey(t))
	c, err := lint.Parse(tbs)
	if err != nil {
		t.Fatal(err)
	}
	c.Subject, rules.Subject = []byte{0x30, 0}, []byte{0x30, 0}
	if found := lint.Check(encode(c), rules); len(found) != 1 || found[0].Rule != "subject-alternative-name-critical" {
		t.Errorf("not critical: %v", found)
	}
	ext(c, 17).Critical = true
	if found := lint.Check(encode(c), rules); len(found) != 0 {
		t.Errorf("critical: %v", found)
	}
	drop(17)(t, c, nil)
	rules.Names = nil
	if found := lint.Check(encode(c), rules); len(found) != 1 || found[0].Rule != "subject-alternative-name-critical" {
		t.Errorf("no name at all: %v", found)
	}
}

func TestOnlyOneEncodingIsATBSCertificate(t *testing.T) {
	tbs, _ := good(t, newKey(t))
	c, err := lint.Parse(tbs)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(encode(c), tbs) {
		t.Fatal("the encoder of this test is wrong")
	}
	for name, bad := range map[string][]byte{
		"nothing":             {},
		"trailing byte":       append(slices.Clone(tbs), 0),
		"cut short":           tbs[:len(tbs)-1],
		"too large":           make([]byte, lint.MaxTBS+1),
		"a padded serial":     encode(with(*c, func(c *lint.TBS) { c.Serial = []byte{0, 1} })),
		"an empty serial":     encode(with(*c, func(c *lint.TBS) { c.Serial = nil })),
		"critical FALSE":      bytes.Replace(tbs, []byte{0x55, 0x1d, 0x13, 1, 1, 0xff}, []byte{0x55, 0x1d, 0x13, 1, 1, 0}, 1),
		"elements at the end": encode(with(*c, func(c *lint.TBS) { c.Extensions = nil; c.SPKI = append(slices.Clone(c.SPKI), 5, 0) })),
	} {
		t.Run(name, func(t *testing.T) {
			if found := lint.Check(bad, lint.Rules{}); len(found) != 1 || found[0].Rule != "structure" {
				t.Errorf("found %v", found)
			}
		})
	}
}

func with(c lint.TBS, mutate func(*lint.TBS)) *lint.TBS { mutate(&c); return &c }

// FuzzParse checks that no bytes can panic the lint, and that what it takes for a
// TBSCertificate has one encoding, the one that was given.
func FuzzParse(f *testing.F) {
	tbs, rules := good(f, newKey(f))
	f.Add(tbs)
	c, err := lint.Parse(tbs)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(encode(with(*c, func(c *lint.TBS) { c.IssuerUniqueID = []byte{0, 1} })))
	f.Add(encode(with(*c, func(c *lint.TBS) { c.NotAfter = time.Date(2051, 1, 1, 0, 0, 0, 0, time.UTC); c.Version = 0 })))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := lint.Parse(b)
		lint.Check(b, rules)
		if err == nil && !bytes.Equal(encode(c), b) {
			t.Errorf("accepted %x but it encodes as %x", b, encode(c))
		}
	})
}
