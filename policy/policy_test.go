package policy_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"math/big"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-pki/postern/policy"
)

// now is the time of every decision here: 2026-03-01 12:00 UTC.
const now = 1772366400

const day = 86400

func source(t testing.TB, name string) policy.Source {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return policy.Source{Name: name, Data: data}
}

func testSet(t testing.TB) *policy.Set {
	t.Helper()
	s, err := policy.Load(source(t, "demo.yaml"), source(t, "interop.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// edited is the demo profile with one text replaced by another.
func edited(t testing.TB, from, to string) policy.Source {
	t.Helper()
	src := source(t, "demo.yaml")
	if strings.Count(string(src.Data), from) != 1 {
		t.Fatalf("%q stands %d times in the demo profile", from, strings.Count(string(src.Data), from))
	}
	src.Data = []byte(strings.Replace(string(src.Data), from, to, 1))
	return src
}

func keyFacts(t testing.TB, pub *rsa.PublicKey) policy.KeyFacts {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return policy.KeyFacts{Type: "RSA", Bits: int64(pub.N.BitLen()), Exponent: int64(pub.E), SPKI: base64.StdEncoding.EncodeToString(der)}
}

var key2048 = sync.OnceValue(func() *rsa.PublicKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return &k.PublicKey
})

// good returns facts that the demo profile issues for.
func good(t testing.TB) policy.Facts {
	return policy.Facts{
		Profile: "demo", Kind: policy.KindNew, Now: now, Key: keyFacts(t, key2048()),
		Subject: []policy.Attribute{{Name: "CN", Value: "dev-1.corp.example"}}, DNS: []string{"dev-1.corp.example"},
		RequestedExtensions: []string{"2.5.29.17", "2.5.29.15"},
		CSRSignature:        "SHA256-RSA", Digest: "SHA-256", Cipher: "AES-128-CBC",
		Authorization: policy.Authorized, AuthorizedBy: "challenge:c1",
	}
}

// renewed returns facts of a renewal on the last day of a year.
func renewed(t testing.TB) policy.Facts {
	f := good(t)
	f.Kind, f.AuthorizedBy = policy.KindRenewal, "certificate:0a"
	f.Renewal = &policy.RenewalFacts{LineageStart: now - 364*day, NotBefore: now - 364*day, NotAfter: now + day, SameNames: 1}
	return f
}

// broken returns the rules that the decision found broken, without repetitions.
func broken(d policy.Decision) []string {
	var out []string
	for _, r := range d.Reasons {
		out = append(out, r.Rule)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Covers: S-096
func TestDecideTellsEveryBrokenRule(t *testing.T) {
	s := testSet(t)
	for name, tt := range map[string]struct {
		change func(*policy.Facts)
		want   []string
	}{
		"a request that keeps every rule": {func(*policy.Facts) {}, nil},
		"no subjectAltName":               {func(f *policy.Facts) { f.DNS = nil }, nil},
		"the value that the profile sets, asked for otherwise": {func(f *policy.Facts) {
			f.Subject = append(f.Subject, policy.Attribute{Name: "O", Value: "Evil\x00Corp"}, policy.Attribute{Name: "O", Value: "Other"})
		}, nil},
		"an unknown kind":                           {func(f *policy.Facts) { f.Kind = "reissue" }, []string{"kind"}},
		"a renewal without its fact":                {func(f *policy.Facts) { f.Kind = policy.KindRenewal }, []string{"kind"}},
		"a new request with the facts of a renewal": {func(f *policy.Facts) { f.Renewal = renewed(t).Renewal }, []string{"kind"}},
		"no authorization":                          {func(f *policy.Facts) { f.Authorization = "" }, []string{"authorization"}},
		"no authorization, and the other rules still speak": {func(f *policy.Facts) {
			f.Authorization, f.Digest, f.OtherSAN = "challenge: unknown", "MD5", []string{"otherName"}
		}, []string{"authorization", "clients.digests", "san.other"}},
		"a legacy digest":               {func(f *policy.Facts) { f.Digest = "SHA-1" }, []string{"clients.digests"}},
		"a digest the profile left out": {func(f *policy.Facts) { f.Digest = "SHA-224" }, []string{"clients.digests"}},
		"no digest":                     {func(f *policy.Facts) { f.Digest = "" }, []string{"clients.digests"}},
		"triple DES":                    {func(f *policy.Facts) { f.Cipher = "DES-EDE3-CBC" }, []string{"clients.ciphers"}},
		"single DES":                    {func(f *policy.Facts) { f.Cipher = "DES-CBC" }, []string{"clients.ciphers"}},
		"a CSR signed by SHA-1":         {func(f *policy.Facts) { f.CSRSignature = "SHA1-RSA" }, []string{"clients.csr"}},
		"a key of another subject":      {func(f *policy.Facts) { f.KeyOtherSubject = 1 }, []string{"key.reuse"}},
		"two CNs": {func(f *policy.Facts) {
			f.Subject = append(f.Subject, policy.Attribute{Name: "CN", Value: "dev-2.corp.example"})
		}, []string{"subject.CN.max"}},
		"the same CN twice":                 {func(f *policy.Facts) { f.Subject = append(f.Subject, f.Subject[0]) }, []string{"subject.CN.max"}},
		"no subject":                        {func(f *policy.Facts) { f.Subject = nil }, []string{"san.dns.must_equal", "subject.CN.required"}},
		"an attribute that nobody mentions": {func(f *policy.Facts) { f.Subject = append(f.Subject, policy.Attribute{Name: "OU", Value: "x"}) }, []string{"subject.OU"}},
		"the same by its OID":               {func(f *policy.Facts) { f.Subject = append(f.Subject, policy.Attribute{Name: "2.5.4.11", Value: "x"}) }, []string{"subject.OU"}},
		"an attribute without a name":       {func(f *policy.Facts) { f.Subject = append(f.Subject, policy.Attribute{Name: "1.2.3", Value: "x"}) }, []string{"subject.1.2.3"}},
		"a multi-valued RDN": {func(f *policy.Facts) {
			f.Subject = append(f.Subject, policy.Attribute{Name: "multi-valued CN", Value: "x"})
		}, []string{"subject.other"}},
		"a dNSName that is not the CN":         {func(f *policy.Facts) { f.DNS = []string{"dev-2.corp.example"} }, []string{"san.dns.must_equal"}},
		"more dNSNames than allowed":           {func(f *policy.Facts) { f.DNS = []string{"a.corp.example", "b.corp.example", "c.corp.example"} }, []string{"san.dns.max", "san.dns.must_equal"}},
		"a dNSName twice":                      {func(f *policy.Facts) { f.DNS = append(f.DNS, f.DNS[0]) }, []string{"san.dns.twice"}},
		"an address where none is mentioned":   {func(f *policy.Facts) { f.IP = []string{"10.0.0.1"} }, []string{"san.ip"}},
		"a mailbox where none is mentioned":    {func(f *policy.Facts) { f.Email = []string{"a@corp.example"} }, []string{"san.email"}},
		"a URI where none is mentioned":        {func(f *policy.Facts) { f.URI = []string{"urn:x"} }, []string{"san.uri"}},
		"an otherName":                         {func(f *policy.Facts) { f.OtherSAN = []string{"otherName 1.3.6.1.4.1.311.20.2.3"} }, []string{"san.other"}},
		"a wish to be a CA":                    {func(f *policy.Facts) { f.RequestedExtensions = []string{"2.5.29.19 CA:TRUE"} }, []string{"extensions.basicConstraints"}},
		"an unknown extension is only noted":   {func(f *policy.Facts) { f.RequestedExtensions = []string{"1.2.3.4", "2.5.29.19"} }, nil},
		"as many certificates as allowed":      {func(f *policy.Facts) { f.ActiveForSubject = 2 }, []string{"limits.active_per_subject"}},
		"no limit by the minute in this one":   {func(f *policy.Facts) { f.IssuedLastMinute = 1 << 40 }, nil},
		"a clock before time":                  {func(f *policy.Facts) { f.Now = -1 }, []string{"validity"}},
		"a clock after time":                   {func(f *policy.Facts) { f.Now = 1 << 62 }, []string{"validity"}},
		"many attributes end in one more rule": {func(f *policy.Facts) { f.Subject = slices.Repeat(f.Subject, 1000) }, []string{"subject.CN.max", "subject.count"}},
		"many names end in one more rule":      {func(f *policy.Facts) { f.DNS = slices.Repeat(f.DNS, 1000) }, []string{"san.dns.count", "san.dns.max", "san.dns.twice"}},
		"an unknown profile":                   {func(f *policy.Facts) { f.Profile = "Demo" }, []string{"profile"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := good(t)
			tt.change(&f)
			d := s.Decide(f)
			if got := broken(d); !slices.Equal(got, tt.want) {
				t.Errorf("broke %q, want %q", got, tt.want)
			}
			if _, ok := d.Template(); ok != (tt.want == nil) || d.Issue != ok {
				t.Errorf("Issue %v, template %v, want %v", d.Issue, ok, tt.want == nil)
			}
		})
	}
}

// What looks like an allowed name and is not one. Each is tried as CN and as
// dNSName.
func TestLookAlikesAreRefused(t *testing.T) {
	s := testSet(t)
	for name, v := range map[string]string{
		"a domain that only ends the same way": "evilcorp.example",
		"the domain itself":                    "corp.example",
		"a name below another":                 "dev.corp.example.evil.test",
		"a prefix":                             "evil/dev-1.corp.example",
		"a suffix":                             "dev-1.corp.example:8443",
		"a newline at the end":                 "dev-1.corp.example\n",
		"a newline before":                     "\ndev-1.corp.example",
		"a line that matches among others":     "evil.test\ndev-1.corp.example\nx",
		"a NUL in the middle":                  "dev-1.corp.example\x00.evil.test",
		"a NUL at the end":                     "dev-1.corp.example\x00",
		"capital letters":                      "DEV-1.corp.example",
		"a Cyrillic letter":                    "d\u0435v-1.corp.example",
		"a full-width dot":                     "dev-1\uff0ecorp.example",
		"a zero-width space":                   "dev\u200b-1.corp.example",
		"a right-to-left override":             "dev\u202e-1.corp.example",
		"a Kelvin sign":                        "dev-\u212a.corp.example",
		"a dot at the end":                     "dev-1.corp.example.",
		"an empty label":                       "dev-1..corp.example",
		"a wildcard":                           "*.corp.example",
		"a space at the end":                   "dev-1.corp.example ",
		"a space before":                       " dev-1.corp.example",
		"a no-break space":                     "dev-1.corp.example\u00a0",
		"octets that are not UTF-8":            "dev\xff.corp.example",
		"any character for the dot":            "dev-1xcorp.example",
		"41 characters":                        strings.Repeat("a", 41) + ".corp.example",
		"nothing":                              "",
	} {
		t.Run(name, func(t *testing.T) {
			f := good(t)
			f.Subject[0].Value, f.DNS = v, nil
			d := s.Decide(f)
			if d.Issue || !slices.ContainsFunc(broken(d), func(r string) bool { return strings.HasPrefix(r, "subject.CN.") }) {
				t.Errorf("CN %q: broke %q", v, broken(d))
			}
			f = good(t)
			f.Profile, f.DNS = "interop", []string{v}
			if name == "the domain itself" || name == "41 characters" || name == "any character for the dot" || name == "a domain that only ends the same way" {
				f.Profile = "demo" // where these are refused by the pattern or the CN
			}
			d = s.Decide(f)
			if d.Issue || !slices.ContainsFunc(broken(d), func(r string) bool { return strings.HasPrefix(r, "san.dns.") }) {
				t.Errorf("dNSName %q: broke %q", v, broken(d))
			}
		})
	}
}

// A pattern of a profile may be careless; some values are refused all the same.
func TestWhatNoPatternLetsThrough(t *testing.T) {
	s := testSet(t)
	for name, v := range map[string]string{
		"a tab": "a\tb", "a NUL": "a\x00b", "a newline": "a\nb", "a delete": "a\x7fb", "a C1 control": "a\u0085b",
		"a line separator": "a\u2028b", "a soft hyphen": "a\u00adb", "a leading space": " a", "a trailing space": "a ",
		"65 octets": strings.Repeat("a", 65), "64 characters of two octets": strings.Repeat("é", 64),
	} {
		f := good(t)
		f.Profile, f.Subject, f.DNS = "interop", []policy.Attribute{{Name: "CN", Value: v}}, nil
		if s.Decide(f).Issue {
			t.Errorf("%s: issued", name)
		}
	}
	for name, v := range map[string]string{"a path": "../../etc/passwd", "markup": "<img onerror=x>", "64 octets": strings.Repeat("a", 64), "accents": "Zoë"} {
		f := good(t)
		f.Profile, f.Subject, f.DNS = "interop", []policy.Attribute{{Name: "CN", Value: v}}, nil
		if d := s.Decide(f); !d.Issue {
			t.Errorf("%s: refused by %q, though the pattern allows it", name, broken(d))
		}
	}
}

func TestKeyRules(t *testing.T) {
	s := testSet(t)
	pub := key2048()
	small := &rsa.PublicKey{N: new(big.Int).Mul(big.NewInt(751), new(big.Int).Rsh(pub.N, 9)), E: 65537}
	small.N.SetBit(small.N, 2047, 1)
	for ; new(big.Int).Mod(small.N, big.NewInt(751)).Sign() != 0 || small.N.Bit(0) == 0; small.N.Add(small.N, big.NewInt(1)) {
	}
	shifted := func(n int64) *rsa.PublicKey { return &rsa.PublicKey{N: new(big.Int).Rsh(pub.N, uint(n)), E: 65537} }
	for name, tt := range map[string]struct {
		key  policy.KeyFacts
		want string
	}{
		"2048 bits":                {keyFacts(t, pub), ""},
		"2047 bits":                {keyFacts(t, shifted(1)), "key.rsa.min"},
		"1024 bits":                {keyFacts(t, shifted(1024)), "key.rsa.min"},
		"4097 bits":                {keyFacts(t, &rsa.PublicKey{N: new(big.Int).SetBit(pub.N, 4096, 1), E: 65537}), "key.rsa.max"},
		"exponent 3":               {keyFacts(t, &rsa.PublicKey{N: pub.N, E: 3}), "key.rsa.exponent"},
		"an even exponent":         {keyFacts(t, &rsa.PublicKey{N: pub.N, E: 65538}), "key.rsa.exponent"},
		"a larger exponent":        {keyFacts(t, &rsa.PublicKey{N: pub.N, E: 1<<32 - 1}), ""},
		"an exponent beyond 2^32":  {keyFacts(t, &rsa.PublicKey{N: pub.N, E: 1<<32 + 1}), "key.rsa.exponent"},
		"an even modulus":          {keyFacts(t, &rsa.PublicKey{N: new(big.Int).SetBit(pub.N, 0, 0), E: 65537}), "key.spki"},
		"a modulus of 751 times x": {keyFacts(t, small), "key.spki"},
		"a modulus of Infineon's":  {keyFacts(t, infineon()), "key.spki"},
		"primes close together":    {keyFacts(t, neighbors(t, 0)), "key.spki"},
		"primes not so close":      {keyFacts(t, neighbors(t, 530)), ""},
		"an elliptic curve":        {policy.KeyFacts{Type: "ECDSA", Bits: 256, Curve: "P-256"}, "key.type"},
		"Ed25519":                  {policy.KeyFacts{Type: "Ed25519", Bits: 256}, "key.type"},
		"no key":                   {policy.KeyFacts{}, "key.type"},
		"a key without its DER":    {policy.KeyFacts{Type: "RSA", Bits: 2048, Exponent: 65537}, "key.spki"},
		"DER that is another key":  {func() policy.KeyFacts { k := keyFacts(t, shifted(1)); k.Bits = 2048; return k }(), "key.spki"},
	} {
		t.Run(name, func(t *testing.T) {
			f := good(t)
			f.Key = tt.key
			got := broken(s.Decide(f))
			if tt.want == "" && len(got) > 0 || tt.want != "" && !slices.Contains(got, tt.want) {
				t.Errorf("broke %q, want %q", got, tt.want)
			}
		})
	}
}

// infineon is a modulus that is a power of 65537 modulo all small primes, as the
// keys are that CVE-2017-15361 is about.
func infineon() *rsa.PublicKey {
	m := big.NewInt(1)
	for p := int64(3); p <= 167; p += 2 {
		if big.NewInt(p).ProbablyPrime(0) {
			m.Mul(m, big.NewInt(p))
		}
	}
	n := new(big.Int).Exp(big.NewInt(65537), big.NewInt(123456789), m)
	k := new(big.Int).Lsh(big.NewInt(3), 2046)
	k.Sub(k, new(big.Int).Mod(k, m))
	for n.Add(n, k); n.Bit(0) == 0 || !noSmallFactor(n); n.Add(n, m) {
	}
	return &rsa.PublicKey{N: n, E: 65537}
}

func noSmallFactor(n *big.Int) bool {
	for p := int64(3); p < 752; p += 2 {
		if new(big.Int).Mod(n, big.NewInt(p)).Sign() == 0 {
			return false
		}
	}
	return true
}

// neighbors is a modulus of a prime and the next one after adding 2^bits.
func neighbors(t *testing.T, bits uint) *rsa.PublicKey {
	t.Helper()
	p, err := rand.Prime(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	q := new(big.Int).Add(p, new(big.Int).Lsh(big.NewInt(2), bits))
	q.SetBit(q, 0, 1)
	for !q.ProbablyPrime(20) {
		q.Add(q, big.NewInt(2))
	}
	return &rsa.PublicKey{N: new(big.Int).Mul(p, q), E: 65537}
}

// A device whose key can not be certified is told of its key, and not of a
// signature that it could not have made otherwise.
func TestTheKeyIsToldOfBeforeTheSignature(t *testing.T) {
	f := good(t)
	f.Key, f.CSRSignature = policy.KeyFacts{Type: "ECDSA", Bits: 256, Curve: "P-256"}, "ECDSA-SHA256"
	reasons := testSet(t).Decide(f).Reasons
	if len(reasons) != 2 || reasons[0].Rule != "key.type" || reasons[1].Rule != "clients.csr" {
		t.Errorf("%+v, want the key's type, then the signature", reasons)
	}
}

// SHA-384 is offered with SHA-256, so that it has to work with it, and not alone.
func TestSHA384GoesWithSHA256(t *testing.T) {
	for listed, want := range map[string]bool{"SHA-256": true, "SHA-256, SHA-512": true, "SHA-512": false, "SHA-384": true} {
		s, err := policy.Load(edited(t, "digests: [SHA-256, SHA-512]", "digests: ["+listed+"]"))
		if err != nil {
			t.Fatal(err)
		}
		f := good(t)
		f.Digest = "SHA-384"
		if got := !slices.Contains(broken(s.Decide(f)), "clients.digests"); got != want {
			t.Errorf("[%s]: SHA-384 passes %v, want %v", listed, got, want)
		}
	}
}

func TestRenewalRules(t *testing.T) {
	s := testSet(t)
	wifi := edited(t, "window: 100%, max_count: 1, max_age: 2y", "window: 33%, max_count: 5, max_age: 6y")
	strict, err := policy.Load(wifi)
	if err != nil {
		t.Fatal(err)
	}
	none, err := policy.Load(edited(t, "    renewal: {window: 100%, max_count: 1, max_age: 2y, new_key: required, old: keep}\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		set    *policy.Set
		change func(*policy.Facts)
		want   []string
		say    string
	}{
		"the last day":                {s, func(*policy.Facts) {}, nil, ""},
		"the whole life is window":    {s, func(f *policy.Facts) { f.Renewal.NotBefore, f.Renewal.NotAfter = now, now+365*day }, nil, ""},
		"other names":                 {s, func(f *policy.Facts) { f.Renewal.SameNames = 0 }, []string{"renewal.names"}, ""},
		"the same key":                {s, func(f *policy.Facts) { f.Renewal.SameKey = 1 }, []string{"renewal.new_key"}, ""},
		"the same key where it may":   {s, func(f *policy.Facts) { f.Profile, f.Renewal.SameKey = "interop", 1 }, nil, ""},
		"as many renewals as allowed": {s, func(f *policy.Facts) { f.Renewal.Count = 1 }, []string{"renewal.max_count"}, "enroll again with a new challenge"},
		"an expired certificate":      {s, func(f *policy.Facts) { f.Renewal.NotAfter = now - 1 }, []string{"renewal.expired"}, "enroll again with a new challenge"},
		"implausible times":           {s, func(f *policy.Facts) { f.Renewal.LineageStart = -1 }, []string{"renewal.times"}, ""},
		"a lineage that is too old":   {s, func(f *policy.Facts) { f.Renewal.LineageStart = now - 2*365*day }, []string{"renewal.max_age"}, "enroll again with a new challenge"},
		"a profile without renewals":  {none, func(*policy.Facts) {}, []string{"renewal"}, "enroll again with a new challenge"},
		"a day before the window opens": {strict, func(f *policy.Facts) {
			f.Renewal.NotBefore, f.Renewal.NotAfter = now-199*day, now+101*day // 300 days: opens 99 before the end
		}, []string{"renewal.window"}, "allowed from 2026-03-03T12:00:00Z"},
		"the second in which the window opens": {strict, func(f *policy.Facts) {
			f.Renewal.NotBefore, f.Renewal.NotAfter = now-201*day, now+99*day
		}, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := renewed(t)
			tt.change(&f)
			d := tt.set.Decide(f)
			if got := broken(d); !slices.Equal(got, tt.want) {
				t.Fatalf("broke %q, want %q", got, tt.want)
			}
			if tt.say != "" && !strings.Contains(d.Reasons[0].Say, tt.say) {
				t.Errorf("says %q, want %q in it", d.Reasons[0].Say, tt.say)
			}
		})
	}
}

func TestNoCertificateOutlivesItsLineage(t *testing.T) {
	s := testSet(t)
	f := renewed(t)
	f.Renewal.LineageStart = now - 700*day
	c, ok := s.Decide(f).Template()
	if !ok {
		t.Fatal("refused", s.Decide(f).Reasons)
	}
	if want := time.Unix(now+30*day, 0); !c.NotAfter.Equal(want) {
		t.Errorf("ends %v, want %v: two years after the lineage began", c.NotAfter, want)
	}
}

func TestReasonsSayWhereTheRuleIs(t *testing.T) {
	s := testSet(t)
	f := good(t)
	f.Subject[0].Value, f.DNS, f.Digest = "evilcorp.example", nil, "MD5"
	f.IP = []string{"10.0.0.1"}
	lines := map[string]int{"subject.CN.pattern": 9, "clients.digests": 17, "san.ip": 11}
	for _, r := range s.Decide(f).Reasons {
		if r.Source != "demo.yaml" || r.Line != lines[r.Rule] {
			t.Errorf("%s is at %s:%d, want line %d", r.Rule, r.Source, r.Line, lines[r.Rule])
		}
		if len(r.Say) > 200 || strings.Contains(r.Say, "evil") {
			t.Errorf("%s says %q: too long for a device, or it quotes the request", r.Rule, r.Say)
		}
	}
}

func TestChecksListEveryRule(t *testing.T) {
	d := testSet(t).Decide(good(t))
	var rules []string
	for _, c := range d.Checks {
		if !c.OK || c.Say == "" {
			t.Errorf("%+v of a request that keeps all rules", c)
		}
		rules = append(rules, c.Rule)
	}
	for _, want := range []string{"authorization", "clients.ciphers", "key.rsa.min", "key.reuse", "subject.CN.pattern", "subject.CN.required",
		"subject.O.value", "san.dns.must_equal", "san.dns.max", "extensions.ignored", "limits.active_per_subject", "renewal.max_age", "validity.for"} {
		if !slices.Contains(rules, want) {
			t.Errorf("no check %s among %q", want, rules)
		}
	}
}
