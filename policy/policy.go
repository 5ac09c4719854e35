// Package policy holds the profiles of the appliance and decides by them.
//
// # What a caller may rely on
//
// [Load] returns a [Set] that needs no further checks, or every fault of its
// files at once. [Set.Decide] is pure: it reads no clock and does no I/O, so the
// same [Facts] give the same [Decision] today and in an appeal, and it evaluates
// every rule, also those behind one that failed. A rule that a profile leaves
// out is strict: a kind of name that it does not mention is refused, never
// copied. The certificate is built from the profile; of a request it takes the
// names and the key that the rules let through, and no extension. A Set is
// immutable and safe for concurrent use.
//
// # What it does not protect against
//
// It believes its facts. Who sent the request, which signature was verified and
// what the counters say is the caller's work, and a pattern that is too wide
// lets through what it describes: `postern policy explain` shows what a profile
// makes of a request. It finds keys that are weak by their type, size, exponent or
// small factors, by primes that lie close together, and by Infineon's library, and
// no other weak ones.
package policy

import (
	"maps"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// A Set is the profiles of one start of the appliance.
type Set struct {
	digest   string
	profiles map[string]*compiled
}

// Digest returns "sha256:" and the hex digest of the sources, by name. Every
// decision carries it.
func (s *Set) Digest() string { return s.digest }

// Names returns the names of the profiles, sorted.
func (s *Set) Names() []string { return slices.Sorted(maps.Keys(s.profiles)) }

// Profile returns a copy of the profile of that name.
func (s *Set) Profile(name string) (*Profile, bool) {
	c, ok := s.profiles[name]
	if !ok {
		return nil, false
	}
	p := c.Profile
	p.Protocols = slices.Clone(p.Protocols)
	p.Key.ECDSA.Curves = slices.Clone(p.Key.ECDSA.Curves)
	p.Clients.Digests = slices.Clone(p.Clients.Digests)
	p.Clients.Ciphers = slices.Clone(p.Clients.Ciphers)
	p.Lint.Exceptions = slices.Clone(p.Lint.Exceptions)
	p.Status = p.Status.clone()
	p.Challenge.Validators = slices.Clone(p.Challenge.Validators)
	return &p, true
}

// The values of [Profile.Approve].
const (
	ApproveAutomatic = "automatic"
	ApproveManual    = "manual"
	ApproveAlways    = "always"
)

// The values of [ChallengeRule.Mode].
const (
	ModeOneTime = "one-time"
	ModeNone    = "none"
	ModeWebhook = "webhook"
	ModeIntune  = "intune"
)

// A Profile is what the rest of the appliance may know of a profile. The rules
// about names and usages stay inside the [Set].
type Profile struct {
	Name      string
	Source    string // the file that it stands in
	Line      int
	Protocols []string // "scep"
	Issuer    string   // the name of a configured issuer
	Challenge ChallengeRule
	Approve   string // "automatic", "manual" (new enrollments wait for an operator) or "always" (renewals too)
	Pending   Pending
	Key       KeyRule
	Validity  Validity
	Renewal   Renewal
	Limits    Limits
	Clients   Clients
	Lint      Lint
	Status    Status

	CACertificates CACertificates
	Reply          Reply
}

// LintExceptions returns the names of the lint rules that the profile may break.
func (p *Profile) LintExceptions() []string {
	out := make([]string, 0, len(p.Lint.Exceptions))
	for _, e := range p.Lint.Exceptions {
		out = append(out, e.Rule)
	}
	return out
}

// ChallengeRule says who vouches for a new request. All have to.
type ChallengeRule struct {
	// Mode is what the challenge in a request is: "one-time" for one of ours, or the
	// kind of the validator that knows it; "none": a person vouches, by
	// [Profile.Approve].
	Mode string
	TTL  time.Duration // the longest life of a challenge of ours, and its default; 0 where there is none
	// Validators are asked over the network, in this order, once nothing else is
	// against the request.
	Validators []Validator
}

// A Validator is somebody outside who vouches for requests.
type Validator struct {
	Kind string // "webhook" or "intune"
	Name string // in the configuration
}

// Pending bounds the requests that wait for an operator; its zero value is that of
// a profile in which none waits.
type Pending struct {
	TTL time.Duration // how long a request waits
	Max int           // how many wait at once
}

// Waits reports whether a request of this kind waits for an operator's approval
// before it is granted.
func (p *Profile) Waits(kind string) bool {
	return p.Approve == ApproveAlways || p.Approve == ApproveManual && kind != KindRenewal
}

// KeyRule bounds the keys that are certified. The rule of a type that is not
// certified is its zero value.
type KeyRule struct {
	RSA   RSARule
	ECDSA ECDSARule
	Reuse string // "same-subject" or "any"
}

// RSARule bounds the length of an RSA modulus, in bits, both ends included.
type RSARule struct{ Min, Max int }

// ECDSARule lists the curves of ECDSA keys.
type ECDSARule struct {
	Curves []string // of "P-256", "P-384"
}

// Validity says how long a certificate lives: For is the whole of its life, from
// notBefore, which lies Backdate before the time of issue.
type Validity struct{ For, Backdate time.Duration }

// Renewal bounds the renewals of a lineage, which is one enrollment and all that
// was renewed from it. Its zero value allows none.
type Renewal struct {
	Allowed  bool
	Window   Window
	MaxCount int           // renewals in a lineage
	MaxAge   time.Duration // of a lineage; 0: bounded by MaxCount alone
	NewKey   string        // "required" or "optional"
	Old      string        // "keep"
}

// A Window is the end of a certificate's life in which it may be renewed: a
// share of it, or a time. One of the two is set.
type Window struct {
	Percent  int // 1 to 100
	Duration time.Duration
}

// Opens returns the time from which a certificate may be renewed.
func (w Window) Opens(notBefore, notAfter time.Time) time.Time {
	from, to := notBefore.Unix(), notAfter.Unix()
	opens := to - int64(w.Duration/time.Second)
	if w.Percent > 0 {
		opens = to - (to-from)*int64(w.Percent)/100
	}
	return time.Unix(max(opens, from), 0).UTC()
}

// Limits bound how much is issued.
type Limits struct {
	ActivePerSubject int // living certificates of one subject; 1 if the profile does not say
	PerMinute        int // certificates of the profile; 0: no limit
}

// Clients says which algorithms a client may use in its messages.
type Clients struct {
	Digests []string // of "SHA-256", "SHA-384", "SHA-512"; SHA-384 is there with SHA-256
	Ciphers []string // of "AES-128-CBC", "AES-192-CBC", "AES-256-CBC"
	SHA1    bool     // SHA-1 too
	DES3    bool     // triple DES too

	// AnySigner: a message for a new enrollment may be signed by another key than the
	// CSR's.
	AnySigner bool
	// PasswordRecipient: a signer that cannot decrypt has its answer encrypted under
	// its one-time challenge.
	PasswordRecipient bool
}

// Lint names the lint rules that a profile knowingly breaks.
type Lint struct{ Exceptions []LintException }

// A LintException is one lint rule and the reason why it may be broken.
type LintException struct{ Rule, Reason string }

// modes are those that a profile can name, in the order in which the kinds of
// validators are asked.
var modes = []string{ModeOneTime, ModeWebhook, ModeIntune}

// challenge reads who vouches for new requests: one mode, or several that all have to.
func (l *loader) challenge(c *compiled, s section) {
	ch := l.mapping(s.get("challenge"), s.at("challenge"), keys{
		must: []string{"mode"}, may: []string{"ttl", ModeWebhook, ModeIntune}, later: map[string]string{"allow_static": ""},
	})
	given := l.modes(ch)
	if slices.Contains(given, ModeNone) {
		l.noChallenge(c, ch, given)
		return
	}
	// The challenge is one's alone, and none of the others' business.
	for _, mode := range []string{ModeOneTime, ModeIntune, ModeWebhook} {
		if slices.Contains(given, mode) && c.Challenge.Mode == "" {
			c.Challenge.Mode = mode
		}
	}
	l.intune(c, ch, given)
	for _, mode := range modes {
		has := slices.Contains(given, mode)
		if mode == ModeOneTime {
			continue
		}
		n := ch.get(mode)
		switch {
		case has && n == nil:
			l.fault(ch.node, ch.at(mode), "is missing: the name of one of the configuration's validators")
		case has:
			name, ok := l.text(n, ch.at(mode))
			if ok && !issuerName.MatchString(name) {
				l.fault(n, ch.at(mode), "%q is not a name of a validator", name)
			}
			c.Challenge.Validators = append(c.Challenge.Validators, Validator{mode, name})
		case n != nil && len(given) > 0:
			l.fault(n, ch.at(mode), "can never be reached: mode does not name %s", mode)
		}
	}
	l.ttl(c, ch, given)
}

// intune checks what goes with Intune: it has a challenge of its own, and vouches for one
// request at that moment.
func (l *loader) intune(c *compiled, ch section, given []string) {
	switch {
	case !slices.Contains(given, ModeIntune):
	case slices.Contains(given, ModeOneTime):
		l.fault(ch.get("mode"), ch.at("mode"), "a device brings one challenge: it is Intune's or one of ours")
	case c.Approve != "" && c.Approve != ApproveAutomatic:
		l.fault(ch.get("mode"), ch.at("mode"), "Intune wants to hear at once what became of a request: it takes approve: automatic")
	}
}

// noChallenge checks a profile in which a person vouches for each request.
func (l *loader) noChallenge(c *compiled, ch section, given []string) {
	c.Challenge.Mode = ModeNone
	mode, ttl := ch.get("mode"), ch.get("ttl")
	switch {
	case len(given) > 1:
		l.fault(mode, ch.at("mode"), "none stands alone: with another mode somebody vouches")
	case c.Approve == ApproveAutomatic:
		l.fault(mode, ch.at("mode"), "nobody would vouch for a request: no challenge takes approve: manual or always")
	case ttl != nil:
		l.fault(ttl, ch.at("ttl"), "means nothing where there is no challenge")
	}
}

// modes reads one word or a list of them.
func (l *loader) modes(ch section) []string {
	n := ch.get("mode")
	later := map[string]string{"ndes": "", "static": ""}
	known := append(slices.Clone(modes), ModeNone)
	if n == nil || n.Kind != yaml.SequenceNode {
		if m := l.choice(n, ch.at("mode"), later, known...); m != "" {
			return []string{m}
		}
		return nil
	}
	_, nodes := l.words(n, ch.at("mode"))
	var out []string
	for _, word := range nodes {
		if m := l.choice(word, ch.at("mode"), later, known...); m != "" {
			out = append(out, m)
		}
	}
	return out
}

// ttl reads the life of our own challenges.
func (l *loader) ttl(c *compiled, ch section, given []string) {
	n, own := ch.get("ttl"), slices.Contains(given, ModeOneTime)
	switch {
	case n == nil && own:
		l.fault(ch.node, ch.at("ttl"), "is missing")
	case n != nil && !own && len(given) > 0:
		l.fault(n, ch.at("ttl"), "is the life of a challenge of mode one-time: another mode's is not ours to say")
	case n != nil:
		c.Challenge.TTL = l.duration(n, ch.at("ttl"), maxTTL)
	}
}

// Vouched is the verdict by which a validator vouches for a request.
const Vouched = "allowed"

// Fact is how [Facts.Validators] has what a validator said. A verdict other than
// [Vouched] may come with words.
func (v Validator) Fact(verdict string) string { return v.Kind + " " + v.Name + ": " + verdict }

// AllVouched is [Facts.Validators] of a request that all of them vouch for.
func (c ChallengeRule) AllVouched() []string {
	var out []string
	for _, v := range c.Validators {
		out = append(out, v.Fact(Vouched))
	}
	return out
}

// validators looks at what those outside said of a new request: each has to have
// vouched for it. It comes late, so that a device hears first of what it can change.
func (r *run) validators() {
	if r.f.Kind == KindRenewal {
		return
	}
	for _, v := range r.c.Challenge.Validators {
		saw := "not asked"
		for _, fact := range r.f.Validators {
			if strings.HasPrefix(fact, v.Fact("")) {
				saw = fact
			}
		}
		r.check("challenge."+v.Kind, saw == v.Fact(Vouched), saw, "the validator has to vouch for the request")
	}
}
