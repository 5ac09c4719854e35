package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"go.uber.org/zap"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"
)

// A MaintenanceError says that the log on disk is not what it should be, in a
// way that is never repaired silently: nothing is issued from it.
type MaintenanceError struct {
	Segment string
	Line    int   // within the segment, from 1
	Offset  int64 // within the segment
	Why     string
}

// Error names the place and the way out.
func (e *MaintenanceError) Error() string {
	return fmt.Sprintf("audit: maintenance: segment %s, line %d, octet %d: %s; keep the disk as it is: `postern audit verify` shows the extent", e.Segment, e.Line, e.Offset, e.Why)
}

// Recovery is how a log was found when it was opened.
type Recovery struct {
	Clean    bool   // new, or the service had recorded its stop
	SameBoot bool   // the machine was not started since the service ran
	Cut      int64  // octets of a torn tail that were put aside
	SHA256   string // of them, hex
	Kept     string // the file that has them
	Segment  string // that they were cut from

	offset int64
}

// String describes a cut in words, or is empty.
func (r Recovery) String() string {
	if r.Cut == 0 {
		return ""
	}
	return fmt.Sprintf("%d octets that were no whole record were cut from the end of segment %s and kept as %s", r.Cut, r.Segment, r.Kept)
}

// bootMicros is the time since the machine started, in microseconds.
func bootMicros() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return ts.Nano() / 1000
}

// unknownBoot is the boot id where nobody tells it. It is never the same boot.
const unknownBoot = "unknown"

// BootID says which start of the machine this is, as the kernel knows it. It is never
// the same for two starts, and where the kernel does not say, never the same at all.
func BootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return unknownBoot
	}
	return strings.TrimSpace(string(b))
}

// Open opens a log, or begins one: it takes the lock, reads the last segment,
// cuts a torn tail that nobody can have relied on, compares with the newest
// checkpoint, and brings the followers level. Errors are ErrLocked,
// *MaintenanceError, or those of the disk and the followers.
func Open(ctx context.Context, o Options) (_ *Log, err error) {
	o.defaults()
	if o.Dir == "" || o.Origin == "" || o.Genesis == nil || (o.Signer != nil && o.Verifier == nil) {
		return nil, errors.New("audit: Dir, Origin, Genesis and, beside a Signer, a Verifier are required")
	}
	l := &Log{opt: o, in: make(chan *request), quit: make(chan struct{}), done: make(chan struct{}), closed: make(chan struct{})}
	if err := l.folders(); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	if l.unlock, err = Lock(o.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.unlock()
			if l.w.out != nil {
				err = errors.Join(err, l.w.out.Close())
			}
		}
	}()
	if l.w.boot = o.Boot; o.Boot == "" {
		l.w.boot = BootID()
	}
	if err := l.recover(ctx); err != nil {
		return nil, err
	}
	go l.run()
	return l, nil
}

// folders makes what folders are missing, durably: a record in a file is not
// kept by a disk that forgets the folder.
func (l *Log) folders() error {
	_, err := os.Stat(l.opt.Dir)
	fresh := errors.Is(err, os.ErrNotExist)
	for _, dir := range []string{"", segmentDir, checkpointDir, lostDir} {
		if err := os.MkdirAll(l.path(dir), 0o750); err != nil {
			return err
		}
	}
	if fresh {
		if err := l.opt.disk.SyncDir(filepath.Dir(filepath.Clean(l.opt.Dir))); err != nil {
			return err
		}
	}
	return l.opt.disk.SyncDir(l.opt.Dir)
}

func (l *Log) recover(ctx context.Context) error {
	list, err := segments(l.opt.Dir)
	if err != nil {
		return err
	}
	var newest *checkpointFile
	if newest, err = l.newest(); err != nil {
		return err
	}
	if len(list) == 0 {
		if newest != nil || l.opt.MinSize > 0 {
			return &MaintenanceError{Why: "there are no segments, but a checkpoint or the index knows records"}
		}
		return l.genesis(ctx, nil)
	}
	s := &scanner{l: l, newest: newest}
	if err := s.last(list); err != nil {
		return err
	}
	if s.chain.size == 0 { // nothing but the torn beginning of a genesis
		return l.genesis(ctx, s)
	}
	return l.continueFrom(ctx, s)
}

// genesis begins the log. s has what is left of a try that was cut short, or is
// nil.
func (l *Log) genesis(ctx context.Context, s *scanner) error {
	e, err := l.opt.Genesis()
	if err != nil {
		return fmt.Errorf("audit: genesis: %w", err)
	}
	ob := Object{"origin": l.opt.Origin}
	for k, v := range e.Object {
		ob[k] = v
	}
	e.Event, e.Object = "log.genesis", ob
	p, err := prepare(e)
	if err != nil {
		return err
	}
	if _, err := l.place(ctx, &Chain{}, 0); err != nil {
		return err
	}
	if s != nil {
		if err := s.cut(); err != nil {
			return err
		}
	}
	if err := l.begin(segmentName(0)); err != nil {
		return err
	}
	if _, err := l.write([]*prepared{p}, false); err != nil {
		return l.fail(err)
	}
	l.recovered.Clean, l.recovered.SameBoot = true, true
	return l.recordCut()
}

