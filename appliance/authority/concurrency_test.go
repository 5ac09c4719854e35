package authority_test

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/protocol"
)

// all submits requests at once, some of which lose their sender on the way, and
// returns the certificates that came out.
func (w *world) all(requests []protocol.Request, hangUp bool) map[string]int {
	w.t.Helper()
	var mu sync.Mutex
	certs := map[string]int{}
	var group sync.WaitGroup
	for i, r := range requests {
		group.Go(func() {
			ctx, cancel := context.WithCancel(w.t.Context())
			defer cancel()
			if hangUp && i%3 == 0 {
				time.AfterFunc(time.Duration(i)*300*time.Microsecond, cancel)
			}
			out, err := w.Submit(ctx, r)
			switch {
			case err != nil && ctx.Err() == nil:
				w.t.Errorf("a fault: %v", err)
			case err == nil && out.Status == protocol.Issued:
				mu.Lock()
				certs[string(out.Certificates[0])]++
				mu.Unlock()
			}
		})
	}
	group.Wait()
	return certs
}

func TestRequestsAtOnce(t *testing.T) {
	const n = 24
	for name, tt := range map[string]struct {
		make    func(w *world) []protocol.Request
		issued  int // certificates in the log
		answers int // with a certificate, where nobody hangs up
	}{
		"one request, many times": {func(w *world) (out []protocol.Request) {
			r := w.request(asked{profile: "wifi", transaction: "t", cn: "a.corp.example", challenge: w.challenge("wifi", "a.corp.example"), key: deviceKeys()[0]})
			for range n {
				out = append(out, r)
			}
			return out
		}, 1, n},
		"one challenge, many CSRs": {func(w *world) (out []protocol.Request) {
			secret := w.challenge("wifi", "a.corp.example")
			for i := range n {
				out = append(out, w.request(asked{profile: "wifi", transaction: fmt.Sprint(i), cn: "a.corp.example", challenge: secret, key: deviceKeys()[i%4]}))
			}
			return out
		}, 1, 1},
		"one certificate, many renewals by one CSR": {func(w *world) (out []protocol.Request) {
			der, key := w.enroll("a.corp.example")
			r := w.renewal("t", der, key, deviceKeys()[1])
			for i := range n {
				again := r
				if i%2 == 1 { // another transaction for the same CSR
					again = w.request(asked{profile: "wifi", transaction: "u", csr: openEnvelope(w.t, r), kind: 17, signer: der, signerKey: key})
				}
				out = append(out, again)
			}
			return out
		}, 2, n},
		"one certificate, many renewals": {func(w *world) (out []protocol.Request) {
			der, key := w.enroll("a.corp.example")
			for i := range n {
				out = append(out, w.renewal(fmt.Sprint(i), der, key, deviceKeys()[1+i%3]))
			}
			return out
		}, 2, 1},
		"a profile that issues one a minute": {func(w *world) (out []protocol.Request) {
			for i := range n {
				cn := fmt.Sprintf("d%d.corp.example", i)
				out = append(out, w.request(asked{profile: "slow", transaction: fmt.Sprint(i), cn: cn, challenge: w.challenge("slow", cn), key: deviceKeys()[i%4]}))
			}
			return out
		}, 1, 1},
	} {
		for _, hangUp := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, hanging up: %v", name, hangUp), func(t *testing.T) {
				w := newWorld(t)
				requests := tt.make(w)
				certs := w.all(requests, hangUp)
				answers := 0
				for _, times := range certs {
					answers += times
				}
				// A renewal's CSR is not new to its lineage: one more than the budget
				// would show as one more certificate.
				if got := w.count("enroll", "issued"); got != tt.issued {
					t.Errorf("%d certificates were issued, want %d", got, tt.issued)
				}
				if !hangUp && name != "one certificate, many renewals" && answers != tt.answers || len(certs) > 1 {
					t.Errorf("%d answers with %d certificates, want %d with one", answers, len(certs), tt.answers)
				}
				w.restart()
				w.sound()
			})
		}
	}
}

// A token that fails now and then, devices that hang up, and challenges that are
// shown with other names: whatever comes of it, no challenge is spent twice, no
// intent stays open, and the log can be followed from its beginning.
func TestNothingIsLostUnderLoad(t *testing.T) {
	w := newWorld(t)
	var signed atomic.Int64
	w.token.before = func(ctx context.Context) error {
		if signed.Add(1)%4 == 0 {
			return context.DeadlineExceeded
		}
		return ctx.Err()
	}
	var requests []protocol.Request
	for i := range 12 {
		cn := fmt.Sprintf("d%d.corp.example", i)
		secret := w.challenge("wifi", cn)
		for j := range 8 {
			a := asked{profile: "wifi", transaction: fmt.Sprint(j / 2), cn: cn, challenge: secret, key: deviceKeys()[j%4]}
			if j == 7 {
				a.cn = "other.corp.example"
			}
			requests = append(requests, w.request(a))
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var group sync.WaitGroup
	for i, r := range requests {
		group.Go(func() {
			ctx, hangUp := context.WithCancel(ctx)
			defer hangUp()
			if i%5 == 0 {
				time.AfterFunc(time.Duration(i)*100*time.Microsecond, hangUp)
			}
			_, _ = w.Submit(ctx, r)
		})
	}
	group.Wait()
	w.sound()
	decided := len(w.records(func(r audit.Record) bool {
		return r.Event == "enroll" && (r.Outcome == "refused" || r.Outcome == "repeated" || r.Outcome == "intent") || r.Event == "message"
	}))
	if decided < len(requests) {
		t.Errorf("%d requests stand in the log, of %d", decided, len(requests))
	}
	w.restart()
	w.sound()
}

// A challenge is for one profile, one set of names and one device, and nothing
// that failed for it shows which of them was wrong.
func TestRefusedChallengesLookAlike(t *testing.T) {
	w := newWorld(t)
	secret := w.challenge("wifi", "a.corp.example")
	good := asked{profile: "wifi", transaction: "1", cn: "a.corp.example", challenge: secret, key: deviceKeys()[0]}
	say := map[string]bool{}
	for _, change := range []func(a *asked){
		func(a *asked) { a.profile = "slow" },
		func(a *asked) { a.cn = "b.corp.example" },
		func(a *asked) { a.dns = []string{"a.corp.example"} },
		func(a *asked) { a.challenge = bytes.Repeat([]byte("0"), 26) },
		func(a *asked) { a.challenge = []byte("hunter2") },
	} {
		a := good
		change(&a)
		out, err := w.Submit(t.Context(), w.request(a))
		if err != nil || out.Status != protocol.Refused {
			t.Fatal(describe(out, err))
		}
		say[out.Refusal.Kind.String()+out.Refusal.Say] = true
	}
	if len(say) != 1 {
		t.Errorf("they can be told apart: %v", say)
	}
	if out, err := w.Submit(t.Context(), w.request(good)); err != nil || out.Status != protocol.Issued {
		t.Error(describe(out, err))
	}
	for _, r := range w.records(func(audit.Record) bool { return true }) {
		if bytes.Contains(fmt.Append(nil, r), secret) {
			t.Errorf("record %d has the challenge in clear", r.Seq)
		}
	}
}
