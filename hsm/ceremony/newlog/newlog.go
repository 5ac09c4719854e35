// Package newlog looks at what is left of a service's log, puts it aside, and writes
// what the first record of a new one says of it.
//
// # What a caller may rely on
//
// Nothing is removed and nothing overwritten: the old log, its index and the
// keyholder's file get other names in the same folders, and each rename is durable
// before the next step. Every act can be done again after it was cut short. The service
// is kept out by the locks of the log and of the keyholder's file while a ceremony has
// them ([Hold]).
//
// # What it does not protect against
//
// What is found is what the disk says now. Whoever can write the folders can change
// what was put aside: its digests stand in the transcript and in the new log.
package newlog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/audit/headfile"
	"github.com/postern-pki/postern/audit/jcs"
	"github.com/postern-pki/postern/hsm/ceremony/plan"
)

// File is what the new log's first record quotes; it is in the authority's folder.
const File = "new-log.json"

// Errors of this package.
var (
	ErrRunning = errors.New("the service runs, or another program has its log")
	ErrBegun   = errors.New("there is a log already")
	ErrFile    = errors.New("it is no file of a ceremony that begins a new log")
)

const (
	logDir   = "audit"
	headName = "head"
	maxFile  = 48 << 10 // octets: it stands in one record
)

// Places are the folders of a service.
type Places struct {
	State     string // the authority's
	Keyholder string
}

func (p Places) log() string  { return filepath.Join(p.State, logDir) }
func (p Places) head() string { return filepath.Join(p.Keyholder, headName) }

// Hold keeps the service out until release. The error is ErrRunning, or the disk's.
func Hold(p Places) (release func(), err error) {
	var held []func()
	release = func() {
		for _, f := range held {
			f()
		}
	}
	for _, dir := range []string{p.State, p.Keyholder} {
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			return nil, errors.Join(err, fmt.Errorf("%s is not a folder", dir))
		}
	}
	if _, err := os.Stat(p.log()); err == nil {
		unlock, err := audit.Lock(p.log())
		if errors.Is(err, audit.ErrLocked) {
			err = fmt.Errorf("%w: %w", ErrRunning, err)
		}
		if err == nil {
			held = append(held, unlock)
			err = own(p.log(), filepath.Join(p.log(), "lock"))
		}
		if err != nil {
			release()
			return nil, err
		}
	}
	f, err := os.OpenFile(p.head(), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return release, nil
	}
	if err == nil {
		held = append(held, func() { _ = f.Close() })
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%w: a keyholder has %s", ErrRunning, p.head())
		}
	}
	if err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// own gives a file to who owns its folder: root makes it for a service that runs as
// somebody else.
func own(dir, path string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		return os.Chown(path, int(st.Uid), int(st.Gid))
	}
	return nil
}

// old are the names of what is true of the old log alone.
func (p Places) old() []string {
	index := filepath.Join(p.State, "index.db")
	return []string{p.log(), index, index + "-wal", index + "-shm", filepath.Join(p.State, File), p.head()}
}

const maxAside = 100 // names for one file

// Aside gives everything that is true of the old log another name, with a tag in it,
// and returns all the names with that tag. After an interruption it goes on.
func Aside(p Places, tag string) (aside []string, err error) {
	for _, from := range p.old() {
		if _, err := os.Lstat(from); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := moveAside(from, from+".before-"+tag); err != nil {
			return nil, err
		}
	}
	for _, dir := range p.folders() {
		if err := syncDir(dir); err != nil {
			return nil, err
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if strings.Contains(e.Name(), ".before-"+tag) {
				aside = append(aside, filepath.Join(dir, e.Name()))
			}
		}
	}
	slices.Sort(aside)
	return aside, nil
}

func (p Places) folders() []string { return slices.Compact([]string{p.State, p.Keyholder}) }

// moveAside takes the first name that is free: a service that was started in between,
// and refused, may have made an empty file anew.
func moveAside(from, to string) error {
	for i := range maxAside {
		name := to
		if i > 0 {
			name = fmt.Sprintf("%s.%d", to, i)
		}
		err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, name, unix.RENAME_NOREPLACE)
		if !errors.Is(err, unix.EEXIST) {
			if err != nil {
				err = fmt.Errorf("moving %s aside: %w", from, err)
			}
			return err
		}
	}
	return fmt.Errorf("moving %s aside: %w", from, fs.ErrExist)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Cleared wants no line of any log where the new one is to begin.
func Cleared(p Places) error {
	files, err := os.ReadDir(filepath.Join(p.log(), "segments"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(files) > 0 {
		return fmt.Errorf("%w: %s has lines", ErrBegun, p.log())
	}
	raw, err := readBounded(p.head(), 2*headfile.SlotSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if c, _, err := headfile.Decode(raw); err != nil || c.Head().Size > 0 {
		return fmt.Errorf("%w: %s knows of lines", ErrBegun, p.head())
	}
	return nil
}

func readBounded(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, most+1))
}

// After is what the new log's first record says of the old one. The ceremony is named
// by the records that its transcript has until then, and the SHA-256 of the last one.
func After(p plan.Plan, found audit.Object, aside []string, records uint64, last string) audit.Object {
	people := []any{}
	for _, who := range p.People {
		people = append(people, audit.Object{"name": who.Name, "role": who.Role})
	}
	return audit.Object{
		"origin": p.Log.NewOrigin, "old_origin": p.Log.Origin, "why": p.Log.Reason, "class": string(p.Class), "plan_sha256": p.Digest(), "people": people,
		"marks": found["marks"], "head": found["head"], "disk": found["disk"], "aside": aside,
		"ceremony": audit.Object{"records": records, "sha256": last},
	}
}

// plain has the types that can be encoded.
func plain(v any) any {
	switch v := v.(type) {
	case audit.Object:
		return plain(map[string]any(v))
	case map[string]any:
		m := make(map[string]any, len(v))
		for k, e := range v {
			m[k] = plain(e)
		}
		return m
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = plain(e)
		}
		return out
	case string:
		return strings.ToValidUTF8(v, "\uFFFD")
	}
	return v
}

// Encode is the text of the file.
func Encode(after audit.Object) ([]byte, error) {
	text, err := jcs.Append(nil, plain(after))
	if err == nil && len(text) >= maxFile {
		err = fmt.Errorf("%w: more than %d octets", ErrFile, maxFile)
	}
	return append(text, '\n'), err
}

// Write leaves the text for the service, durably. An earlier text of the same ceremony
// gives way to it.
func Write(p Places, text []byte) error {
	path := filepath.Join(p.State, File)
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644) //nolint:gosec // it is no secret, and the service reads it as another user
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := errors.Join(own(p.State, path+".new"), os.Rename(path+".new", path)); err != nil {
		return err
	}
	return syncDir(p.State)
}

// Read returns what the first record of the log in the authority's folder has to
// quote, and nil where no ceremony began it. Errors are ErrFile and the disk's.
func Read(state string) (audit.Object, error) {
	path := filepath.Join(state, File)
	raw, err := readBounded(path, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	text, whole := bytes.CutSuffix(raw, []byte("\n"))
	v, err := jcs.Parse(text)
	if m, ok := v.(map[string]any); ok && whole && err == nil && len(raw) <= maxFile {
		return m, nil
	}
	return nil, fmt.Errorf("%s: %w", path, errors.Join(ErrFile, err))
}
