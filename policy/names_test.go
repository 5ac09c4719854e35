package policy_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/postern-pki/postern/policy"
)

func TestParseSubject(t *testing.T) {
	for in, want := range map[string][]policy.Attribute{
		"":                          nil,
		"CN=dev-1.corp.example":     {{Name: "CN", Value: "dev-1.corp.example"}},
		"CN=a,O=b":                  {{Name: "O", Value: "b"}, {Name: "CN", Value: "a"}}, // the last RDN comes first in the text
		"cn=a, o=b":                 {{Name: "O", Value: "b"}, {Name: "CN", Value: "a"}},
		`O=Corp\, Inc`:              {{Name: "O", Value: "Corp, Inc"}},
		`CN=\ a\ `:                  {{Name: "CN", Value: " a "}},
		`CN=\#1`:                    {{Name: "CN", Value: "#1"}},
		`CN=a\00b`:                  {{Name: "CN", Value: "a\x00b"}},
		`CN=Lu\C4\8Di\C4\87`:        {{Name: "CN", Value: "Lučić"}}, // RFC 4514, section 4
		"1.3.6.1.4.1.55555.1=x":     {{Name: "1.3.6.1.4.1.55555.1", Value: "x"}},
		"2.5.4.3=x":                 {{Name: "CN", Value: "x"}},
		"DC=corp,DC=example":        {{Name: "DC", Value: "example"}, {Name: "DC", Value: "corp"}},
		"E=a@b.example":             {{Name: "emailAddress", Value: "a@b.example"}},
		`CN=James \"Jim\" Smith\\a`: {{Name: "CN", Value: `James "Jim" Smith\a`}},
		"CN=a=b":                    {{Name: "CN", Value: "a=b"}},
	} {
		got, err := policy.ParseSubject(in)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("ParseSubject(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
	for name, in := range map[string]string{
		"no value": "CN", "an empty value": "CN=", "an empty part": "CN=a,,O=b", "a comma at the end": "CN=a,",
		"a multi-valued RDN": "CN=a+O=b", "an unknown type": "XX=a", "a hex value": "CN=#0c0161", "a quoted value": `CN="a"`,
		"a leading space": "CN= a", "a trailing space": "CN=a ", "a lone backslash": `CN=a\`, "half a hex pair": `CN=\4`,
		"a backslash before a letter": `CN=\z`, "hex that is not UTF-8": `CN=\ff`, "a bad OID": "1.40.1.=x", "an OID out of range": "3.1=x", "a semicolon": "CN=a;O=b",
		"an OID with a zero before": "1.02=x",
	} {
		if got, err := policy.ParseSubject(in); !errors.Is(err, policy.ErrSubject) {
			t.Errorf("%s: ParseSubject(%q) = %q, %v", name, in, got, err)
		}
	}
}

// FuzzParseSubject checks that what is read is written so that it is read again.
func FuzzParseSubject(f *testing.F) {
	for _, s := range []string{"CN=a,O=Corp\\, Inc", `CN=\ \C4\8D\#\+`, "1.2.3=x,DC=a,DC=b", `CN=a\00b`, "CN=#00", "CN=a+O=b", "CN=" + strings.Repeat("\x18", 3000)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := policy.ParseSubject(s)
		if err != nil {
			return
		}
		if !utf8.ValidString(s) {
			t.Errorf("accepted octets that are not UTF-8: %q", s)
		}
		text := policy.FormatSubject(a)
		if b, err := policy.ParseSubject(text); err != nil || !slices.Equal(a, b) {
			t.Errorf("%q is %q, written %q, read %q (%v)", s, a, text, b, err)
		}
	})
}

func TestFormatSubjectReadsBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		subject := rapid.SliceOfN(attributes(), 1, 8).Draw(t, "subject")
		text := policy.FormatSubject(subject)
		if got, err := policy.ParseSubject(text); err != nil || !slices.Equal(got, subject) {
			t.Fatalf("%q was written %q and read %q (%v)", subject, text, got, err)
		}
	})
}

// attributes draws attributes of any value but none.
func attributes() *rapid.Generator[policy.Attribute] {
	return rapid.Custom(func(t *rapid.T) policy.Attribute {
		return policy.Attribute{
			Name:  rapid.SampledFrom([]string{"CN", "O", "OU", "DC", "C", "SERIALNUMBER", "1.2.3.4", "1.3.6.1.4.1.55555.1"}).Draw(t, "name"),
			Value: rapid.StringN(1, 20, 80).Draw(t, "value"),
		}
	})
}

