package audit_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/audit"
)

func TestSegmentPutAsideIsRecorded(t *testing.T) {
	dir := t.TempDir()
	o := options(t, dir, nil)
	o.SegmentBytes = 2000
	l := open(t, o)
	appendN(t, l, 12)
	closeLog(t, l)
	names := segmentFiles(t, dir)
	last := names[len(names)-1]
	first := readAll(t, dir)
	_ = first
	writeFile(t, last, readFile(t, last)[:40])
	l = open(t, o)
	if l.Recovered().Cut != 40 {
		t.Errorf("Recovered = %+v, want 40 octets", l.Recovered())
	}
	if got := eventsOf(readAll(t, dir)); !strings.Contains(got, "log.recovered") {
		t.Errorf("a torn segment was put aside without a record: %s", got)
	}
}

func TestEmptiedSegmentsAreNoNewLog(t *testing.T) {
	dir := t.TempDir()
	o := options(t, dir, nil)
	o.SegmentBytes = 2000
	l := open(t, o)
	appendN(t, l, 12)
	closeLog(t, l)
	for _, n := range segmentFiles(t, dir) {
		writeFile(t, n, nil)
	}
	_, err := audit.Open(context.Background(), o)
	if _, ok := errors.AsType[*audit.MaintenanceError](err); !ok {
		t.Errorf("Open = %v, want maintenance", err)
	}
}

func TestFollowerAheadStopsTheCut(t *testing.T) {
	dir := t.TempDir()
	f := &follower{t: t}
	l := open(t, options(t, dir, nil, f))
	appendN(t, l, 3)
	closeLog(t, l)
	name := segmentFiles(t, dir)[0]
	b := readFile(t, name)
	writeFile(t, name, b[:len(b)-10])
	_, err := audit.Open(context.Background(), options(t, dir, nil, f))
	if _, ok := errors.AsType[*audit.MaintenanceError](err); !ok {
		t.Errorf("Open = %v, want maintenance", err)
	}
	if got := readFile(t, name); len(got) != len(b)-10 {
		t.Errorf("the file was cut to %d octets, although a follower has seen what was there", len(got))
	}
}

