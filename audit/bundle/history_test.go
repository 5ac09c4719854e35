package bundle_test

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/audit/bundle"
)

// after is a range of a log that begins where a bundle ended, with the proof or not.
func after(t *testing.T, s signer, dir string, from, to uint64, p *bundle.Previous) []byte {
	t.Helper()
	o := s.options(t, dir)
	o.From, o.To, o.Previous = at(from), at(to), p
	data, _ := export(t, o)
	return data
}

// Who has the audit key, or an old disk with an old token, can show a log that is good
// by itself. An earlier bundle in other hands tells, to the script too.
func TestAnEarlierBundleTellsAnotherHistory(t *testing.T) {
	s, dir, other := newSigner(t), t.TempDir(), t.TempDir()
	newLog(t, s, dir, 400, 100_000, 50)
	newLog(t, s, other, 500, 100_000, 50) // by the same key, of other records
	a := after(t, s, dir, 0, 200, nil)
	first := must[*bundle.Previous](t)(bundle.OpenPrevious(bytes.NewReader(a), s.cert))
	size := first.Info.Size
	b := after(t, s, other, 0, 200, nil)
	otherFirst := must[*bundle.Previous](t)(bundle.OpenPrevious(bytes.NewReader(b), s.cert))
	folder := unpack(t, a)
	for name, tt := range map[string]struct {
		data []byte
		say  string
	}{
		"another log":              {after(t, s, other, size, 300, nil), "two histories"},
		"another log, with proof":  {after(t, s, other, size, 300, otherFirst), "two histories"},
		"an old disk":              {after(t, s, dir, 0, 90, nil), "old log was put back"},
		"two heads for two people": {b, ""},
	} {
		if _, err := verify(t, tt.data, bundle.VerifyOptions{Trust: s.cert}); err != nil {
			t.Errorf("%s: it is not good by itself, so nothing is shown: %v", name, err)
		}
		if _, err := verify(t, tt.data, bundle.VerifyOptions{Trust: s.cert, Previous: first}); err == nil || tt.say != "" && !strings.Contains(err.Error(), tt.say) {
			t.Errorf("%s: %v", name, err)
		}
		out, code := shell(t, unpack(t, tt.data), s.trust(t), folder)
		if tt.say != "" && (code != 1 || !strings.Contains(out, tt.say)) || code == 0 {
			t.Errorf("%s: exit %d: %s", name, code, out)
		}
	}
}

// What was written after the newest checkpoint can be cut off, and nothing that is
// left tells: that is what marks, witnesses and receivers are for.
func TestWhatCannotBeSeenInTheLogAlone(t *testing.T) {
	s, dir := newSigner(t), t.TempDir()
	newLog(t, s, dir, 100, 100_000, 50)
	whole := after(t, s, dir, 0, 90, nil)
	l := must[*audit.Log](t)(audit.Open(t.Context(), audit.Options{
		Dir: dir, Origin: origin, Signer: s, Verifier: s.verifier(t), Genesis: func() (audit.Entry, error) { return audit.Entry{}, io.EOF },
	}))
	before := copyDir(t, dir)
	must[audit.Line](t)(l.Append(t.Context(), entry(s, 4)))
	after := copyDir(t, dir)
	no(t, l.Close(context.Background()))
	for name, at := range map[string]string{"before": before, "after": after} {
		if _, err := audit.Verify(t.Context(), at, audit.VerifyOptions{Verifier: s.verifier(t)}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	first := must[*bundle.Previous](t)(bundle.OpenPrevious(bytes.NewReader(whole), s.cert))
	o := s.options(t, before)
	o.Previous = first
	if out, err := bundle.Export(t.Context(), o, io.Discard); err != nil || out.Info.From != first.Info.Size {
		t.Errorf("the cut log does not go on from the bundle before: %v", err)
	}
}
