package audit

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

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
	return linesOf(filepath.Base(path), f, fn)
}

func linesOf(name string, from io.Reader, fn func(raw []byte, whole bool) error) error {
	r := bufio.NewReaderSize(from, MaxLine+1)
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
			return fmt.Errorf("audit: reading %s: %w", name, err)
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

// Lines hands out the lines of a log as they lie on the disk, unread and unchecked,
// from the beginning of the segment that has line number from, with the number that
// each has by its place. It ends at a tail that is not whole. A line is valid until fn
// returns.
func Lines(ctx context.Context, dir string, from uint64, fn func(seq uint64, raw []byte) error) error {
	list, err := segments(dir)
	if err != nil {
		return err
	}
	for i, s := range list {
		if i+1 < len(list) && list[i+1].first <= from {
			continue
		}
		seq := s.first
		err := eachLine(filepath.Join(dir, segmentDir, s.name), func(raw []byte, whole bool) error {
			if seq%4096 == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			if !whole {
				return nil
			}
			seq++
			return fn(seq-1, raw)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// SegmentPath is where the log keeps the segment of that name.
func SegmentPath(dir, name string) string { return filepath.Join(dir, segmentDir, name) }

// Field is the value of a key of an object as it is written, such as that of a [Seen];
// nil if there is none.
func Field(ob []byte, key string) []byte {
	if len(ob) < 2 || ob[0] != '{' {
		return nil
	}
	for at := 1; at < len(ob) && ob[at] == '"'; at++ {
		n, err := jcs.Scan(ob[at:], 2)
		if err != nil || at+n+1 >= len(ob) {
			return nil
		}
		name := ob[at+1 : at+n-1]
		at += n + 1
		if n, err = jcs.Scan(ob[at:], 2); err != nil {
			return nil
		}
		switch bytes.Compare(name, []byte(key)) {
		case 0:
			return ob[at : at+n]
		case 1:
			return nil // keys are in order
		}
		at += n
	}
	return nil
}
