package pkcs10_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/pkcs10"
)

func parse(t *testing.T, der []byte) *pkcs10.Request {
	t.Helper()
	r, err := pkcs10.Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestAgreesWithStandardLibrary on requests that both can read.
func TestAgreesWithStandardLibrary(t *testing.T) {
	u, err := url.Parse("urn:uuid:1234")
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range keys(t) {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
			Subject:        pkix.Name{CommonName: "dëvice", Organization: []string{"Example Corp"}},
			DNSNames:       []string{"a.example", "b.example"},
			EmailAddresses: []string{"a@example.com"},
			IPAddresses:    []net.IP{net.IPv4(192, 0, 2, 1), net.ParseIP("2001:db8::1")},
			URIs:           []*url.URL{u},
		}, key)
		if err != nil {
			t.Fatal(err)
		}
		want, err := x509.ParseCertificateRequest(der)
		if err != nil {
			t.Fatal(err)
		}
		got := parse(t, der)
		if err := got.CheckSignature(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.Equal(got.RawTBS, want.RawTBSCertificateRequest) || !bytes.Equal(got.RawSubject, want.RawSubject) ||
			!bytes.Equal(got.RawSPKI, want.RawSubjectPublicKeyInfo) || got.SignatureAlgorithm != want.SignatureAlgorithm {
			t.Errorf("%s: raw parts or algorithm differ", name)
		}
		if !got.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(want.PublicKey) {
			t.Errorf("%s: key differs", name)
		}
		ips := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
		if !slices.Equal(got.DNSNames, want.DNSNames) || !slices.Equal(got.Emails, want.EmailAddresses) || !slices.Equal(got.IPs, ips) || !slices.Equal(got.URIs, []string{"urn:uuid:1234"}) {
			t.Errorf("%s: names %v %v %v %v", name, got.DNSNames, got.Emails, got.IPs, got.URIs)
		}
		subject := []pkcs10.Name{{Type: asn1.ObjectIdentifier{2, 5, 4, 10}, Value: "Example Corp"}, {Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "dëvice"}}
		if d := cmp.Diff(subject, got.Subject); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

// Covers: S-092, S-093, S-094
func TestChallengeStrings(t *testing.T) {
	for name, tt := range map[string]struct {
		value []byte
		want  string
		err   error
	}{
		"PrintableString":           {el(0x13, []byte("secret")), "secret", nil},
		"PrintableString with @":    {el(0x13, []byte("se_cr@t")), "se_cr@t", nil},
		"UTF8String":                {el(0x0c, []byte("sécret")), "sécret", nil},
		"IA5String":                 {el(0x16, []byte("secret")), "secret", nil},
		"TeletexString":             {el(0x14, []byte("s\xe9cret")), "sécret", nil},
		"BMPString":                 {el(0x1e, []byte("\x00s\x00\xe9")), "sé", nil},
		"BMPString with a pair":     {el(0x1e, []byte("\xd8\x3d\xde\x00")), "😀", nil},
		"a NUL is kept":             {el(0x0c, []byte("a\x00b")), "a\x00b", nil},
		"UniversalString":           {el(0x1c, []byte("\x00\x00\x00s\x00\x01\xf6\x00")), "s😀", nil},
		"VisibleString":             {el(0x1a, []byte("secret")), "secret", nil},
		"NumericString":             {el(0x12, []byte("0123")), "0123", nil},
		"part of a UniversalString": {el(0x1c, []byte("\x00\x00s")), "", cms.ErrMalformed},
		"eight kilobytes":           {el(0x0c, bytes.Repeat([]byte("x"), 8192)), strings.Repeat("x", 8192), nil},
		"half a BMP character":      {el(0x1e, []byte("\x00s\x00")), "", cms.ErrMalformed},
		"half a pair":               {el(0x1e, []byte("\xd8\x3d")), "", cms.ErrMalformed},
		"half a pair and a letter":  {el(0x1e, []byte("\xd8\x3d\x00a")), "", cms.ErrMalformed},
		"a pair the wrong way":      {el(0x1e, []byte("\xde\x00\xd8\x3d")), "", cms.ErrMalformed},
		"a UTF8String that is none": {el(0x0c, []byte("\xff")), "", cms.ErrMalformed},
		"an OCTET STRING":           {el(4, []byte("secret")), "", cms.ErrMalformed},
		"two values":                {slices.Concat(el(0x0c, []byte("a")), el(0x0c, []byte("b"))), "", cms.ErrMalformed},
		"no value":                  {nil, "", cms.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := pkcs10.Parse(build(t, form{attributes: [][]byte{attribute(t, challenge, tt.value)}}))
			if !errors.Is(err, tt.err) || err != nil && tt.err == nil {
				t.Fatalf("got %v, want %v", err, tt.err)
			}
			if err == nil && (r.Challenge == nil || string(r.Challenge.Bytes()) != tt.want) {
				t.Errorf("got another challenge, want %q", tt.want)
			}
		})
	}
	for name, f := range map[string]form{"nothing": {}, "an empty one": {attributes: [][]byte{attribute(t, challenge, el(0x0c))}}} {
		if r := parse(t, build(t, f)); r.Challenge != nil {
			t.Errorf("a challenge out of %s", name)
		}
	}
}

// Covers: S-095
func TestExtensionRequests(t *testing.T) {
	dns := el(0x30, el(0x82, []byte("a.example")))
	for name, id := range extensionRequests {
		critical := el(0x30, oid(t, keyUse...), el(1, []byte{0xff}), el(4, []byte{3, 2, 7, 0x80}))
		r := parse(t, build(t, form{attributes: [][]byte{attribute(t, id, el(0x30, extension(t, altName, dns), critical))}}))
		if !slices.Equal(r.DNSNames, []string{"a.example"}) || len(r.Extensions) != 2 || r.Extensions[0].Critical || !r.Extensions[1].Critical || len(r.Attributes) != 0 {
			t.Errorf("%s: %v %v", name, r.DNSNames, r.Extensions)
		}
	}
	r := parse(t, build(t, form{attributes: [][]byte{
		attribute(t, extensionRequest, el(0x30, extension(t, altName, dns))),
		attribute(t, extensionRequests["Microsoft"], el(0x30, extension(t, keyUse, []byte{3, 2, 7, 0x80}))),
	}}))
	if len(r.Extensions) != 2 {
		t.Errorf("two requests for different extensions: %v", r.Extensions)
	}
}

func TestNames(t *testing.T) {
	other := el(0xa0, oid(t, 1, 3, 6, 1, 4, 1, 311, 20, 2, 3), el(0xa0, el(0x0c, []byte("upn"))))
	r := parse(t, build(t, form{attributes: [][]byte{sans(t,
		el(0x82, []byte("a\x00b.example")), el(0x81, []byte("a@b")), el(0x86, []byte("urn:x")), el(0x87, []byte{192, 0, 2, 1}), el(0x87, make([]byte, 16)),
		other, el(0xa3), el(0xa4, el(0x30)), el(0xa5), el(0x88, []byte{42, 3}), el(0x82),
	)}}))
	want := []string{"1.3.6.1.4.1.311.20.2.3", "x400Address", "directoryName", "ediPartyName", "registeredID"}
	if !slices.Equal(r.OtherSANs, want) {
		t.Errorf("other names %v, want %v", r.OtherSANs, want)
	}
	if !slices.Equal(r.DNSNames, []string{"a\x00b.example", ""}) || len(r.IPs) != 2 || r.Emails[0] != "a@b" || r.URIs[0] != "urn:x" {
		t.Errorf("names %q %v %q %q", r.DNSNames, r.IPs, r.Emails, r.URIs)
	}
	ava := func(kind int, tag byte, s string) []byte { return el(0x30, oid(t, 2, 5, 4, kind), el(tag, []byte(s))) }
	r = parse(t, build(t, form{subject: el(0x30,
		el(0x31, ava(10, 0x1e, "\x00E\x00x")), el(0x31, ava(3, 0x0c, "a\x00b"), ava(5, 0x13, "1_2")), el(0x31, ava(11, 0x1c, "\x00\x00\x00U")), el(0x31, ava(11, 0x14, "\xfc")),
	)}))
	name := func(kind int, value string, multi bool) pkcs10.Name {
		return pkcs10.Name{Type: asn1.ObjectIdentifier{2, 5, 4, kind}, Value: value, Multi: multi}
	}
	subject := []pkcs10.Name{name(10, "Ex", false), name(3, "a\x00b", true), name(5, "1_2", true), name(11, "U", false), name(11, "ü", false)}
	if d := cmp.Diff(subject, r.Subject); d != "" {
		t.Error(d)
	}
	if r := parse(t, build(t, form{subject: el(0x30)})); len(r.Subject) != 0 {
		t.Errorf("an empty subject has %v", r.Subject)
	}
}

func TestRefused(t *testing.T) {
	null := el(5)
	cn := el(0x30, oid(t, 2, 5, 4, 3), el(0x0c, []byte("x")))
	ext := el(0x30, extension(t, keyUse, []byte{3, 2, 7, 0x80}))
	request := func(a ...[]byte) []byte { return build(t, form{attributes: a}) }
	good := build(t, form{attributes: [][]byte{}})
	secret := attribute(t, challenge, el(0x0c, []byte("a")))
	for name, tt := range map[string]struct {
		der  []byte
		want error
	}{
		"nothing":                        {nil, cms.ErrMalformed},
		"something after the request":    {append(bytes.Clone(good), 0), cms.ErrTrailing},
		"a request cut short":            {good[:len(good)-1], cms.ErrMalformed},
		"something after the signature":  {afterSignature(t, good), cms.ErrTrailing},
		"something after the attributes": {build(t, form{attributes: [][]byte{}, afterAttributes: null}), cms.ErrTrailing},
		"something after an attribute":   {request(el(0x30, oid(t, 1, 2, 3), el(0x31), null)), cms.ErrTrailing},
		"something among the attributes": {request(null), cms.ErrMalformed},
		"version 1":                      {build(t, form{version: el(2, []byte{1})}), cms.ErrMalformed},
		"a challenge twice":              {request(secret, secret), cms.ErrMalformed},
		"an unknown attribute twice":     {request(attribute(t, unstructuredName), attribute(t, unstructuredName)), cms.ErrMalformed},
		"an extensionRequest twice":      {request(attribute(t, extensionRequest, ext), attribute(t, extensionRequest, ext)), cms.ErrMalformed},
		"an extension by two OIDs":       {request(attribute(t, extensionRequest, ext), attribute(t, extensionRequests["Microsoft"], ext)), cms.ErrMalformed},
		"an extensionRequest of two":     {request(attribute(t, extensionRequest, ext, ext)), cms.ErrMalformed},
		"an extensionRequest of none":    {request(attribute(t, extensionRequest)), cms.ErrMalformed},
		"an extension twice":             {request(attribute(t, extensionRequest, el(0x30, extension(t, keyUse, null), extension(t, keyUse, null)))), cms.ErrMalformed},
		"something after an extension":   {request(attribute(t, extensionRequest, el(0x30, el(0x30, oid(t, 1, 2), el(4), null)))), cms.ErrTrailing},
		"a criticality that is not DER":  {request(attribute(t, extensionRequest, el(0x30, el(0x30, oid(t, 1, 2), el(1, []byte{1}), el(4))))), cms.ErrMalformed},
		"something after the names":      {request(attribute(t, extensionRequest, el(0x30, extension(t, altName, append(el(0x30), 5, 0))))), cms.ErrTrailing},
		"an IP address of five octets":   {request(sans(t, el(0x87, make([]byte, 5)))), cms.ErrMalformed},
		"an IP address with its mask":    {request(sans(t, el(0x87, make([]byte, 8)))), cms.ErrMalformed},
		"a name of no kind":              {request(sans(t, el(0x89))), cms.ErrMalformed},
		"a DNS name that is not UTF-8":   {request(sans(t, el(0x82, []byte{0xff}))), cms.ErrMalformed},
		"an otherName without its value": {request(sans(t, el(0xa0, oid(t, 1, 2, 3)))), cms.ErrMalformed},
		"257 names":                      {request(sans(t, slices.Repeat([][]byte{el(0x82)}, 257)...)), cms.ErrTooMany},
		"65 attributes of the subject":   {build(t, form{subject: el(0x30, slices.Repeat([][]byte{el(0x31, cn)}, 65)...)}), cms.ErrTooMany},
		"an empty RDN":                   {build(t, form{subject: el(0x30, el(0x31))}), cms.ErrMalformed},
		"a subject that is no string":    {build(t, form{subject: el(0x30, el(0x31, el(0x30, oid(t, 2, 5, 4, 3), null)))}), cms.ErrMalformed},
		"something after a name's value": {build(t, form{subject: el(0x30, el(0x31, el(0x30, oid(t, 2, 5, 4, 3), el(0x0c), null)))}), cms.ErrTrailing},
		"a key and something":            {build(t, form{spki: el(0x30, el(0x30, oid(t, 1, 2)), el(3, []byte{0}), null)}), cms.ErrMalformed},
		"65 values of an attribute":      {request(attribute(t, unstructuredName, slices.Repeat([][]byte{null}, 65)...)), cms.ErrTooMany},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := pkcs10.Parse(tt.der); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// afterSignature adds an element at the end of the outermost SEQUENCE.
func afterSignature(t *testing.T, der []byte) []byte {
	t.Helper()
	var raw asn1.RawValue
	if _, err := asn1.Unmarshal(der, &raw); err != nil {
		t.Fatal(err)
	}
	return el(0x30, raw.Bytes, el(5))
}

func TestAttributesAreKept(t *testing.T) {
	a, b := el(0x16, []byte("a")), el(0x16, []byte("b"))
	r := parse(t, build(t, form{attributes: [][]byte{attribute(t, unstructuredName, a, b), attribute(t, challenge, a)}}))
	want := []cms.Attribute{{Type: unstructuredName, Value: a}, {Type: unstructuredName, Value: b}}
	if d := cmp.Diff(want, r.Attributes); d != "" {
		t.Error(d)
	}
}

func TestCheckSignature(t *testing.T) {
	for name, key := range keys(t) {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "x"}}, key)
		if err != nil {
			t.Fatal(err)
		}
		r := parse(t, der)
		changed := bytes.Clone(der)
		changed[len(changed)-1] ^= 1
		if err := parse(t, changed).CheckSignature(); !errors.Is(err, cms.ErrSignature) {
			t.Errorf("%s, signature changed: %v", name, err)
		}
		changed = bytes.Replace(der, el(0x0c, []byte("x")), el(0x0c, []byte("y")), 1)
		changed = bytes.Replace(changed, el(0x13, []byte("x")), el(0x13, []byte("y")), 1)
		if err := parse(t, changed).CheckSignature(); !errors.Is(err, cms.ErrSignature) {
			t.Errorf("%s, name changed: %v", name, err)
		}
		for _, a := range []x509.SignatureAlgorithm{0, x509.MD5WithRSA, x509.SHA256WithRSAPSS, x509.DSAWithSHA256, 99} {
			r.SignatureAlgorithm = a
			if err := r.CheckSignature(); !errors.Is(err, cms.ErrAlgorithm) {
				t.Errorf("%s, %v: %v", name, a, err)
			}
		}
	}
}

