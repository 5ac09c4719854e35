package device_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/cmd/postern/cli"
	"github.com/postern-pki/postern/cmd/postern/device"
	"github.com/postern-pki/postern/test/responder"
)

// A tool runs commands against one server, with its answers as JSON.
type tool struct {
	t   *testing.T
	s   *responder.Server
	ca  string
	dir string
}

func newTool(t *testing.T) *tool {
	s := responder.New(t)
	s.StartTLS()
	return &tool{t: t, s: s, ca: s.TLSCA(), dir: t.TempDir()}
}

func (x *tool) path(parts ...string) string {
	return filepath.Join(append([]string{x.dir}, parts...)...)
}

// bare runs a command, and returns what it printed and how it ended.
func (x *tool) bare(args ...string) (out map[string]any, code int, said error) {
	x.t.Helper()
	var stdout, stderr bytes.Buffer
	format := "json"
	c := device.Command(cli.Env{In: strings.NewReader("secret\n"), Out: &stdout, ErrOut: &stderr, Output: &format})
	c.SilenceErrors, c.SilenceUsage = true, true
	c.SetArgs(args)
	err := c.ExecuteContext(context.Background())
	if stdout.Len() > 0 {
		if err := json.Unmarshal(stdout.Bytes(), &out); err != nil {
			x.t.Fatalf("%v: %s", args, stdout.String())
		}
	}
	if err == nil {
		return out, 0, nil
	}
	if e, ok := errors.AsType[*cli.Error](err); ok {
		if e.Hint == "" {
			x.t.Errorf("%v: no hint for %v", args, err)
		}
		return out, e.Code, err
	}
	return out, 2, err
}

// run asks the server.
func (x *tool) run(command string, args ...string) (map[string]any, int, error) {
	x.t.Helper()
	return x.bare(append([]string{command, "--url", x.s.URL + "/scep/x", "--tls-ca", x.ca, "--ca-fingerprint", x.s.Fingerprint()}, args...)...)
}

func (x *tool) certificate(path string) *x509.Certificate {
	x.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		x.t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		x.t.Fatal(err)
	}
	return c
}

// A script can tell a request that is pending from one that was granted or
// refused, and a later run goes on with it from its folder alone.
func TestPending(t *testing.T) {
	x := newTool(t)
	x.s.Pending = true
	out, code, err := x.run("enroll", "--subject", "CN=a.example", "--out", x.path("one"), "--challenge-file", "-")
	if code != device.ExitPending || out["status"] != "pending" || out["folder"] != x.path("one") || len(out["transaction"].(string)) != 64 {
		t.Fatal(out, err, code)
	}
	if st, err := os.Stat(x.path("one", "request.json")); err != nil || st.Mode().Perm() != 0o600 {
		t.Error(st, err)
	}
	if data, _ := os.ReadFile(x.path("one", "request.json")); bytes.Contains(data, []byte("secret")) || bytes.Contains(data, []byte("PRIVATE")) {
		t.Errorf("a secret is kept: %s", data)
	}
	if _, err := os.Stat(x.path("one", "cert.pem")); err == nil {
		t.Error("there is a certificate")
	}
	if out, code, err := x.bare("poll", "--out", x.path("one")); code != device.ExitPending || out["status"] != "pending" {
		t.Error(out, err, code)
	}
	x.s.Pending = false
	if out, code, err = x.bare("poll", "--out", x.path("one")); code != 0 || out["status"] != "issued" || out["certificate"] != x.path("one", "cert.pem") {
		t.Fatal(out, err, code)
	}
	if _, err := os.Stat(x.path("one", "request.json")); err == nil {
		t.Error("the request is kept, although it was answered")
	}
	if _, code, err := x.bare("poll", "--out", x.path("one")); code != 1 || !strings.Contains(err.Error(), "no request is pending") {
		t.Error(err, code)
	}
	// Its renewal is pending too: it goes on with the old key.
	x.s.Pending = true
	if out, code, err := x.run("renew", "--in", x.path("one"), "--out", x.path("two")); code != device.ExitPending {
		t.Fatal(out, err, code)
	}
	x.s.Pending = false
	if out, code, err := x.bare("poll", "--out", x.path("two")); code != 0 || out["status"] != "issued" {
		t.Fatal(out, err, code)
	}
	if x.certificate(x.path("one", "cert.pem")).Equal(x.certificate(x.path("two", "cert.pem"))) {
		t.Error("the same certificate")
	}
}

// What was denied stays denied, and the refusal is said.
func TestDenied(t *testing.T) {
	x := newTool(t)
	x.s.Pending = true
	if _, code, err := x.run("enroll", "--subject", "CN=a.example", "--out", x.path("one")); code != device.ExitPending {
		t.Fatal(err, code)
	}
	x.s.Pending, x.s.Denied = false, true
	for range 2 {
		out, code, err := x.bare("poll", "--out", x.path("one"))
		if code != 1 || out["status"] != "failure" || out["fail_info_name"] != "badRequest" || !strings.Contains(err.Error(), "not one of ours") {
			t.Error(out, err, code)
		}
	}
}

// A server that used a nonce before is found out in another process too.
func TestNoncesAreKept(t *testing.T) {
	x := newTool(t)
	x.s.Pending, x.s.SameNonce = true, true
	if _, code, err := x.run("enroll", "--subject", "CN=a.example", "--out", x.path("one")); code != device.ExitPending {
		t.Fatal(err, code)
	}
	if _, code, err := x.bare("poll", "--out", x.path("one")); code != 1 || !strings.Contains(err.Error(), "used before") {
		t.Error(err, code)
	}
}

