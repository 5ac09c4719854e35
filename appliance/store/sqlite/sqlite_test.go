package sqlite_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/appliance/store/sqlite"
	"github.com/postern-pki/postern/appliance/store/storetest"
	"github.com/postern-pki/postern/audit"
)

// childIndex names the index that a test asks another process of this binary to
// write to.
const childIndex = "POSTERN_TEST_INDEX"

func TestMain(m *testing.M) {
	if path := os.Getenv(childIndex); path != "" {
		os.Exit(child(path))
	}
	os.Exit(m.Run())
}

// child follows the first line of a log, and writes the index's state.
func child(path string) int {
	ctx := context.Background()
	s, err := sqlite.Open(ctx, path)
	if err == nil {
		err = s.Follow(ctx, storetest.NewLog(&testing.T{}).Start())
	}
	if err == nil {
		err = s.Dump(ctx, os.Stdout)
	}
	if err == nil {
		err = s.Close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func openIn(t testing.TB, dir string) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), filepath.Join(dir, "index.db"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func closed(t testing.TB, s *sqlite.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func dump(t testing.TB, s *sqlite.Store) string {
	t.Helper()
	var b bytes.Buffer
	if err := s.Dump(t.Context(), &b); err != nil {
		t.Fatalf("Dump: %v", err)
	}
	return b.String()
}

func TestContract(t *testing.T) {
	storetest.Run(t, func(t testing.TB, dir string) storetest.Index { return openIn(t, dir) })
}

// some is an index with a certificate in it, closed.
func some(t *testing.T) (path string, l *storetest.Log) {
	t.Helper()
	dir := t.TempDir()
	s, l := openIn(t, dir), storetest.NewLog(t)
	l.Created(storetest.Challenge("c1"))
	l.Intent(storetest.Issuance("d1", "0a"))
	if err := s.Follow(t.Context(), l.Lines); err != nil {
		t.Fatal(err)
	}
	closed(t, s)
	return filepath.Join(dir, "index.db"), l
}

// edit runs SQL that the product never would.
func edit(t *testing.T, path, text string) {
	t.Helper()
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), text); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefusesWhatItDidNotMake(t *testing.T) {
	for _, c := range []struct {
		name string
		harm func(t *testing.T, path string)
		want error
		say  string
	}{
		{"text", func(t *testing.T, path string) { write(t, path, []byte(strings.Repeat("not a database\n", 500))) }, sqlite.ErrDamaged, "postern rebuild"},
		{"pages overwritten", func(t *testing.T, path string) { scribble(t, path) }, sqlite.ErrDamaged, "postern rebuild"},
		{"newer", func(t *testing.T, path string) {
			edit(t, path, "INSERT INTO migration SELECT max(version) + 1, 'future', 'ab' FROM migration")
		}, sqlite.ErrSchema, "and this version knows"},
		{"altered step", func(t *testing.T, path string) {
			edit(t, path, "UPDATE migration SET sha256 = 'ab'")
		}, sqlite.ErrSchema, "schema version 1 is another one"},
		{"missing step", func(t *testing.T, path string) {
			edit(t, path, "DELETE FROM migration WHERE version = 1")
		}, sqlite.ErrSchema, "postern rebuild"},
		{"trigger", func(t *testing.T, path string) {
			edit(t, path, "CREATE TRIGGER evil AFTER UPDATE ON challenge BEGIN UPDATE challenge SET state = 'open'; END")
		}, sqlite.ErrSchema, "altered"},
		{"dropped index", func(t *testing.T, path string) { edit(t, path, "DROP INDEX certificate_spki") }, sqlite.ErrSchema, "altered"},
		{"another program's", func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			edit(t, path, "CREATE TABLE users (id)")
		}, sqlite.ErrSchema, "another program"},
		{"folder", func(t *testing.T, path string) {
			if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
				t.Fatal(err)
			}
		}, nil, "is a directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path, _ := some(t)
			c.harm(t, path)
			s, err := sqlite.Open(t.Context(), path)
			if err == nil {
				closed(t, s)
				t.Fatal("was opened")
			}
			if c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.say) || !strings.Contains(err.Error(), path) {
				t.Errorf("%v: want %v, with the path and %q", err, c.want, c.say)
			}
		})
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// scribble overwrites all of a database but its header.
func scribble(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := 100; n < len(b); n++ {
		b[n] = 0xa5
	}
	write(t, path, b)
}

