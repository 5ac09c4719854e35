package authority_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"strings"
	"sync"
	"testing"

	"github.com/postern-pki/postern/appliance/authority"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/policy/challenge"
	"github.com/postern-pki/postern/protocol"
)

// vouchedProfiles differ in who vouches.
var vouchedProfiles = vouchedProfile("hook", "{mode: webhook, webhook: inventory}") +
	vouchedProfile("both", "{mode: [one-time, webhook], ttl: 30m, webhook: inventory}") +
	vouchedProfile("mdm", "{mode: [webhook, intune], webhook: inventory, intune: corp}") +
	vouchedProfile("tune", "{mode: intune, intune: corp}")

func vouchedProfile(name, challenge string) string {
	return `  - name: ` + name + `
    protocols: [scep]
    issuer: corp
    challenge: ` + challenge + `
    approve: automatic
    key: {rsa: {min: 2048, max: 4096}, reuse: any}
    subject:
      CN: {pattern: '[a-z0-9-]{1,40}\.corp\.example', required: true}
    usage: {key: {rsa: [digitalSignature]}, extended: [clientAuth]}
    validity: {for: 365d, backdate: 1h}
    renewal: {window: 100%, max_count: 1, max_age: 2y, new_key: required, old: keep}
    limits: {active_per_subject: 100}
    clients: {digests: [SHA-256], ciphers: [AES-128-CBC]}
`
}

// outside is who vouches: what it says can be changed, and what it heard is kept.
type outside struct {
	mu    sync.Mutex
	say   map[string]challenge.Answer // by validator; Allowed where there is none
	heard []challenge.Question
}

func (o *outside) Ask(_ context.Context, q challenge.Question) (challenge.Answer, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.heard = append(o.heard, q)
	if a, ok := o.say[q.Validator+"/"+q.Occasion]; ok {
		return a, nil
	}
	if a, ok := o.say[q.Validator]; ok {
		return a, nil
	}
	return challenge.AnswerOf(challenge.Allowed, "", ""), nil
}

func (o *outside) will(validator string, v challenge.Verdict) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.say[validator] = challenge.AnswerOf(v, "some-code", "some words")
}

// questions returns what was heard since it was asked last.
func (o *outside) questions() []challenge.Question {
	o.mu.Lock()
	defer o.mu.Unlock()
	q := o.heard
	o.heard = nil
	return q
}

const shown = "a challenge that the inventory knows"

func hooked(transaction, cn string) asked {
	return asked{profile: "hook", transaction: transaction, cn: cn, challenge: []byte(shown), key: deviceKeys()[0]}
}

// A service that knows the device vouches for it; the intent says so.
func TestAWebhookVouches(t *testing.T) {
	w := newWorld(t)
	out, err := w.Submit(t.Context(), w.request(hooked("1", "a.corp.example")))
	if err != nil || out.Status != protocol.Issued {
		t.Fatal(describe(out, err))
	}
	q := w.outside.questions()
	if len(q) != 1 || q[0].Occasion != challenge.OccasionCheck || q[0].Validator != "inventory" || q[0].Profile != "hook" || q[0].Transaction != "1" ||
		q[0].Request != out.RequestID || string(q[0].Challenge) != shown || q[0].Bare {
		t.Fatalf("%d questions", len(q))
	}
	if r, err := x509.ParseCertificateRequest(q[0].CSR); err != nil || r.CheckSignature() != nil {
		t.Errorf("the request as the device made it: %v", err)
	}
	intent := w.records(func(r audit.Record) bool { return r.Outcome == "intent" })[0].Object
	if f := intent.Object("facts"); strings.Join(f.Strings("validators"), "|") != "webhook inventory: allowed" || intent.String("by") != "webhook:inventory" {
		t.Errorf("the intent: %v, %v", f.Strings("validators"), intent.String("by"))
	}
	// Sent again it is answered without anybody being asked.
	if out, err := w.Submit(t.Context(), w.request(hooked("1", "a.corp.example"))); err != nil || out.Status != protocol.Issued {
		t.Error(describe(out, err))
	}
	_ = w.outside.questions()
	w.sound()
}

// A refusal and a silence are different things, and the device hears of neither why.
func TestWhatAValidatorSaysIsNotTheDevices(t *testing.T) {
	w := newWorld(t)
	w.outside.will("inventory", challenge.Refused)
	out, err := w.Submit(t.Context(), w.request(hooked("1", "a.corp.example")))
	if err != nil || out.Status != protocol.Refused || out.Refusal.Say != challenge.Say || out.Refusal.Kind != protocol.NotAllowed {
		t.Fatal(describe(out, err))
	}
	refused := w.records(func(r audit.Record) bool { return r.Outcome == "refused" })[0].Object
	if r := refused.Objects("reasons"); len(r) != 1 || r[0].String("rule") != "challenge.webhook" || r[0].String("saw") != "webhook inventory: refused (some-code): some words" {
		t.Errorf("the reasons: %v", r)
	}
	if a := refused.Object("facts").String("authorization"); a != "challenge.webhook: refused" {
		t.Errorf("the facts: %s", a)
	}
	for _, verdict := range []challenge.Verdict{challenge.Unreachable, challenge.TimedOut, challenge.Unreadable} {
		w.outside.will("inventory", verdict)
		out, err := w.Submit(t.Context(), w.request(hooked("1", "a.corp.example")))
		if err == nil {
			t.Fatalf("%s: %s", verdict, describe(out, err))
		}
		last := w.records(func(r audit.Record) bool { return r.Event == "message" && r.Outcome == "rejected" })
		if why := last[len(last)-1].Object.String("why"); why != "validator webhook inventory: "+string(verdict) {
			t.Errorf("%s is recorded as %q", verdict, why)
		}
	}
	w.outside.will("inventory", challenge.Allowed)
	if out, err := w.Submit(t.Context(), w.request(hooked("1", "a.corp.example"))); err != nil || out.Status != protocol.Issued {
		t.Errorf("when it answers again: %s", describe(out, err))
	}
	w.sound()
}

