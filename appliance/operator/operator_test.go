package operator_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/authority"
	"github.com/postern-pki/postern/appliance/gate"
	"github.com/postern-pki/postern/appliance/operator"
	"github.com/postern-pki/postern/appliance/operator/acts"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/appliance/store/sqlite"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/policy/challenge"
	"github.com/postern-pki/postern/protocol"
)

const profile = `profiles:
  - name: wifi
    protocols: [scep]
    issuer: corp
    challenge: {mode: one-time, ttl: 30m}
    approve: automatic
    key: {rsa: {min: 2048, max: 4096}}
    subject:
      CN: {pattern: '[a-z0-9-]{1,40}\.corp\.example', required: true}
    san:
      dns: {pattern: '[a-z0-9.-]+\.corp\.example', max: 64}
    usage: {key: {rsa: [digitalSignature]}, extended: [clientAuth]}
    validity: {for: 365d}
` + vouchedProfile

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

type softKey struct{ *ecdsa.PrivateKey }

func (k softKey) SignCertificate(_ context.Context, _ string, tbs []byte, _ uint64) ([]byte, error) {
	sum := sha256.Sum256(tbs)
	return ecdsa.SignASN1(rand.Reader, k.PrivateKey, sum[:])
}

// A world is the API over a log on disk, an index and a pipeline.
type world struct {
	*httptest.Server
	*authority.Pipeline
	*operator.Service
	options operator.Options
	dir     string
	log     *audit.Log
	ra      []byte // the RA-decrypt certificate
	audit   softKey
}

// generation is a CA that signs itself, with an RA.
func generation(t *testing.T, name, called string, ca *x509.Certificate, key softKey, ra []byte) authority.CA {
	t.Helper()
	der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key.PrivateKey))
	is := must[*issuer.Issuer](t)(issuer.New(name, must[*x509.Certificate](t)(x509.ParseCertificate(der)), key, issuer.Options{}))
	return authority.CA{Issuer: is, Generation: protocol.Generation{Name: called, RASign: ra, RADecrypt: ra, CA: der}}
}

// newWorld serves the API to whom the header X-Who names: alice is an
// administrator, everybody else has the one role that they are called by.
func newWorld(t *testing.T, tune ...func(*operator.Options)) *world {
	t.Helper()
	w := &world{dir: filepath.Join(t.TempDir(), "audit"), ra: raCertificate(t, "RA")}
	index := must[*sqlite.Store](t)(sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "index.db")))
	t.Cleanup(func() { _ = index.Close() })
	key := softKey{must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))}
	w.audit = key
	w.log = must[*audit.Log](t)(audit.Open(t.Context(), audit.Options{
		Dir: w.dir, Origin: "corp.example/log", Followers: []audit.Follower{index}, Signer: key, Verifier: key.verifier(t),
		Genesis: func() (audit.Entry, error) {
			return audit.Entry{Outcome: "ok", Actor: audit.Actor{Kind: "system"}}, nil
		},
	}))
	t.Cleanup(func() { _ = w.log.Close(context.Background()) })
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Corp CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(9999 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte{1},
	}
	first := generation(t, "corp", "first", ca, key, w.ra)
	ca.Subject.CommonName, ca.NotBefore = "Corp CA 2", time.Now().Add(-time.Minute)
	next := generation(t, "corp.2027", "2027", ca, key, raCertificate(t, "RA 2"))
	w.Pipeline = must[*authority.Pipeline](t)(authority.New(authority.Options{
		Log: w.log, Index: index, Policies: must[*policy.Set](t)(policy.Load(policy.Source{Name: "p.yaml", Data: []byte(profile)})),
		Tagger:  must[*challenge.Tagger](t)(challenge.NewTagger(bytes.Repeat([]byte{7}, 32))),
		Issuers: map[string][]authority.CA{"corp": {first, next}}, Now: time.Now, Zap: zap.NewNop(),
	}))
	rules := acts.Rules{People: []acts.Person{{Name: "alice", ID: "alice", Roles: []acts.Role{acts.Administrator}}}}
	for _, role := range acts.Roles() {
		rules.People = append(rules.People, acts.Person{Name: "the " + string(role), ID: string(role), Roles: []acts.Role{role}})
	}
	w.options = operator.Options{
		Acts: w.Pipeline, Index: index, Log: w.log,
		Scan: func(from uint64, fn func(audit.Line) error) error { return audit.Scan(w.dir, from, fn) },
		From: func(t time.Time) (uint64, error) { return audit.From(w.dir, t) },
		Find: func(ctx context.Context, request string, limit int) ([]audit.Line, error) {
			return audit.Find(ctx, w.dir, request, limit)
		},
		Status: func(context.Context) operator.Status { panic("a fault of ours") },
		Origin: "corp.example/log", Rules: rules, Manifests: key, Now: time.Now, Zap: zap.NewNop(),
	}
	w.again(tune...)
	w.Server = httptest.NewServer(gate.Operators(w, func(r *http.Request) (rpc.Actor, bool) {
		who := r.Header.Get("X-Who")
		return rpc.Actor{Kind: "operator", ID: who, Source: "test"}, who != "mallory"
	}, zap.NewNop()))
	t.Cleanup(w.Close)
	return w
}

