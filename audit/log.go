// Package audit keeps the appliance's tamper-evident log: an append-only chain
// of canonical JSON lines in which each carries the hash of the one before, a
// Merkle tree over the same bytes, and checkpoints of both signed by a key in
// the token.
//
// # What a caller may rely on
//
// When [Log.Append] returns nil the record is durable, its place is final, and
// every follower has it. When it returns an error the caller must refuse the
// operation: no log, no certificate. After the first error of the disk or of a
// follower the log takes nothing more until it is opened again, and never asks
// the disk a second time. (A record may be found later whose Append returned an
// error; it is never there twice.) [Open] repairs nothing but a torn tail that
// nobody can have relied on, and [Verify] names every other damage.
//
// # What it does not protect against
//
// A log proves what was written, not that what was written is true. Who has the
// disk and the token can write another one; who restores an old disk shows an
// old log. Checkpoints that are kept elsewhere are the defense.
//
// A Log is safe for concurrent use. Records must not hold secrets.
package audit

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/mod/sumdb/note"
)

// Errors of a log.
var (
	ErrLocked   = errors.New("audit: another process has the log open")
	ErrPoisoned = errors.New("audit: the log failed and takes no more records until it is opened again")
	ErrClosed   = errors.New("audit: the log is closed")
)

// A Follower gets every line, in order and once, after it is durable and before
// [Log.Append] returns.
type Follower interface {
	// Next returns the number of the first line that it has not seen.
	Next(ctx context.Context) (uint64, error)
	// Follow takes lines that continue what it has seen. An error poisons the log.
	Follow(ctx context.Context, batch []Line) error
}

// A Marker is a follower that may know of lines which it has not seen: another
// keeper of the log's head told it. A log that has fewer is an old one.
type Marker interface {
	Follower
	// Seen returns how many lines there have been, and who says so.
	Seen(ctx context.Context) (lines uint64, who string, err error)
}

// A Resumer is a follower that needs where the log stands and not its past: it
// is placed at the beginning of the last segment instead of being fed all lines.
type Resumer interface {
	Follower
	Resume(c *Chain) error
}

// A CheckpointSigner signs the head that it computed itself from the lines.
type CheckpointSigner interface {
	SignCheckpoint(ctx context.Context, h Head) (note []byte, err error)
}

// Options say how a log is kept. Dir, Origin and Genesis are required; without a
// Signer there are no checkpoints, which serves tests alone.
type Options struct {
	Dir      string
	Origin   string // such as postern.example/log
	Signer   CheckpointSigner
	Verifier note.Verifier         // required beside a Signer
	Genesis  func() (Entry, error) // record 0 of an empty log
	Now      func() time.Time      // nil: time.Now
	Boot     string                // which start of the machine this is; "": the kernel says
	Log      *zap.Logger           // nil: none

	Followers []Follower
	MinSize   uint64 // lines that somebody has seen: nothing below is ever cut

	SegmentBytes      int64         // 0: 64 MiB
	SegmentAge        time.Duration // 0: 24 h
	CheckpointEvery   time.Duration // with activity; 0: 60 s
	CheckpointIdle    time.Duration // without; 0: 1 h
	CheckpointRecords uint64        // 0: 10,000
	MaxBatch          int           // records of one write; 0: 1,024

	disk disk
}

func (o *Options) defaults() {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&o.SegmentAge, 24*time.Hour)
	set(&o.CheckpointEvery, time.Minute)
	set(&o.CheckpointIdle, time.Hour)
	if o.SegmentBytes == 0 {
		o.SegmentBytes = 64 << 20
	}
	if o.CheckpointRecords == 0 {
		o.CheckpointRecords = 10_000
	}
	if o.MaxBatch == 0 {
		o.MaxBatch = 1024
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.disk == nil {
		o.disk = realDisk{}
	}
}

// Log is an open log.
type Log struct {
	opt    Options
	unlock func()
	in     chan *request
	quit   chan struct{} // closed by Close
	done   chan struct{} // closed when the writer has ended

	closing  atomic.Bool
	closed   chan struct{} // closed when all is let go
	closeErr error         // may be read then

	mu        sync.Mutex
	head      Head
	poison    error
	recovered Recovery

	w writer
}

// writer is the state of the one goroutine that writes.
type writer struct {
	chain  Chain
	out    file
	size   int64     // of the segment
	sum    hash.Hash // over the segment
	name   string    // of the segment
	began  time.Time // of the segment
	boot   string
	wall   time.Time // when the clocks were last compared
	mono   int64     // at that time, µs
	signed uint64    // size at the last checkpoint
	at     time.Time // of the last checkpoint, monotonic
	active bool      // something happened since, other than checkpoints
	retry  time.Time // not before: a signer that failed is not asked at once
}

// request is one Append, or a demand for a checkpoint.
type request struct {
	entries    []*prepared
	checkpoint bool

	lines []Line
	note  []byte
	err   error
	done  chan struct{}
}

// Append adds one record. Events called log.* and time.step are the log's own
// and refused. If ctx ends while the record is under way it may
// still be written.
func (l *Log) Append(ctx context.Context, e Entry) (Line, error) {
	lines, err := l.AppendAll(ctx, e)
	if err != nil {
		return Line{}, err
	}
	return lines[0], nil
}

