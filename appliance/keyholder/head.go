package keyholder

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/audit/headfile"
)

// ErrHeadFile says that the file which remembers how far the log was followed is
// there and cannot be believed.
var ErrHeadFile = errors.New("keyholder: its own record of the log's head is damaged")

// headFile remembers the head of the log that was followed, over a restart. It has
// two slots of a fixed size, written in turns, so that a write which is cut short
// leaves the other one, and no write changes the file's size. Package headfile has
// its form.
type headFile struct {
	f *os.File

	writing sync.Mutex // one write at a time; those who wait behind it share the next
	mu      sync.Mutex
	counter uint64
	durable uint64 // lines that the file knows of
}

// openHead opens the file, or makes it, and returns the chain that it remembers; a
// new file stands before the first line.
func openHead(dir string) (*headFile, *audit.Chain, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("keyholder: %w", err)
	}
	path := filepath.Join(dir, "head")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := makeHead(dir, path); err != nil {
			return nil, nil, fmt.Errorf("keyholder: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("keyholder: %w", err)
	}
	h := &headFile{f: f}
	chain, err := h.takeOver()
	if err != nil {
		_ = f.Close()
		return nil, nil, err
	}
	return h, chain, nil
}

// ErrHeadInUse says that another keyholder has the file.
var ErrHeadInUse = errors.New("keyholder: another keyholder keeps its head in this folder")

// takeOver waits, for a moment, for a keyholder that is on its way out.
func (h *headFile) takeOver() (*audit.Chain, error) {
	for range 100 {
		err := unix.Flock(int(h.f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return h.load()
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("keyholder: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil, ErrHeadInUse
}

// makeHead has a whole file under its name, or none.
func makeHead(dir, path string) error {
	h := &headFile{}
	var err error
	if h.f, err = os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600); err != nil {
		return err
	}
	defer func() { _ = h.f.Close() }()
	if err := h.f.Truncate(2 * headfile.SlotSize); err != nil {
		return err
	}
	for range 2 {
		if err := h.write(&audit.Chain{}); err != nil {
			return err
		}
	}
	if err := h.f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (h *headFile) load() (*audit.Chain, error) {
	data, err := io.ReadAll(io.LimitReader(h.f, 2*headfile.SlotSize+1))
	if err != nil {
		return nil, fmt.Errorf("keyholder: %w", err)
	}
	best, counter, err := headfile.Decode(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrHeadFile, err)
	}
	h.counter, h.durable = counter, best.Head().Size
	return best, nil
}

// write puts a chain into the older slot, durably. After a failure that slot is the
// one to be written again: the other is the only one that is surely whole.
func (h *headFile) write(c *audit.Chain) error {
	next := h.counter + 1
	slot, at := headfile.Slot(c, next), int64(next%2)*headfile.SlotSize
	// One call that returns when it is on the disk.
	n, err := unix.Pwritev2(int(h.f.Fd()), [][]byte{slot}, at, unix.RWF_DSYNC)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) { // an old kernel or file system
		if n, err = h.f.WriteAt(slot, at); err == nil {
			err = unix.Fdatasync(int(h.f.Fd()))
		}
	}
	if err == nil && n != len(slot) {
		err = io.ErrShortWrite
	}
	if err == nil {
		h.counter = next
	}
	return err
}

// ensure returns when a head of at least size lines is durable. now is asked for
// the newest one when it is this caller's turn to write.
func (h *headFile) ensure(size uint64, now func() *audit.Chain) error {
	if h.reached(size) {
		return nil
	}
	h.writing.Lock()
	defer h.writing.Unlock()
	if h.reached(size) {
		return nil
	}
	c := now()
	if err := h.write(c); err != nil {
		return fmt.Errorf("keyholder: keeping the head: %w", err)
	}
	h.mu.Lock()
	h.durable = c.Head().Size
	h.mu.Unlock()
	return nil
}

func (h *headFile) reached(size uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.durable >= size
}

func (h *headFile) close() error { return h.f.Close() }
