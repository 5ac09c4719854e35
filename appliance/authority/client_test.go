package authority_test

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/protocol"
)

// Each record says what its message showed of the sender: of what the proof shows the
// gate's word is not taken, nor a trait that there is not, nor more than so much of a
// User-Agent.
// Covers: S-183
func TestRecordsSayWhatTheSenderShowed(t *testing.T) {
	w := newWorld(t)
	lie := protocol.TraitGet | protocol.TraitSHA1 | protocol.TraitDES3 | protocol.TraitSHA1CSR | protocol.TraitRenewalByPKCSReq | 1<<50
	good := w.request(asked{profile: "wifi", transaction: "t", cn: "a.corp.example", challenge: w.challenge("wifi", "a.corp.example"), key: deviceKeys()[0]})
	good.Client = protocol.Client{Agent: "\xff" + strings.Repeat("x", 500), Traits: lie}
	bad := good
	bad.Proof.Signature = []byte("none")
	for _, r := range []protocol.Request{good, good, bad} {
		if _, err := w.Submit(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Reject(t.Context(), protocol.Rejected{Protocol: "scep", Profile: "wifi", Why: "cipher unknown", Client: protocol.Client{Traits: protocol.TraitDES | protocol.TraitMD5}}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Reject(t.Context(), protocol.Rejected{Protocol: "scep", Profile: "wifi", Operation: "GetCACaps", Served: true}); err != nil {
		t.Fatal(err)
	}
	for what, want := range map[string]string{
		"enroll/intent": "[get]", "enroll/repeated": "[get]", "enroll/refused": "[get]", "message/rejected": "[md5 des]", "message/served": "[]",
	} {
		got := w.records(func(r audit.Record) bool { return r.Event+"/"+r.Outcome == what })
		if len(got) != 1 {
			t.Fatalf("%d records of %s", len(got), what)
		}
		c := got[0].Object.Object("client")
		if traits := fmt.Sprint(c.Strings("traits")); traits != want || (want == "[]") != (c == nil) {
			t.Errorf("%s: %s, want %s", what, traits, want)
		}
		if agent := c.String("agent"); want == "[get]" && (!strings.HasPrefix(agent, "\uFFFDxxx") || utf8.RuneCountInString(agent) != protocol.MaxAgent) {
			t.Errorf("%s: agent %q", what, agent)
		}
	}
}

// A renewal that is asked for as for a new certificate is told apart by the
// authority, which knows whose certificate signed it.
// Covers: S-115
func TestARenewalByPKCSReqIsNoted(t *testing.T) {
	w := newWorld(t)
	der, key := w.enroll("a.corp.example")
	r := w.request(asked{profile: "wifi", transaction: "again", cn: "a.corp.example", key: deviceKeys()[1], signer: der, signerKey: key})
	if out, err := w.Submit(t.Context(), r); err != nil || out.Status != protocol.Issued {
		t.Fatal(describe(out, err))
	}
	got := w.records(func(r audit.Record) bool { return r.Outcome == "intent" && r.Object.String("kind") == "renewal" })
	if len(got) != 1 || fmt.Sprint(got[0].Object.Object("client").Strings("traits")) != "[renewal-by-pkcsreq]" {
		t.Errorf("%+v", got)
	}
}
