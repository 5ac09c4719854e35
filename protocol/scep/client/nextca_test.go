package client_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep/client"
)

// A rollover is an answer to GetNextCACert that is as wrong as its fields say.
type rollover struct {
	certs  [][]byte // of the content
	outer  [][]byte
	signer *x509.Certificate
	key    *rsa.PrivateKey
	digest crypto.Hash
}

func (r rollover) sign(t *testing.T) []byte {
	t.Helper()
	content, err := cms.CertsOnly(r.certs)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := cms.ParseCertificate(r.signer.Raw)
	if err != nil {
		t.Fatal(err)
	}
	der, err := cms.Sign(cms.SignOptions{Certificate: signer, Chain: r.outer, Key: r.key, Digest: r.digest, Content: content})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// nextGeneration is an RA, a CA that begins tomorrow, and its root.
func nextGeneration(t *testing.T) (ra, ca, root *x509.Certificate) {
	k := keys()
	later := func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(24*time.Hour), time.Now().Add(48*time.Hour)
	}
	root = issue(t, "next root", &k[otherKey].PublicKey, nil, k[otherKey], func(c *x509.Certificate) { isCA(c); later(c) })
	ca = issue(t, "next ca", &k[newKey].PublicKey, root, k[otherKey], func(c *x509.Certificate) { isCA(c); later(c) })
	ra = issue(t, "next ra", &k[raKey].PublicKey, ca, k[newKey], func(c *x509.Certificate) { isAgent(c); later(c) })
	return ra, ca, root
}

// Covers: S-042
func TestNextCACert(t *testing.T) {
	k := keys()
	ra, ca, root := nextGeneration(t)
	all := [][]byte{ra.Raw, ca.Raw, root.Raw}
	for name, tt := range map[string]struct {
		change func(s *server, r *rollover)
		says   string
	}{
		"the RA signs":               {func(*server, *rollover) {}, ""},
		"the CA signs":               {func(s *server, r *rollover) { r.signer, r.key = s.ca, k[caKey] }, ""},
		"next and current CA beside": {func(s *server, r *rollover) { r.outer = append(all, s.ca.Raw) }, ""},
		"another beside": {func(s *server, r *rollover) {
			r.outer = append(all, issue(t, "evil", &k[otherKey].PublicKey, nil, k[otherKey], isCA).Raw)
		}, "beside what is signed"},
		"another RA of the CA signs": {func(s *server, r *rollover) { r.signer = s.other }, "neither the RA nor the CA"},
		"the next RA signs":          {func(_ *server, r *rollover) { r.signer = ra }, "neither the RA nor the CA"},
		"SHA-1":                      {func(_ *server, r *rollover) { r.digest = crypto.SHA1 }, "SHA-1"},
		"no CA":                      {func(_ *server, r *rollover) { r.certs = all[:1] }, "no CA in it"},
		"an old CA": {func(_ *server, r *rollover) {
			r.certs = [][]byte{issue(t, "old", &k[otherKey].PublicKey, nil, k[otherKey], func(c *x509.Certificate) { isCA(c); c.NotAfter = time.Now().Add(-time.Minute) }).Raw}
		}, "over"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			r := rollover{certs: all, signer: s.ra, key: k[raKey], digest: crypto.SHA256}
			tt.change(s, &r)
			s.next = r.sign(t)
			next, err := s.start().NextCACert(context.Background())
			if tt.says != "" {
				if !errors.Is(err, client.ErrNextCA) || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(next.Certificates) != 3 || next.CA == nil || !next.CA.CA.Equal(ca) || !next.CA.RADecrypt.Equal(ra) || len(next.CA.Chain) != 1 {
				t.Errorf("got %+v", next)
			}
		})
	}
}

func TestNextCACertIsNotBelieved(t *testing.T) {
	s := newServer(t)
	c := s.start()
	_, err := c.NextCACert(context.Background())
	if e, ok := errors.AsType[*client.StatusError](err); !ok || e.Code != http.StatusNotFound {
		t.Errorf("no next CA: %v", err)
	}
	_, ca, _ := nextGeneration(t)
	good := rollover{certs: [][]byte{ca.Raw}, signer: s.ra, key: keys()[raKey], digest: crypto.SHA256}.sign(t)
	s.next = flipLast(bytes.Clone(good))
	if _, err := c.NextCACert(context.Background()); !errors.Is(err, client.ErrNextCA) || !strings.Contains(err.Error(), "signature") {
		t.Errorf("tampered: %v", err)
	}
	s.next = bytes.Replace(bytes.Clone(good), ca.Raw[len(ca.Raw)-32:], make([]byte, 32), 1)
	if _, err := c.NextCACert(context.Background()); !errors.Is(err, client.ErrNextCA) {
		t.Errorf("another content: %v", err)
	}
	s.next = good
	next, err := c.NextCACert(context.Background())
	if err != nil || next.CA != nil || len(next.Certificates) != 1 { // a CA without an RA that could be used
		t.Errorf("got %+v, %v", next, err)
	}
	if s.next, err = cms.CertsOnly([][]byte{ca.Raw}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.NextCACert(context.Background()); !errors.Is(err, client.ErrNextCA) {
		t.Errorf("without a signature: %v", err)
	}
	c.CAFingerprint = fingerprint(s.other)
	if _, err := c.NextCACert(context.Background()); !errors.Is(err, client.ErrFingerprint) {
		t.Errorf("of another CA: %v", err)
	}
}

// Who kept the next CA's certificates enrolls with it, whatever GetCACert says.
func TestTheCAThatWasKept(t *testing.T) {
	s := newServer(t)
	c := s.start()
	certs := []*x509.Certificate{s.ra, s.ca, s.root}
	s.served = [][]byte{s.other.Raw}
	c.CACerts = certs
	if _, err := c.Enroll(context.Background(), enrollment()); err != nil {
		t.Error(err)
	}
	c.CAFingerprint = fingerprint(s.other)
	if _, err := c.Enroll(context.Background(), enrollment()); !errors.Is(err, client.ErrFingerprint) {
		t.Error(err)
	}
}

// A CA without an RA signs and deciphers itself, if its certificate says so.
func TestACAWithoutAnRA(t *testing.T) {
	k := keys()
	const both = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	for name, tt := range map[string]struct {
		usage x509.KeyUsage
		want  error
	}{"both usages": {both, nil}, "no decryption": {x509.KeyUsageDigitalSignature, client.ErrCA}, "a CA's alone": {0, client.ErrCA}} {
		s := newServer(t)
		s.ca = issue(t, "ca", &k[raKey].PublicKey, s.root, k[rootKey], func(c *x509.Certificate) { isCA(c); c.KeyUsage |= tt.usage })
		s.ra = s.ca
		s.issue = func(key any) []byte { return issue(t, "device", key, s.ca, k[raKey], nil).Raw }
		s.served = [][]byte{s.ca.Raw, s.root.Raw}
		c := s.start()
		if _, err := c.Enroll(context.Background(), enrollment()); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
		s.bare = true
		c.CAFingerprint = fingerprint(s.ca)
		if _, err := c.Enroll(context.Background(), enrollment()); !errors.Is(err, tt.want) {
			t.Errorf("%s, alone: %v", name, err)
		}
	}
}
