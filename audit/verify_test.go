package audit_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/postern-pki/postern/audit"
)

func TestOverlongLineIsDamage(t *testing.T) {
	s := newSigner(t)
	dir := t.TempDir()
	l := open(t, options(t, dir, s))
	appendN(t, l, 2)
	closeLog(t, l)
	name := segmentFiles(t, dir)[0]
	writeFile(t, name, append(readFile(t, name), strings.Repeat("x", 200<<10)+"\n"...))
	_, err := audit.Verify(context.Background(), dir, audit.VerifyOptions{Verifier: s.verifier()})
	if _, ok := errors.AsType[*audit.Damage](err); !ok {
		t.Errorf("Verify = %v, want *Damage", err)
	}
}

func TestVerify(t *testing.T) {
	from, s := t.TempDir(), newSigner(t)
	o := options(t, from, s)
	o.SegmentBytes = 3000
	l := open(t, o)
	appendN(t, l, 10)
	if _, err := l.Checkpoint(context.Background()); err != nil {
		t.Fatal(err)
	}
	appendN(t, l, 10)
	head := l.Head()
	closeLog(t, l)
	r, err := audit.Verify(context.Background(), from, audit.VerifyOptions{Verifier: s.verifier()})
	if err != nil || r.Origin != origin || r.Events["scep.enroll refused"] != 20 || r.Events["log.checkpoint signed"] != int64(r.Checkpoints) || r.Checkpoints < 2 ||
		r.Records != head.Size+1 || r.Signed != head.Size || r.Segments < 2 || r.Last.Before(r.First) || r.First.IsZero() {
		t.Fatalf("Verify = %+v, %v", r, err)
	}
	all := readAll(t, from)
	// at returns the place of a line.
	at := func(n int) (file string, line int, offset int64) {
		for i := len(all) - 1; i >= 0; i-- {
			if all[i].Record.Event == "log.segment" && i <= n || i == 0 {
				for _, l := range all[i:n] {
					offset += int64(len(l.Raw))
				}
				return filepath.Base(segmentFile(all[i].Record.Seq)), n - i + 1, offset
			}
		}
		return "", 0, 0
	}
	edit := func(n int, change func([]byte) []byte) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			file, _, offset := at(n)
			path := filepath.Join(dir, "segments", file)
			b := readFile(t, path)
			end := int(offset) + len(all[n].Raw)
			writeFile(t, path, slices.Concat(b[:offset], change(bytes.Clone(b[offset:end])), b[end:]))
		}
	}
	swap := func(b []byte, old, new string) []byte {
		if !bytes.Contains(b, []byte(old)) {
			t.Errorf("the case changes nothing: %q is not in %s", old, b)
		}
		return bytes.Replace(b, []byte(old), []byte(new), 1)
	}
	signed := slices.IndexFunc(all, func(l audit.Line) bool { return l.Record.Event == "log.checkpoint" })
	for name, tt := range map[string]struct {
		damage func(*testing.T, string)
		seq    int
	}{
		"a line that is no JSON":   {edit(5, func(b []byte) []byte { b[3] = 0; return b }), 5},
		"an edited line":           {edit(5, func(b []byte) []byte { return swap(b, "scep", "acme") }), 5},
		"an edited seq":            {edit(5, func(b []byte) []byte { return swap(b, `"seq":5`, `"seq":6`) }), 5},
		"a line deleted":           {edit(5, func([]byte) []byte { return nil }), 5},
		"a line inserted":          {edit(5, func(b []byte) []byte { return slices.Concat(b, b) }), 6},
		"a line spaced out":        {edit(5, func(b []byte) []byte { return swap(b, `"seq":5`, `"seq": 5`) }), 5},
		"an edited genesis":        {edit(0, func(b []byte) []byte { return swap(b, `"transcript":"00"`, `"transcript":"01"`) }), 0},
		"another origin":           {edit(0, func(b []byte) []byte { return swap(b, origin, "best.example/log") }), 0},
		"the newest signed record": {edit(len(all)-2, func(b []byte) []byte { return swap(b, "scep", "acme") }), len(all) - 2},
		"an edited checkpoint": {edit(signed, func(b []byte) []byte {
			return swap(b, `"note":"test.example/log\n`, `"note":"postern.example/log\n1`)
		}), signed},
		"the last records are gone": {cutTail(2), len(all) - 2},
		"a segment is gone":         {func(t *testing.T, dir string) { mustRemove(t, segmentFiles(t, dir)[1]) }, -1},
		"the last segment is gone":  {func(t *testing.T, dir string) { f := segmentFiles(t, dir); mustRemove(t, f[len(f)-1]) }, -1},
		"no end of a finished segment": {func(t *testing.T, dir string) {
			f := segmentFiles(t, dir)[0]
			b := readFile(t, f)
			writeFile(t, f, b[:len(b)-1])
		}, -1},
		"a checkpoint of another log":   {otherNote, -1},
		"a checkpoint under a new name": {renamedNote, -1},
	} {
		t.Run(name, func(t *testing.T) {
			dir := copyDir(t, from)
			tt.damage(t, dir)
			_, err := audit.Verify(context.Background(), dir, audit.VerifyOptions{Verifier: s.verifier()})
			d, ok := asDamage(err)
			if !ok || d.Why == "" || tt.seq >= 0 && d.Seq != uint64(tt.seq) {
				t.Fatalf("Verify: %v, want damage at %d", err, tt.seq)
			}
			if tt.seq < 0 || tt.seq >= len(all)-2 && strings.Contains(name, "gone") {
				return
			}
			file, line, offset := at(tt.seq)
			if d.Segment != file || d.Line != line || d.Offset != offset {
				t.Errorf("said to be at %s, line %d, octet %d; want %s, %d, %d", d.Segment, d.Line, d.Offset, file, line, offset)
			}
		})
	}
	t.Run("the end is not whole", func(t *testing.T) {
		dir := copyDir(t, from)
		f := segmentFiles(t, dir)
		writeFile(t, f[len(f)-1], append(readFile(t, f[len(f)-1]), "{\"ac"...))
		r, err := audit.Verify(context.Background(), dir, audit.VerifyOptions{Verifier: s.verifier()})
		if err != nil || r.Unfinished != 4 {
			t.Errorf("Verify = %+v, %v", r, err)
		}
	})
	t.Run("a context that ends", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := audit.Verify(ctx, from, audit.VerifyOptions{Verifier: s.verifier()}); err == nil {
			t.Error("it was verified all the same")
		}
	})
}

