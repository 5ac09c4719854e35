package audit_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/postern-pki/postern/audit"
)

// softSigner signs checkpoints with a software key, and checks that each is of the
// lines that it was fed itself.
type softSigner struct {
	t     testing.TB
	key   *ecdsa.PrivateKey
	mu    sync.Mutex
	heads []audit.Head
	fail  func(ctx context.Context) error
}

func newSigner(t testing.TB) *softSigner {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &softSigner{t: t, key: key}
}

func (s *softSigner) SignCheckpoint(ctx context.Context, h audit.Head) ([]byte, error) {
	s.mu.Lock()
	fail := s.fail
	s.mu.Unlock()
	if fail != nil {
		if err := fail(ctx); err != nil {
			return nil, err
		}
	}
	text := audit.NoteText(origin, h)
	sum := sha256.Sum256([]byte(text))
	sig, err := ecdsa.SignASN1(rand.Reader, s.key, sum[:])
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.heads = append(s.heads, h)
	s.mu.Unlock()
	return audit.AssembleNote(origin, &s.key.PublicKey, text, sig)
}

func (s *softSigner) count() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.heads) }

func (s *softSigner) set(f func(context.Context) error) { s.mu.Lock(); s.fail = f; s.mu.Unlock() }

func (s *softSigner) verifier() note.Verifier {
	v, err := audit.ECDSANoteVerifier(origin, &s.key.PublicKey)
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

// follower fails the test when it is fed anything but the next line.
type follower struct {
	t     testing.TB
	mu    sync.Mutex
	chain audit.Chain
	lines []audit.Line
	fail  error
	calls int
}

func (f *follower) Next(context.Context) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.chain.Head().Size, nil
}

func (f *follower) Follow(_ context.Context, batch []audit.Line) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.fail != nil {
		return f.fail
	}
	for _, l := range batch {
		if err := f.chain.Step(l); err != nil {
			f.t.Errorf("fed line %d: %v", l.Record.Seq, err)
		}
		f.lines = append(f.lines, l)
	}
	return nil
}

func (f *follower) size() uint64 { n, _ := f.Next(context.Background()); return n }

// log collects what a log needs; two with one signer and folder are one log,
// opened twice.
func options(t testing.TB, dir string, s *softSigner, followers ...audit.Follower) audit.Options {
	o := audit.Options{
		Dir: dir, Origin: origin, Followers: followers,
		Genesis: func() (audit.Entry, error) {
			return audit.Entry{Event: "log.genesis", Outcome: "begun", Actor: audit.Actor{Kind: "ceremony"}, Object: audit.Object{"transcript": "00"}}, nil
		},
	}
	if s != nil {
		o.Signer, o.Verifier = s, s.verifier()
	}
	return o
}

func open(t testing.TB, o audit.Options) *audit.Log {
	t.Helper()
	l, err := audit.Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		_ = l.Close(ctx)
	})
	return l
}

func refusal(i int) audit.Entry {
	return audit.Entry{Event: "scep.enroll", Outcome: "refused", Request: fmt.Sprintf("req-%d", i),
		Actor: audit.Actor{Kind: "device", ID: "-", Source: "192.0.2.1:5"}, Object: audit.Object{"i": i, "why": []string{"subject.CN"}}}
}

func appendN(t testing.TB, l *audit.Log, n int) []audit.Line {
	t.Helper()
	var out []audit.Line
	for i := range n {
		line, err := l.Append(context.Background(), refusal(i))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, line)
	}
	return out
}

func closeLog(t testing.TB, l *audit.Log) {
	t.Helper()
	if err := l.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func segmentFiles(t testing.TB, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "segments", "*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func copyDir(t testing.TB, from string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// readAll returns every line of a log.
func readAll(t testing.TB, dir string) []audit.Line {
	t.Helper()
	var out []audit.Line
	if err := audit.Scan(dir, 0, func(l audit.Line) error { out = append(out, l); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

func eventsOf(lines []audit.Line) string {
	var out []string
	for _, l := range lines {
		out = append(out, l.Record.Event)
	}
	return strings.Join(out, " ")
}

// badDisk fails operation number failAt with err, once; count is how many
// operations there were. An operation after the failed one that touches a
// file's data is noted: a log must not ask twice.
type badDisk struct {
	audit.Disk
	mu     sync.Mutex
	count  int
	failAt int
	err    error
	short  bool // a failing write first writes half
	broken bool
	after  []string
	ops    []string
	hang   chan struct{} // if not nil, Sync waits for it
}

func (d *badDisk) op(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.count++
	d.ops = append(d.ops, name)
	if d.broken && (name == "write" || name == "sync" || name == "writefile") {
		d.after = append(d.after, name)
	}
	if d.failAt > 0 && d.count == d.failAt {
		d.broken = true
		return d.err
	}
	return nil
}

func (d *badDisk) Append(path string) (audit.File, error) {
	if err := d.op("append"); err != nil {
		return nil, err
	}
	f, err := d.Disk.Append(path)
	if err != nil {
		return nil, err
	}
	return &badFile{f, d}, nil
}

func (d *badDisk) WriteFile(path string, data []byte) error {
	return errors.Join(d.op("writefile"), d.unless(func() error { return d.Disk.WriteFile(path, data) }))
}

func (d *badDisk) Truncate(path string, size int64) error {
	return errors.Join(d.op("truncate"), d.unless(func() error { return d.Disk.Truncate(path, size) }))
}

func (d *badDisk) Rename(from, to string) error {
	return errors.Join(d.op("rename"), d.unless(func() error { return d.Disk.Rename(from, to) }))
}

func (d *badDisk) SyncDir(dir string) error {
	return errors.Join(d.op("syncdir"), d.unless(func() error { return d.Disk.SyncDir(dir) }))
}

// unless does the real thing, but for the operation that just failed.
func (d *badDisk) unless(do func() error) error {
	d.mu.Lock()
	failed := d.failAt > 0 && d.count == d.failAt
	d.mu.Unlock()
	if failed {
		return nil
	}
	return do()
}

type badFile struct {
	audit.File
	d *badDisk
}

func (f *badFile) Write(b []byte) (int, error) {
	if err := f.d.op("write"); err != nil {
		n := 0
		if f.d.short {
			n, _ = f.File.Write(b[:len(b)/2])
		}
		return n, err
	}
	return f.File.Write(b)
}

func (f *badFile) Sync() error {
	if f.d.hang != nil {
		<-f.d.hang
	}
	if err := f.d.op("sync"); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *badFile) Close() error {
	if err := f.d.op("close"); err != nil {
		return errors.Join(err, f.File.Close())
	}
	return f.File.Close()
}

var diskErrors = map[string]error{"EIO": syscall.EIO, "ENOSPC": syscall.ENOSPC}
