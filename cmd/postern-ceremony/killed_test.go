package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/ceremony"
)

// Whatever was said to be done is in the transcript, also when the process is
// killed after it; and what is in it does not pass for a whole ceremony.
func TestAKilledCeremonyLeavesWhatWasDone(t *testing.T) {
	binary, err := exec.LookPath("postern-ceremony") // TestMain put it there
	if err != nil {
		t.Fatal(err)
	}
	for _, after := range []string{"environment", "token", "pin", "keys", "readback", "proofs", "lint", "certificate", "operator-key", "secrets", "describe"} {
		t.Run(after, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			cmd := exec.CommandContext(ctx, binary, "rehearse", "../../hsm/ceremony/scripts/demo.yaml", "--out", out)
			said, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			for lines := bufio.NewScanner(said); lines.Scan(); {
				if strings.HasPrefix(strings.TrimSpace(lines.Text()), after) {
					cancel() // kills it
					break
				}
			}
			_, _ = io.Copy(io.Discard, said)
			_ = cmd.Wait()
			path := filepath.Join(out, ceremony.TranscriptFile)
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var chain audit.Chain
			done := false
			for line := range bytes.Lines(raw) {
				if !bytes.HasSuffix(line, []byte("\n")) {
					break // torn: nothing was said of it
				}
				l, err := audit.ParseLine(line)
				if err == nil {
					err = chain.Step(l)
				}
				if err != nil {
					t.Fatal(err)
				}
				done = done || l.Record.Event == "ceremony."+after && l.Record.Outcome == "end"
			}
			if !done {
				t.Errorf("%s was said to be done and has no record", after)
			}
			if _, err := ceremony.Verify(path); after != "describe" && !errors.Is(err, ceremony.ErrTranscript) {
				t.Errorf("Verify: %v", err)
			}
		})
	}
}
