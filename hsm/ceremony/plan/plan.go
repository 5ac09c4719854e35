// Package plan reads the plans of ceremonies: one YAML file, which people review,
// says everything that a ceremony does.
//
// # What a caller may rely on
//
// A [Plan] comes from [Parse] alone and needs no further checks: keys that are not
// known, values that cannot be used and parts that do not fit together are faults,
// and all of them are told at once, with their places. What a reviewer cannot see
// (control characters, aliases, a second document) is refused. [Plan.Steps] is the
// one list of what is done, in its order: who carries a plan out, who verifies it
// and who prints it read the same.
//
// # What it does not protect against
//
// A plan may be foolish and still be valid: [Plan.Warnings] names what a reviewer
// should know, and people decide.
package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"time"

	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/ceremony/people"
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
	RoleRoot       Role = "root"
	RoleCA         Role = "ca"
	RoleRASign     Role = "ra-sign"
	RoleRADecrypt  Role = "ra-decrypt"
	RoleRA         Role = "ra" // in place of the two before
	RoleTLS        Role = "tls"
	RoleAudit      Role = "audit"
	RoleOCSP       Role = "ocsp" // optional: answers about certificates
	RoleOperatorCA Role = "operator-ca"
	RoleOperator   Role = "operator"
	RoleOutside    Role = "outside" // who signs our CA's certificate elsewhere; none of our keys
)

// An ExtendedUsage is an extended key usage, by the name that a plan has for it.
type ExtendedUsage string

// The extended key usages.
const (
	RequestAgent ExtendedUsage = "certificateRequestAgent" // 1.3.6.1.4.1.311.20.2.1
	ServerAuth   ExtendedUsage = "serverAuth"
	ClientAuth   ExtendedUsage = "clientAuth"
	OCSPSigning  ExtendedUsage = "OCSPSigning"
)

// An On names one of a plan's tokens.
type On string

// The tokens. The root's is there in a plan of kind offline-root alone.
const (
	Service On = "service"
	Root    On = "root"
)

// A Kind is how the hierarchy is made.
type Kind string

// The kinds.
const (
	SelfSigned  Kind = "self-signed"  // the CA signs itself, on the service's token
	OfflineRoot Kind = "offline-root" // a root on a token of its own signs the CA
	OutsideCA   Kind = "outside-ca"   // somebody else's CA signs our request, between two sessions
	Change      Kind = "change"       // keys are on the token already: some are added, or certified anew
	Erase       Kind = "erase"        // keys are on the token, and are destroyed with all that is on it
	Unlock      Kind = "unlock"       // keys are on the token, and the security officer sets a new user PIN
	NewLog      Kind = "new-log"      // keys are on the token, and the service's log begins anew
)

// A Certificate is one certificate to be issued.
type Certificate struct {
	Role     Role
	Subject  Subject
	Validity time.Duration   // from the ceremony on; the backdating comes on top
	Extended []ExtendedUsage // none for a CA and for audit
	Names    Names           // for RoleTLS alone
}

// A Key is a key pair to be generated; without an id, which the ceremony chooses.
type Key struct {
	Role Role
	On   On
	hsm.KeyPlan
}

// A Kept is a key pair that has to be on the service's token already, as the
// transcript of its own ceremony has it.
type Kept struct {
	Role    Role
	Retired bool // it is only to be there: another key has its role now
	hsm.KeyPlan
	SPKI string // SHA-256 of the public key, hex

	// Attributes are what the token tells of the past of a key that was copied to it, by
	// name; nil for one that was made there.
	Attributes map[string]string
}

// A Token selects a token.
type Token struct {
	On     On
	Module string // absolute path of the PKCS#11 library
	New    bool   // initialize the token in an empty slot, with Label
	Label  string
	Serial string // an initialized and empty token

	Shares, Threshold int // of a new token's SO PIN; 0: people bring one

	// Credential is the name under which the generated user PIN of a new token is
	// encrypted for this machine; "" for a file that is not encrypted.
	Credential string
}

// A Person takes part in a ceremony, and signs its plan and its transcript.
type Person struct {
	Name string // of a-z, 0-9 and -
	Role string // one of administrator, security-officer, crypto-officer, witness, auditor
	Key  people.Key
	Line string // the key as it stands in the plan
}

// A Plan is a whole ceremony. It comes from [Parse] alone and needs no further checks.
type Plan struct {
	Name         string
	Class        Class
	Kind         Kind
	Text         string        // as it was written
	People       []Person      // none: nobody signs
	Tokens       []Token       // the root's first, if there is one
	Keep         []Kept        // of a change; nothing else may be on the token
	Replaces     string        // the serial of the token that this one is for; "" for none
	CASHA256     string        // of a change: the certificate of the kept CA key, hex; "" if it signs nothing
	Keys         []Key         // in the order of roles
	Certificates []Certificate // of the tokens' keys, in the order of roles
	Operators    []Certificate // the operator CA and the first operator
	Backdate     time.Duration // of every notBefore
	Log          Log           // of a new log
}

const (
	maxPlan       = 16 << 10 // bytes: a plan stands whole in one record of the transcript
	maxTokenLabel = 32       // bytes (PKCS #11 v2.40, section 3.4)
)

// roles are the token's keys and certificates in order.
func roles() []Role {
	return []Role{RoleCA, RoleRASign, RoleRADecrypt, RoleRA, RoleTLS, RoleAudit, RoleOCSP}
}

