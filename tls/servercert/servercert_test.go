package servercert_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/postern-pki/postern/tls/servercert"
)

const life = 30 * 24 * time.Hour

// authority issues server certificates, and can be told to fail.
type authority struct {
	key    *ecdsa.PrivateKey
	issued atomic.Int64
	fail   atomic.Bool
	change func(*x509.Certificate)
}

var errDown = errors.New("authority down")

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (a *authority) issue(_ context.Context, pub crypto.PublicKey, names []string) ([][]byte, error) {
	if a.fail.Load() {
		return nil, errDown
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.issued.Add(1)), NotBefore: time.Now(), NotAfter: time.Now().Add(life),
		Subject: pkix.Name{CommonName: names[0]}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	if a.change != nil {
		a.change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, &x509.Certificate{Subject: pkix.Name{CommonName: "CA"}}, pub, a.key)
	return [][]byte{der}, err
}

func serial(t *testing.T, get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) int64 {
	t.Helper()
	c, err := get(nil)
	if err != nil || c == nil {
		t.Fatal("no certificate", err)
	}
	return c.Leaf.SerialNumber.Int64()
}

func TestInternalRenewsAtTwoThirdsAndKeepsTheOldOneOnFailure(t *testing.T) {
	a, key := &authority{key: newKey(t)}, newKey(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s, err := servercert.NewInternal(ctx, servercert.InternalOptions{Key: key, Names: []string{"ca.example", "192.0.2.1"}, Issue: a.issue})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		time.Sleep(life / 2)
		synctest.Wait()
		if n := serial(t, s.GetCertificate); n != 1 {
			t.Errorf("at half its life it was renewed to %d", n)
		}
		time.Sleep(life/6 + time.Second)
		synctest.Wait()
		if n := serial(t, s.GetCertificate); n != 2 {
			t.Errorf("at two thirds of its life it is %d, want 2", n)
		}
		a.fail.Store(true)
		time.Sleep(life - time.Hour)
		synctest.Wait()
		if n := serial(t, s.GetCertificate); n != 2 {
			t.Errorf("with the authority down it is %d, want the old one", n)
		}
		a.fail.Store(false)
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if n := serial(t, s.GetCertificate); n != 3 {
			t.Errorf("with the authority back it is %d, want 3", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestInternalNeverBlocksAHandshake has the authority hang while a handshake asks.
func TestInternalNeverBlocksAHandshake(t *testing.T) {
	a, hang := &authority{key: newKey(t)}, make(chan struct{})
	var entered atomic.Bool
	s, err := servercert.NewInternal(t.Context(), servercert.InternalOptions{Key: newKey(t), Names: []string{"a.example"},
		Issue: func(ctx context.Context, pub crypto.PublicKey, names []string) ([][]byte, error) {
			if a.issued.Load() > 0 {
				entered.Store(true)
				<-hang
			}
			return a.issue(ctx, pub, names)
		}})
	if err != nil {
		t.Fatal(err)
	}
	renewed := make(chan error)
	go func() { renewed <- s.Renew(t.Context()) }()
	for !entered.Load() {
		time.Sleep(time.Millisecond)
	}
	if n := serial(t, s.GetCertificate); n != 1 {
		t.Errorf("certificate %d while a renewal hangs", n)
	}
	close(hang)
	if err := <-renewed; err != nil || serial(t, s.GetCertificate) != 2 {
		t.Errorf("after it: %v", err)
	}
}

func TestInternalIsKeptOverARestartWhileItFits(t *testing.T) {
	names := []string{"ca.example", "2001:db8::1"}
	for name, tt := range map[string]struct {
		later  time.Duration
		names  []string
		key    bool // another key
		broken bool // the file
		down   bool
		want   int64 // serial, 0 for an error
	}{
		"the same":                       {time.Hour, names, false, false, false, 1},
		"the same names in another form": {time.Hour, []string{"2001:DB8:0::1", "CA.example"}, false, false, false, 1},
		"other names":                    {time.Hour, []string{"other.example"}, false, false, false, 2},
		"another key":                    {time.Hour, names, true, false, false, 2},
		"a third of its life left":       {life*2/3 + time.Hour, names, false, false, false, 2},
		"due, but nobody issues":         {life*2/3 + time.Hour, names, false, false, true, 1},
		"expired":                        {life + time.Hour, names, false, false, false, 2},
		"expired, and nobody issues":     {life + time.Hour, names, false, false, true, 0},
		"a broken file":                  {time.Hour, names, false, true, false, 2},
		"other names, and nobody issues": {time.Hour, []string{"other.example"}, false, false, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			a, key := &authority{key: newKey(t)}, newKey(t)
			o := servercert.InternalOptions{Key: key, Names: names, Issue: a.issue, File: filepath.Join(t.TempDir(), "tls.pem")}
			other := newKey(t)
			synctest.Test(t, func(t *testing.T) {
				if _, err := servercert.NewInternal(t.Context(), o); err != nil {
					t.Fatal(err)
				}
				if tt.broken {
					if err := os.WriteFile(o.File, []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				if tt.key {
					o.Key = other
				}
				time.Sleep(tt.later)
				a.fail.Store(tt.down)
				o.Names = tt.names
				s, err := servercert.NewInternal(t.Context(), o)
				if tt.want == 0 {
					if !errors.Is(err, errDown) {
						t.Errorf("NewInternal: %v, want an error", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if n := s.Leaf().SerialNumber.Int64(); n != tt.want {
					t.Errorf("certificate %d, want %d", n, tt.want)
				}
			})
		})
	}
}

func TestInternalTakesNoCertificateThatDoesNotFit(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*x509.Certificate)
		want   error
	}{
		"other names": {func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "evil.example") }, servercert.ErrNames},
		"expired": {func(c *x509.Certificate) {
			c.NotBefore = time.Now().Add(-2 * time.Hour)
			c.NotAfter = time.Now().Add(-time.Hour)
		}, servercert.ErrTime},
		"not yet valid": {func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }, servercert.ErrTime},
		"no server's":   {func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, servercert.ErrUsage},
		"a CA's":        {func(c *x509.Certificate) { c.IsCA = true }, servercert.ErrUsage},
	} {
		t.Run(name, func(t *testing.T) {
			a := &authority{key: newKey(t)}
			s, err := servercert.NewInternal(t.Context(), servercert.InternalOptions{Key: newKey(t), Names: []string{"a.example"}, Issue: a.issue})
			if err != nil {
				t.Fatal(err)
			}
			a.change = tt.change
			if err := s.Renew(t.Context()); !errors.Is(err, tt.want) {
				t.Errorf("Renew: %v, want %v", err, tt.want)
			}
			if n := serial(t, s.GetCertificate); n != 1 {
				t.Errorf("certificate %d, want the old one", n)
			}
		})
	}
	t.Run("another key's", func(t *testing.T) {
		a, other := &authority{key: newKey(t)}, newKey(t)
		_, err := servercert.NewInternal(t.Context(), servercert.InternalOptions{Key: newKey(t), Names: []string{"a.example"},
			Issue: func(ctx context.Context, _ crypto.PublicKey, n []string) ([][]byte, error) {
				return a.issue(ctx, other.Public(), n)
			}})
		if !errors.Is(err, servercert.ErrKey) {
			t.Errorf("NewInternal: %v, want ErrKey", err)
		}
	})
}

// writePair puts a certificate and its key into the two files.
func writePair(t *testing.T, a *authority, cert, key string, mode os.FileMode) {
	t.Helper()
	k := newKey(t)
	chain, err := a.issue(t.Context(), k.Public(), []string{"a.example"})
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain[0]}),
		key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
	} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(key, mode); err != nil {
		t.Fatal(err)
	}
}

