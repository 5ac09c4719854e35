package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/postern-pki/postern/audit/jcs"
)

// A parcel is some whole lines of a segment on their way through a walk: one
// goroutine reads, several check each line by itself and hash it, and one, in
// the order of the file, checks that each line continues the log.
type parcel struct {
	raw   []byte
	ends  []int // of the lines in raw
	items []item
	tail  int // octets at the end that no LF ends
	err   error
	ready chan struct{}
}

// An item is what is known of a line by itself.
type item struct {
	fields fields
	hash   [32]byte
	leaf   tlog.Hash
	ok     bool
}

// parcelSize is how many octets go through together.
const parcelSize = 128 << 10

// check fills the items. It uses nothing but the parcel and what is passed.
func (p *parcel) check(h hash.Hash, t *times) {
	p.items = p.items[:0]
	start := 0
	for _, end := range p.ends {
		raw := p.raw[start:end]
		p.items = append(p.items, item{})
		one := &p.items[len(p.items)-1]
		if one.ok = one.fields.read(raw, t); one.ok {
			one.hash = sha256.Sum256(raw)
			h.Reset()
			_, _ = h.Write([]byte{0}) // RFC 9162, section 2.1.1
			_, _ = h.Write(raw)
			h.Sum(one.leaf[:0])
		}
		start = end
	}
	close(p.ready)
}

// walk hands out the parcels of what is read in order; fn must not keep them. The
// memory is that of a fixed number of parcels.
func walk(ctx context.Context, name string, from io.Reader, fn func(*parcel) error) error {
	workers := max(2, min(8, runtime.GOMAXPROCS(0)))
	ctx, cancel := context.WithCancel(ctx)
	free, work, order := make(chan *parcel, 4*workers), make(chan *parcel, 4*workers), make(chan *parcel, 4*workers)
	for range 4 * workers {
		free <- &parcel{}
	}
	ended := make(chan struct{})
	running := workers + 1
	done := make(chan struct{}, running)
	for range workers {
		go func() {
			defer func() { done <- struct{}{} }()
			h, t := sha256.New(), new(times)
			for p := range work {
				p.check(h, t)
			}
		}()
	}
	go func() {
		defer func() { done <- struct{}{} }()
		defer close(order)
		defer close(work)
		deal(ctx, name, from, free, work, order)
	}()
	go func() {
		for range running {
			<-done
		}
		close(ended)
	}()
	defer func() { cancel(); <-ended }()
	for p := range order {
		<-p.ready
		if p.err != nil {
			return p.err
		}
		if err := fn(p); err != nil {
			return err
		}
		free <- p
	}
	return ctx.Err()
}

// deal reads a file into parcels.
func deal(ctx context.Context, name string, from io.Reader, free <-chan *parcel, work, order chan<- *parcel) {
	var p *parcel
	take := func() bool {
		select {
		case p = <-free:
			p.raw, p.ends, p.tail, p.err, p.ready = p.raw[:0], p.ends[:0], 0, nil, make(chan struct{})
			return true
		case <-ctx.Done():
			return false
		}
	}
	// There is room: there are no more parcels than the channels hold.
	send := func() { work <- p; order <- p; p = nil }
	if !take() {
		return
	}
	err := linesOf(name, from, func(raw []byte, whole bool) error {
		if !whole {
			p.tail = len(raw)
		}
		p.raw = append(p.raw, raw...)
		if whole {
			p.ends = append(p.ends, len(p.raw))
		}
		if len(p.raw) < parcelSize {
			return nil
		}
		send()
		if !take() {
			return ctx.Err()
		}
		return nil
	})
	if p == nil {
		return // ctx ended
	}
	if err == nil || len(p.ends) > 0 {
		send()
		if err == nil || !take() {
			return
		}
	}
	p.err = err
	send()
}

// fields are a line's fields as they are written, strings with their quotes:
// what a verifier of many lines needs without building their records.
type fields struct {
	actor, boot, ev, mono, ob, out, prev, req, seq, t []byte

	number uint64 // seq
}

// times remembers the last time that was read; most lines share its second.
type times struct{ second [19]byte }

