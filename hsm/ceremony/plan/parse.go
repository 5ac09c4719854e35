package plan

import (
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/postern-pki/postern/hsm"
)

// Parse reads a plan in YAML. Keys that it does not know, values that it
// cannot use and parts that do not fit together are faults; the error is a
// [*Error] with all of them.
func Parse(text []byte) (Plan, error) {
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

func (d *decoder) plan(p *Plan, doc *yaml.Node) {
	before := len(d.faults)
	var version string
	p.Kind = SelfSigned
	if n := child(doc, "kind"); n != nil { // what has to be there depends on it
		oneOf(d, &p.Kind, SelfSigned, OfflineRoot, OutsideCA, Change, Unlock, Erase, NewLog)(n, "kind")
	}
	first := !p.Changes() // a token's first ceremony makes everything
	service := Token{On: Service}
	var root rootPlan
	at := map[string]*yaml.Node{}
	keep := func(key string, read func(n *yaml.Node, path string)) func(*yaml.Node, string) {
		return func(n *yaml.Node, path string) { at[key] = n; read(n, path) }
	}
	d.mapping(doc, "",
		field{"version", true, oneOf(d, &version, "1")},
		field{"name", true, d.planName(&p.Name)},
		field{"class", true, oneOf(d, &p.Class, Test, Production)},
		field{"kind", false, func(*yaml.Node, string) {}},
		field{"backdate", false, d.duration(&p.Backdate, 0, 48*time.Hour)},
		field{"people", false, d.list(maxPeople, d.person(p))},
		field{"token", true, keep("token", func(n *yaml.Node, path string) { d.token(&service, n, path) })},
		field{"replaces", false, keep("replaces", d.text(&p.Replaces, 16))},
		field{"root", false, keep("root", func(n *yaml.Node, path string) { d.root(&root, n, path) })},
		field{"keep", !first, keep("keep", func(n *yaml.Node, path string) { d.list(maxKept, d.kept(p))(n, path) })},
		field{"ca_certificate_sha256", false, keep("ca_certificate_sha256", d.hex(&p.CASHA256, 32))},
		field{"log", false, keep("log", func(n *yaml.Node, path string) { d.log(&p.Log, n, path) })},
		field{"keys", first, keep("keys", func(n *yaml.Node, path string) { d.keys(p, n, path) })},
		field{"certificates", first, keep("certificates", func(n *yaml.Node, path string) { d.certificates(p, n, path) })},
		field{"operators", first, keep("operators", func(n *yaml.Node, path string) { d.operators(p, n, path) })},
	)
	d.belongs(*p, doc, at)
	if len(d.faults) > before {
		return // what is missing would only be said twice
	}
	p.Tokens = []Token{service}
	if p.Kind == OfflineRoot {
		p.Tokens = []Token{root.token, service}
		p.Keys = append([]Key{root.key}, p.Keys...)
		p.Certificates = append([]Certificate{root.certificate}, p.Certificates...)
	}
	d.consistent(*p, doc, at)
	d.together(*p, doc)
	d.newLog(*p, doc, at)
}

// rootPlan is the part of a plan that is about the root.
type rootPlan struct {
	token       Token
	key         Key
	certificate Certificate
}

func (d *decoder) root(r *rootPlan, n *yaml.Node, path string) {
	r.token.On = Root
	r.key = Key{Role: RoleRoot, On: Root, KeyPlan: hsm.KeyPlan{Purpose: hsm.CA}}
	r.certificate.Role = RoleRoot
	d.mapping(n, path,
		field{"token", true, func(n *yaml.Node, path string) { d.token(&r.token, n, path) }},
		field{"key", true, func(n *yaml.Node, path string) { d.key(&r.key, n, path) }},
		field{"certificate", true, func(n *yaml.Node, path string) { d.mapping(n, path, d.certificate(&r.certificate, maxCAValidity)...) }})
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

func (d *decoder) token(t *Token, n *yaml.Node, path string) {
	before := len(d.faults)
	d.mapping(n, path,
		field{"module", true, d.text(&t.Module, 1024)},
		field{"new", false, d.boolean(&t.New)},
		field{"label", false, d.text(&t.Label, maxTokenLabel)},
		field{"serial", false, d.text(&t.Serial, 16)},
		field{"so_pin", false, func(n *yaml.Node, path string) { d.shares(t, n, path) }},
		field{"pin_credential", false, d.planName(&t.Credential)},
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
	case !t.New && t.Shares > 0:
		d.fault(n, path+".so_pin", "", "is that of a token that is there already: only a new one's can be shared")
	case !t.New && t.Credential != "":
		d.fault(n, path+".pin_credential", "", "is for the PIN of a new token, which is made here")
	case !t.New && t.Serial == "":
		d.fault(n, path+".serial", "", "is missing: select a token by its serial, or give `new: true` with a label")
	}
}

func (d *decoder) keys(p *Plan, n *yaml.Node, path string) {
	var fields []field
	for _, r := range p.rolesOf(n) {
		fields = append(fields, field{string(r), !p.Changes() && r != RoleOCSP, func(n *yaml.Node, path string) {
			k := Key{Role: r, On: Service, KeyPlan: hsm.KeyPlan{Purpose: hsm.Purpose(r)}}
			d.key(&k, n, path)
			p.Keys = append(p.Keys, k)
		}})
	}
	d.mapping(n, path, fields...)
	slices.SortFunc(p.Keys, func(a, b Key) int { return slices.Index(roles(), a.Role) - slices.Index(roles(), b.Role) })
}

// rolesOf are the roles that a part of a plan may have: a first ceremony has either two
// RA keys or one.
func (p *Plan) rolesOf(n *yaml.Node) []Role {
	single := child(n, string(RoleRA)) != nil
	return slices.DeleteFunc(roles(), func(r Role) bool {
		return !p.Changes() && (r == RoleRA && !single || (r == RoleRASign || r == RoleRADecrypt) && single)
	})
}

func (d *decoder) key(k *Key, n *yaml.Node, path string) {
	d.mapping(n, path,
		field{"label", true, d.text(&k.Label, maxTokenLabel)},
		field{"algorithm", true, oneOf(d, &k.Algorithm, k.Purpose.Algorithms()...)})
}

const (
	maxCAValidity   = 30 * year
	maxLeafValidity = 10 * year
	maxNames        = 32 // names in the TLS certificate
)

func (d *decoder) certificates(p *Plan, n *yaml.Node, path string) {
	var fields []field
	for _, r := range p.rolesOf(n) {
		fields = append(fields, field{string(r), !p.Changes() && r != RoleOCSP, func(n *yaml.Node, path string) {
			c := &Certificate{Role: r}
			longest := maxLeafValidity
			switch r {
			case RoleCA:
				longest = maxCAValidity
			case RoleTLS:
				longest, c.Extended = 825*day, []ExtendedUsage{ServerAuth} // Apple's platforms trust no longer one, whoever the CA is
			case RoleOCSP:
				c.Extended = []ExtendedUsage{OCSPSigning}
			}
			own := d.certificate(c, longest)
			switch r {
			case RoleRASign, RoleRADecrypt, RoleRA:
				own = append(own, field{"extended", true, d.list(2, d.usage(&c.Extended))})
			case RoleTLS:
				own = append(own, field{"names", true, d.list(maxNames, d.name(&c.Names))})
			}
			d.mapping(n, path, own...)
			p.Certificates = append(p.Certificates, *c)
		}})
	}
	d.mapping(n, path, fields...)
	slices.SortFunc(p.Certificates, func(a, b Certificate) int { return slices.Index(roles(), a.Role) - slices.Index(roles(), b.Role) })
}

func (d *decoder) operators(p *Plan, n *yaml.Node, path string) {
	p.Operators = make([]Certificate, 2)
	ca, first := &p.Operators[0], &p.Operators[1]
	ca.Role, first.Role, first.Extended = RoleOperatorCA, RoleOperator, []ExtendedUsage{ClientAuth}
	d.mapping(n, path,
		field{"ca", true, func(n *yaml.Node, path string) { d.mapping(n, path, d.certificate(ca, maxCAValidity)...) }},
		field{"first", true, func(n *yaml.Node, path string) { d.mapping(n, path, d.certificate(first, maxLeafValidity)...) }})
}

func (d *decoder) certificate(c *Certificate, longest time.Duration) []field {
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
			if err := dst.Add(s); err != nil {
				d.fault(n, path, "", "%v", err)
			}
		}
	}
}

