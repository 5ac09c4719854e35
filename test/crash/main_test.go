package crash_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
	"github.com/postern-pki/postern/test/softhsm"
)

// profiles allow one subject many certificates and one key many subjects: what
// is counted here is challenges.
var profiles = strings.NewReplacer("reuse: same-subject", "reuse: any", "active_per_subject: 10", "active_per_subject: 1000000").Replace(site.Profiles)

// bin is the folder of the binaries, which TestMain sets.
var bin string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	var end func()
	var err error
	if bin, end, err = site.Build(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer end()
	return m.Run()
}

// newSite makes a site that nothing runs on yet.
func newSite(t *testing.T) *site.Site {
	t.Helper()
	s, end, err := site.New(t.Context(), bin, profiles)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the service's journal:\n%s", s.Tail())
		}
		end()
	})
	return s
}

func start(t *testing.T, s *site.Site) {
	t.Helper()
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func stop(t *testing.T, s *site.Site) {
	t.Helper()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
}

func verify(t *testing.T, s *site.Site) {
	t.Helper()
	if err := s.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// posternd runs the service where it has to refuse to, and returns how it ended.
func posternd(t *testing.T, s *site.Site) (stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, stderr, code = site.Run(ctx, nil, filepath.Join(bin, "posternd"), "--config", s.Config())
	if ctx.Err() != nil {
		t.Fatalf("posternd serves where it has to refuse: %s", stderr)
	}
	return stderr, code
}

// says wants one exit status and all of the words.
func says(t *testing.T, stderr string, code, want int, words ...string) {
	t.Helper()
	if code != want {
		t.Errorf("exit %d, not %d: %s", code, want, stderr)
	}
	for _, w := range words {
		if !strings.Contains(stderr, w) {
			t.Errorf("it does not say %q: %s", w, stderr)
		}
	}
	if strings.Contains(stderr, "panic") || strings.Contains(stderr, "goroutine ") {
		t.Errorf("a panic: %s", stderr)
	}
}

// rewrite changes a file of the site.
func rewrite(t *testing.T, path string, change func(string) string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := change(string(data))
	if text == string(data) {
		t.Fatalf("nothing to change in:\n%s", data)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// shimmed puts a module that fails on demand before the site's.
func shimmed(t *testing.T, s *site.Site) softhsm.Shim {
	t.Helper()
	shim := softhsm.NewShim(t)
	rewrite(t, s.Config(), func(text string) string {
		return strings.Replace(text, softhsm.Module, shim.Module+"\n    sandbox: {write: ["+filepath.Dir(shim.Module)+"]}", 1)
	}) // it counts in its folder
	return shim
}

func newKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newDevice(t *testing.T, s *site.Site) *site.Device {
	t.Helper()
	d, err := s.Device(t.Context(), "interop")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func newChallenge(t *testing.T, s *site.Site, cn string) site.Challenge {
	t.Helper()
	c, err := s.NewChallenge(t.Context(), "interop", "CN="+cn)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// enrollment is what a device asks with a challenge.
func enrollment(key *rsa.PrivateKey, c site.Challenge) client.Enrollment {
	return client.Enrollment{Key: key, Subject: pkix.Name{CommonName: strings.TrimPrefix(c.Subject, "CN=")}, Challenge: []byte(c.Challenge)}
}

// unavailable wants the answer for a fault of the service's own.
func unavailable(t *testing.T, err error) {
	t.Helper()
	if e, ok := errors.AsType[*client.StatusError](err); !ok || e.Code != http.StatusServiceUnavailable || strings.TrimSpace(e.Text) != "service unavailable" {
		t.Errorf("the device was told: %v", err)
	}
}

func logSize(t *testing.T, s *site.Site) uint64 {
	t.Helper()
	n, err := s.LogSize(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func lines(t *testing.T, s *site.Site, from uint64) []audit.Line {
	t.Helper()
	all, err := s.Lines(from)
	if err != nil {
		t.Fatal(err)
	}
	return all
}
