package crash_test

import (
	"context"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-pki/postern/test/site"
)

// persist does jobs until ctx ends, each until it has an answer, as devices do.
func (f *fleet) persist(ctx context.Context, d *site.Device) {
	for ctx.Err() == nil {
		j := f.take()
		if j == nil {
			time.Sleep(time.Millisecond)
			continue
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
			f.todo = append(f.todo, j)
		}
		f.mu.Unlock()
		if err != nil {
			time.Sleep(20 * time.Millisecond)
		}
	}
}

func (f *fleet) acknowledged() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.fresh)
}

// killRole kills the process of one role.
func killRole(t *testing.T, s *site.Site, role string) {
	t.Helper()
	all, err := s.Processes()
	if err != nil {
		t.Fatal(err)
	}
	pid, ok := all[role]
	if !ok {
		t.Fatalf("no process is the %s: %v", role, all)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// othersAnswer asks the roles that were not killed: each says something, and a
// device is never told more than to come back.
func othersAnswer(t *testing.T, s *site.Site, killed, url string, d *site.Device) {
	t.Helper()
	if killed != "gate devices" {
		r, err := d.HTTP.Get(url + "?operation=GetCACaps")
		if err != nil {
			t.Errorf("the %s was killed, and the devices' gate does not answer: %v", killed, err)
			return
		}
		_ = r.Body.Close()
		if r.StatusCode != http.StatusOK && (r.StatusCode != http.StatusServiceUnavailable || r.Header.Get("Retry-After") == "") {
			t.Errorf("the %s was killed, and a device is told %s, to come back after %q", killed, r.Status, r.Header.Get("Retry-After"))
		}
	}
	if killed == "keyholder" || killed == "gate devices" {
		if _, stderr, code := s.Postern(t.Context(), nil, "status"); code != 0 && code != 2 {
			t.Errorf("the %s was killed, and the operators are told, exit %d: %s", killed, code, stderr)
		}
	}
}

// TestKillOneRoleUnderLoad kills one role after the other, while devices enroll: it
// is back by itself, the others keep answering, and nothing is lost.
func TestKillOneRoleUnderLoad(t *testing.T) {
	rounds := 10
	if os.Getenv("POSTERN_SOAK") != "" {
		rounds = 100
	}
	s := newSite(t)
	f := newFleet(t, 16)
	l := newLedger()
	start(t, s)
	url, err := s.URL(t.Context(), "interop")
	if err != nil {
		t.Fatal(err)
	}
	f.refill(t, s, 800)
	d := newDevice(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() { f.persist(ctx, d) })
	}
	for _, role := range []string{"keyholder", "authority", "gate devices", "gate operators"} {
		var back []time.Duration
		for round := 1; round <= rounds && !t.Failed(); round++ {
			time.Sleep(time.Duration(20+mathrand.IntN(150)) * time.Millisecond)
			killed := time.Now()
			killRole(t, s, role)
			othersAnswer(t, s, role, url, d)
			f.served(t, s, killed, role)
			back = append(back, time.Since(killed))
			if f.left() < 100 {
				f.refillMore(t, s, 800)
			}
		}
		if len(back) > 0 {
			slices.Sort(back)
			t.Logf("%s: %d kills, full service again after %s at the median, %s at most", role, len(back), back[len(back)/2].Round(time.Millisecond), back[len(back)-1].Round(time.Millisecond))
		}
	}
	cancel()
	wg.Wait()
	for _, err := range f.wrong {
		t.Error(err)
	}
	stop(t, s)
	start(t, s)
	l.check(t, s, f.fresh)
	stop(t, s)
	verify(t, s)
	rebuilt(t, s)
	t.Logf("%d certificates acknowledged, %d requests without an answer, %d intents with an unknown outcome", len(l.acknowledged), f.cut, l.unknown)
	if len(l.acknowledged) < 4*rounds || f.cut == 0 {
		t.Errorf("nothing was killed under load: %d acknowledged, %d cut", len(l.acknowledged), f.cut)
	}
}

// served waits until devices get certificates and operators an answer again, after
// at most a minute.
func (f *fleet) served(t *testing.T, s *site.Site, since time.Time, role string) {
	t.Helper()
	before := f.acknowledged()
	for operators := false; !operators || f.acknowledged() < before+3; {
		if time.Since(since) > time.Minute {
			t.Fatalf("a minute after the %s was killed there is no full service: %s", role, s.Tail())
		}
		if !operators {
			_, _, code := s.Postern(t.Context(), nil, "status")
			operators = code == 0
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// refillMore adds n challenges to those that are left.
func (f *fleet) refillMore(t *testing.T, s *site.Site, n int) {
	t.Helper()
	more := &fleet{keys: f.keys, made: f.made}
	more.refill(t, s, n)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.made, f.todo = more.made, append(f.todo, more.todo...)
}

func (f *fleet) left() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.todo)
}
