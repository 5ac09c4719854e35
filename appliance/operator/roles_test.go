package operator_test

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/postern-pki/postern/appliance/operator"
	"github.com/postern-pki/postern/appliance/operator/acts"
	"github.com/postern-pki/postern/appliance/rpc"
)

// matrix says who may do what, in the order of the columns.
var matrix = map[string]string{
	//                         administrator, registration, security, auditor, monitor
	acts.ReadStatus:        "yes yes yes yes yes",
	acts.CreateChallenge:   "yes yes no  no  no",
	acts.CreateChallenges:  "yes yes no  no  no",
	acts.ListChallenges:    "yes yes yes yes no",
	acts.RevokeChallenge:   "yes yes yes no  no",
	acts.ListCertificates:  "yes yes yes yes no",
	acts.ShowCertificate:   "yes yes yes yes no",
	acts.RevokeCertificate: "yes no  yes no  no",
	acts.ReadPublication:   "yes yes yes yes yes",
	acts.ShowRecords:       "yes yes yes yes no",
	acts.ListPending:       "yes yes yes yes no",
	acts.ShowPending:       "yes yes yes yes no",
	acts.ApprovePending:    "yes yes no  no  no",
	acts.DenyPending:       "yes yes no  no  no",
	acts.ReportClients:     "yes yes yes yes no",
	acts.ListCAs:           "yes yes yes yes no",
	acts.ShowRollover:      "yes yes yes yes no",
	acts.SwitchCA:          "yes no  no  no  no",
	acts.ExportBundle:      "yes no  no  yes no",
	acts.SignCheckpoint:    "yes no  no  yes no",
	acts.SubmitOrder:       "yes yes yes no  no",
}

func TestEachRoleDoesWhatTheTableSays(t *testing.T) {
	columns := []string{"administrator", "registration-officer", "security-officer", "auditor", "monitor"}
	w := newWorld(t, func(o *operator.Options) {
		o.Status = func(context.Context) operator.Status { return operator.Status{State: operator.Good} }
		o.Publication = func(context.Context, string, string) (operator.Publication, error) {
			return operator.Publication{}, nil
		}
	})
	two := one[:len(one)-1] + "," + one[1:]
	tries := map[string]struct {
		method, path, body string
		code               int // of who may
	}{
		acts.ReadStatus:        {"GET", "/api/v1/status", "", 200},
		acts.CreateChallenge:   {"POST", "/api/v1/challenges", one, 201},
		acts.CreateChallenges:  {"POST", "/api/v1/challenges", two, 201},
		acts.ListChallenges:    {"GET", "/api/v1/challenges", "", 200},
		acts.RevokeChallenge:   {"DELETE", "/api/v1/challenges/", "", 200},
		acts.ListCertificates:  {"GET", "/api/v1/certificates", "", 200},
		acts.ShowCertificate:   {"GET", "/api/v1/certificates/00", "", 404},
		acts.RevokeCertificate: {"DELETE", "/api/v1/certificates/00?reason=superseded", "", 404},
		acts.ReadPublication:   {"GET", "/api/v1/publication", "", 200},
		acts.ShowRecords:       {"GET", "/api/v1/records?req=x", "", 404},
		acts.ListPending:       {"GET", "/api/v1/pending", "", 200},
		acts.ShowPending:       {"GET", "/api/v1/pending/none", "", 404},
		acts.ApprovePending:    {"POST", "/api/v1/approvals/none", `{"reason":"x"}`, 404},
		acts.DenyPending:       {"POST", "/api/v1/denials/none", `{"reason":"x"}`, 404},
		acts.ReportClients:     {"GET", "/api/v1/reports/clients", "", 200},
		acts.ListCAs:           {"GET", "/api/v1/cas", "", 200},
		acts.ShowRollover:      {"GET", "/api/v1/rollover?issuer=corp", "", 200},
		acts.SwitchCA:          {"POST", "/api/v1/cas/switch", `{"issuer":"corp","from":"first","to":"first"}`, 409},
		acts.ExportBundle:      {"POST", "/api/v1/exports", exportOf(theManifest([]byte("n")), []byte("n")), 201},
		acts.SignCheckpoint:    {"POST", "/api/v1/checkpoints", "", 201},
		acts.SubmitOrder:       {"POST", "/api/v1/acts", "{}", 400},
	}
	if len(matrix) != len(acts.Table()) || len(tries) != len(matrix) || len(columns) != len(acts.Roles()) {
		t.Fatal("the table has acts or roles that are not tried here")
	}
	for act, row := range matrix {
		for i, may := range strings.Fields(row) {
			role, try := columns[i], tries[act]
			if act == acts.RevokeChallenge {
				try.path += w.created(t)[0].ID
			}
			before := len(w.records(t, "operator", "denied"))
			a := w.do(t, try.method, try.path, try.body, "X-Who", role)
			denied := w.records(t, "operator", "denied")[before:]
			if may == "yes" {
				if a.code != try.code || len(denied) != 0 {
					t.Errorf("%s as %s: %d %s", act, role, a.code, a.body)
				}
				continue
			}
			if p := a.problem(t); a.code != http.StatusForbidden || !strings.Contains(p.Error, act) && act != acts.CreateChallenges || !strings.Contains(p.Hint, role) || !strings.Contains(p.Hint, "administrator") {
				t.Errorf("%s as %s: %d %+v", act, role, a.code, p)
			}
			if len(denied) != 1 || denied[0].Actor.ID != role || denied[0].Object.String("method") != try.method || denied[0].Object.String("act") == "" {
				t.Errorf("%s as %s is recorded so: %+v", act, role, denied)
			}
		}
	}
}

