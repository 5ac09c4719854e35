package vouch_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/protocol/scep"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// bin is where the binaries are.
var bin string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		b, end, err := site.Build(context.Background())
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer end()
		bin = b
		return m.Run()
	}())
}

// key is the one key of all devices here.
var key = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

// must fails the test on an error.
func must[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// profile is one whose challenge is given.
func profile(name, challenge string) string {
	return `  - name: ` + name + `
    protocols: [scep]
    issuer: demo
    challenge: ` + challenge + `
    approve: automatic
    key: {rsa: {min: 2048, max: 4096}, reuse: any}
    subject:
      CN: {pattern: '[a-z0-9-]{1,40}\.demo\.example', required: true}
    usage: {key: {rsa: [digitalSignature]}, extended: [clientAuth]}
    validity: {for: 365d, backdate: 1h}
    renewal: {window: 100%, max_count: 3, new_key: optional, old: keep}
    limits: {active_per_subject: 1000}
`
}

// serve runs a service of these profiles; files are put beside its configuration, and
// sections into it.
func serve(t *testing.T, profiles string, files map[string][]byte, sections map[string]any) *site.Site {
	t.Helper()
	s, end, err := site.New(t.Context(), bin, "profiles:\n"+profiles)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(end)
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(s.Dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var cfg map[string]any
	if err := yaml.Unmarshal(must(os.ReadFile(s.Config()))(t), &cfg); err != nil {
		t.Fatal(err)
	}
	for k, v := range sections {
		cfg[k] = v
	}
	if err := os.WriteFile(s.Config(), must(yaml.Marshal(cfg))(t), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// stop ends the service in order, with a log that verifies.
func stop(t *testing.T, s *site.Site) {
	t.Helper()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context()); err != nil {
		t.Error(err)
	}
}

// message is what a device of that name sends.
func message(t *testing.T, cn, challenge string) client.Message {
	t.Helper()
	csr := must(client.NewCSR(key(), client.CSR{Subject: pkix.Name{CommonName: cn}, Challenge: []byte(challenge)}))(t)
	signer := must(site.SelfSigned(key(), pkix.Name{CommonName: "device"}, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)))(t)
	return client.Message{Type: scep.PKCSReq, Signer: signer, SignerKey: key(), CSR: csr}
}

// request is the message of a device of that name to a profile.
func request(t *testing.T, s *site.Site, profile, cn, challenge string) (*site.Device, *site.Request) {
	t.Helper()
	d := must(s.Device(t.Context(), profile))(t)
	t.Cleanup(d.HTTP.CloseIdleConnections)
	return d, must(d.Request(message(t, cn, challenge)))(t)
}

// send sends a request, once or again.
func send(t *testing.T, d *site.Device, r *site.Request) (*x509.Certificate, error) {
	t.Helper()
	got, err := d.Do(t.Context(), r)
	if err != nil {
		return nil, err
	}
	return got.Certificate, nil
}

// unavailable fails unless the answer was 503.
func unavailable(t *testing.T, err error) {
	t.Helper()
	if e, ok := errors.AsType[*client.StatusError](err); !ok || e.Code != 503 {
		t.Errorf("%v, want the status 503", err)
	}
}

// logged returns the objects of the log's records of an event and outcome.
func logged(t *testing.T, s *site.Site, event, outcome string) []audit.Object {
	t.Helper()
	var out []audit.Object
	err := audit.Scan(s.Path("state", "audit"), 0, func(l audit.Line) error {
		if l.Record.Event == event && l.Record.Outcome == outcome {
			out = append(out, l.Record.Object)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// nowhere fails if a secret is in the service's log or journal.
func nowhere(t *testing.T, s *site.Site, secrets ...string) {
	t.Helper()
	files := append(must(filepath.Glob(s.Path("state", "audit", "*")))(t), s.Journal())
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil {
			for _, secret := range secrets {
				if strings.Contains(string(b), secret) {
					t.Errorf("%s has a secret in it: %s", f, secret)
				}
			}
		}
	}
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