// --wait goes on asking, also while the server is away.
func TestWait(t *testing.T) {
	x := newTool(t)
	x.s.Pending = true
	if _, code, err := x.run("enroll", "--subject", "CN=a.example", "--out", x.path("one"), "--wait", "1500ms", "--every", "1s"); code != device.ExitPending || x.s.Polls != 1 {
		t.Fatal(err, code, x.s.Polls)
	}
	x.s.Pending, x.s.Away = false, true
	if _, code, err := x.bare("poll", "--out", x.path("one")); code != 1 {
		t.Error(err, code)
	}
	timer := time.AfterFunc(1500*time.Millisecond, func() { x.s.Set(func() { x.s.Away = false }) })
	defer timer.Stop()
	if out, code, err := x.bare("poll", "--out", x.path("one"), "--wait", "30s", "--every", "1s"); code != 0 || out["status"] != "issued" {
		t.Error(out, err, code)
	}
	if _, code, err := x.bare("poll", "--out", x.path("one"), "--every", "1ms"); code != 2 {
		t.Error(err, code)
	}
}

func TestAStateThatIsBroken(t *testing.T) {
	x := newTool(t)
	x.s.Pending = true
	if _, code, err := x.run("enroll", "--subject", "CN=a.example", "--out", x.path("one")); code != device.ExitPending {
		t.Fatal(err, code)
	}
	good, err := os.ReadFile(x.path("one", "request.json"))
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"cut": string(good[:len(good)/2]), "another version": strings.Replace(string(good), `"version": 1`, `"version": 2`, 1),
		"unknown": strings.Replace(string(good), `"version"`, `"edition"`, 1), "no base64": strings.Replace(string(good), `"signer": "`, `"signer": "!`, 1),
		"no key": strings.Replace(string(good), `"signer_key": "key.pem"`, `"signer_key": "none.pem"`, 1),
	} {
		if err := os.WriteFile(x.path("one", "request.json"), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, code, err := x.bare("poll", "--out", x.path("one")); code != 1 {
			t.Errorf("%s: %v, %d", name, err, code)
		}
	}
	if x.s.Polls != 0 {
		t.Error("the server was asked")
	}
}

func TestQueries(t *testing.T) {
	x := newTool(t)
	out, code, err := x.run("enroll", "--subject", "CN=a.example", "--out", x.path("one"))
	if code != 0 {
		t.Fatal(err)
	}
	serial := out["serial"].(string)
	out, code, err = x.run("getcert", "--serial", serial, "--out", x.path("got"), "--cipher", "AES-256-CBC", "--digest", "sha-512", "--method", "get")
	if code != 0 || out["serial"] != serial || !x.certificate(x.path("got", "cert.pem")).Equal(x.certificate(x.path("one", "cert.pem"))) {
		t.Error(out, err, code)
	}
	if _, code, err := x.run("getcert", "--serial", "77"); code != 1 || !strings.Contains(err.Error(), "badCertId") {
		t.Error(err, code)
	}
	if out, code, err := x.run("getcrl", "--in", x.path("one"), "--out", x.path("crl")); code != 0 || out["status"] != "good" || out["number"] != "1" {
		t.Error(out, err, code)
	}
	x.s.Set(func() { x.s.Revoked = append(x.s.Revoked, x.certificate(x.path("one", "cert.pem")).SerialNumber) })
	if out, code, err := x.run("getcrl", "--serial", serial); code != 0 || out["status"] != "revoked" || out["reason"] != 1.0 {
		t.Error(out, err, code)
	}
	for _, args := range [][]string{{"getcert"}, {"getcrl"}, {"getcert", "--serial", "xyz"}, {"getcert", "--serial", "77", "--digest", "MD5"}, {"getcrl", "--serial", "77", "--cipher", "DES-CBC"}, {"getcrl", "--serial", "77", "--method", "PUT"}} {
		if _, code, err := x.run(args[0], args[1:]...); code != 2 {
			t.Error(args, err, code)
		}
	}
}

// The next CA can be enrolled with before GetCACert has it.
func TestNextCA(t *testing.T) {
	x := newTool(t)
	if _, code, err := x.run("getnextca"); code != 1 || !strings.Contains(err.Error(), "no next CA") {
		t.Error(err, code)
	}
	x.s.Announce(x.s.RA, x.s.CA, x.s.Root)
	var out bytes.Buffer
	format := "text"
	c := device.Command(cli.Env{Out: &out, ErrOut: &out, Output: &format})
	c.SetArgs([]string{"getnextca", "--url", x.s.URL, "--tls-ca", x.ca, "--ca-fingerprint", x.s.Fingerprint(), "--out", x.path("next")})
	if err := c.Execute(); err != nil || strings.Count(out.String(), "\n") != 4 {
		t.Fatal(err, out.String())
	}
	x.s.Set(func() { x.s.Certs = x.s.Certs[1:] }) // nobody could enroll with these
	if _, code, err := x.run("enroll", "--subject", "CN=a.example", "--out", x.path("one"), "--ca-certs", x.path("next", "certs.pem")); code != 0 {
		t.Error(err, code)
	}
	if _, code, err := x.run("enroll", "--subject", "CN=a.example", "--out", x.path("two"), "--ca-certs", x.path("one", "key.pem")); code != 1 {
		t.Error(err, code)
	}
}
