package scep

import (
	"errors"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// defaultBroken is how many envelopes a source may get wrong in a minute before it
// has to wait. What an envelope does not tell in one answer it does not tell in
// 100,000 a day either; a device that is set up wrongly stays well below.
const defaultBroken = 60

// maxSources bounds what is remembered of sources.
const maxSources = 4096

// errBroken says that a source has got too many envelopes wrong.
var errBroken = errors.New("scep: too many broken envelopes from this source")

// A budget counts by source the envelopes that the RA key was asked to open for
// nothing. A source is an IPv4 address or an IPv6 /64.
type budget struct {
	perMinute int
	now       func() time.Time

	mu      sync.Mutex
	sources map[netip.Prefix]*rate.Limiter
}

// source is false for what is no address: there is nobody to count.
func source(remote string) (netip.Prefix, bool) {
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}, false
	}
	addr, bits := at.Addr().Unmap().WithZone(""), 32
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	return p, err == nil
}

// left reports whether the source may have another envelope opened.
func (b *budget) left(remote string) bool {
	p, ok := source(remote)
	if !ok {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.sources[p]
	return l == nil || l.TokensAt(b.now()) >= 1
}

// spend counts one that was broken.
func (b *budget) spend(remote string) {
	p, ok := source(remote)
	if !ok {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	l := b.sources[p]
	if l == nil {
		b.room(now)
		l = rate.NewLimiter(rate.Limit(float64(b.perMinute)/60), b.perMinute)
		b.sources[p] = l
	}
	l.AllowN(now, 1)
}

// room forgets sources that have their whole budget again; if there are none, all of
// them: a table that is full of attackers' addresses keeps nobody out.
func (b *budget) room(now time.Time) {
	if len(b.sources) < maxSources {
		if b.sources == nil {
			b.sources = make(map[netip.Prefix]*rate.Limiter)
		}
		return
	}
	for p, l := range b.sources {
		if l.TokensAt(now) >= float64(b.perMinute) {
			delete(b.sources, p)
		}
	}
	if len(b.sources) >= maxSources {
		clear(b.sources)
	}
}
