package audit

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
	"time"

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
	SameBoot bool   // the machine was not started since the last record
	Cut      int64  // octets of a torn tail that were put aside
	SHA256   string // of them, hex
	Kept     string // the file that has them
	Segment  string // that they were cut from
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

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
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
	l := &Log{opt: o, in: make(chan *request), quit: make(chan struct{}), done: make(chan struct{})}
	for _, dir := range []string{"", segmentDir, checkpointDir, lostDir} {
		if err := os.MkdirAll(l.path(dir), 0o750); err != nil {
			return nil, fmt.Errorf("audit: %w", err)
		}
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
	l.w.boot = bootID()
	if err := l.recover(ctx); err != nil {
		return nil, err
	}
	go l.run()
	return l, nil
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
		return l.genesis(ctx)
	}
	s := &scanner{l: l, newest: newest}
	if err := s.last(list); err != nil {
		return err
	}
	if s.chain.size == 0 { // nothing but the torn beginning of a genesis
		return l.genesis(ctx)
	}
	return l.continueFrom(ctx, s)
}

// genesis begins the log.
func (l *Log) genesis(ctx context.Context) error {
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
	if err := l.level(ctx, &Chain{}, 0); err != nil {
		return err
	}
	if err := l.begin(segmentName(0)); err != nil {
		return err
	}
	if _, err := l.write([]*prepared{p}, false); err != nil {
		return l.fail(err)
	}
	l.recovered = Recovery{Clean: true, SameBoot: true}
	return nil
}

// continueFrom takes up writing where the last segment ends.
func (l *Log) continueFrom(ctx context.Context, s *scanner) error {
	l.w.chain, l.head = *s.chain.Clone(), s.chain.Head()
	l.w.name, l.w.size, l.w.sum, l.w.began = s.seg.name, s.offset, s.sum, s.began
	l.recovered = Recovery{Clean: s.lastEvent == "system.stop", SameBoot: s.lastBoot == l.w.boot}
	if s.newest != nil {
		l.w.signed = s.newest.size
	}
	if l.opt.MinSize > s.chain.size {
		return s.damage(fmt.Sprintf("the log has %d records, but the index knows %d", s.chain.size, l.opt.MinSize))
	}
	if err := s.cut(); err != nil {
		return err
	}
	if err := l.level(ctx, s.start, s.chain.size); err != nil {
		return err
	}
	out, err := l.opt.disk.Append(l.path(segmentDir, l.w.name))
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	l.w.out = out
	if l.recovered.Cut == 0 {
		return nil
	}
	l.opt.Log.Warn("a torn tail was cut from the log", zap.String("what", l.recovered.String()))
	p, err := prepare(Entry{Event: "log.recovered", Outcome: "cut", Actor: Actor{Kind: "system", ID: "log"}, Object: Object{
		"segment": l.recovered.Segment, "offset": l.w.size, "octets": l.recovered.Cut, "sha256": l.recovered.SHA256, "kept": l.recovered.Kept,
	}})
	if err != nil {
		return err
	}
	if _, err := l.write([]*prepared{p}, false); err != nil {
		return l.fail(err)
	}
	return nil
}

// level feeds the followers what they have not seen. start is the chain at the
// beginning of the last segment.
func (l *Log) level(ctx context.Context, start *Chain, size uint64) error {
	for _, f := range l.opt.Followers {
		if r, ok := f.(Resumer); ok {
			if err := r.Resume(start.Clone()); err != nil {
				return fmt.Errorf("audit: placing a follower: %w", err)
			}
		}
		next, err := f.Next(ctx)
		if err != nil {
			return fmt.Errorf("audit: asking a follower: %w", err)
		}
		if next > size {
			return &MaintenanceError{Why: fmt.Sprintf("the log has %d records, but a follower has seen %d", size, next)}
		}
		if next == size {
			continue
		}
		if err := l.feed(ctx, f, next, size); err != nil {
			return err
		}
	}
	return nil
}