func TestForgedPastUnderAnOldCheckpoint(t *testing.T) {
	s := newSigner(t)
	make2 := func(why string) string {
		dir := t.TempDir()
		o := options(t, dir, s)
		o.SegmentBytes = 2000
		l := open(t, o)
		for i := range 3 {
			e := refusal(i)
			e.Object["why"] = why
			if _, err := l.Append(context.Background(), e); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := l.Checkpoint(context.Background()); err != nil {
			t.Fatal(err)
		}
		// leave it as it is; segments roll
		for i := 0; len(segmentFiles(t, dir)) < 3; i++ {
			e := refusal(i)
			e.Object["why"] = why
			if _, err := l.Append(context.Background(), e); err != nil {
				t.Fatal(err)
			}
		}
		return copyDir(t, dir)
	}
	a, b := make2("aaaa"), make2("bbbb")
	// a's signed checkpoint over b's records
	if err := os.RemoveAll(filepath.Join(b, "checkpoints")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(b, "checkpoints"), os.DirFS(filepath.Join(a, "checkpoints"))); err != nil {
		t.Fatal(err)
	}
	o := options(t, b, s)
	o.SegmentBytes = 2000
	l, err := audit.Open(context.Background(), o)
	if err == nil {
		t.Errorf("a log that contradicts its newest signed checkpoint was opened")
		_ = l.Close(context.Background())
	}
}

func TestFailingFollowerAtOpenIsAskedOnce(t *testing.T) {
	dir := t.TempDir()
	l := open(t, options(t, dir, nil))
	appendN(t, l, 3)
	closeLog(t, l)
	f := &follower{t: t, fail: errors.New("no")}
	if _, err := audit.Open(context.Background(), options(t, dir, nil, f)); err == nil {
		t.Fatal("opened")
	}
	if f.calls != 1 {
		t.Errorf("asked %d times", f.calls)
	}
}

// TestTornAtEveryOctet cuts a log as a crash would, at every octet of its last
// two records: what was whole stays, what was torn is kept aside and recorded.
func TestTornAtEveryOctet(t *testing.T) {
	from := t.TempDir()
	l := open(t, options(t, from, nil))
	lines := appendN(t, l, 4)
	closeLog(t, l)
	whole := readFile(t, segmentFiles(t, from)[0])
	last, before := len(lines[3].Raw), len(lines[2].Raw)
	for cut := 1; cut <= last+before; cut++ {
		dir := copyDir(t, from)
		name := segmentFiles(t, dir)[0]
		writeFile(t, name, whole[:len(whole)-cut])
		keep, torn := 4, last-cut // lines, octets of the next one
		if cut > last {
			keep, torn = 3, last+before-cut
		} else if cut == last {
			torn = 0
		}
		f := &follower{t: t}
		l, err := audit.Open(context.Background(), options(t, dir, nil, f))
		if err != nil {
			t.Fatalf("%d octets cut: %v", cut, err)
		}
		r := l.Recovered()
		if r.Cut != int64(torn) || f.chain.Head() != l.Head() {
			t.Errorf("%d octets cut: Recovered = %+v, want %d", cut, r, torn)
		}
		after := appendN(t, l, 1)[0]
		closeLog(t, l)
		want := keep
		if torn > 0 {
			want++
			kept := readFile(t, filepath.Join(dir, "lost+found", r.Kept))
			if !bytes.Equal(kept, whole[len(whole)-cut-torn:len(whole)-cut]) {
				t.Errorf("%d octets cut: kept %q", cut, kept)
			}
			ob := readAll(t, dir)[keep].Record
			if ob.Event != "log.recovered" || ob.Object.Int("octets") != int64(torn) || ob.Object.String("sha256") != r.SHA256 {
				t.Errorf("%d octets cut: recorded as %s %v", cut, ob.Event, ob.Object)
			}
		}
		if after.Record.Seq != uint64(want) {
			t.Errorf("%d octets cut: the next record is %d, want %d", cut, after.Record.Seq, want)
		}
	}
}

// TestOnlyATornTailIsCut has what may be repaired beside what never is.
func TestOnlyATornTailIsCut(t *testing.T) {
	from, s := t.TempDir(), newSigner(t)
	l := open(t, options(t, from, s))
	appendN(t, l, 3)
	if _, err := l.Checkpoint(context.Background()); err != nil {
		t.Fatal(err)
	}
	appendN(t, l, 3)
	image := copyDir(t, from) // as a crash leaves it
	whole := readFile(t, segmentFiles(t, image)[0])
	lines := bytes.SplitAfter(whole, []byte("\n"))
	lines = lines[:len(lines)-1]
	join := func(l ...[]byte) []byte { return bytes.Join(l, nil) }
	flip := func(i int) []byte {
		out := append([][]byte(nil), lines...)
		out[i] = bytes.Replace(out[i], []byte("scep"), []byte("scfp"), 1)
		return join(out...)
	}
	for name, tt := range map[string]struct {
		data    []byte
		min     uint64
		cut     int
		mend    bool
		garbled int
	}{
		"whole":                                   {data: whole, mend: true},
		"a garbled end without LF":                {data: join(whole, []byte("{\"actor\"")), mend: true, cut: 8},
		"garbled whole lines at the end":          {data: join(whole, []byte("\x00\x00\n\x00\n\x00")), mend: true, cut: 6},
		"zeros longer than a line":                {data: join(whole, make([]byte, 200<<10)), mend: true, cut: 200 << 10},
		"garble before a whole line":              {data: join(join(lines[:6]...), []byte("xx\n"), lines[6]), mend: false},
		"an edited line, the next one whole":      {data: flip(5), mend: false},
		"an edited line below the checkpoint":     {data: flip(2), mend: false},
		"a line missing":                          {data: join(join(lines[:5]...), lines[6]), mend: false},
		"a line twice":                            {data: join(whole, lines[len(lines)-1]), mend: false},
		"cut below the checkpoint, whole lines":   {data: join(lines[:3]...), mend: false},
		"torn below the checkpoint":               {data: join(join(lines[:3]...), lines[3][:20]), mend: false},
		"torn where the index has seen it":        {data: whole[:len(whole)-5], min: uint64(len(lines)), mend: false},
		"torn above what the index has seen":      {data: whole[:len(whole)-5], min: uint64(len(lines) - 1), mend: true, cut: len(lines[len(lines)-1]) - 5},
		"whole lines cut that the index has seen": {data: join(lines[:len(lines)-1]...), min: uint64(len(lines)), mend: false},
		"no octet left":                           {data: nil, mend: false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := copyDir(t, image)
			file := segmentFiles(t, dir)[0]
			writeFile(t, file, tt.data)
			o := options(t, dir, s)
			o.MinSize = tt.min
			l, err := audit.Open(context.Background(), o)
			if tt.mend {
				if err != nil || l.Recovered().Cut != int64(tt.cut) {
					t.Fatalf("Open: %v", err)
				}
				closeLog(t, l)
				if _, err := audit.Verify(context.Background(), dir, audit.VerifyOptions{Verifier: s.verifier()}); err != nil {
					t.Error(err)
				}
				return
			}
			if _, ok := errors.AsType[*audit.MaintenanceError](err); !ok {
				t.Errorf("Open: %v, want maintenance", err)
			}
			if got := readFile(t, file); !bytes.Equal(got, tt.data) {
				t.Error("the file was changed")
			}
		})
	}
}