// again makes a service that knows nothing but the log and the index.
func (w *world) again(tune ...func(*operator.Options)) {
	o := w.options
	o.Rules.People = slices.Clone(o.Rules.People)
	for _, f := range tune {
		f(&o)
	}
	w.Service = operator.New(o)
}

type answer struct {
	code int
	body string
}

func (a answer) problem(t *testing.T) operator.Problem {
	t.Helper()
	var p operator.Problem
	if err := json.Unmarshal([]byte(a.body), &p); err != nil || p.Error == "" || a.code < 400 {
		t.Errorf("no problem: %d %q", a.code, a.body)
	}
	return p
}

func (w *world) do(t *testing.T, method, path, body string, header ...string) answer {
	t.Helper()
	r := must[*http.Request](t)(http.NewRequestWithContext(t.Context(), method, w.URL+path, strings.NewReader(body)))
	r.Header.Set("X-Who", "alice")
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp := must[*http.Response](t)(w.Client().Do(r))
	defer func() { _ = resp.Body.Close() }()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	if ct := resp.Header.Get("Content-Type"); ct != "application/json" {
		t.Errorf("%s %s is answered as %q", method, path, ct)
	}
	return answer{resp.StatusCode, b.String()}
}

func (w *world) records(t *testing.T, event, outcome string) (out []audit.Record) {
	t.Helper()
	if err := audit.Scan(w.dir, 0, func(l audit.Line) error {
		if l.Record.Event == event && l.Record.Outcome == outcome {
			out = append(out, l.Record)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

const one = `[{"profile":"wifi","subject":"CN=a.corp.example"}]`

func TestAnActIsRecordedWithWhoDidIt(t *testing.T) {
	w := newWorld(t)
	a := w.do(t, http.MethodPost, "/api/v1/challenges", one)
	var made []operator.Challenge
	if err := json.Unmarshal([]byte(a.body), &made); err != nil || a.code != http.StatusCreated || len(made) != 1 || len(made[0].Challenge) != 26 {
		t.Fatalf("%d %s", a.code, a.body)
	}
	got := w.records(t, "challenge", "created")
	if len(got) != 1 || got[0].Actor.ID != "alice" || got[0].Object.String("id") != made[0].ID {
		t.Errorf("records: %+v", got)
	}
	log := w.do(t, http.MethodGet, "/api/v1/records?req="+got[0].Request, "")
	if log.code != http.StatusOK || strings.Contains(log.body, made[0].Challenge) || !strings.Contains(log.body, made[0].ID) {
		t.Errorf("the record of it: %d %s", log.code, log.body)
	}
}

func TestWhatIsRefusedChangesNothingAndIsRecorded(t *testing.T) {
	for name, tt := range map[string]struct {
		body string
		code int
		hint string
	}{
		"no JSON":             {"profile=wifi", 400, "list"},
		"an object":           {one[1 : len(one)-1], 400, "list"},
		"two lists":           {one + one, 400, "list"},
		"a list cut short":    {one[:len(one)-1], 400, "list"},
		"an unknown field":    {`[{"profile":"wifi","subjekt":"CN=a"}]`, 400, "list"},
		"nothing":             {"[]", 400, "1 to 1000"},
		"too many":            {"[" + strings.Repeat("{},", 1000) + "{}]", 400, "1 to 1000"},
		"an unknown profile":  {`[{"profile":"x","subject":"CN=a.corp.example"}]`, 400, "no such profile"},
		"a foreign name":      {`[{"profile":"wifi","subject":"CN=a.evil.example"}]`, 400, "would refuse"},
		"one of two is wrong": {one[:len(one)-1] + `,{"profile":"wifi","subject":"CN=evil"}]`, 400, "challenge 2 of 2"},
		"a time that is long": {`[{"profile":"wifi","subject":"CN=a.corp.example","ttl":"31m"}]`, 400, "at most 30m"},
		"a time in the past":  {`[{"profile":"wifi","subject":"CN=a.corp.example","ttl":"-1m"}]`, 400, "ttl"},
		"no time":             {`[{"profile":"wifi","subject":"CN=a.corp.example","ttl":"soon"}]`, 400, "ttl"},
		"more names than the profile allows": {`[{"profile":"wifi","subject":"CN=a.corp.example","dns":["` +
			strings.Join(names(65), `","`) + `"]}]`, 400, "would refuse"},
		"a body that does not end": {"[" + strings.Repeat(" ", 5<<20), 413, "larger"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a := w.do(t, http.MethodPost, "/api/v1/challenges", tt.body)
			if p := a.problem(t); a.code != tt.code || !strings.Contains(p.Error, tt.hint) {
				t.Errorf("%d %+v, want %d and %q", a.code, p, tt.code, tt.hint)
			}
			if n := len(w.records(t, "challenge", "created")); n != 0 {
				t.Errorf("%d challenges were created", n)
			}
			if got := w.records(t, "operator", "refused"); len(got) != 1 || got[0].Actor.ID != "alice" || got[0].Object.String("path") != "/api/v1/challenges" {
				t.Errorf("records: %+v", got)
			}
		})
	}
}

// names are so many of 250 octets that the profile allows.
func names(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("h%d.", i) + strings.Repeat("a.", 115) + "corp.example"
	}
	return out
}

// Who may not is recorded however the request is made, and learns nothing.
func TestAStrangerIsRecorded(t *testing.T) {
	w := newWorld(t)
	long := strings.Repeat("A", 60_000)
	for n, tt := range []struct{ method, path string }{
		{http.MethodGet, "/api/v1/status"}, {http.MethodPost, "/api/v1/challenges"}, {http.MethodGet, "/api/v1/records?req=x"},
		{http.MethodGet, "/api/v1/certificates/" + long}, {http.MethodGet, "/api/v1/certificates/%1b%ff%00"},
	} {
		if a := w.do(t, tt.method, tt.path, one, "X-Who", "mallory"); a.code != http.StatusForbidden {
			t.Errorf("%s: %d %s", tt.path, a.code, a.body)
		}
		if got := w.records(t, "operator", "denied"); len(got) != n+1 || got[n].Actor.ID != "mallory" || got[n].Object.String("method") != tt.method {
			t.Errorf("%s: %d records", tt.path, len(got))
		}
	}
	if n := len(w.records(t, "challenge", "created")); n != 0 {
		t.Errorf("%d challenges were created", n)
	}
}

func TestAnotherSiteCannotUseAnOperatorsBrowser(t *testing.T) {
	w := newWorld(t)
	for name, header := range map[string][]string{
		"by its fetch metadata": {"Sec-Fetch-Site", "cross-site"},
		"by its origin":         {"Origin", "https://evil.example"},
	} {
		if a := w.do(t, http.MethodPost, "/api/v1/challenges", one, header...); a.code != http.StatusForbidden {
			t.Errorf("%s: %d %s", name, a.code, a.body)
		}
	}
	if n := len(w.records(t, "challenge", "created")); n != 0 {
		t.Errorf("%d challenges were created", n)
	}
	if got := w.records(t, "operator", "denied"); len(got) != 2 || got[0].Object.String("why") != "a request from another site" {
		t.Errorf("records: %+v", got)
	}
}

func TestAskingForWhatIsNotThere(t *testing.T) {
	w := newWorld(t)
	for path, code := range map[string]int{
		"/": 404, "/api/v1/": 404, "/api/v1/certificates/00ff": 404, "/api/v1/certificates/..%2f..": 404, "/api/v1/records?req=none": 404,
		"/api/v1/records?serial=00": 404, "/api/v1/records": 400, "/api/v1/records?req=a&serial=b": 400,
		"/api/v1/certificates?limit=0": 400, "/api/v1/certificates?limit=1001": 400, "/api/v1/certificates?before=-1": 400, "/api/v1/certificates?state='": 200,
	} {
		if a := w.do(t, http.MethodGet, path, ""); a.code != code {
			t.Errorf("%s: %d %s, want %d", path, a.code, a.body, code)
		}
	}
	if a := w.do(t, http.MethodDelete, "/api/v1/challenges", ""); a.code != http.StatusNotFound {
		t.Errorf("DELETE: %d", a.code)
	}
}

// A panic is answered and costs nothing else.
func TestAPanicIsAFaultOfOurs(t *testing.T) {
	w := newWorld(t)
	if p := w.do(t, http.MethodGet, "/api/v1/status", "").problem(t); strings.Contains(p.Error, "a fault of ours") {
		t.Errorf("the panic's words were told: %+v", p)
	}
	if a := w.do(t, http.MethodPost, "/api/v1/challenges", one); a.code != http.StatusCreated {
		t.Errorf("afterwards: %d %s", a.code, a.body)
	}
}

// Without its log the appliance does nothing, and says so.
func TestNothingIsDoneWithoutTheLog(t *testing.T) {
	w := newWorld(t)
	if err := w.log.Close(t.Context()); err != nil && !errors.Is(err, audit.ErrClosed) {
		t.Fatal(err)
	}
	if a := w.do(t, http.MethodPost, "/api/v1/challenges", one); a.code != http.StatusServiceUnavailable || strings.Contains(a.body, "challenge\":") {
		t.Errorf("%d %s", a.code, a.body)
	}
}
