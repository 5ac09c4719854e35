package authority

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/cms"
)

// A generation is a CA with what is looked at in its certificates.
type generation struct {
	CA
	cert      *x509.Certificate
	raDecrypt *cms.Certificate
	until     time.Time // when the first of CA and RA certificates ends
}

// say has the URLs of a certificate lead to the status of its own CA, see
// [policy.CAPlaceholder].
func (g *generation) say(t *x509.Certificate) {
	for _, list := range [][]string{t.CRLDistributionPoints, t.OCSPServer, t.IssuingCertificateURL} {
		for i, u := range list {
			list[i] = strings.ReplaceAll(u, policy.CAPlaceholder, g.Issuer.Name())
		}
	}
}

// generations are those of one issuer. Which one is current is state, not
// configuration: the log says it.
type generations struct {
	issuer string
	all    []*generation // in the configuration's order; never changed

	mu      sync.Mutex
	current *generation
	since   time.Time // zero: from the beginning
	before  string    // the generation that was current before, "" for none
}

func newGenerations(name string, cas []CA) (*generations, error) {
	g := &generations{issuer: name}
	for _, c := range cas {
		one := &generation{CA: c}
		var err error
		if one.cert, err = x509.ParseCertificate(c.Issuer.Certificate()); err != nil {
			return nil, fmt.Errorf("authority: the CA of generation %s of issuer %s: %w", c.Generation.Name, name, err)
		}
		if one.raDecrypt, err = cms.ParseCertificate(c.Generation.RADecrypt); err != nil {
			return nil, fmt.Errorf("authority: RA-decrypt of generation %s of issuer %s: %w", c.Generation.Name, name, err)
		}
		one.until = one.cert.NotAfter
		for _, der := range [][]byte{c.Generation.RASign, c.Generation.RADecrypt} {
			ra, err := x509.ParseCertificate(der)
			if err != nil {
				return nil, fmt.Errorf("authority: the RA of generation %s of issuer %s: %w", c.Generation.Name, name, err)
			}
			if ra.NotAfter.Before(one.until) {
				one.until = ra.NotAfter
			}
		}
		g.all = append(g.all, one)
	}
	if len(g.all) == 0 {
		return nil, errors.New("authority: issuer " + name + " has no generation")
	}
	g.current = g.all[0]
	return g, nil
}

// named returns the generation of that name; nil if there is none.
func (g *generations) named(name string) *generation {
	i := slices.IndexFunc(g.all, func(c *generation) bool { return c.Generation.Name == name })
	if i < 0 {
		return nil
	}
	return g.all[i]
}

// ca returns the generation whose CA has that name of its own; nil if there is none.
func (g *generations) ca(name string) *generation {
	i := slices.IndexFunc(g.all, func(c *generation) bool { return c.Issuer.Name() == name })
	if i < 0 {
		return nil
	}
	return g.all[i]
}

// now returns the current generation.
func (g *generations) now() *generation {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.current
}

// make makes a generation the current one.
func (g *generations) make(c *generation, since time.Time, before string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.current, g.since, g.before = c, since, before
}

// next is the generation that is staged: not the current one, newer than that, and
// not at its end; the oldest of several. Of two that begin in one second the later
// one in the configuration is newer.
func (g *generations) next(now time.Time) *generation {
	current := g.now()
	at := slices.Index(g.all, current)
	var next *generation
	for i, c := range g.all {
		begins := c.cert.NotBefore
		newer := begins.After(current.cert.NotBefore) || begins.Equal(current.cert.NotBefore) && i > at
		if newer && now.Before(c.until) && (next == nil || begins.Before(next.cert.NotBefore)) {
			next = c
		}
	}
	return next
}

// service is what the issuer's profiles offer of it: the current generation first.
// Every other one is still answered, or already.
func (g *generations) service(now time.Time) protocol.Service {
	current, next := g.now(), g.next(now)
	s := protocol.Service{Generations: []protocol.Generation{current.Generation}}
	if next != nil {
		s.Next = next.Generation.Name
	}
	for _, c := range g.all {
		if c != current {
			s.Generations = append(s.Generations, c.Generation)
		}
	}
	return s
}

// of returns the generation that an envelope is for: exactly one recipient names its
// RA-decrypt certificate. The envelope is what the device signed, so that nobody
// between could choose another CA for it. nil: none, or more than one.
func (g *generations) of(e *cms.Envelope) *generation {
	var found *generation
	for _, c := range g.all {
		for i := range e.Recipients {
			if !e.Recipients[i].Names(c.raDecrypt) {
				continue
			}
			if found != nil {
				return nil
			}
			found = c
		}
	}
	return found
}

// serviceOf is what a profile offers: its issuer's certificates and its own
// limits on algorithms. A capability is listed where a client that uses it is
// served (RFC 8894, section 3.5.2); AES there means AES-128-CBC, and SCEPStandard
// that and SHA-256.
func serviceOf(s protocol.Service, p *policy.Profile) protocol.Service {
	s.Profile = p.Name
	s.Ciphers = slices.Clone(p.Clients.Ciphers)
	s.LegacySHA1, s.LegacyDES3 = p.Clients.SHA1, p.Clients.DES3
	s.AnySignerKey, s.PasswordRecipient = p.Clients.AnySigner, p.Clients.PasswordRecipient
	s.Digests = nil
	var caps []string
	aes := slices.Contains(s.Ciphers, "AES-128-CBC")
	if aes {
		caps = append(caps, "AES")
	}
	caps = append(caps, "POSTPKIOperation")
	if p.Renewal.Allowed {
		caps = append(caps, "Renewal")
	}
	for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		if slices.Contains(p.Clients.Digests, h.String()) {
			s.Digests, caps = append(s.Digests, h), append(caps, h.String())
		}
	}
	if s.LegacySHA1 {
		caps = append(caps, "SHA-1")
	}
	if s.LegacyDES3 {
		caps = append(caps, "DES3")
	}
	if aes && slices.Contains(s.Digests, crypto.SHA256) {
		caps = append(caps, "SCEPStandard")
	}
	if s.Next != "" {
		caps = append(caps, "GetNextCACert")
	}
	s.CAFirst, s.NoRoot = p.CACertificates.CAFirst, p.CACertificates.NoRoot
	s.ReplyChain, s.NoFailInfoText = p.Reply.Chain, p.Reply.NoFailInfoText
	s.Capabilities = caps
	return s
}