// continueFrom takes up writing where the last segment ends.
func (l *Log) continueFrom(ctx context.Context, s *scanner) error {
	l.w.chain, l.head = *s.chain.Clone(), s.chain.Head()
	l.w.name, l.w.size, l.w.sum, l.w.began = s.seg.name, s.offset, s.sum, s.began
	l.recovered = Recovery{Clean: s.lastEvent == "system.stop", SameBoot: s.runBoot == l.w.boot && l.w.boot != unknownBoot}
	if s.lastBoot == l.w.boot && l.w.boot != unknownBoot { // a clock that was set since is noticed
		l.w.wall, l.w.mono = s.lastTime, s.lastMono
	}
	if s.newest != nil {
		l.w.signed = s.newest.size
	}
	if l.opt.MinSize > s.chain.size {
		return s.damage(fmt.Sprintf("the log has %d records, but the index knows %d", s.chain.size, l.opt.MinSize))
	}
	// Whoever has seen more than the log has stops it before anything is cut.
	next, err := l.place(ctx, s.start, s.chain.size)
	if err != nil {
		return err
	}
	if err := s.cut(); err != nil {
		return err
	}
	for i, f := range l.opt.Followers {
		if err := l.feed(ctx, f, next[i], s.chain.size); err != nil {
			return err
		}
	}
	out, err := l.opt.disk.Append(l.path(segmentDir, l.w.name))
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	l.w.out = out
	return l.recordCut()
}

// recordCut has the log say what was cut from it.
func (l *Log) recordCut() error {
	if l.recovered.Cut == 0 {
		return nil
	}
	l.opt.Log.Warn("a torn tail was cut from the log", zap.String("what", l.recovered.String()))
	p, err := prepare(Entry{Event: "log.recovered", Outcome: "cut", Actor: Actor{Kind: "system", ID: "log"}, Object: Object{
		"segment": l.recovered.Segment, "offset": l.recovered.offset, "octets": l.recovered.Cut, "sha256": l.recovered.SHA256, "kept": l.recovered.Kept,
	}})
	if err != nil {
		return err
	}
	if _, err := l.write([]*prepared{p}, false); err != nil {
		return l.fail(err)
	}
	return nil
}

// place returns the number of the line that each follower has to see next. start
// is the chain at the beginning of the last segment.
func (l *Log) place(ctx context.Context, start *Chain, size uint64) ([]uint64, error) {
	var out []uint64
	for _, f := range l.opt.Followers {
		if r, ok := f.(Resumer); ok {
			if err := r.Resume(start.Clone()); err != nil {
				return nil, fmt.Errorf("audit: placing a follower: %w", err)
			}
		}
		next, err := f.Next(ctx)
		if err != nil {
			return nil, fmt.Errorf("audit: asking a follower: %w", err)
		}
		if next > size {
			return nil, &MaintenanceError{Why: fmt.Sprintf("the log has %d records, but a follower has seen %d", size, next)}
		}
		if m, ok := f.(Marker); ok {
			seen, who, err := m.Seen(ctx)
			if err != nil {
				return nil, fmt.Errorf("audit: asking a follower: %w", err)
			}
			if seen > size {
				return nil, &MaintenanceError{Why: fmt.Sprintf("the log on this disk has %d records, and %s knows of %d: an old disk was put back", size, who, seen)}
			}
		}
		out = append(out, next)
	}
	return out, nil
}

// feed gives a follower the lines from next to size. What it has not seen is
// maintenance if it is not all there, or no record.
func (l *Log) feed(ctx context.Context, f Follower, next, size uint64) error {
	if next == size {
		return nil
	}
	var batch []Line
	var refused error
	err := Scan(l.opt.Dir, next, func(line Line) error {
		if line.Record.Seq != next {
			return &MaintenanceError{Why: fmt.Sprintf("record %d stands where %d should", line.Record.Seq, next)}
		}
		next++
		if batch = append(batch, line); len(batch) == 512 || next == size {
			if refused = f.Follow(ctx, batch); refused != nil {
				return fmt.Errorf("audit: a follower refused lines from %d: %w", batch[0].Record.Seq, refused)
			}
			batch = nil
		}
		if next == size {
			return io.EOF
		}
		return ctx.Err()
	})
	switch {
	case refused == nil && (errors.Is(err, ErrRecord) || errors.Is(err, ErrTooLarge)):
		return &MaintenanceError{Why: err.Error()}
	case err == nil && next < size:
		return &MaintenanceError{Why: fmt.Sprintf("record %d is missing", next)}
	}
	return err
}

type checkpointFile struct {
	size uint64
	root tlog.Hash
}

// newest reads the newest checkpoint file; its signature has to verify.
func (l *Log) newest() (*checkpointFile, error) {
	sizes, err := numbered(l.path(checkpointDir), ".note")
	if err != nil || len(sizes) == 0 || l.opt.Verifier == nil {
		return nil, err
	}
	n := sizes[len(sizes)-1]
	data, err := os.ReadFile(l.path(checkpointDir, noteName(n)))
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	size, root, err := OpenCheckpoint(data, l.opt.Verifier)
	if err != nil || size != n {
		return nil, &MaintenanceError{Why: "checkpoint " + noteName(n) + " does not verify with the audit certificate"}
	}
	return &checkpointFile{size, root}, nil
}
