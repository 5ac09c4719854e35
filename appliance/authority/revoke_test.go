package authority_test

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/postern-pki/postern/appliance/authority"
	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/policy/challenge"
	"github.com/postern-pki/postern/protocol"
)

// An operator revokes a challenge while a device is about to spend it: one of them
// comes first, and the other is told no.
func TestAnOperatorDoesNotRevokeUnderWhoSpends(t *testing.T) {
	for name, revokeFirst := range map[string]bool{"the operator comes first": true, "the device comes first": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			secret := w.challenge("wifi", "a.corp.example")
			id := must[[]challenge.Record](t)(w.index.Challenges(t.Context(), store.ChallengeFilter{}))[0].ID
			request := w.request(asked{profile: "wifi", transaction: "t", cn: "a.corp.example", challenge: secret, key: deviceKeys()[0]})
			var group sync.WaitGroup
			var once sync.Once
			begin := make(chan struct{})
			w.gate.when(func(audit.Line) {
				once.Do(func() {
					close(begin)
					time.Sleep(500 * time.Millisecond) // both come as far as the log
				})
			})
			group.Go(func() {
				if _, err := w.Reject(t.Context(), protocol.Rejected{Protocol: "scep"}); err != nil {
					t.Error(err)
				}
			})
			<-begin
			var out protocol.Outcome
			var submitErr, revokeErr error
			steps := []func(){
				func() { out, submitErr = w.Submit(t.Context(), request) },
				func() { revokeErr = w.RevokeChallenge(t.Context(), audit.Actor{Kind: "operator", ID: "test"}, id) },
			}
			if revokeFirst {
				steps[0], steps[1] = steps[1], steps[0]
			}
			for _, f := range steps {
				group.Go(f)
				time.Sleep(150 * time.Millisecond)
			}
			group.Wait()
			if submitErr != nil || revokeFirst != (revokeErr == nil) || revokeFirst == (out.Status == protocol.Issued) {
				t.Errorf("the device: %s, the operator: %v", describe(out, submitErr), revokeErr)
			}
			if !revokeFirst && !errors.Is(revokeErr, authority.ErrNotOpen) {
				t.Errorf("the operator is told: %v", revokeErr)
			}
			w.restart()
			w.sound()
			if issued, revoked := w.count("enroll", "issued"), w.count("challenge", "revoked"); issued+revoked != 1 {
				t.Errorf("%d issued and %d revoked, want one of both", issued, revoked)
			}
		})
	}
}
