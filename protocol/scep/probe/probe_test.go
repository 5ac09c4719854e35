package probe_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep/probe"
	"github.com/postern-pki/postern/test/responder"
)

func run(t *testing.T, s *responder.Server, insecure bool) map[string]probe.Finding {
	t.Helper()
	roots := x509.NewCertPool()
	if s.Certificate() != nil {
		roots.AddCert(s.Certificate())
	}
	r, err := probe.Run(context.Background(), probe.Options{URL: s.URL + "/scep/x", Roots: roots, Insecure: insecure}.WithKey(s.Keys()[0]))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]probe.Finding{}
	for _, f := range r.Findings {
		if _, twice := found[f.ID]; twice || f.Says == "" || f.Saw == "" {
			t.Errorf("%s: twice %t, says %q, saw %q", f.ID, twice, f.Says, f.Saw)
		}
		found[f.ID] = f
	}
	return found
}

// A server that is right in all is called so: each fault below is found because
// it is there, not because the probe says so of everybody. (The test server's own
// TLS certificate is of Go's making, for decades.)
func TestAGoodServer(t *testing.T) {
	s := responder.New(t)
	s.StartTLS()
	for id, f := range run(t, s, false) {
		if f.Severity.AtLeast(probe.Weak) && id != "tls.lifetime" {
			t.Errorf("%s %s: %s", f.Severity, id, f.Saw)
		}
	}
}

// A fault is one thing that a server gets wrong.
type fault struct {
	make func(s *responder.Server)
	id   string
	as   probe.Severity
	saw  string
}

