package policy_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"fmt"
	"math/big"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/postern-pki/postern/policy"
)

// hosts draws names that are allowed, nearly allowed and hostile.
func hosts() *rapid.Generator[string] {
	return rapid.OneOf(
		rapid.StringMatching(`[a-z0-9-]{1,42}\.corp\.example`),
		rapid.SampledFrom([]string{"dev-1.corp.example", "a.corp.example", "evilcorp.example", "a.corp.example.", "A.corp.example", "a.corp.example\n", "a\x00.corp.example", "", "ü.corp.example"}),
		rapid.StringN(0, 8, 40),
	)
}

func someFacts(t *rapid.T, key policy.KeyFacts) policy.Facts {
	f := policy.Facts{
		Profile: rapid.SampledFrom([]string{"demo", "demo", "interop", "", "x"}).Draw(t, "profile"),
		Kind:    rapid.SampledFrom([]string{policy.KindNew, policy.KindRenewal, policy.KindNewLineage, "x"}).Draw(t, "kind"),
		Now:     rapid.OneOf(rapid.Just[int64](now), rapid.Int64()).Draw(t, "now"), Key: key,
		IP:                  rapid.SliceOfN(rapid.SampledFrom([]string{"10.1.2.3", "fd00::1", "FD00::1", "192.0.2.1", "::ffff:10.0.0.1", "10.0.0.01", "x"}), 0, 2).Draw(t, "ip"),
		Email:               rapid.SliceOfN(rapid.SampledFrom([]string{"a@corp.example", "a@corp.example.evil", "a@b@corp.example"}), 0, 1).Draw(t, "email"),
		URI:                 rapid.SliceOfN(rapid.SampledFrom([]string{"urn:uuid:00000000-0000-0000-0000-000000000000", "http://a@b/", "%"}), 0, 1).Draw(t, "uri"),
		OtherSAN:            rapid.SliceOfN(rapid.Just("otherName"), 0, 1).Draw(t, "other"),
		RequestedExtensions: rapid.SliceOfN(rapid.SampledFrom([]string{"2.5.29.17", "2.5.29.19", "2.5.29.19 CA:TRUE", "2.5.29.15"}), 0, 2).Draw(t, "extensions"),
		CSRSignature:        "SHA256-RSA", Digest: rapid.SampledFrom([]string{"SHA-256", "SHA-1", ""}).Draw(t, "digest"), Cipher: "AES-128-CBC",
		Authorization:    rapid.SampledFrom([]string{"ok", "ok", "challenge: spent"}).Draw(t, "authorization"),
		ActiveForSubject: rapid.Int64Range(0, 3).Draw(t, "active"), KeyOtherSubject: rapid.Int64Range(0, 1).Draw(t, "other key"),
	}
	common := hosts().Draw(t, "common name")
	f.Subject = append(f.Subject, policy.Attribute{Name: "CN", Value: common})
	f.Subject = append(f.Subject, rapid.SliceOfN(attributes(), 0, 2).Draw(t, "more")...)
	f.DNS = rapid.SliceOfN(rapid.OneOf(rapid.Just(common), hosts()), 0, 3).Draw(t, "dns")
	for _, list := range []*[]string{&f.IP, &f.Email, &f.URI, &f.OtherSAN, &f.RequestedExtensions, &f.DNS} {
		if len(*list) == 0 {
			*list = nil
		}
	}
	if rapid.Bool().Draw(t, "renewal facts") {
		f.Renewal = &policy.RenewalFacts{
			Count:        rapid.Int64Range(0, 3).Draw(t, "count"),
			LineageStart: rapid.OneOf(rapid.Just[int64](now-400*day), rapid.Just[int64](now-700*day), rapid.Int64()).Draw(t, "start"),
			NotBefore:    rapid.OneOf(rapid.Just[int64](now-300*day), rapid.Just[int64](now-80*day), rapid.Int64()).Draw(t, "from"),
			NotAfter:     rapid.OneOf(rapid.Just[int64](now+day), rapid.Just[int64](now+2*day), rapid.Int64()).Draw(t, "to"),
			SameNames:    rapid.SampledFrom([]int64{1, 1, 1, 0}).Draw(t, "names"), SameKey: rapid.SampledFrom([]int64{0, 0, 0, 1}).Draw(t, "key"),
		}
	}
	return f
}

