package audit

import (
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
type VerifyOptions struct {
	Verifier note.Verifier
	Each     func(*Seen) error // gets each record that was found good, in order; nil: nobody does
}

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

// WalkOptions say how a log, or a part of one, is walked. Verifier is required.
type WalkOptions struct {
	Verifier note.Verifier
	From     *Chain               // where the part begins; nil: before line 0
	Notes    map[uint64]tlog.Hash // roots that signed checkpoints have, by size; nil: none
	Each     func(*Seen) error    // gets each record that was found good, in order; nil: nobody does
}

// Seen is a record on its way through a walk, valid until Each returns. Fields are
// as they are written, strings with their quotes.
type Seen struct {
	Raw                          []byte // with its LF
	Seq                          uint64
	Event, Outcome, Time, Object []byte
	Actor, Request               []byte
	Leaf                         tlog.Hash
	Segment                      string
	Offset                       int64 // of the line within the segment, in octets
}

// A Walk verifies segments one after the other, from the first octet to the last:
// every line's form and place, every segment's hash and frontier, every checkpoint in
// them. It needs memory for one line, and uses all processors. It is not safe for
// concurrent use.
type Walk struct {
	by     note.Verifier
	each   func(*Seen) error
	chain  Chain
	r      Report
	notes  map[uint64]tlog.Hash
	counts map[string]*int64 // by event and outcome, as they are written
	key    []byte
	latest []byte // the last line's time, as it is written
	seen   Seen

	previous string // SHA-256 of the segment before, hex; "" where it is not known
	inside   bool   // the walk begins within a segment
	seg      string
	line     int
	offset   int64
	before   int64 // offset of the line before
}

// NewWalk returns a walk that stands where o.From does.
func NewWalk(o WalkOptions) *Walk {
	v := &Walk{by: o.Verifier, each: o.Each, notes: o.Notes, counts: make(map[string]*int64), r: Report{Events: make(map[string]int64)}}
	if o.From != nil {
		v.chain, v.inside = *o.From.Clone(), o.From.size > 0
	}
	return v
}

// Chain is where the walk stands.
func (v *Walk) Chain() *Chain { return v.chain.Clone() }

// Verify checks a whole log and the checkpoints beside it by a [Walk]. The error is
// *Damage for a log that is not what it should be.
func Verify(ctx context.Context, dir string, o VerifyOptions) (Report, error) {
	if o.Verifier == nil {
		return Report{}, errors.New("audit: a verifier is required")
	}
	notes, err := notesIn(dir, o.Verifier)
	if err != nil {
		return Report{}, err
	}
	v := NewWalk(WalkOptions{Verifier: o.Verifier, Notes: notes, Each: o.Each})
	if err := v.Folder(ctx, dir); err != nil {
		return Report{}, err
	}
	for size := range notes {
		if size > v.chain.size {
			return Report{}, v.damage(fmt.Sprintf("the log was cut: a signed checkpoint names %d records, there are %d", size, v.chain.size))
		}
	}
	return v.Report()
}

// Folder walks all segments of a log. An error of Each ends it.
func (v *Walk) Folder(ctx context.Context, dir string) error {
	list, err := segments(dir)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return &Damage{Why: "there are no segments"}
	}
	for i, s := range list {
		if s.first != v.chain.size {
			return &Damage{Segment: s.name, Seq: v.chain.size, Why: fmt.Sprintf("a segment is missing: record %d should come next", v.chain.size)}
		}
		if err := v.file(ctx, dir, s.name, i == len(list)-1); err != nil {
			return err
		}
	}
	return nil
}

func (v *Walk) file(ctx context.Context, dir, name string, last bool) error {
	f, err := os.Open(filepath.Join(dir, segmentDir, name))
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	_, err = v.Segment(ctx, name, f, last)
	return errors.Join(err, f.Close())
}

