package audit_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/postern-pki/postern/audit"
)

// trusting follows whatever it is given, and was never fed before.
type trusting struct{ seqs []uint64 }

func (d *trusting) Next(context.Context) (uint64, error) { return 0, nil }

func (d *trusting) Follow(_ context.Context, batch []audit.Line) error {
	for _, l := range batch {
		d.seqs = append(d.seqs, l.Record.Seq)
	}
	return nil
}

// The last segment is sound in all of these, but a follower needs the others.
func TestAFollowerIsNeverFedAGap(t *testing.T) {
	w := newWorld(t)
	whole := w.made(t, 30, small)
	for _, c := range []struct {
		name   string
		tamper func(f []string) error
		bad    bool
	}{
		{"nothing", func([]string) error { return nil }, false},
		{"first missing", func(f []string) error { return os.Remove(f[0]) }, true},
		{"early missing", func(f []string) error { return os.Remove(f[1]) }, true},
		{"early broken", func(f []string) error { return os.Truncate(f[1], 50) }, true},
		{"early line too long", func(f []string) error {
			return os.WriteFile(f[1], bytes.Repeat([]byte("x"), 2*audit.MaxLine), 0o600)
		}, true},
		{"last renamed", func(f []string) error {
			last := f[len(f)-1]
			return os.Rename(last, filepath.Join(filepath.Dir(last), "000000000900.jsonl"))
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := copied(t, whole)
			f, err := filepath.Glob(filepath.Join(dir, "segments", "*.jsonl"))
			must(t, err)
			must(t, c.tamper(f))
			d := &trusting{}
			l, _, err := w.open(dir, small, func(o *audit.Options) { o.Signer, o.Followers = nil, []audit.Follower{d} })
			if err == nil {
				must(t, l.Close(context.Background()))
			}
			var m *audit.MaintenanceError
			if errors.As(err, &m) != c.bad || (err != nil) != c.bad {
				t.Errorf("%v", err)
			}
			for i, seq := range d.seqs {
				if seq != uint64(i) {
					t.Fatalf("it was fed %d after %d lines", seq, i)
				}
			}
		})
	}
}