// nearlyGood draws a request that is granted, with some of its facts exchanged
// for drawn ones.
func nearlyGood(t *rapid.T, tt *testing.T, key policy.KeyFacts) policy.Facts {
	f := good(tt)
	if rapid.Bool().Draw(t, "renewed") {
		f = renewed(tt)
	}
	f.Profile = rapid.SampledFrom([]string{"demo", "interop"}).Draw(t, "granted by")
	if f.Profile == "interop" {
		f.DNS, f.IP = []string{"a.example", "b.example"}, []string{"10.9.8.7"}
	}
	to, from := reflect.ValueOf(&f).Elem(), reflect.ValueOf(someFacts(t, key))
	for range rapid.IntRange(0, 3).Draw(t, "exchanged") {
		i := rapid.IntRange(0, to.NumField()-1).Draw(t, "field")
		to.Field(i).Set(from.Field(i))
	}
	return f
}

var (
	demoName  = regexp.MustCompile(`^[a-z0-9-]{1,40}\.corp\.example$`)
	interopDN = regexp.MustCompile(`^[a-z0-9-]+(\.[a-z0-9-]+)*\.example$`)
)

// No generated request gets a certificate with anything that its profile does not
// allow. The rules are written out here a second time, by hand.
func TestNoTemplateHasMoreThanTheProfileAllows(tt *testing.T) {
	s, key := testSet(tt), keyFacts(tt, key2048())
	issued := 0
	rapid.Check(tt, func(t *rapid.T) {
		f := nearlyGood(t, tt, key)
		d := s.Decide(f)
		c, ok := d.Template()
		if ok != d.Issue || ok != (len(d.Reasons) == 0) {
			t.Fatalf("Issue %v, template %v, reasons %v", d.Issue, ok, d.Reasons)
		}
		if !ok {
			return
		}
		issued++
		allowed := map[string]func(policy.Facts, *x509.Certificate) error{"demo": demoAllows, "interop": interopAllows}[f.Profile]
		if err := allowed(f, c); err != nil {
			t.Fatalf("%v in %+v from %+v", err, c, f)
		}
		if err := alwaysHolds(f, c); err != nil {
			t.Fatalf("%v in %+v from %+v", err, c, f)
		}
	})
	if issued == 0 {
		tt.Error("no generated request was granted: this test shows nothing")
	}
}

func alwaysHolds(f policy.Facts, c *x509.Certificate) error {
	switch {
	case c.IsCA, !c.BasicConstraintsValid, c.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0, c.MaxPathLen != 0:
		return fmt.Errorf("a CA")
	case len(c.ExtKeyUsage) == 0, slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny):
		return fmt.Errorf("purposes %v", c.ExtKeyUsage)
	case len(c.ExtraExtensions)+len(c.Extensions) > 0, c.SerialNumber != nil, c.PublicKey != nil, len(c.RawIssuer) > 0:
		return fmt.Errorf("more than a template has")
	case f.Authorization != "ok", len(f.OtherSAN) > 0, f.KeyOtherSubject == 1 && f.Profile == "demo":
		return fmt.Errorf("not authorized")
	case !c.NotAfter.After(c.NotBefore), c.NotAfter.Before(time.Unix(f.Now, 0)), c.NotBefore.After(time.Unix(f.Now, 0)):
		return fmt.Errorf("valid from %v to %v", c.NotBefore, c.NotAfter)
	case slices.Contains(f.RequestedExtensions, "2.5.29.19 CA:TRUE"):
		return fmt.Errorf("asked to be a CA")
	}
	return nil
}

func demoAllows(f policy.Facts, c *x509.Certificate) error {
	switch {
	case !demoName.MatchString(c.Subject.CommonName), len(c.Subject.Names) != 2, !slices.Equal(c.Subject.Organization, []string{"Example Corp"}):
		return fmt.Errorf("subject %v", c.Subject)
	case len(c.DNSNames) > 1, len(c.DNSNames) == 1 && c.DNSNames[0] != c.Subject.CommonName:
		return fmt.Errorf("dNSNames %q", c.DNSNames)
	case len(c.IPAddresses)+len(c.EmailAddresses)+len(c.URIs)+len(c.UnknownExtKeyUsage) > 0:
		return fmt.Errorf("names or purposes that are not mentioned")
	case c.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment, !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}):
		return fmt.Errorf("usages")
	case c.NotAfter.Sub(c.NotBefore) > 365*24*time.Hour, f.Digest != "SHA-256", f.ActiveForSubject > 1:
		return fmt.Errorf("validity, digest or count")
	case f.Renewal != nil && (f.Renewal.Count > 0 || f.Renewal.SameKey == 1 || f.Renewal.SameNames == 0 || c.NotAfter.Unix() > f.Renewal.LineageStart+730*day):
		return fmt.Errorf("renewal")
	}
	return nil
}

