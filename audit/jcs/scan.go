package jcs

import (
	"bytes"
	"unicode/utf8"
)

// Scan returns the length of the value that b begins with, if it is one that
// [Parse] accepts, nested as deep as depth says. It allocates nothing unless a
// key has an escape or is not ASCII.
func Scan(b []byte, depth int) (int, error) {
	p := parser{b: b}
	if err := p.skip(depth); err != nil {
		return 0, err
	}
	return p.at, nil
}

// skip does what value does and keeps nothing.
func (p *parser) skip(depth int) error {
	if depth > maxDepth {
		return ErrDepth
	}
	if p.at == len(p.b) {
		return p.bad()
	}
	switch p.b[p.at] {
	case '"':
		_, err := p.skipString()
		return err
	case '{':
		return p.skipObject(depth)
	case '[':
		return p.skipArray(depth)
	}
	return p.skipInteger()
}

func (p *parser) skipArray(depth int) error {
	p.at++
	if p.next(']') {
		return nil
	}
	for {
		if err := p.skip(depth + 1); err != nil {
			return err
		}
		if p.next(']') {
			return nil
		}
		if !p.next(',') {
			return p.bad()
		}
	}
}

func (p *parser) skipObject(depth int) error {
	p.at++
	if p.next('}') {
		return nil
	}
	var last []byte // the key before, as it is written
	for first, plain := true, true; ; first = false {
		if p.at == len(p.b) || p.b[p.at] != '"' {
			return p.bad()
		}
		start := p.at
		ascii, err := p.skipString()
		if err != nil {
			return err
		}
		key := p.b[start:p.at]
		if !first && !ordered(last, key, plain && ascii) || !p.next(':') {
			return p.bad()
		}
		if err := p.skip(depth + 1); err != nil {
			return err
		}
		last, plain = key, ascii
		if p.next('}') {
			return nil
		}
		if !p.next(',') {
			return p.bad()
		}
	}
}

// ordered compares two keys as they are written, quotes and all. Plain ones,
// without escapes and ASCII alone, need not be decoded.
func ordered(a, b []byte, plain bool) bool {
	a, b = a[1:len(a)-1], b[1:len(b)-1]
	if plain {
		return bytes.Compare(a, b) < 0
	}
	decode := func(b []byte) string {
		p := parser{b: append(append([]byte{'"'}, b...), '"')}
		s, _ := p.str() // it was read before
		return s
	}
	return compareKeys(decode(a), decode(b)) < 0
}

// skipString accepts what str accepts; plain means neither an escape nor
// anything but ASCII.
func (p *parser) skipString() (plain bool, err error) {
	plain = true
	p.at++
	start := p.at
	for p.at < len(p.b) {
		c := p.b[p.at]
		switch {
		case c == '"':
			if !plain && !utf8.Valid(p.b[start:p.at]) {
				return false, p.bad()
			}
			p.at++
			return plain, nil
		case c == '\\':
			plain = false
			if _, ok := p.escape(); !ok {
				return false, p.bad()
			}
			continue
		case c < 0x20:
			return false, p.bad()
		case c >= utf8.RuneSelf:
			plain = false
		}
		p.at++
	}
	return false, p.bad()
}

// skipInteger accepts what integer accepts.
func (p *parser) skipInteger() error {
	start := p.at
	negative := p.next('-')
	digits := p.at
	var v int64
	for p.at < len(p.b) && p.b[p.at] >= '0' && p.b[p.at] <= '9' {
		if p.at-digits == 16 { // 2^53 has as many
			p.at = start
			return ErrRange
		}
		v = v*10 + int64(p.b[p.at]-'0')
		p.at++
	}
	n := p.at - digits
	if n == 0 || p.b[digits] == '0' && (n > 1 || negative) {
		p.at = start
		return p.bad()
	}
	if v > maxInt {
		return ErrRange
	}
	return nil
}
