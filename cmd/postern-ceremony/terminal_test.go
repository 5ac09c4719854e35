package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-pki/postern/hsm/ceremony/plan"
)

// A screen is a terminal with the program at one end and the test at the other.
type screen struct {
	master *os.File
	mu     sync.Mutex
	shown  bytes.Buffer
}

// openPTY makes a pseudo-terminal and returns it with its other end.
func openPTY(t *testing.T) (*screen, *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := &screen{master: master}
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			s.mu.Lock()
			s.shown.Write(b[:n])
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return s, slave
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shown.String()
}

// answer waits for a prompt, once for each time that it is expected, and types.
func (s *screen) answer(t *testing.T, prompt, typed string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if strings.HasSuffix(s.text(), prompt) {
			time.Sleep(50 * time.Millisecond) // the echo is turned off after the prompt is shown
			if _, err := s.master.WriteString(typed + "\n"); err != nil {
				t.Fatal(err)
			}
			for strings.HasSuffix(s.text(), prompt) && time.Now().Before(end) {
				time.Sleep(10 * time.Millisecond)
			}
			return
		}
	}
	t.Fatalf("no prompt %q on:\n%s", prompt, s.text())
}

// productionPlan is the plan of a small site with two people of this test, and the flags
// with their signatures on it.
func productionPlan(t *testing.T) (file string, p plan.Plan, flags []string) {
	t.Helper()
	dir := t.TempDir()
	text, err := os.ReadFile("../../hsm/ceremony/scripts/self-signed.yaml")
	if err != nil {
		t.Fatal(err)
	}
	keygen := func(args ...string) {
		if out, err := exec.Command("ssh-keygen", append([]string{"-q"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	names := []string{"alice", "bob"}
	for _, name := range names {
		key := filepath.Join(dir, name)
		keygen("-t", "ed25519", "-N", "", "-f", key)
		pub, err := os.ReadFile(key + ".pub")
		if err != nil {
			t.Fatal(err)
		}
		text = regexp.MustCompile("(name: "+name+",.*key: ')[^']*").ReplaceAll(text, append([]byte("${1}"), bytes.TrimSpace(pub)...))
	}
	if p, err = plan.Parse(text); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(dir, "plan.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		keygen("-Y", "sign", "-n", "postern-ceremony-plan", "-f", filepath.Join(dir, name), file)
		if err := os.Rename(file+".sig", file+"."+name); err != nil {
			t.Fatal(err)
		}
		flags = append(flags, "--signature", name+"="+file+"."+name)
	}
	return file, p, flags
}

// A production ceremony is carried out at a terminal: PINs of people are typed blind and
// twice, the user PIN is made and not shown, the plan is confirmed, and a person of the
// plan accepts what is not as it should be.
func TestAProductionCeremonyAtATerminal(t *testing.T) {
	const officer = "canary-officer-0815"
	file, p, flags := productionPlan(t)
	binary, err := exec.LookPath("postern-ceremony") // TestMain put it there
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ again, last8, accepts, say string }{
		"confirmed":           {officer, p.Digest()[56:], "bob", "keep this, the transcript's SHA-256"},
		"another plan's hash": {officer, "00000000", "", "not confirmed"},
		"a PIN typed wrong":   {"canary-officer-0816", "", "", "the two are not the same"},
		"a stranger accepts":  {officer, p.Digest()[56:], "mallory", "none of the plan's people"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			conf := filepath.Join(dir, "softhsm2.conf")
			if err := os.Mkdir(filepath.Join(dir, "tokens"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(conf, []byte("directories.tokendir = "+dir+"/tokens\nlog.level = ERROR\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			s, slave := openPTY(t)
			out := filepath.Join(dir, "out")
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, binary, append([]string{"run", file, "--out", out}, flags...)...)
			cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+conf)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			_ = slave.Close()
			s.answer(t, "the security officer's PIN: ", officer)
			s.answer(t, "the security officer's PIN, again: ", tt.again)
			if tt.last8 != "" {
				s.answer(t, "approved plan's SHA-256: ", tt.last8)
			}
			const question = "Type the name, or nothing to stop: "
			if tt.accepts != "" {
				s.answer(t, question, tt.accepts)
			}
			if ended := make(chan error, 1); tt.accepts == "bob" { // kinds of keys differ in what is not told
				go func() { ended <- cmd.Wait() }()
				err = s.answerUntil(t, ended, question, tt.accepts)
			} else {
				err = cmd.Wait()
			}
			if ok := name == "confirmed"; (err == nil) != ok {
				t.Errorf("%v:\n%s", err, s.text())
			}
			time.Sleep(50 * time.Millisecond) // what was written last is still on its way
			shown := s.text()
			if !strings.Contains(shown, tt.say) || strings.Contains(shown, "canary") {
				t.Errorf("no %q, or a PIN, on:\n%s", tt.say, shown)
			}
			if pin, err := os.ReadFile(filepath.Join(out, "hsm-pin")); err == nil && strings.Contains(shown, strings.TrimSpace(string(pin))) {
				t.Error("the PIN that was made is on the screen")
			}
			_, serr := os.Stat(filepath.Join(out, "transcript.jsonl"))
			if begun := serr == nil; begun != (tt.accepts != "") {
				t.Errorf("transcript: %v", serr)
			}
		})
	}
}

// answerUntil gives the same answer to each question, until the program ends.
func (s *screen) answerUntil(t *testing.T, ended chan error, prompt, typed string) error {
	t.Helper()
	asked := 1
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		select {
		case err := <-ended:
			return err
		default:
		}
		if n := strings.Count(s.text(), prompt); n > asked {
			asked = n
			if _, err := s.master.WriteString(typed + "\n"); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Fatalf("it does not end:\n%s", s.text())
	return nil
}