func interopAllows(_ policy.Facts, c *x509.Certificate) error {
	for _, n := range c.DNSNames {
		if !interopDN.MatchString(n) {
			return fmt.Errorf("dNSName %q", n)
		}
	}
	for _, ip := range c.IPAddresses {
		if ip[0] != 10 && ip[0] != 0xfd {
			return fmt.Errorf("address %v", ip)
		}
	}
	for _, e := range c.EmailAddresses {
		if e != "a@corp.example" {
			return fmt.Errorf("mailbox %q", e)
		}
	}
	for _, n := range c.Subject.Names {
		v, ok := n.Value.(string)
		if !ok || v == "" || strings.ContainsAny(v, "\x00\n\r\t") || len(v) > 64 {
			return fmt.Errorf("attribute %v", n)
		}
	}
	if c.Subject.CommonName == "" || c.NotAfter.Sub(c.NotBefore) > 90*24*time.Hour {
		return fmt.Errorf("CN or validity")
	}
	return nil
}

// A record of the facts replays to the same decision, also from JSON.
func TestFactsAreLossless(t *testing.T) {
	s, key := testSet(t), keyFacts(t, key2048())
	rapid.Check(t, func(t *rapid.T) {
		f := someFacts(t, key)
		if rapid.Bool().Draw(t, "odd key") {
			f.Key = policy.KeyFacts{Type: rapid.String().Draw(t, "type"), Bits: rapid.Int64().Draw(t, "bits"), Exponent: rapid.Int64().Draw(t, "e"), Curve: "P-256"}
		}
		got, err := policy.FactsOf(f.Object())
		if err != nil || !reflect.DeepEqual(got, f) {
			t.Fatalf("%+v became %+v (%v)", f, got, err)
		}
		if !reflect.DeepEqual(s.Decide(got), s.Decide(f)) {
			t.Fatal("the replay decides otherwise")
		}
	})
}

// object stands for the map type of a log.
type object map[string]any

func TestFactsFromARecord(t *testing.T) {
	f := renewed(t)
	text, err := json.Marshal(f.Object())
	if err != nil {
		t.Fatal(err)
	}
	var plain map[string]any
	if err := json.Unmarshal(text, &plain); err != nil {
		t.Fatal(err)
	}
	nested := f.Object()
	nested["key"], nested["renewal"] = object(nested["key"].(map[string]any)), object(nested["renewal"].(map[string]any))
	nested["subject"] = []any{object{"name": "CN", "value": "dev-1.corp.example"}}
	nested["dns"] = []any{"dev-1.corp.example"}
	for name, o := range map[string]map[string]any{"JSON": plain, "a log's own types": nested} {
		if got, err := policy.FactsOf(o); err != nil || !reflect.DeepEqual(got, f) {
			t.Errorf("%s: %+v (%v), want %+v", name, got, err, f)
		}
	}
	for name, change := range map[string]func(map[string]any){
		"an unknown key":       func(o map[string]any) { o["shade"] = "red" },
		"a number for text":    func(o map[string]any) { o["profile"] = int64(1) },
		"text for a list":      func(o map[string]any) { o["dns"] = "x" },
		"a fraction":           func(o map[string]any) { o["now"] = 1.5 },
		"nothing for a number": func(o map[string]any) { o["now"] = nil },
		"text for an object":   func(o map[string]any) { o["key"] = "x" },
		"a list of numbers":    func(o map[string]any) { o["subject"] = []any{int64(1)} },
	} {
		o := f.Object()
		change(o)
		if got, err := policy.FactsOf(o); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// The facts hold nothing that a record can not: text, integers that a double can
// hold, lists and objects.
func TestObjectHasStringsAndIntegersOnly(t *testing.T) {
	var walk func(v any) bool
	walk = func(v any) bool {
		switch x := v.(type) {
		case string, []string:
			return true
		case int64:
			return x < 1<<53 && x > -1<<53
		case []any:
			return !slices.ContainsFunc(x, func(e any) bool { return !walk(e) })
		case map[string]any:
			for _, e := range x {
				if !walk(e) {
					return false
				}
			}
			return true
		}
		return false
	}
	f := renewed(t)
	f.Key.Exponent, f.Renewal.Count = 1<<62, -1<<60
	if o := f.Object(); !walk(o) {
		t.Errorf("%v", o)
	}
}

func TestTemplate(t *testing.T) {
	s := testSet(t)
	f := good(t)
	f.Profile, f.Now = "interop", now
	f.Subject = []policy.Attribute{
		{Name: "CN", Value: "Zoë"}, {Name: "1.3.6.1.4.1.55555.1", Value: "asset-7"}, {Name: "OU", Value: "One"}, {Name: "C", Value: "DE"}, {Name: "OU", Value: "Two"},
	}
	f.DNS, f.IP, f.Email, f.URI = []string{"b.example", "a.example"}, []string{"10.0.0.1", "fd00::1"}, []string{"a@corp.example"}, []string{"urn:uuid:00000000-0000-0000-0000-000000000000"}
	d := s.Decide(f)
	c, ok := d.Template()
	if !ok {
		t.Fatal(d.Reasons)
	}
	var order []string
	for _, n := range c.Subject.Names {
		order = append(order, n.Type.String()+"="+n.Value.(string))
	}
	if want := []string{"2.5.4.6=DE", "2.5.4.11=One", "2.5.4.11=Two", "2.5.4.3=Zoë", "1.3.6.1.4.1.55555.1=asset-7"}; !slices.Equal(order, want) {
		t.Errorf("subject %q, want the profile's order %q", order, want)
	}
	if len(c.IPAddresses) != 2 || len(c.IPAddresses[0]) != 4 || len(c.URIs) != 1 || len(c.EmailAddresses) != 1 || !slices.Equal(c.DNSNames, f.DNS) {
		t.Errorf("names %v %v %v %v", c.DNSNames, c.IPAddresses, c.EmailAddresses, c.URIs)
	}
	ike, own := asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 17}, asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 55555, 2}
	if len(c.UnknownExtKeyUsage) != 2 || !c.UnknownExtKeyUsage[0].Equal(ike) || !c.UnknownExtKeyUsage[1].Equal(own) {
		t.Errorf("purposes %v", c.UnknownExtKeyUsage)
	}
	if c.NotBefore != time.Unix(now-day, 0).UTC() || c.NotAfter.Sub(c.NotBefore) != 90*24*time.Hour {
		t.Errorf("valid from %v to %v", c.NotBefore, c.NotAfter)
	}
	c.DNSNames[0] = "evil.example"
	if again, _ := d.Template(); again.DNSNames[0] != "b.example" {
		t.Error("a caller changed the decision")
	}
}

