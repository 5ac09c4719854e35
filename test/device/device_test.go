package device

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/test/site"
)

// A tester runs commands on a site of its own, which has a profile whose requests
// wait for an operator.
type tester struct {
	*testing.T
	s   *site.Site
	dir string
}

var shared *site.Site

func TestMain(m *testing.M) {
	manual := site.Profiles[strings.Index(site.Profiles, "  - name: interop"):]
	manual = strings.Replace(manual, "name: interop", "name: manual", 1)
	manual = strings.Replace(manual, "approve: automatic", "approve: manual", 1)
	manual += "    status: {crl: [\"http://pki.demo.example/crl/demo.crl\"]}\n"
	os.Exit(site.Main(context.Background(), site.Profiles+manual, func(s *site.Site) int { shared = s; return m.Run() }))
}

func newTester(t *testing.T) *tester { return &tester{t, shared, t.TempDir()} }

func (t *tester) path(parts ...string) string {
	return strings.Join(append([]string{t.dir}, parts...), "/")
}

// postern runs a command with JSON, and wants this status of it.
func (t *tester) postern(want int, stdin string, args ...string) map[string]any {
	t.Helper()
	out, errOut, code := t.s.Postern(t.Context(), []byte(stdin), append(args, "--output", "json")...)
	if code != want {
		t.Fatalf("%v: exit %d, want %d: %s%s", args, code, want, out, errOut)
	}
	var v map[string]any
	if out != "" && json.Unmarshal([]byte(out), &v) != nil {
		var list []any
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	return v
}

// server are the flags that say which server is meant.
func (t *tester) server(profile string) []string {
	t.Helper()
	url, err := t.s.URL(t.Context(), profile)
	if err != nil {
		t.Fatal(err)
	}
	fingerprint, err := t.s.Fingerprint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return []string{"--url", url, "--tls-ca", t.s.CA(), "--ca-fingerprint", fingerprint}
}

func (t *tester) enroll(want int, profile, name string, more ...string) map[string]any {
	t.Helper()
	c, err := t.s.NewChallenge(t.Context(), profile, "CN="+name+".demo.example")
	if err != nil {
		t.Fatal(err)
	}
	args := append([]string{"scep", "enroll"}, t.server(profile)...)
	args = append(args, "--subject", "CN="+name+".demo.example", "--challenge-file", "-", "--out", t.path(name))
	return t.postern(want, c.Challenge, append(args, more...)...)
}

// waiting returns the id of the newest request that waits.
func (t *tester) waiting() string {
	t.Helper()
	out, errOut, code := t.s.Postern(t.Context(), nil, "pending", "list", "--output", "json")
	var list struct {
		Pending []struct {
			ID string `json:"id"`
		} `json:"pending"`
	}
	if err := json.Unmarshal([]byte(out), &list); code != 0 || err != nil || len(list.Pending) == 0 {
		t.Fatalf("pending list: %v: %s%s", err, out, errOut)
	}
	return list.Pending[0].ID
}

// A request waits for an operator, outlives a restart of the service, is polled for
// from its folder, and is issued when it was approved. Its renewal needs nobody.
//
// Covers: S-140, S-141, S-142, S-143
func TestARequestThatWaits(tt *testing.T) {
	t := newTester(tt)
	t.enroll(3, "manual", "waits")
	t.postern(3, "", "scep", "poll", "--out", t.path("waits"))
	if err := t.s.Stop(); err != nil {
		t.Fatal(err)
	}
	t.moved(func() {
		if err := t.s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}, "waits")
	t.postern(3, "", "scep", "poll", "--out", t.path("waits"))
	t.postern(0, "", "pending", "approve", t.waiting(), "--reason", "known to us")
	if got := t.postern(0, "", "scep", "poll", "--out", t.path("waits")); got["status"] != "issued" || !strings.Contains(got["subject"].(string), "CN=waits.demo.example") {
		t.Errorf("got %v", got)
	}
	args := append([]string{"scep", "renew"}, t.server("manual")...)
	t.postern(0, "", append(args, "--in", t.path("waits"), "--out", t.path("renewed"))...)
	t.verified("renewed")
}

// moved does something that gives the service another port, and tells the folder.
func (t *tester) moved(do func(), folder string) {
	t.Helper()
	do()
	file := t.path(folder, "request.json")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var state map[string]any
	if err := json.Unmarshal(data, &state); err != nil {
		t.Fatal(err)
	}
	state["server"].(map[string]any)["url"] = t.server("manual")[1]
	if data, err = json.Marshal(state); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (t *tester) verified(folder string) {
	t.Helper()
	if out, errOut, code := site.Run(t.Context(), nil, "openssl", "verify", "-CAfile", t.s.CA(), t.path(folder, "cert.pem")); code != 0 {
		t.Errorf("openssl verify: %s%s", out, errOut)
	}
}

// A request that was denied stays denied, and says so each time.
func TestARequestThatIsDenied(tt *testing.T) {
	t := newTester(tt)
	t.enroll(3, "manual", "denied")
	t.postern(0, "", "pending", "deny", t.waiting(), "--reason", "not ours")
	for range 2 {
		got := t.postern(1, "", "scep", "poll", "--out", t.path("denied"))
		if got["status"] != "failure" || got["fail_info_name"] != "badRequest" || strings.Contains(got["text"].(string), "not ours") {
			t.Errorf("got %v", got)
		}
	}
}

// --wait goes on asking until an operator decided.
func TestWaiting(tt *testing.T) {
	t := newTester(tt)
	t.enroll(3, "manual", "patient")
	id := t.waiting()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _, _ = t.s.Postern(context.Background(), nil, "pending", "approve", id, "--reason", "known to us")
	}()
	got := t.postern(0, "", "scep", "poll", "--out", t.path("patient"), "--wait", "60s", "--every", "1s")
	<-done
	if got["status"] != "issued" {
		t.Errorf("got %v", got)
	}
	t.verified("patient")
}

// Covers: S-161, S-164
func TestGetCert(tt *testing.T) {
	t := newTester(tt)
	serial := t.enroll(0, "interop", "asked")["serial"].(string)
	ask := func(want int, profile string, more ...string) map[string]any {
		t.Helper()
		return t.postern(want, "", append(append([]string{"scep", "getcert"}, t.server(profile)...), more...)...)
	}
	if got := ask(0, "interop", "--serial", serial, "--out", t.path("got")); got["serial"] != serial {
		t.Errorf("got %v", got)
	}
	one, err := os.ReadFile(t.path("asked", "cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if two, err := os.ReadFile(t.path("got", "cert.pem")); err != nil || string(one) != string(two) {
		t.Errorf("another certificate: %v", err)
	}
	ask(0, "interop", "--in", t.path("asked"), "--digest", "SHA-512", "--cipher", "AES-256-CBC", "--method", "GET")
	ask(1, "interop", "--serial", "7777")
	ask(1, "demo", "--serial", serial) // it is of another profile
}

// A revocation is in the list that a device asks for, at the latest in the next.
//
// Covers: S-162
func TestGetCRL(tt *testing.T) {
	t := newTester(tt)
	serial := t.enroll(0, "interop", "listed")["serial"].(string)
	ask := func(folder string) map[string]any {
		t.Helper()
		args := append([]string{"scep", "getcrl"}, t.server("interop")...)
		return t.postern(0, "", append(args, "--in", t.path("listed"), "--out", t.path(folder))...)
	}
	first := ask("first")
	if first["status"] != "good" || first["serial"] != serial {
		t.Errorf("got %v", first)
	}
	t.postern(0, "", "cert", "revoke", serial, "--reason", "keyCompromise", "--apply")
	next := map[string]any{}
	for end := time.Now().Add(20 * time.Second); next["status"] != "revoked" && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		next = ask(fmt.Sprint("next-", time.Now().UnixNano()))
	}
	if next["status"] != "revoked" || next["reason"] != 1.0 || next["number"] == first["number"] {
		t.Errorf("got %v after %v", next, first)
	}
	if out, errOut, code := site.Run(t.Context(), nil, "openssl", "crl", "-in", t.path("first", "crl.pem"), "-CAfile", t.s.CA(), "-noout"); code != 0 {
		t.Errorf("openssl crl: %s%s", out, errOut)
	}
}

// All profiles, also one whose requests wait, are right to a probe.
func TestProbe(tt *testing.T) {
	t := newTester(tt)
	for _, profile := range []string{"demo", "interop", "manual"} {
		s := t.server(profile)[:4]
		t.postern(0, "", append([]string{"scep", "probe", "--fail", "weak"}, s...)...)
	}
}
