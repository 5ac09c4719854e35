package keyholder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/mod/sumdb/note"

	"github.com/postern-pki/postern/audit"
)

// ErrMark says that the token keeps a mark of a log, and it is not this one's.
var ErrMark = errors.New("keyholder: the token's mark is not one of this log: a new log is begun by a ceremony (postern-ceremony run new-log)")

// Marks keeps a few octets on the token with the audit key, such as a data object.
type Marks interface {
	// Read returns all that there are: two, if a replacement was cut short.
	Read(ctx context.Context) ([][]byte, error)
	// Replace keeps the new one before it destroys the others.
	Replace(ctx context.Context, mark []byte) error
}

const (
	defaultMarkEvery = 10 * time.Minute
	markWithin       = 10 * time.Second
)

// marker keeps the newest checkpoint on the token: at the start, at the stop, and
// every so often, but never while somebody waits for a signature.
type marker struct {
	marks Marks
	every time.Duration
	log   *zap.Logger

	stop context.CancelFunc
	done chan struct{}
	wake chan struct{}

	mu   sync.Mutex
	note []byte // the newest that was signed; nil: it is on the token
}

// newMarker reads the mark. Without one the token has seen no log yet; one of size 0
// is what a ceremony left that begins a new log.
func newMarker(ctx context.Context, o Options, v note.Verifier) (*marker, mark, error) {
	notes, err := o.Marks.Read(ctx)
	if err != nil {
		return nil, mark{}, fmt.Errorf("keyholder: reading the mark on the token: %w", err)
	}
	var newest mark
	for _, n := range notes {
		size, root, err := audit.OpenCheckpoint(n, v)
		if err != nil { // a new log has another origin, which the ceremony has said
			origin, _, _ := bytes.Cut(n, []byte("\n"))
			return nil, mark{}, fmt.Errorf("%w: it is of origin %q, and the configuration's is %q: %w", ErrMark, cut(origin), o.Origin, err)
		}
		if size > newest.size {
			newest = mark{size, root}
		}
	}
	if o.MarkEvery <= 0 {
		o.MarkEvery = defaultMarkEvery
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	m := &marker{marks: o.Marks, every: o.MarkEvery, log: o.Log, stop: stop, done: make(chan struct{}), wake: make(chan struct{}, 1)}
	go m.run(run)
	return m, newest, nil
}

// cut shortens what a token says to what a message has room for.
func cut(b []byte) []byte { return b[:min(len(b), 128)] }

// newest is told of each checkpoint. The first one is kept at once.
func (m *marker) newest(signed []byte) {
	m.mu.Lock()
	m.note = signed
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *marker) run(ctx context.Context) {
	defer close(m.done)
	for {
		select {
		case <-m.wake:
		case <-ctx.Done():
			return
		}
		if err := m.keep(ctx); err != nil {
			m.log.Error("keeping the newest checkpoint on the token", zap.Error(err))
		}
		select {
		case <-time.After(m.every):
		case <-ctx.Done():
			return
		}
	}
}

func (m *marker) keep(ctx context.Context) error {
	m.mu.Lock()
	n := m.note
	m.note = nil
	m.mu.Unlock()
	if n == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, markWithin)
	defer cancel()
	err := m.marks.Replace(ctx, n)
	if err != nil {
		m.mu.Lock()
		if m.note == nil {
			m.note = n
		}
		m.mu.Unlock()
	}
	return err
}

func (m *marker) close(ctx context.Context) error {
	m.stop()
	<-m.done
	return m.keep(ctx)
}
