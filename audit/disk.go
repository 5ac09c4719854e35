package audit

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// disk is what the writer needs of a file system. It is a seam: a test makes
// the n-th operation fail.
type disk interface {
	Append(path string) (file, error)         // opens or creates, for appending
	WriteFile(path string, data []byte) error // all of it or nothing, durable
	Truncate(path string, size int64) error   // durable
	Rename(from, to string) error             // durable
	SyncDir(dir string) error
}

type file interface {
	io.Writer
	Sync() error // the data, and what is needed to read it back
	Close() error
}

type realDisk struct{}

type realFile struct {
	f        *os.File
	size     int64
	reserved int64 // end of what is allocated
}

// Write writes nothing of b if the disk has no room for all of it.
func (r *realFile) Write(b []byte) (int, error) {
	if err := r.reserve(int64(len(b))); err != nil {
		return 0, err
	}
	n, err := r.f.Write(b)
	r.size += int64(n)
	return n, err
}

func (r *realFile) Sync() error  { return unix.Fdatasync(int(r.f.Fd())) }
func (r *realFile) Close() error { return r.f.Close() }

// ahead is how much of a segment is allocated in one go, so that a full disk
// shows before a batch is written and not in it.
const ahead = 1 << 20

// reserve allocates room for n more octets. Only a full disk is an error: not
// every file system can allocate, and the write itself is what counts.
func (r *realFile) reserve(n int64) error {
	if r.size+n <= r.reserved {
		return nil
	}
	want := max(n, ahead)
	for {
		err := unix.Fallocate(int(r.f.Fd()), unix.FALLOC_FL_KEEP_SIZE, r.size, want)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOSPC) && want > n:
			want = n // the last octets of a disk can be used
			continue
		case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
			return &os.PathError{Op: "fallocate", Path: r.f.Name(), Err: err}
		}
		r.reserved = r.size + want
		return nil
	}
}

func (realDisk) Append(path string) (file, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640) //nolint:gosec // G302: the auditors' group reads the log
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &realFile{f: f, size: st.Size()}, nil
}

func (d realDisk) WriteFile(path string, data []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640) //nolint:gosec // G302: the auditors' group reads the log
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return d.Rename(tmp, path)
}

func (realDisk) Truncate(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Sync(), f.Close())
}

func (d realDisk) Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return d.SyncDir(filepath.Dir(to))
}

func (realDisk) SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// The log's folders.
const (
	segmentDir    = "segments"
	checkpointDir = "checkpoints"
	lostDir       = "lost+found"
)

// Lock takes the log for one writer until unlock. The error is ErrLocked if
// another process has it.
func Lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil
}

func segmentName(first uint64) string { return fmt.Sprintf("%012d.jsonl", first) }

// A segment is one file of lines; first is the number of its first line.
type segment struct {
	name  string
	first uint64
}

// segments lists the files by their first line. Names of another form are
// refused: somebody put them there.
func segments(dir string) ([]segment, error) {
	names, err := numbered(filepath.Join(dir, segmentDir), ".jsonl")
	if err != nil {
		return nil, err
	}
	out := make([]segment, len(names))
	for i, n := range names {
		out[i] = segment{name: segmentName(n), first: n}
	}
	return out, nil
}

// A ForeignFileError names a file in a folder of the log that is not the log's:
// what it is to mean is for a person to say.
type ForeignFileError struct{ Path string }

// Error says what to do about it.
func (e *ForeignFileError) Error() string {
	return "audit: " + e.Path + " is no file of the log: move it out of the folder; nothing else was looked at"
}

// numbered lists the numbers of files that are called by twelve digits and an
// ending, in order. Another file is a [*ForeignFileError].
func numbered(dir, ending string) ([]uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return nil, fmt.Errorf("audit: %w", err)
	}
	var out []uint64
	for _, e := range entries {
		stem, ok := strings.CutSuffix(e.Name(), ending)
		if !ok {
			if strings.HasSuffix(e.Name(), ".tmp") {
				continue // a write that never became durable
			}
			return nil, &ForeignFileError{filepath.Join(dir, e.Name())}
		}
		var n uint64
		if _, err := fmt.Sscanf(stem, "%d", &n); err != nil || fmt.Sprintf("%012d", n) != stem {
			return nil, &ForeignFileError{filepath.Join(dir, e.Name())}
		}
		out = append(out, n)
	}
	slices.Sort(out)
	return out, nil
}
