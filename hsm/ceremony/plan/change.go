package plan

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/ceremony/people"
)

// belongs refuses parts that a plan of its kind does not have.
func (d *decoder) belongs(p Plan, doc *yaml.Node, at map[string]*yaml.Node) {
	if _, given := at["root"]; p.Kind == OfflineRoot && !given {
		d.fault(doc, "root", "", "is missing: it says on which token the root is, its key and its certificate")
	}
	for key, kinds := range map[string][]Kind{
		"root":                  {OfflineRoot},
		"keep":                  {Change, Unlock, Erase, NewLog},
		"log":                   {NewLog},
		"ca_certificate_sha256": {Change},
		"replaces":              {SelfSigned, OfflineRoot, OutsideCA},
		"keys":                  {SelfSigned, OfflineRoot, OutsideCA, Change},
		"certificates":          {SelfSigned, OfflineRoot, OutsideCA, Change},
		"operators":             {SelfSigned, OfflineRoot, OutsideCA},
	} {
		if n, given := at[key]; given && !slices.Contains(kinds, p.Kind) {
			d.fault(n, key, "", "does not belong to a plan of kind %s, but alone to those of %v", p.Kind, kinds)
		}
	}
}

const maxKept = 64 // keys on a token, after years of rotation

// kept reads one key that is on the token already.
func (d *decoder) kept(p *Plan) func(n *yaml.Node, path string) {
	return func(n *yaml.Node, path string) {
		var k Kept
		var id string
		var ids []byte
		words := []hsm.Algorithm{hsm.P256, hsm.P384, hsm.RSA2048, hsm.RSA3072, hsm.RSA4096}
		d.mapping(n, path,
			field{"role", true, oneOf(d, &k.Role, roles()...)},
			field{"retired", false, d.boolean(&k.Retired)},
			field{"label", true, d.text(&k.Label, maxTokenLabel)},
			field{"algorithm", true, oneOf(d, &k.Algorithm, words...)},
			field{"id", true, d.hex(&id, 16)},
			field{"spki", true, d.hex(&k.SPKI, 32)},
			field{"attributes", false, func(n *yaml.Node, path string) { d.past(&k, n, path) }})
		ids, _ = hex.DecodeString(id)
		k.Purpose, k.ID = hsm.Purpose(k.Role), ids
		p.Keep = append(p.Keep, k)
	}
}

// past reads what a token tells of the past of a key that was copied to it.
func (d *decoder) past(k *Kept, n *yaml.Node, path string) {
	k.Attributes = map[string]string{}
	var fields []field
	for _, rule := range hsm.Rules(k.Purpose, k.Algorithm) {
		if hsm.TellsThePast(rule.Attribute) {
			fields = append(fields, field{rule.Attribute, false, func(n *yaml.Node, path string) {
				var v string
				d.text(&v, maxTokenLabel)(n, path)
				k.Attributes[rule.Attribute] = v
			}})
		}
	}
	d.mapping(n, path, fields...)
}

// hex reads so many bytes in lower-case hex.
func (d *decoder) hex(dst *string, size int) func(n *yaml.Node, path string) {
	return func(n *yaml.Node, path string) {
		s, ok := d.scalar(n, path)
		if !ok {
			return
		}
		if raw, err := hex.DecodeString(s); err != nil || len(raw) != size || s != strings.ToLower(s) {
			d.fault(n, path, "", "must be %d bytes in lower-case hex", size)
			return
		}
		*dst = s
	}
}

