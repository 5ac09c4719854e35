package authority

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

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
