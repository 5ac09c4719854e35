package link

import (
	"encoding/binary"
	"fmt"
)

// An Encoder builds one message: numbers as varints, octets behind their length.
// The zero value is empty.
type Encoder struct {
	b []byte // begins with room for the frame's header
}

// Sized returns an encoder with room for n octets.
func Sized(n int) *Encoder { return &Encoder{b: make([]byte, headerLen, headerLen+n)} }

func (e *Encoder) room() {
	if e.b == nil {
		e.b = make([]byte, headerLen, headerLen+128)
	}
}

// Uint appends a number.
func (e *Encoder) Uint(n uint64) {
	e.room()
	e.b = binary.AppendUvarint(e.b, n)
}

// Int appends a number with a sign.
func (e *Encoder) Int(n int64) {
	e.room()
	e.b = binary.AppendVarint(e.b, n)
}

// Bool appends a truth value.
func (e *Encoder) Bool(v bool) {
	n := uint64(0)
	if v {
		n = 1
	}
	e.Uint(n)
}

// Bytes appends octets behind their number.
func (e *Encoder) Bytes(p []byte) {
	e.Uint(uint64(len(p)))
	e.b = append(e.b, p...)
}

// String appends a text as Bytes does.
func (e *Encoder) String(s string) {
	e.Uint(uint64(len(s)))
	e.b = append(e.b, s...)
}

// Raw appends octets as they are: they are the rest of the message.
func (e *Encoder) Raw(p []byte) {
	e.room()
	e.b = append(e.b, p...)
}

// List appends a list of octet strings.
func (e *Encoder) List(list [][]byte) {
	e.Uint(uint64(len(list)))
	for _, p := range list {
		e.Bytes(p)
	}
}

// Strings appends a list of texts.
func (e *Encoder) Strings(list []string) {
	e.Uint(uint64(len(list)))
	for _, s := range list {
		e.String(s)
	}
}

// Len is the number of octets so far.
func (e *Encoder) Len() int { return max(len(e.b)-headerLen, 0) }

// Body returns the message without a frame, for tests and fuzzing.
func (e *Encoder) Body() []byte {
	e.room()
	return e.b[headerLen:]
}

// A Decoder reads a message. After the first thing that does not fit every method
// returns zero values, and Err the reason.
type Decoder struct {
	b   []byte
	bad bool
}

// NewDecoder reads from p, and hands out parts of it.
func NewDecoder(p []byte) *Decoder { return &Decoder{b: p} }

// Uint reads what [Encoder.Uint] wrote; a number has one form only.
func (d *Decoder) Uint() uint64 {
	n, size := binary.Uvarint(d.b)
	if d.bad || size <= 0 || size > 1 && d.b[size-1] == 0 {
		d.fail()
		return 0
	}
	d.b = d.b[size:]
	return n
}

// Int reads what [Encoder.Int] wrote.
func (d *Decoder) Int() int64 {
	n, size := binary.Varint(d.b)
	if d.bad || size <= 0 || size > 1 && d.b[size-1] == 0 {
		d.fail()
		return 0
	}
	d.b = d.b[size:]
	return n
}

// Small reads a number below 256, such as one of a list of names.
func (d *Decoder) Small() int {
	n := d.Uint()
	if n > 255 {
		d.fail()
		return 0
	}
	return int(n)
}

// Bool reads what [Encoder.Bool] wrote.
func (d *Decoder) Bool() bool {
	n := d.Uint()
	if n > 1 {
		d.fail()
	}
	return n == 1 && !d.bad
}

// Bytes reads at most most octets; they are the message's own. An empty one is nil.
func (d *Decoder) Bytes(most int) []byte {
	n := d.Uint()
	if d.bad || n > uint64(len(d.b)) || n > uint64(most) {
		d.fail()
		return nil
	}
	if n == 0 {
		return nil
	}
	p := d.b[:n:n]
	d.b = d.b[n:]
	return p
}

// Fixed reads octets behind their number, which has to be that of to.
func (d *Decoder) Fixed(to []byte) {
	if p := d.Bytes(len(to)); len(p) != len(to) {
		d.fail()
	} else {
		copy(to, p)
	}
}

// String reads a text of at most most octets.
func (d *Decoder) String(most int) string { return string(d.Bytes(most)) }

// Rest reads all that is left.
func (d *Decoder) Rest() []byte {
	p := d.b
	d.b = nil
	return p
}

// Count reads the number of things that follow, each of which has at least one
// octet.
func (d *Decoder) Count(most int) int {
	n := d.Uint()
	if d.bad || n > uint64(most) || n > uint64(len(d.b)) {
		d.fail()
		return 0
	}
	return int(n)
}

// List reads at most most octet strings of at most each octets.
func (d *Decoder) List(most, each int) [][]byte {
	n := d.Count(most)
	if n == 0 {
		return nil
	}
	list := make([][]byte, n)
	for i := range list {
		list[i] = d.Bytes(each)
	}
	return list
}

// Strings reads at most most texts of at most each octets.
func (d *Decoder) Strings(most, each int) []string {
	n := d.Count(most)
	if n == 0 {
		return nil
	}
	list := make([]string, n)
	for i := range list {
		list[i] = d.String(each)
	}
	return list
}

func (d *Decoder) fail() { d.b, d.bad = nil, true }

// Err returns nil if all was read, and nothing else was there.
func (d *Decoder) Err() error {
	switch {
	case d.bad:
		return fmt.Errorf("%w: a message that is cut off or out of bounds", ErrProtocol)
	case len(d.b) > 0:
		return fmt.Errorf("%w: %d octets behind a message", ErrProtocol, len(d.b))
	}
	return nil
}
