package operator_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/appliance/operator"
	"github.com/postern-pki/postern/appliance/operator/acts"
	"github.com/postern-pki/postern/protocol"
)

// states is which generation is current, and which next.
func (w *world) states(t *testing.T) string {
	t.Helper()
	var out []string
	for _, c := range get[operator.CAs](t, w, "/api/v1/cas").CAs {
		out = append(out, c.Generation+" "+c.State)
		if c.Issuer != "corp" || len(c.SHA256) != 64 || c.Until.IsZero() || (c.State == operator.CACurrent && c.Before != "") != (c.Since != nil) {
			t.Errorf("%+v", c)
		}
	}
	return strings.Join(out, ", ")
}

// A switch is recorded with who did it, names the generation that it replaces, and is
// seen at once.
func TestTheCurrentCAIsSwitched(t *testing.T) {
	w := newWorld(t)
	if got := w.states(t); got != "first current, 2027 next" {
		t.Fatal(got)
	}
	for body, code := range map[string]int{
		`{"issuer":"corp","from":"2027","to":"first"}`: 409, `{"issuer":"corp","from":"first","to":"2030"}`: 404, `{"issuer":"lab","from":"first","to":"2027"}`: 404,
		`{"issuer":"corp"}`: 404, `{"issuer":"corp","from":"first","to":"2027"}{}`: 400, `{"issuer":"corp","from":"first","to":"2027","now":1}`: 400, "": 400, "[]": 400,
	} {
		if a := w.do(t, http.MethodPost, "/api/v1/cas/switch", body); a.code != code {
			t.Errorf("%s: %d %s", body, a.code, a.body)
		}
	}
	if a := w.do(t, http.MethodPost, "/api/v1/cas/switch", `{"issuer":"corp","from":"first","to":"2027"}`); a.code != http.StatusOK {
		t.Fatalf("%d %s", a.code, a.body)
	}
	if got := w.states(t); got != "first other, 2027 current" {
		t.Error(got)
	}
	r := w.records(t, "ca", "switched")
	if len(r) != 1 || r[0].Actor.ID != "alice" || r[0].Object.String("from") != "first" || r[0].Object.String("to") != "2027" || r[0].Object.String("issuer") != "corp" {
		t.Errorf("%+v", r)
	}
}

// Under the two-person rule the switch takes two signatures, and what was signed stands
// in the log before it.
func TestTwoPeopleSwitchTheCA(t *testing.T) {
	people := newOffice(t)
	w := newWorld(t, people.rules(t), func(o *operator.Options) {
		o.Rules.TwoPerson = append(o.Rules.TwoPerson, acts.SwitchCA)
		for i, p := range o.Rules.People {
			if p.Name == "ann" || p.Name == "ben" {
				o.Rules.People[i].Roles = []acts.Role{acts.Administrator}
			}
		}
	})
	if a := w.do(t, http.MethodPost, "/api/v1/cas/switch", `{"issuer":"corp","from":"first","to":"2027"}`); a.code != http.StatusForbidden || !strings.Contains(a.body, "--act FILE") {
		t.Errorf("alone: %d %s", a.code, a.body)
	}
	p := acts.Parameters{Switch: &acts.CASwitch{Issuer: "corp", From: "first", To: "2027"}}
	order := acts.NewOrder(acts.SwitchCA, p, "corp.example/log", w.place(), time.Now().Add(time.Hour))
	if a := w.submit(t, people.signed(t, order, "ann", "cat")); a.code != http.StatusForbidden {
		t.Errorf("with one who may not: %d %s", a.code, a.body)
	}
	if a := w.submit(t, people.signed(t, order, "ann", "ben")); a.code != http.StatusOK {
		t.Fatalf("%d %s", a.code, a.body)
	}
	approved, done := w.records(t, "operator", "approved"), w.records(t, "ca", "switched")
	if len(approved) != 1 || len(done) != 1 || approved[0].Seq+1 != done[0].Seq || approved[0].Object.Object("signed").Object("parameters").Object("switch").String("to") != "2027" {
		t.Errorf("%+v, %+v", approved, done)
	}
	if got := w.states(t); got != "first other, 2027 current" {
		t.Error(got)
	}
	order.Parameters.Challenge = "c"
	if _, err := order.Canonical(); err == nil {
		t.Error("a switch with the parameters of another act")
	}
}

// The account says who has fetched the next CA's certificates, and where it goes once
// that is current.
func TestTheAccountOfARollover(t *testing.T) {
	w := newWorld(t)
	for _, source := range []string{"192.0.2.7:1", "192.0.2.7:2", "192.0.2.8:1"} {
		if _, err := w.Reject(t.Context(), protocol.Rejected{Profile: "wifi", Operation: "GetNextCACert", Source: source, Served: true, NextCA: "2027"}); err != nil {
			t.Fatal(err)
		}
	}
	r := get[operator.Rollover](t, w, "/api/v1/rollover?issuer=corp&limit=1")
	if r.Current != "first" || r.To != "2027" || !r.Staged || len(r.Certificates) != 0 {
		t.Errorf("%+v", r)
	}
	for _, p := range r.Profiles {
		if p.Profile == "wifi" && (p.Addresses != 2 || len(p.Fetches) != 1) || p.Profile != "wifi" && p.Addresses != 0 {
			t.Errorf("%+v", p)
		}
	}
	if a := w.do(t, http.MethodPost, "/api/v1/cas/switch", `{"issuer":"corp","from":"first","to":"2027"}`); a.code != http.StatusOK {
		t.Fatalf("%d %s", a.code, a.body)
	}
	if r = get[operator.Rollover](t, w, "/api/v1/rollover?issuer=corp"); r.To != "2027" || r.Staged || r.Current != "2027" {
		t.Errorf("after the switch: %+v", r)
	}
	for path, code := range map[string]int{"?issuer=lab": 404, "": 404, "?issuer=corp&limit=0": 400, "?issuer=corp&before=x": 400} {
		if a := w.do(t, http.MethodGet, "/api/v1/rollover"+path, ""); a.code != code {
			var p operator.Problem
			t.Errorf("%s: %d %s %v", path, a.code, a.body, json.Unmarshal([]byte(a.body), &p))
		}
	}
}
