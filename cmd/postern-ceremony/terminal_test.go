package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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

// A production ceremony is carried out at a terminal: PINs are typed blind and
// twice, and the plan is confirmed.
func TestAProductionCeremonyAtATerminal(t *testing.T) {
	const file, user, officer = "../../hsm/ceremony/scripts/self-signed.yaml", "canary-user-4711", "canary-officer-0815"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	p, err := plan.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	binary, err := exec.LookPath("postern-ceremony") // TestMain put it there
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ last8, again, say string }{
		"confirmed":           {p.Digest()[56:], user, "keep this, the transcript's SHA-256"},
		"another plan's hash": {"00000000", user, "not confirmed"},
		"a PIN typed wrong":   {"", "canary-user-4712", "the two are not the same"},
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
			cmd := exec.CommandContext(ctx, binary, "run", file, "--out", out)
			cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+conf)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			_ = slave.Close()
			s.answer(t, "the security officer's PIN: ", officer)
			s.answer(t, "the security officer's PIN, again: ", officer)
			s.answer(t, "the user PIN: ", user)
			s.answer(t, "the user PIN, again: ", tt.again)
			if tt.last8 != "" {
				s.answer(t, "approved plan's SHA-256: ", tt.last8)
			}
			err := cmd.Wait()
			if ok := name == "confirmed"; (err == nil) != ok {
				t.Errorf("%v:\n%s", err, s.text())
			}
			time.Sleep(50 * time.Millisecond) // what was written last is still on its way
			if shown := s.text(); !strings.Contains(shown, tt.say) || strings.Contains(shown, "canary") {
				t.Errorf("no %q, or a PIN, on:\n%s", tt.say, shown)
			}
			_, serr := os.Stat(filepath.Join(out, "transcript.jsonl"))
			if done := serr == nil; done != (err == nil) {
				t.Errorf("transcript: %v", serr)
			}
		})
	}
}
