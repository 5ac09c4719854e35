package clients

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// more are profiles for clients that the demonstration's would refuse: old ones,
// those with ECDSA keys, and those that sign with another key than the CSR's.
const more = `  - name: old
    protocols: [scep]
    issuer: demo
    challenge: {mode: one-time, ttl: 30m}
    approve: automatic
    key: {rsa: {min: 2048, max: 4096}, reuse: any}
    subject:
      CN: {pattern: '[a-z0-9-]{1,40}\.demo\.example', required: true}
    usage: {key: {rsa: [digitalSignature]}, extended: [clientAuth]}
    validity: {for: 365d, backdate: 1h}
    renewal: {window: 100%, max_count: 3, new_key: optional, old: keep}
    clients: {legacy: {sha1: true, des3: true}}
    limits: {active_per_subject: 10}
  - name: curves
    protocols: [scep]
    issuer: demo
    challenge: {mode: one-time, ttl: 30m}
    approve: automatic
    key: {rsa: {min: 2048, max: 4096}, ecdsa: {curves: [P-256, P-384]}, reuse: any}
    subject:
      CN: {pattern: '[a-z0-9-]{1,40}\.demo\.example', required: true}
    usage: {key: {rsa: [digitalSignature], ecdsa: [digitalSignature]}, extended: [clientAuth]}
    validity: {for: 365d, backdate: 1h}
    renewal: {window: 100%, max_count: 3, new_key: optional, old: keep}
    clients: {password_recipient: true}
    limits: {active_per_subject: 10}
  - name: helped
    protocols: [scep]
    issuer: demo
    challenge: {mode: one-time, ttl: 30m}
    approve: automatic
    key: {ecdsa: {curves: [P-256]}, reuse: any}
    subject:
      CN: {pattern: '[a-z0-9-]{1,40}\.demo\.example', required: true}
    usage: {key: {ecdsa: [digitalSignature]}, extended: [clientAuth]}
    validity: {for: 365d, backdate: 1h}
    clients: {signer_key: any}
`