// change compares what is on the token with what is to be made.
func (d *decoder) change(p Plan, doc *yaml.Node, labels map[string]bool) {
	roles := map[Role]bool{}
	for i, k := range p.Keep {
		path := fmt.Sprintf("keep[%d]", i)
		if labels[string(Service)+" "+k.Label] || roles[k.Role] && !k.Retired {
			d.fault(find(doc, "keep"), path, "", "label %q or role %s is that of another key too; one that is not used any more is `retired: true`", k.Label, k.Role)
		}
		labels[string(Service)+" "+k.Label] = true
		if !k.Retired {
			roles[k.Role] = true
		}
	}
	if p.Token(Service).New {
		d.fault(find(doc, "token"), "token.new", "", "a change is about a token that is there: name its serial")
	}
	made := map[Role]bool{}
	for _, k := range p.Keys {
		made[k.Role] = true
		if roles[k.Role] {
			d.fault(find(doc, "keep"), "keep", "", "the key of role %s is replaced: mark it `retired: true`", k.Role)
		}
	}
	signs := false // the kept CA key signs something
	for _, c := range p.Certificates {
		if !made[c.Role] && !roles[c.Role] {
			d.fault(find(doc, "certificates"), "certificates."+string(c.Role), "", "no key of this role is there or made")
		}
		signs = signs || c.Role != RoleCA && !made[RoleCA]
	}
	_, kept := p.Kept(RoleCA)
	switch {
	case signs && (p.CASHA256 == "" || !kept):
		d.fault(doc, "ca_certificate_sha256", "", "is missing: the kept CA key signs, and its certificate has to be named")
	case !signs && p.CASHA256 != "":
		d.fault(find(doc, "ca_certificate_sha256"), "ca_certificate_sha256", "", "the kept CA key signs nothing by this plan")
	case p.Kind == Change && len(p.Keys)+len(p.Certificates) == 0:
		d.fault(doc, "certificates", "", "nothing is made by this plan")
	}
}

const maxPeople = 16

// person reads one of the people.
func (d *decoder) person(p *Plan) func(n *yaml.Node, path string) {
	return func(n *yaml.Node, path string) {
		var who Person
		d.mapping(n, path,
			field{"name", true, d.planName(&who.Name)},
			field{"role", true, oneOf(d, &who.Role, "administrator", "security-officer", "crypto-officer", "witness", "auditor")},
			field{"key", true, func(n *yaml.Node, path string) {
				s, ok := d.scalar(n, path)
				if !ok {
					return
				}
				var err error
				if who.Key, err = people.ParseKey(s); err != nil {
					d.fault(n, path, "", "%v", err)
				}
				who.Line = s
			}})
		p.People = append(p.People, who)
	}
}

// together wants people who are not one, and among them two who look at each other.
func (d *decoder) together(p Plan, doc *yaml.Node) {
	if len(p.People) == 0 {
		if p.Class == Production {
			d.fault(doc, "people", "", "is missing: a production plan names an administrator and a witness at least, who sign it")
		}
		return
	}
	n, roles, seen := child(doc, "people"), map[string]bool{}, map[string]bool{}
	for i, who := range p.People {
		if seen[who.Name] || seen[who.Key.Fingerprint()] {
			d.fault(n, fmt.Sprintf("people[%d]", i), "", "has the name or the key of another one: each is a person of their own")
		}
		seen[who.Name], seen[who.Key.Fingerprint()], roles[who.Role] = true, true, true
	}
	if !roles["administrator"] || !roles["witness"] {
		d.fault(n, "people", "", "need an administrator and a witness")
	}
}

// shares reads into how many shares an SO PIN is split, and how many give it back.
func (d *decoder) shares(t *Token, n *yaml.Node, path string) {
	d.mapping(n, path, field{"shares", true, d.number(&t.Shares, 2, 16)}, field{"threshold", true, d.number(&t.Threshold, 2, 16)})
	if t.Threshold > t.Shares {
		d.fault(n, path+".threshold", "", "is more than there are shares")
	}
}

func (d *decoder) number(dst *int, least, most int) func(*yaml.Node, string) {
	return func(n *yaml.Node, path string) {
		s, ok := d.scalar(n, path)
		if !ok {
			return
		}
		v, err := strconv.Atoi(s)
		if err != nil || v < least || v > most {
			d.fault(n, path, "", "must be a number from %d to %d", least, most)
			return
		}
		*dst = v
	}
}