// Damage that a start does not look for is named where it is met, and a batch
// that meets it is not half applied.
func TestDamageIsNamed(t *testing.T) {
	dir := t.TempDir()
	s, l := openIn(t, dir), storetest.NewLog(t)
	for n := range 400 {
		l.Created(storetest.Challenge(fmt.Sprint(n)))
	}
	if err := s.Follow(t.Context(), l.Lines); err != nil {
		t.Fatal(err)
	}
	closed(t, s)
	path := filepath.Join(dir, "index.db")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := 30 * 4096; n < len(b); n++ { // the schema and the roots stand before that
		b[n] = 0xa5
	}
	write(t, path, b)
	s = openIn(t, dir)
	defer closed(t, s)
	if err := s.Dump(t.Context(), new(bytes.Buffer)); !errors.Is(err, sqlite.ErrDamaged) {
		t.Errorf("Dump: %v, want ErrDamaged", err)
	}
	before, err := s.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	from := len(l.Lines)
	for n := range 200 {
		l.Created(storetest.Challenge(fmt.Sprint("more", n)))
	}
	if err := s.Follow(t.Context(), l.Lines[from:]); !errors.Is(err, sqlite.ErrDamaged) {
		t.Errorf("Follow: %v, want ErrDamaged", err)
	}
	if after, err := s.Next(t.Context()); err != nil || after != before {
		t.Errorf("Next: %d, %v, want %d", after, err, before)
	}
}

func TestFilesAreTheOwnersAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a folder?with#signs%41")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "index.db"), nil)
	if err := os.Chmod(filepath.Join(dir, "index.db"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := openIn(t, dir)
	defer closed(t, s)
	if err := s.Follow(t.Context(), storetest.NewLog(t).Start()); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Fatalf("%v, %v, want the database and two files beside it", entries, err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v, want 0600", e.Name(), info.Mode(), err)
		}
	}
}

// Two that follow one index can not both apply a line.
func TestTwoHandles(t *testing.T) {
	dir, l := t.TempDir(), storetest.NewLog(t)
	for n := range 100 {
		l.Created(storetest.Challenge(fmt.Sprint(n)))
	}
	handles := [2]*sqlite.Store{openIn(t, dir), openIn(t, dir)}
	var followed [2]int
	var wg sync.WaitGroup
	for h, s := range handles {
		wg.Go(func() {
			for n := range l.Lines {
				for {
					err := s.Follow(t.Context(), l.Lines[n:n+1])
					if err == nil {
						followed[h]++
					}
					if next, nerr := s.Next(t.Context()); nerr != nil || err != nil && !errors.Is(err, store.ErrGap) {
						t.Errorf("line %d: %v, %v", n, err, nerr)
						return
					} else if next > uint64(n) {
						break
					}
				}
			}
		})
	}
	wg.Wait()
	if followed[0]+followed[1] != len(l.Lines) {
		t.Errorf("%d and %d lines were followed, want %d together", followed[0], followed[1], len(l.Lines))
	}
	if a, b := dump(t, handles[0]), dump(t, handles[1]); a != b {
		t.Errorf("one sees\n%s\nand the other\n%s", a, b)
	}
	closed(t, handles[0])
	if next, err := handles[1].Next(t.Context()); err != nil || next != 100 {
		t.Errorf("Next after the other was closed: %d, %v, want 100", next, err)
	}
	closed(t, handles[1])
}

func TestAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	defer closed(t, s)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childIndex+"="+filepath.Join(dir, "index.db"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	if got := dump(t, s); got != string(out) {
		t.Errorf("this process sees\n%s\nand the other saw\n%s", got, out)
	}
	l := storetest.NewLog(t)
	if err := s.Follow(t.Context(), l.Start()); !errors.Is(err, store.ErrGap) {
		t.Errorf("the line of the other process again: %v, want ErrGap", err)
	}
	l.Other()
	if err := s.Follow(t.Context(), l.Lines[1:]); err != nil {
		t.Errorf("the line after it: %v", err)
	}
}

func TestClosed(t *testing.T) {
	dir, l := t.TempDir(), storetest.NewLog(t)
	s := openIn(t, dir)
	closed(t, s)
	closed(t, s)
	if err := s.Follow(t.Context(), l.Start()); err == nil {
		t.Error("Follow after Close: no error")
	}
	if _, err := s.Next(t.Context()); err == nil {
		t.Error("Next after Close: no error")
	}
}

// A transaction that cannot be committed is told, ends all use, and leaves the
// index where it was: the log feeds it again.
func TestACommitThatFails(t *testing.T) {
	dir, l := t.TempDir(), storetest.NewLog(t)
	s := openIn(t, dir)
	if err := s.Follow(t.Context(), l.Start()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Challenges(t.Context(), store.ChallengeFilter{}); err != nil { // which ends the transaction
		t.Fatal(err)
	}
	var lines []audit.Line
	for n := range 50 {
		lines = append(lines, l.Created(storetest.Challenge(fmt.Sprint(n))))
	}
	if err := s.Follow(t.Context(), lines); err != nil || s.Healthy() != nil {
		t.Fatal(err, s.Healthy())
	}
	fileSize(t, 8<<10)
	if _, err := s.Challenges(t.Context(), store.ChallengeFilter{}); err == nil {
		t.Fatal("a commit beyond the largest file: no error")
	}
	if s.Healthy() == nil {
		t.Error("the index says that it is healthy")
	}
	if err := s.Follow(t.Context(), []audit.Line{l.Created(storetest.Challenge("more"))}); err == nil {
		t.Error("a batch after it: no error")
	}
	if _, err := s.Challenge(t.Context(), storetest.Challenge("1").ID); err == nil {
		t.Error("a look-up after it: no error")
	}
	fileSize(t, unix.RLIM_INFINITY)
	_ = s.Close() // it says so again
	s = openIn(t, dir)
	defer closed(t, s)
	if next, err := s.Next(t.Context()); err != nil || next != 1 {
		t.Fatalf("Next: %d, %v, want 1", next, err)
	}
	if err := s.Follow(t.Context(), l.Lines[1:]); err != nil {
		t.Error(err)
	}
}

// fileSize bounds the files that this process can write, until the test ends.
func fileSize(t *testing.T, size uint64) {
	t.Helper()
	signal.Ignore(unix.SIGXFSZ)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: min(size, old.Max), Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_FSIZE, &old) })
}

// The file beside the database does not grow with the log.
func TestWriteAheadLogIsCopied(t *testing.T) {
	dir, l := t.TempDir(), storetest.NewLog(t)
	s := openIn(t, dir)
	var size int64
	for n := range 40 {
		for m := range 100 {
			serial := fmt.Sprintf("%04x%02x", n, m)
			l.Intent(storetest.Issuance("d"+serial, serial))
		}
		if err := s.Follow(t.Context(), l.Lines); err != nil {
			t.Fatal(err)
		}
		l.Forget()
		info, err := os.Stat(filepath.Join(dir, "index.db-wal"))
		if err != nil {
			t.Fatal(err)
		}
		size = info.Size()
	}
	if size > 64<<20 {
		t.Errorf("%d bytes after %d lines", size, l.Next())
	}
	closed(t, s)
	if _, err := os.Stat(filepath.Join(dir, "index.db-wal")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Close: %v, want it gone", err)
	}
	s = openIn(t, dir)
	defer closed(t, s)
	if next, err := s.Next(t.Context()); err != nil || next != l.Next() {
		t.Errorf("Next: %d, %v, want %d", next, err, l.Next())
	}
}
