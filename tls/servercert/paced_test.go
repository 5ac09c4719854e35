package servercert_test

import (
	"crypto"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/postern-pki/postern/tls/servercert"
)

// token does so many operations at once, each in its time, first come first
// served.
type token struct {
	crypto.Signer
	sessions chan struct{}
	each     time.Duration
	used     atomic.Int64 // ns
	order    chan byte    // first bytes of the digests, where somebody reads them
	fail     bool
}

func newToken(key crypto.Signer, sessions int, each time.Duration) *token {
	return &token{Signer: key, sessions: make(chan struct{}, sessions), each: each}
}

func (k *token) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	k.sessions <- struct{}{}
	defer func() { <-k.sessions }()
	time.Sleep(k.each)
	k.used.Add(int64(k.each))
	if k.order != nil {
		k.order <- digest[0]
	}
	if k.fail {
		return nil, errDown
	}
	return []byte{1}, nil
}

// gauged is a key whose use is noted, as an enrollment's is.
type gauged struct {
	crypto.Signer
	g *servercert.Gauge
}

func (k gauged) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	defer k.g.Begin()()
	return k.Signer.Sign(rand, digest, opts)
}

// use has so many callers sign with key until stop.
func use(key crypto.Signer, callers int, stop <-chan struct{}) *atomic.Int64 {
	done := &atomic.Int64{}
	for range callers {
		go func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := key.Sign(nil, make([]byte, 32), crypto.SHA256); err == nil {
					done.Add(1)
				} else {
					time.Sleep(time.Millisecond) // it would have hung up
				}
			}
		}()
	}
	return done
}

