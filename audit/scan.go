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
		s.before = s.offset
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
	s.tail = bytes.Clone(rest)
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
