package rollover_test

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/postern-pki/postern/test/site"
)

// `postern scep` as a device on its way from one CA to the next: it fetches the next
// CA, which the current one vouches for, and renews with that before GetCACert has
// it. A server between two CAs is right to a probe.
//
// Covers: S-042
func TestADeviceFollowsItsCA(t *testing.T) {
	p := settle(t)
	dir := t.TempDir()
	file := func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) }
	scep := func(want int, stdin, fingerprint string, args ...string) string {
		t.Helper()
		all := append([]string{"scep", args[0], "--url", must(p.URL(t.Context(), "interop"))(t), "--tls-ca", p.CA(), "--output", "json"}, args[1:]...)
		if fingerprint != "" {
			all = append(all, "--ca-fingerprint", fingerprint)
		}
		out, errOut, code := p.Postern(t.Context(), []byte(stdin), all...)
		if code != want {
			t.Fatalf("%v: exit %d: %s%s", args, code, out, errOut)
		}
		return out
	}
	old := must(p.Fingerprint(t.Context()))(t)
	scep(1, "", old, "getnextca", "--out", file("next"))
	c := must(p.NewChallenge(t.Context(), "interop", "CN=crosses.demo.example"))(t)
	scep(0, c.Challenge, old, "enroll", "--subject", "CN=crosses.demo.example", "--challenge-file", "-", "--out", file("old"))
	p.stop(t)
	p.stage(t)
	p.start(t)

	var announced []struct{ Use, SHA256 string }
	if err := json.Unmarshal([]byte(scep(0, "", old, "getnextca", "--out", file("next"))), &announced); err != nil {
		t.Fatal(err)
	}
	var next string
	for _, a := range announced {
		if a.Use == "ca" {
			next = a.SHA256
		}
	}
	scep(1, "", next, "renew", "--in", file("old"), "--out", file("early")) // GetCACert has the old one
	scep(0, "", next, "renew", "--ca-certs", file("next", "certs.pem"), "--in", file("old"), "--out", file("new"))
	if out, errOut, code := site.Run(t.Context(), nil, "openssl", "verify", "-CAfile", file("next", "ca.pem"), file("new", "cert.pem")); code != 0 {
		t.Errorf("openssl verify: %s%s", out, errOut)
	}
	scep(0, "", "", "probe", "--fail", "weak")
}