func faults(t *testing.T) map[string]fault {
	replace := func(last int, value []byte) func(*responder.Server) {
		return func(s *responder.Server) {
			s.Attributes = func(all []cms.Attribute) []cms.Attribute {
				for i := range all {
					if all[i].Type[len(all[i].Type)-1] == last && len(all[i].Type) == 8 {
						all[i].Value = value
					}
				}
				return all
			}
		}
	}
	drop := func(last int) func(*responder.Server) {
		return func(s *responder.Server) {
			s.Attributes = func(all []cms.Attribute) []cms.Attribute {
				return slices.DeleteFunc(all, func(a cms.Attribute) bool { return len(a.Type) == 8 && a.Type[7] == last })
			}
		}
	}
	return map[string]fault{
		"echoes the nonce":        {func(s *responder.Server) { s.EchoNonce = true }, "reply.sender-nonce", probe.Wrong, "our own"},
		"has one nonce for all":   {func(s *responder.Server) { s.SameNonce = true }, "reply.sender-nonce", probe.Wrong, "used before"},
		"has no nonce":            {drop(5), "reply.sender-nonce", probe.Wrong, "none"},
		"has a short nonce":       {func(s *responder.Server) { s.Attributes = shortNonce }, "reply.nonce-size", probe.Info, "8 octets"},
		"loses our nonce":         {replace(6, []byte{4, 1, 1}), "reply.recipient-nonce", probe.Wrong, ""},
		"changes the transaction": {func(s *responder.Server) { s.Attributes = lower }, "reply.transaction", probe.Wrong, "probe_1@x"},
		"changes its string type": {func(s *responder.Server) { s.Attributes = printable }, "reply.transaction", probe.Wrong, "UTF8String"},
		"says messageType 19":     {replace(2, []byte{0x13, 2, '1', '9'}), "reply.message-type", probe.Wrong, "19"},
		"writes UTF8Strings":      {replace(3, []byte{0x0c, 1, '2'}), "reply.strings", probe.Weak, "0xc"},
		"has a failInfo of 9":     {func(s *responder.Server) { s.FailInfo = "9" }, "reply.fail-info", probe.Wrong, "9"},
		"has no failInfo":         {drop(4), "reply.fail-info", probe.Wrong, "-1"},
		"fails with an envelope":  {func(s *responder.Server) { s.Sign = func(o *cms.SignOptions) { o.Content = []byte("x") } }, "reply.content", probe.Wrong, ""},
		"signs with SHA-1":        {func(s *responder.Server) { s.Digest = crypto.SHA1 }, "reply.digest", probe.Weak, "SHA-1"},
		"signs by a stranger":     {stranger(t), "reply.signer", probe.Wrong, ""},
		"enciphers with DES":      {func(s *responder.Server) { s.DES = true }, "query.getcrl", probe.Wrong, "DES"},
		"enciphers to everybody":  {func(s *responder.Server) { s.Everybody = true }, "query.getcrl", probe.Wrong, "2 recipients"},
		"shows a parser's words":  {func(s *responder.Server) { s.Words = "asn1: structure error: tags don't match" }, "reply.words", probe.Weak, "asn1:"},
		"fails with a 500":        {func(s *responder.Server) { s.Broken = "panic: index out of range" }, "bad.truncated", probe.Wrong, "500"},
		"fails with words":        {func(s *responder.Server) { s.Broken = "panic: index out of range" }, "reply.words", probe.Weak, "panic"},
		"is 500 for base64":       {func(s *responder.Server) { s.Broken = "oops" }, "bad.base64", probe.Wrong, "oops"},
		"hangs up":                {func(s *responder.Server) { s.HangUp = true }, "bad.truncated", probe.Wrong, "no answer"},
		"refuses by HTTP":         {func(s *responder.Server) { s.NoRefusal = "no" }, "reply.read", probe.Wrong, "HTTP status 400"},
		"is an oracle":            {func(s *responder.Server) { s.Oracle = true }, "bad.envelope", probe.Wrong, "RSA padding"},
		"takes DES":               {func(s *responder.Server) { s.Takes = []string{"DES"} }, "alg.des", probe.Wrong, "read"},
		"takes MD5":               {func(s *responder.Server) { s.Takes = []string{"MD5"} }, "alg.md5", probe.Wrong, "read"},
		"takes SHA-1":             {func(s *responder.Server) { s.Takes = []string{"SHA-1"} }, "alg.sha1", probe.Weak, "read"},
		"takes triple DES":        {func(s *responder.Server) { s.Takes = []string{"3DES"} }, "alg.des3", probe.Weak, "read"},
		"takes any signature":     {func(s *responder.Server) { s.NoSignature, s.FailInfo = true, "2" }, "bad.signature", probe.Weak, "badRequest"},
		"grants type 18":          {func(s *responder.Server) { s.Grants = 18 }, "type.unknown", probe.Wrong, "18: PENDING"},
		"grants a poll":           {func(s *responder.Server) { s.Grants = 20 }, "poll.unknown", probe.Wrong, "PENDING"},
		"grants no request":       {func(s *responder.Server) { s.Grants = 19 }, "reply.status", probe.Wrong, "PENDING"},
		"lets proxies keep":       {func(s *responder.Server) { s.Cacheable = true }, "http.cache", probe.Weak, "GetCACert"},
		"adds a parameter":        {func(s *responder.Server) { s.ReplyType += "; charset=utf-8" }, "reply.type", probe.Weak, "charset"},
	}
}

