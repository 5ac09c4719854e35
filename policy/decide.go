package policy

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// RuleAuthorization is the rule of the reason that says that authorization
// failed. The caller knows more about it than this package.
const RuleAuthorization = "authorization"

// RuleKeyType is the rule of the reason that says that no key of that type is
// certified, whatever its size.
const RuleKeyType = "key.type"

// A Reason is one way in which a request breaks a rule. Say is a sentence for
// the operator that may be told to the device too: it quotes nothing that was
// received, and has 200 octets at most. Source and Line are where the rule is
// written, or the profile's where what is missing is the rule.
type Reason struct {
	Rule   string `json:"rule"` // such as "subject.CN.pattern"
	Saw    string `json:"saw"`
	Say    string `json:"say"`
	Source string `json:"source,omitempty"`
	Line   int    `json:"line,omitempty"`
}

// A Check is one rule, what it saw, what it asks for and whether that was met.
type Check struct {
	Rule string `json:"rule"`
	Saw  string `json:"saw"`
	OK   bool   `json:"ok"`
	Say  string `json:"say"`
}

// A Decision is what a profile makes of facts: every rule that was looked at, and
// a reason for each that was broken. Issue means that there is no reason.
type Decision struct {
	Issue   bool     `json:"issue"`
	Reasons []Reason `json:"reasons"`
	Checks  []Check  `json:"checks"`
	Digest  string   `json:"digest"` // of the set of profiles

	names Names
	built *built // nil unless Issue
}

// built is what a certificate is made from.
type built struct {
	profile             *compiled
	keyUsage            x509.KeyUsage
	subject             []byte // DER of the Name
	names               Names  // with all attributes
	notBefore, notAfter time.Time
}

// Decide evaluates every rule of the profile on the facts, also when
// authorization failed or a rule is broken already. It is pure.
func (s *Set) Decide(f Facts) Decision {
	c, ok := s.profiles[f.Profile]
	if !ok {
		c = &compiled{}
	}
	r := &run{f: f, c: c, d: Decision{Digest: s.digest, Checks: make([]Check, 0, 32), Reasons: []Reason{}, names: namesOf(c, f, false)}}
	if !ok {
		r.check("profile", false, f.Profile, "the profile has to be one of the configuration")
		r.authorization()
		return r.d
	}
	r.authorization()
	r.key() // before the CSR's signature, which is of the key's type
	r.clients()
	r.subject()
	r.sans()
	r.extensions()
	r.renewal()
	r.limits()
	r.validators()
	b := r.validity()
	b.profile, b.keyUsage, b.names = c, c.keyUsage[f.Key.Type], namesOf(c, f, true)
	if len(b.names.Subject)+len(b.names.DNS)+len(b.names.IP)+len(b.names.Email)+len(b.names.URI) == 0 {
		r.check("names", false, "none", "a certificate needs a name")
	}
	if len(r.d.Reasons) == 0 {
		var err error
		b.subject, err = EncodeSubject(b.names.Subject)
		r.check("subject", err == nil, "", "the subject has to be encodable")
	}
	if r.d.Issue = len(r.d.Reasons) == 0; r.d.Issue {
		r.d.built = &b
	}
	return r.d
}

// NamesOf returns the names that a decision on the facts would have, see
// [Decision.Names].
func (s *Set) NamesOf(f Facts) Names {
	c, ok := s.profiles[f.Profile]
	if !ok {
		c = &compiled{}
	}
	return namesOf(c, f, false)
}

// Names returns the names of the certificate as it would be issued, also where it
// is refused, without the subject attributes that the profile sets by value:
// what a challenge is compared with, and what tells subjects apart.
func (d Decision) Names() Names { return d.names.clone() }

// Subject returns the subject of the certificate, with what the profile sets by
// value, or nil where none is issued.
func (d Decision) Subject() []Attribute {
	if !d.Issue || d.built == nil {
		return nil
	}
	return append([]Attribute(nil), d.built.names.Subject...)
}

// Bind returns the names that a challenge of the profile binds when it is created
// for n: without what the profile sets by value. The reasons, if any, are why no
// request for those names would ever be granted.
func (s *Set) Bind(profile string, n Names) (Names, []Reason) {
	f := Facts{Profile: profile, Subject: n.Subject, DNS: n.DNS, IP: n.IP, Email: n.Email, URI: n.URI}
	c, ok := s.profiles[profile]
	if !ok {
		return n, s.Decide(f).Reasons[:1]
	}
	r := &run{f: f, c: c, binding: true}
	r.subject()
	r.sans()
	return namesOf(c, f, false), r.d.Reasons
}

