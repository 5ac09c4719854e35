package ceremony_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/postern-pki/postern/hsm/ceremony"
	"github.com/postern-pki/postern/test/softhsm"
)

// A failure is recorded where it happened, and the transcript does not pass for a whole one.
func TestAFailureIsAnException(t *testing.T) {
	for name, tt := range map[string]struct {
		function, effect string
		count            int
		step             string
	}{
		"the token's signature is wrong":      {"Sign", "flip", 100, "proofs"},
		"the token signs with a decrypt key":  {"SignInit", "rv 0", 100, "proofs"},
		"the token does not take the PIN":     {"Login", "rv 0xa0", 100, "pin"},
		"the token is gone when the CA signs": {"", "", 0, "certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			shim := softhsm.NewShim(t)
			o := ceremony.Options{Out: filepath.Join(t.TempDir(), "out"), Rehearse: true, SoftHSM: shim.Module}
			if tt.function != "" {
				shim.Spoil(t, tt.function, tt.effect, tt.count)
			}
			o.Progress = func(_, say string) {
				if tt.function == "" && say == "draft of ca.pem looked at" {
					shim.Spoil(t, "SignInit", "rv 0x30", 100)
				}
			}
			r, err := ceremony.Run(t.Context(), demo(t), o)
			e, ok := errors.AsType[*ceremony.Error](err)
			if !ok || e.Step != tt.step || e.Hint == "" {
				t.Fatalf("Run: %v, want a failure of step %s", err, tt.step)
			}
			all := records(t, filepath.Join(o.Out, "transcript.jsonl"))
			last := all[len(all)-1]
			if last.Event != "ceremony."+tt.step || last.Outcome != "exception" || last.Object.String("error") == "" {
				t.Errorf("last record: %+v", last)
			}
			if _, err := os.Stat(filepath.Join(o.Out, "ca.pem")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("ca.pem: %v", err)
			}
			if _, err := ceremony.Verify(filepath.Join(o.Out, "transcript.jsonl")); !errors.Is(err, ceremony.ErrTranscript) {
				t.Errorf("Verify: %v; result %+v", err, r)
			}
		})
	}
}

func TestAnInterruptedCeremonySaysSo(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := filepath.Join(t.TempDir(), "out")
	_, err := ceremony.Run(ctx, demo(t), ceremony.Options{Out: out, Rehearse: true, Progress: func(step, _ string) {
		if step == "keys" {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	all := records(t, filepath.Join(out, "transcript.jsonl"))
	if last := all[len(all)-1]; last.Outcome != "exception" {
		t.Errorf("last record: %+v", last)
	}
	report, err := ceremony.Verify(filepath.Join(out, "transcript.jsonl"))
	if !errors.Is(err, ceremony.ErrTranscript) || report.Records != uint64(len(all)) {
		t.Errorf("Verify: %v; %+v", err, report)
	}
}

func TestWithoutOpensslTheTranscriptSaysSo(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	r := rehearse(t, demo(t))
	for _, rec := range records(t, r.Transcript) {
		if rec.Event == "ceremony.certificate" && rec.Outcome == "end" && rec.Object.String("openssl") != "absent" {
			t.Errorf("record %d: openssl %q", rec.Seq, rec.Object.String("openssl"))
		}
	}
	if _, err := ceremony.Verify(r.Transcript); err != nil {
		t.Error(err)
	}
}
