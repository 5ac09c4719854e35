package operator_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/appliance/operator"
	"github.com/postern-pki/postern/audit"
)

func (w *world) report(t *testing.T, query string) (r operator.ClientReport) {
	t.Helper()
	a := w.do(t, http.MethodGet, "/api/v1/reports/clients?"+query, "")
	if err := json.Unmarshal([]byte(a.body), &r); err != nil || a.code != http.StatusOK {
		t.Fatalf("%d %s", a.code, a.body)
	}
	return r
}

// asked is the record of a device's message.
func asked(event, outcome, source string, o audit.Object) audit.Entry {
	return audit.Entry{Event: event, Outcome: outcome, Request: "r", Actor: audit.Actor{Kind: "device", Source: source}, Object: o}
}

func shows(agent string, traits ...string) audit.Object {
	return audit.Object{"agent": agent, "traits": traits}
}

// Each client is named once, by its subject where that is known, with all that was
// old about it; what is new, and what asks for nothing, is only counted.
func TestClientReport(t *testing.T) {
	w := newWorld(t)
	facts := func(cn string) audit.Object {
		return audit.Object{"subject": []any{audit.Object{"name": "CN", "value": cn}, audit.Object{"name": "O", "value": "Corp"}}}
	}
	entries := []audit.Entry{
		asked("enroll", "refused", "192.0.2.1:1000", audit.Object{"profile": "wifi", "facts": facts("router"), "client": shows("IOS", "sha-1", "get")}),
		asked("enroll", "refused", "192.0.2.2:1001", audit.Object{"profile": "wifi", "facts": facts("router"), "client": shows("IOS 2", "3des")}),
		asked("enroll", "refused", "192.0.2.3:1", audit.Object{"profile": "wifi", "facts": facts("new"), "client": shows("curl")}),
		asked("message", "rejected", "[2001:db8::1]:7", audit.Object{"profile": "wifi", "why": "cipher unknown", "client": shows("printer", "des", "a word of tomorrow")}),
		asked("message", "rejected", "[2001:db8::1]:8", audit.Object{"profile": "wifi", "client": shows("printer", "des")}),
		asked("message", "rejected", "192.0.2.9:8", audit.Object{"profile": "vpn", "client": shows("", "http-1.0")}),
		asked("message", "served", "192.0.2.9:8", audit.Object{"profile": "vpn"}),
		asked("security", "alert", "192.0.2.9:8", audit.Object{"profile": "vpn"}),
		{Event: "operator", Outcome: "denied", Actor: audit.Actor{Kind: "operator"}, Object: audit.Object{"client": shows("x", "sha-1")}},
	}
	if _, err := w.log.AppendAll(t.Context(), entries...); err != nil {
		t.Fatal(err)
	}
	r := w.report(t, "")
	if r.Requests != 6 || r.Old != 5 || r.More != 0 || !r.Since.Before(time.Now().Add(-29*24*time.Hour)) {
		t.Errorf("%+v", r)
	}
	got := map[string]string{}
	for _, c := range r.Clients {
		got[c.Subject+"|"+c.Source] = fmt.Sprintln(c.Profile, c.Agent, c.Traits, c.Requests, c.Refused)
	}
	for who, want := range map[string]string{
		"O=Corp,CN=router|192.0.2.2": "wifi IOS 2 [get sha-1 3des] 2 2\n", "|2001:db8::1": "wifi printer [des] 2 2\n", "|192.0.2.9": "vpn  [http-1.0] 1 1\n",
	} {
		if got[who] != want {
			t.Errorf("%s: %q, want %q", who, got[who], want)
		}
	}
	use := slices.IndexFunc(r.Traits, func(u operator.TraitUse) bool { return u.Trait == "des" })
	if len(r.Clients) != 3 || len(r.Traits) != 5 || use < 0 || r.Traits[use].Requests != 2 || r.Traits[use].Clients != 1 || !strings.Contains(r.Traits[use].Says, "DES") {
		t.Errorf("%+v", r.Traits)
	}
	if r := w.report(t, "profile=vpn"); r.Requests != 1 || len(r.Clients) != 1 {
		t.Errorf("of one profile: %+v", r)
	}
	if r := w.report(t, "since="+url.QueryEscape(time.Now().Add(time.Hour).Format(time.RFC3339))); r.Requests != 0 || len(r.Clients) != 0 {
		t.Errorf("of the future: %+v", r)
	}
	if a := w.do(t, http.MethodGet, "/api/v1/reports/clients?since=yesterday", ""); a.code != http.StatusBadRequest {
		t.Errorf("%d %s", a.code, a.body)
	}
}

// A report holds so many clients and no more; it says how many are left out.
func TestClientReportIsBounded(t *testing.T) {
	w := newWorld(t)
	var entries []audit.Entry
	for i := range 1003 {
		entries = append(entries, asked("message", "rejected", fmt.Sprintf("10.0.%d.%d:1", i/256, i%256), audit.Object{"profile": "wifi", "client": shows("a", "get")}))
	}
	if _, err := w.log.AppendAll(t.Context(), entries...); err != nil {
		t.Fatal(err)
	}
	r := w.report(t, "")
	if len(r.Clients) != 1000 || r.More != 3 || r.Traits[0].Clients != 1003 || r.Requests != 1003 {
		t.Errorf("%d clients, %d more, %+v", len(r.Clients), r.More, r.Traits)
	}
}

// What is read of a long log begins with the segment that a time lies in.
func TestReportsBeginWhereTheyHaveTo(t *testing.T) {
	w := newWorld(t)
	from := must[uint64](t)(audit.From(w.dir, time.Now().Add(-time.Hour)))
	missing := must[uint64](t)(audit.From(filepath.Join(w.dir, "nothing"), time.Now()))
	if from != 0 || missing != 0 {
		t.Errorf("%d, %d", from, missing)
	}
}
