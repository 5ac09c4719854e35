package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-pki/postern/hsm/ceremony"
)

// Shares are shown one at a time at a terminal, taken off the screen, and typed again.
func TestSharesAreKeptAtATerminal(t *testing.T) {
	text, err := os.ReadFile("../../hsm/ceremony/scripts/demo.yaml")
	if err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(t.TempDir(), "plan.yaml")
	if err := os.WriteFile(script, []byte(strings.Replace(string(text), "label: postern-demo", "label: shared\n  so_pin: {shares: 3, threshold: 2}", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	d := newDesk(t, script)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := d.command(ctx, t)
	s, slave := openPTY(t)
	d.run(t, cmd, slave)
	shown := regexp.MustCompile(`    ([a-z2-7-]{40,})`)
	var papers []string
	for i := range 3 {
		s.answer(t, "type ok (it does not show): ", "ok")
		all := shown.FindAllStringSubmatch(s.text(), -1)
		papers = append(papers, all[len(all)-1][1])
		s.answer(t, fmt.Sprintf("share %d, from the paper: ", i+1), strings.ToUpper(papers[i]))
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, s.text())
	}
	if len(papers) != 3 || papers[0] == papers[1] || strings.Count(s.text(), papers[0]) != 1 || strings.Contains(s.text(), strings.ToUpper(papers[0])) {
		t.Errorf("%d shares; one was shown twice", len(papers))
	}
	if report, err := ceremony.Verify(filepath.Join(d.out, ceremony.TranscriptFile)); err != nil || report.Resumed != 0 {
		t.Errorf("Verify: %+v, %v", report, err)
	}

	// One that is typed wrong stops the ceremony before the token is touched.
	wrong := newDesk(t, script)
	cmd = wrong.command(ctx, t)
	s, slave = openPTY(t)
	wrong.run(t, cmd, slave)
	s.answer(t, "type ok (it does not show): ", "ok")
	s.answer(t, "share 1, from the paper: ", papers[0])
	if err := cmd.Wait(); err == nil {
		t.Error("another share passed")
	}
	time.Sleep(50 * time.Millisecond) // what was written last is still on its way
	if text := s.text(); !strings.Contains(text, "not what was shown") || !strings.Contains(text, "hint: ") {
		t.Errorf("said:\n%s", text)
	}
	if tokens, err := os.ReadDir(filepath.Join(wrong.dir, "tokens")); err != nil || len(tokens) != 0 {
		t.Errorf("tokens: %v, %v", tokens, err)
	}
}

// run starts the command at a terminal.
func (d *desk) run(t *testing.T, cmd *exec.Cmd, slave *os.File) {
	t.Helper()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = slave.Close()
}