// consistent compares what was read at different places.
func (d *decoder) consistent(p Plan, doc *yaml.Node, at map[string]*yaml.Node) {
	labels := map[string]bool{}
	if p.Changes() {
		d.change(p, doc, labels)
	}
	for _, k := range p.Keys {
		id := string(k.On) + " " + k.Label
		if labels[id] {
			path := place(k.Role, "keys")
			d.fault(find(doc, path), path+".label", "", "%q is the label of another key too", k.Label)
		}
		labels[id] = true
	}
	if p.Replaces != "" && p.Replaces == p.Token(Service).Serial {
		d.fault(at["replaces"], "replaces", "", "is the serial of the new token: it has to be that of the old one")
	}
	if p.HasRoot() {
		d.twoTokens(p, at["root"])
	}
	for _, t := range p.Tokens {
		if p.Class == Production && strings.Contains(strings.ToUpper(t.Label), RehearsalMark) {
			d.fault(at["token"], "token.label", "", "a production token is not called %s", RehearsalMark)
		}
	}
	for _, k := range p.Keys {
		if k.Role == RoleOCSP && !p.Changes() && !slices.ContainsFunc(p.Certificates, func(c Certificate) bool { return c.Role == k.Role }) {
			d.fault(find(doc, "certificates"), place(k.Role, "certificates"), "", "is missing: there is a key of this role")
		}
	}
	for _, c := range p.Certificates {
		if !p.Changes() && !slices.ContainsFunc(p.Keys, func(k Key) bool { return k.Role == c.Role }) {
			d.fault(find(doc, "certificates"), place(c.Role, "keys"), "", "is missing: there is a certificate of this role; one RA key, or two, in keys and in certificates")
		}
	}
	subjects := map[string]bool{}
	for _, c := range slices.Concat(p.Certificates, p.Operators) {
		path := place(c.Role, "certificates")
		n := find(doc, path)
		if s := c.Subject.String(); subjects[s] {
			d.fault(n, path+".subject", "", "%q is the subject of another certificate too", s)
		} else {
			subjects[s] = true
		}
		if issuer, ok := p.Certificate(p.Issuer(c.Role)); ok && c.Validity > issuer.Validity {
			d.fault(n, path+".validity", "", "the certificate would outlive its CA")
		}
	}
}

// twoTokens refuses one token for both: then the root is not offline.
func (d *decoder) twoTokens(p Plan, n *yaml.Node) {
	root, service := p.Token(Root), p.Token(Service)
	switch {
	case root.Serial != "" && root.Serial == service.Serial && root.Module == service.Module:
		d.fault(n, "root.token.serial", "", "is that of the service's token too: a root that is there is not offline")
	case root.Label != "" && root.Label == service.Label:
		d.fault(n, "root.token.label", "", "%q is the label of the service's token too", root.Label)
	}
}

// place is the path of a role's part of the plan.
func place(r Role, group string) string {
	switch {
	case r == RoleRoot && group == "keys":
		return "root.key"
	case r == RoleRoot:
		return "root.certificate"
	case r == RoleOperatorCA:
		return "operators.ca"
	case r == RoleOperator:
		return "operators.first"
	default:
		return group + "." + string(r)
	}
}

// find returns the value at a path of keys, or the last one that is there.
func find(n *yaml.Node, path string) *yaml.Node {
	for key := range strings.SplitSeq(path, ".") {
		if v := child(n, key); v != nil {
			n = v
		}
	}
	return n
}

// child returns the value of a mapping's key, or nil.
func child(n *yaml.Node, key string) *yaml.Node {
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}