// The template survives being signed and parsed, with each value in the string
// type that RFC 5280 asks for.
func TestTemplateSigned(t *testing.T) {
	f := good(t)
	f.Profile = "interop"
	f.Subject = []policy.Attribute{{Name: "CN", Value: "Zoë"}, {Name: "C", Value: "DE"}}
	f.DNS, f.URI = []string{"a.example"}, []string{"urn:uuid:00000000-0000-0000-0000-000000000000"}
	c, ok := testSet(t).Decide(f).Template()
	if !ok {
		t.Fatal("refused")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber = big.NewInt(1)
	der, err := x509.CreateCertificate(rand.Reader, c, &x509.Certificate{Subject: pkix.Name{CommonName: "CA"}}, key2048(), key)
	if err != nil {
		t.Fatal(err)
	}
	got, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	want := "\x30\x1c\x31\x0b\x30\x09\x06\x03\x55\x04\x06\x13\x02DE" + "\x31\x0d\x30\x0b\x06\x03\x55\x04\x03\x0c\x04Zo\xc3\xab"
	if string(got.RawSubject) != want {
		t.Errorf("subject %x, want %x", got.RawSubject, want)
	}
	if got.IsCA || !got.BasicConstraintsValid || !slices.Equal(got.DNSNames, f.DNS) || got.URIs[0].String() != f.URI[0] || got.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("%+v", got)
	}
}

func TestExtensionFact(t *testing.T) {
	basic := asn1.ObjectIdentifier{2, 5, 29, 19}
	for name, tt := range map[string]struct {
		value []byte
		want  string
	}{
		"cA TRUE":    {[]byte{0x30, 3, 1, 1, 0xff}, "2.5.29.19 CA:TRUE"},
		"no cA":      {[]byte{0x30, 0}, "2.5.29.19"},
		"garbage":    {[]byte{0xff}, "2.5.29.19 CA:TRUE"},
		"cA TRUE, 5": {[]byte{0x30, 6, 1, 1, 0xff, 2, 1, 5}, "2.5.29.19 CA:TRUE"},
	} {
		if got := policy.ExtensionFact(basic, tt.value); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
	if got := policy.ExtensionFact(asn1.ObjectIdentifier{2, 5, 29, 15}, []byte{0xff}); got != "2.5.29.15" {
		t.Errorf("key usage: %q", got)
	}
}
