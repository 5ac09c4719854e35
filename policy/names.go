package policy

import (
	"crypto/sha256"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// An Attribute is one attribute of a subject. Name is a name that
// [AttributeName] gives, or a dotted OID.
type Attribute struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// attributeType is an attribute type that has a name here. Max is the upper bound
// in octets of UTF-8, from the upper bounds of RFC 5280, appendix A.1 (there in
// characters), never above 128.
type attributeType struct {
	name  string
	oid   string
	max   int
	form  form
	multi bool // may occur more than once, if a profile says so
}

// form is how a value is encoded (RFC 5280, section 4.1.2.4 and appendix A.1).
type form int

const (
	directory form = iota // PrintableString where it fits, else UTF8String
	printable             // PrintableString alone
	ia5                   // IA5String
)

// attributeTypes are the types with names, as RFC 4514, RFC 4519 and RFC 5280
// have them.
var attributeTypes = []attributeType{
	{"CN", "2.5.4.3", 64, directory, false},
	{"O", "2.5.4.10", 64, directory, true},
	{"OU", "2.5.4.11", 64, directory, true},
	{"C", "2.5.4.6", 2, printable, false},
	{"L", "2.5.4.7", 128, directory, false},
	{"ST", "2.5.4.8", 128, directory, false},
	{"STREET", "2.5.4.9", 128, directory, false},
	{"SERIALNUMBER", "2.5.4.5", 64, printable, false},
	{"DC", "0.9.2342.19200300.100.1.25", 63, ia5, true},
	{"UID", "0.9.2342.19200300.100.1.1", 128, directory, false},
	{"emailAddress", "1.2.840.113549.1.9.1", 128, ia5, false},
	{"SN", "2.5.4.4", 64, directory, false},
	{"GN", "2.5.4.42", 64, directory, false},
	{"initials", "2.5.4.43", 64, directory, false},
	{"title", "2.5.4.12", 64, directory, false},
	{"dnQualifier", "2.5.4.46", 64, printable, false},
	{"pseudonym", "2.5.4.65", 128, directory, false},
	{"description", "2.5.4.13", 128, directory, false},
	{"unstructuredName", "1.2.840.113549.1.9.2", 128, ia5, false},
}

// aliases are other spellings that [ParseSubject] reads, in lower case.
var aliases = map[string]string{
	"e": "emailAddress", "email": "emailAddress", "s": "ST", "surname": "SN", "givenname": "GN",
	"commonname": "CN", "organizationname": "O", "organizationalunitname": "OU", "countryname": "C",
	"localityname": "L", "stateorprovincename": "ST", "streetaddress": "STREET", "domaincomponent": "DC", "userid": "UID",
}

// AttributeName returns the name of an attribute type, the dotted OID if it has
// none here.
func AttributeName(oid asn1.ObjectIdentifier) string {
	return canonicalName(oid.String())
}

// canonicalName returns the one spelling of a name or a dotted OID.
func canonicalName(name string) string {
	if t, ok := typeOf(name); ok {
		return t.name
	}
	return name
}

// typeOf finds a type by name, in any case, or by dotted OID.
func typeOf(name string) (attributeType, bool) {
	for _, t := range attributeTypes {
		if strings.EqualFold(t.name, name) || t.oid == name {
			return t, true
		}
	}
	if a, ok := aliases[strings.ToLower(name)]; ok {
		return typeOf(a)
	}
	return attributeType{name: name, oid: name, max: 128}, false
}

// Names are the names of a certificate.
type Names struct {
	Subject []Attribute // in the order of the certificate
	DNS     []string
	IP      []string
	Email   []string
	URI     []string

	derived bool // the profile has DNS follow from the subject
}

// Equal reports whether both are the same names. The order of the SANs does not
// count, nor that of subject attributes of different types, since the profile
// sets both; dNSNames are compared without case.
func (n Names) Equal(m Names) bool { return slices.Equal(n.canonical(), m.canonical()) }

// Binds reports whether a challenge that binds n lets a certificate with the
// names m be issued: the same names, no more and no fewer. A dNSName that a rule
// of the profile derives from the subject may be there without being bound.
func (n Names) Binds(m Names) bool {
	if m.derived && len(n.DNS) == 0 {
		m.DNS = nil
	}
	return n.Equal(m)
}

// Digest returns the hex SHA-256 of the names; names that are Equal have the
// same one, and others have not.
func (n Names) Digest() string {
	h := sha256.New()
	for _, s := range n.canonical() {
		_, _ = fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// canonical returns one list for all Names that are Equal.
func (n Names) canonical() []string {
	subject := make([]string, 0, len(n.Subject))
	for _, a := range n.Subject {
		subject = append(subject, canonicalName(a.Name))
	}
	order := make([]int, len(subject))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return strings.Compare(subject[a], subject[b]) })
	var out []string
	for _, i := range order {
		out = append(out, "subject", subject[i], n.Subject[i].Value)
	}
	out = append(out, set("dns", n.DNS, lower)...)
	out = append(out, set("ip", n.IP, canonicalIP)...)
	out = append(out, set("email", n.Email, strings.Clone)...)
	return append(out, set("uri", n.URI, strings.Clone)...)
}

// set returns the values sorted, each behind its kind.
func set(kind string, values []string, canonical func(string) string) []string {
	sorted := make([]string, len(values))
	for i, v := range values {
		sorted[i] = canonical(v)
	}
	slices.Sort(sorted)
	var out []string
	for _, v := range slices.Compact(sorted) {
		out = append(out, kind, v)
	}
	return out
}

func canonicalIP(s string) string {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.String()
	}
	return s
}

// lower folds the case of ASCII alone: a Kelvin sign is not a k.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

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