// File returns the name of the role's certificate file.
func (r Role) File() string { return string(r) + ".pem" }

// IsCA reports whether the role issues certificates.
func (r Role) IsCA() bool { return r == RoleRoot || r == RoleCA || r == RoleOperatorCA }

// Token returns the token of that name.
func (p Plan) Token(on On) Token {
	for _, t := range p.Tokens {
		if t.On == on {
			return t
		}
	}
	return Token{}
}

// KeysOn returns the keys that are to be generated on a token.
func (p Plan) KeysOn(on On) (out []Key) {
	for _, k := range p.Keys {
		if k.On == on {
			out = append(out, k)
		}
	}
	return out
}

// Kept returns the key of a role that is on the token already and in use.
func (p Plan) Kept(r Role) (Kept, bool) {
	for _, k := range p.Keep {
		if k.Role == r && !k.Retired {
			return k, true
		}
	}
	return Kept{}, false
}

// Changes reports whether the plan is for a token that has its keys already.
func (p Plan) Changes() bool {
	return p.Kind == Change || p.Kind == Unlock || p.Kind == Erase || p.Kind == NewLog
}

// SingleRA reports whether one key both signs answers and opens envelopes.
func (p Plan) SingleRA() bool {
	return slices.ContainsFunc(p.Keys, func(k Key) bool { return k.Role == RoleRA })
}

// HasRoot reports whether a root on a token of its own stands above the CA.
func (p Plan) HasRoot() bool { return p.Kind == OfflineRoot }

// Issuer returns the role whose key signs a certificate; of one that signs itself, its own.
func (p Plan) Issuer(r Role) Role {
	switch {
	case r == RoleOperator:
		return RoleOperatorCA
	case r == RoleCA && p.HasRoot():
		return RoleRoot
	case r == RoleCA && (p.Kind == OutsideCA || p.CASHA256 != ""):
		return RoleOutside
	case r.IsCA():
		return r
	default:
		return RoleCA
	}
}

// Certificate returns what is planned for a role, the operators' included.
func (p Plan) Certificate(r Role) (Certificate, bool) {
	for _, c := range slices.Concat(p.Certificates, p.Operators) {
		if c.Role == r {
			return c, true
		}
	}
	return Certificate{}, false
}

// Digest returns the SHA-256 of the plan's text in lower-case hex: what people
// compare before they begin.
func (p Plan) Digest() string {
	sum := sha256.Sum256([]byte(p.Text))
	return hex.EncodeToString(sum[:])
}

// Warnings say what a reviewer should know before the plan is used, in whole sentences.
func (p Plan) Warnings() []string {
	var out []string
	if p.Class == Test {
		out = append(out, "The class is test: the ceremony may run without a person, and its keys must protect nothing.")
	}
	if len(p.People) == 0 {
		out = append(out, "No people are named: nobody signs the plan, and whoever carries it out confirms it by typing.")
	}
	switch {
	case p.Kind == Erase:
		return append(out, "Every key on the token is destroyed: what was encrypted to one of them, and what still has to be signed by one, is lost.")
	case p.Kind == NewLog:
		return append(out, "The old log is moved aside, and the new one knows nothing of it: certificates of the old one are not renewed but enrolled again, open challenges are void, and what was revoked is revoked in the old log alone. Keep the old one with the transcript.")
	case p.Changes():
		return append(out, "The token is in use: stop the service before, and keep the transcript with those of the ceremonies before it.")
	case p.Kind == OutsideCA:
		out = append(out, "The ceremony stops when the request is written, and goes on in the same folder when the CA's certificate is there: keep the folder.")
	case p.HasRoot():
		out = append(out, "The root's token must leave the machine when the ceremony is over, and be kept where the service's people cannot reach it.")
	default:
		out = append(out, "The CA signs itself on the token that the service uses: whoever owns the service's token owns the root.")
	}
	if p.SingleRA() {
		out = append(out, "One RA key both signs and opens envelopes, which is weaker than two: whoever can have it do the one can have it do the other.")
	}
	for _, c := range p.Certificates {
		if slices.Contains(c.Extended, RequestAgent) {
			out = append(out, "An RA certificate has the extended usage Certificate Request Agent: never publish this CA in a Windows domain's NTAuth store, or its RA may enroll for anybody.")
			break
		}
	}
	out = append(out, "The operator CA's key is a file in the output folder: move it off this machine when the ceremony is over.")
	return out
}

// Rehearsal returns the plan as a rehearsal carries it out: on new tokens with
// marked labels and, so that nothing of it is ever taken for the real thing, with
// marked subjects if the plan is for production.
func (p Plan) Rehearsal(module string) Plan {
	p.Tokens = slices.Clone(p.Tokens)
	for i, t := range p.Tokens {
		if t.Label == "" {
			t.Label = p.Name
			if t.On != Service {
				t.Label = string(t.On) + " of " + p.Name
			}
		}
		p.Tokens[i] = Token{On: t.On, Module: module, New: true, Label: CutBytes(RehearsalMark+" "+t.Label, maxTokenLabel)}
	}
	if p.Class != Production {
		return p
	}
	mark := func(in []Certificate) []Certificate {
		out := slices.Clone(in)
		for i := range out {
			out[i].Subject = out[i].Subject.marked()
		}
		return out
	}
	p.Certificates, p.Operators = mark(p.Certificates), mark(p.Operators)
	return p
}
