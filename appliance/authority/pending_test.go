package authority_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-pki/postern/appliance/authority"
	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/scep"
)

// waitingProfiles are a challenge and a person, a person alone, and a person for
// renewals too.
const waitingProfiles = `
  - name: manual
    protocols: [scep]
    issuer: corp
    challenge: {mode: one-time, ttl: 30m}
    approve: manual
    key: {rsa: {min: 2048, max: 4096}, reuse: any}
    subject:
      CN: {pattern: '[a-z0-9-]{1,40}\.corp\.example', required: true}
    usage: {key: {rsa: [digitalSignature]}, extended: [clientAuth]}
    validity: {for: 365d, backdate: 1h}
    renewal: {window: 100%, max_count: 3, new_key: optional}
    limits: {active_per_subject: 1}
  - name: vouched
    protocols: [scep]
    issuer: corp
    challenge: {mode: none}
    approve: always
    pending: {ttl: 1d, max: 2}
    key: {rsa: {min: 2048, max: 4096}, reuse: any}
    subject:
      CN: {pattern: '[a-z0-9-]{1,40}\.corp\.example', required: true}
    usage: {key: {rsa: [digitalSignature]}, extended: [clientAuth]}
    validity: {for: 365d, backdate: 1h}
    renewal: {window: 100%, max_count: 3, new_key: optional}
    limits: {active_per_subject: 1}
`

func officer() audit.Actor { return audit.Actor{Kind: "operator", ID: "key:officer"} }

// ask submits, and wants this answer; it returns the request id.
func (w *world) ask(a asked, want string) protocol.Outcome {
	w.t.Helper()
	return w.submit(w.request(a), want)
}

func (w *world) submit(r protocol.Request, want string) protocol.Outcome {
	w.t.Helper()
	out, err := w.Submit(w.t.Context(), r)
	if got := describe(out, err); got != want {
		w.t.Fatalf("%s, want %s", got, want)
	}
	return out
}

// What devices are told.
const (
	saysPending  = "pending"
	saysIssued   = "issued"
	saysDenied   = "refused as not-allowed: an operator has denied the request"
	saysConflict = "refused as not-allowed: another request of the same transaction waits for approval"
	saysOtherKey = "refused as not-allowed: the request of this transaction was signed by another key"
	saysUnknown  = "refused as not-found: no request of this transaction is known"
	saysFull     = "refused as not-allowed: too many requests wait for approval: try again later"
	saysLate     = "refused as not-allowed: nobody approved the request in time: enroll again"
)

// poll is a CertPoll; its envelope holds what nobody looks at.
func (a asked) poll() asked {
	a.kind, a.csr = scep.CertPoll, []byte{0x30, 0}
	return a
}

func (w *world) approve(id string) store.Issuance {
	w.t.Helper()
	i, err := w.Approve(w.t.Context(), officer(), authority.Ruling{Request: id, Reason: "known by its number"})
	if err != nil {
		w.t.Fatal(err)
	}
	return i
}

// Covers: S-107, S-140, S-143, S-144, S-145, S-146, S-076
func TestPending(t *testing.T) {
	w := newWorld(t)
	key := deviceKeys()[0]
	secret := w.challenge("manual", "a.corp.example")
	a := asked{profile: "manual", transaction: "t", cn: "a.corp.example", challenge: secret, key: key}
	first := w.request(a)
	a.csr = openEnvelope(t, first)
	id := w.submit(first, saysPending).RequestID
	if again := w.ask(a, saysPending); again.RequestID != id { // a fresh signer with the same key
		t.Errorf("the second is %s, the first %s", again.RequestID, id)
	}
	w.ask(a.poll(), saysPending)
	other := asked{profile: "manual", transaction: "t", cn: "b.corp.example", key: deviceKeys()[1]}
	w.ask(other.poll(), saysOtherKey)
	unknown := a
	unknown.transaction = "u"
	w.ask(unknown.poll(), saysUnknown)
	changed := a
	changed.csr, changed.challenge = nil, w.challenge("manual", "a.corp.example")
	w.ask(changed, saysConflict)
	stolen := asked{profile: "manual", transaction: "v", cn: "a.corp.example", challenge: secret, key: deviceKeys()[1]}
	if out, _ := w.Submit(t.Context(), w.request(stolen)); out.Status != protocol.Refused {
		t.Errorf("the challenge of a request that waits was taken again: %s", describe(out, nil))
	}
	w.restart()
	w.ask(a.poll(), saysPending)
	if n := w.count("enroll", "pending"); n != 1 {
		t.Errorf("%d requests wait", n)
	}

	der := w.approve(id).Certificate
	w.restart()
	for _, r := range []asked{a.poll(), a, a.poll()} {
		if out := w.ask(r, saysIssued); !bytes.Equal(out.Certificates[0], der) {
			t.Error("another certificate")
		}
	}
	w.ask(other.poll(), saysOtherKey)
	next := a // the same transaction is a new one, now that it is done
	next.csr, next.cn, next.challenge = nil, "c.corp.example", w.challenge("manual", "c.corp.example")
	if out := w.ask(next, saysPending); out.RequestID == id {
		t.Error("a new request has the old one's id")
	}
	w.ask(a.poll(), saysPending)
	if out := w.ask(a, saysIssued); !bytes.Equal(out.Certificates[0], der) {
		t.Error("the old request gets another certificate")
	}
	w.oneIssued(t, id)
	w.keptNothing(t, secret, a.csr)
	w.sound()
}

