package jcs

import (
	"fmt"
	"strconv"
	"unicode/utf8"
)

// Parse reads exactly one value in canonical form. Objects are map[string]any,
// arrays []any, integers int64.
func Parse(b []byte) (any, error) {
	p := parser{b: b}
	v, err := p.value(0)
	if err == nil && p.at != len(b) {
		err = p.bad()
	}
	if err != nil {
		return nil, err
	}
	return v, nil
}

type parser struct {
	b  []byte
	at int
}

func (p *parser) bad() error { return fmt.Errorf("%w: at octet %d", ErrCanonical, p.at) }

// next consumes c if it is there.
func (p *parser) next(c byte) bool {
	if p.at < len(p.b) && p.b[p.at] == c {
		p.at++
		return true
	}
	return false
}

func (p *parser) value(depth int) (any, error) {
	if depth > maxDepth {
		return nil, ErrDepth
	}
	if p.at == len(p.b) {
		return nil, p.bad()
	}
	switch p.b[p.at] {
	case '"':
		return p.str()
	case '{':
		return p.object(depth)
	case '[':
		return p.array(depth)
	}
	return p.integer()
}

func (p *parser) object(depth int) (any, error) {
	m := make(map[string]any)
	p.at++
	if p.next('}') {
		return m, nil
	}
	for last, first := "", true; ; first = false {
		if p.at == len(p.b) || p.b[p.at] != '"' {
			return nil, p.bad()
		}
		key, err := p.str()
		if err != nil {
			return nil, err
		}
		if !first && compareKeys(last, key) >= 0 || !p.next(':') {
			return nil, p.bad()
		}
		if m[key], err = p.value(depth + 1); err != nil {
			return nil, err
		}
		last = key
		if p.next('}') {
			return m, nil
		}
		if !p.next(',') {
			return nil, p.bad()
		}
	}
}

func (p *parser) array(depth int) (any, error) {
	list := []any{}
	p.at++
	if p.next(']') {
		return list, nil
	}
	for {
		v, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
		if p.next(']') {
			return list, nil
		}
		if !p.next(',') {
			return nil, p.bad()
		}
	}
}

// integer accepts the one form of an integer: no sign but a minus, no leading
// zero, no minus zero.
func (p *parser) integer() (any, error) {
	start := p.at
	p.next('-')
	for p.at < len(p.b) && p.b[p.at] >= '0' && p.b[p.at] <= '9' {
		p.at++
	}
	text := string(p.b[start:p.at])
	v, err := strconv.ParseInt(text, 10, 64)
	if err != nil || strconv.FormatInt(v, 10) != text {
		p.at = start
		return nil, p.bad()
	}
	if v > maxInt || v < -maxInt {
		return nil, ErrRange
	}
	return v, nil
}

// str reads a string. Most have no escape and are copied in one piece.
func (p *parser) str() (string, error) {
	p.at++
	start := p.at
	for p.at < len(p.b) {
		switch c := p.b[p.at]; {
		case c == '"':
			s := string(p.b[start:p.at])
			if !utf8.ValidString(s) {
				return "", p.bad()
			}
			p.at++
			return s, nil
		case c == '\\':
			return p.escaped(start)
		case c < 0x20:
			return "", p.bad()
		}
		p.at++
	}
	return "", p.bad()
}

// escaped goes on where the first escape stands.
func (p *parser) escaped(start int) (string, error) {
	out := append([]byte(nil), p.b[start:p.at]...)
	for p.at < len(p.b) {
		c := p.b[p.at]
		switch {
		case c == '"':
			if !utf8.Valid(out) {
				return "", p.bad()
			}
			p.at++
			return string(out), nil
		case c == '\\':
			v, ok := p.escape()
			if !ok {
				return "", p.bad()
			}
			out = append(out, v)
		case c < 0x20:
			return "", p.bad()
		default:
			out = append(out, c)
			p.at++
		}
	}
	return "", p.bad()
}

// escape reads one escape, in the form that Append writes it.
func (p *parser) escape() (byte, bool) {
	rest := p.b[p.at:]
	if len(rest) < 2 {
		return 0, false
	}
	for _, c := range []byte("\"\\\b\t\n\f\r") {
		if rest[1] == escapeOf(c) {
			p.at += 2
			return c, true
		}
	}
	if len(rest) < 6 || string(rest[1:4]) != "u00" {
		return 0, false
	}
	v, err := strconv.ParseUint(string(rest[4:6]), 16, 8)
	if err != nil || v >= 0x20 || escapeOf(byte(v)) != 0 || hexDigits[v>>4] != rest[4] || hexDigits[v&15] != rest[5] {
		return 0, false
	}
	p.at += 6
	return byte(v), true
}
