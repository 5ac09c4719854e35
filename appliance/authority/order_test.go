package authority_test

import (
	"context"
	"errors"
	"testing"

	"github.com/postern-pki/postern/appliance/authority"
	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/protocol"
)

// The key is used after the intent is durable and in the index, and nobody gets a
// certificate before its record is.
func TestTheOrderAroundASignature(t *testing.T) {
	w := newWorld(t)
	r := w.request(asked{profile: "wifi", transaction: "1", cn: "a.corp.example", challenge: w.challenge("wifi", "a.corp.example"), key: deviceKeys()[0]})
	asked := 0
	w.token.before = func(context.Context) error {
		asked++
		lines := w.records(func(audit.Record) bool { return true })
		if last := lines[len(lines)-1]; last.Outcome != store.OutIntent {
			t.Errorf("the key is used after %s %s", last.Event, last.Outcome)
		}
		if open := must[[]store.Issuance](t)(w.index.OpenIntents(t.Context())); len(open) != 1 {
			t.Errorf("the index has %d open intents", len(open))
		}
		return nil
	}
	out, err := w.Submit(t.Context(), r)
	if err != nil || out.Status != protocol.Issued || asked != 1 {
		t.Fatalf("%s; the key was asked %d times", describe(out, err), asked)
	}
	lines := w.records(func(audit.Record) bool { return true })
	if last := lines[len(lines)-1]; last.Outcome != store.OutIssued {
		t.Errorf("it was answered after %s %s", last.Event, last.Outcome)
	}
	w.sound()
}

// A log that fails at any record of a request stops it there, and costs the
// device nothing that the next start does not give back.
func TestALogThatFailsStopsARequest(t *testing.T) {
	for outcome, signed := range map[string]int{"intent": 0, "issued": 1} {
		t.Run("at the record "+outcome, func(t *testing.T) {
			w := newWorld(t)
			r := w.request(asked{profile: "wifi", transaction: "1", cn: "a.corp.example", challenge: w.challenge("wifi", "a.corp.example"), key: deviceKeys()[0]})
			asked := 0
			w.token.before = func(context.Context) error { asked++; return nil }
			w.gate.mu.Lock()
			w.gate.fail = outcome
			w.gate.mu.Unlock()
			for range 3 {
				if out, err := w.Submit(t.Context(), r); !errors.Is(err, audit.ErrPoisoned) || out.Certificates != nil {
					t.Errorf("without a log: %s", describe(out, err))
				}
			}
			if asked != signed {
				t.Errorf("the key was used %d times, want %d", asked, signed)
			}
			if _, err := w.CreateChallenges(t.Context(), audit.Actor{Kind: "operator"}, []authority.NewChallenge{{Profile: "wifi", Subject: "CN=b.corp.example"}}); !errors.Is(err, audit.ErrPoisoned) {
				t.Errorf("a challenge without a log: %v", err)
			}
			w.restart()
			w.start(authority.Begin{SameBoot: true})
			w.sound()
			if out, err := w.Submit(t.Context(), r); err != nil || out.Status != protocol.Issued {
				t.Errorf("after the next start: %s", describe(out, err))
			}
			w.sound()
		})
	}
}

// The certificate of our own listeners goes the same way, and is no device's.
func TestTheServersCertificateIsNoDevices(t *testing.T) {
	w := newWorld(t)
	key := deviceKeys()[0]
	der := must[[]byte](t)(w.IssueServer(t.Context(), "corp", key.Public(), []string{"scep.corp.example", "192.0.2.1"}, 24*3600e9))
	if intents, issued := w.count("enroll", "intent"), w.count("enroll", "issued"); intents != 1 || issued != 1 {
		t.Errorf("%d intents, %d results", intents, issued)
	}
	if out, err := w.Submit(t.Context(), w.request(asked{profile: "wifi", transaction: "1", cn: "scep.corp.example", kind: 17, key: key, signer: der, signerKey: key})); err != nil || out.Status != protocol.Refused {
		t.Errorf("a renewal by it: %s", describe(out, err))
	}
	if _, err := w.IssueServer(t.Context(), "other", key.Public(), []string{"x"}, 3600e9); err == nil {
		t.Error("an unknown issuer")
	}
	w.sound()
}