func offers(t *testing.T) map[string]fault {
	return map[string]fault{
		"old capabilities":      {func(s *responder.Server) { s.Caps += "SHA-1\nDES3\n" }, "caps.weak", probe.Weak, "SHA-1, DES3"},
		"MD5":                   {func(s *responder.Server) { s.Caps += "MD5\n" }, "caps.weak", probe.Wrong, "MD5"},
		"no AES":                {func(s *responder.Server) { s.Without("AES") }, "caps.required", probe.Wrong, "AES"},
		"no Renewal":            {func(s *responder.Server) { s.Without("Renewal") }, "caps.renewal", probe.Info, "not listed"},
		"another spelling":      {func(s *responder.Server) { s.Caps = strings.Replace(s.Caps, "SHA-256", "sha-256 ", 1) }, "caps.spelling", probe.Wrong, "sha-256"},
		"a word of its own":     {func(s *responder.Server) { s.Caps += "FastLane\n" }, "caps.unknown", probe.Info, "FastLane"},
		"too many words":        {func(s *responder.Server) { s.Caps += strings.Repeat("example.com-X\n", 80) }, "caps.size", probe.Weak, ""},
		"HTML":                  {func(s *responder.Server) { s.CapsType = "text/html" }, "caps.type", probe.Weak, "html"},
		"no SHA-384":            {func(s *responder.Server) { s.Without("SHA-384") }, "client.strongswan", probe.Weak, "SHA-384"},
		"a next CA, unanswered": {func(s *responder.Server) { s.Caps += "GetNextCACert\n" }, "next.caps", probe.Wrong, "404"},
		"a next CA, unlisted":   {func(s *responder.Server) { s.Announce(s.CA) }, "next.caps", probe.Wrong, "listed: false"},
		"a next CA of nobody": {func(s *responder.Server) {
			stranger(t)(s)
			s.Announce(s.CA)
			s.Sign = nil
		}, "next.answer", probe.Wrong, "not one of"},
		"the wrong type":      {func(s *responder.Server) { s.CertsType = "application/x-x509-ca-cert" }, "ca.type", probe.Wrong, "a list"},
		"a type with more":    {func(s *responder.Server) { s.CertsType += "; a=b" }, "ca.type", probe.Weak, "a=b"},
		"the CA first":        {func(s *responder.Server) { s.Certs[0], s.Certs[1] = s.Certs[1], s.Certs[0] }, "ca.order", probe.Weak, "ra"},
		"no root":             {func(s *responder.Server) { s.Certs = s.Certs[:2] }, "ca.root", probe.Weak, "not there"},
		"no CA":               {func(s *responder.Server) { s.Certs = s.Certs[:1] }, "ca.chain", probe.Wrong, "none of them"},
		"two roots":           {func(s *responder.Server) { s.Certs = append(s.Certs, another(s).Raw) }, "client.apple", probe.Weak, "several roots"},
		"an unknown CA: 404":  {func(s *responder.Server) { s.Ident = true }, "ca.identifier", probe.Weak, "CAIdentifier"},
		"an RA that is over":  {ra(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), "ca.validity", probe.Weak, "over"},
		"an RA of ten days":   {ra(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(10*24*time.Hour + time.Minute) }), "ca.validity", probe.Weak, "10 days"},
		"no keyEncipherment":  {ra(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }), "ca.usages", probe.Wrong, "keyEncipherment"},
		"no digitalSignature": {ra(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), "ca.usages", probe.Wrong, "digitalSignature"},
		"no extended usage":   {ra(func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil }), "client.windows", probe.Weak, "extended"},
		"a short key":         {shortKey(t), "ca.key", probe.Weak, "1024 bits"},
	}
}

func TestFaults(t *testing.T) { testFaults(t, faults(t)) }
func TestOffers(t *testing.T) { testFaults(t, offers(t)) }

func testFaults(t *testing.T, all map[string]fault) {
	for name, tt := range all {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := responder.New(t)
			tt.make(s)
			s.StartTLS()
			f := run(t, s, false)[tt.id]
			if f.Severity != tt.as || !strings.Contains(f.Saw, tt.saw) {
				t.Errorf("%s is %q: %q; want %s with %q", tt.id, f.Severity, f.Saw, tt.as, tt.saw)
			}
		})
	}
}

func attribute(all []cms.Attribute, last int) *cms.Attribute {
	i := slices.IndexFunc(all, func(a cms.Attribute) bool { return len(a.Type) == 8 && a.Type[7] == last })
	return &all[i]
}

func shortNonce(all []cms.Attribute) []cms.Attribute {
	a := attribute(all, 5)
	a.Value = append([]byte{4, 8}, a.Value[2:10]...)
	return all
}

