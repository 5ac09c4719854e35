package ceremony_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/ceremony"
	"github.com/postern-pki/postern/hsm/ceremony/pins"
	"github.com/postern-pki/postern/test/softhsm"
)

// The SO PIN of a new token is nobody's: three of five people give it back, to set
// the PIN after an interruption, and no share is in the folder.
func TestThreeOfFiveAreTheSecurityOfficer(t *testing.T) {
	softhsm.Empty(t)
	p := demo(t, "label: postern-demo", "label: shared\n  so_pin: {shares: 5, threshold: 3}")
	out := filepath.Join(t.TempDir(), "out")
	var papers []hsm.PIN
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	o := ceremony.Options{
		Out: out, PIN: given(t, userPIN),
		KeepShare: func(_ context.Context, number, of int, s pins.Share) error {
			if number != len(papers)+1 || of != 5 {
				t.Errorf("share %d of %d", number, of)
			}
			return s.Reveal(func(text []byte) error { papers = append(papers, hsm.NewPIN(text)); return nil })
		},
		AskShares: func(threshold int) pins.Source {
			return func(context.Context) (pins.Given, error) { return pins.Combine(papers[5-threshold:]) }
		},
		Progress: func(step, _ string) {
			if step == "token" {
				stop() // initialized, and without a user PIN
			}
		},
	}
	if _, err := ceremony.Run(ctx, p, ceremony.Options{Out: out, PIN: o.PIN}); !errors.Is(err, ceremony.ErrUnattended) {
		t.Errorf("without people: %v", err)
	}
	if _, err := ceremony.Run(ctx, p, o); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	kept := papers
	o.AskShares = func(int) pins.Source {
		return func(context.Context) (pins.Given, error) { return pins.Combine(kept[:2]) }
	}
	if _, err := ceremony.Run(t.Context(), p, o); !errors.Is(err, pins.ErrShare) {
		t.Errorf("two of them: %v", err)
	}
	o.AskShares = func(threshold int) pins.Source {
		return func(context.Context) (pins.Given, error) { return pins.Combine(kept[5-threshold:]) }
	}
	o.Progress = nil
	r, err := ceremony.Run(t.Context(), p, o)
	if err != nil {
		t.Fatal(err)
	}
	if report, err := ceremony.Verify(r.Transcript); err != nil || report.Resumed != 1 || len(papers) != 5 {
		t.Errorf("Verify: %+v, %v", report, err)
	}
	for _, paper := range kept {
		_ = paper.Reveal(func(text []byte) error { noneHolds(t, out, string(text), ""); return nil })
	}
	if pin, err := pins.Combine(kept[:3]); err != nil || pin.Len() < 16 {
		t.Errorf("the PIN: %v", err)
	}
	rehearse(t, p)
}