// Report is what was walked so far.
func (v *Walk) Report() (Report, error) {
	if err := v.sum(); err != nil {
		return Report{}, err
	}
	h := v.chain.Head()
	v.r.Records, v.r.Root = h.Size, hex.EncodeToString(h.Root[:])
	return v.r, nil
}

func (v *Walk) damage(why string) error {
	return &Damage{Segment: v.seg, Line: v.line, Offset: v.offset, Seq: v.chain.size, Why: why}
}

// notesIn reads the checkpoints beside the log.
func notesIn(dir string, by note.Verifier) (map[uint64]tlog.Hash, error) {
	sizes, err := numbered(filepath.Join(dir, checkpointDir), ".note")
	if err != nil {
		return nil, err
	}
	notes := make(map[uint64]tlog.Hash)
	for _, n := range sizes {
		data, err := os.ReadFile(filepath.Join(dir, checkpointDir, noteName(n)))
		if errors.Is(err, os.ErrNotExist) {
			continue // an old one, which a running service has just removed
		}
		if err != nil {
			return nil, fmt.Errorf("audit: %w", err)
		}
		size, root, err := OpenCheckpoint(data, by)
		if err != nil || size != n {
			return nil, &Damage{Segment: noteName(n), Why: "the checkpoint does not verify with the audit certificate"}
		}
		notes[n] = root
	}
	return notes, nil
}

// Segment checks the next segment, or what there is of it, and returns the SHA-256
// of what was read, in hex. last is true where a writer may be about to finish it: a
// tail that is not whole is no damage then.
func (v *Walk) Segment(ctx context.Context, name string, from io.Reader, last bool) (string, error) {
	sum := sha256.New()
	v.seg, v.line, v.offset = name, 0, 0
	v.r.Segments++
	err := walk(ctx, name, from, func(p *parcel) error {
		_, _ = sum.Write(p.raw)
		start := 0
		for i := range p.items {
			v.line++
			if err := v.record(p.raw[start:p.ends[i]], &p.items[i]); err != nil {
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
	text := hex.EncodeToString(sum.Sum(nil))
	if v.previous = text; v.inside && v.r.Segments == 1 { // the beginning of the file may be missing
		v.previous = ""
	}
	return text, err
}

// record checks a line's place, and what it says of the log if it is one of the
// log's own.
func (v *Walk) record(raw []byte, one *item) error {
	f := &one.fields
	if !one.ok || v.line == 1 || string(f.ev) == `"log.checkpoint"` {
		l, err := ParseLine(raw)
		if err == nil && !one.ok {
			err = ErrRecord
		}
		if err != nil {
			return v.damage(err.Error())
		}
		if err := v.own(l); err != nil {
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
	if v.each == nil {
		return nil
	}
	v.seen = Seen{
		Raw: raw, Seq: f.number, Event: f.ev, Outcome: f.out, Time: f.t, Object: f.ob, Actor: f.actor, Request: f.req, Leaf: one.leaf, Segment: v.seg, Offset: v.offset,
	}
	return v.each(&v.seen)
}

// own checks the log's own records: the first of the log, the first of each
// segment, and checkpoints.
func (v *Walk) own(l Line) error {
	if v.r.First.IsZero() {
		v.r.Origin, v.r.First = v.by.Name(), l.Record.Time
	}
	if v.line == 1 && v.chain.size == 0 {
		v.r.Origin = l.Record.Object.String("origin")
		if l.Record.Event != "log.genesis" || v.r.Origin != v.by.Name() {
			return v.damage("the first record is no genesis of this origin")
		}
	}
	if within := v.inside && v.r.Segments == 1 && l.Record.Event != "log.segment"; v.line == 1 && v.chain.size > 0 && !within {
		if v.previous != "" && l.Record.Object.String("previous_sha256") != v.previous {
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
func (v *Walk) sum() error {
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
	if len(v.latest) == 0 {
		return nil
	}
	last, err := time.Parse(`"`+timeForm+`"`, string(v.latest))
	v.r.Last = last
	return err
}
