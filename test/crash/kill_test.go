package crash_test

import (
	"context"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// A job is one device: it asks with the same request until it has an answer, as
// a device does that was cut off.
type job struct {
	client.Enrollment
	challenge site.Challenge
}

// A fleet is the devices and what they were told.
type fleet struct {
	keys []*rsa.PrivateKey
	made int

	mu    sync.Mutex
	todo  []*job
	fresh map[string]string // serials acknowledged in this round, and their challenge
	cut   int               // requests without an answer
	wrong []error
}

func newFleet(t *testing.T, keys int) *fleet {
	t.Helper()
	f := &fleet{fresh: map[string]string{}, keys: make([]*rsa.PrivateKey, keys)}
	for i := range f.keys {
		f.keys[i] = newKey(t)
	}
	return f
}

// refill has challenges for at least n devices.
func (f *fleet) refill(t *testing.T, s *site.Site, n int) {
	t.Helper()
	if len(f.todo) >= n {
		return
	}
	subjects := make([]string, n)
	for i := range subjects {
		f.made++
		subjects[i] = fmt.Sprintf("CN=d%d.demo.example", f.made)
	}
	challenges, err := s.Challenges(t.Context(), "interop", subjects...)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range challenges {
		f.todo = append(f.todo, &job{enrollment(f.keys[i%len(f.keys)], c), c})
	}
}

func (f *fleet) take() *job {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.todo) == 0 {
		return nil
	}
	j := f.todo[0]
	f.todo = f.todo[1:]
	return j
}

// enroll does one job after the other until the service is gone.
func (f *fleet) enroll(ctx context.Context, d *site.Device) {
	for {
		j := f.take()
		if j == nil {
			return
		}
		r, err := d.Enroll(ctx, j.Enrollment)
		f.mu.Lock()
		switch {
		case err == nil:
			f.fresh[hexSerial(r.Certificate)] = j.challenge.ID
		case isAnswer(err):
			f.wrong = append(f.wrong, fmt.Errorf("challenge %s for %s: %w", j.challenge.ID, j.challenge.Subject, err))
		default:
			f.cut++
			f.todo = append([]*job{j}, f.todo...)
		}
		f.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// isAnswer tells what a device was told, and should not have been, from a
// connection that broke and a 503.
func isAnswer(err error) bool {
	_, fail := errors.AsType[*client.FailError](err)
	_, pending := errors.AsType[*client.PendingError](err)
	status, ok := errors.AsType[*client.StatusError](err)
	for _, e := range []error{client.ErrReply, client.ErrCertificate, client.ErrCA, client.ErrFingerprint, client.ErrTransport, client.ErrRequest} {
		fail = fail || errors.Is(err, e)
	}
	return fail || pending || ok && status.Code != http.StatusServiceUnavailable
}

// load enrolls from several goroutines and kills the service meanwhile.
func (f *fleet) load(t *testing.T, s *site.Site) {
	t.Helper()
	d := newDevice(t, s)
	defer d.HTTP.CloseIdleConnections()
	var wg sync.WaitGroup
	for range 4 + mathrand.IntN(5) {
		wg.Go(func() { f.enroll(t.Context(), d) })
	}
	time.Sleep(time.Duration(20+mathrand.IntN(300)) * time.Millisecond)
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	for _, err := range f.wrong {
		t.Error(err)
	}
	f.wrong = nil
}

// TestKillUnderLoad kills the service at any moment of its work, again and again.
//
// Covers: S-149
func TestKillUnderLoad(t *testing.T) {
	rounds := 50
	if os.Getenv("POSTERN_SOAK") != "" {
		rounds = 500
	}
	s := newSite(t)
	f := newFleet(t, 16)
	l := newLedger()
	for round := 1; round <= rounds && !t.Failed(); round++ {
		start(t, s)
		l.check(t, s, f.fresh)
		clear(f.fresh)
		f.refill(t, s, 100)
		f.load(t, s)
		verify(t, s)
	}
	start(t, s)
	l.check(t, s, f.fresh)
	stop(t, s)
	verify(t, s)
	rebuilt(t, s)
	t.Logf("%d kills: %d certificates acknowledged, %d requests without an answer, %d intents with an unknown outcome",
		rounds, len(l.acknowledged), f.cut, l.unknown)
	if len(l.acknowledged) < rounds || f.cut == 0 {
		t.Errorf("the service was not killed under load: %d acknowledged, %d cut", len(l.acknowledged), f.cut)
	}
}

// rebuilt makes the index anew: it has to be the one that the service left.
func rebuilt(t *testing.T, s *site.Site) {
	t.Helper()
	out, errOut, code := s.Postern(t.Context(), nil, "rebuild", "--apply", "--output", "json")
	var r struct{ Same bool }
	if err := json.Unmarshal([]byte(out), &r); code != 0 || err != nil || !r.Same {
		t.Fatalf("postern rebuild: exit %d: %s%s", code, out, errOut)
	}
	start(t, s)
	stop(t, s)
}
