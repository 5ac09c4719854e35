package plan

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"
)

// RehearsalMark stands in every name that a rehearsal of a production plan
// gives, and in the label of every rehearsal's token.
const RehearsalMark = "REHEARSAL"

// An attributeType is a type of attribute with the most characters of its value.
type attributeType struct {
	name  string
	oid   asn1.ObjectIdentifier
	limit int
}

// attributeTypes are the types that a subject may have, by their names in RFC
// 4514, section 3, and X.520. The limit is the upper bound of RFC 5280, appendix A.1.
func attributeTypes() []attributeType {
	return []attributeType{
		{"CN", asn1.ObjectIdentifier{2, 5, 4, 3}, 64},
		{"O", asn1.ObjectIdentifier{2, 5, 4, 10}, 64},
		{"OU", asn1.ObjectIdentifier{2, 5, 4, 11}, 64},
		{"C", asn1.ObjectIdentifier{2, 5, 4, 6}, 2},
		{"L", asn1.ObjectIdentifier{2, 5, 4, 7}, 128},
		{"ST", asn1.ObjectIdentifier{2, 5, 4, 8}, 128},
		{"SERIALNUMBER", asn1.ObjectIdentifier{2, 5, 4, 5}, 64},
		{"DC", asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 25}, 63},
	}
}

// An attribute is one attribute of a name; kind is an index into attributeTypes.
type attribute struct {
	kind  int
	value string
}

// A Subject is a distinguished name of single-valued RDNs. The zero value is no name.
type Subject struct{ rdns []attribute } // in the order of the DER

// ParseSubject reads a subject in the form of RFC 4514, such as
// `CN=Example Device CA,O=Example Corp,C=US`. The string names the last RDN first
// (section 2.1). Multi-valued RDNs, values in #hex form and types that a CA's
// name does not need are refused.
func ParseSubject(s string) (Subject, error) {
	if !utf8.ValidString(s) {
		return Subject{}, errors.New("a subject is UTF-8")
	}
	var out Subject
	for rest, more := s, true; more; {
		name, after, ok := strings.Cut(rest, "=")
		if !ok {
			return Subject{}, fmt.Errorf("%q has no value; write TYPE=value", rest)
		}
		name = strings.ToUpper(strings.TrimSpace(name))
		kind := slices.IndexFunc(attributeTypes(), func(t attributeType) bool { return t.name == name })
		if kind < 0 {
			return Subject{}, fmt.Errorf("attribute type %q is not supported", name)
		}
		value, tail, again, err := subjectValue(after)
		if err == nil {
			err = checkValue(kind, value)
		}
		if err != nil {
			return Subject{}, fmt.Errorf("%s: %w", name, err)
		}
		out.rdns = append(out.rdns, attribute{kind, value})
		rest, more = tail, again
	}
	slices.Reverse(out.rdns)
	return out, nil
}

func checkValue(kind int, v string) error {
	t := attributeTypes()[kind]
	switch {
	case v == "":
		return errors.New("the value is empty")
	case utf8.RuneCountInString(v) > t.limit:
		return fmt.Errorf("the value has more than %d characters", t.limit)
	case strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return errors.New("the value has a control character in it")
	case t.name == "C" && (len(v) != 2 || v != strings.ToUpper(v) || !printable(v)):
		return fmt.Errorf("%q is no two-letter country code", v)
	case (t.name == "SERIALNUMBER" || t.name == "DC") && !printable(v):
		return errors.New("the value has characters that this type does not allow")
	}
	return nil
}

// printable reports whether v fits a PrintableString without its specials.
func printable(v string) bool {
	return !strings.ContainsFunc(v, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != ' '
	})
}

