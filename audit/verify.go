package audit

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/postern-pki/postern/audit/jcs"
)

// Scan reads the lines from number from on, without the lock: it ends without an
// error at a tail that is not whole, which a writer may be about to finish. It
// checks each line's own form, not the chain.
func Scan(dir string, from uint64, fn func(Line) error) error {
	list, err := segments(dir)
	if err != nil {
		return err
	}
	for i, s := range list {
		if i+1 < len(list) && list[i+1].first <= from {
			continue
		}
		err := eachLine(filepath.Join(dir, segmentDir, s.name), func(raw []byte, whole bool) error {
			l, err := ParseLine(raw)
			if err != nil && i == len(list)-1 && !whole {
				return io.EOF
			}
			if err != nil {
				return fmt.Errorf("segment %s: %w", s.name, err)
			}
			if l.Record.Seq < from {
				return nil
			}
			return fn(l)
		})
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// errFirst ends the reading of a file after its first line.
var errFirst = errors.New("audit: the first line")

// From returns the number of a line to Scan from for those that were recorded at t or
// later: the first of a segment, as the clock was when that began.
func From(dir string, t time.Time) (uint64, error) {
	list, err := segments(dir)
	if err != nil {
		return 0, err
	}
	for i := len(list) - 1; i > 0; i-- {
		var began time.Time
		err := eachLine(filepath.Join(dir, segmentDir, list[i].name), func(raw []byte, whole bool) error {
			l, err := ParseLine(raw)
			if err == nil && whole {
				began, err = l.Record.Time, errFirst
			}
			return err
		})
		if errors.Is(err, errFirst) && !began.After(t) {
			return list[i].first, nil
		}
		if err != nil && !errors.Is(err, errFirst) && i < len(list)-1 { // the newest may have been begun just now
			return 0, fmt.Errorf("segment %s: %w", list[i].name, err)
		}
	}
	return 0, nil
}

// eachLine hands out the lines of a file with their LF; whole is false for a
// last one without it. A line is valid until fn returns.
func eachLine(path string, fn func(raw []byte, whole bool) error) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	r := bufio.NewReaderSize(f, MaxLine+1)
	for {
		raw, err := r.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			return ErrTooLarge
		}
		if len(raw) > 0 {
			if ferr := fn(raw, err == nil); ferr != nil {
				return ferr
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("audit: reading %s: %w", filepath.Base(path), err)
		}
	}
}

// OriginOf reads the origin from the log's first record.
func OriginOf(dir string) (string, error) {
	origin := ""
	err := Scan(dir, 0, func(l Line) error {
		origin = l.Record.Object.String("origin")
		return io.EOF
	})
	if err == nil && origin == "" {
		err = ErrRecord
	}
	return origin, err
}

// Damage says where a log is not what it should be, and in which way.
type Damage struct {
	Segment string
	Line    int   // within the segment, from 1
	Offset  int64 // of the line within the segment, in octets
	Seq     uint64
	Why     string
}

// Error names the place.
func (d *Damage) Error() string {
	return fmt.Sprintf("audit: damaged: segment %s, line %d, octet %d (record %d): %s", d.Segment, d.Line, d.Offset, d.Seq, d.Why)
}

// VerifyOptions say by whose checkpoints a log is judged. Verifier is required.
type VerifyOptions struct{ Verifier note.Verifier }

// A Report is what a verified log holds.
type Report struct {
	Origin      string           `json:"origin"`
	Records     uint64           `json:"records"`
	Segments    int              `json:"segments"`
	Root        string           `json:"root"`        // hex
	Checkpoints int              `json:"checkpoints"` // whose signature and root were verified
	Signed      uint64           `json:"signed"`      // records that the newest checkpoint covers
	Unfinished  int64            `json:"unfinished"`  // octets after the last whole record
	First       time.Time        `json:"first"`
	Last        time.Time        `json:"last"`
	Events      map[string]int64 `json:"events"` // "event outcome" and how often
}

// verifier walks a log from its first octet to its last.
type verifier struct {
	dir    string
	by     note.Verifier
	chain  Chain
	r      Report
	notes  map[uint64]tlog.Hash // roots of the checkpoint files, by size
	counts map[string]*int64    // by event and outcome, as they are written
	key    []byte
	latest []byte // the last line's time, as it is written

	seg    string
	line   int
	offset int64
	before int64 // offset of the line before
}

// Verify checks a whole log: every line's form and place, every segment's hash
// and frontier, every checkpoint in it and beside it. The error is *Damage for a
// log that is not what it should be. It needs memory for one line.
func Verify(ctx context.Context, dir string, o VerifyOptions) (Report, error) {
	if o.Verifier == nil {
		return Report{}, errors.New("audit: a verifier is required")
	}
	v := &verifier{dir: dir, by: o.Verifier, notes: make(map[uint64]tlog.Hash), counts: make(map[string]*int64), r: Report{Events: make(map[string]int64)}}
	list, err := segments(dir)
	if err != nil {
		return Report{}, err
	}
	if len(list) == 0 {
		return Report{}, &Damage{Why: "there are no segments"}
	}
	if err := v.files(); err != nil {
		return Report{}, err
	}
	var previous string
	for i, s := range list {
		if s.first != v.chain.size {
			return Report{}, &Damage{Segment: s.name, Seq: v.chain.size, Why: fmt.Sprintf("a segment is missing: record %d should come next", v.chain.size)}
		}
		if previous, err = v.segment(ctx, s.name, previous, i == len(list)-1); err != nil {
			return Report{}, err
		}
	}
	for size := range v.notes {
		if size > v.chain.size {
			return Report{}, v.damage(fmt.Sprintf("the log was cut: a signed checkpoint names %d records, there are %d", size, v.chain.size))
		}
	}
	if err := v.sum(); err != nil {
		return Report{}, err
	}
	h := v.chain.Head()
	v.r.Records, v.r.Segments, v.r.Root = h.Size, len(list), hex.EncodeToString(h.Root[:])
	return v.r, nil
}

func (v *verifier) damage(why string) error {
	return &Damage{Segment: v.seg, Line: v.line, Offset: v.offset, Seq: v.chain.size, Why: why}
}

// files reads the checkpoints beside the log.
func (v *verifier) files() error {
	sizes, err := numbered(filepath.Join(v.dir, checkpointDir), ".note")
	if err != nil {
		return err
	}
	for _, n := range sizes {
		data, err := os.ReadFile(filepath.Join(v.dir, checkpointDir, noteName(n)))
		if errors.Is(err, os.ErrNotExist) {
			continue // an old one, which a running service has just removed
		}
		if err != nil {
			return fmt.Errorf("audit: %w", err)
		}
		size, root, err := OpenCheckpoint(data, v.by)
		if err != nil || size != n {
			return &Damage{Segment: noteName(n), Why: "the checkpoint does not verify with the audit certificate"}
		}
		v.notes[n] = root
	}
	return nil
}

// segment checks one segment, and returns the SHA-256 of the file.
func (v *verifier) segment(ctx context.Context, name, previous string, last bool) (string, error) {
	sum := sha256.New()
	v.seg, v.line, v.offset = name, 0, 0
	err := walk(ctx, filepath.Join(v.dir, segmentDir, name), func(p *parcel) error {
		_, _ = sum.Write(p.raw)
		start := 0
		for i := range p.items {
			v.line++
			if err := v.record(p.raw[start:p.ends[i]], &p.items[i], previous); err != nil {
				return err
			}
			v.before = v.offset
			v.offset += int64(p.ends[i] - start)
			start = p.ends[i]
		}
		if p.tail > 0 {
			if v.line++; !last {
				return v.damage("the line does not end in LF")
			}
			v.r.Unfinished = int64(p.tail)
		}
		return nil
	})
	if errors.Is(err, ErrTooLarge) {
		v.line++
		err = v.damage("a line is longer than 64 KiB")
	}
	return hex.EncodeToString(sum.Sum(nil)), err
}

// record checks a line's place, and what it says of the log if it is one of the
// log's own.
func (v *verifier) record(raw []byte, one *item, previous string) error {
	f := &one.fields
	if !one.ok || v.line == 1 || string(f.ev) == `"log.checkpoint"` {
		l, err := ParseLine(raw)
		if err == nil && !one.ok {
			err = ErrRecord
		}
		if err != nil {
			return v.damage(err.Error())
		}
		if err := v.own(l, previous); err != nil {
			return err
		}
	}
	switch {
	case f.number != v.chain.size:
		return v.damage(fmt.Sprintf("%v: %d instead of %d", ErrSequence, f.number, v.chain.size))
	case !f.follows(v.chain.prev) && v.line > 1:
		// The line is whole and names another one: the one before it was changed.
		return &Damage{v.seg, v.line - 1, v.before, v.chain.size - 1, "the record was changed or exchanged: the next one names another SHA-256"}
	case !f.follows(v.chain.prev):
		return v.damage(ErrPrevious.Error())
	}
	v.chain.add(one.leaf, one.hash)
	if root, ok := v.notes[v.chain.size]; ok && root != v.chain.Head().Root {
		return &Damage{Segment: v.seg, Line: v.line, Offset: v.offset, Seq: f.number, Why: "the signed checkpoint of the records up to this one has another root"}
	}
	v.latest = append(v.latest[:0], f.t...)
	v.key = append(append(append(v.key[:0], f.ev...), ' '), f.out...)
	n := v.counts[string(v.key)]
	if n == nil {
		n = new(int64)
		v.counts[string(v.key)] = n
	}
	*n++
	return nil
}

// own checks the log's own records: the first of the log, the first of each
// segment, and checkpoints.
func (v *verifier) own(l Line, previous string) error {
	if v.line == 1 && v.chain.size == 0 {
		v.r.Origin, v.r.First = l.Record.Object.String("origin"), l.Record.Time
		if l.Record.Event != "log.genesis" || v.r.Origin != v.by.Name() {
			return v.damage("the first record is no genesis of this origin")
		}
	}
	if v.line == 1 && v.chain.size > 0 {
		if l.Record.Object.String("previous_sha256") != previous {
			return v.damage("the segment before this one has another SHA-256")
		}
		at, err := frontierOf(l)
		if err != nil || at.Head() != v.chain.Head() {
			return v.damage("the frontier is not that of the records before")
		}
	}
	if l.Record.Event != "log.checkpoint" {
		return nil
	}
	size, root, err := OpenCheckpoint([]byte(l.Record.Object.String("note")), v.by)
	if err != nil {
		return v.damage("the checkpoint in the record does not verify with the audit certificate")
	}
	if size != v.chain.size || root != v.chain.Head().Root {
		return v.damage("the checkpoint in the record is not of the records before it")
	}
	v.r.Checkpoints++
	v.r.Signed = size
	return nil
}

// sum puts the counts into the report.
func (v *verifier) sum() error {
	for key, n := range v.counts {
		used, err := jcs.Scan([]byte(key), 1)
		if err != nil {
			return err
		}
		event, err := jcs.Parse([]byte(key[:used]))
		if err != nil {
			return err
		}
		outcome, err := jcs.Parse([]byte(key[used+1:]))
		if err != nil {
			return err
		}
		v.r.Events[fmt.Sprintf("%s %s", event, outcome)] += *n
	}
	last, err := time.Parse(`"`+timeForm+`"`, string(v.latest))
	v.r.Last = last
	return err
}
