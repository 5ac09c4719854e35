package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"time"
)

// scanner reads the last segment.
type scanner struct {
	l      *Log
	newest *checkpointFile

	seg       segment
	start     *Chain // at the beginning of the segment
	chain     Chain
	offset    int64 // end of the last good line
	before    int64 // its beginning
	lines     int
	sum       hash.Hash
	tail      []byte // what follows it
	began     time.Time
	lastEvent string // of the service
	runBoot   string // of its last complete start, or what it did since
	starting  bool   // a start was not complete
	lastBoot  string // of the last line
	lastTime  time.Time
	lastMono  int64
	note      string // of the newest checkpoint in the segment
	noteAt    Head   // where it stands
	aside     bool   // the tail is all of a last segment, after seg
	tailOf    string // segment that the tail stands in
	tailAt    int64  // and where
}

func (s *scanner) damage(why string) error {
	return &MaintenanceError{Segment: s.seg.name, Line: s.lines + 1, Offset: s.offset, Why: why}
}

// last reads the last segment. One without a whole first line was never
// acknowledged: it will be put aside, and the one before it, which was finished
// before that one was begun, is the last.
func (s *scanner) last(list []segment) error {
	i := len(list) - 1
	if err := s.one(list[i]); err != nil {
		return err
	}
	if s.lines == 0 {
		if s.newest != nil && s.newest.size > s.seg.first || s.l.opt.MinSize > s.seg.first {
			return s.damage("the first line is no record, but a checkpoint or the index knows it")
		}
		s.aside, s.tailOf, s.tailAt = true, s.seg.name, 0
		if i == 0 {
			if s.seg.first != 0 {
				return s.damage("the segments before it are missing")
			}
			return nil
		}
		tail := s.tail
		first := s.seg.first
		i--
		if err := s.one(list[i]); err != nil {
			return err
		}
		if s.lines == 0 || len(s.tail) > 0 || s.chain.size != first {
			return s.damage("the segment is not whole, but another one was begun after it")
		}
		s.tail = tail
	}
	if err := s.previous(list[:i]); err != nil {
		return err
	}
	return s.vouch(list[:i])
}

// one reads one segment into s.
func (s *scanner) one(seg segment) error {
	s.seg, s.chain, s.start, s.offset, s.lines, s.tail, s.note = seg, Chain{}, nil, 0, 0, nil, ""
	data, err := os.ReadFile(s.l.path(segmentDir, seg.name))
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return s.read(data)
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
		var head Head
		checkpoint := err == nil && line.Record.Event == "log.checkpoint"
		if checkpoint {
			head = s.chain.Head()
		}
		if err == nil {
			err = s.chain.Step(line)
		}
		if err != nil {
			return s.torn(data, err)
		}
		if checkpoint {
			s.note, s.noteAt = line.Record.Object.String("note"), head
		}
		_, _ = s.sum.Write(line.Raw)
		s.before = s.offset
		s.offset, s.lines, data = s.offset+int64(end), s.lines+1, data[end:]
		s.lastBoot, s.lastTime, s.lastMono = line.Record.Boot, line.Record.Time, line.Record.Mono
		s.service(&line.Record)
		if s.newest != nil && s.newest.size == s.chain.size && s.newest.root != s.chain.Head().Root {
			return s.damage(fmt.Sprintf("the records up to %d are not those of the signed checkpoint", s.chain.size-1))
		}
	}
	return s.short()
}

// service notes how the service was left. What a start records before it is
// complete says nothing of that: cut short, the next one has to find the same.
func (s *scanner) service(r *Record) {
	switch r.Event {
	case "log.checkpoint", "log.segment", "log.recovered", "time.step":
		return
	case "system.unclean":
		s.starting = true
	case "system.start":
		s.starting = false
	}
	s.lastEvent = r.Event
	if !s.starting {
		s.runBoot = r.Boot
	}
}