func segmentFile(first uint64) string {
	return strings.Repeat("0", 12-len(strconv.FormatUint(first, 10))) + strconv.FormatUint(first, 10) + ".jsonl"
}

func mustRemove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// cutTail removes the last n lines.
func cutTail(n int) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		f := segmentFiles(t, dir)
		lines := bytes.SplitAfter(readFile(t, f[len(f)-1]), []byte("\n"))
		writeFile(t, f[len(f)-1], bytes.Join(lines[:len(lines)-1-n], nil))
	}
}

// otherNote replaces a checkpoint by one that the same key signed of other
// records: only its root tells.
func otherNote(t *testing.T, dir string) {
	notes, err := filepath.Glob(filepath.Join(dir, "checkpoints", "*.note"))
	if err != nil || len(notes) == 0 {
		t.Fatal(err)
	}
	writeFile(t, notes[0], bytes.Replace(readFile(t, notes[0]), []byte("\n\n"), []byte("\n\n\u2014 x y\n"), 1))
}

func renamedNote(t *testing.T, dir string) {
	notes, err := filepath.Glob(filepath.Join(dir, "checkpoints", "*.note"))
	if err != nil || len(notes) == 0 {
		t.Fatal(err)
	}
	if err := os.Rename(notes[0], filepath.Join(dir, "checkpoints", "000000000003.note")); err != nil {
		t.Fatal(err)
	}
}

// TestVerifyRoot: a checkpoint that the right key signed over another root.
func TestVerifyRoot(t *testing.T) {
	dir, s := t.TempDir(), newSigner(t)
	l := open(t, options(t, dir, s))
	appendN(t, l, 3)
	closeLog(t, l)
	note, err := s.SignCheckpoint(context.Background(), audit.Head{Size: 2, Root: [32]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "checkpoints", "000000000002.note"), note)
	_, err = audit.Verify(context.Background(), dir, audit.VerifyOptions{Verifier: s.verifier()})
	if d, ok := asDamage(err); !ok || !strings.Contains(d.Why, "root") {
		t.Errorf("Verify: %v, want damage about the root", err)
	}
}

// TestScan reads from any line, also while the log is written.
func TestScan(t *testing.T) {
	dir := t.TempDir()
	o := options(t, dir, nil)
	o.SegmentBytes = 1500
	l := open(t, o)
	appendN(t, l, 15)
	all := readAll(t, dir)
	for from := range len(all) + 2 {
		var got []uint64
		if err := audit.Scan(dir, uint64(from), func(l audit.Line) error { got = append(got, l.Record.Seq); return nil }); err != nil {
			t.Fatal(err)
		}
		if want := max(0, len(all)-from); len(got) != want || want > 0 && got[0] != uint64(from) {
			t.Errorf("from %d: %v", from, got)
		}
	}
}

func asDamage(err error) (*audit.Damage, bool) { return errors.AsType[*audit.Damage](err) }
