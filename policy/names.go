package policy

import (
	"crypto/sha256"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
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