// short refuses a log that ends before its newest checkpoint.
func (s *scanner) short() error {
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
		if s.start.size != s.seg.first {
			return fmt.Errorf("%w: the segment's name says %d", ErrFrontier, s.seg.first)
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
				return s.discontinued(fmt.Errorf("whole records follow a line that is not the next one: %w", why))
			}
			after = after[end:]
		}
		// A whole record that does not continue the chain was not torn by a crash.
		if _, err := ParseLine(rest[:bytes.IndexByte(rest, '\n')+1]); err == nil {
			return s.discontinued(why)
		}
	}
	seen := s.l.opt.MinSize
	if s.newest != nil {
		seen = max(seen, s.newest.size)
	}
	if s.lines > 0 && s.chain.size < seen {
		return s.damage(fmt.Sprintf("the end is torn, but a checkpoint or the index knows %d records", seen))
	}
	s.tail, s.tailOf, s.tailAt = bytes.Clone(rest), s.seg.name, s.offset
	return nil
}

// discontinued is damage at a line that does not continue the chain. One that
// names another line before it is whole itself: the one before was changed.
func (s *scanner) discontinued(why error) error {
	if errors.Is(why, ErrPrevious) && s.lines > 0 {
		return &MaintenanceError{Segment: s.seg.name, Line: s.lines, Offset: s.before, Why: "the record was changed or exchanged: the next one names another SHA-256"}
	}
	return s.damage(why.Error())
}

// cut puts a torn tail aside before the segment is shortened, or removed if the
// tail is all of it.
func (s *scanner) cut() error {
	if len(s.tail) == 0 && !s.aside {
		return nil
	}
	sum := sha256.Sum256(s.tail)
	digest := hex.EncodeToString(sum[:])
	kept := fmt.Sprintf("%s.%d.%s", s.tailOf, s.tailAt, digest[:16])
	from := s.l.path(segmentDir, s.tailOf)
	if len(s.tail) > 0 { // an empty segment has nothing to record
		r := &s.l.recovered
		r.Cut, r.SHA256, r.Segment, r.Kept, r.offset = int64(len(s.tail)), digest, s.tailOf, kept, s.tailAt
	}
	if s.aside {
		err := s.l.opt.disk.Rename(from, s.l.path(lostDir, kept))
		if err == nil {
			err = s.l.opt.disk.SyncDir(s.l.path(segmentDir))
		}
		if err != nil {
			return fmt.Errorf("audit: putting a torn segment aside: %w", err)
		}
		return nil
	}
	if err := s.l.opt.disk.WriteFile(s.l.path(lostDir, kept), s.tail); err != nil {
		return fmt.Errorf("audit: keeping the torn tail: %w", err)
	}
	if err := s.l.opt.disk.Truncate(from, s.tailAt); err != nil {
		return fmt.Errorf("audit: cutting the torn tail: %w", err)
	}
	return nil
}

// vouch compares the last segment with signed checkpoints that do not lie within
// the part of it that [scanner.read] compared: what its first line says of the
// past counts for nothing until a signature covers it, and followers begin there.
func (s *scanner) vouch(before []segment) error {
	if s.note != "" && s.l.opt.Verifier != nil {
		size, root, err := OpenCheckpoint([]byte(s.note), s.l.opt.Verifier)
		if err != nil || size != s.noteAt.Size || root != s.noteAt.Root {
			return s.damage("the newest checkpoint in the segment does not verify, or is of other records")
		}
	}
	if s.newest == nil || s.newest.size > s.start.size {
		return nil
	}
	var chain *Chain
	check := func() error {
		if chain.size == s.newest.size && chain.Head().Root != s.newest.root {
			return s.damage(fmt.Sprintf("the records up to %d are not those of the signed checkpoint", chain.size))
		}
		return nil
	}
	for i, seg := range before {
		if i+1 < len(before) && before[i+1].first < s.newest.size {
			continue
		}
		err := eachLine(s.l.path(segmentDir, seg.name), func(raw []byte, _ bool) error {
			line, err := ParseLine(raw)
			if err == nil && chain == nil {
				chain = &Chain{}
				if seg.first > 0 {
					chain, err = frontierOf(line)
				}
			}
			if err == nil {
				err = chain.Step(line)
			}
			if err != nil {
				return &MaintenanceError{Segment: seg.name, Why: err.Error()}
			}
			return check()
		})
		if err != nil {
			return err
		}
	}
	if s.start.size > 0 && (chain == nil || chain.Head() != s.start.Head()) {
		return s.damage("what the segment says of the records before it is not so")
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
