package authority

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
)

// Errors of a switch, beside [ErrBadRequest].
var (
	ErrNoCA    = errors.New("no such issuer or generation")
	ErrCurrent = errors.New("another generation is current")
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
	Until       time.Time // when the first of the CA's and its RA's certificates ends
}

// CAs returns every generation, by issuer and in the configuration's order.
func (p *Pipeline) CAs() []CAState {
	var out []CAState
	for _, name := range slices.Sorted(maps.Keys(p.issuers)) {
		out = append(out, p.issuers[name].states(p.now())...)
	}
	return out
}

func (g *generations) states(now time.Time) []CAState {
	next := g.next(now)
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []CAState
	for _, c := range g.all {
		s := CAState{
			Issuer: g.issuer, Generation: c.Generation.Name, Name: c.Issuer.Name(), Current: c == g.current, Next: c == next,
			Certificate: c.cert, Until: c.until,
		}
		if s.Current {
			s.Since, s.Before = g.since, g.before
		}
		out = append(out, s)
	}
	return out
}

// SwitchCA makes a generation the current one. The error is [ErrNoCA],
// [ErrCurrent], or [ErrBadRequest] for one whose certificates are not valid now.
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
		return fmt.Errorf("%w: %s is the current one already", ErrBadRequest, s.To)
	case now.Before(to.cert.NotBefore):
		return fmt.Errorf("%w: the CA of %s begins on %s", ErrBadRequest, s.To, to.cert.NotBefore.UTC().Format(time.DateTime))
	case !now.Before(to.until):
		return fmt.Errorf("%w: a certificate of the CA or RA of %s ended on %s", ErrBadRequest, s.To, to.until.UTC().Format(time.DateTime))
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
