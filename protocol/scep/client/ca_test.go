package client_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/pkcs10"
	"github.com/postern-pki/postern/protocol/scep/client"
)

func TestFailure(t *testing.T) {
	text := "no such name \x1b[31m (request 7)"
	for _, tt := range []struct{ info, name string }{{"0", "badAlg"}, {"2", "badRequest"}, {"4", "badCertId"}, {"9", "unknown"}} {
		s := newServer(t)
		s.pkiStatus = "2"
		s.attributes = func(all []cms.Attribute) []cms.Attribute {
			return append(all, cms.Attribute{Type: oid(4), Value: str(tt.info)}, cms.Attribute{
				Type: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 24, 1}, Value: append([]byte{0x0c, byte(len(text))}, text...)})
		}
		_, err := s.enroll()
		f, ok := errors.AsType[*client.FailError](err)
		if !ok || f.Name != tt.name || f.Text != "no such name  [31m (request 7)" {
			t.Errorf("%s: %v", tt.info, err)
		}
	}
}

// Nobody but the RA can refuse.
func TestForgedFailure(t *testing.T) {
	s := newServer(t)
	s.pkiStatus = "2"
	s.after = flipLast
	s.attributes = func(all []cms.Attribute) []cms.Attribute {
		return append(all, cms.Attribute{Type: oid(4), Value: str("2")})
	}
	if _, err := s.enroll(); !errors.Is(err, client.ErrReply) {
		t.Error(err)
	}
}

func TestPending(t *testing.T) {
	s := newServer(t)
	s.pkiStatus = "3"
	_, err := s.enroll()
	if p, ok := errors.AsType[*client.PendingError](err); !ok || len(p.TransactionID) != 64 {
		t.Error(err)
	}
}

func TestStatus(t *testing.T) {
	s := newServer(t)
	s.status = http.StatusServiceUnavailable
	s.after = func([]byte) []byte { return []byte("come again\x00\n") }
	_, err := s.enroll()
	if e, ok := errors.AsType[*client.StatusError](err); !ok || e.Code != 503 || e.Text != "come again" {
		t.Error(err)
	}
	h := httptest.NewServer(http.RedirectHandler("/elsewhere", http.StatusFound))
	defer h.Close()
	_, err = (&client.Client{URL: h.URL}).Caps(context.Background())
	if e, ok := errors.AsType[*client.StatusError](err); !ok || e.Code != 302 {
		t.Errorf("a redirect was followed: %v", err)
	}
}