// subjectValue reads one value up to its comma (RFC 4514, section 3, "string").
func subjectValue(in string) (value, rest string, more bool, err error) {
	if strings.HasPrefix(in, "#") || strings.HasPrefix(in, " ") {
		return "", "", false, errors.New("a leading space or # needs a backslash")
	}
	var b []byte
	bare := false // the last character is an unescaped space
	for i := 0; i < len(in); i++ {
		c := in[i]
		switch {
		case c == ',' && bare || c == ',' && i == len(in)-1:
			return "", "", false, errors.New("a space or nothing stands before or after a comma")
		case c == ',':
			return string(b), in[i+1:], true, nil
		case c == '\\' && i+1 < len(in) && strings.IndexByte(` "#+,;<=>\`, in[i+1]) >= 0:
			i++
			b, bare = append(b, in[i]), false
		case strings.IndexByte(`"+;<>\`, c) >= 0:
			return "", "", false, fmt.Errorf("%q needs a backslash", c)
		default:
			b, bare = append(b, c), c == ' '
		}
	}
	if bare {
		return "", "", false, errors.New("a trailing space needs a backslash")
	}
	return string(b), "", false, nil
}

// String returns the subject in the form of RFC 4514.
func (s Subject) String() string {
	var out []string
	for _, a := range slices.Backward(s.rdns) {
		var b strings.Builder
		for i := range len(a.value) {
			c := a.value[i]
			edge := (i == 0 || i == len(a.value)-1) && c == ' ' || i == 0 && c == '#'
			if edge || strings.IndexByte(`"+,;<>\`, c) >= 0 {
				b.WriteByte('\\')
			}
			b.WriteByte(c)
		}
		out = append(out, attributeTypes()[a.kind].name+"="+b.String())
	}
	return strings.Join(out, ",")
}

// DER encodes the name as RFC 5280, section 4.1.2.4, has it: DC in IA5String,
// C and serialNumber in PrintableString, the rest in UTF8String.
func (s Subject) DER() ([]byte, error) {
	var seq pkix.RDNSequence
	for _, a := range s.rdns {
		t, tag := attributeTypes()[a.kind], asn1.TagUTF8String
		switch t.name {
		case "DC":
			tag = asn1.TagIA5String
		case "C", "SERIALNUMBER":
			tag = asn1.TagPrintableString
		}
		v := asn1.RawValue{Class: asn1.ClassUniversal, Tag: tag, Bytes: []byte(a.value)}
		seq = append(seq, pkix.RelativeDistinguishedNameSET{{Type: t.oid, Value: v}})
	}
	return asn1.Marshal(seq)
}

// marked returns the name with the rehearsal's mark in front of its common
// name, or in an organizational unit if it has none.
func (s Subject) marked() Subject {
	out := Subject{slices.Clone(s.rdns)}
	for i, a := range out.rdns {
		if attributeTypes()[a.kind].name == "CN" {
			out.rdns[i].value = cutRunes(RehearsalMark+" "+a.value, attributeTypes()[a.kind].limit)
			return out
		}
	}
	return Subject{append(out.rdns, attribute{2, RehearsalMark})}
}

// cutRunes shortens s to at most n characters.
func cutRunes(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n])
	}
	return s
}

// CutBytes shortens s to at most n bytes, between characters.
func CutBytes(s string, n int) string {
	for len(s) > n {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return s
}

// Names are the names of a server.
type Names struct {
	DNS []string
	IP  []netip.Addr
}

// Add reads a DNS name, or an address.
func (n *Names) Add(s string) error {
	if ip, err := netip.ParseAddr(s); err == nil {
		if ip.Zone() != "" || ip.IsUnspecified() || slices.Contains(n.IP, ip) {
			return fmt.Errorf("%q has a zone, is unspecified or is given twice", s)
		}
		n.IP = append(n.IP, ip.Unmap())
		return nil
	}
	if len(s) > 253 || s != strings.ToLower(s) || slices.Contains(n.DNS, s) {
		return fmt.Errorf("%q is no DNS name in lower case, or is given twice", s)
	}
	for label := range strings.SplitSeq(s, ".") {
		bad := strings.ContainsFunc(label, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' })
		if bad || label == "" || len(label) > 63 || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
			return fmt.Errorf("%q is neither a DNS name nor an address; wildcards are not supported", s)
		}
	}
	n.DNS = append(n.DNS, s)
	return nil
}

// All returns the names in words, the addresses last.
func (n Names) All() []string {
	out := slices.Clone(n.DNS)
	for _, ip := range n.IP {
		out = append(out, ip.String())
	}
	return out
}
