package audit_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/postern-pki/postern/audit"
)

const origin = "test.example/log"

// signer signs what it followed, as the keyholder does.
type signer struct {
	key   *ecdsa.PrivateKey
	mu    sync.Mutex
	chain audit.Chain
	seqs  []uint64
}

func (s *signer) Next(context.Context) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.chain.Head().Size, nil
}

func (s *signer) Follow(_ context.Context, batch []audit.Line) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range batch {
		if err := s.chain.Step(l); err != nil {
			return err
		}
		s.seqs = append(s.seqs, l.Record.Seq)
	}
	return nil
}

func (s *signer) SignCheckpoint(_ context.Context, h audit.Head) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.chain.Head() != h {
		return nil, errors.New("not the head that was followed")
	}
	text := audit.NoteText(origin, h)
	sum := sha256.Sum256([]byte(text))
	sig, err := ecdsa.SignASN1(rand.Reader, s.key, sum[:])
	if err != nil {
		return nil, err
	}
	return audit.AssembleNote(origin, &s.key.PublicKey, text, sig)
}

type world struct {
	key      *ecdsa.PrivateKey
	verifier note.Verifier
}

func newWorld(t testing.TB) world {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	v, err := audit.ECDSANoteVerifier(origin, &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return world{key, v}
}

func (w world) open(dir string, change ...func(*audit.Options)) (*audit.Log, *signer, error) {
	s := &signer{key: w.key}
	o := audit.Options{
		Dir: dir, Origin: origin, Signer: s, Verifier: w.verifier, Followers: []audit.Follower{s},
		Genesis: func() (audit.Entry, error) { return entry("log.genesis", "ok", nil), nil },
	}
	for _, c := range change {
		c(&o)
	}
	l, err := audit.Open(context.Background(), o)
	return l, s, err
}

func (w world) verify(dir string) (audit.Report, error) {
	return audit.Verify(context.Background(), dir, audit.VerifyOptions{Verifier: w.verifier})
}

func entry(event, out string, ob audit.Object) audit.Entry {
	return audit.Entry{Event: event, Outcome: out, Request: "r", Actor: audit.Actor{Kind: "system"}, Object: ob}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// made is a closed log of n records beside genesis and checkpoint.
func (w world) made(t testing.TB, n int, change ...func(*audit.Options)) string {
	t.Helper()
	dir := t.TempDir()
	l, _, err := w.open(dir, change...)
	must(t, err)
	for i := range n {
		_, err := l.Append(context.Background(), entry("test", "ok", audit.Object{"n": i, "text": "<&>\u2028é\x01"}))
		must(t, err)
	}
	must(t, l.Close(context.Background()))
	return dir
}

func copied(t testing.TB, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "log")
	must(t, os.CopyFS(to, os.DirFS(dir)))
	return to
}

const first = "segments/000000000000.jsonl"

func TestManyWritersGetOneOrderAndEveryFollowerSeesIt(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	l, s, err := w.open(dir)
	must(t, err)
	var group sync.WaitGroup
	for g := range 64 {
		group.Go(func() {
			for i := range 10 {
				lines, err := l.AppendAll(context.Background(), entry("a", "ok", audit.Object{"g": g, "i": i}), entry("b", "ok", nil))
				if err != nil || len(lines) != 2 || lines[1].Record.Seq != lines[0].Record.Seq+1 {
					t.Errorf("AppendAll: %v, %v", lines, err)
				}
			}
		})
	}
	group.Wait()
	must(t, l.Close(context.Background()))
	for i, seq := range s.seqs {
		if seq != uint64(i) {
			t.Fatalf("the follower saw %d in place %d", seq, i)
		}
	}
	r, err := w.verify(dir)
	if err != nil || r.Events["a ok"] != 640 || r.Events["b ok"] != 640 || r.Checkpoints == 0 {
		t.Errorf("Verify: %+v, %v", r, err)
	}
}

func TestARecordThatIsTooLargeIsRefusedAndTheLogGoesOn(t *testing.T) {
	w := newWorld(t)
	l, _, err := w.open(t.TempDir())
	must(t, err)
	defer func() { must(t, l.Close(context.Background())) }()
	if _, err := l.Append(context.Background(), entry("big", "ok", audit.Object{"x": strings.Repeat("x", audit.MaxLine)})); !errors.Is(err, audit.ErrTooLarge) {
		t.Errorf("Append: %v, want ErrTooLarge", err)
	}
	for _, bad := range []any{true, 1.5, nil, uint64(1 << 60)} {
		if _, err := l.Append(context.Background(), entry("bad", "ok", audit.Object{"x": bad})); err == nil {
			t.Errorf("a value of type %T was taken", bad)
		}
	}
	_, err = l.Append(context.Background(), entry("small", "ok", nil))
	must(t, err)
}

func TestASecondWriterIsRefused(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	l, _, err := w.open(dir)
	must(t, err)
	defer func() { must(t, l.Close(context.Background())) }()
	if _, _, err := w.open(dir); !errors.Is(err, audit.ErrLocked) {
		t.Errorf("second Open: %v, want ErrLocked", err)
	}
}

// The log is cut at every octet of its last records, as a crash may leave it.
func TestATornTailIsCutAndNothingBeforeIt(t *testing.T) {
	w := newWorld(t)
	noSigner := func(o *audit.Options) { o.Signer, o.Verifier = nil, w.verifier }
	dir := w.made(t, 6, noSigner)
	data, err := os.ReadFile(filepath.Join(dir, first))
	must(t, err)
	lines := bytes.SplitAfter(bytes.TrimSuffix(data, []byte("\n")), []byte("\n"))
	from := len(data) - len(lines[len(lines)-1]) - len(lines[len(lines)-2]) - 1
	for cut := from; cut < len(data); cut++ {
		torn := copied(t, dir)
		must(t, os.Truncate(filepath.Join(torn, first), int64(cut)))
		whole := bytes.Count(data[:cut], []byte("\n"))
		l, s, err := w.open(torn, noSigner)
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		next, _ := s.Next(context.Background())
		r := l.Recovered()
		must(t, l.Close(context.Background()))
		atLine := data[cut-1] == '\n'
		if want := uint64(whole); (r.Cut == 0) != atLine || next < want || r.Cut > 0 && next != want+1 {
			t.Fatalf("cut at %d: %d whole records, follower at %d, recovery %+v", cut, whole, next, r)
		}
		if _, err := w.verify(torn); err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
	}
}

func TestWhatACheckpointKnowsIsNeverCut(t *testing.T) {
	w := newWorld(t)
	dir := w.made(t, 5)
	data, err := os.ReadFile(filepath.Join(dir, first))
	must(t, err)
	third := len(bytes.Join(bytes.SplitAfter(data, []byte("\n"))[:3], nil))
	must(t, os.Truncate(filepath.Join(dir, first), int64(third-7)))
	if _, _, err := w.open(dir); !isMaintenance(err) {
		t.Errorf("Open: %v, want maintenance", err)
	}
	if _, err := w.verify(dir); !isDamage(err) {
		t.Errorf("Verify: %v, want damage", err)
	}
}

func TestAnIndexAheadOfTheLogIsMaintenance(t *testing.T) {
	w := newWorld(t)
	dir := w.made(t, 3)
	if _, _, err := w.open(dir, func(o *audit.Options) { o.MinSize = 100 }); !isMaintenance(err) {
		t.Errorf("Open: %v, want maintenance", err)
	}
}

func isMaintenance(err error) bool {
	_, ok := errors.AsType[*audit.MaintenanceError](err)
	return ok
}

func isDamage(err error) bool {
	_, ok := errors.AsType[*audit.Damage](err)
	return ok
}

func small(o *audit.Options) { o.SegmentBytes = 2000 }

func TestEveryTamperingIsFoundAndNamed(t *testing.T) {
	w := newWorld(t)
	dir := w.made(t, 40, small)
	if _, err := w.verify(dir); err != nil {
		t.Fatal(err)
	}
	edit := func(name string, f func([][]byte) [][]byte) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			path := filepath.Join(dir, name)
			data, err := os.ReadFile(path)
			must(t, err)
			must(t, os.WriteFile(path, bytes.Join(f(bytes.SplitAfter(data, []byte("\n"))), nil), 0o600))
		}
	}
	segs, err := filepath.Glob(filepath.Join(dir, "segments", "*"))
	must(t, err)
	if len(segs) < 4 {
		t.Fatalf("%d segments", len(segs))
	}
	mid := "segments/" + filepath.Base(segs[1])
	for name, tamper := range map[string]func(*testing.T, string){
		"a line deleted":      edit(mid, func(l [][]byte) [][]byte { return append(l[:1:1], l[2:]...) }),
		"a line repeated":     edit(mid, func(l [][]byte) [][]byte { return append(l[:2:2], l[1:]...) }),
		"two lines exchanged": edit(mid, func(l [][]byte) [][]byte { l[1], l[2] = l[2], l[1]; return l }),
		"a space added": edit(mid, func(l [][]byte) [][]byte {
			l[1] = bytes.Replace(l[1], []byte(`,"boot"`), []byte(`, "boot"`), 1)
			return l
		}),
		"a segment removed": func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, mid))) },
		"segments exchanged": func(t *testing.T, dir string) {
			a, b := filepath.Join(dir, mid), filepath.Join(dir, "segments", filepath.Base(segs[2]))
			must(t, os.Rename(a, a+".tmp"))
			must(t, os.Rename(b, a))
			must(t, os.Rename(a+".tmp", b))
		},
		"the end cut off": func(t *testing.T, dir string) {
			must(t, os.Remove(filepath.Join(dir, "segments", filepath.Base(segs[len(segs)-1]))))
		},
		"a checkpoint of another key": func(t *testing.T, dir string) {
			other := newWorld(t)
			notes, _ := filepath.Glob(filepath.Join(other.made(t, 1), "checkpoints", "*"))
			data, err := os.ReadFile(notes[0])
			must(t, err)
			must(t, os.WriteFile(filepath.Join(dir, "checkpoints", filepath.Base(notes[0])), data, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := copied(t, dir)
			tamper(t, dir)
			_, err := w.verify(dir)
			d, ok := errors.AsType[*audit.Damage](err)
			if !ok || d.Segment == "" && d.Why == "" {
				t.Errorf("Verify: %v, want damage with its place", err)
			}
		})
	}
}

