// Package status_test revokes certificates of a whole service, and has openssl look at
// what the world is told of them.
//
// # What a caller may rely on
//
// The service is the real one, with its token; lists and answers are fetched over TLS
// as anybody would, and judged by another implementation.
//
// # What it does not protect against
//
// One machine and one clock: what a cache on the way keeps is not tried.
package status_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

const where = `    status:
      crl: ["http://pki.demo.example/crl/{ca}.crl"]
      ocsp: ["http://pki.demo.example/ocsp/demo"]
      ca_issuers: ["http://pki.demo.example/ca/demo.cer"]
`

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

func must[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func no(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A world is a running site.
type world struct {
	*site.Site
	t    *testing.T
	base string // of the devices' listener
	http *http.Client
	dir  string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	profiles := strings.Replace(site.Profiles, "    limits: {active_per_subject: 2}\n", "    limits: {active_per_subject: 100}\n"+where, 1)
	s, end, err := site.New(t.Context(), bin, strings.ReplaceAll(profiles, "reuse: same-subject", "reuse: any"))
	no(t, err)
	t.Cleanup(end)
	w := &world{Site: s, t: t, dir: t.TempDir()}
	w.start()
	return w
}

func (w *world) start() {
	w.t.Helper()
	no(w.t, w.Start(w.t.Context()))
	base, _, _ := strings.Cut(must(w.URL(w.t.Context(), "demo"))(w.t), "/scep/")
	w.base, w.http = base, must(w.HTTP())(w.t)
	w.t.Cleanup(w.http.CloseIdleConnections)
}

// enroll gets a certificate, and keeps it in a file.
func (w *world) enroll(cn string) (*x509.Certificate, *rsa.PrivateKey, string) {
	w.t.Helper()
	key := must(rsa.GenerateKey(rand.Reader, 2048))(w.t)
	c := must(w.NewChallenge(w.t.Context(), "demo", "CN="+cn))(w.t)
	d := must(w.Device(w.t.Context(), "demo"))(w.t)
	r := must(d.Enroll(w.t.Context(), client.Enrollment{Key: key, Subject: pkix.Name{CommonName: cn}, Challenge: []byte(c.Challenge)}))(w.t)
	path := filepath.Join(w.dir, cn+".pem")
	no(w.t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate.Raw}), 0o600))
	return r.Certificate, key, path
}

func serial(c *x509.Certificate) string { return hex.EncodeToString(c.SerialNumber.Bytes()) }

// postern runs the operator's tool, which has to exit with a status.
func (w *world) postern(code int, args ...string) (out, errOut string) {
	w.t.Helper()
	out, errOut, got := w.Postern(w.t.Context(), nil, args...)
	if got != code {
		w.t.Fatalf("postern %s: exit %d: %s%s", strings.Join(args, " "), got, out, errOut)
	}
	return out, errOut
}

// fetch asks the devices' listener.
func (w *world) fetch(method, path string, body []byte, header ...string) (*http.Response, []byte) {
	w.t.Helper()
	r := must(http.NewRequestWithContext(w.t.Context(), method, w.base+path, bytes.NewReader(body)))(w.t)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp := must(w.http.Do(r))(w.t)
	defer func() { _ = resp.Body.Close() }()
	return resp, must(io.ReadAll(resp.Body))(w.t)
}

// crl is the list that is served now, in a file too.
func (w *world) crl() (*x509.RevocationList, string) {
	w.t.Helper()
	resp, der := w.fetch(http.MethodGet, "/crl/demo.crl", nil)
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/pkix-crl" {
		w.t.Fatalf("the CRL: %s, %v", resp.Status, resp.Header)
	}
	path := filepath.Join(w.dir, "demo.crl")
	no(w.t, os.WriteFile(path, der, 0o600))
	return must(x509.ParseRevocationList(der))(w.t), path
}

func lists(l *x509.RevocationList, c *x509.Certificate) (x509.RevocationListEntry, bool) {
	for _, e := range l.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(c.SerialNumber) == 0 {
			return e, true
		}
	}
	return x509.RevocationListEntry{}, false
}

// listed waits until the list names a certificate, and says how long that took.
func (w *world) listed(c *x509.Certificate) (*x509.RevocationList, time.Duration) {
	w.t.Helper()
	begin := time.Now()
	for deadline := begin.Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if l, _ := w.crl(); len(l.RevokedCertificateEntries) > 0 {
			if _, ok := lists(l, c); ok {
				return l, time.Since(begin)
			}
		}
	}
	w.t.Fatalf("no list names %s", serial(c))
	return nil, 0
}

// openssl runs it, and wants words in what it says.
func (w *world) openssl(words string, args ...string) string {
	w.t.Helper()
	out, errOut, code := site.Run(w.t.Context(), nil, "openssl", args...)
	if all := out + errOut; !strings.Contains(all, words) {
		w.t.Errorf("openssl %s: exit %d, want %q:\n%s", strings.Join(args, " "), code, words, all)
	}
	return out + errOut
}

// ocsp asks about a certificate as openssl does, by POST, and has it judge the answer.
func (w *world) ocsp(words, cert string, more ...string) []byte {
	w.t.Helper()
	ask, answer := filepath.Join(w.dir, "ask.der"), filepath.Join(w.dir, "answer.der")
	w.openssl("", slices.Concat([]string{"ocsp"}, more, []string{"-issuer", w.CA(), "-cert", cert, "-reqout", ask})...)
	resp, der := w.fetch(http.MethodPost, "/ocsp/demo", must(os.ReadFile(ask))(w.t), "Content-Type", "application/ocsp-request")
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/ocsp-response" {
		w.t.Fatalf("OCSP: %s, %v", resp.Status, resp.Header)
	}
	no(w.t, os.WriteFile(answer, der, 0o600))
	w.openssl(words, slices.Concat([]string{"ocsp"}, more, []string{"-issuer", w.CA(), "-cert", cert, "-respin", answer, "-CAfile", w.CA(), "-no_nonce"})...)
	return der
}