// TestSegmentsGoneOrSwapped looks at files and not at lines.
func TestSegmentsGoneOrSwapped(t *testing.T) {
	from, s := t.TempDir(), newSigner(t)
	o := options(t, from, s)
	o.SegmentBytes = 2000
	l := open(t, o)
	appendN(t, l, 20)
	closeLog(t, l)
	n := len(segmentFiles(t, from))
	if n < 4 {
		t.Fatalf("%d segments", n)
	}
	for name, damage := range map[string]func(files []string){
		"the one before the last is gone": func(f []string) { _ = os.Remove(f[n-2]) },
		"the last is gone":                func(f []string) { _ = os.Remove(f[n-1]) },
		"two are swapped": func(f []string) {
			a, b := readFile(t, f[n-1]), readFile(t, f[n-2])
			writeFile(t, f[n-1], b)
			writeFile(t, f[n-2], a)
		},
		"the one before the last is short": func(f []string) { b := readFile(t, f[n-2]); writeFile(t, f[n-2], b[:len(b)-1]) },
		"all are gone": func(f []string) {
			for _, name := range f {
				_ = os.Remove(name)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := copyDir(t, from)
			damage(segmentFiles(t, dir))
			o := options(t, dir, s)
			if _, err := audit.Open(context.Background(), o); !isMaintenance(err) {
				t.Errorf("Open: %v, want maintenance", err)
			}
			if _, err := audit.Verify(context.Background(), dir, audit.VerifyOptions{Verifier: s.verifier()}); !isDamage(err) {
				t.Errorf("Verify: %v, want damage", err)
			}
		})
	}
}

// TestStop tells a recorded stop from a crash.
func TestStop(t *testing.T) {
	dir, s := t.TempDir(), newSigner(t)
	l := open(t, options(t, dir, s))
	if r := l.Recovered(); !r.Clean || !r.SameBoot {
		t.Errorf("a new log: %+v", r)
	}
	appendN(t, l, 1)
	closeLog(t, l)
	l = open(t, options(t, dir, s))
	if r := l.Recovered(); r.Clean || !r.SameBoot {
		t.Errorf("no stop was recorded: %+v", r)
	}
	if _, err := l.Append(context.Background(), audit.Entry{Event: "system.stop", Outcome: "ok", Actor: audit.Actor{Kind: "system"}}); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	if r := open(t, options(t, dir, s)).Recovered(); !r.Clean {
		t.Errorf("after a recorded stop: %+v", r)
	}
}

