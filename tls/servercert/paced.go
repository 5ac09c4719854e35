package servercert

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"
)

// ErrBusy ends a handshake whose signature would have come too late, or whose queue
// was full.
var ErrBusy = errors.New("servercert: too many handshakes ask for a signature")

const (
	defaultShare = 0.2
	defaultWait  = 5 * time.Second
	defaultQueue = 256
	saved        = 100 * time.Millisecond // how long the share may be saved up
	lookAgain    = 20 * time.Millisecond  // for whether the others still work
)

// PacedOptions are what [NewPaced] needs.
type PacedOptions struct {
	Share    float64 // of the key's time that handshakes may have while others want it; 0: a fifth
	Sessions int     // how many operations the key's token does at once; 0: 1
	// Busy reports whether others want the token, or did a moment ago, such as
	// [Gauge.Busy]. It must not block. nil: always.
	Busy  func() bool
	Wait  time.Duration // for one signature; 0: 5 s, as long as a handshake
	Queue int           // how many may wait; 0: 256
	Log   *zap.Logger
}

// Paced is a key on a token that others use too. While they do, its signatures have
// their share of the token's time, and at most that share of its sessions but one at
// least; the time of a signature is measured. While nobody else wants the token they
// may have all of it, and who comes then waits for one of them at most. Signatures
// wait in one queue, first come first served. Paced is safe for concurrent use.
type Paced struct {
	key     crypto.Signer
	o       PacedOptions
	dropped atomic.Uint64 // that no line counts yet
	seldom  rate.Sometimes

	mu      sync.Mutex // guards what is below
	queue   []*waiter
	running int
	cost    time.Duration // of one signature: beside others it is the shortest, as theirs are waited for too
	credit  time.Duration // of the token's time; below zero it is owed
	at      time.Time     // when the credit was reckoned
	again   *time.Timer   // looks at the queue when there is credit again
}

// waiter is a signature that waits for its turn. It is told what was charged.
type waiter struct{ ready chan time.Duration }

// NewPaced returns a key that signs with key, in its share.
func NewPaced(key crypto.Signer, o PacedOptions) (*Paced, error) {
	if key == nil || o.Share < 0 || o.Share > 1 || o.Sessions < 0 || o.Wait < 0 || o.Queue < 0 {
		return nil, fmt.Errorf("%w: a key, and a share from 0 to 1", ErrOptions)
	}
	if o.Share == 0 {
		o.Share = defaultShare
	}
	if o.Sessions == 0 {
		o.Sessions = 1
	}
	if o.Busy == nil {
		o.Busy = func() bool { return true }
	}
	if o.Wait == 0 {
		o.Wait = defaultWait
	}
	if o.Queue == 0 {
		o.Queue = defaultQueue
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	p := &Paced{key: key, o: o, at: time.Now(), seldom: rate.Sometimes{First: 1, Interval: time.Second}}
	p.credit = p.most()
	return p, nil
}

// Public implements [crypto.Signer].
func (p *Paced) Public() crypto.PublicKey { return p.key.Public() }

// Sign implements [crypto.Signer]. It waits for its turn, and fails with [ErrBusy]
// when that does not come in time.
func (p *Paced) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) (sig []byte, err error) {
	err = p.Do(context.Background(), func() error {
		sig, err = p.key.Sign(rand, digest, opts)
		return err
	})
	return sig, err
}

// Do calls sign, which has the key sign once, in its turn. It is for a key whose
// signatures have a context.
func (p *Paced) Do(ctx context.Context, sign func() error) error {
	charged, err := p.wait(ctx)
	if err != nil {
		return err
	}
	began, signed := time.Now(), false
	defer func() { p.done(time.Since(began), charged, signed) }()
	err = sign()
	signed = err == nil
	return err
}