func paced(t *testing.T, key crypto.Signer, o servercert.PacedOptions) *servercert.Paced {
	t.Helper()
	p, err := servercert.NewPaced(key, o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// In a bubble time is reckoned, not measured: the shares are exact.
func TestEnrollmentsKeepTheirShareInAFloodOfHandshakes(t *testing.T) {
	for name, tt := range map[string]struct {
		sessions, enrollments int
		each                  time.Duration
	}{
		"a slow token":               {1, 1, 100 * time.Millisecond},
		"many enrollments at once":   {1, 16, 10 * time.Millisecond},
		"a token with many sessions": {8, 32, 5 * time.Millisecond},
		"a fast token":               {2, 4, time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			key := newKey(t)
			synctest.Test(t, func(t *testing.T) {
				tok, gauge, stop := newToken(key, tt.sessions, tt.each), &servercert.Gauge{}, make(chan struct{})
				p := paced(t, tok, servercert.PacedOptions{Sessions: tt.sessions, Busy: gauge.Busy, Wait: 5 * time.Second})
				time.Sleep(time.Second)
				if _, err := p.Sign(nil, make([]byte, 32), crypto.SHA256); err != nil { // who enrolls has shaken hands
					t.Error(err)
				}
				enrolled := use(gauged{tok, gauge}, tt.enrollments, stop)
				time.Sleep(time.Second)
				shaken := use(p, 200, stop)
				before, time0 := enrolled.Load(), time.Now()
				time.Sleep(time.Minute)
				all := float64(time.Since(time0)) * float64(tt.sessions)
				others, own := float64(enrolled.Load()-before)*float64(tt.each)/all, float64(shaken.Load())*float64(tt.each)/all
				if others < 0.795 {
					t.Errorf("enrollments had %.3f of the token, handshakes %.3f", others, own)
				}
				// One waits among the enrollments at a time, and is served in its turn.
				if own < 0.8*min(0.2, 1/float64(tt.enrollments+1)) {
					t.Errorf("handshakes had %.3f of the token, enrollments %.3f", own, others)
				}
				close(stop)
				time.Sleep(time.Minute)
			})
		})
	}
}

func TestHandshakesHaveAnIdleToken(t *testing.T) {
	key := newKey(t)
	synctest.Test(t, func(t *testing.T) {
		tok, gauge, stop := newToken(key, 4, 10*time.Millisecond), &servercert.Gauge{}, make(chan struct{})
		p := paced(t, tok, servercert.PacedOptions{Sessions: 4, Busy: gauge.Busy})
		time.Sleep(time.Second)
		shaken := use(p, 64, stop)
		time.Sleep(10 * time.Second)
		if n := shaken.Load(); n < 3990 {
			t.Errorf("%d signatures in 10 s, the token does 4000", n)
		}
		// One enrollment, and the handshakes step back at once.
		used := tok.used.Load()
		done := gauge.Begin()
		time.Sleep(time.Second)
		if n := time.Duration(tok.used.Load() - used); n > 900*time.Millisecond {
			t.Errorf("%v of the token's 4 s were handshakes' while somebody else wanted it", n)
		}
		done()
		close(stop)
		time.Sleep(time.Minute)
	})
}

func TestTheQueueIsBoundedInLengthAndTime(t *testing.T) {
	key := newKey(t)
	synctest.Test(t, func(t *testing.T) {
		core, logged := observer.New(zap.WarnLevel)
		tok := newToken(key, 1, time.Hour)
		p := paced(t, tok, servercert.PacedOptions{Queue: 3, Wait: 5 * time.Second, Log: zap.New(core)})
		results := make(chan error, 10)
		began := time.Now()
		for range 10 {
			go func() {
				_, err := p.Sign(nil, make([]byte, 32), crypto.SHA256)
				results <- err
			}()
		}
		synctest.Wait()
		if n := len(results); n != 6 { // one is signed, three wait
			t.Errorf("%d of 10 were turned away at once, want 6", n)
		}
		for range 9 {
			if err := <-results; !errors.Is(err, servercert.ErrBusy) {
				t.Errorf("Sign: %v, want ErrBusy", err)
			}
		}
		if waited := time.Since(began); waited != 5*time.Second {
			t.Errorf("the last was turned away after %v, want 5s", waited)
		}
		if err := <-results; err != nil {
			t.Error(err)
		}
		var count uint64
		for _, e := range logged.All() {
			count += e.ContextMap()["count"].(uint64)
		}
		if logged.Len() != 2 || count == 0 {
			t.Errorf("%d lines about %d handshakes, want one line a second", logged.Len(), count)
		}
	})
}

func TestFirstComeFirstServed(t *testing.T) {
	key := newKey(t)
	synctest.Test(t, func(t *testing.T) {
		tok := newToken(key, 1, time.Millisecond)
		tok.order = make(chan byte, 64)
		p := paced(t, tok, servercert.PacedOptions{})
		for n := range byte(50) {
			go func() { _, _ = p.Sign(nil, []byte{n}, crypto.SHA256) }()
			synctest.Wait()
		}
		for n := range byte(50) {
			if got := <-tok.order; got != n {
				t.Fatalf("signature %d came as number %d", got, n)
			}
		}
	})
}

// A token that fails at once is not taken for a fast one.
func TestFailuresDoNotOpenTheGate(t *testing.T) {
	key := newKey(t)
	synctest.Test(t, func(t *testing.T) {
		tok, stop := newToken(key, 1, 10*time.Millisecond), make(chan struct{})
		p := paced(t, tok, servercert.PacedOptions{})
		if _, err := p.Sign(nil, make([]byte, 32), crypto.SHA256); err != nil {
			t.Fatal(err)
		}
		tok.fail, tok.each = true, time.Microsecond
		if _, err := p.Sign(nil, make([]byte, 32), crypto.SHA256); !errors.Is(err, errDown) {
			t.Fatalf("Sign: %v, want the token's own error", err)
		}
		tok.fail, tok.each = false, 10*time.Millisecond
		time.Sleep(time.Second)
		before := tok.used.Load()
		use(p, 50, stop)
		time.Sleep(10 * time.Second)
		if n := time.Duration(tok.used.Load() - before); n > 2100*time.Millisecond {
			t.Errorf("%v of 10 s, want a fifth", n)
		}
		close(stop)
		time.Sleep(time.Minute)
	})
}

func TestBadPaces(t *testing.T) {
	for name, o := range map[string]servercert.PacedOptions{"a share above all": {Share: 1.1}, "below none": {Share: -1}, "no sessions": {Sessions: -1}, "no time": {Wait: -1}, "no queue": {Queue: -1}} {
		if _, err := servercert.NewPaced(newKey(t), o); !errors.Is(err, servercert.ErrOptions) {
			t.Errorf("%s: %v, want ErrOptions", name, err)
		}
	}
	if _, err := servercert.NewPaced(nil, servercert.PacedOptions{}); !errors.Is(err, servercert.ErrOptions) {
		t.Errorf("no key: %v, want ErrOptions", err)
	}
}
