package authority_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/protocol"
)

func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A device that hangs up while its intent goes to the disk, and comes again with
// the same challenge, must not make the log spend one challenge twice: no index
// could follow that, now or at any later start.
func TestADeviceThatHangsUpAtItsIntentSpendsItsChallengeOnce(t *testing.T) {
	w := newWorld(t)
	secret := w.challenge("wifi", "a.corp.example")
	first := w.request(asked{profile: "wifi", transaction: "1", cn: "a.corp.example", challenge: secret, key: deviceKeys()[0]})
	second := w.request(asked{profile: "wifi", transaction: "2", cn: "a.corp.example", challenge: secret, key: deviceKeys()[1]})
	ctx, hangUp := context.WithCancel(t.Context())
	came := make(chan struct{})
	var once sync.Once
	var late protocol.Outcome
	var lateErr error
	w.gate.when(func(l audit.Line) {
		if l.Record.Outcome != store.OutIntent {
			return
		}
		once.Do(func() {
			hangUp()
			go func() {
				defer close(came)
				late, lateErr = w.Submit(t.Context(), second)
			}()
			// The second request comes as far as it gets while the first one's
			// intent is under way.
			time.Sleep(300 * time.Millisecond)
		})
	})
	out, err := w.Submit(ctx, first)
	<-came
	if err != nil || out.Status != protocol.Issued {
		t.Errorf("what was begun is finished: %s", describe(out, err))
	}
	if lateErr != nil || late.Status != protocol.Refused {
		t.Errorf("the second request: %s", describe(late, lateErr))
	}
	w.restart()
	w.sound()
}

// The fifth refusal revokes a challenge. A request that holds it at that moment
// and then spends it would leave a log that no index could follow.
func TestAChallengeIsNotRevokedUnderWhoSpendsIt(t *testing.T) {
	for _, refusalFirst := range []bool{true, false} {
		t.Run(map[bool]string{true: "the refusal comes first", false: "the request comes first"}[refusalFirst], func(t *testing.T) {
			w := newWorld(t)
			secret := w.challenge("wifi", "a.corp.example")
			bad := func(n string) protocol.Request {
				return w.request(asked{profile: "wifi", transaction: "bad" + n, cn: "b" + n + ".corp.example", challenge: secret, key: deviceKeys()[0]})
			}
			for n := range 4 {
				if out, err := w.Submit(t.Context(), bad(strconv.Itoa(n))); err != nil || out.Status != protocol.Refused {
					t.Fatal(describe(out, err))
				}
			}
			requests := []protocol.Request{bad("5"), w.request(asked{profile: "wifi", transaction: "good", cn: "a.corp.example", challenge: secret, key: deviceKeys()[1]})}
			if !refusalFirst {
				slices.Reverse(requests)
			}
			var group sync.WaitGroup
			var once sync.Once
			begin := make(chan struct{})
			w.gate.when(func(audit.Line) {
				once.Do(func() {
					close(begin)
					time.Sleep(600 * time.Millisecond) // both come as far as the log
				})
			})
			group.Go(func() {
				if _, err := w.Reject(t.Context(), protocol.Rejected{Protocol: "scep"}); err != nil {
					t.Error(err)
				}
			})
			<-begin
			for _, r := range requests {
				group.Go(func() {
					if out, err := w.Submit(t.Context(), r); err != nil {
						t.Error(describe(out, err))
					}
				})
				time.Sleep(150 * time.Millisecond)
			}
			group.Wait()
			w.restart()
			w.sound()
			if issued, revoked := w.count("enroll", "issued"), w.count("challenge", "revoked"); issued+revoked != 1 {
				t.Errorf("%d issued and %d revoked, want one of both", issued, revoked)
			}
		})
	}
}

// Nobody escapes the log by hanging up.
func TestWhoHangsUpIsRecorded(t *testing.T) {
	w := newWorld(t)
	secret := w.challenge("wifi", "a.corp.example")
	gone, hangUp := context.WithCancel(t.Context())
	hangUp()
	good := w.request(asked{profile: "wifi", transaction: "1", cn: "a.corp.example", challenge: secret, key: deviceKeys()[0]})
	if out, err := w.Submit(gone, good); err == nil {
		t.Errorf("nobody waits for this: %s", describe(out, err))
	}
	bad := good
	bad.Proof.Signature = slices.Clone(bad.Proof.Signature)
	bad.Proof.Signature[0] ^= 1
	if out, err := w.Submit(gone, bad); err != nil || out.Status != protocol.Refused {
		t.Error(describe(out, err))
	}
	if rejected, refused := w.count("message", "rejected"), w.count("enroll", "refused"); rejected != 1 || refused != 1 {
		t.Errorf("%d undecided and %d refused requests recorded, want one of each", rejected, refused)
	}
	if out, err := w.Submit(t.Context(), good); err != nil || out.Status != protocol.Issued {
		t.Errorf("it cost the device its challenge: %s", describe(out, err))
	}
	w.sound()
}

// A panic on the way is recorded, gives back what the request held, and closes
// its intent.
func TestAPanicWhileSigningClosesTheIntent(t *testing.T) {
	w := newWorld(t)
	r := w.request(asked{profile: "wifi", transaction: "1", cn: "a.corp.example", challenge: w.challenge("wifi", "a.corp.example"), key: deviceKeys()[0]})
	w.token.before = func(context.Context) error { panic("the module's words") }
	if out, err := w.Submit(t.Context(), r); err == nil {
		t.Error(describe(out, err))
	}
	w.token.before = nil
	if out, err := w.Submit(t.Context(), r); err != nil || out.Status != protocol.Issued {
		t.Errorf("the same request again: %s", describe(out, err))
	}
	if n := w.count("enroll", "unknown"); n != 1 {
		t.Errorf("%d intents with an unknown outcome, want one", n)
	}
	w.sound()
}

// What the token does decides what becomes of the serial and of the challenge.
func TestAFailedSignatureFreesTheChallenge(t *testing.T) {
	for name, tt := range map[string]struct {
		err     error
		outcome string
	}{
		"surely not signed":     {fmt.Errorf("token: %w", issuer.ErrNotSigned), "failed"},
		"nobody knows":          {errors.New("token: no answer"), "unknown"},
		"the device's time out": {context.DeadlineExceeded, "unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			r := w.request(asked{profile: "wifi", transaction: "1", cn: "a.corp.example", challenge: w.challenge("wifi", "a.corp.example"), key: deviceKeys()[0]})
			ctx, hangUp := context.WithCancel(t.Context())
			w.token.before = func(context.Context) error { hangUp(); return tt.err }
			if out, err := w.Submit(ctx, r); err == nil {
				t.Error(describe(out, err))
			}
			if n := w.count("enroll", tt.outcome); n != 1 {
				t.Errorf("%d intents are %s, want one", n, tt.outcome)
			}
			if due := w.count("revocation", "due"); (due == 1) != (tt.outcome == "unknown") {
				t.Errorf("%d serials are to be revoked", due)
			}
			w.token.before = nil
			if out, err := w.Submit(t.Context(), r); err != nil || out.Status != protocol.Issued {
				t.Errorf("the same request again: %s", describe(out, err))
			}
			w.sound()
		})
	}
}
