package store_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/appliance/store/storetest"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/policy"
)

// What the functions of this package write, [store.Changes] reads: from the line
// as it stands in the log, and from the line as its writer has it.
func TestChangesReadsWhatWasWritten(t *testing.T) {
	full := storetest.Challenge("c1")
	full.Names = policy.Names{
		Subject: []policy.Attribute{{Name: "CN", Value: "a.corp.example"}, {Name: "1.2.3.4", Value: `"quoted" <&>`}},
		DNS:     []string{"a.corp.example", "b.corp.example"}, IP: []string{"192.0.2.1"},
		Email: []string{"a@example.com"}, URI: []string{"urn:uuid:1"},
	}
	bare := storetest.Challenge("c2")
	bare.Names = policy.Names{}
	enrollment := storetest.Issuance("d1", "0a")
	enrollment.Challenge = "c1"
	renewal := storetest.Renewal(enrollment, "0b")
	never := storetest.Issuance("d2", "0c")
	never.NotAfter, never.LineageFrom = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), time.Time{}

	revoked := store.Revocation{Serial: "0c", Reason: 4, At: storetest.Day().Add(time.Minute)}
	list := storetest.List("corp", 7)
	list.Seq = 12

	l := storetest.NewLog(t)
	seq := func(i store.Issuance) store.Issuance { i.IntentSeq = l.Next(); return i }
	for _, c := range []struct {
		want store.Change
		line audit.Line
	}{
		{store.ChallengeCreated{Record: full}, l.Created(full)},
		{store.ChallengeCreated{Record: bare}, l.Created(bare)},
		{store.ChallengeRevoked{ID: "c1"}, l.Revoked("c1")},
		{store.ChallengeRefused{ID: "c1"}, l.Refused("c1")},
		{store.Intent{Issuance: seq(enrollment)}, l.Intent(enrollment)},
		{store.Intent{Issuance: seq(renewal)}, l.Intent(renewal)},
		{store.Intent{Issuance: seq(never)}, l.Intent(never)},
		{store.Result{IntentSeq: 4, Seq: 7, State: store.Issued, Certificate: storetest.DER(4)}, l.Result(4, store.Issued)},
		{store.Result{IntentSeq: 5, Seq: 8, State: store.Failed}, l.Result(5, store.Failed)},
		{store.Result{IntentSeq: 6, Seq: 9, State: store.Unknown}, l.Result(6, store.Unknown)},
		{store.RevocationDue{Revocation: store.Revocation{Serial: "0c", At: storetest.Day()}}, l.Due("0c")},
		{store.RevocationDue{Revocation: revoked}, l.RevokedFor(revoked)},
		{store.CRLIntent{CRL: list}, l.CRL(list)},
		{store.CRLIssued{Seq: 12, SHA256: storetest.Digest("crl12")}, l.CRLIssued(12)},
	} {
		for how, line := range map[string]audit.Line{"read": c.line, "written": l.Written[c.line.Record.Seq]} {
			got, err := store.Changes(line)
			if diff := cmp.Diff([]store.Change{c.want}, got); err != nil || diff != "" {
				t.Errorf("line %d, as %s: %v\n%s", line.Record.Seq, how, err, diff)
			}
		}
	}
}

func TestMostLinesChangeNothing(t *testing.T) {
	l := storetest.NewLog(t)
	for _, line := range []audit.Line{
		l.Other(),
		l.Add(store.EventEnroll, store.OutRefused, "r", audit.Object{"reasons": []any{}}),
		l.Add(store.EventEnroll, store.OutRepeated, "r", audit.Object{"serial": "0a"}),
		l.Add(store.EventEnroll, "of a later version", "r", audit.Object{}),
		l.Add("security", "alert", "r", audit.Object{"challenge": "c1"}),
		l.Add("challenge/created", "x", "r", audit.Object{"id": "c1"}),
	} {
		if got, err := store.Changes(line); err != nil || got != nil {
			t.Errorf("%s: %v, %v, want nothing", line.Raw, got, err)
		}
	}
}

func TestChangesRefusesWhatLacksSomething(t *testing.T) {
	good := store.ChallengeObject(storetest.Challenge("c1"))
	without := func(key string, value any) audit.Object {
		o := audit.Object{key: value}
		for k, v := range good {
			if k != key {
				o[k] = v
			}
		}
		return o
	}
	l := storetest.NewLog(t)
	for _, line := range []audit.Line{
		l.Add(store.EventChallenge, store.OutCreated, "", without("id", "")),
		l.Add(store.EventChallenge, store.OutCreated, "", without("tag", "")),
		l.Add(store.EventChallenge, store.OutCreated, "", without("tag", strings.Repeat("0", 62))),
		l.Add(store.EventChallenge, store.OutCreated, "", without("tag", strings.Repeat("x", 64))),
		l.Add(store.EventChallenge, store.OutCreated, "", without("tag", 7)),
		l.Add(store.EventEnroll, store.OutIntent, "r", audit.Object{"subject": "CN=a"}),
		l.Add(store.EventEnroll, store.OutIssued, "r", store.ResultObject(0, "0a", nil)),
		l.Add(store.EventEnroll, store.OutIssued, "r", audit.Object{"intent_seq": 0, "certificate": "not base64"}),
		l.Add(store.EventEnroll, store.OutFailed, "r", audit.Object{"serial": "0a"}),
		l.Add(store.EventEnroll, store.OutUnknown, "r", audit.Object{"intent_seq": "0"}),
	} {
		if got, err := store.Changes(line); err == nil {
			t.Errorf("%s: %v, want an error", line.Raw, got)
		} else if !strings.Contains(err.Error(), "line ") {
			t.Errorf("%s: %v does not say which line", line.Raw, err)
		}
	}
}
