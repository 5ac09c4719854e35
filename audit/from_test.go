package audit_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/postern-pki/postern/audit"
)

// From skips whole segments, and no line that was recorded later.
func TestFromSkipsSegments(t *testing.T) {
	dir := t.TempDir()
	o := options(t, dir, nil)
	o.SegmentBytes = 1000
	l := open(t, o)
	for n := range 30 {
		if _, err := l.Append(context.Background(), refusal(n)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(segmentFiles(t, dir)); n < 5 {
		t.Fatalf("%d segments", n)
	}
	times := map[uint64]time.Time{}
	if err := audit.Scan(dir, 0, func(l audit.Line) error { times[l.Record.Seq] = l.Record.Time; return nil }); err != nil {
		t.Fatal(err)
	}
	skipped := uint64(0)
	for seq, at := range times {
		from, err := audit.From(dir, at)
		if err != nil {
			t.Fatal(err)
		}
		first := errors.New("the first")
		if err := audit.Scan(dir, from, func(l audit.Line) error {
			if l.Record.Seq > seq {
				t.Errorf("from %d on, line %d of the same time is left out", from, seq)
			}
			return first
		}); !errors.Is(err, first) {
			t.Error(err)
		}
		skipped = max(skipped, from)
	}
	if skipped == 0 {
		t.Error("nothing is skipped")
	}
	for dir, at := range map[string]time.Time{dir: times[0].Add(-time.Hour), filepath.Join(dir, "nowhere"): time.Now()} {
		if from, err := audit.From(dir, at); from != 0 || err != nil {
			t.Errorf("%s: %d, %v", dir, from, err)
		}
	}
}