// namesOf collects the names in the order of the profile.
func namesOf(c *compiled, f Facts, all bool) Names {
	var n Names
	mentioned := map[string]bool{}
	for _, rule := range c.subject {
		mentioned[rule.typ.name] = true
		if rule.value != "" {
			if all {
				n.Subject = append(n.Subject, Attribute{rule.typ.name, rule.value})
			}
			continue
		}
		for _, a := range f.Subject {
			if canonicalName(a.Name) == rule.typ.name {
				n.Subject = append(n.Subject, Attribute{rule.typ.name, a.Value})
			}
		}
	}
	for _, a := range f.Subject { // never issued, but what was asked for
		if name := canonicalName(a.Name); !mentioned[name] {
			n.Subject = append(n.Subject, Attribute{name, a.Value})
		}
	}
	n.DNS, n.IP, n.Email, n.URI = f.DNS, f.IP, f.Email, f.URI
	dns := c.san["dns"]
	n.derived = dns != nil && dns.mustEqual
	return n.clone()
}

func (n Names) clone() Names {
	n.Subject = append([]Attribute(nil), n.Subject...)
	n.DNS, n.IP = append([]string(nil), n.DNS...), append([]string(nil), n.IP...)
	n.Email, n.URI = append([]string(nil), n.Email...), append([]string(nil), n.URI...)
	return n
}

// Template returns what the certificate is to be, if it is to be issued: subject
// (in RawSubject, and parsed), names, usages and validity. Serial, issuer and key
// are the caller's. It comes from the profile and from names that passed its
// rules; nothing else of a request is in it.
func (d Decision) Template() (*x509.Certificate, bool) {
	if !d.Issue || d.built == nil {
		return nil, false
	}
	b := d.built
	t := &x509.Certificate{
		RawSubject:  append([]byte(nil), b.subject...),
		DNSNames:    append([]string(nil), b.names.DNS...),
		KeyUsage:    b.keyUsage,
		ExtKeyUsage: append([]x509.ExtKeyUsage(nil), b.profile.usages...),
		NotBefore:   b.notBefore, NotAfter: b.notAfter,
		BasicConstraintsValid: true,
	}
	where := b.profile.Status.clone()
	t.CRLDistributionPoints, t.OCSPServer, t.IssuingCertificateURL = where.CRL, where.OCSP, where.CAIssuers
	for _, oid := range b.profile.usageOID {
		t.UnknownExtKeyUsage = append(t.UnknownExtKeyUsage, append(asn1.ObjectIdentifier(nil), oid...))
	}
	t.EmailAddresses = append(t.EmailAddresses, b.names.Email...)
	for _, s := range b.names.IP {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, false // unreachable: checked by its rule
		}
		t.IPAddresses = append(t.IPAddresses, net.IP(a.AsSlice()))
	}
	for _, s := range b.names.URI {
		u, err := url.Parse(s)
		if err != nil {
			return nil, false // unreachable: checked by its rule
		}
		t.URIs = append(t.URIs, u)
	}
	var rdns pkix.RDNSequence
	if _, err := asn1.Unmarshal(b.subject, &rdns); err != nil {
		return nil, false // unreachable: encoded here
	}
	t.Subject.FillFromRDNSequence(&rdns)
	return t, true
}

// EncodeSubject encodes a Name, one attribute an RDN, each value in the string
// type that RFC 5280, section 4.1.2.4, asks for. An attribute whose name is neither
// known nor a dotted OID is an error; its value is not looked at.
func EncodeSubject(subject []Attribute) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, a := range subject {
			t, _ := typeOf(a.Name)
			oid, _ := parseOID(t.oid)
			b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(oid)
					b.AddASN1(stringType(t.form, a.Value), func(b *cryptobyte.Builder) { b.AddBytes([]byte(a.Value)) })
				})
			})
		}
	})
	return b.Bytes()
}

func stringType(f form, v string) cbasn1.Tag {
	switch {
	case f == ia5:
		return cbasn1.IA5String
	case f == printable, printableString.MatchString(v):
		return cbasn1.PrintableString
	default:
		return cbasn1.UTF8String
	}
}

// run is one evaluation.
type run struct {
	f       Facts
	c       *compiled
	d       Decision
	binding bool // a challenge is made: what the profile derives need not be named
}

// maxSaw bounds what a check quotes of a request, in octets.
const maxSaw = 256

// check records a rule, and a reason if it is broken.
func (r *run) check(rule string, ok bool, saw, say string) {
	if !printableText(saw) && saw != "" {
		saw = strconv.QuoteToASCII(saw)
	}
	if len(saw) > maxSaw {
		saw = strings.ToValidUTF8(saw[:maxSaw-3], "") + "..."
	}
	r.d.Checks = append(r.d.Checks, Check{rule, saw, ok, say})
	if !ok {
		r.d.Reasons = append(r.d.Reasons, Reason{Rule: rule, Saw: saw, Say: say, Source: r.c.Source, Line: r.line(rule)})
	}
}

// line returns where the rule is written: its own key, or the nearest one above.
func (r *run) line(rule string) int {
	for rule != "" {
		if line, ok := r.c.lines[rule]; ok {
			return line
		}
		rule = rule[:max(strings.LastIndexByte(rule, '.'), 0)]
	}
	return r.c.Line
}