func TestAFlippedBitIsFoundAnywhere(t *testing.T) {
	w := newWorld(t)
	dir := w.made(t, 8)
	path := filepath.Join(dir, first)
	data, err := os.ReadFile(path)
	must(t, err)
	// The last record is the checkpoint's own: nothing after it commits to it yet.
	end := bytes.LastIndexByte(data[:len(data)-1], '\n')
	for at := 0; at < end; at += 13 {
		bad := bytes.Clone(data)
		bad[at] ^= 1
		must(t, os.WriteFile(path, bad, 0o600))
		if _, err := w.verify(dir); !isDamage(err) {
			t.Fatalf("octet %d: %v, want damage", at, err)
		}
	}
}

func TestASegmentSaysWhatTheOneBeforeItIs(t *testing.T) {
	w := newWorld(t)
	dir := w.made(t, 30, small)
	l, s, err := w.open(dir, small)
	must(t, err)
	next, _ := s.Next(context.Background())
	if h := l.Head(); h.Size != next {
		t.Errorf("reopened at %d, the follower is at %d", h.Size, next)
	}
	must(t, l.Close(context.Background()))
	segs, err := filepath.Glob(filepath.Join(dir, "segments", "*"))
	must(t, err)
	last, err := os.ReadFile(segs[len(segs)-1])
	must(t, err)
	line, err := audit.ParseLine(last[:bytes.IndexByte(last, '\n')+1])
	must(t, err)
	out, err := exec.Command("sha256sum", segs[len(segs)-2]).Output()
	must(t, err)
	if sum, _, _ := strings.Cut(string(out), " "); sum != line.Record.Object.String("previous_sha256") {
		t.Errorf("sha256sum says %s, the segment %s", sum, line.Record.Object.String("previous_sha256"))
	}
	must(t, os.WriteFile(segs[len(segs)-2], []byte("{}\n"), 0o600))
	if _, _, err := w.open(dir, small); !isMaintenance(err) {
		t.Errorf("Open over a changed segment: %v, want maintenance", err)
	}
}

