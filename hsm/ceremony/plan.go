package ceremony

import (
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/postern-pki/postern/hsm"
)

// A Class says what the keys of a ceremony are for.
type Class string

// The classes. A plan of class production needs a person at a terminal.
const (
	Test       Class = "test"
	Production Class = "production"
)

// A Role is what a certificate is for. Those of the token's keys have the name
// of their key's purpose.
type Role string

// The roles, in the order in which certificates are issued.
const (
	RoleCA         Role = "ca"
	RoleRASign     Role = "ra-sign"
	RoleRADecrypt  Role = "ra-decrypt"
	RoleTLS        Role = "tls"
	RoleAudit      Role = "audit"
	RoleOperatorCA Role = "operator-ca"
	RoleOperator   Role = "operator"
)

// An ExtendedUsage is an extended key usage, by the name that a plan has for it.
type ExtendedUsage string

// The extended key usages.
const (
	RequestAgent ExtendedUsage = "certificateRequestAgent" // 1.3.6.1.4.1.311.20.2.1
	ServerAuth   ExtendedUsage = "serverAuth"
	ClientAuth   ExtendedUsage = "clientAuth"
)

// A CertificatePlan is one certificate to be issued.
type CertificatePlan struct {
	Role     Role
	Subject  Subject
	Validity time.Duration   // from the ceremony on; the backdating comes on top
	Extended []ExtendedUsage // none for a CA and for audit
	Names    Names           // for RoleTLS alone
}

// A TokenPlan selects the token.
type TokenPlan struct {
	Module string // absolute path of the PKCS#11 library
	New    bool   // initialize the token in an empty slot, with Label
	Label  string
	Serial string // an initialized and empty token
}

// A Plan is a whole ceremony. It comes from [ParsePlan] alone and needs no further checks.
type Plan struct {
	Name         string
	Class        Class
	Text         string // as it was written
	Token        TokenPlan
	Keys         []hsm.KeyPlan     // without ids, in the order of roles
	Certificates []CertificatePlan // of the token's keys, in the order of roles; all issued by the first
	Operators    []CertificatePlan // the operator CA and the first operator
	Backdate     time.Duration     // of every notBefore
}

const (
	maxPlan       = 16 << 10 // bytes: a plan stands whole in one record of the transcript
	maxTokenLabel = 32       // bytes (PKCS #11 v2.40, section 3.4)
)

// roles are the token's keys and certificates in order.
func roles() []Role { return []Role{RoleCA, RoleRASign, RoleRADecrypt, RoleTLS, RoleAudit} }

// ParsePlan reads a plan in YAML. Keys that it does not know, values that it
// cannot use and parts that do not fit together are faults; the error is a
// [*PlanError] with all of them.
func ParsePlan(text []byte) (Plan, error) {
	d := &decoder{}
	if len(text) > maxPlan {
		d.fault(nil, "", "", "the plan has more than %d bytes", maxPlan)
		return Plan{}, d.err()
	}
	if !utf8.Valid(text) || strings.ContainsFunc(string(text), unseen) {
		d.fault(nil, "", "", "the plan is not UTF-8, or has control characters that a reviewer cannot see")
		return Plan{}, d.err()
	}
	p := Plan{Text: string(text), Backdate: time.Hour}
	if doc := d.document(p.Text); doc != nil {
		d.plan(&p, doc)
	}
	if err := d.err(); err != nil {
		return Plan{}, err
	}
	return p, nil
}

// unseen reports control characters and those that turn the direction of text.
func unseen(r rune) bool {
	return r < ' ' && r != '\n' && r != '\t' && r != '\r' || r >= 0x7f && r < 0xa0 ||
		r >= 0x200b && r <= 0x200f || r >= 0x2028 && r <= 0x202e || r >= 0x2060 && r <= 0x206f || r == 0xfeff
}

