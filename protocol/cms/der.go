package cms

import (
	"fmt"

	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Limits bound what [DER] takes. A field that is zero or negative means its
// default.
type Limits struct {
	Bytes    int // octets of the whole encoding; default 64 KiB
	Depth    int // levels of nested elements, the outermost being the first; default 24
	Elements int // elements in all, ends of contents not counted; default 4096
}

// DefaultLimits returns the defaults. The largest message that clients send (an
// RSA-4096 request with a chain of certificates) has a fifth of each.
func DefaultLimits() Limits { return Limits{Bytes: 64 << 10, Depth: 24, Elements: 4096} }

func (l Limits) orDefaults() Limits {
	d := DefaultLimits()
	if l.Bytes > 0 {
		d.Bytes = l.Bytes
	}
	if l.Depth > 0 {
		d.Depth = l.Depth
	}
	if l.Elements > 0 {
		d.Elements = l.Elements
	}
	return d
}

// DER returns the distinguished encoding of one BER element (X.690, sections 8
// and 10): indefinite lengths become definite, lengths minimal, and the
// universal string types primitive, their segments joined. What it returns it
// returns again unchanged.
//
// It knows no schema, so some things are left to parsers: an implicitly tagged
// string in segments stays constructed, the members of a SET OF keep their
// order, and the octets of primitive values are not looked at. Tags above 30 are
// refused; nothing that we read has them.
//
// The errors are [ErrTooLarge], [ErrTooDeep], [ErrTooMany], [ErrTrailing] and
// [ErrMalformed]. The result is in itself if that is distinguished already.
func DER(in []byte, lim Limits) ([]byte, error) {
	lim = lim.orDefaults()
	if len(in) > lim.Bytes {
		return nil, fmt.Errorf("%w: %d octets", ErrTooLarge, len(in))
	}
	s := scanner{in: in, lim: lim, join: -1}
	s.elements = make([]element, 0, min(lim.Elements, 16+len(in)/40)) // as many as messages have
	if err := s.scan(); err != nil {
		return nil, err
	}
	if !s.changed {
		return in, nil
	}
	return s.write(), nil
}

// A role says how an element is written.
type role uint8

const (
	primitive   role = iota // header and content
	constructed             // header; the contents are elements of their own
	joined                  // header of a string; the contents are its segments
	segment                 // content without a header
	inner                   // nothing: a constructed segment, its own segments follow
)

// An element is one element of the input, in the order of the input.
type element struct {
	tag        byte
	role       role
	unused     byte // of a joined BIT STRING: unused bits of its last octet
	start, end int  // the content of a primitive or segment
	body       int  // octets of the content as it will be written
}

// A frame is a constructed element whose end was not reached yet.
type frame struct {
	element    int
	end        int  // where its content ends, or, if indefinite, must have ended
	indefinite bool // it ends with an end-of-contents
}

// A scanner walks the input once with a stack of its own, so that neither depth
// nor length of a hostile input can reach the stack of the goroutine. Every
// step consumes input, and work in one step is constant.
type scanner struct {
	in       []byte
	lim      Limits
	pos      int
	elements []element
	open     []frame
	join     int  // the outermost string that is being joined, or -1
	lastBits bool // its last segment was seen: one with unused bits
	changed  bool // the output differs from the input
}

func (s *scanner) scan() error {
	for {
		if err := s.next(); err != nil {
			return err
		}
		if err := s.close(); err != nil {
			return err
		}
		if len(s.open) == 0 {
			break
		}
	}
	if s.pos != len(s.in) {
		return trailing("the element")
	}
	return nil
}

// end returns where the innermost open element must end at the latest.
func (s *scanner) end() int {
	if n := len(s.open); n > 0 {
		return s.open[n-1].end
	}
	return len(s.in)
}

// next reads one element's header, and its content if that is primitive.
func (s *scanner) next() error {
	if len(s.elements) >= s.lim.Elements {
		return fmt.Errorf("%w: over %d", ErrTooMany, s.lim.Elements)
	}
	if len(s.open) >= s.lim.Depth {
		return fmt.Errorf("%w: over %d levels", ErrTooDeep, s.lim.Depth)
	}
	bound := s.end()
	if s.pos >= bound {
		return malformed("cut short at a tag")
	}
	tag := s.in[s.pos]
	s.pos++
	length, indefinite, err := s.length(bound)
	if err != nil {
		return err
	}
	e := element{tag: tag, start: s.pos}
	if err := s.classify(&e); err != nil {
		return err
	}
	if tag&0x20 == 0 {
		if indefinite {
			return malformed("indefinite length of a primitive element")
		}
		e.end = s.pos + length
		s.pos = e.end
		s.elements = append(s.elements, e)
		return s.primitive(len(s.elements) - 1)
	}
	f := frame{element: len(s.elements), end: s.pos + length, indefinite: indefinite}
	if indefinite {
		f.end, s.changed = bound, true
	}
	s.elements = append(s.elements, e)
	s.open = append(s.open, f)
	return nil
}

// length reads a length. One that does not fit before bound is refused.
func (s *scanner) length(bound int) (n int, indefinite bool, err error) {
	const longest = 8 // octets of a length; leading zeros are legal BER, and padding
	if s.pos >= bound {
		return 0, false, malformed("cut short at a length")
	}
	first := s.in[s.pos]
	s.pos++
	switch {
	case first == 0x80:
		return 0, true, nil
	case first < 0x80:
		n = int(first)
	default:
		count := int(first & 0x7f)
		if count > longest || count > bound-s.pos {
			return 0, false, malformed("length of a length")
		}
		for range count {
			if n > bound {
				return 0, false, malformed("length beyond the end")
			}
			n = n<<8 | int(s.in[s.pos])
			s.pos++
		}
		if n < 0x80 || n>>(8*(count-1)) == 0 {
			s.changed = true
		}
	}
	if n > bound-s.pos {
		return 0, false, malformed("length beyond the end")
	}
	return n, false, nil
}

// classify checks an element's tag where it stands, and sets its role.
func (s *scanner) classify(e *element) error {
	isConstructed := e.tag&0x20 != 0
	number := cbasn1.Tag(e.tag & 0x1f)
	if number == 0x1f {
		return malformed("tag above 30")
	}
	universal := e.tag&0xc0 == 0
	if s.join >= 0 {
		// X.690, sections 8.6.4, 8.7.3 and 8.23: segments are OCTET STRINGs, of a
		// BIT STRING they are BIT STRINGs. Some encoders repeat the string's own tag.
		own := cbasn1.Tag(s.elements[s.join].tag & 0x1f)
		if !universal || number != own && (number != cbasn1.OCTET_STRING || own == cbasn1.BIT_STRING) {
			return malformed("segment of a string")
		}
		e.role = segment
		if isConstructed {
			e.role = inner
		}
		return nil
	}
	if isConstructed {
		e.role = constructed
	}
	if !universal {
		return nil
	}
	switch number {
	case 0:
		return malformed("end-of-contents out of place")
	case 16, 17: // SEQUENCE, SET
		if !isConstructed {
			return malformed("primitive SEQUENCE or SET")
		}
	case cbasn1.BOOLEAN, cbasn1.INTEGER, cbasn1.NULL, cbasn1.OBJECT_IDENTIFIER, cbasn1.ENUM, 9, 13, 14:
		if isConstructed {
			return malformed("constructed encoding of a simple type")
		}
	case cbasn1.BIT_STRING, cbasn1.OCTET_STRING, 7, 12, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 30:
		if isConstructed {
			e.role = joined
			e.tag &^= 0x20
			s.join, s.lastBits, s.changed = len(s.elements), false, true
		}
	}
	return nil
}

// primitive sets the octets that the primitive element i is written with.
func (s *scanner) primitive(i int) error {
	e := &s.elements[i]
	if e.role == segment && s.elements[s.join].tag == byte(cbasn1.BIT_STRING) {
		// X.690, section 8.6.4.1: only the last segment may have unused bits.
		if s.lastBits || e.end == e.start || s.in[e.start] > 7 || s.in[e.start] > 0 && e.end == e.start+1 {
			return malformed("segment of a BIT STRING")
		}
		s.elements[s.join].unused = s.in[e.start]
		s.lastBits = s.in[e.start] > 0
		e.start++
	}
	e.body = e.end - e.start
	s.add(e)
	return nil
}

// add adds a complete element to the body of the one that holds it.
func (s *scanner) add(e *element) {
	if n := len(s.open); n > 0 {
		size := e.body
		if e.role != segment && e.role != inner {
			size += headerSize(e.body)
		}
		s.elements[s.open[n-1].element].body += size
	}
}

// close ends all elements that end here.
func (s *scanner) close() error {
	for len(s.open) > 0 {
		f := s.open[len(s.open)-1]
		switch {
		case !f.indefinite && s.pos < f.end:
			return nil
		case f.indefinite && f.end-s.pos < 2:
			return malformed("cut short before an end-of-contents")
		case f.indefinite && (s.in[s.pos] != 0 || s.in[s.pos+1] != 0):
			return nil
		case f.indefinite:
			s.pos += 2
		}
		s.open = s.open[:len(s.open)-1]
		e := &s.elements[f.element]
		if s.join == f.element {
			s.join = -1
			if e.tag == byte(cbasn1.BIT_STRING) {
				e.body++ // the octet of unused bits
			}
		}
		s.add(e)
	}
	return nil
}

// write writes the elements into one buffer of the exact size.
func (s *scanner) write() []byte {
	top := &s.elements[0]
	out := make([]byte, 0, headerSize(top.body)+top.body)
	for i := range s.elements {
		e := &s.elements[i]
		switch e.role {
		case primitive:
			out = appendHeader(out, e.tag, e.body)
			out = append(out, s.in[e.start:e.end]...)
		case constructed:
			out = appendHeader(out, e.tag, e.body)
		case joined:
			out = appendHeader(out, e.tag, e.body)
			if e.tag == byte(cbasn1.BIT_STRING) {
				out = append(out, e.unused)
			}
		case segment:
			out = append(out, s.in[e.start:e.end]...)
		case inner:
		}
	}
	return out
}

// headerSize returns the octets of a tag and the minimal length of n.
func headerSize(n int) int {
	size := 2
	if n >= 0x80 {
		for ; n > 0; n >>= 8 {
			size++
		}
	}
	return size
}

func appendHeader(out []byte, tag byte, n int) []byte {
	out = append(out, tag)
	if n < 0x80 {
		return append(out, byte(n))
	}
	count := headerSize(n) - 2
	out = append(out, 0x80|byte(count))
	for i := count - 1; i >= 0; i-- {
		out = append(out, byte(n>>(8*i)))
	}
	return out
}
