package report_test

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/audit/bundle/report"
)

// collected is the report on records, of which each has its own time.
func collected(t *testing.T, records ...audit.Record) *report.Report {
	t.Helper()
	var b bytes.Buffer
	var chain audit.Chain
	for i, r := range records {
		h := chain.Head()
		r.Seq, r.Prev, r.Boot = uint64(i), hex.EncodeToString(h.Prev[:]), "b"
		l, err := audit.Encode(r)
		if err == nil {
			err = chain.Step(l)
		}
		if err != nil {
			t.Fatal(err)
		}
		b.Write(l.Raw)
	}
	var c report.Collector
	v := noVerifier{}
	w := audit.NewWalk(audit.WalkOptions{Verifier: v, Each: c.Each})
	if _, err := w.Segment(t.Context(), "s", &b, false); err != nil {
		t.Fatal(err)
	}
	return c.Report()
}

type noVerifier struct{}

func (noVerifier) Name() string            { return "test.example/log" }
func (noVerifier) KeyHash() uint32         { return 0 }
func (noVerifier) Verify(_, _ []byte) bool { return false }

func TestTheReportSaysWhatAPersonAsks(t *testing.T) {
	at := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	device, alice := audit.Actor{Kind: "device", ID: "-", Source: "192.0.2.1:5"}, audit.Actor{Kind: "operator", ID: "key:alice"}
	system := audit.Actor{Kind: "system", ID: "log"}
	record := func(minutes int, who audit.Actor, event, out string, o audit.Object) audit.Record {
		return audit.Record{Time: at.Add(time.Duration(minutes) * time.Minute), Actor: who, Event: event, Outcome: out, Object: o}
	}
	refused := audit.Object{"kind": "badRequest", "reasons": []any{audit.Object{"rule": "subject.CN", "say": "no"}}}
	start := func(policy string) audit.Object { return audit.Object{"version": "1", "policy": policy, "config": "c"} }
	r := collected(t,
		record(0, system, "log.genesis", "ok", audit.Object{"origin": "test.example/log"}),
		record(1, system, "system.start", "ok", start("p1")), record(2, system, "system.start", "ok", start("p1")), record(3, system, "system.start", "ok", start("p2")),
		record(4, device, "enroll", "refused", refused), record(4, device, "enroll", "refused", refused), record(4, device, "enroll", "refused", audit.Object{"kind": "badAlg"}),
		record(5, device, "enroll", "issued", audit.Object{"serial": "0a0b", "certificate": "AA=="}),
		record(90, alice, "operator", "denied", audit.Object{"path": "/<script>alert(1)</script>", "why": "\x1b[31mred"}),
		record(80, system, "time.step", "found", audit.Object{"expected": "e", "found": "f"}),
		record(81, system, "revocation", "revoked", audit.Object{"serial": "0a0b", "why": "lost"}),
	)
	for name, got := range map[string][2]int64{
		"issued": {r.Issued.Total, 1}, "revoked": {r.Revoked.Total, 1}, "exceptions": {r.Exceptions.Total, 1}, "gaps": {r.Gaps.Total, 1}, "clock": {r.Clock.Total, 2}, "changes": {r.Changes.Total, 3}, "records": {r.Records, 11},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: %d, want %d", name, got[0], got[1])
		}
	}
	if e := r.Events; e[0].What == "enroll refused" && (e[0].Reason != "subject.CN" || e[0].N != 2) || r.Actors[0].What != "system log" || r.Gaps.Items[0].Seq != 8 {
		t.Errorf("%+v, %+v, %+v", r.Events, r.Actors, r.Gaps)
	}
	var page, text bytes.Buffer
	if err := r.HTML(&page); err != nil {
		t.Fatal(err)
	}
	if err := r.Text(&text); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]string{"HTML": page.String(), "text": text.String()} {
		if !strings.Contains(s, "subject.CN") || !strings.Contains(s, "0a0b") || !strings.Contains(s, "no record for 1h25m0s") {
			t.Errorf("%s: %s", name, s)
		}
	}
	if strings.Contains(page.String(), "<script") || strings.Contains(text.String(), "\x1b") {
		t.Error("a stranger's text is not escaped")
	}
}