func TestNamesEqual(t *testing.T) {
	cn := func(v string) []policy.Attribute { return []policy.Attribute{{Name: "CN", Value: v}} }
	for name, tt := range map[string]struct {
		a, b  policy.Names
		equal bool
	}{
		"the same":                       {policy.Names{Subject: cn("a")}, policy.Names{Subject: cn("a")}, true},
		"another case in a dNSName":      {policy.Names{DNS: []string{"A.example"}}, policy.Names{DNS: []string{"a.example"}}, true},
		"another case in a CN":           {policy.Names{Subject: cn("A")}, policy.Names{Subject: cn("a")}, false},
		"another order of dNSNames":      {policy.Names{DNS: []string{"a", "b"}}, policy.Names{DNS: []string{"b", "a"}}, true},
		"one dNSName more":               {policy.Names{DNS: []string{"a"}}, policy.Names{DNS: []string{"a", "b"}}, false},
		"a dNSName for a URI":            {policy.Names{DNS: []string{"a"}}, policy.Names{URI: []string{"a"}}, false},
		"another order of types":         {policy.Names{Subject: []policy.Attribute{{Name: "O", Value: "o"}, {Name: "CN", Value: "c"}}}, policy.Names{Subject: []policy.Attribute{{Name: "CN", Value: "c"}, {Name: "O", Value: "o"}}}, true},
		"another order inside a type":    {policy.Names{Subject: []policy.Attribute{{Name: "DC", Value: "a"}, {Name: "DC", Value: "b"}}}, policy.Names{Subject: []policy.Attribute{{Name: "DC", Value: "b"}, {Name: "DC", Value: "a"}}}, false},
		"an attribute twice":             {policy.Names{Subject: cn("a")}, policy.Names{Subject: append(cn("a"), cn("a")...)}, false},
		"a value that looks like a list": {policy.Names{DNS: []string{"a", "b"}}, policy.Names{DNS: []string{"a\x00dns\x00b"}}, false},
		"a Kelvin sign":                  {policy.Names{DNS: []string{"k.example"}}, policy.Names{DNS: []string{"\u212a.example"}}, false},
		"an address in another form":     {policy.Names{IP: []string{"fd00::1"}}, policy.Names{IP: []string{"FD00:0::1"}}, true},
	} {
		if tt.a.Equal(tt.b) != tt.equal || tt.b.Equal(tt.a) != tt.equal || (tt.a.Digest() == tt.b.Digest()) != tt.equal {
			t.Errorf("%s: Equal %v, want %v", name, tt.a.Equal(tt.b), tt.equal)
		}
	}
}

func TestWhatAChallengeBinds(t *testing.T) {
	s := testSet(t)
	const host = "dev-1.corp.example"
	cn := []policy.Attribute{{Name: "CN", Value: host}}
	request := func(dns ...string) policy.Names {
		f := good(t)
		f.DNS = dns
		return s.Decide(f).Names()
	}
	for name, tt := range map[string]struct {
		challenge policy.Names
		issued    policy.Names
		ok        bool
	}{
		"the same subject":                              {policy.Names{Subject: cn}, request(), true},
		"a dNSName that must_equal brings":              {policy.Names{Subject: cn}, request(host), true},
		"a dNSName that is bound":                       {policy.Names{Subject: cn, DNS: []string{"DEV-1.corp.example"}}, request(host), true},
		"a dNSName that is bound and not there":         {policy.Names{Subject: cn, DNS: []string{host}}, request(), false},
		"what the profile sets, in the challenge too":   {policy.Names{Subject: append([]policy.Attribute{{Name: "O", Value: "Example Corp"}}, cn...)}, request(host), true},
		"another name":                                  {policy.Names{Subject: []policy.Attribute{{Name: "CN", Value: "dev-2.corp.example"}}}, request(), false},
		"no name":                                       {policy.Names{}, request(), false},
		"an address that is bound and can not be there": {policy.Names{Subject: cn, IP: []string{"10.0.0.1"}}, request(), false},
	} {
		bound, _ := s.Bind("demo", tt.challenge)
		if got := bound.Binds(tt.issued); got != tt.ok {
			t.Errorf("%s: binds %v, want %v", name, got, tt.ok)
		}
	}
	f := good(t)
	f.Profile, f.DNS = "interop", []string{"a.example"}
	bound, reasons := s.Bind("interop", policy.Names{Subject: cn})
	if len(reasons) > 0 || bound.Binds(s.Decide(f).Names()) {
		t.Errorf("a dNSName that nobody bound is let through (%v)", reasons)
	}
	if _, reasons := s.Bind("demo", policy.Names{Subject: cn, IP: []string{"10.0.0.1"}}); len(reasons) != 1 || reasons[0].Rule != "san.ip" {
		t.Errorf("a challenge that nothing can meet: %v", reasons)
	}
	if _, reasons := s.Bind("nobody", policy.Names{Subject: cn}); len(reasons) == 0 {
		t.Error("a challenge of no profile")
	}
}