func TestOpenSSLVerifiesACheckpoint(t *testing.T) {
	w := newWorld(t)
	dir := w.made(t, 3)
	notes, err := filepath.Glob(filepath.Join(dir, "checkpoints", "*.note"))
	must(t, err)
	data, err := os.ReadFile(notes[len(notes)-1])
	must(t, err)
	n, err := note.Open(data, note.VerifierList(w.verifier))
	must(t, err)
	_, rest, _ := strings.Cut(string(data), "\u2014 "+origin+" ")
	sig, err := decode(strings.TrimSpace(rest))
	must(t, err)
	der, err := x509.MarshalPKIXPublicKey(&w.key.PublicKey)
	must(t, err)
	tmp := t.TempDir()
	put := func(name string, b []byte) string {
		p := filepath.Join(tmp, name)
		must(t, os.WriteFile(p, b, 0o600))
		return p
	}
	out, err := exec.Command("openssl", "dgst", "-sha256", "-verify", put("pub.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})),
		"-signature", put("sig", sig[4:]), put("text", []byte(n.Text))).CombinedOutput()
	if err != nil {
		t.Errorf("openssl: %v: %s", err, out)
	}
}

func TestAFollowerThatFailsPoisonsTheLog(t *testing.T) {
	w := newWorld(t)
	bad := &failing{}
	l, _, err := w.open(t.TempDir(), func(o *audit.Options) { o.Followers = append(o.Followers, bad) })
	must(t, err)
	bad.fail = true
	for range 2 {
		if _, err := l.Append(context.Background(), entry("x", "ok", nil)); !errors.Is(err, audit.ErrPoisoned) {
			t.Errorf("Append: %v, want ErrPoisoned", err)
		}
	}
	_ = l.Close(context.Background())
}

type failing struct {
	n    uint64
	fail bool
}

func (f *failing) Next(context.Context) (uint64, error) { return f.n, nil }
func (f *failing) Follow(_ context.Context, b []audit.Line) error {
	if f.fail {
		return fmt.Errorf("no")
	}
	f.n += uint64(len(b))
	return nil
}

func BenchmarkAppend16(b *testing.B) {
	w := newWorld(b)
	l, _, err := w.open(b.TempDir())
	must(b, err)
	ob := audit.Object{"text": strings.Repeat("x", 500)}
	b.SetParallelism(8)
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if _, err := l.Append(context.Background(), entry("bench", "ok", ob)); err != nil {
				b.Error(err)
			}
		}
	})
	must(b, l.Close(context.Background()))
}