// Errors of a switch.
var (
	ErrNoCA    = errors.New("no such issuer or generation")
	ErrCurrent = errors.New("another generation is current")
	ErrNotNow  = errors.New("the switch makes no sense now")
)

// A CASwitch makes the generation To of an issuer the current one. From is who is
// current now: so an act that was written before another switch does nothing.
type CASwitch struct{ Issuer, From, To string }

// CAState is a generation of an issuer as operators see it.
type CAState struct {
	Issuer      string // by the name that profiles use
	Generation  string
	Name        string // the CA's own, which records and certificates' rows have
	Current     bool
	Next        bool      // devices are told of it as the next
	Since       time.Time // when it became the current one; zero: it was from the beginning, or it is not
	Before      string    // of the current one: the generation that was current before, "" for none
	Certificate *x509.Certificate
	Given       protocol.Generation // what devices are given of it
	Until       time.Time           // when the first of the CA's and its RA's certificates ends
}

// CAs returns every generation, by issuer and in the configuration's order.
func (p *Pipeline) CAs() []CAState {
	var out []CAState
	for _, name := range slices.Sorted(maps.Keys(p.issuers)) {
		out = append(out, p.issuers[name].states(p.now())...)
	}
	return out
}

// ProfilesOf returns the names of the profiles of an issuer, sorted.
func (p *Pipeline) ProfilesOf(issuer string) []string {
	return slices.DeleteFunc(p.policies.Names(), func(name string) bool {
		pr, ok := p.policies.Profile(name)
		return !ok || pr.Issuer != issuer
	})
}

func (g *generations) states(now time.Time) []CAState {
	next := g.next(now)
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []CAState
	for _, c := range g.all {
		s := CAState{
			Issuer: g.issuer, Generation: c.Generation.Name, Name: c.Issuer.Name(), Current: c == g.current, Next: c == next,
			Certificate: c.cert, Given: c.Generation, Until: c.until,
		}
		if s.Current {
			s.Since, s.Before = g.since, g.before
		}
		out = append(out, s)
	}
	return out
}

// SwitchCA makes a generation the current one. The error is [ErrNoCA],
// [ErrCurrent], or [ErrNotNow] for one
// that is current already or whose certificates are not valid now.
func (p *Pipeline) SwitchCA(ctx context.Context, who audit.Actor, s CASwitch, before ...audit.Entry) error {
	g, ok := p.issuers[s.Issuer]
	if !ok {
		return fmt.Errorf("%w: issuer %q", ErrNoCA, s.Issuer)
	}
	to := g.named(s.To)
	if to == nil || g.named(s.From) == nil {
		return fmt.Errorf("%w: issuer %s has no generation %q", ErrNoCA, s.Issuer, map[bool]string{true: s.To, false: s.From}[to == nil])
	}
	unlock, err := p.locks.lock(ctx, "ca/"+s.Issuer)
	if err != nil {
		return fmt.Errorf("authority: waiting for another switch: %w", err)
	}
	defer unlock()
	now := p.now()
	switch current := g.now(); {
	case current.Generation.Name != s.From:
		return fmt.Errorf("%w: it is %s", ErrCurrent, current.Generation.Name)
	case to == current:
		return fmt.Errorf("%w: %s is the current one already", ErrNotNow, s.To)
	case now.Before(to.cert.NotBefore):
		return fmt.Errorf("%w: the CA of %s begins on %s", ErrNotNow, s.To, to.cert.NotBefore.UTC().Format(time.DateTime))
	case !now.Before(to.until):
		return fmt.Errorf("%w: a certificate of the CA or RA of %s ended on %s", ErrNotNow, s.To, to.until.UTC().Format(time.DateTime))
	}
	lines, err := p.log.AppendAll(ctx, append(slices.Clone(before), audit.Entry{
		Event: store.EventCA, Outcome: store.OutSwitched, Request: newID(), Actor: who, Object: store.SwitchedObject(s.Issuer, s.From, s.To),
	})...)
	if err != nil {
		return err
	}
	g.make(to, lines[len(lines)-1].Record.Time.UTC().Truncate(time.Second), s.From)
	p.zap.Info("the current CA was switched", zap.String("issuer", s.Issuer), zap.String("from", s.From), zap.String("to", s.To))
	return nil
}

// currentCAs takes from the index which generations are current. One that the
// configuration does not have is no reason to take another: devices would be given a
// CA that nobody chose.
func (p *Pipeline) currentCAs(ctx context.Context) error {
	all, err := p.index.CurrentCAs(ctx)
	if err != nil {
		return fmt.Errorf("authority: reading which CAs are current: %w", err)
	}
	for name, was := range all {
		g, ok := p.issuers[name]
		if !ok {
			continue // no profile names it
		}
		c := g.named(was.Generation)
		if c == nil {
			return fmt.Errorf("%w: generation %s of issuer %s is the current one, and the configuration has none of that name: put it back, and switch before it is taken out", ErrNoCA, was.Generation, name)
		}
		g.make(c, was.Since, was.Before)
	}
	return nil
}