// TestABootThatNobodyTells: where the kernel's word is hidden, who starts the
// service says which boot it is; unknown is never the same as before.
func TestABootThatNobodyTells(t *testing.T) {
	for boot, same := range map[string]bool{"5f2b": true, "unknown": false} {
		dir := t.TempDir()
		o := options(t, dir, nil)
		o.Boot = boot
		l := open(t, o)
		appendN(t, l, 1)
		closeLog(t, l)
		if r := open(t, o).Recovered(); r.SameBoot != same {
			t.Errorf("%s: same boot %v, want %v", boot, r.SameBoot, same)
		}
		if got := readAll(t, dir)[1].Record.Boot; got != boot {
			t.Errorf("the record says boot %q, want %q", got, boot)
		}
	}
}

// TestAStartThatWasCutShort: what a start records before it is complete does not
// hide from the next one that the machine was started since the service ran.
func TestAStartThatWasCutShort(t *testing.T) {
	of := func(boot string, events ...string) (out []audit.Record) {
		for _, e := range events {
			out = append(out, audit.Record{Event: e, Outcome: "ok", Boot: boot, Actor: audit.Actor{Kind: "system"}})
		}
		return out
	}
	boot := strings.TrimSpace(string(readFile(t, "/proc/sys/kernel/random/boot_id")))
	for name, tt := range map[string]struct {
		records     []audit.Record
		clean, same bool
	}{
		"it ran in this boot":                     {of(boot, "log.genesis", "system.start", "scep.enroll"), false, true},
		"it ran before this boot":                 {of("earlier", "log.genesis", "system.start", "scep.enroll"), false, false},
		"it stopped before this boot":             {of("earlier", "log.genesis", "system.start", "system.stop", "log.checkpoint"), true, false},
		"it was only opened in this boot":         {append(of("earlier", "log.genesis", "system.start", "scep.enroll"), of(boot, "log.recovered", "log.checkpoint")...), false, false},
		"it began to start in this boot":          {append(of("earlier", "log.genesis", "system.start", "scep.enroll"), of(boot, "system.unclean", "challenge")...), false, false},
		"it began to start twice in this boot":    {append(of("earlier", "log.genesis", "system.start"), of(boot, "system.unclean", "system.unclean", "challenge")...), false, false},
		"it started in this boot and went on":     {append(of("earlier", "log.genesis", "system.start"), of(boot, "system.unclean", "challenge", "system.start", "scep.enroll")...), false, true},
		"it stopped, and was opened in this boot": {append(of("earlier", "log.genesis", "system.start", "system.stop"), of(boot, "log.checkpoint", "time.step")...), true, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var file []byte
			var prev [32]byte
			for n, r := range tt.records {
				if r.Seq, r.Prev, r.Time = uint64(n), hex.EncodeToString(prev[:]), time.Now(); r.Event == "log.genesis" {
					r.Object = audit.Object{"origin": origin}
				}
				l, err := audit.Encode(r)
				if err != nil {
					t.Fatal(err)
				}
				file, prev = append(file, l.Raw...), l.Hash()
			}
			if err := os.MkdirAll(filepath.Join(dir, "segments"), 0o700); err != nil {
				t.Fatal(err)
			}
			writeFile(t, filepath.Join(dir, "segments", "000000000000.jsonl"), file)
			if r := open(t, options(t, dir, nil)).Recovered(); r.Clean != tt.clean || r.SameBoot != tt.same {
				t.Errorf("%+v, want clean %v, same boot %v", r, tt.clean, tt.same)
			}
		})
	}
}