// oneIssued checks the order of what stands in the log of a request that was
// approved: that it waits, the approval, the intent and the certificate.
func (w *world) oneIssued(t *testing.T, id string) {
	t.Helper()
	var got []string
	var seqs []uint64
	for _, r := range w.records(func(r audit.Record) bool { return r.Request == id && r.Event == store.EventEnroll }) {
		got, seqs = append(got, r.Outcome+" by "+r.Actor.Kind), append(seqs, r.Seq)
	}
	want := "pending by device, approved by operator, intent by operator, issued by operator"
	if strings.Join(got, ", ") != want || seqs[2] != seqs[1]+1 {
		t.Errorf("the log has %q at %d", got, seqs)
	}
}

// keptNothing looks for the challenge, and for the CSR that has it, in all files.
func (w *world) keptNothing(t *testing.T, secret, csr []byte) {
	t.Helper()
	parts := [][]byte{secret, csr[:64], []byte(base64.StdEncoding.EncodeToString(csr)[:64])}
	if err := filepath.WalkDir(w.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		for _, part := range parts {
			if bytes.Contains(data, part) {
				t.Errorf("%s has the CSR or the challenge in it", path)
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// What was denied stays denied for this CSR and signer, also in another transaction
// and after a restart. The device is told so with the request's id, and nothing of
// the reason.
func TestDenied(t *testing.T) {
	w := newWorld(t)
	a := asked{profile: "vouched", transaction: "t", cn: "a.corp.example", key: deviceKeys()[0]}
	first := w.request(a)
	a.csr = openEnvelope(t, first)
	id := w.submit(first, saysPending).RequestID
	for _, bad := range []string{"", " ", "two\nlines", strings.Repeat("x", 501), "\xff"} {
		if err := w.Deny(t.Context(), officer(), authority.Ruling{Request: id, Reason: bad}); !errors.Is(err, authority.ErrReason) {
			t.Errorf("reason %q: %v", bad, err)
		}
	}
	if err := w.Deny(t.Context(), officer(), authority.Ruling{Request: id, Reason: "stolen"}); err != nil {
		t.Fatal(err)
	}
	w.restart()
	elsewhere := a
	elsewhere.transaction = "u"
	for _, r := range []asked{a.poll(), a, elsewhere} {
		if out := w.ask(r, saysDenied); out.RequestID != id {
			t.Errorf("the id is %s, want %s", out.RequestID, id)
		}
	}
	for what, err := range map[string]error{
		"approved": func() error {
			_, err := w.Approve(t.Context(), officer(), authority.Ruling{Request: id, Reason: "after all"})
			return err
		}(),
		"denied again": w.Deny(t.Context(), officer(), authority.Ruling{Request: id, Reason: "again"}),
	} {
		if !errors.Is(err, authority.ErrNotWaiting) {
			t.Errorf("%s: %v", what, err)
		}
	}
	a.csr, a.cn = nil, "b.corp.example" // another CSR is a new request
	if out := w.ask(a, saysPending); out.RequestID == id {
		t.Error("a new request has the old one's id")
	}
	w.sound()
}

// A self-signed certificate proves nothing: without a challenge a request waits for
// a person, or is refused.
//
// Covers: S-105
func TestNobodyVouches(t *testing.T) {
	w := newWorld(t)
	a := asked{transaction: "t", cn: "a.corp.example", key: deviceKeys()[0]}
	for profile, want := range map[string]string{"vouched": saysPending, "manual": "refused as not-allowed: a new enrollment needs a challenge",
		"wifi": "refused as not-allowed: a new enrollment needs a challenge"} {
		a.profile = profile
		w.ask(a, want)
	}
	if n := w.count("enroll", "intent"); n != 0 {
		t.Errorf("%d certificates", n)
	}
	_, err := w.CreateChallenges(t.Context(), officer(), []authority.NewChallenge{{Profile: "vouched", Subject: "CN=a.corp.example"}})
	if !errors.Is(err, authority.ErrBadRequest) {
		t.Errorf("a challenge that nobody would ask for: %v", err)
	}
}

// A profile has room for so many requests, for so long.
func TestPendingBounds(t *testing.T) {
	w := newWorld(t)
	ask := func(n int) asked {
		return asked{profile: "vouched", transaction: fmt.Sprint(n), cn: fmt.Sprintf("d%d.corp.example", n), key: deviceKeys()[n%3]}
	}
	first := w.ask(ask(0), saysPending).RequestID
	w.ask(ask(1), saysPending)
	w.ask(ask(2), saysFull)
	w.ahead.Store(int64(25 * time.Hour))
	w.ask(ask(0).poll(), saysLate)
	_, err := w.Approve(t.Context(), officer(), authority.Ruling{Request: first, Reason: "late"})
	if !errors.Is(err, authority.ErrNotWaiting) {
		t.Errorf("approved after its time: %v", err)
	}
	w.ask(ask(2), saysPending)
	w.sound()
}

// A request that expired has spent its challenge. That its device sends it again is
// no sign of a thief; without a challenge it is a new request.
func TestExpired(t *testing.T) {
	w := newWorld(t)
	key := deviceKeys()[0]
	a := asked{profile: "manual", transaction: "t", cn: "a.corp.example", challenge: w.challenge("manual", "a.corp.example"), key: key}
	b := asked{profile: "vouched", transaction: "t", cn: "a.corp.example", key: key}
	first, second := w.request(a), w.request(b)
	w.submit(first, saysPending)
	id := w.submit(second, saysPending).RequestID
	w.ahead.Store(int64(8 * 24 * time.Hour))
	w.submit(first, saysLate)
	if out := w.submit(second, saysPending); out.RequestID == id {
		t.Error("an expired request waits again under its old id")
	}
	if n := w.count("security", "alert"); n != 0 {
		t.Errorf("%d alarms", n)
	}
	w.sound()
}

// The policy that is in force at the approval decides: what it refuses now is not
// issued, waits on, and can be denied.
func TestApprovalIsDecidedAgain(t *testing.T) {
	w := newWorld(t)
	var ids [2]string
	for n := range ids {
		a := asked{profile: "vouched", transaction: fmt.Sprint(n), cn: "same.corp.example", key: deviceKeys()[n]}
		ids[n] = w.ask(a, saysPending).RequestID
	}
	w.approve(ids[0])
	_, err := w.Approve(t.Context(), officer(), authority.Ruling{Request: ids[1], Reason: "a second one"})
	if !errors.Is(err, authority.ErrRefused) || !strings.Contains(err.Error(), "limits.active_per_subject") {
		t.Errorf("approved beyond the limit: %v", err)
	}
	w.ask(asked{profile: "vouched", transaction: "1", key: deviceKeys()[1]}.poll(), saysPending)
	_, err = w.Approve(t.Context(), officer(), authority.Ruling{Request: ids[1], Digest: strings.Repeat("0", 64), Reason: "of another"})
	if !errors.Is(err, authority.ErrNotWaiting) {
		t.Errorf("approved by another's digest: %v", err)
	}
	if err := w.Deny(t.Context(), officer(), authority.Ruling{Request: ids[1], Reason: "one is enough"}); err != nil {
		t.Error(err)
	}
	if _, err := w.Approve(t.Context(), officer(), authority.Ruling{Request: "nobody", Reason: "x"}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("approved what is not there: %v", err)
	}
	w.sound()
}

// An approval whose signature does not come leaves the request waiting, also where
// nobody knows whether it was made, over a restart.
func TestApprovalNotSigned(t *testing.T) {
	w := newWorld(t)
	a := asked{profile: "vouched", transaction: "t", cn: "a.corp.example", key: deviceKeys()[0]}
	id := w.ask(a, saysPending).RequestID
	broken := errors.New("the token is gone")
	w.token.before = func(context.Context) error { return broken }
	if _, err := w.Approve(t.Context(), officer(), authority.Ruling{Request: id, Reason: "known"}); !errors.Is(err, broken) {
		t.Fatalf("approved: %v", err)
	}
	w.ask(a.poll(), saysPending)
	w.token.before = nil
	w.restart()
	w.ask(a.poll(), saysPending)
	der := w.approve(id).Certificate
	if out := w.ask(a.poll(), saysIssued); !bytes.Equal(out.Certificates[0], der) {
		t.Error("another certificate")
	}
	w.sound()
}

// Renewals are automatic in a manual profile; in one that says always they wait, and
// are polled for by the certificate that signed them.
func TestPendingRenewal(t *testing.T) {
	w := newWorld(t)
	for profile, want := range map[string]string{"manual": saysIssued, "vouched": saysPending} {
		key, cn := deviceKeys()[0], profile+".corp.example"
		a := asked{profile: profile, transaction: "new " + profile, cn: cn, key: key}
		if profile == "manual" {
			a.challenge = w.challenge(profile, cn)
		}
		der := w.approve(w.ask(a, saysPending).RequestID).Certificate
		r := asked{profile: profile, transaction: "again " + profile, cn: cn, kind: scep.RenewalReq, key: deviceKeys()[1], signer: der, signerKey: key}
		out := w.ask(r, want)
		if want == saysIssued {
			// Some clients repeat the challenge, which the request that waited spent.
			r.kind, r.transaction, r.challenge = scep.PKCSReq, "repeats", a.challenge
			r.signer, r.signerKey, r.key = out.Certificates[0], r.key, deviceKeys()[2]
			w.ask(r, saysIssued)
			continue
		}
		self := asked{profile: profile, transaction: r.transaction, key: key}
		w.ask(self.poll(), saysOtherKey)
		next := w.approve(out.RequestID)
		if next.Predecessor == "" || next.Generation != 1 || next.Lineage == out.RequestID {
			t.Errorf("%+v", next)
		}
		if out := w.ask(r.poll(), saysIssued); !bytes.Equal(out.Certificates[0], next.Certificate) {
			t.Error("another certificate")
		}
	}
	w.sound()
}

// A poll for what was issued without waiting gets it.
//
// Covers: S-146
func TestPollAutomatic(t *testing.T) {
	w := newWorld(t)
	der, key := w.enroll("a.corp.example")
	poll := asked{profile: "wifi", transaction: "enroll a.corp.example", key: key}.poll()
	if out := w.ask(poll, saysIssued); !bytes.Equal(out.Certificates[0], der) {
		t.Error("another certificate")
	}
	w.ahead.Store(int64(366 * 24 * time.Hour))
	w.ask(poll, saysUnknown)
}

// However many ask and decide at once, one request waits, and one certificate is
// issued or none.
func TestPendingAtOnce(t *testing.T) {
	w := newWorld(t)
	a := asked{profile: "vouched", transaction: "t", cn: "a.corp.example", key: deviceKeys()[0]}
	r := w.request(a)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if out, err := w.Submit(t.Context(), r); describe(out, err) != saysPending {
				t.Error(describe(out, err))
			}
		})
	}
	wg.Wait()
	waiting := w.records(func(r audit.Record) bool { return r.Outcome == store.OutPending })
	if len(waiting) != 1 {
		t.Fatalf("%d requests wait", len(waiting))
	}
	ruling := authority.Ruling{Request: waiting[0].Request, Reason: "at once"}
	for n := range 16 {
		wg.Go(func() {
			var err error
			if n%2 == 0 {
				_, err = w.Approve(t.Context(), officer(), ruling)
			} else {
				err = w.Deny(t.Context(), officer(), ruling)
			}
			if err != nil && !errors.Is(err, authority.ErrNotWaiting) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := w.count("enroll", "issued") + w.count("enroll", "denied"); n != 1 {
		t.Errorf("it was decided %d times", n)
	}
	w.sound()
}