func TestCACert(t *testing.T) {
	k := keys()
	for name, tt := range map[string]struct {
		change func(*server, *client.Client)
		want   error // nil: good
		says   string
	}{
		"the root's fingerprint": {func(*server, *client.Client) {}, nil, ""},
		"the CA's, with colons": {func(s *server, c *client.Client) {
			f := strings.ToUpper(fingerprint(s.ca))
			c.CAFingerprint = f[:2] + ":" + f[2:]
			s.served = s.served[:2]
		}, nil, ""},
		"none":            {func(_ *server, c *client.Client) { c.CAFingerprint = "" }, client.ErrFingerprint, "required"},
		"a short one":     {func(_ *server, c *client.Client) { c.CAFingerprint = "ab" }, client.ErrFingerprint, "64"},
		"another's":       {func(s *server, c *client.Client) { c.CAFingerprint = fingerprint(s.other) }, client.ErrFingerprint, "the CA"},
		"the RA's":        {func(s *server, c *client.Client) { c.CAFingerprint = fingerprint(s.ra) }, client.ErrFingerprint, "the CA"},
		"no root":         {func(s *server, _ *client.Client) { s.served = s.served[:2] }, client.ErrFingerprint, "the CA"},
		"no RA":           {func(s *server, _ *client.Client) { s.served = s.served[1:] }, client.ErrCA, "digitalSignature"},
		"another type":    {func(s *server, _ *client.Client) { s.caType = "text/plain" }, client.ErrTransport, "text/plain"},
		"a broken answer": {func(s *server, _ *client.Client) { s.caType = "application/x-x509-ca-cert" }, client.ErrCA, "x509"},
		"no CA of the RA": {func(s *server, _ *client.Client) {
			s.served[0] = issue(t, "ra", &k[raKey].PublicKey, s.ca, k[otherKey], isAgent).Raw
		}, client.ErrCA, "a CA that signed"},
		"RAs of two CAs": {func(s *server, _ *client.Client) {
			sign := issue(t, "sign", &k[raKey].PublicKey, s.ca, k[caKey], func(c *x509.Certificate) { isAgent(c); c.KeyUsage = x509.KeyUsageDigitalSignature })
			decrypt := issue(t, "decrypt", &k[raKey].PublicKey, s.root, k[rootKey], func(c *x509.Certificate) { isAgent(c); c.KeyUsage = x509.KeyUsageKeyEncipherment })
			s.served = [][]byte{sign.Raw, decrypt.Raw, s.ca.Raw, s.root.Raw}
		}, client.ErrCA, "a CA that signed"},
		"a device as RA": {func(s *server, _ *client.Client) {
			s.served[0] = issue(t, "ra", &k[raKey].PublicKey, s.ca, k[caKey], func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }).Raw
		}, client.ErrCA, "digitalSignature"},
		"an RA that is a TLS server": {func(s *server, _ *client.Client) {
			s.served[0] = issue(t, "ra", &k[raKey].PublicKey, s.ca, k[caKey], func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }).Raw
		}, nil, ""},
		"an RA that is both": {func(s *server, _ *client.Client) {
			s.served[0] = issue(t, "ra", &k[raKey].PublicKey, s.ca, k[caKey], func(c *x509.Certificate) {
				isAgent(c)
				c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
			}).Raw
		}, nil, ""},
		"an RA without extended usages": {func(s *server, _ *client.Client) {
			s.served[0] = issue(t, "ra", &k[raKey].PublicKey, s.ca, k[caKey], nil).Raw
		}, client.ErrCA, "digitalSignature"},
		"an RA for any usage": {func(s *server, _ *client.Client) {
			s.served[0] = issue(t, "ra", &k[raKey].PublicKey, s.ca, k[caKey], func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }).Raw
		}, client.ErrCA, "digitalSignature"},
		"an RA of CMC": {func(s *server, _ *client.Client) {
			s.served[0] = issue(t, "ra", &k[raKey].PublicKey, s.ca, k[caKey], func(c *x509.Certificate) {
				c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 28}}
			}).Raw
		}, client.ErrCA, "digitalSignature"},
		"a device that is a TLS server too": {func(s *server, _ *client.Client) {
			s.served[0] = issue(t, "ra", &k[raKey].PublicKey, s.ca, k[caKey], func(c *x509.Certificate) {
				c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
			}).Raw
		}, client.ErrCA, "digitalSignature"},
		"an RA that expired": {func(s *server, _ *client.Client) {
			s.served[0] = issue(t, "ra", &k[raKey].PublicKey, s.ca, k[caKey], func(c *x509.Certificate) { isAgent(c); c.NotAfter = time.Now().Add(-time.Minute) }).Raw
		}, client.ErrCA, "expired"},
		"another root of that name": {func(s *server, _ *client.Client) {
			s.served[2] = issue(t, "root", &k[otherKey].PublicKey, nil, k[otherKey], isCA).Raw
		}, client.ErrFingerprint, "the CA"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			c := s.start()
			tt.change(s, c)
			ca, err := c.CACert(context.Background())
			if !errors.Is(err, tt.want) || tt.want != nil && !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("got %v, %v; want %v with %q", ca, err, tt.want, tt.says)
			}
			if err == nil && (ca.RASign.Subject.CommonName != "ra" || ca.RADecrypt.Subject.CommonName != "ra" || !ca.CA.Equal(s.ca)) {
				t.Errorf("got %+v", ca)
			}
			if err != nil { // and nothing is sent
				if _, err := c.Enroll(context.Background(), enrollment()); !errors.Is(err, tt.want) || s.method != "" {
					t.Errorf("enrolled all the same: %v", err)
				}
			}
		})
	}
}

func TestNewCSR(t *testing.T) {
	key := keys()[deviceKey]
	for name, secret := range map[string][]byte{"printable": []byte("Abc 123"), "UTF-8": []byte("Grüße_@"), "long": bytes.Repeat([]byte("x"), 255), "none": nil} {
		der, err := client.NewCSR(key, client.CSR{Challenge: secret, DNSNames: []string{"a.example", "b.example"}})
		if err != nil {
			t.Fatal(name, err)
		}
		r, err := pkcs10.Parse(der)
		if err != nil {
			t.Fatal(name, err)
		}
		if err := r.CheckSignature(); err != nil {
			t.Error(name, err)
		}
		if (r.Challenge == nil) != (secret == nil) || secret != nil && !bytes.Equal(r.Challenge.Bytes(), secret) {
			t.Errorf("%s: another challenge", name)
		}
		if len(r.DNSNames) != 2 || len(r.Extensions) != 1 || !r.Extensions[0].Critical { // the subject is empty
			t.Errorf("%s: %v %v", name, r.DNSNames, r.Extensions)
		}
		if x, err := x509.ParseCertificateRequest(der); err != nil || x.CheckSignature() != nil || len(x.DNSNames) != 2 {
			t.Errorf("%s: crypto/x509: %v", name, err)
		}
	}
	for name, r := range map[string]client.CSR{
		"an empty challenge": {Challenge: []byte{}}, "a long one": {Challenge: make([]byte, 256)}, "not UTF-8": {Challenge: []byte{0xff}},
		"no DNS name": {DNSNames: []string{"a b"}}, "an empty DNS name": {DNSNames: []string{""}},
		"a bad name": {Subject: pkix.Name{CommonName: "\xff"}},
	} {
		if _, err := client.NewCSR(key, r); !errors.Is(err, client.ErrRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
