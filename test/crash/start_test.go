package crash_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/postern-pki/postern/test/site"
	"github.com/postern-pki/postern/test/softhsm"
)

func TestAMissingTokenIsAClearStop(t *testing.T) {
	s := newSite(t)
	tokens, away := s.Path("ceremony", "token", "tokens"), s.Path("ceremony", "token", "away")
	if err := os.Rename(tokens, away); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(tokens, 0o700); err != nil {
		t.Fatal(err)
	}
	stderr, code := posternd(t, s)
	says(t, stderr, code, 1, "opening the token", "REHEARSAL postern-demo")
	if err := os.Remove(tokens); err != nil {
		t.Fatal(err)
	}
	stderr, code = posternd(t, s) // not even the folder of the tokens
	says(t, stderr, code, 1, "opening the token")
	if err := os.Rename(away, tokens); err != nil {
		t.Fatal(err)
	}
	start(t, s)
	stop(t, s)
}

// TestARefusedPINIsTriedOnce counts the attempts.
func TestARefusedPINIsTriedOnce(t *testing.T) {
	s := newSite(t)
	shim := shimmed(t, s)
	shim.Spoil(t, "Login", "rv 0xA0", 100) // CKR_PIN_INCORRECT
	stderr, code := posternd(t, s)
	says(t, stderr, code, 1, "opening the token", "did not take the PIN", "not tried again")
	if n := shim.Spoiled(t); n != 1 {
		t.Errorf("the PIN was tried %d times", n)
	}
	shim.Spoil(t, "Login", "rv 0xA0", 0)
	start(t, s) // the right PIN was there all the time
	stop(t, s)
}

// TestAWrongPINDoesNotLockTheToken gives a real wrong PIN once, and restarts the
// service as often as a service manager would.
func TestAWrongPINDoesNotLockTheToken(t *testing.T) {
	s := newSite(t)
	path := s.Path("ceremony", "hsm-pin")
	right, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	write := func(pin []byte) {
		t.Helper()
		if err := os.WriteFile(path, pin, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write([]byte("wrong-PIN-1234\n"))
	stderr, code := posternd(t, s)
	says(t, stderr, code, 1, "opening the token", "PIN")
	if strings.Contains(stderr, "wrong-PIN-1234") {
		t.Errorf("the PIN is in the journal: %s", stderr)
	}
	// From here on there is no attempt: those with the right PIN would succeed.
	write(right)
	for range 3 {
		stderr, code = posternd(t, s)
		says(t, stderr, code, 1, "a wrong PIN was given since the last login", "pkcs11-tool --login")
	}
	login(t, s, strings.TrimSpace(string(right)))
	start(t, s)
	stop(t, s)
}

// login is what the service tells its operator to do: log in once by another
// program.
func login(t *testing.T, s *site.Site, pin string) {
	t.Helper()
	t.Setenv("SOFTHSM2_CONF", s.Path("ceremony", "token", "softhsm2.conf"))
	p := pkcs11.New(softhsm.Module)
	if p == nil {
		t.Fatal("cannot load " + softhsm.Module)
	}
	defer p.Destroy()
	if err := p.Initialize(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Finalize() }()
	slots, err := p.GetSlotList(true)
	if err != nil || len(slots) == 0 {
		t.Fatalf("slots %v, %v", slots, err)
	}
	session, err := p.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION)
	if err == nil {
		err = errors.Join(p.Login(session, pkcs11.CKU_USER, pin), p.Logout(session))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestAnUnknownKeyIsNamedWithItsPlace(t *testing.T) {
	s := newSite(t)
	var line int
	rewrite(t, s.Config(), func(text string) string {
		before, after, _ := strings.Cut(text, "\norigin:")
		line = strings.Count(before, "\n") + 2
		return before + "\norigni:" + after
	})
	stderr, code := posternd(t, s)
	says(t, stderr, code, 78, fmt.Sprintf("%s:%d:", s.Config(), line), `did you mean "origin"?`, "postern config check")
	rewrite(t, s.Config(), func(text string) string { return strings.Replace(text, "\norigni:", "\norigin:", 1) })

	path := s.Path("profiles.d", "profiles.yaml")
	rewrite(t, path, func(text string) string {
		before, after, _ := strings.Cut(text, "approve: automatic")
		line = strings.Count(before, "\n") + 1
		return before + "aprove: automatic" + after
	})
	stderr, code = posternd(t, s)
	says(t, stderr, code, 78, fmt.Sprintf("profiles.yaml:%d:", line), "aprove", `"approve"`)
}

func TestTwoServicesOnOneState(t *testing.T) {
	s := newSite(t)
	start(t, s)
	stderr, code := posternd(t, s)
	says(t, stderr, code, 1, "a server answers on that socket", "another posternd")
	newChallenge(t, s, "a.demo.example") // the first serves
	stop(t, s)
	start(t, s)
	stop(t, s)
}

// TestADamagedLogIssuesNothing changes one letter in the middle of a log that was
// closed in order.
func TestADamagedLogIssuesNothing(t *testing.T) {
	s := newSite(t)
	start(t, s)
	for i := range 8 {
		newChallenge(t, s, fmt.Sprintf("d%d.demo.example", i))
	}
	stop(t, s)
	segments, err := filepath.Glob(s.Path("state", "audit", "segments", "*.jsonl"))
	if err != nil || len(segments) != 1 {
		t.Fatalf("segments: %v, %v", segments, err)
	}
	data, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	all := bytes.SplitAfter(data, []byte("\n"))
	n := len(all) / 2
	at := bytes.Index(all[n], []byte(".demo.example"))
	if at < 0 {
		t.Fatalf("line %d has no name: %s", n+1, all[n])
	}
	all[n][at+1] ^= 1 // d becomes e: still JSON, and still canonical
	if err := os.WriteFile(segments[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	name := filepath.Base(segments[0])
	stderr, code := posternd(t, s)
	says(t, stderr, code, 1, "maintenance", name, "postern audit verify")
	out, stderr, code := s.Postern(t.Context(), nil, "audit", "verify")
	says(t, stderr, code, 1, "damaged: segment", name, fmt.Sprintf("line %d,", n+1))
	if strings.Contains(out, "whole") {
		t.Errorf("and yet: %s", out)
	}
	after, err := os.ReadFile(segments[0])
	if err != nil || !bytes.Equal(after, data) {
		t.Errorf("the evidence was changed: %v", err)
	}
}

// The PIN is searched for where it must never be.
func TestThePINIsNowhere(t *testing.T) {
	s := newSite(t)
	start(t, s)
	if _, err := newDevice(t, s).Enroll(t.Context(), enrollment(newKey(t), newChallenge(t, s, "pin.demo.example"))); err != nil {
		t.Fatal(err)
	}
	pin, err := os.ReadFile(s.Path("ceremony", "hsm-pin"))
	if err != nil {
		t.Fatal(err)
	}
	pin = bytes.TrimSpace(pin)
	proc := fmt.Sprintf("/proc/%d/", s.PID())
	for _, name := range []string{"cmdline", "environ"} {
		data, err := os.ReadFile(proc + name)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(data, pin) {
			t.Errorf("the PIN is in %s", name)
		}
	}
	stop(t, s)
	// 1: it looked everywhere and found nothing.
	if out, errOut, code := site.Run(t.Context(), nil, "grep", "-rlF", "--exclude=hsm-pin", string(pin), s.Dir); code != 1 {
		t.Errorf("grep: exit %d: the PIN is in %s%s", code, out, errOut)
	}
}
