package servercert_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/postern-pki/postern/tls/servercert"
)

// courier is another process's end: it has what was put there.
type courier struct {
	mu         sync.Mutex
	chain      [][]byte
	key        []byte
	err        error
	challenges map[string][2][]byte // certificate and key
	asked      []string
	hang       bool // until the caller leaves
}

func (c *courier) Certificate(ctx context.Context) (chain [][]byte, key []byte, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.chain, c.key, c.err
}

func (c *courier) AcmeChallenge(ctx context.Context, name string) (chain [][]byte, key []byte, err error) {
	c.mu.Lock()
	c.asked = append(c.asked, name)
	pair, ok := c.challenges[name]
	hang := c.hang
	c.mu.Unlock()
	switch {
	case hang:
		<-ctx.Done()
		return nil, nil, ctx.Err()
	case !ok:
		return nil, nil, errors.New("no challenge is pending")
	}
	return [][]byte{pair[0]}, pair[1], nil
}

// put has the courier hold a new certificate.
func (c *courier) put(t *testing.T, a *authority, names ...string) {
	t.Helper()
	cert, key := issued(t, a, names...)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.chain, c.key, c.err = [][]byte{cert}, key, nil
}

func issued(t *testing.T, a *authority, names ...string) (cert, key []byte) {
	t.Helper()
	k := newKey(t)
	chain, err := a.issue(t.Context(), k.Public(), names)
	if err != nil {
		t.Fatal(err)
	}
	if key, err = x509.MarshalPKCS8PrivateKey(k); err != nil {
		t.Fatal(err)
	}
	return chain[0], key
}