// TestOpenSSLRequests: what openssl req makes, with each digest and string type.
//
// Covers: S-092, S-094
func TestOpenSSLRequests(t *testing.T) {
	for _, args := range [][]string{
		{"-newkey", "rsa:2048", "-sha1"}, {"-newkey", "rsa:2048", "-sha256"}, {"-newkey", "rsa:2048", "-sha512"},
		{"-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-sha384"}, {"-newkey", "ed25519"},
	} {
		config := "[req]\ndistinguished_name=dn\nattributes=at\nprompt=no\nreq_extensions=ext\n[dn]\nO=Example Corp\nCN=device\n[at]\nchallengePassword=se_cr@t\n[ext]\nsubjectAltName=DNS:a.example,IP:192.0.2.1\n"
		cmd := exec.CommandContext(t.Context(), "openssl", append([]string{"req", "-new", "-nodes", "-keyout", "/dev/null", "-outform", "DER", "-config", "/dev/stdin"}, args...)...)
		cmd.Stdin = strings.NewReader(config)
		der, err := cmd.Output()
		if err != nil {
			t.Fatalf("openssl %v: %v", args, err)
		}
		r := parse(t, der)
		if err := r.CheckSignature(); err != nil {
			t.Errorf("%v: %v", args, err)
		}
		if r.Challenge == nil || string(r.Challenge.Bytes()) != "se_cr@t" || !slices.Equal(r.DNSNames, []string{"a.example"}) || len(r.IPs) != 1 || len(r.Subject) != 2 {
			t.Errorf("%v: %v %v %v", args, r.DNSNames, r.IPs, r.Subject)
		}
	}
}