func lower(all []cms.Attribute) []cms.Attribute {
	a := attribute(all, 7)
	a.Value = bytes.ToLower(bytes.Clone(a.Value))
	return all
}

func printable(all []cms.Attribute) []cms.Attribute {
	a := attribute(all, 7)
	a.Value = bytes.Clone(a.Value)
	a.Value[0] = 0x13
	return all
}

// stranger has another certificate of the RA's key sign.
func stranger(t *testing.T) func(*responder.Server) {
	return func(s *responder.Server) {
		other := s.Issue("other", &s.Keys()[2].PublicKey, s.CA, 1, nil)
		cert, err := cms.ParseCertificate(other.Raw)
		if err != nil {
			t.Fatal(err)
		}
		s.Sign = func(o *cms.SignOptions) { o.Certificate = cert }
	}
}

// another is a root of another name.
func another(s *responder.Server) *x509.Certificate {
	return s.Issue("another", &s.Keys()[0].PublicKey, nil, 0, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign })
}

// ra gives the server another RA certificate.
func ra(change func(*x509.Certificate)) func(*responder.Server) {
	return func(s *responder.Server) {
		s.RA = s.Issue("ra", &s.Keys()[2].PublicKey, s.CA, 1, func(c *x509.Certificate) {
			c.UnknownExtKeyUsage = append(c.UnknownExtKeyUsage, s.RA.UnknownExtKeyUsage...)
			change(c)
		})
		s.Certs[0] = s.RA.Raw
	}
}

// shortKey adds an RA certificate with a key of 1024 bits.
func shortKey(t *testing.T) func(*responder.Server) {
	t.Setenv("GODEBUG", "rsa1024min=0")
	return func(s *responder.Server) {
		key, err := rsa.GenerateKey(rand.Reader, 1024)
		if err != nil {
			t.Fatal(err)
		}
		s.Certs = append([][]byte{s.Issue("old", &key.PublicKey, s.CA, 1, nil).Raw}, s.Certs...)
	}
}

// A server behind an old TLS, or that asks for a client certificate, or behind none.
func TestTransport(t *testing.T) {
	for name, tt := range map[string]struct {
		config *tls.Config
		id     string
		as     probe.Severity
		saw    string
	}{
		"a client certificate": {&tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}, "tls.client-certificate", probe.Weak, "asked"},
		"TLS 1.1":              {&tls.Config{MinVersion: tls.VersionTLS11}, "tls.old", probe.Weak, "TLS 1.1"},
		"TLS 1.1 alone":        {&tls.Config{MinVersion: tls.VersionTLS11, MaxVersion: tls.VersionTLS11}, "tls.version", probe.Weak, "TLS 1.1"},
		"CBC":                  {&tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA}}, "tls.version", probe.Weak, "CBC"},
	} {
		s := responder.New(t)
		s.TLS = tt.config
		s.StartTLS()
		if f := run(t, s, false)[tt.id]; f.Severity != tt.as || !strings.Contains(f.Saw, tt.saw) {
			t.Errorf("%s: %s %q", name, f.Severity, f.Saw)
		}
	}
	s := responder.New(t)
	s.Start()
	if _, err := probe.Run(context.Background(), probe.Options{URL: s.URL}); !errors.Is(err, probe.ErrInsecure) {
		t.Errorf("plain http was asked: %v", err)
	}
	if f := run(t, s, true)["tls.plain"]; f.Severity != probe.Weak {
		t.Errorf("plain http: %+v", f)
	}
	s = responder.New(t)
	s.StartTLS()
	if _, err := probe.Run(context.Background(), probe.Options{URL: s.URL, Roots: x509.NewCertPool()}); !errors.Is(err, probe.ErrInsecure) {
		t.Errorf("a stranger's TLS was trusted: %v", err)
	}
	if _, err := probe.Run(context.Background(), probe.Options{URL: "ftp://x"}); !errors.Is(err, probe.ErrURL) {
		t.Error(err)
	}
}