func acmeOf(t *testing.T, c *courier, log *zap.Logger, names ...string) *servercert.ACME {
	t.Helper()
	s, err := servercert.NewACME(t.Context(), servercert.ACMEOptions{Source: c, Names: names, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestACMETakesWhatComesAndKeepsTheOldOne(t *testing.T) {
	a := &authority{key: newKey(t)}
	synctest.Test(t, func(t *testing.T) {
		core, logged := observer.New(zap.ErrorLevel)
		c := &courier{err: errDown}
		s := acmeOf(t, c, zap.New(core), "a.example")
		if _, err := s.GetCertificate(nil); !errors.Is(err, servercert.ErrNone) || s.Leaf() != nil || !errors.Is(s.Healthy(), errDown) {
			t.Errorf("without a certificate: %v, %v, healthy: %v", err, s.Leaf(), s.Healthy())
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		time.Sleep(time.Hour)
		if logged.Len() != 1 {
			t.Errorf("%d lines about the same trouble, want 1", logged.Len())
		}
		c.put(t, a, "a.example", "b.example")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := serial(t, s.GetCertificate); n != 1 || s.Healthy() != nil {
			t.Errorf("certificate %d, %v", n, s.Healthy())
		}
		c.put(t, a, "a.example")
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if n := serial(t, s.GetCertificate); n != 2 {
			t.Errorf("certificate %d, want the new one", n)
		}
		other, otherKey := issued(t, a, "a.example")
		for name, spoil := range map[string]func(){
			"nothing":                   func() { c.err = errDown },
			"other names":               func() { c.put(t, a, "b.example") },
			"another certificate's key": func() { c.chain, c.key, c.err = [][]byte{other}, bytes.Clone(otherKey[:len(otherKey)-1]), nil },
			"no key":                    func() { c.put(t, a, "a.example"); c.key = nil },
			"no chain":                  func() { c.put(t, a, "a.example"); c.chain = nil },
			"half a certificate":        func() { c.chain, c.key = [][]byte{other[:100]}, otherKey },
		} {
			spoil()
			if s.Refresh(t.Context()) == nil || s.Healthy() == nil {
				t.Errorf("%s is taken", name)
			}
			if n := serial(t, s.GetCertificate); n != 2 {
				t.Errorf("%s: certificate %d, want the old one", name, n)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// validation is the hello of a directory that validates a name.
func validation(t *testing.T, s *servercert.ACME, name string, protocols ...string) (*x509.Certificate, error) {
	t.Helper()
	client, server := net.Pipe()
	defer func() { _, _ = client.Close(), server.Close() }()
	go func() {
		_ = tls.Server(server, &tls.Config{GetCertificate: s.GetCertificate, NextProtos: []string{"http/1.1", "acme-tls/1"}}).Handshake()
		_ = server.Close()
	}()
	conn := tls.Client(client, &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: protocols})
	if err := conn.Handshake(); err != nil {
		return nil, err
	}
	return conn.ConnectionState().PeerCertificates[0], nil
}

func TestACMEAnswersChallengesOfItsNamesAlone(t *testing.T) {
	a := &authority{key: newKey(t)}
	c := &courier{challenges: map[string][2][]byte{}}
	c.put(t, a, "a.example", "192.0.2.1", "2001:db8::1")
	marked := &authority{key: a.key, change: func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 31}, Critical: true, Value: append([]byte{4, 32}, make([]byte, 32)...)}}
		c.Subject.CommonName = "challenge"
	}}
	const reverse6 = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"
	for _, n := range []string{"a.example", "1.2.0.192.in-addr.arpa", reverse6, "other.example"} {
		cert, key := issued(t, marked, n)
		c.challenges[n] = [2][]byte{cert, key}
	}
	s := acmeOf(t, c, nil, "A.example", "192.0.2.1", "2001:db8::1")
	for _, n := range []string{"a.example", "A.EXAMPLE", "1.2.0.192.in-addr.arpa", reverse6} {
		if got, err := validation(t, s, n, "acme-tls/1"); err != nil || got.Subject.CommonName != "challenge" {
			t.Errorf("%s: %v, %v", n, got, err)
		}
	}
	c.asked = nil
	if _, err := validation(t, s, "other.example", "acme-tls/1"); err == nil || len(c.asked) != 0 {
		t.Errorf("a stranger's name: %v, and the courier was asked for %v", err, c.asked)
	}
	if got, err := validation(t, s, "a.example", "acme-tls/1", "http/1.1"); err != nil || got.Subject.CommonName == "challenge" {
		t.Errorf("who speaks more than acme-tls/1: %v, %v", got, err)
	}
	cert, key := issued(t, a, "a.example")
	c.challenges["a.example"] = [2][]byte{cert, key}
	if _, err := validation(t, s, "a.example", "acme-tls/1"); err == nil {
		t.Error("a certificate that answers no challenge is shown as one")
	}
	delete(c.challenges, "a.example")
	if _, err := validation(t, s, "a.example", "acme-tls/1"); err == nil {
		t.Error("a challenge that is over is answered")
	}
	if _, err := validation(t, s, "a.example"); err != nil {
		t.Error("a device beside it:", err)
	}
}

// TestAFloodOfValidationsIsBounded has the courier hang.
func TestAFloodOfValidationsIsBounded(t *testing.T) {
	a := &authority{key: newKey(t)}
	synctest.Test(t, func(t *testing.T) {
		c := &courier{hang: true}
		c.put(t, a, "a.example")
		s := acmeOf(t, c, nil, "a.example")
		began, ended := time.Now(), make(chan error, 100)
		for range cap(ended) {
			go func() { _, err := validation(t, s, "a.example", "acme-tls/1"); ended <- err }()
		}
		synctest.Wait()
		c.mu.Lock()
		if len(c.asked) > 4 {
			t.Errorf("the courier is asked %d times at once", len(c.asked))
		}
		c.mu.Unlock()
		if _, err := validation(t, s, "a.example"); err != nil {
			t.Error("a device beside it:", err)
		}
		for range cap(ended) {
			if err := <-ended; err == nil {
				t.Error("a validation without an answer succeeds")
			}
		}
		if waited := time.Since(began); waited > 3*time.Second {
			t.Errorf("the last ended after %v", waited)
		}
	})
}

func TestACMEOptions(t *testing.T) {
	for name, o := range map[string]servercert.ACMEOptions{"nothing": {}, "no names": {Source: &courier{}}, "no source": {Names: []string{"a"}}} {
		if _, err := servercert.NewACME(t.Context(), o); !errors.Is(err, servercert.ErrOptions) {
			t.Errorf("%s: %v, want ErrOptions", name, err)
		}
	}
}