var (
	shared *site.Site
	device *rsa.PrivateKey
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

// run has a site whose profile `old` is the default one.
func run(m *testing.M) int {
	ctx := context.Background()
	bin, clean, err := site.Build(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer clean()
	s, end, err := site.New(ctx, bin, site.Profiles+more)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer end()
	if device, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := start(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	shared = s
	code := m.Run()
	if code != 0 {
		fmt.Fprintf(os.Stderr, "the service's journal:\n%s", s.Tail())
	}
	if err := s.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := s.Verify(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func start(ctx context.Context, s *site.Site) error {
	text, err := os.ReadFile(s.Config())
	if err != nil {
		return err
	}
	text = bytes.Replace(text, []byte("devices:\n"), []byte("devices:\n    default_profile: old\n"), 1)
	if err := os.WriteFile(s.Config(), text, 0o600); err != nil {
		return err
	}
	return s.Start(ctx)
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func at(t *testing.T, profile string) *site.Device {
	t.Helper()
	d := must(shared.Device(t.Context(), profile))(t)
	t.Cleanup(d.HTTP.CloseIdleConnections)
	return d
}

func challenge(t *testing.T, profile, cn string) string {
	t.Helper()
	return must(shared.NewChallenge(t.Context(), profile, "CN="+cn))(t).Challenge
}

// openssl runs the binary, and returns its standard output.
func openssl(t *testing.T, stdin []byte, args ...string) []byte {
	t.Helper()
	out, errOut, code := site.Run(t.Context(), stdin, "openssl", args...)
	if code != 0 {
		t.Fatalf("openssl %s: %s", strings.Join(args, " "), errOut)
	}
	return []byte(out)
}

// request has OpenSSL make a CSR, with a challenge unless it is "".
func request(t *testing.T, key crypto.Signer, cn, challenge string) []byte {
	t.Helper()
	dir := t.TempDir()
	der := must(x509.MarshalPKCS8PrivateKey(key))(t)
	config := "[req]\nprompt = no\ndistinguished_name = dn\nattributes = attributes\n[dn]\nCN = " + cn + "\n[attributes]\n"
	if challenge != "" {
		config += "challengePassword = " + challenge + "\n"
	}
	for name, data := range map[string][]byte{"key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), "config": []byte(config)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return openssl(t, nil, "req", "-new", "-key", filepath.Join(dir, "key"), "-config", filepath.Join(dir, "config"), "-outform", "DER")
}

// signed is the message of a device that has no certificate.
func signed(t *testing.T, key crypto.Signer, csr []byte) client.Message {
	t.Helper()
	signer := must(site.SelfSigned(key, pkix.Name{CommonName: "device"}, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)))(t)
	return client.Message{Type: scep.PKCSReq, Signer: signer, SignerKey: key, CSR: csr}
}

// send sends a message, and verifies nothing but the answer's signature.
func send(t *testing.T, d *site.Device, m client.Message) *client.Rep {
	t.Helper()
	r := must(d.Request(m))(t)
	return read(t, must(d.Post(t.Context(), r.DER))(t).DER)
}

func read(t *testing.T, der []byte) *client.Rep {
	t.Helper()
	rep := must(client.Inspect(&client.Reply{DER: der}))(t)
	if err := rep.Signed.Verify(); err != nil {
		t.Fatal(err)
	}
	return rep
}

// certificateOf reads what an opened envelope holds: the issued certificate alone.
func certificateOf(t *testing.T, content []byte) *x509.Certificate {
	t.Helper()
	certs := must(cms.ParseCertsOnly(must(cms.DER(content, cms.DefaultLimits()))(t)))(t)
	if len(certs) != 1 {
		t.Fatalf("%d certificates", len(certs))
	}
	return must(x509.ParseCertificate(certs[0]))(t)
}

// toRSA opens the envelope of an answer with the device's key.
func toRSA(t *testing.T, rep *client.Rep, c cms.Cipher) *x509.Certificate {
	t.Helper()
	if rep.Status != scep.StatusSuccess {
		t.Fatalf("status %d, failInfo %d, %q", rep.Status, rep.FailInfo, rep.FailInfoText)
	}
	e := must(cms.ParseEnvelope(must(cms.DER(rep.Signed.Content, cms.DefaultLimits()))(t)))(t)
	if e.Cipher != c || len(e.Recipients) != 1 || len(e.Passwords) != 0 {
		t.Fatalf("%v, %d recipients, %d passwords", e.Cipher, len(e.Recipients), len(e.Passwords))
	}
	key := must(device.Decrypt(rand.Reader, e.Recipients[0].EncryptedKey, nil))(t)
	return certificateOf(t, must(e.Open(key))(t))
}

// A report is what `postern report clients` says.
type report struct {
	Requests, Old int
	Traits        []struct {
		Trait             string
		Requests, Clients int
	}
	Clients []struct {
		Profile, Subject, Source, Agent string
		Traits                          []string
		Requests, Refused               int
	}
}

func reported(t *testing.T, profile string) (r report) {
	t.Helper()
	out, errOut, code := shared.Postern(t.Context(), nil, "report", "clients", "--since", "1h", "--profile", profile, "--output", "json")
	if err := json.Unmarshal([]byte(out), &r); code != 0 || err != nil {
		t.Fatalf("postern report clients: exit %d: %s%s", code, out, errOut)
	}
	return r
}

// of are the traits of a client by its subject's CN.
func (r report) of(cn string) string {
	for _, c := range r.Clients {
		if strings.Contains(c.Subject, "CN="+cn) {
			return strings.Join(c.Traits, " ")
		}
	}
	return ""
}

// sameKey reports whether a certificate is for a key.
func sameKey(c *x509.Certificate, key *ecdsa.PrivateKey) bool {
	pub, ok := c.PublicKey.(*ecdsa.PublicKey)
	return ok && pub.Equal(key.Public())
}
