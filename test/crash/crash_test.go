package crash

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// profiles allow one subject many certificates and one key many subjects: what
// is counted here is challenges.
var profiles = strings.NewReplacer("reuse: same-subject", "reuse: any", "active_per_subject: 10", "active_per_subject: 1000").Replace(site.Profiles)

func newSite(t *testing.T) *site.Site {
	t.Helper()
	bin, clean, err := site.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(clean)
	s, end, err := site.New(t.Context(), bin, profiles)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(end)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// answers is what devices were told: serial by challenge id.
type answers struct {
	mu     sync.Mutex
	serial map[string]string
	failed map[string]string // the text of a FAILURE
}

func TestKillUnderLoad(t *testing.T) {
	rounds := 50
	if os.Getenv("POSTERN_SOAK") != "" {
		rounds = 500
	}
	s := newSite(t)
	keys := make([]*rsa.PrivateKey, 8)
	for i := range keys {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		keys[i] = key
	}
	told := &answers{serial: make(map[string]string), failed: make(map[string]string)}
	for round := range rounds {
		load(t, s, keys, told, round)
		if err := s.Kill(); err != nil {
			t.Fatal(err)
		}
		verify(t, s)
		if err := s.Start(t.Context()); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	verify(t, s)
	n := compare(t, s, told)
	t.Logf("%d kills, %d certificates acknowledged, %d issued, %d burnt", rounds, len(told.serial), n.issued, n.unknown)
	if len(told.serial) < rounds || len(told.failed) > 0 {
		t.Errorf("%d certificates acknowledged; refused: %v", len(told.serial), told.failed)
	}
	out, errOut, code := s.Postern(t.Context(), nil, "rebuild", "--apply", "--output", "json")
	var r struct{ Same bool }
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != 0 || !r.Same {
		t.Errorf("rebuild: exit %d, %s%s", code, out, errOut)
	}
}

// load enrolls from several devices at once, and returns at a random moment
// with the service still at work.
func load(t *testing.T, s *site.Site, keys []*rsa.PrivateKey, told *answers, round int) {
	t.Helper()
	subjects := make([]string, 40)
	for i := range subjects {
		subjects[i] = fmt.Sprintf("CN=d-%d-%d.demo.example", round, i)
	}
	challenges, err := s.Challenges(t.Context(), "interop", subjects...)
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Device(t.Context(), "interop")
	if err != nil {
		t.Fatal(err)
	}
	jobs := make(chan site.Challenge, len(challenges))
	for _, c := range challenges {
		jobs <- c
	}
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	for _, key := range keys {
		group.Go(func() {
			for ctx.Err() == nil {
				select {
				case c := <-jobs:
					told.enroll(ctx, d, key, c)
				default:
					return
				}
			}
		})
	}
	wait, err := rand.Int(rand.Reader, big.NewInt(int64(250*time.Millisecond)))
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(20*time.Millisecond + time.Duration(wait.Int64()))
	// The kill comes from another place while these still run; what they hear
	// of it is an error, and no answer.
	go func() { time.Sleep(100 * time.Millisecond); cancel() }()
	t.Cleanup(group.Wait)
}

func (a *answers) enroll(ctx context.Context, d *site.Device, key *rsa.PrivateKey, c site.Challenge) {
	r, err := d.Enroll(ctx, client.Enrollment{
		Key: key, Subject: pkix.Name{CommonName: strings.TrimPrefix(c.Subject, "CN=")}, Challenge: []byte(c.Challenge),
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	if f, ok := errors.AsType[*client.FailError](err); ok {
		a.failed[c.ID] = f.Text
	} else if err == nil {
		a.serial[c.ID] = hex.EncodeToString(r.Certificate.SerialNumber.Bytes())
	}
}

func verify(t *testing.T, s *site.Site) {
	t.Helper()
	if out, errOut, code := s.Postern(t.Context(), nil, "audit", "verify"); code != 0 {
		t.Fatalf("postern audit verify: %s%s", out, errOut)
	}
}

type counts struct{ issued, unknown int }

// compare holds what devices were told against the log.
func compare(t *testing.T, s *site.Site, told *answers) counts {
	t.Helper()
	intents, spent, issued, due := map[uint64]audit.Intent{}, map[string]int{}, map[string]bool{}, map[string]bool{}
	var n counts
	err := audit.Scan(s.Path("state", "audit"), 0, func(l audit.Line) error {
		if in, ok := audit.IntentOf(l); ok {
			intents[l.Record.Seq] = in
		}
		seq, outcome, ok := audit.OutcomeOf(l)
		switch {
		case ok && outcome == "issued":
			in := intents[seq]
			if in.Challenge != "" {
				spent[in.Challenge]++
			}
			if issued[in.Serial] {
				t.Errorf("serial %s was issued twice", in.Serial)
			}
			issued[in.Serial] = true
			n.issued++
		case ok:
			n.unknown++
		case l.Record.Event == "revocation":
			due[l.Record.Object.String("serial")] = true
		}
		if ok {
			delete(intents, seq)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(intents) > 0 {
		t.Errorf("%d intents have no outcome", len(intents))
	}
	if n.unknown != len(due) {
		t.Errorf("%d serials are burnt, %d are due for revocation", n.unknown, len(due))
	}
	for id, times := range spent {
		if times > 1 {
			t.Errorf("challenge %s was spent %d times", id, times)
		}
	}
	for id, serial := range told.serial {
		if !issued[strings.TrimLeft(serial, "0")] && !issued[serial] {
			t.Errorf("challenge %s: the device has serial %s, the log has not", id, serial)
		}
	}
	return n
}

// starts runs posternd until it ends by itself.
func starts(t *testing.T, s *site.Site, config string) (errOut string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, errOut, code = site.Run(ctx, nil, filepath.Join(s.Bin(), "posternd"), "--config", config)
	return errOut, code
}

func stopped(t *testing.T) *site.Site {
	t.Helper()
	s := newSite(t)
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAMissingTokenIsAClearStop(t *testing.T) {
	s := stopped(t)
	if err := os.Rename(s.Path("ceremony", "token"), s.Path("ceremony", "gone")); err != nil {
		t.Fatal(err)
	}
	if errOut, code := starts(t, s, s.Config()); code != 1 || !strings.Contains(errOut, "token") {
		t.Errorf("exit %d: %s", code, errOut)
	}
}

func TestAWrongPINIsTriedOnce(t *testing.T) {
	s := stopped(t)
	if err := os.WriteFile(s.Path("ceremony", "hsm-pin"), []byte("not-the-pin-at-all"), 0o600); err != nil {
		t.Fatal(err)
	}
	first, code := starts(t, s, s.Config())
	if code != 1 || !strings.Contains(strings.ToLower(first), "pin") {
		t.Errorf("exit %d: %s", code, first)
	}
	// SoftHSM raises CKF_USER_PIN_COUNT_LOW after one wrong PIN: had there been a
	// second attempt, the token would not say so any more than it does now, but
	// a second start must not even try.
	second, code := starts(t, s, s.Config())
	if code != 1 || second == first {
		t.Errorf("the second start tried again: exit %d: %s", code, second)
	}
}

func TestAnUnknownKeyIsNamedWithItsPlace(t *testing.T) {
	s := stopped(t)
	data, err := os.ReadFile(s.Config())
	if err != nil {
		t.Fatal(err)
	}
	bad := s.Path("bad.yaml")
	if err := os.WriteFile(bad, bytes.Replace(data, []byte("\norigin:"), []byte("\norigni:"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	errOut, code := starts(t, s, bad)
	if code != 78 || !strings.Contains(errOut, bad+":") || !strings.Contains(errOut, `did you mean "origin"?`) {
		t.Errorf("exit %d: %s", code, errOut)
	}
}

func TestTwoServicesOnOneState(t *testing.T) {
	s := newSite(t)
	if errOut, code := starts(t, s, s.Config()); code != 1 || !strings.Contains(errOut, "another process") {
		t.Errorf("exit %d: %s", code, errOut)
	}
}

func TestADamagedLogIssuesNothing(t *testing.T) {
	s := newSite(t)
	for range 3 {
		if _, err := s.NewChallenge(t.Context(), "demo", "CN=x.demo.example"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	path := s.Path("state", "audit", "segments", "000000000000.jsonl")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if errOut, code := starts(t, s, s.Config()); code != 1 || !strings.Contains(errOut, "maintenance") {
		t.Errorf("exit %d: %s", code, errOut)
	}
	if _, errOut, code := s.Postern(t.Context(), nil, "audit", "verify"); code != 1 || !strings.Contains(errOut, "damaged: segment") {
		t.Errorf("postern audit verify: exit %d: %s", code, errOut)
	}
}

// The PIN is searched for where it must never be.
func TestThePINIsNowhere(t *testing.T) {
	s := newSite(t)
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
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("grep", "-rlF", "--exclude=hsm-pin", string(pin), s.Dir).Output()
	if err == nil || len(out) > 0 {
		t.Errorf("the PIN is in %s", out)
	}
}