// created is a new challenge.
func (w *world) created(t *testing.T) (made []operator.Challenge) {
	t.Helper()
	a := w.do(t, http.MethodPost, "/api/v1/challenges", one)
	if err := json.Unmarshal([]byte(a.body), &made); err != nil || len(made) != 1 {
		t.Fatalf("%d %s", a.code, a.body)
	}
	return made
}

// Whom the gate knows and the configuration does not is nobody here, and is told
// what to put there.
func TestAKeyWithoutARoleIsNobodys(t *testing.T) {
	w := newWorld(t)
	for n, path := range []string{"/api/v1/status", "/nowhere"} {
		a := w.do(t, http.MethodGet, path, "", "X-Who", "key:0123")
		if p := a.problem(t); a.code != http.StatusForbidden || !strings.Contains(p.Hint, "key:0123") {
			t.Errorf("%d %+v", a.code, p)
		}
		if got := w.records(t, "operator", "denied"); len(got) != n+1 || got[n].Actor.ID != "key:0123" {
			t.Errorf("%+v", got)
		}
	}
}

// Whom the gate does not vouch for is nobody, whatever they are called.
func TestANameThatTheGateDoesNotVouchForIsNobodys(t *testing.T) {
	w := newWorld(t)
	a, err := w.Operate(t.Context(), rpc.Call{Actor: rpc.Actor{Kind: "operator", ID: "alice"}, Method: "POST", Path: "/api/v1/challenges", Body: []byte(one)})
	if err != nil || a.Code != http.StatusForbidden {
		t.Errorf("%d %s, %v", a.Code, a.Body, err)
	}
	if n := len(w.records(t, "challenge", "created")); n != 0 || len(w.records(t, "operator", "denied")) != 1 {
		t.Errorf("%d challenges were created", n)
	}
}

func TestAnActOverAnotherLinkIsRefusedAndRecorded(t *testing.T) {
	w := newWorld(t)
	call := rpc.Call{Actor: rpc.Actor{Kind: "operator", ID: "alice", Source: "local"}, Allowed: true, Method: "POST", Path: "/api/v1/challenges", Body: []byte(one)}
	a, err := w.RefuseLink(t.Context(), "devices", call)
	if err != nil || a.Code != http.StatusForbidden {
		t.Errorf("%d %s, %v", a.Code, a.Body, err)
	}
	got := w.records(t, "operator", "refused")
	if len(got) != 1 || got[0].Actor.Kind != "gate" || got[0].Actor.ID != "devices" || got[0].Object.String("path") != call.Path || got[0].Object.String("claims") != "alice" {
		t.Errorf("%+v", got)
	}
	if got := w.records(t, "security", "alert"); len(got) != 1 || got[0].Object.String("link") != "devices" {
		t.Errorf("%+v", got)
	}
	if n := len(w.records(t, "challenge", "created")); n != 0 {
		t.Errorf("%d challenges were created", n)
	}
}

func TestChallengesAreListedAndRevoked(t *testing.T) {
	w := newWorld(t)
	first, second := w.created(t)[0], w.created(t)[0]
	list := func(query string) (l operator.Challenges) {
		a := w.do(t, http.MethodGet, "/api/v1/challenges"+query, "")
		if err := json.Unmarshal([]byte(a.body), &l); err != nil || a.code != http.StatusOK {
			t.Fatalf("%d %s", a.code, a.body)
		}
		for _, secret := range []string{first.Challenge, second.Challenge, "tag"} {
			if strings.Contains(a.body, secret) {
				t.Errorf("the list tells %q", secret)
			}
		}
		return l
	}
	if l := list("").Challenges; len(l) != 2 || l[0].ID != second.ID || l[0].State != "open" || l[0].Subject != "CN=a.corp.example" || !l[0].Expires.Equal(second.Expires) {
		t.Errorf("%+v", l)
	}
	if a := w.do(t, http.MethodDelete, "/api/v1/challenges/"+first.ID, "", "X-Who", "security-officer"); a.code != http.StatusOK {
		t.Fatalf("%d %s", a.code, a.body)
	}
	if got := w.records(t, "challenge", "revoked"); len(got) != 1 || got[0].Actor.ID != "security-officer" || got[0].Object.String("id") != first.ID {
		t.Errorf("%+v", got)
	}
	if l := list("?state=revoked&profile=wifi").Challenges; len(l) != 1 || l[0].ID != first.ID {
		t.Errorf("%+v", l)
	}
	if l := list("?state=open&limit=1").Challenges; len(l) != 1 || l[0].ID != second.ID {
		t.Errorf("%+v", l)
	}
	for path, code := range map[string]int{first.ID: 409, "none": 404, "": 404, second.ID + "/x": 404} {
		if a := w.do(t, http.MethodDelete, "/api/v1/challenges/"+path, ""); a.code != code {
			t.Errorf("revoking %q: %d %s", path, a.code, a.body)
		}
	}
	if a := w.do(t, http.MethodDelete, "/api/v1/challenges/"+second.ID, "{}"); a.code != http.StatusBadRequest {
		t.Errorf("with a body: %d %s", a.code, a.body)
	}
	for _, query := range []string{"?state=closed", "?limit=0", "?limit=1001", "?%zz"} {
		if a := w.do(t, http.MethodGet, "/api/v1/challenges"+query, ""); a.code != http.StatusBadRequest {
			t.Errorf("%s: %d %s", query, a.code, a.body)
		}
	}
	if n := len(w.records(t, "challenge", "revoked")); n != 1 {
		t.Errorf("%d challenges are revoked", n)
	}
}
