// Package jcs writes and reads the canonical JSON of RFC 8785, cut down to what
// a record may hold: objects, arrays, strings, and integers that a double can
// tell from their neighbors.
//
// # What a caller may rely on
//
// [Append] writes the one canonical form of a value, and [Parse] accepts nothing
// else: for every input that it accepts, Append gives the same bytes back.
//
// # What it does not protect against
//
// It gives no meaning to a value; a record's fields are its reader's to check.
package jcs

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// Errors of this package; an error names the offset too.
var (
	ErrType      = errors.New("jcs: not a string, integer, array or object")
	ErrRange     = errors.New("jcs: an integer beyond 2^53-1")
	ErrCanonical = errors.New("jcs: not in canonical form")
	ErrDepth     = errors.New("jcs: nested too deep")
)

// maxDepth bounds nesting; a record needs five levels.
const maxDepth = 16

// maxInt is the largest integer that JSON readers agree on (RFC 8785, section
// 3.2.2.3).
const maxInt = 1<<53 - 1

// Append appends the canonical form of v, which is a string, an int, int64 or
// uint64, a []string, a []any, or a map[string]any of such values. Octets that
// are no UTF-8 become U+FFFD.
func Append(dst []byte, v any) ([]byte, error) { return appendValue(dst, v, 0) }

func appendValue(dst []byte, v any, depth int) ([]byte, error) {
	if depth > maxDepth {
		return nil, ErrDepth
	}
	switch v := v.(type) {
	case string:
		return AppendString(dst, v), nil
	case int:
		return appendInt(dst, int64(v))
	case int64:
		return appendInt(dst, v)
	case uint64:
		if v > maxInt {
			return nil, ErrRange
		}
		return strconv.AppendUint(dst, v, 10), nil
	case []string:
		if depth == maxDepth && len(v) > 0 {
			return nil, ErrDepth
		}
		return appendArray(dst, len(v), func(dst []byte, i int) ([]byte, error) { return AppendString(dst, v[i]), nil })
	case []any:
		return appendArray(dst, len(v), func(dst []byte, i int) ([]byte, error) { return appendValue(dst, v[i], depth+1) })
	case map[string]any:
		return appendObject(dst, v, depth)
	default:
		return nil, fmt.Errorf("%w: %T", ErrType, v)
	}
}

func appendInt(dst []byte, v int64) ([]byte, error) {
	if v > maxInt || v < -maxInt {
		return nil, ErrRange
	}
	return strconv.AppendInt(dst, v, 10), nil
}

func appendArray(dst []byte, n int, element func([]byte, int) ([]byte, error)) ([]byte, error) {
	dst = append(dst, '[')
	for i := range n {
		if i > 0 {
			dst = append(dst, ',')
		}
		var err error
		if dst, err = element(dst, i); err != nil {
			return nil, err
		}
	}
	return append(dst, ']'), nil
}

func appendObject(dst []byte, m map[string]any, depth int) ([]byte, error) {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, compareKeys)
	dst = append(dst, '{')
	for i, k := range keys {
		if i > 0 {
			if compareKeys(keys[i-1], k) == 0 { // two keys that are no UTF-8 can become one
				return nil, fmt.Errorf("%w: key %q twice", ErrCanonical, k)
			}
			dst = append(dst, ',')
		}
		dst = append(AppendString(dst, k), ':')
		var err error
		if dst, err = appendValue(dst, m[k], depth+1); err != nil {
			return nil, fmt.Errorf("%s: %w", k, err)
		}
	}
	return append(dst, '}'), nil
}

// compareKeys orders by UTF-16 code units (RFC 8785, section 3.2.3), which is
// not the order of UTF-8 beyond the basic plane.
func compareKeys(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			continue
		}
		if a[i] < utf8.RuneSelf && b[i] < utf8.RuneSelf {
			return int(a[i]) - int(b[i])
		}
		return slices.Compare(utf16.Encode([]rune(a)), utf16.Encode([]rune(b)))
	}
	return len(a) - len(b)
}

const hexDigits = "0123456789abcdef"

// AppendString appends s as a canonical JSON string (RFC 8785, section 3.2.2.2).
func AppendString(dst []byte, s string) []byte {
	dst = append(slices.Grow(dst, len(s)+2), '"')
	plain := 0 // from here on nothing needs another form
	for i := 0; i < len(s); {
		c := s[i]
		if c >= 0x20 && c < utf8.RuneSelf && c != '"' && c != '\\' {
			i++
			continue
		}
		dst = append(dst, s[plain:i]...)
		switch e := escapeOf(c); {
		case c >= utf8.RuneSelf:
			r, n := utf8.DecodeRuneInString(s[i:])
			dst = utf8.AppendRune(dst, r) // U+FFFD where s is no UTF-8
			i += n - 1
		case e != 0:
			dst = append(dst, '\\', e)
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		i++
		plain = i
	}
	return append(append(dst, s[plain:]...), '"')
}

// escapeOf returns the letter of a two-character escape, or 0.
func escapeOf(c byte) byte {
	switch c {
	case '"', '\\':
		return c
	case '\b':
		return 'b'
	case '\t':
		return 't'
	case '\n':
		return 'n'
	case '\f':
		return 'f'
	case '\r':
		return 'r'
	}
	return 0
}