// wait returns when the signature may begin, with what it was charged before it is
// known what it costs.
func (p *Paced) wait(ctx context.Context) (time.Duration, error) {
	w := &waiter{ready: make(chan time.Duration, 1)}
	p.mu.Lock()
	if len(p.queue) >= p.o.Queue {
		p.mu.Unlock()
		p.drop("the queue is full")
		return 0, ErrBusy
	}
	p.queue = append(p.queue, w)
	p.dispatch()
	p.mu.Unlock()
	t := time.NewTimer(p.o.Wait)
	defer t.Stop()
	select {
	case charged := <-w.ready:
		return charged, nil
	case <-t.C:
	case <-ctx.Done():
	}
	if !p.leave(w) { // it was its turn just now
		return <-w.ready, nil
	}
	if ctx.Err() != nil {
		return 0, fmt.Errorf("%w: %w", ErrBusy, ctx.Err())
	}
	p.drop("the token had no time for it")
	return 0, ErrBusy
}

// leave takes w out of the queue, and reports whether it was there.
func (p *Paced) leave(w *waiter) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, q := range p.queue {
		if q == w {
			p.queue = append(p.queue[:i], p.queue[i+1:]...)
			return true
		}
	}
	return false
}

// own is what handshakes have of the token's time, in seconds a second.
func (p *Paced) own() float64 { return p.o.Share * float64(p.o.Sessions) }

// most is what they can have saved up.
func (p *Paced) most() time.Duration { return time.Duration(p.own() * float64(saved)) }

// dispatch begins what may begin now, in the order of the queue. p.mu is held.
func (p *Paced) dispatch() {
	if p.again != nil {
		p.again.Stop()
		p.again = nil
	}
	now := time.Now()
	own := p.own()
	p.credit = min(p.credit+time.Duration(own*float64(now.Sub(p.at))), p.most())
	p.at = now
	for len(p.queue) > 0 {
		busy := p.o.Busy()
		limit, charge := p.o.Sessions, time.Duration(0)
		if busy {
			limit, charge = max(1, int(own)), p.cost
		}
		if p.running >= limit {
			return // until one is done
		}
		if busy && p.credit <= 0 {
			owed := time.Duration(float64(-p.credit) / own)
			p.again = time.AfterFunc(min(owed+time.Millisecond, lookAgain), func() {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.dispatch()
			})
			return
		}
		p.credit -= charge
		p.running++
		p.queue[0].ready <- charge
		p.queue = p.queue[1:]
	}
}

// done settles what a signature cost. One that others had no part in costs nothing.
func (p *Paced) done(took, charged time.Duration, signed bool) {
	busy := p.o.Busy()
	p.mu.Lock()
	defer p.mu.Unlock()
	alone := charged == 0 && !busy
	switch {
	case !signed: // a failure may be quicker than any signature
	case p.cost == 0 || took < p.cost:
		p.cost = took
	case alone: // a token can become slower
		p.cost += (took - p.cost) / 4
	}
	if !alone {
		p.credit += charged - min(took, p.cost)
	}
	p.running--
	p.dispatch()
}

func (p *Paced) drop(why string) {
	p.dropped.Add(1)
	p.seldom.Do(func() {
		p.o.Log.Warn("handshakes without a signature", zap.Uint64("count", p.dropped.Swap(0)), zap.String("why", why))
	})
}

// A Gauge knows whether others want the token: they say when they begin to and when
// they have what they wanted. The zero value is ready; a Gauge is safe for
// concurrent use.
type Gauge struct {
	mu    sync.Mutex
	using int
	last  time.Time
}

// quiet is how long nobody else has to have wanted the token for it to be free:
// there are pauses between the operations of one enrollment.
const quiet = 100 * time.Millisecond

// Begin notes that an operation is wanted, from before it waits for the token;
// done, that it is over.
func (g *Gauge) Begin() (done func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.using++
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.using--
		g.last = time.Now()
	})
}

// Busy reports whether an operation is wanted, or was within a tenth of a second.
func (g *Gauge) Busy() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.using > 0 || time.Since(g.last) < quiet
}
