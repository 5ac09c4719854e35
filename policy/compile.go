package policy

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// compiled is a profile as a decision uses it.
type compiled struct {
	Profile
	lines    map[string]int // path inside the profile -> line
	subject  []subjectRule  // in the order of the certificate
	san      map[string]*sanRule
	keyUsage map[string]x509.KeyUsage // by the type of the key
	usages   []x509.ExtKeyUsage
	usageOID []asn1.ObjectIdentifier
}

// Bounds on what a profile may say.
const (
	maxValidity = 10 * year
	maxBackdate = 24 * time.Hour // some clients' clocks are hours slow; more would hide when it was issued
	maxTTL      = 30 * day
	maxAge      = 20 * year
	minRSA      = 2048
	maxRSA      = 8192 // larger ones cost a verifier more than they give
)

var (
	profileName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`) // one segment of a URL path
	issuerName  = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
	lintRule    = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,99}$`)
)

// profile reads one profile; nil if it has not even a name.
func (l *loader) profile(n *yaml.Node, path string) *compiled {
	s := l.mapping(n, path, keys{
		must: []string{"name", "protocols", "issuer", "challenge", "approve", "key", "usage", "validity"},
		may:  []string{"subject", "san", "renewal", "limits", "clients", "ca_certificates", "reply", "lint", "pending", "status"},
	})
	c := &compiled{lines: map[string]int{}}
	c.Source, c.Line = l.file, n.Line
	l.index(c, n, "")
	c.Name, _ = l.text(s.get("name"), s.at("name"))
	if c.Name != "" && !profileName.MatchString(c.Name) {
		l.fault(s.get("name"), s.at("name"), "%q has to be up to 63 lower-case letters, digits, - and _: it is part of a URL", c.Name)
	}
	c.Protocols = l.protocols(s)
	c.Issuer, _ = l.text(s.get("issuer"), s.at("issuer"))
	if c.Issuer != "" && !issuerName.MatchString(c.Issuer) {
		l.fault(s.get("issuer"), s.at("issuer"), "%q is not a name of an issuer", c.Issuer)
	}
	c.Approve = l.choice(s.get("approve"), s.at("approve"), nil, ApproveAutomatic, ApproveManual, ApproveAlways)
	l.pending(c, s)
	l.challenge(c, s)
	l.key(c, s)
	l.subject(c, s)
	l.sans(c, s)
	l.usage(c, s)
	l.validity(c, s)
	l.renewal(c, s)
	l.limits(c, s)
	l.clients(c, s)
	l.answerable(c, s)
	l.answers(c, s)
	l.lint(c, s)
	l.status(c, s)
	if c.Name == "" {
		return nil
	}
	return c
}

// index notes the line of each key, so that a reason can say where its rule is.
func (l *loader) index(c *compiled, n *yaml.Node, path string) {
	if n.Kind != yaml.MappingNode {
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		at := strings.TrimPrefix(path+"."+n.Content[i].Value, ".")
		c.lines[at] = n.Content[i].Line
		l.index(c, n.Content[i+1], at)
	}
}

func (l *loader) protocols(s section) []string {
	words, nodes := l.words(s.get("protocols"), s.at("protocols"))
	for i, w := range words {
		switch w {
		case "scep":
		case "est", "acme", "cmp":
			l.fault(nodes[i], s.at("protocols"), "%q is not supported by this version", w)
		default:
			l.fault(nodes[i], s.at("protocols"), "%q is no protocol; this version has scep", w)
		}
	}
	return words
}

// Bounds on requests that wait, and how they wait where the profile does not say.
const (
	maxPendingTTL = 30 * day
	maxPending    = 100_000
	pendingTTL    = 7 * day
	pendingMax    = 1000
)

func (l *loader) pending(c *compiled, s section) {
	n := s.get("pending")
	switch c.Approve {
	case ApproveManual, ApproveAlways:
		c.Pending = Pending{TTL: pendingTTL, Max: pendingMax}
	case ApproveAutomatic:
		if n != nil {
			l.fault(n, s.at("pending"), "means nothing where approve is automatic: no request waits")
		}
		return
	}
	m := l.mapping(n, s.at("pending"), keys{may: []string{"ttl", "max"}})
	if ttl := m.get("ttl"); ttl != nil {
		c.Pending.TTL = l.duration(ttl, m.at("ttl"), maxPendingTTL)
	}
	if most := m.get("max"); most != nil {
		c.Pending.Max = l.integer(most, m.at("max"), 1, maxPending)
	}
}

// noEdwards is why no Ed25519 key is certified by SCEP.
const noEdwards = ": SCEP encrypts its reply to the device's key, or under the challenge for an ECDSA key"