// TestSecretsCannotBePrinted, by any verb, wherever they stand.
func TestSecretsCannotBePrinted(t *testing.T) {
	const clear = "hunter2hunter2"
	r := parse(t, build(t, form{attributes: [][]byte{attribute(t, challenge, el(0x0c, []byte(clear)))}}))
	type hidden struct {
		pw pkcs10.Password
		p  *pkcs10.Password
	}
	values := []any{
		*r.Challenge, r.Challenge, []pkcs10.Password{*r.Challenge}, map[string]pkcs10.Password{"x": *r.Challenge}, hidden{*r.Challenge, r.Challenge},
		struct{ P any }{*r.Challenge}, [1]pkcs10.Password{*r.Challenge}, r, *r, []*pkcs10.Request{r},
	}
	forms := []string{clear, fmt.Sprintf("%x", clear), fmt.Sprintf("%X", clear), strings.Trim(fmt.Sprintf("%d", []byte(clear)), "[]"), fmt.Sprintf("% x", clear)}
	for verb := rune('A'); verb <= 'z'; verb++ {
		for _, flag := range []string{"", "+", "#", " ", "-40", "040"} {
			for _, v := range values {
				switch v.(type) {
				case *pkcs10.Request, pkcs10.Request, []*pkcs10.Request:
					if verb == 'p' || verb == 'w' {
						continue // fmt asks no methods: see Request
					}
				}
				s := fmt.Sprintf("%"+flag+string(verb), v)
				for _, f := range forms {
					if strings.Contains(s, f) {
						t.Errorf("%%%s%c of %T prints it", flag, verb, v)
					}
				}
			}
		}
	}
	for _, v := range values {
		if b, err := json.Marshal(v); err != nil || bytes.Contains(b, []byte(clear)) || bytes.Contains(b, []byte("aHVudGVy")) {
			t.Errorf("JSON of %T: %s, %v", v, b, err)
		}
	}
	if got := r.Challenge.String() + r.Challenge.GoString(); strings.Contains(got, clear) {
		t.Error(got)
	}
	if (pkcs10.Password{}).Bytes() != nil {
		t.Error("the zero Password has octets")
	}
}

func BenchmarkParseAndCheck(b *testing.B) {
	der := build(b, form{attributes: [][]byte{attribute(b, challenge, el(0x0c, []byte("x"))), sans(b, el(0x82, []byte("a.example")))}})
	b.ReportAllocs()
	for b.Loop() {
		r, err := pkcs10.Parse(der)
		if err != nil || r.CheckSignature() != nil {
			b.Fatal(err)
		}
	}
}
