package authority_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/policy/challenge"
	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/scep"
)

func tuned(transaction, cn string) asked {
	return asked{profile: "tune", transaction: transaction, cn: cn, challenge: []byte("Intune's own"), key: deviceKeys()[0]}
}

func occasions(qs []challenge.Question) string {
	var out []string
	for _, q := range qs {
		out = append(out, q.Validator+" "+q.Occasion)
	}
	return strings.Join(out, ", ")
}

// The certificate is told before a byte of it leaves, once its record is durable.
func TestIntuneHearsBeforeTheDevice(t *testing.T) {
	w := newWorld(t)
	r := w.request(tuned("1", "a.corp.example"))
	out, err := w.Submit(t.Context(), r)
	if err != nil || out.Status != protocol.Issued {
		t.Fatal(describe(out, err))
	}
	heard := w.outside.questions()
	if occasions(heard) != "corp check, corp issued" {
		t.Fatalf("it heard: %s", occasions(heard))
	}
	c := must[*x509.Certificate](t)(x509.ParseCertificate(out.Certificates[0]))
	if told := heard[1]; !bytes.Equal(told.Certificate, c.Raw) || told.Issuer != "CN=Corp CA" || !bytes.Equal(told.CSR, heard[0].CSR) || told.Bare || told.Transaction != "1" {
		t.Error("it was told something else")
	}
	lines := w.records(func(audit.Record) bool { return true })
	last := lines[len(lines)-2:]
	if last[0].Outcome != "issued" || last[1].Event != "validator" || last[1].Outcome != "told" || last[1].Object.String("serial") != hex.EncodeToString(c.SerialNumber.Bytes()) {
		t.Errorf("the log ends in %s %s, %s %s", last[0].Event, last[0].Outcome, last[1].Event, last[1].Outcome)
	}
	// Sent again it is answered without another word.
	if again, err := w.Submit(t.Context(), r); err != nil || again.Status != protocol.Issued || len(w.outside.questions()) != 0 {
		t.Errorf("sent again: %s", describe(again, err))
	}
	w.sound()
}

// While it does not hear, nobody gets the certificate in any way; then the same one is
// given, and after an hour it is revoked.
func TestNothingIsDeliveredUntold(t *testing.T) {
	w := newWorld(t)
	r := w.request(tuned("1", "a.corp.example"))
	for _, verdict := range []challenge.Verdict{challenge.TimedOut, challenge.Refused} {
		w.outside.will("corp/issued", verdict)
		if out, err := w.Submit(t.Context(), r); err == nil {
			t.Fatal(describe(out, err))
		}
	}
	if n := w.records(func(r audit.Record) bool {
		return r.Object.String("why") == "not delivered: validator intune corp: timed-out"
	}); len(n) != 1 {
		t.Errorf("why is recorded %d times", len(n))
	}
	if n := w.count("enroll", "issued"); n != 1 || occasions(w.outside.questions()) != "corp check, corp issued, corp issued" {
		t.Fatalf("%d were issued", n)
	}
	i := w.records(func(r audit.Record) bool { return r.Outcome == "issued" })[0].Object
	issued := must[[]byte](t)(hex.DecodeString(i.String("serial")))
	poll := w.request(asked{profile: "tune", transaction: "1", kind: scep.CertPoll, cn: "a.corp.example", key: deviceKeys()[0]})
	poll.Proof.ContentKey = nil
	if out, err := w.Submit(t.Context(), poll); err != nil || out.Status != protocol.Refused {
		t.Errorf("a poll: %s", describe(out, err))
	}
	w.restart() // it is remembered
	w.outside.will("corp/issued", challenge.Allowed)
	out, err := w.Submit(t.Context(), r)
	if err != nil || out.Status != protocol.Issued || w.count("enroll", "issued") != 1 {
		t.Fatalf("when it hears again: %s", describe(out, err))
	}
	c := must[*x509.Certificate](t)(x509.ParseCertificate(out.Certificates[0]))
	if !bytes.Equal(c.SerialNumber.Bytes(), issued) {
		t.Error("another certificate")
	}
	w.ahead.Store(int64(2 * time.Hour))
	if err := w.RevokeUntold(t.Context()); err != nil || w.count("revocation", "revoked") != 0 {
		t.Errorf("what was told is revoked: %v", err)
	}
	w.sound()
}

func TestWhatIsUntoldForAnHourIsRevoked(t *testing.T) {
	w := newWorld(t)
	r := w.request(tuned("1", "a.corp.example"))
	w.outside.will("corp/issued", challenge.Unreachable)
	if out, err := w.Submit(t.Context(), r); err == nil {
		t.Fatal(describe(out, err))
	}
	for _, tt := range []struct {
		after time.Duration
		want  int
	}{{59 * time.Minute, 0}, {61 * time.Minute, 1}, {2 * time.Hour, 1}} {
		w.ahead.Store(int64(tt.after))
		if err := w.RevokeUntold(t.Context()); err != nil || w.count("revocation", "revoked") != tt.want || w.count("validator", "untold") != tt.want {
			t.Errorf("after %s: %v, %d", tt.after, err, w.count("revocation", "revoked"))
		}
	}
	// The device that comes then begins anew.
	w.outside.will("corp/issued", challenge.Allowed)
	if out, err := w.Submit(t.Context(), r); err != nil || out.Status != protocol.Issued || w.count("enroll", "issued") != 2 {
		t.Errorf("afterwards: %s", describe(out, err))
	}
	w.sound()
}

// What Intune vouched for and came to nothing is told too; a challenge that it refuses is not.
func TestIntuneHearsOfAFailure(t *testing.T) {
	w := newWorld(t)
	w.token.before = func(context.Context) error { return issuer.ErrNotSigned }
	if out, err := w.Submit(t.Context(), w.request(tuned("1", "a.corp.example"))); err == nil {
		t.Fatal(describe(out, err))
	}
	heard := w.outside.questions()
	if occasions(heard) != "corp check, corp failed" || heard[1].Why == "" {
		t.Fatalf("it heard: %s", occasions(heard))
	}
	w.token.before = nil
	w.outside.will("corp/check", challenge.Refused)
	if out, err := w.Submit(t.Context(), w.request(tuned("2", "a.corp.example"))); err != nil || out.Status != protocol.Refused || out.Refusal.Say != challenge.Say {
		t.Error(describe(out, err))
	}
	if heard := w.outside.questions(); occasions(heard) != "corp check" {
		t.Errorf("it heard: %s", occasions(heard))
	}
	w.sound()
}

// Beside Intune a webhook is asked first, and sees no challenge of Intune's.
func TestAWebhookBesideIntune(t *testing.T) {
	w := newWorld(t)
	a := tuned("1", "a.corp.example")
	a.profile = "mdm"
	if out, err := w.Submit(t.Context(), w.request(a)); err != nil || out.Status != protocol.Issued {
		t.Fatal(describe(out, err))
	}
	heard := w.outside.questions()
	if occasions(heard) != "inventory check, corp check, corp issued" {
		t.Fatalf("they heard: %s", occasions(heard))
	}
	if !heard[0].Bare || heard[0].Challenge != nil || bytes.Contains(heard[0].CSR, []byte("Intune's own")) || string(heard[1].Challenge) != "Intune's own" {
		t.Error("a challenge was shown to the wrong one")
	}
	w.sound()
}