func (l *loader) key(c *compiled, s section) {
	k := l.mapping(s.get("key"), s.at("key"), keys{may: []string{"rsa", "ecdsa", "reuse"}, later: map[string]string{"ed25519": noEdwards}})
	if k.node != nil && k.node.Kind == yaml.MappingNode && k.get("rsa") == nil && k.get("ecdsa") == nil {
		l.fault(k.node, k.at("rsa"), "is missing, and so is ecdsa: one of them is needed")
	}
	if n := k.get("rsa"); n != nil {
		r := l.mapping(n, k.at("rsa"), keys{must: []string{"min", "max"}})
		c.Key.RSA = RSARule{
			Min: l.integer(r.get("min"), r.at("min"), minRSA, maxRSA),
			Max: l.integer(r.get("max"), r.at("max"), minRSA, maxRSA),
		}
		if r.get("min") != nil && r.get("max") != nil && c.Key.RSA.Min > c.Key.RSA.Max {
			l.fault(r.get("min"), r.at("min"), "min is more than max: no key can meet both")
		}
	}
	if n := k.get("ecdsa"); n != nil {
		e := l.mapping(n, k.at("ecdsa"), keys{must: []string{"curves"}})
		curves, nodes := l.words(e.get("curves"), e.at("curves"))
		for i, w := range curves {
			if !slices.Contains(curveNames, w) {
				l.fault(nodes[i], e.at("curves"), "%q is none of %s", w, strings.Join(curveNames, ", "))
			}
		}
		c.Key.ECDSA.Curves = curves
	}
	if c.Key.Reuse = "same-subject"; k.get("reuse") != nil {
		c.Key.Reuse = l.choice(k.get("reuse"), k.at("reuse"), nil, "same-subject", "any")
	}
}

// curveNames are the curves whose keys are certified.
var curveNames = []string{"P-256", "P-384"}

func (l *loader) validity(c *compiled, s section) {
	v := l.mapping(s.get("validity"), s.at("validity"), keys{must: []string{"for"}, may: []string{"backdate"}})
	c.Validity.For = l.duration(v.get("for"), v.at("for"), maxValidity)
	if n := v.get("backdate"); n != nil {
		c.Validity.Backdate = l.duration(n, v.at("backdate"), maxBackdate)
		if c.Validity.For > 0 && c.Validity.Backdate >= c.Validity.For {
			l.fault(n, v.at("backdate"), "leaves nothing of the validity, which begins that much before the time of issue")
		}
	}
}

func (l *loader) renewal(c *compiled, s section) {
	n := s.get("renewal")
	if n == nil {
		return
	}
	r := l.mapping(n, s.at("renewal"), keys{must: []string{"window", "max_count"}, may: []string{"max_age", "new_key", "old"}})
	v := Renewal{Allowed: true, NewKey: "required", Old: "keep"}
	v.Window = l.window(r.get("window"), r.at("window"), c.Validity.For)
	v.MaxCount = l.integer(r.get("max_count"), r.at("max_count"), 1, 1000)
	if k := r.get("new_key"); k != nil {
		v.NewKey = l.choice(k, r.at("new_key"), nil, "required", "optional")
	}
	if o := r.get("old"); o != nil {
		v.Old = l.choice(o, r.at("old"), map[string]string{"revoke": ""}, "keep")
	}
	if a := r.get("max_age"); a != nil {
		v.MaxAge = l.duration(a, r.at("max_age"), maxAge)
		longest := time.Duration(v.MaxCount+1) * min(c.Validity.For, maxAge)
		switch {
		case v.MaxAge == 0 || c.Validity.For == 0: // a fault is there already
		case v.MaxAge < c.Validity.For:
			l.fault(a, r.at("max_age"), "is less than validity.for, which could never be reached")
		case v.MaxAge > longest:
			l.fault(a, r.at("max_age"), "can never be reached: max_count allows %d certificates of %s, which is %s",
				v.MaxCount+1, sayDuration(c.Validity.For), sayDuration(longest))
		}
	}
	c.Renewal = v
}

// window reads a percentage or a duration.
func (l *loader) window(n *yaml.Node, path string, life time.Duration) Window {
	v, ok := l.scalar(n, path, "!!str", "a share of the certificate's life such as 33%, or a duration such as 30d")
	if !ok {
		return Window{}
	}
	if share, ok := strings.CutSuffix(v, "%"); ok {
		var percent int
		if _, err := fmt.Sscanf(share, "%d", &percent); err != nil || !decimal.MatchString(share) || percent < 1 || percent > 100 {
			l.fault(n, path, "%q has to be from 1%% to 100%%", v)
			return Window{}
		}
		return Window{Percent: percent}
	}
	d := l.duration(n, path, maxValidity)
	if d > 0 && life > 0 && d > life {
		l.fault(n, path, "is longer than validity.for: write 100%% if a certificate may be renewed at any time")
	}
	return Window{Duration: d}
}

func (l *loader) limits(c *compiled, s section) {
	c.Limits.ActivePerSubject = 1
	m := l.mapping(s.get("limits"), s.at("limits"), keys{may: []string{"active_per_subject", "per_minute"}})
	if n := m.get("active_per_subject"); n != nil {
		c.Limits.ActivePerSubject = l.integer(n, m.at("active_per_subject"), 1, 1_000_000)
	}
	if n := m.get("per_minute"); n != nil {
		c.Limits.PerMinute = l.integer(n, m.at("per_minute"), 1, 1_000_000)
	}
}