// read takes a line apart, and accepts exactly the lines that [ParseLine] does:
// the canonical form has one order of fields.
func (f *fields) read(raw []byte, t *times) bool {
	if len(raw) > MaxLine {
		return false
	}
	rest := raw
	for _, one := range [...]struct {
		before string
		to     *[]byte
	}{
		{`{"actor":`, &f.actor}, {`,"boot":`, &f.boot}, {`,"ev":`, &f.ev}, {`,"mono":`, &f.mono}, {`,"ob":`, &f.ob}, {`,"out":`, &f.out},
		{`,"prev":`, &f.prev}, {`,"req":`, &f.req}, {`,"seq":`, &f.seq}, {`,"t":`, &f.t},
	} {
		if len(rest) < len(one.before) || string(rest[:len(one.before)]) != one.before {
			return false
		}
		rest = rest[len(one.before):]
		n, err := jcs.Scan(rest, 1)
		if err != nil {
			return false
		}
		*one.to, rest = rest[:n], rest[n:]
	}
	return string(rest) == ",\"v\":1}\n" && f.typed() && hexDigest(f.prev) && t.valid(f.t)
}

// typed checks the type of each field and reads the number.
func (f *fields) typed() bool {
	if f.boot[0] != '"' || f.req[0] != '"' || f.ob[0] != '{' || !filled(f.ev) || !filled(f.out) || !actorForm(f.actor) {
		return false
	}
	f.number = 0
	for _, c := range f.seq {
		if c < '0' || c > '9' {
			return false
		}
		f.number = f.number*10 + uint64(c-'0')
	}
	return f.mono[0] == '-' || f.mono[0] >= '0' && f.mono[0] <= '9'
}

// filled is true for a string that is not empty.
func filled(b []byte) bool { return len(b) > 2 && b[0] == '"' }

// actorForm checks what [Actor] may hold: id, kind and src, kind always.
func actorForm(b []byte) bool {
	b, ok := bytes.CutPrefix(b, []byte("{"))
	kind := false
	for _, key := range [...]string{`"id":`, `"kind":`, `"src":`} {
		rest, found := bytes.CutPrefix(b, []byte(key))
		if !found {
			continue
		}
		n, err := jcs.Scan(rest, 2)
		if err != nil || !filled(rest[:n]) {
			return false
		}
		kind = kind || key == `"kind":`
		b = bytes.TrimPrefix(rest[n:], []byte(","))
	}
	return ok && kind && string(b) == "}"
}

// hexDigest is true for a SHA-256 in lower case.
func hexDigest(b []byte) bool {
	if len(b) != 2+2*32 || b[0] != '"' {
		return false
	}
	for _, c := range b[1 : len(b)-1] {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// valid is true for a time in the one form that a line has.
func (t *times) valid(b []byte) bool {
	if len(b) != 2+len(timeForm) || b[0] != '"' {
		return false
	}
	b = b[1 : len(b)-1]
	if b[19] != '.' || b[26] != 'Z' {
		return false
	}
	for _, c := range b[20:26] {
		if c < '0' || c > '9' {
			return false
		}
	}
	if bytes.Equal(b[:19], t.second[:]) {
		return true
	}
	at, err := time.Parse(timeForm, string(b))
	if err != nil || at.Format(timeForm) != string(b) {
		return false
	}
	copy(t.second[:], b)
	return true
}

// follows is true if the line's prev is the digest.
func (f *fields) follows(digest [32]byte) bool {
	var text [64]byte
	hex.Encode(text[:], digest[:])
	return bytes.Equal(f.prev[1:len(f.prev)-1], text[:])
}

// Find returns the lines of a request, oldest first and at most limit of them,
// without the lock. It reads the newest segments first, since that is what people
// ask for, and ends at the first one that has none where the one after it had
// some: the lines of a request stand together. For one that is not there it reads
// the whole log, at the speed of the disk. Errors are those of [Scan], and of ctx.
func Find(ctx context.Context, dir, request string, limit int) ([]Line, error) {
	list, err := segments(dir)
	if err != nil {
		return nil, err
	}
	// Lines are canonical, so that most of them need no more than this look.
	mark := jcs.AppendString([]byte(`"req":`), request)
	var out []Line
	for i, s := range slices.Backward(list) {
		var found []Line
		n := 0
		err := eachLine(filepath.Join(dir, segmentDir, s.name), func(raw []byte, whole bool) error {
			if n++; n%4096 == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			if !whole && i == len(list)-1 || !bytes.Contains(raw, mark) {
				return nil
			}
			l, err := ParseLine(raw)
			if err != nil {
				return err
			}
			if l.Record.Request == request && len(found) < limit {
				found = append(found, l)
			}
			return nil
		})
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, err
		}
		if len(found) == 0 && len(out) > 0 {
			break
		}
		out = append(found, out...)
	}
	return out[:min(len(out), limit)], nil
}