func TestFilesAreReloadedAndABrokenPairIsNot(t *testing.T) {
	a, dir := &authority{key: newKey(t)}, t.TempDir()
	cert, key := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	writePair(t, a, cert, key, 0o640)
	core, logged := observer.New(zap.ErrorLevel)
	s, err := servercert.NewFiles(servercert.FilesOptions{Certificate: cert, Key: key, Log: zap.New(core)})
	if err != nil {
		t.Fatal(err)
	}
	writePair(t, a, cert, key, 0o600)
	if err := s.Reload(); err != nil || serial(t, s.GetCertificate) != 2 {
		t.Errorf("new pair: %v, certificate %d", err, s.Leaf().SerialNumber)
	}
	good, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	expired := &authority{key: a.key}
	expired.change = func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}
	for name, spoil := range map[string]func() error{
		"another key's certificate": func() error {
			writePair(t, a, filepath.Join(dir, "x"), key, 0o600)
			return os.WriteFile(cert, good, 0o600)
		},
		"half a certificate":        func() error { return os.WriteFile(cert, good[:len(good)/2], 0o600) },
		"no key":                    func() error { return os.Remove(key) },
		"a key that all may read":   func() error { writePair(t, a, cert, key, 0o644); return nil },
		"a key that a group writes": func() error { writePair(t, a, cert, key, 0o660); return nil },
		"expired":                   func() error { writePair(t, expired, cert, key, 0o600); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			if err := spoil(); err != nil {
				t.Fatal(err)
			}
			logged.TakeAll()
			for range 2 {
				if s.Reload() == nil {
					t.Error("no error")
				}
			}
			if n := serial(t, s.GetCertificate); n != 2 {
				t.Errorf("certificate %d, want the old one", n)
			}
			if logged.Len() != 1 {
				t.Errorf("%d log lines about it, want 1", logged.Len())
			}
			if _, err := servercert.NewFiles(servercert.FilesOptions{Certificate: cert, Key: key}); err == nil {
				t.Error("a start with it succeeds")
			}
		})
	}
	writePair(t, a, cert, key, 0o600)
	if err := s.Reload(); err != nil || serial(t, s.GetCertificate) == 2 {
		t.Errorf("mended pair: %v", err)
	}
}

func TestFilesAreLookedAt(t *testing.T) {
	a, dir := &authority{key: newKey(t)}, t.TempDir()
	cert, key := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	synctest.Test(t, func(t *testing.T) {
		writePair(t, a, cert, key, 0o600)
		s, err := servercert.NewFiles(servercert.FilesOptions{Certificate: cert, Key: key})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		writePair(t, a, cert, key, 0o600)
		time.Sleep(61 * time.Second)
		synctest.Wait()
		if n := serial(t, s.GetCertificate); n != 2 {
			t.Errorf("after a minute it is %d, want 2", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
