package policy

import (
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// ErrSubject is wrapped by the errors of [ParseSubject].
var ErrSubject = errors.New("not an RFC 4514 subject")

// Limits on what ParseSubject reads: far above any subject that a profile lets
// through.
const (
	maxSubject    = 8 << 10 // octets
	maxAttributes = 64
)

// ParseSubject reads an RFC 4514 subject, such as `CN=a.corp.example,O=Corp\, Inc`.
// The string names the last RDN first (section 2.1), so the attributes come back
// in the opposite order, which is that of the DER. Types are names in any case or
// dotted OIDs. A multi-valued RDN, a value in #hex form and an unescaped special
// character are refused.
func ParseSubject(rfc4514 string) ([]Attribute, error) {
	if rfc4514 == "" {
		return nil, nil
	}
	if len(rfc4514) > maxSubject || !utf8.ValidString(rfc4514) {
		return nil, fmt.Errorf("%w: too long, or not UTF-8", ErrSubject)
	}
	var out []Attribute
	for rest, more := rfc4514, true; more; {
		name, after, ok := strings.Cut(rest, "=")
		if !ok {
			return nil, fmt.Errorf("%w: %q has no value; write TYPE=value", ErrSubject, rest)
		}
		a := Attribute{Name: canonicalName(strings.TrimLeft(name, " "))}
		if _, known := typeOf(a.Name); !known && !dotted(a.Name) {
			return nil, fmt.Errorf("%w: unknown attribute type %q", ErrSubject, a.Name)
		}
		var err error
		if a.Value, rest, more, err = parseValue(after); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrSubject, a.Name, err)
		}
		if out = append(out, a); len(out) > maxAttributes {
			return nil, fmt.Errorf("%w: more than %d attributes", ErrSubject, maxAttributes)
		}
	}
	slices.Reverse(out)
	if len(FormatSubject(out)) > maxSubject { // what cannot be printed takes three octets there
		return nil, fmt.Errorf("%w: too long", ErrSubject)
	}
	return out, nil
}

// parseValue reads one value up to its comma, and reports whether there was one.
func parseValue(in string) (value, rest string, more bool, err error) {
	if strings.HasPrefix(in, "#") {
		return "", "", false, errors.New("a value in #hex form")
	}
	if strings.HasPrefix(in, " ") {
		return "", "", false, errors.New("a leading space needs a backslash")
	}
	var b []byte
	bare := false // the last character is an unescaped space
	i := 0
loop:
	for ; i < len(in); i++ {
		switch c := in[i]; c {
		case ',':
			rest, more = in[i+1:], true
			break loop
		case '+':
			return "", "", false, errors.New("more than one attribute in one RDN")
		case '"', ';', '<', '>', 0:
			return "", "", false, fmt.Errorf("%q needs a backslash", string(c))
		case '\\':
			octet, used, err := unescape(in[i+1:])
			if err != nil {
				return "", "", false, err
			}
			b, bare, i = append(b, octet), false, i+used
		default:
			b, bare = append(b, c), c == ' '
		}
	}
	switch {
	case bare:
		return "", "", false, errors.New("a trailing space needs a backslash")
	case len(b) == 0:
		return "", "", false, errors.New("no value")
	case !utf8.Valid(b):
		return "", "", false, errors.New("the escaped octets are not UTF-8")
	}
	return string(b), rest, more, nil
}

// unescape reads what follows a backslash: a special character or a hex pair.
func unescape(in string) (octet byte, used int, err error) {
	if in == "" {
		return 0, 0, errors.New("a backslash at the end")
	}
	if strings.IndexByte(` "#+,;<=>\`, in[0]) >= 0 {
		return in[0], 1, nil
	}
	if len(in) >= 2 {
		if b, err := hex.DecodeString(in[:2]); err == nil {
			return b[0], 2, nil
		}
	}
	return 0, 0, errors.New("a backslash before neither a special character nor two hex digits")
}

// FormatSubject writes a subject as RFC 4514 has it, the last attribute first.
// [ParseSubject] reads it back.
func FormatSubject(subject []Attribute) string {
	parts := make([]string, 0, len(subject))
	for _, a := range slices.Backward(subject) {
		parts = append(parts, a.Name+"="+escape(a.Value))
	}
	return strings.Join(parts, ",")
}

// escape writes a value by RFC 4514, section 2.4; what can not be printed
// becomes hex pairs.
func escape(v string) string {
	var b strings.Builder
	for i := 0; i < len(v); {
		r, n := utf8.DecodeRuneInString(v[i:])
		edge := i == 0 || i+n == len(v)
		switch {
		case r == utf8.RuneError && n == 1, !strconv.IsPrint(r):
			for _, c := range []byte(v[i : i+n]) {
				fmt.Fprintf(&b, `\%02X`, c)
			}
		case strings.ContainsRune(`"+,;<>\`, r), r == ' ' && edge, r == '#' && i == 0:
			b.WriteByte('\\')
			b.WriteRune(r)
		default:
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}

// parseOID reads a dotted OID whose arcs fit 31 bits, as the encoder needs them.
func parseOID(s string) (asn1.ObjectIdentifier, bool) {
	if len(s) > 128 {
		return nil, false
	}
	var oid asn1.ObjectIdentifier
	for part := range strings.SplitSeq(s, ".") {
		n, err := strconv.ParseUint(part, 10, 31)
		if err != nil || strconv.FormatUint(n, 10) != part {
			return nil, false
		}
		oid = append(oid, int(n))
	}
	ok := len(oid) >= 2 && oid[0] <= 2 && (oid[0] == 2 || oid[1] < 40) && oid[1] < 1<<30
	return oid, ok
}

func dotted(s string) bool {
	_, ok := parseOID(s)
	return ok
}