func (l *loader) clients(c *compiled, s section) {
	digests := []string{"SHA-256", "SHA-384", "SHA-512"}
	ciphers := []string{"AES-128-CBC", "AES-192-CBC", "AES-256-CBC"}
	c.Clients = Clients{Digests: digests, Ciphers: ciphers}
	n := s.get("clients")
	if n == nil {
		return
	}
	m := l.mapping(n, s.at("clients"), keys{may: []string{"digests", "ciphers", "legacy", "signer_key", "password_recipient"}})
	if m.get("digests") != nil {
		c.Clients.Digests = l.algorithms(m, "digests", digests, "legacy: {sha1: true}")
	}
	if i := slices.Index(c.Clients.Digests, "SHA-256"); i >= 0 && !slices.Contains(c.Clients.Digests, "SHA-384") {
		// strongSwan 5.9.8 uses SHA-256 only where SHA-384 is offered too, and what
		// is offered has to work (RFC 8894, section 3.5.2).
		c.Clients.Digests = slices.Insert(c.Clients.Digests, i+1, "SHA-384")
	}
	if m.get("ciphers") != nil {
		c.Clients.Ciphers = l.algorithms(m, "ciphers", ciphers, "legacy: {des3: true}")
	}
	g := l.mapping(m.get("legacy"), m.at("legacy"), keys{may: []string{"sha1", "des3"}})
	c.Clients.SHA1 = g.get("sha1") != nil && l.boolean(g.get("sha1"), g.at("sha1"))
	c.Clients.DES3 = g.get("des3") != nil && l.boolean(g.get("des3"), g.at("des3"))
	if k := m.get("signer_key"); k != nil {
		c.Clients.AnySigner = l.choice(k, m.at("signer_key"), nil, "same", "any") == "any"
	}
	if k := m.get("password_recipient"); k != nil {
		c.Clients.PasswordRecipient = l.boolean(k, m.at("password_recipient"))
	}
}

// answerable looks at whether devices could have their answers: an ECDSA key cannot
// be encrypted to (RFC 8894, section 3.1).
func (l *loader) answerable(c *compiled, s section) {
	clients := s.get("clients")
	switch ec := c.Key.takes(keyECDSA); {
	case ec && !c.Clients.PasswordRecipient && !c.Clients.AnySigner:
		l.fault(s.get("key"), s.at("key")+".ecdsa", "no device could have the answer, which SCEP encrypts to the signer's key: "+
			"say clients: {password_recipient: true}, which encrypts it under the challenge, or clients: {signer_key: any}, for devices that sign with an RSA key")
	case !c.Clients.PasswordRecipient:
	case !ec:
		l.fault(clients, s.at("clients")+".password_recipient", "can never be reached: the profile takes no ECDSA key")
	case c.Challenge.Mode != "one-time" && c.Challenge.Mode != "":
		l.fault(clients, s.at("clients")+".password_recipient", "needs one-time challenges: another is no key to encrypt under")
	case c.Approve != "automatic" && c.Approve != "":
		l.fault(clients, s.at("clients")+".password_recipient", "needs approve: automatic: a poll has no challenge that its answer could be encrypted under")
	}
}

func (l *loader) algorithms(s section, key string, known []string, legacy string) []string {
	words, nodes := l.words(s.get(key), s.at(key))
	for i, w := range words {
		if !slices.Contains(known, w) {
			l.fault(nodes[i], s.at(key), "%q is none of %s; what is older is allowed by %s alone", w, strings.Join(known, ", "), legacy)
		}
	}
	return words
}

func (l *loader) lint(c *compiled, s section) {
	n := s.get("lint")
	if n == nil {
		return
	}
	m := l.mapping(n, s.at("lint"), keys{must: []string{"except"}})
	for i, item := range l.list(m.get("except"), m.at("except")) {
		e := l.mapping(item, fmt.Sprintf("%s[%d]", m.at("except"), i), keys{must: []string{"rule", "reason"}})
		rule, ok := l.text(e.get("rule"), e.at("rule"))
		reason, said := l.text(e.get("reason"), e.at("reason"))
		switch {
		case ok && !lintRule.MatchString(rule):
			l.fault(e.get("rule"), e.at("rule"), "%q is not a name of a lint rule", rule)
		case said && strings.TrimSpace(reason) == "":
			l.fault(e.get("reason"), e.at("reason"), "is empty: say why the rule may be broken")
		case ok && slices.Contains(c.LintExceptions(), rule):
			l.fault(e.get("rule"), e.at("rule"), "%q is given twice", rule)
		case ok && said:
			c.Lint.Exceptions = append(c.Lint.Exceptions, LintException{rule, reason})
		}
	}
}
