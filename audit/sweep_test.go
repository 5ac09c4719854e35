package audit_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/postern-pki/postern/audit"
)

// crashDisk also knows what of each file a power cut leaves for certain: what
// was synced. image makes the disk as it may be found afterwards.
type crashDisk struct {
	badDisk
	mu     sync.Mutex
	synced map[string]int64
}

func (d *crashDisk) Append(path string) (audit.File, error) {
	f, err := d.badDisk.Append(path)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.synced[path]; !ok {
		st, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		d.synced[path] = st.Size()
	}
	return &crashFile{f, d, path}, nil
}

type crashFile struct {
	audit.File
	d    *crashDisk
	path string
}

func (f *crashFile) Sync() error {
	if err := f.File.Sync(); err != nil {
		return err
	}
	st, err := os.Stat(f.path)
	if err != nil {
		return err
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.d.synced[f.path] = st.Size()
	return nil
}

// image copies the disk, and of what was not synced leaves the given part, with
// garbled octets at its end if garble is set.
func (d *crashDisk) image(t *testing.T, dir string, part, of int64, garble bool) string {
	t.Helper()
	to := copyDir(t, dir)
	for path, synced := range d.synced {
		name := filepath.Join(to, "segments", filepath.Base(path))
		b, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		loose := max(0, int64(len(b))-synced)
		b = b[:int64(len(b))-loose+loose*part/of]
		if n := int64(len(b)); garble && n > synced {
			for i := synced + (n-synced)/2; i < n; i++ {
				b[i] = 0
			}
		}
		writeFile(t, name, b)
	}
	return to
}

// life opens a log, uses it as a service would, and returns the lines that were
// acknowledged. It goes on after errors: a caller may try again for ever.
func life(t *testing.T, o audit.Options) (acked []audit.Line, failed bool) {
	t.Helper()
	ctx := context.Background()
	l, err := audit.Open(ctx, o)
	if err != nil {
		return nil, true
	}
	poisoned := false
	for i := range 12 {
		lines, err := l.AppendAll(ctx, refusal(i), big(i, 400))
		switch {
		case err == nil && poisoned:
			t.Error("a poisoned log took a record")
		case err == nil:
			acked = append(acked, lines...)
		default:
			failed = true
			poisoned = errors.Is(err, audit.ErrPoisoned)
		}
		if i%5 == 4 {
			if _, err := l.Checkpoint(ctx); err != nil {
				failed = true
				poisoned = poisoned || errors.Is(err, audit.ErrPoisoned)
			} else if poisoned {
				t.Error("a poisoned log signed a checkpoint")
			}
		}
	}
	return acked, errors.Join(l.Close(ctx)) != nil || failed
}

// TestEveryOperationFails makes the n-th operation of the disk fail, for every n
// until none does, and cuts the power at that moment: a record that was
// acknowledged is there afterwards, the log opens without anybody's help, and
// the disk is never asked again after it failed.
func TestEveryOperationFails(t *testing.T) {
	for name, err := range diskErrors {
		for _, short := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, short %v", name, short), func(t *testing.T) {
				for n := 1; ; n++ {
					if !failNth(t, n, err, short) {
						if n < 30 {
							t.Errorf("only %d operations", n)
						}
						return
					}
				}
			})
		}
	}
}

func failNth(t *testing.T, n int, fault error, short bool) (failed bool) {
	dir, s := filepath.Join(t.TempDir(), "log"), newSigner(t)
	d := &crashDisk{badDisk: badDisk{Disk: audit.RealDisk(), failAt: n, err: fault, short: short}, synced: make(map[string]int64)}
	o := options(t, dir, s)
	o.SegmentBytes = 3000
	acked, failed := life(t, o.WithDisk(d))
	if !failed {
		return false
	}
	if len(d.after) > 0 {
		t.Errorf("operation %d (%s) failed, and then came %v", n, d.ops[n-1], d.after)
	}
	if _, err := os.Stat(dir); err != nil {
		return true
	}
	for part := range int64(4) {
		image := d.image(t, dir, part, 3, part == 2)
		o := options(t, image, s, &follower{t: t})
		o.SegmentBytes = 3000
		l, err := audit.Open(context.Background(), o)
		if err != nil {
			t.Errorf("operation %d (%s) failed, %d of 3 kept: %v", n, d.ops[n-1], part, err)
			continue
		}
		appendN(t, l, 1)
		closeLog(t, l)
		lines := readAll(t, image)
		for _, a := range acked {
			if a.Record.Seq >= uint64(len(lines)) || string(lines[a.Record.Seq].Raw) != string(a.Raw) {
				t.Errorf("operation %d (%s) failed, %d of 3 kept: record %d was acknowledged and is gone", n, d.ops[n-1], part, a.Record.Seq)
				break
			}
		}
		if _, err := audit.Verify(context.Background(), image, audit.VerifyOptions{Verifier: s.verifier()}); err != nil {
			t.Errorf("operation %d (%s) failed, %d of 3 kept: %v", n, d.ops[n-1], part, err)
		}
	}
	return true
}

// TestRecoveryFails makes the n-th operation of a recovery fail: the next start
// has the same to repair, or less, and loses nothing.
func TestRecoveryFails(t *testing.T) {
	from, s := t.TempDir(), newSigner(t)
	l := open(t, options(t, from, s))
	lines := appendN(t, l, 4)
	image := copyDir(t, from)
	name := segmentFiles(t, image)[0]
	b := readFile(t, name)
	writeFile(t, name, b[:len(b)-7])
	torn := lines[3].Raw[:len(lines[3].Raw)-7]
	for n := 1; ; n++ {
		dir := copyDir(t, image)
		d := &badDisk{Disk: audit.RealDisk(), failAt: n, err: diskErrors["EIO"], short: true}
		l, err := audit.Open(context.Background(), options(t, dir, s).WithDisk(d))
		if err == nil {
			_ = l.Close(context.Background())
		}
		if !d.broken {
			return
		}
		l, err = audit.Open(context.Background(), options(t, dir, s))
		if err != nil {
			t.Fatalf("operation %d (%s) of a recovery failed: %v", n, d.ops[n-1], err)
		}
		appendN(t, l, 1)
		closeLog(t, l)
		if got := len(readAll(t, dir)); got < 5 {
			t.Errorf("operation %d: %d lines", n, got)
		}
		kept := ""
		files, err := os.ReadDir(filepath.Join(dir, "lost+found"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			kept += string(readFile(t, filepath.Join(dir, "lost+found", f.Name())))
		}
		if !strings.Contains(kept, string(torn)) {
			t.Errorf("operation %d (%s): the torn tail is not kept", n, d.ops[n-1])
		}
	}
}