// maxTogether is how many records one AppendAll can add.
const maxTogether = 4096

// AppendAll adds records next to each other, durable together.
func (l *Log) AppendAll(ctx context.Context, entries ...Entry) ([]Line, error) {
	if len(entries) == 0 || len(entries) > maxTogether {
		return nil, fmt.Errorf("audit: 1 to %d records at a time", maxTogether)
	}
	r := &request{done: make(chan struct{})}
	for _, e := range entries {
		if strings.HasPrefix(e.Event, "log.") || e.Event == "time.step" {
			return nil, fmt.Errorf("%w: %s", ErrReserved, e.Event)
		}
		p, err := prepare(e)
		if err != nil {
			return nil, err
		}
		r.entries = append(r.entries, p)
	}
	if err := l.do(ctx, r); err != nil {
		return nil, err
	}
	return r.lines, nil
}

// Checkpoint signs the head now, and returns the note.
func (l *Log) Checkpoint(ctx context.Context) ([]byte, error) {
	if l.opt.Signer == nil {
		return nil, errors.New("audit: the log has no signer")
	}
	r := &request{checkpoint: true, done: make(chan struct{})}
	if err := l.do(ctx, r); err != nil {
		return nil, err
	}
	return r.note, nil
}

func (l *Log) do(ctx context.Context, r *request) error {
	if err := l.Healthy(); err != nil {
		return err
	}
	select {
	case l.in <- r:
	case <-ctx.Done():
		return ctx.Err()
	case <-l.done:
		return l.ended()
	}
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	case <-l.done:
		select {
		case <-r.done: // it was the last that was served
			return r.err
		default:
			return l.ended()
		}
	}
}

func (l *Log) ended() error {
	if err := l.Healthy(); err != nil {
		return err
	}
	return ErrClosed
}

// Head returns the state of the log as it is durable.
func (l *Log) Head() Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head
}

// Healthy returns nil, or why the log takes no records.
func (l *Log) Healthy() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.poison
}

// Recovered says how the log was found when it was opened.
func (l *Log) Recovered() Recovery {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.recovered
}

// Close signs a last checkpoint and lets the log go. A log whose signer does not
// answer is closed all the same, with an error. If ctx ends while the disk, the
// signer or a follower does not return, Close does, and the lock is kept until
// they do: the next process must not write beside a write that is under way.
func (l *Log) Close(ctx context.Context) error {
	if !l.closing.Swap(true) {
		var err error
		if l.opt.Signer != nil && l.Healthy() == nil {
			_, err = l.Checkpoint(ctx)
		}
		close(l.quit)
		go l.letGo(err)
	}
	select {
	case <-l.closed:
		return l.closeErr
	case <-ctx.Done():
		return fmt.Errorf("audit: closing the log: %w", ctx.Err())
	}
}

func (l *Log) letGo(err error) {
	defer close(l.closed)
	<-l.done
	if l.w.out != nil {
		err = errors.Join(err, l.w.out.Close())
	}
	l.unlock()
	l.closeErr = err
}

func (l *Log) fail(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.poison == nil {
		l.poison = fmt.Errorf("%w: %w", ErrPoisoned, err)
		l.opt.Log.Error("the log failed; nothing is issued until the service is started again", zap.Error(err))
	}
	return l.poison
}

// run is the writer: it takes what is waiting as one batch.
func (l *Log) run() {
	defer close(l.done)
	tick := time.NewTicker(min(time.Second, l.opt.CheckpointEvery))
	defer tick.Stop()
	for {
		select {
		case <-l.quit:
			return
		case <-tick.C:
			l.whenDue()
		case r := <-l.in:
			l.serve(r)
		}
	}
}

// serve takes r and what waits behind it. There is no delay to wait for more:
// while one batch is written the next one gathers.
func (l *Log) serve(r *request) {
	batch := []*request{r}
	for n := len(r.entries); n < l.opt.MaxBatch; {
		select {
		case more := <-l.in:
			batch = append(batch, more)
			n += len(more.entries)
			continue
		default:
		}
		break
	}
	err := l.Healthy()
	if err == nil {
		err = l.commit(batch)
	}
	for _, r := range batch {
		if r.err = err; err == nil && r.checkpoint {
			r.note, r.err = l.checkpoint()
		}
		close(r.done)
	}
	if err == nil && l.w.chain.size-l.w.signed >= l.opt.CheckpointRecords {
		l.whenDue()
	}
}

// commit makes the records of a batch durable and feeds them to the followers.
func (l *Log) commit(batch []*request) error {
	var entries []*prepared
	for _, r := range batch {
		entries = append(entries, r.entries...)
	}
	if len(entries) == 0 {
		return nil
	}
	if l.w.size >= l.opt.SegmentBytes || l.opt.Now().Sub(l.w.began) >= l.opt.SegmentAge {
		if err := l.roll(); err != nil {
			return l.fail(err)
		}
	}
	l.w.active = true
	lines, err := l.write(entries, true)
	if err != nil {
		return l.fail(err)
	}
	for _, r := range batch {
		r.lines, lines = lines[:len(r.entries):len(r.entries)], lines[len(r.entries):]
	}
	return nil
}

func (l *Log) path(parts ...string) string {
	return filepath.Join(append([]string{l.opt.Dir}, parts...)...)
}