func (l *Log) feed(ctx context.Context, f Follower, next, size uint64) error {
	var batch []Line
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		if err := f.Follow(ctx, batch); err != nil {
			return fmt.Errorf("audit: a follower refused lines from %d: %w", batch[0].Record.Seq, err)
		}
		batch = batch[:0]
		return nil
	}
	err := Scan(l.opt.Dir, next, func(line Line) error {
		if line.Record.Seq >= size {
			return nil
		}
		if batch = append(batch, line); len(batch) == 512 {
			return flush()
		}
		return ctx.Err()
	})
	return errors.Join(err, flush())
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

// scanner reads the last segment.
type scanner struct {
	l      *Log
	newest *checkpointFile

	seg       segment
	start     *Chain // at the beginning of the segment
	chain     Chain
	offset    int64 // end of the last good line
	lines     int
	sum       hash.Hash
	tail      []byte // what follows it
	began     time.Time
	lastEvent string
	lastBoot  string
}

func (s *scanner) damage(why string) error {
	return &MaintenanceError{Segment: s.seg.name, Line: s.lines + 1, Offset: s.offset, Why: why}
}

// last reads the last segment. One without a whole first line was never
// acknowledged: it is put aside, and the one before it is the last.
func (s *scanner) last(list []segment) error {
	for i := len(list) - 1; i >= 0; i-- {
		s.seg, s.chain, s.start, s.offset, s.lines, s.tail = list[i], Chain{}, nil, 0, 0, nil
		data, err := os.ReadFile(s.l.path(segmentDir, s.seg.name))
		if err != nil {
			return fmt.Errorf("audit: %w", err)
		}
		if err := s.read(data); err != nil {
			return err
		}
		if s.lines > 0 {
			return s.previous(list[:i])
		}
		if s.newest != nil && s.newest.size > s.seg.first || s.l.opt.MinSize > s.seg.first {
			return s.damage("the first line is no record, but a checkpoint or the index knows it")
		}
		if err := s.l.opt.disk.Rename(s.l.path(segmentDir, s.seg.name), s.l.path(lostDir, s.seg.name+time.Now().UTC().Format(".20060102T150405.000000"))); err != nil {
			return fmt.Errorf("audit: %w", err)
		}
	}
	s.tail = nil
	return nil
}

// read takes lines until one is not whole or does not continue the chain.
func (s *scanner) read(data []byte) error {
	s.sum = sha256.New()
	for len(data) > 0 {
		end := bytes.IndexByte(data, '\n') + 1
		line, err := ParseLine(data[:end])
		if err == nil && s.lines == 0 {
			err = s.begin(line)
		}
		if err == nil {
			err = s.chain.Step(line)
		}
		if err != nil {
			return s.torn(data, err)
		}
		_, _ = s.sum.Write(line.Raw)
		s.offset, s.lines, data = s.offset+int64(end), s.lines+1, data[end:]
		s.lastBoot = line.Record.Boot
		switch line.Record.Event {
		case "log.checkpoint", "log.segment", "time.step":
		default:
			s.lastEvent = line.Record.Event
		}
		if s.newest != nil && s.newest.size == s.chain.size && s.newest.root != s.chain.Head().Root {
			return s.damage(fmt.Sprintf("the records up to %d are not those of the signed checkpoint", s.chain.size-1))
		}
	}
	if s.newest != nil && s.lines > 0 && s.newest.size > s.chain.size {
		return s.damage(fmt.Sprintf("the log has %d records, but a signed checkpoint names %d", s.chain.size, s.newest.size))
	}
	return nil
}

// begin places the chain at the first line of a segment.
func (s *scanner) begin(first Line) error {
	s.began = first.Record.Time
	s.start = &Chain{}
	if s.seg.first > 0 {
		var err error
		if s.start, err = frontierOf(first); err != nil {
			return err
		}
	}
	s.chain = *s.start.Clone()
	return nil
}

