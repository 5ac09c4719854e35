package policy

import (
	"crypto/x509"
	"net/netip"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Bounds on what a profile may say of names.
const (
	maxPattern = 512 // octets: patterns are read by people
	maxSANs    = 64  // names of one kind
	maxMulti   = 16  // values of one subject attribute
)

// subjectRule is what a profile says of one subject attribute.
type subjectRule struct {
	typ      attributeType
	pattern  *regexp.Regexp // nil where value is set
	value    string         // set by the profile, whatever was asked
	required bool
	max      int
}

// sanRule is what a profile says of one kind of subjectAltName.
type sanRule struct {
	pattern   *regexp.Regexp // nil: any value that the other rules let through
	networks  []netip.Prefix
	required  bool
	max       int
	mustEqual bool // each value equals the CN
}

// subject reads the rules about the subject.
func (l *loader) subject(c *compiled, s section) {
	m := l.mapping(s.get("subject"), s.at("subject"), keys{})
	var known []string
	for _, t := range attributeTypes {
		known = append(known, t.name)
	}
	for _, name := range m.names {
		n := m.get(name)
		t, ok := typeOf(name)
		switch {
		case ok && t.name != name:
			l.fault(n, m.at(name), "is written %s", t.name)
		case !ok && !dotted(name):
			l.fault(n, m.at(name), "is neither an attribute's name nor a dotted OID")
			l.faults[len(l.faults)-1].Nearest = Nearest(name, known)
		default:
			c.subject = append(c.subject, l.attribute(n, m.at(name), t))
		}
	}
	if s.get("subject") == nil && s.get("san") == nil {
		l.fault(s.node, s.at("subject"), "is missing, and so is san: no certificate of this profile could have a name")
	}
}

func (l *loader) attribute(n *yaml.Node, path string, t attributeType) subjectRule {
	m := l.mapping(n, path, keys{may: []string{"pattern", "value", "required", "max"}})
	r := subjectRule{typ: t, max: 1}
	pattern, value := m.get("pattern"), m.get("value")
	switch {
	case pattern != nil && value != nil:
		l.fault(n, path, "has a pattern and a value: the value is set whatever was asked, so the pattern can never be reached")
	case pattern != nil:
		r.pattern = l.pattern(pattern, m.at("pattern"))
	case value != nil:
		r.value, _ = l.text(value, m.at("value"))
		if _, say := valueFault(t, r.value); r.value != "" && say != "" {
			l.fault(value, m.at("value"), "%s", say)
		}
	case n.Kind == yaml.MappingNode:
		l.fault(n, path, "needs a pattern or a value")
	}
	if k := m.get("required"); k != nil {
		if r.required = l.boolean(k, m.at("required")); value != nil {
			l.fault(k, m.at("required"), "can never be reached: the profile sets the value")
		}
	}
	if k := m.get("max"); k != nil {
		switch r.max = l.integer(k, m.at("max"), 1, maxMulti); {
		case value != nil:
			l.fault(k, m.at("max"), "can never be reached: the profile sets the value")
		case !t.multi:
			l.fault(k, m.at("max"), "%s occurs once; only O, OU and DC may occur more often", t.name)
		}
	}
	return r
}

// pattern compiles an RE2 pattern that a whole value has to match.
func (l *loader) pattern(n *yaml.Node, path string) *regexp.Regexp {
	v, ok := l.text(n, path)
	if !ok {
		return nil
	}
	if len(v) > maxPattern {
		l.fault(n, path, "is longer than %d octets", maxPattern)
		return nil
	}
	// Alone first: `a)|(?:b` compiles only inside the anchors, and slips them.
	tree, err := syntax.Parse(v, syntax.Perl)
	if err != nil {
		l.fault(n, path, "does not compile: %v", err)
		return nil
	}
	if op := tree.Op; op == syntax.OpNoMatch || op == syntax.OpEmptyMatch || op == syntax.OpCharClass && len(tree.Rune) == 0 {
		l.fault(n, path, "can never be reached: it matches no value")
		return nil
	}
	re, err := regexp.Compile(`\A(?:` + v + `)\z`)
	if err != nil {
		l.fault(n, path, "does not compile: %v", err)
		return nil
	}
	return re
}

// sans reads the rules about subjectAltNames.
func (l *loader) sans(c *compiled, s section) {
	c.san = map[string]*sanRule{}
	n := s.get("san")
	if n == nil {
		return
	}
	m := l.mapping(n, s.at("san"), keys{may: []string{"dns", "ip", "email", "uri"}, later: map[string]string{"upn": "", "other": ""}})
	if len(m.names) == 0 && n.Kind == yaml.MappingNode {
		l.fault(n, s.at("san"), "names no kind of name; leave it out if none is allowed")
	}
	for _, kind := range m.names {
		k := keys{may: []string{"pattern", "max", "required"}}
		switch kind {
		case "dns":
			k.may = append(k.may, "must_equal")
		case "ip":
			k = keys{must: []string{"networks"}, may: []string{"max", "required"}}
		default:
			k = keys{must: []string{"pattern"}, may: []string{"max", "required"}}
		}
		c.san[kind] = l.sanRule(c, l.mapping(m.get(kind), m.at(kind), k))
	}
}

func (l *loader) sanRule(c *compiled, m section) *sanRule {
	r := &sanRule{max: 1}
	if n := m.get("pattern"); n != nil {
		r.pattern = l.pattern(n, m.at("pattern"))
	}
	if n := m.get("networks"); n != nil {
		r.networks = l.networks(n, m.at("networks"))
	}
	if n := m.get("max"); n != nil {
		r.max = l.integer(n, m.at("max"), 1, maxSANs)
	}
	if n := m.get("required"); n != nil {
		r.required = l.boolean(n, m.at("required"))
	}
	if n := m.get("must_equal"); n != nil {
		r.mustEqual = l.choice(n, m.at("must_equal"), nil, "CN") == "CN"
		cn := slices.IndexFunc(c.subject, func(s subjectRule) bool { return s.typ.name == "CN" })
		switch {
		case r.mustEqual && cn < 0:
			l.fault(n, m.at("must_equal"), "can never be met: the profile has no CN in its subject")
		case r.mustEqual && r.pattern != nil && c.subject[cn].value != "" && !r.pattern.MatchString(c.subject[cn].value):
			l.fault(n, m.at("must_equal"), "can never be met: the CN that the profile sets does not match the pattern")
		}
	} else if m.get("pattern") == nil && m.get("networks") == nil && m.node != nil && m.node.Kind == yaml.MappingNode && strings.HasSuffix(m.path, ".dns") {
		l.fault(m.node, m.path, "needs a pattern or must_equal")
	}
	return r
}

func (l *loader) networks(n *yaml.Node, path string) (out []netip.Prefix) {
	words, nodes := l.words(n, path)
	for i, w := range words {
		p, err := netip.ParsePrefix(w)
		switch {
		case err != nil || p.Addr().Is4In6():
			l.fault(nodes[i], path, "%q is no network such as 10.0.0.0/8", w)
		case p.Masked() != p:
			l.fault(nodes[i], path, "%q has bits behind its mask; the network is %s", w, p.Masked())
		default:
			out = append(out, p)
		}
	}
	return out
}

// keyUsages are the usages that an RSA key of a device may have (RFC 4055,
// section 1.2, without those of a CA).
var keyUsages = map[string]x509.KeyUsage{
	"digitalSignature":  x509.KeyUsageDigitalSignature,
	"nonRepudiation":    x509.KeyUsageContentCommitment,
	"contentCommitment": x509.KeyUsageContentCommitment,
	"keyEncipherment":   x509.KeyUsageKeyEncipherment,
	"dataEncipherment":  x509.KeyUsageDataEncipherment,
}

// ecdsaUsages are those of an ECDSA key, which encrypts nothing (RFC 5480, section 3).
var ecdsaUsages = map[string]x509.KeyUsage{
	"digitalSignature":  x509.KeyUsageDigitalSignature,
	"contentCommitment": x509.KeyUsageContentCommitment,
	"keyAgreement":      x509.KeyUsageKeyAgreement,
}

// extendedUsages are the purposes with names. Any other is a dotted OID.
var extendedUsages = map[string]string{
	"serverAuth": "1.3.6.1.5.5.7.3.1", "clientAuth": "1.3.6.1.5.5.7.3.2", "emailProtection": "1.3.6.1.5.5.7.3.4",
	"ipsecEndSystem": "1.3.6.1.5.5.7.3.5", "ipsecTunnel": "1.3.6.1.5.5.7.3.6", "ipsecUser": "1.3.6.1.5.5.7.3.7",
	"ipsecIKE": "1.3.6.1.5.5.7.3.17",
}

// deniedNames are purposes that people know by name and that no device gets.
var deniedNames = []string{"anyExtendedKeyUsage", "any", "codeSigning", "timeStamping", "OCSPSigning", "smartcardLogon", "certificateRequestAgent"}

// deniedUsages are the purposes, and arcs of them, that would make a device more
// than a device: any purpose, signing of code, time or OCSP answers, logging on
// as a person, enrolling or recovering keys for others, and being a CA.
var deniedUsages = []string{
	"2.5.29.", "1.3.6.1.5.5.7.3.3.", "1.3.6.1.5.5.7.3.8.", "1.3.6.1.5.5.7.3.9.",
	"1.3.6.1.5.5.7.3.26.", "1.3.6.1.5.5.7.3.27.", "1.3.6.1.5.5.7.3.28.", "1.3.6.1.5.5.7.3.30.", "1.3.6.1.5.5.7.3.32.",
	"1.3.6.1.5.2.3.",                               // Kerberos PKINIT
	"1.3.6.1.4.1.311.20.2.",                        // enrollment agent, smart card logon
	"1.3.6.1.4.1.311.10.3.", "1.3.6.1.4.1.311.21.", // trust lists, drivers, key recovery
	"1.3.6.1.4.1.311.10.12.", "1.3.6.1.4.1.311.10.5.", "1.3.6.1.4.1.311.10.6.", "1.3.6.1.4.1.311.2.1.", "1.3.6.1.4.1.311.61.",
	"1.2.840.113635.100.4.", // Apple's code signing
	"2.16.840.1.113730.4.1.", "2.16.840.1.113733.1.8.1.",
}

func (l *loader) usage(c *compiled, s section) {
	u := l.mapping(s.get("usage"), s.at("usage"), keys{must: []string{"key", "extended"}})
	k := l.mapping(u.get("key"), u.at("key"), keys{may: []string{"rsa", "ecdsa"}, later: map[string]string{"ed25519": noEdwards}})
	c.keyUsage = make(map[string]x509.KeyUsage)
	for _, t := range []struct {
		key, kind, say string
		known          map[string]x509.KeyUsage
	}{{"rsa", keyRSA, "an RSA key", keyUsages}, {"ecdsa", keyECDSA, "an ECDSA key", ecdsaUsages}} {
		n := k.get(t.key)
		switch {
		case n == nil && c.Key.takes(t.kind) && k.node != nil:
			l.fault(k.node, k.at(t.key), "is missing")
		case n != nil && !c.Key.takes(t.kind):
			l.fault(n, k.at(t.key), "can never be reached: the profile takes no such key")
		case n != nil:
			c.keyUsage[t.kind] = l.keyUsage(n, k.at(t.key), t.say, t.known)
		}
	}
	words, nodes := l.words(u.get("extended"), u.at("extended"))
	for i, w := range words {
		l.purpose(c, nodes[i], u.at("extended"), w)
	}
}

// keyUsage reads the usages of one type of key.
func (l *loader) keyUsage(n *yaml.Node, path, of string, known map[string]x509.KeyUsage) (all x509.KeyUsage) {
	words, nodes := l.words(n, path)
	for i, w := range words {
		usage, ok := known[w]
		switch {
		case w == "keyCertSign" || w == "cRLSign" || w == "crlSign":
			l.fault(nodes[i], path, "%s is for a CA alone", w)
		case !ok:
			l.fault(nodes[i], path, "%q is no usage of %s of a device", w, of)
			l.faults[len(l.faults)-1].Nearest = Nearest(w, sortedKeys(known))
		}
		all |= usage
	}
	return all
}

// purpose adds one extended key usage to the profile.
func (l *loader) purpose(c *compiled, n *yaml.Node, path, w string) {
	known := map[string]x509.ExtKeyUsage{
		"serverAuth": x509.ExtKeyUsageServerAuth, "clientAuth": x509.ExtKeyUsageClientAuth, "emailProtection": x509.ExtKeyUsageEmailProtection,
		"ipsecEndSystem": x509.ExtKeyUsageIPSECEndSystem, "ipsecTunnel": x509.ExtKeyUsageIPSECTunnel, "ipsecUser": x509.ExtKeyUsageIPSECUser,
	}
	oid, isOID := parseOID(w)
	if named, ok := extendedUsages[w]; ok {
		if usage, ok := known[w]; ok {
			c.usages = append(c.usages, usage)
			return
		}
		oid, _ = parseOID(named)
		c.usageOID = append(c.usageOID, oid)
		return
	}
	for name, dotted := range extendedUsages {
		if dotted == w {
			l.fault(n, path, "%s is written %s", w, name)
			return
		}
	}
	denied := slices.ContainsFunc(deniedUsages, func(arc string) bool { return strings.HasPrefix(w+".", arc) })
	switch {
	case slices.Contains(deniedNames, w), isOID && denied:
		l.fault(n, path, "%s is not for devices: it gives a power beyond proving who the device is", w)
	case !isOID:
		l.fault(n, path, "%q is neither an extended usage's name nor a dotted OID", w)
		l.faults[len(l.faults)-1].Nearest = Nearest(w, sortedKeys(extendedUsages))
	default:
		c.usageOID = append(c.usageOID, oid)
	}
}
