package courier_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/postern-pki/postern/appliance/courier"
)

func options(t *testing.T, directory string) courier.Options {
	t.Helper()
	return courier.Options{Directory: directory, Roots: x509.NewCertPool(), Names: []string{"scep.example.test"}, Dir: filepath.Join(t.TempDir(), "courier")}
}

func TestOptionsAreChecked(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*courier.Options)
		want   error
	}{
		"a plain directory":  {func(o *courier.Options) { o.Directory = "http://acme.example.test/dir" }, courier.ErrNotHTTPS},
		"no scheme":          {func(o *courier.Options) { o.Directory = "acme.example.test/dir" }, courier.ErrOptions},
		"no directory":       {func(o *courier.Options) { o.Directory = "" }, courier.ErrOptions},
		"the system's trust": {func(o *courier.Options) { o.Roots = nil }, courier.ErrOptions},
		"no names":           {func(o *courier.Options) { o.Names = nil }, courier.ErrOptions},
		"no folder":          {func(o *courier.Options) { o.Dir = "" }, courier.ErrOptions},
	} {
		o := options(t, "https://acme.example.test/dir")
		tt.change(&o)
		if _, err := courier.New(o); !errors.Is(err, tt.want) {
			t.Errorf("%s: New: %v, want %v", name, err, tt.want)
		}
	}
}

// until runs a courier until its journal has said something.
func until(t *testing.T, o courier.Options, said string) (*courier.Courier, string) {
	t.Helper()
	core, logged := observer.New(zap.InfoLevel)
	o.Log = zap.New(core)
	c, err := courier.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error("Run:", err)
		}
	}()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		for _, e := range logged.FilterMessage(said).All() {
			return c, e.ContextMap()["error"].(string)
		}
	}
	t.Fatalf("it did not say %q: %v", said, logged.All())
	return nil, ""
}

// A directory may not lead elsewhere: not by what it names, and not by a redirect.
func TestNothingIsAskedInPlain(t *testing.T) {
	var plain atomic.Int64
	open := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { plain.Add(1) }))
	defer open.Close()
	names := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]string{"newNonce": open.URL + "/nonce", "newAccount": open.URL + "/account", "newOrder": open.URL + "/order"})
	}
	redirects := func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, open.URL+"/dir", http.StatusFound) }
	for name, h := range map[string]http.HandlerFunc{"by its names": names, "by a redirect": redirects} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewTLSServer(h)
			defer s.Close()
			o := options(t, s.URL+"/dir")
			o.Roots.AddCert(s.Certificate())
			c, said := until(t, o, "no server certificate from the directory, and none was kept")
			if !strings.Contains(said, "https alone") {
				t.Errorf("it said %q", said)
			}
			if _, _, err := c.Certificate(t.Context()); !errors.Is(err, courier.ErrNone) || !strings.Contains(err.Error(), "https alone") {
				t.Errorf("Certificate: %v, want ErrNone and why", err)
			}
			if plain.Load() != 0 {
				t.Error("something was asked in plain")
			}
		})
	}
}

func TestOnlyTheGivenRootsAreBelieved(t *testing.T) {
	var asked atomic.Int64
	s := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer s.Close()
	if _, said := until(t, options(t, s.URL), "no server certificate from the directory, and none was kept"); !strings.Contains(said, "unknown authority") || asked.Load() != 0 {
		t.Errorf("it said %q, and asked %d times", said, asked.Load())
	}
}

func TestAnEndlessAnswerIsCut(t *testing.T) {
	var sent atomic.Int64
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for w.Header().Set("Content-Type", "application/json"); ; {
			n, err := w.Write(make([]byte, 64<<10))
			if sent.Add(int64(n)); err != nil {
				return
			}
		}
	}))
	defer s.Close()
	o := options(t, s.URL)
	o.Roots.AddCert(s.Certificate())
	until(t, o, "no server certificate from the directory, and none was kept")
	if n := sent.Load(); n > 64<<20 {
		t.Errorf("%d bytes were read", n)
	}
}

// What was kept and cannot be used is not handed out.
func TestAKeptPairThatDoesNotFitIsNotUsed(t *testing.T) {
	o := options(t, "https://127.0.0.1:1/dir")
	dir := filepath.Join(o.Dir, "certificates", "127.0.0.1-1-dir", "scep.example.test")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"scep.example.test.crt", "scep.example.test.key", "scep.example.test.json"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	core, logged := observer.New(zap.WarnLevel)
	o.Log = zap.New(core)
	c, err := courier.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Certificate(t.Context()); !errors.Is(err, courier.ErrNone) || logged.FilterMessage("kept certificate not used").Len() != 1 {
		t.Errorf("Certificate: %v; %v", err, logged.All())
	}
	if _, _, err := c.AcmeChallenge(t.Context(), "scep.example.test"); !errors.Is(err, courier.ErrNoChallenge) {
		t.Errorf("AcmeChallenge: %v, want ErrNoChallenge", err)
	}
}
