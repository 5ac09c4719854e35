package rollover_test

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"crypto/rand"

	"go.yaml.in/yaml/v3"

	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// must makes an error the test's end.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// A place is a site on its way to the next CA.
type place struct {
	*site.Site
	old, next *client.CA
}

// settle makes a site and starts it, with the first CA alone.
func settle(t *testing.T) *place {
	t.Helper()
	bin, clean, err := site.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(clean)
	s, end, err := site.New(t.Context(), bin, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(end)
	p := &place{Site: s}
	p.start(t)
	p.old = must(p.Device(t.Context(), "interop"))(t).CA
	return p
}

func (p *place) start(t *testing.T) {
	t.Helper()
	if err := p.Start(t.Context()); err != nil {
		t.Fatalf("%v\n%s", err, p.Tail())
	}
}

func (p *place) stop(t *testing.T) {
	t.Helper()
	if err := p.Stop(); err != nil {
		t.Fatalf("%v\n%s", err, p.Tail())
	}
}

// keysFile is what of a ceremony's keys.yaml is needed here.
type keysFile struct {
	Token struct{ Serial string }
	Keys  []map[string]any
	// Generations are what a ceremony of a next CA leaves for the configuration.
	Generations []map[string]any
}

func (p *place) keysFile(t *testing.T, dir string) (k keysFile) {
	t.Helper()
	if err := yaml.Unmarshal(must(os.ReadFile(p.Path(dir, "keys.yaml")))(t), &k); err != nil {
		t.Fatal(err)
	}
	return k
}

// stage carries the project's plan for a next CA out on the service's token, and
// makes what it left a generation of the service's issuer: the keys are added to the
// configuration's and the generation to the issuer's, with the paths of their files.
func (p *place) stage(t *testing.T) {
	t.Helper()
	first := p.keysFile(t, "ceremony")
	root := must(site.Root())(t)
	plan := strings.ReplaceAll(string(must(os.ReadFile(filepath.Join(root, "hsm/ceremony/scripts/next-ca.yaml")))(t)), "0123456789abcdef", first.Token.Serial)
	for i, k := range first.Keys {
		plan = strings.ReplaceAll(plan, fmt.Sprintf("id: %032d, spki: %064d", i+1, i+1), fmt.Sprintf("id: %s, spki: %s", k["id"], k["spki"]))
	}
	if err := os.WriteFile(p.Path("next.yaml"), []byte(plan), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(p.Bin(), "postern-ceremony"), "run", p.Path("next.yaml"), "--out", p.Path("next"), "--pin-file", p.Path("ceremony", "hsm-pin"))
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+p.Path("ceremony", "token", "softhsm2.conf"))
	cmd.Dir = p.Path("ceremony")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("the ceremony of the next CA: %v\n%s", err, out)
	}
	p.configure(t, p.keysFile(t, "next"))
	cert := func(name string) *x509.Certificate {
		block, _ := pem.Decode(must(os.ReadFile(p.Path("next", name)))(t))
		return must(x509.ParseCertificate(block.Bytes))(t)
	}
	p.next = &client.CA{CA: cert("ca.pem"), RASign: cert("ra-sign.pem"), RADecrypt: cert("ra-decrypt.pem")}
}

func (p *place) configure(t *testing.T, next keysFile) {
	t.Helper()
	var cfg map[string]any
	if err := yaml.Unmarshal(must(os.ReadFile(p.Config()))(t), &cfg); err != nil {
		t.Fatal(err)
	}
	keys := cfg["keys"].([]any)
	for _, k := range next.Keys {
		if role := k["purpose"]; role == "ca" || role == "ra-sign" || role == "ra-decrypt" || role == "ocsp" {
			keys = append(keys, k)
		}
	}
	cfg["keys"] = keys
	for _, g := range next.Generations {
		for _, k := range []string{"ca", "ra_sign", "ra_decrypt", "ocsp"} {
			c := g[k].(map[string]any)
			c["certificate"] = filepath.Join("next", c["certificate"].(string))
		}
	}
	cfg["issuers"].([]any)[0].(map[string]any)["generations"] = next.Generations
	if err := os.WriteFile(p.Config(), must(yaml.Marshal(cfg))(t), 0o600); err != nil {
		t.Fatal(err)
	}
}

// postern runs the operator's tool, which has to do what it is asked.
func (p *place) postern(t *testing.T, args ...string) string {
	t.Helper()
	out, errOut, code := p.Postern(t.Context(), nil, args...)
	if code != 0 {
		t.Fatalf("postern %s: %d %s%s", strings.Join(args, " "), code, out, errOut)
	}
	return out
}

// told is the JSON that the tool answers.
func told[T any](t *testing.T, p *place, args ...string) (v T) {
	t.Helper()
	out := p.postern(t, append(args, "--output", "json")...)
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return v
}

// newKey makes a device's key.
func newKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	return must(rsa.GenerateKey(rand.Reader, 2048))(t)
}

// eventually waits for what gates do a moment after a switch.
func eventually(t *testing.T, what string, is func(ctx context.Context) bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if is(t.Context()) {
			return
		}
	}
	t.Fatal("not in 20 s: " + what)
}

// openssl runs the command, which has to succeed.
func openssl(t *testing.T, args ...string) string {
	t.Helper()
	out, errOut, code := site.Run(t.Context(), nil, "openssl", args...)
	if code != 0 {
		t.Fatalf("openssl %s: %s%s", strings.Join(args, " "), out, errOut)
	}
	return out
}

// subjects are those of the certificates in a CMS message, in their order.
func subjects(t *testing.T, file string) []string {
	t.Helper()
	var out []string
	for _, m := range regexp.MustCompile(`(?m)^subject=.*CN ?= ?([^,\n]*)`).FindAllStringSubmatch(openssl(t, "pkcs7", "-inform", "DER", "-in", file, "-print_certs"), -1) {
		out = append(out, m[1])
	}
	return out
}