// frontierOf reads the chain's state from the first line of a segment.
func frontierOf(l Line) (*Chain, error) {
	o := l.Record.Object
	prev, err := hex.DecodeString(l.Record.Prev)
	if err != nil || l.Record.Event != "log.segment" || o.Int("size") < 0 {
		return nil, ErrFrontier
	}
	var frontier [][32]byte
	for _, text := range o.Strings("frontier") {
		h, err := hex.DecodeString(text)
		if err != nil || len(h) != 32 {
			return nil, ErrFrontier
		}
		frontier = append(frontier, [32]byte(h))
	}
	return ResumeChain(uint64(o.Int("size")), [32]byte(prev), frontier)
}

// torn decides about the rest of a segment from the first bad line on. A tail
// is torn if no whole record comes after it, and if nobody has seen what it was;
// anything else is damage.
func (s *scanner) torn(rest []byte, why error) error {
	after := rest
	if end := bytes.IndexByte(rest, '\n'); end >= 0 {
		after = rest[end+1:]
		for len(after) > 0 {
			end := bytes.IndexByte(after, '\n') + 1
			if end == 0 {
				break
			}
			if _, err := ParseLine(after[:end]); err == nil {
				return s.damage("a line is no record, or not the next one, and whole records follow: " + why.Error())
			}
			after = after[end:]
		}
		// A whole record that does not continue the chain was not torn by a crash.
		if _, err := ParseLine(rest[:bytes.IndexByte(rest, '\n')+1]); err == nil {
			return s.damage(why.Error())
		}
	}
	seen := s.l.opt.MinSize
	if s.newest != nil {
		seen = max(seen, s.newest.size)
	}
	if s.lines > 0 && s.chain.size < seen {
		return s.damage(fmt.Sprintf("the end is torn, but a checkpoint or the index knows %d records", seen))
	}
	s.tail = bytes.Clone(rest)
	return nil
}

// cut puts a torn tail aside before the segment is shortened.
func (s *scanner) cut() error {
	if len(s.tail) == 0 {
		return nil
	}
	sum := sha256.Sum256(s.tail)
	r := &s.l.recovered
	r.Cut, r.SHA256, r.Segment = int64(len(s.tail)), hex.EncodeToString(sum[:]), s.seg.name
	r.Kept = fmt.Sprintf("%s.%d.%s", s.seg.name, s.offset, r.SHA256[:16])
	if err := s.l.opt.disk.WriteFile(s.l.path(lostDir, r.Kept), s.tail); err != nil {
		return fmt.Errorf("audit: keeping the torn tail: %w", err)
	}
	if err := s.l.opt.disk.Truncate(s.l.path(segmentDir, s.seg.name), s.offset); err != nil {
		return fmt.Errorf("audit: cutting the torn tail: %w", err)
	}
	return nil
}

// previous compares the segment before with what the last one says of it.
func (s *scanner) previous(before []segment) error {
	if s.seg.first == 0 {
		if len(before) > 0 {
			return s.damage("there is a segment before the first line")
		}
		return nil
	}
	data, err := os.Open(s.l.path(segmentDir, s.seg.name))
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	raw, err := bufio.NewReaderSize(data, MaxLine).ReadBytes('\n')
	if err = errors.Join(err, data.Close()); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	first, err := ParseLine(raw)
	if err != nil {
		return err
	}
	name := first.Record.Object.String("previous")
	if len(before) == 0 || before[len(before)-1].name != name {
		return &MaintenanceError{Segment: s.seg.name, Line: 1, Why: "the segment before it, " + name + ", is missing"}
	}
	sum, err := fileSum(s.l.path(segmentDir, name))
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	if sum != first.Record.Object.String("previous_sha256") {
		return &MaintenanceError{Segment: name, Line: 1, Why: "its SHA-256 is not the one that the next segment names"}
	}
	return nil
}

func fileSum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	_, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), errors.Join(err, f.Close())
}
