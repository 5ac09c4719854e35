package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/postern-pki/postern/appliance/operator/acts"
	"github.com/postern-pki/postern/policy"
)

// Operator is a person at the operators' listener, by the key of the certificate
// that they show: its hex SHA-256, or a file with the certificate.
type Operator struct {
	Name        string   `yaml:"name"`
	Key         string   `yaml:"key"`
	Certificate string   `yaml:"certificate"`
	Roles       []string `yaml:"roles"`
}

// LocalOperator is a user of this machine, who may use the local socket.
type LocalOperator struct {
	UID   int      `yaml:"uid"`
	User  string   `yaml:"user"`
	Roles []string `yaml:"roles"`
}

// operators resolves who may do what. Without operators.local root and the
// service's own user are administrators: somebody has to be able to begin.
func (l *loader) operators() {
	o, r := &l.c.Operators, &l.c.Rules
	names := map[string]bool{}
	for i, p := range o.People {
		at := fmt.Sprintf("operators.people[%d]", i)
		if l.need(at+".name", p.Name) && names[p.Name] {
			l.fault(at+".name", "is given twice: a person has one key and one list of roles", "")
		}
		names[p.Name] = true
		l.person(at, acts.Person{Name: p.Name, ID: l.operatorKey(at, p), Roles: l.roles(at, p.Roles)})
	}
	for i, u := range o.Local {
		at := fmt.Sprintf("operators.local[%d]", i)
		if uid, ok := l.uid(at, u); ok {
			l.person(at, localPerson(uid, u.User, l.roles(at, u.Roles)))
		}
	}
	if r.Default = len(o.Local) == 0; r.Default {
		admin := []acts.Role{acts.Administrator}
		r.People = append(r.People, localPerson(0, "root", admin))
		if own := os.Geteuid(); own != 0 {
			r.People = append(r.People, localPerson(own, "the service's own user", admin))
		}
	}
	l.twoPerson()
}

func localPerson(uid int, name string, roles []acts.Role) acts.Person {
	id := "uid:" + strconv.Itoa(uid)
	if name == "" {
		name = id
	}
	return acts.Person{Name: name, ID: id, Roles: roles}
}

// person adds one who is not there yet; "" is one that has a fault.
func (l *loader) person(at string, p acts.Person) {
	if p.ID == "" {
		return
	}
	if other, ok := l.c.Rules.Who(p.ID); ok {
		l.fault(at, fmt.Sprintf("is %s again: %s", other.Name, p.ID), "")
		return
	}
	l.c.Rules.People = append(l.c.Rules.People, p)
}

func (l *loader) operatorKey(at string, p Operator) string {
	switch {
	case (p.Key == "") == (p.Certificate == ""):
		l.fault(at, "has to name one of key and certificate", "")
	case p.Key == "":
		if cert := l.certificate(at+".certificate", p.Certificate); cert != nil {
			sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
			return "key:" + hex.EncodeToString(sum[:])
		}
	case !sumForm.MatchString(p.Key):
		l.fault(at+".key", "has to be the SHA-256 of the certificate's SubjectPublicKeyInfo, in lowercase hex", "")
	default:
		return "key:" + p.Key
	}
	return ""
}

func (l *loader) uid(at string, u LocalOperator) (uid int, ok bool) {
	_, numbered := l.at[at+".uid"]
	switch {
	case numbered == (u.User != ""):
		l.fault(at, "has to name one of uid and user", "")
	case numbered && (u.UID < 0 || int64(u.UID) > math.MaxUint32):
		l.fault(at+".uid", "is a user's number", "")
	case numbered:
		return u.UID, true
	default:
		found, err := user.Lookup(u.User)
		if err == nil {
			uid, err = strconv.Atoi(found.Uid)
		}
		if err == nil {
			return uid, true
		}
		l.fault(at+".user", fmt.Sprintf("this machine has no user %q", u.User), "")
	}
	return 0, false
}

func (l *loader) roles(at string, names []string) (roles []acts.Role) {
	var known []string
	for _, r := range acts.Roles() {
		known = append(known, string(r))
	}
	for i, name := range names {
		role, at := acts.Role(name), fmt.Sprintf("%s.roles[%d]", at, i)
		switch {
		case !slices.Contains(known, name):
			l.fault(at, "is one of "+strings.Join(known, ", "), policy.Nearest(name, known))
		case slices.Contains(roles, role):
			l.fault(at, "is given twice", "")
		default:
			roles = append(roles, role)
		}
	}
	if len(names) == 0 {
		l.fault(at+".roles", "is missing", "")
	}
	if len(roles) > 1 && slices.Contains(roles, acts.Auditor) {
		l.fault(at+".roles", "an auditor has no other role: nobody audits what they do themselves", "")
	}
	return roles
}

// twoPerson checks that each act under the rule changes something, and that there
// are people enough for it: local users have no key to sign with.
func (l *loader) twoPerson() {
	var known []string
	for _, a := range acts.Table() {
		if a.Changes {
			known = append(known, a.Name)
		}
	}
	for i, name := range l.c.Operators.TwoPerson {
		at := fmt.Sprintf("operators.two_person[%d]", i)
		act, _ := acts.Named(name)
		if !act.Changes {
			l.fault(at, "is one of "+strings.Join(known, ", "), policy.Nearest(name, known))
			continue
		}
		may := 0
		for _, p := range l.c.Rules.People {
			if strings.HasPrefix(p.ID, "key:") && act.May(p.Roles) {
				may++
			}
		}
		if may < acts.Signers {
			l.fault(at, fmt.Sprintf("needs %d of operators.people who may do it, and there are %d", acts.Signers, may), "")
		}
		l.c.Rules.TwoPerson = append(l.c.Rules.TwoPerson, name)
	}
	if l.c.Rules.NeedsTwo(acts.CreateChallenge) && !l.c.Rules.NeedsTwo(acts.CreateChallenges) {
		l.fault("operators.two_person", "one person could create challenges two at a time: name "+acts.CreateChallenges+" too", "")
	}
}