// Who would be refused anyway is not asked about, and without a challenge nobody is.
func TestNobodyIsAskedInVain(t *testing.T) {
	w := newWorld(t)
	for name, a := range map[string]asked{
		"a name that the profile refuses": hooked("1", "a.other.example"),
		"no challenge":                    {profile: "hook", transaction: "2", cn: "a.corp.example", key: deviceKeys()[0]},
		"an unknown challenge of ours":    {profile: "both", transaction: "3", cn: "a.corp.example", challenge: []byte(shown), key: deviceKeys()[0]},
	} {
		if out, err := w.Submit(t.Context(), w.request(a)); err != nil || out.Status != protocol.Refused {
			t.Errorf("%s: %s", name, describe(out, err))
		}
		if q := w.outside.questions(); len(q) != 0 {
			t.Errorf("%s: asked %d times", name, len(q))
		}
	}
}

// A challenge of ours and a webhook both have to vouch, and the webhook never sees
// the challenge. Its silence costs the challenge nothing, its refusals wear it out.
func TestBothHaveToVouch(t *testing.T) {
	w := newWorld(t)
	secret := w.challenge("both", "a.corp.example")
	request := func(transaction string) protocol.Request {
		return w.request(asked{profile: "both", transaction: transaction, cn: "a.corp.example", challenge: secret, key: deviceKeys()[0]})
	}
	w.outside.will("inventory", challenge.TimedOut)
	for range challenge.MaxRefusals + 1 {
		if out, err := w.Submit(t.Context(), request("1")); err == nil {
			t.Fatal(describe(out, err))
		}
	}
	w.outside.will("inventory", challenge.Refused)
	if out, err := w.Submit(t.Context(), request("2")); err != nil || out.Status != protocol.Refused {
		t.Fatal(describe(out, err))
	}
	w.outside.will("inventory", challenge.Allowed)
	if out, err := w.Submit(t.Context(), request("3")); err != nil || out.Status != protocol.Issued {
		t.Fatal(describe(out, err))
	}
	for _, q := range w.outside.questions() {
		if q.Challenge != nil || !q.Bare || bytes.Contains(q.CSR, secret) {
			t.Fatal("the webhook is shown a challenge of ours")
		}
		if r, err := x509.ParseCertificateRequest(q.CSR); err != nil || r.Subject.CommonName != "a.corp.example" || r.CheckSignature() == nil {
			t.Errorf("the request without its challenge: %v", err)
		}
	}
	if out, err := w.Submit(t.Context(), request("4")); err != nil || out.Status != protocol.Refused {
		t.Errorf("spent: %s", describe(out, err))
	}
	w.sound()
}

// Five refusals of a validator revoke the challenge that was shown with them.
func TestRefusalsWearAChallengeOut(t *testing.T) {
	w := newWorld(t)
	secret := w.challenge("both", "a.corp.example")
	w.outside.will("inventory", challenge.Refused)
	for range challenge.MaxRefusals {
		if out, err := w.Submit(t.Context(), w.request(asked{profile: "both", transaction: "1", cn: "a.corp.example", challenge: secret, key: deviceKeys()[0]})); err != nil || out.Status != protocol.Refused {
			t.Fatal(describe(out, err))
		}
	}
	if n := w.count("challenge", "revoked"); n != 1 {
		t.Errorf("revoked %d times", n)
	}
	w.sound()
}

// Challenges of ours are not made where none of ours is asked for.
func TestNoChallengeOfOursForAWebhook(t *testing.T) {
	w := newWorld(t)
	_, err := w.CreateChallenges(t.Context(), audit.Actor{Kind: "operator"}, []authority.NewChallenge{{Profile: "hook", Subject: "CN=a.corp.example"}})
	if err == nil || !strings.Contains(err.Error(), "webhook") {
		t.Error(err)
	}
}

// With a certificate of ours a challenge that is vouched for begins a new lineage, and
// one that is not is a security event.
func TestAWebhookAndASignerOfOurs(t *testing.T) {
	w := newWorld(t)
	first := must[protocol.Outcome](t)(w.Submit(t.Context(), w.request(hooked("1", "a.corp.example"))))
	again := hooked("2", "a.corp.example")
	again.challenge, again.key = []byte("another that the inventory knows"), deviceKeys()[1]
	again.signer, again.signerKey = first.Certificates[0], deviceKeys()[0]
	w.outside.will("inventory", challenge.Refused)
	if out, err := w.Submit(t.Context(), w.request(again)); err != nil || out.Status != protocol.Refused || w.count("security", "alert") != 1 {
		t.Errorf("not vouched for: %s, %d alerts", describe(out, err), w.count("security", "alert"))
	}
	w.outside.will("inventory", challenge.Allowed)
	if out, err := w.Submit(t.Context(), w.request(again)); err != nil || out.Status != protocol.Issued {
		t.Errorf("vouched for: %s", describe(out, err))
	}
	intents := w.records(func(r audit.Record) bool { return r.Outcome == "intent" })
	if kind := intents[len(intents)-1].Object.String("kind"); kind != "new-lineage" {
		t.Errorf("it is a %s", kind)
	}
	w.sound()
}