// Digest returns the SHA-256 of the plan's text in lower-case hex: what people
// compare before they begin.
func (p Plan) Digest() string { return digest([]byte(p.Text)) }

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func (d *decoder) plan(p *Plan, doc *yaml.Node) {
	before := len(d.faults)
	var version string
	p.Keys = make([]hsm.KeyPlan, len(roles()))
	p.Certificates = make([]CertificatePlan, len(roles()))
	p.Operators = make([]CertificatePlan, 2)
	var keys, certs, operators yaml.Node
	keep := func(dst *yaml.Node) func(*yaml.Node, string) {
		return func(n *yaml.Node, path string) {
			*dst = *n
			switch dst {
			case &keys:
				d.keys(p, n, path)
			case &certs:
				d.certificates(p, n, path)
			default:
				d.operators(p, n, path)
			}
		}
	}
	var token *yaml.Node
	d.mapping(doc, "",
		field{"version", true, oneOf(d, &version, "1")},
		field{"name", true, d.planName(&p.Name)},
		field{"class", true, oneOf(d, &p.Class, Test, Production)},
		field{"backdate", false, d.duration(&p.Backdate, 0, 48*time.Hour)},
		field{"token", true, func(n *yaml.Node, path string) { token = n; d.token(&p.Token, n, path) }},
		field{"keys", true, keep(&keys)},
		field{"certificates", true, keep(&certs)},
		field{"operators", true, keep(&operators)},
	)
	if len(d.faults) > before {
		return // what is missing would only be said twice
	}
	d.consistent(*p, token, &keys, &certs, &operators)
}

// planName reads a name that can stand in file names and in the service's configuration.
func (d *decoder) planName(dst *string) func(*yaml.Node, string) {
	return func(n *yaml.Node, path string) {
		s, ok := d.scalar(n, path)
		if !ok {
			return
		}
		if len(s) > 32 || strings.ContainsFunc(s, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }) {
			d.fault(n, path, "", "must be at most 32 of a-z, 0-9 and -")
			return
		}
		*dst = s
	}
}

func (d *decoder) token(t *TokenPlan, n *yaml.Node, path string) {
	before := len(d.faults)
	d.mapping(n, path,
		field{"module", true, d.text(&t.Module, 1024)},
		field{"new", false, d.boolean(&t.New)},
		field{"label", false, d.text(&t.Label, maxTokenLabel)},
		field{"serial", false, d.text(&t.Serial, 16)},
	)
	if len(d.faults) > before {
		return
	}
	if !filepath.IsAbs(t.Module) {
		d.fault(n, path+".module", "", "must be an absolute path")
	}
	switch {
	case t.New && t.Serial != "":
		d.fault(n, path+".serial", "", "a new token has no serial yet: give either `new: true` with a label, or a serial")
	case t.New && t.Label == "":
		d.fault(n, path+".label", "", "is missing: a new token gets this label")
	case !t.New && t.Serial == "":
		d.fault(n, path+".serial", "", "is missing: select a token by its serial, or give `new: true` with a label")
	}
}

func (d *decoder) keys(p *Plan, n *yaml.Node, path string) {
	var fields []field
	for i, r := range roles() {
		fields = append(fields, field{string(r), true, func(n *yaml.Node, path string) {
			k := &p.Keys[i]
			k.Purpose = hsm.Purpose(r)
			d.mapping(n, path,
				field{"label", true, d.text(&k.Label, maxTokenLabel)},
				field{"algorithm", true, oneOf(d, &k.Algorithm, k.Purpose.Algorithms()...)})
		}})
	}
	d.mapping(n, path, fields...)
}

const (
	maxCAValidity   = 30 * year
	maxLeafValidity = 10 * year
	maxNames        = 32 // names in the TLS certificate
)

func (d *decoder) certificates(p *Plan, n *yaml.Node, path string) {
	var fields []field
	for i, r := range roles() {
		fields = append(fields, field{string(r), true, func(n *yaml.Node, path string) {
			c := &p.Certificates[i]
			c.Role = r
			longest := maxLeafValidity
			switch r {
			case RoleCA:
				longest = maxCAValidity
			case RoleTLS:
				longest, c.Extended = 825*day, []ExtendedUsage{ServerAuth} // Apple's platforms trust no longer one, whoever the CA is
			}
			own := d.certificate(c, longest)
			switch r {
			case RoleRASign, RoleRADecrypt:
				own = append(own, field{"extended", true, d.list(2, d.usage(&c.Extended))})
			case RoleTLS:
				own = append(own, field{"names", true, d.list(maxNames, d.name(&c.Names))})
			}
			d.mapping(n, path, own...)
		}})
	}
	d.mapping(n, path, fields...)
}

func (d *decoder) operators(p *Plan, n *yaml.Node, path string) {
	ca, first := &p.Operators[0], &p.Operators[1]
	ca.Role, first.Role, first.Extended = RoleOperatorCA, RoleOperator, []ExtendedUsage{ClientAuth}
	d.mapping(n, path,
		field{"ca", true, func(n *yaml.Node, path string) { d.mapping(n, path, d.certificate(ca, maxCAValidity)...) }},
		field{"first", true, func(n *yaml.Node, path string) { d.mapping(n, path, d.certificate(first, maxLeafValidity)...) }})
}

