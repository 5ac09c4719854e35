package listen

import (
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// maxSources bounds a table of sources. Twice as many are remembered at most.
	maxSources = 8192
	// turnsPerSource is how many signatures of one source are under way at once:
	// they may be slow, and others wait behind them.
	turnsPerSource = 4
)

// errNoTurn is what a handshake ends with that was not served in its time.
var errNoTurn = errors.New("listen: too many handshakes of this source")

// source returns whom a connection is counted for: an IPv4 address, or the /64
// that one IPv6 host has for itself.
func source(a net.Addr) netip.Prefix {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Prefix{} // no TCP: all of them are one source
	}
	ip, bits := ap.Addr().Unmap().WithZone(""), 32
	if ip.Is6() {
		bits = 64
	}
	p, _ := ip.Prefix(bits)
	return p
}

// A limiter counts open connections and the rate of new ones. Its table of
// connections has an entry for each source with one, so it is no larger than the
// total that it allows; that of rates is bounded by itself.
type limiter struct {
	perSource, total int

	mu   sync.Mutex // guards what is below
	open map[netip.Prefix]*peer
	all  int
	rate rates
}

// peer is a source with open connections.
type peer struct {
	open int
	turn chan struct{} // a place for each signature under way
}

func newLimiter(perSource, total, perSecond int) *limiter {
	return &limiter{
		perSource: perSource, total: total, open: map[netip.Prefix]*peer{},
		// A source may fill its connections at once, and goes on at the rate.
		rate: newRates(perSecond, max(perSecond, perSource), maxSources),
	}
}

// take counts a connection and returns the turns of its source, or says why it may
// not be had.
func (l *limiter) take(from netip.Prefix, now time.Time) (turn chan struct{}, why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.open[from]
	switch {
	case !l.rate.allow(from, now):
		return nil, "too many new connections from this source"
	case p != nil && p.open >= l.perSource:
		return nil, "too many connections from this source"
	case l.all >= l.total:
		return nil, "too many connections"
	case p == nil:
		p = &peer{turn: make(chan struct{}, turnsPerSource)}
		l.open[from] = p
	}
	p.open++
	l.all++
	return p.turn, ""
}

func (l *limiter) give(from netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	p := l.open[from]
	if p.open--; p.open == 0 {
		delete(l.open, from)
	}
}

// rates is a token bucket for each source. A bucket that had time to fill is as
// good as none, so the table is begun anew when all of it had: what is older than
// the table before is forgotten. In a flood of sources it is begun anew when it is
// full, and the oldest are forgotten early.
type rates struct {
	interval time.Duration // for one more
	burst    int
	most     int

	since       time.Time                  // when now was begun
	now, before map[netip.Prefix]time.Time // when each bucket is full again
}

func newRates(perSecond, burst, most int) rates {
	return rates{interval: time.Second / time.Duration(perSecond), burst: burst, most: most, now: map[netip.Prefix]time.Time{}}
}

// fill is how long an empty bucket takes.
func (r *rates) fill() time.Duration { return r.interval * time.Duration(r.burst) }

func (r *rates) allow(from netip.Prefix, at time.Time) bool {
	if at.Sub(r.since) > r.fill() || len(r.now) >= r.most {
		r.since, r.now, r.before = at, make(map[netip.Prefix]time.Time), r.now
	}
	full, ok := r.now[from]
	if !ok {
		full = r.before[from]
	}
	if full.Before(at) {
		full = at
	}
	full = full.Add(r.interval)
	if full.Sub(at) > r.fill() {
		return false
	}
	r.now[from] = full
	return true
}

// A countedConn gives its place back when it is closed.
type countedConn struct {
	net.Conn
	turn    chan struct{}
	release func()
}

// Close implements [net.Conn].
func (c *countedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// inTurn has the signatures of one source wait for each other, wherever the key is:
// a queue behind it, first come first served, then has few of each source.
func inTurn(get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		cert, err := get(hello)
		if err != nil || cert == nil {
			return cert, err
		}
		conn, ok := hello.Conn.(*countedConn)
		key, signs := cert.PrivateKey.(crypto.Signer)
		if !ok || !signs {
			return cert, nil
		}
		own := *cert
		own.PrivateKey = turnSigner{key, conn.turn, hello.Context()}
		return &own, nil
	}
}

// turnSigner is the server's key for one handshake.
type turnSigner struct {
	crypto.Signer
	turn chan struct{}
	ctx  context.Context //nolint:containedctx // crypto.Signer has none, and this one lives as long as its handshake
}

// Sign implements [crypto.Signer].
func (s turnSigner) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-s.ctx.Done():
		return nil, fmt.Errorf("%w: %w", errNoTurn, s.ctx.Err())
	}
	return s.Signer.Sign(rand, digest, opts)
}
