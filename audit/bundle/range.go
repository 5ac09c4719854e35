package bundle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/postern-pki/postern/audit"
)

// A Bound is a record's number or a time. The zero value is none.
type Bound struct {
	Set bool
	Seq uint64    // where At is zero
	At  time.Time // UTC
}

// ErrUnsigned says that no signed checkpoint covers the range yet.
var ErrUnsigned = errors.New("bundle: no signed checkpoint covers the last record of the range")

// ErrRange says that the range has no record.
var ErrRange = errors.New("bundle: there is no record in the range")

// extent is a range as it is in the log: from its first record to a checkpoint.
type extent struct {
	from, size uint64
	note       []byte
}

// find looks for the range. Its end is the first checkpoint at or after to, so that
// a range has one end, whenever it is exported; without to it is the newest one.
func find(ctx context.Context, dir string, from, to Bound) (extent, error) {
	e := extent{from: from.Seq}
	begun := !from.Set || from.At.IsZero()
	start := e.from
	if to.Set && to.At.IsZero() && begun {
		start = max(start, to.Seq)
	}
	if !begun {
		start = 0
	}
	err := audit.Lines(ctx, dir, start, func(seq uint64, raw []byte) error {
		if !begun {
			if t := timeOf(raw); !t.Before(from.At) {
				e.from, begun = seq, true
			}
		}
		if !bytes.Contains(raw, []byte(`,"ev":"log.checkpoint",`)) {
			return nil
		}
		l, err := audit.ParseLine(raw)
		if err != nil || l.Record.Event != "log.checkpoint" {
			return nil // what is damaged is found, and named, when the log is walked
		}
		size := uint64(l.Record.Object.Int("size"))
		e.size, e.note = size, []byte(l.Record.Object.String("note"))
		if to.Set && (to.At.IsZero() && size > to.Seq || !to.At.IsZero() && l.Record.Time.After(to.At)) {
			return io.EOF
		}
		return nil
	})
	if err != nil && !errors.Is(err, io.EOF) {
		return extent{}, err
	}
	switch {
	case !begun:
		return extent{}, fmt.Errorf("%w: none is of %s or later", ErrRange, from.At.Format(time.RFC3339))
	case e.note == nil, to.Set && to.At.IsZero() && e.size <= to.Seq:
		return extent{}, fmt.Errorf("%w: it covers %d records", ErrUnsigned, e.size)
	case to.Set && to.At.IsZero() && to.Seq < e.from, to.Set && from.Set && !to.At.IsZero() && to.At.Before(from.At):
		return extent{}, fmt.Errorf("%w: it ends before it begins", ErrRange)
	case e.from >= e.size:
		return extent{}, fmt.Errorf("%w: record %d is not covered by the checkpoint of %d records", ErrRange, e.from, e.size)
	}
	return e, nil
}

// timeOf reads the time at the end of a line, which has one form; zero for a line of
// another one.
func timeOf(raw []byte) time.Time {
	rest, ok := bytes.CutSuffix(raw, []byte("\",\"v\":1}\n"))
	if !ok || len(rest) < len(timeForm) {
		return time.Time{}
	}
	t, err := time.Parse(timeForm, string(rest[len(rest)-len(timeForm):]))
	if err != nil {
		return time.Time{}
	}
	return t
}