func (d *decoder) certificate(c *CertificatePlan, longest time.Duration) []field {
	return []field{
		{"subject", true, func(n *yaml.Node, path string) {
			s, ok := d.scalar(n, path)
			if !ok {
				return
			}
			var err error
			if c.Subject, err = ParseSubject(s); err != nil {
				d.fault(n, path, "", "%v", err)
			}
		}},
		{"validity", true, d.duration(&c.Validity, time.Hour, longest)},
	}
}

func (d *decoder) usage(dst *[]ExtendedUsage) func(*yaml.Node, string) {
	return func(n *yaml.Node, path string) {
		var u ExtendedUsage
		oneOf(d, &u, RequestAgent, ServerAuth)(n, path)
		if u != "" && slices.Contains(*dst, u) {
			d.fault(n, path, "", "given twice")
			return
		}
		*dst = append(*dst, u)
	}
}

func (d *decoder) name(dst *Names) func(*yaml.Node, string) {
	return func(n *yaml.Node, path string) {
		if s, ok := d.scalar(n, path); ok {
			if err := dst.parse(s); err != nil {
				d.fault(n, path, "", "%v", err)
			}
		}
	}
}

// consistent compares what was read at different places.
func (d *decoder) consistent(p Plan, token, keys, certs, operators *yaml.Node) {
	labels := map[string]bool{}
	for _, k := range p.Keys {
		if labels[k.Label] {
			d.fault(child(keys, string(k.Purpose)), "keys."+string(k.Purpose)+".label", "", "%q is the label of another key too", k.Label)
		}
		labels[k.Label] = true
	}
	if p.Class == Production && strings.Contains(strings.ToUpper(p.Token.Label), rehearsalMark) {
		d.fault(token, "token.label", "", "a production token is not called %s", rehearsalMark)
	}
	subjects := map[string]bool{}
	for _, group := range []struct {
		path  string
		n     *yaml.Node
		certs []CertificatePlan
	}{{"certificates", certs, p.Certificates}, {"operators", operators, p.Operators}} {
		for i, c := range group.certs {
			name := strings.TrimPrefix(string(c.Role), "operator-")
			if c.Role == RoleOperator {
				name = "first"
			}
			at, n := group.path+"."+name, child(group.n, name)
			if s := c.Subject.String(); subjects[s] {
				d.fault(n, at+".subject", "", "%q is the subject of another certificate too", s)
			} else {
				subjects[s] = true
			}
			if i > 0 && c.Validity > group.certs[0].Validity {
				d.fault(n, at+".validity", "", "the certificate would outlive its CA")
			}
		}
	}
}

// child returns the value of a mapping's key.
func child(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return n
}

// Warnings say what a reviewer should know before the plan is used, in whole sentences.
func (p Plan) Warnings() []string {
	var out []string
	if p.Class == Test {
		out = append(out, "The class is test: the ceremony may run without a person, and its keys must protect nothing.")
	}
	out = append(out, "The CA signs itself on the token that the service uses: whoever owns the service's token owns the root.")
	for _, c := range p.Certificates {
		if slices.Contains(c.Extended, RequestAgent) {
			out = append(out, "An RA certificate has the extended usage Certificate Request Agent: never publish this CA in a Windows domain's NTAuth store, or its RA may enroll for anybody.")
			break
		}
	}
	out = append(out, "The operator CA's key is a file in the output folder: move it off this machine when the ceremony is over.")
	return out
}

// rehearsal returns the plan as a rehearsal carries it out: on a new token with
// a marked label and, so that nothing of it is ever taken for the real thing,
// with marked subjects if the plan is for production.
func (p Plan) rehearsal(module string) Plan {
	label := p.Token.Label
	if label == "" {
		label = p.Name
	}
	p.Token = TokenPlan{Module: module, New: true, Label: cutBytes(rehearsalMark+" "+label, maxTokenLabel)}
	if p.Class != Production {
		return p
	}
	mark := func(in []CertificatePlan) []CertificatePlan {
		out := slices.Clone(in)
		for i := range out {
			out[i].Subject = out[i].Subject.marked()
		}
		return out
	}
	p.Certificates, p.Operators = mark(p.Certificates), mark(p.Operators)
	return p
}
