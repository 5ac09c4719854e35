// Package intune is a stand-in for Microsoft's login, directory and Intune services. It is
// strict: whatever a caller gets wrong in a header, a field or the order of its calls is a
// fault of the test.
package intune

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/postern-pki/postern/protocol/pkcs10"
)

// What the tenant is, and the application in it.
const (
	Tenant = "corp.onmicrosoft.test"
	App    = "11111111-2222-3333-4444-555555555555"
	Secret = "a secret that the portal shows once"
)

// A Call is one call to a service.
type Call struct {
	Action      string // such as "validateRequest"
	Transaction string
	CSR         []byte
	Fields      map[string]any
}

// A Server is a tenant.
type Server struct {
	*httptest.Server
	fault func(format string, args ...any)

	mu     sync.Mutex
	tokens map[string]string // scope by token
	ids    map[string]bool   // client-request-id that were used
	calls  []Call
	knows  map[string]string // common name by challenge
	passed map[string]bool   // CSRs that were validated
	say    map[string]string // code by action, in place of what is found
	down   map[string]bool   // actions that answer 503
	count  map[string]int    // of tokens and of looks into the directory
	revoke []map[string]any
	Life   time.Duration // of tokens; set before the first call
	Assert func(assertion string) error
}

// New starts a tenant. What is wrong with a call goes to fault.
func New(fault func(format string, args ...any)) *Server {
	s := &Server{
		fault: fault, tokens: map[string]string{}, ids: map[string]bool{}, knows: map[string]string{}, passed: map[string]bool{},
		say: map[string]string{}, down: map[string]bool{}, count: map[string]int{}, Life: time.Hour,
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /"+Tenant+"/oauth2/v2.0/token", s.token)
	mux.HandleFunc("GET /v1.0/servicePrincipals/appId=0000000a-0000-0000-c000-000000000000/endpoints", s.directory)
	mux.HandleFunc("POST /StatelessScep/ScepActions/{action}", s.scep)
	mux.HandleFunc("POST /Pki/CertificateAuthorityRequests/{action}", s.connector)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.fault("%s %s is none of Intune's", r.Method, r.URL)
		w.WriteHeader(http.StatusNotFound)
	})
	s.Server = httptest.NewTLSServer(mux)
	return s
}

// Knows has Intune make a challenge for a common name.
func (s *Server) Knows(challenge, cn string) { s.do(func() { s.knows[challenge] = cn }) }

// Say has an action answer a code, "" what is found.
func (s *Server) Say(action, code string) { s.do(func() { s.say[action] = code }) }

// Down has an action fail, or work again.
func (s *Server) Down(action string, down bool) { s.do(func() { s.down[action] = down }) }

// Revoke has Intune want certificates revoked.
func (s *Server) Revoke(list ...map[string]any) { s.do(func() { s.revoke = list }) }

// Expire makes all tokens worthless.
func (s *Server) Expire() { s.do(func() { clear(s.tokens) }) }

// Count is how often something was asked for: "token" or "directory".
func (s *Server) Count(what string) (n int) {
	s.do(func() { n = s.count[what] })
	return n
}

// Calls returns the calls of an action, oldest first.
func (s *Server) Calls(action string) (out []Call) {
	s.do(func() {
		for _, c := range s.calls {
			if c.Action == action {
				out = append(out, c)
			}
		}
	})
	return out
}

func (s *Server) do(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *Server) token(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil || r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" || r.URL.RawQuery != "" {
		s.fault("a token is asked for by %q: %v", r.Header.Get("Content-Type"), err)
	}
	f, scope := r.PostForm, r.PostForm.Get("scope")
	ok := f.Get("client_id") == App && f.Get("grant_type") == "client_credentials"
	if s.Assert != nil {
		ok = ok && len(f) == 5 && f.Get("client_assertion_type") == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
		if err := s.Assert(f.Get("client_assertion")); err != nil {
			s.fault("the assertion: %v", err)
		}
	} else {
		ok = ok && len(f) == 4 && f.Get("client_secret") == Secret
	}
	if scope != s.URL+"/.default" && scope != "https://api.manage.microsoft.com//.default" {
		s.fault("the scope %q", scope)
	}
	if !ok {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"error":"invalid_client"}`)
		return
	}
	t := rand.Text()
	s.do(func() { s.tokens[t] = scope; s.count["token"]++ })
	answer(w, map[string]any{"token_type": "Bearer", "expires_in": int(s.Life / time.Second), "ext_expires_in": 3599, "access_token": t})
}

var guid = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

// admit checks what every call has: a token for the scope, and an id of its own.
func (s *Server) admit(w http.ResponseWriter, r *http.Request, scope string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := r.Header.Get("client-request-id")
	if !guid.MatchString(id) || s.ids[id] {
		s.fault("client-request-id %q", id)
	}
	s.ids[id] = true
	t, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		s.fault("no bearer token")
	}
	got, known := s.tokens[t]
	if known && got != scope {
		s.fault("a token for %s is shown where one for %s is wanted", got, scope)
	}
	if !known {
		w.WriteHeader(http.StatusUnauthorized)
	}
	return known
}

func (s *Server) directory(w http.ResponseWriter, r *http.Request) {
	if !s.admit(w, r, s.URL+"/.default") {
		return
	}
	s.do(func() { s.count["directory"]++ })
	answer(w, map[string]any{"value": []any{
		map[string]any{"providerName": "SomeOtherService", "uri": "http://not.secure.example/"},
		map[string]any{"providerName": "scepRequestvalidationFEservice", "uri": s.URL + "/StatelessScep", "id": "x"},
		map[string]any{"providerName": "PkiConnectorFEService", "uri": s.URL + "/Pki"},
	}})
}

// read reads the body of a call: one object under one name, with exactly these keys.
func (s *Server) read(r *http.Request, version, name string, keys ...string) map[string]any {
	for header, want := range map[string]string{"Content-Type": "application/json", "api-version": version} {
		if got := r.Header.Values(header); len(got) != 1 || got[0] != want {
			s.fault("%s: %q, want %q", header, got, want)
		}
	}
	if r.Header.Get("UserAgent") == "" {
		s.fault("no UserAgent")
	}
	body, _ := io.ReadAll(r.Body)
	var all map[string]map[string]any
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if err := d.Decode(&all); err != nil || len(all) != 1 || all[name] == nil {
		s.fault("%s: the body %s: %v", r.URL, body, err)
		return map[string]any{}
	}
	slices.Sort(keys)
	if got := slices.Sorted(maps.Keys(all[name])); !slices.Equal(got, keys) {
		s.fault("%s: the keys %v, want %v", r.URL, got, keys)
	}
	return all[name]
}

// fields are those of each action, beside the ones that all have.
var fields = map[string][]string{
	"validateRequest":     {},
	"successNotification": {"certificateThumbprint", "certificateSerialNumber", "certificateExpirationDateUtc", "issuingCertificateAuthority", "caConfiguration", "certificateAuthority"},
	"failureNotification": {"hResult", "errorDescription"},
}

// formats are those of fields.
var formats = map[string]*regexp.Regexp{
	"certificateThumbprint":        regexp.MustCompile(`^[0-9A-F]{40}$`),
	"certificateSerialNumber":      regexp.MustCompile(`^([0-9A-F]{2}){1,20}$`),
	"certificateExpirationDateUtc": regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$`),
	"issuingCertificateAuthority":  regexp.MustCompile(`^.*CN=.+$`),
	"errorDescription":             regexp.MustCompile(`^.{1,255}$`),
	"hResult":                      regexp.MustCompile(`^\d{1,10}$`),
	"callerInfo":                   regexp.MustCompile(`^\S+.*/.+$`),
	"transactionId":                regexp.MustCompile(`^.+$`),
}

func (s *Server) scep(w http.ResponseWriter, r *http.Request) {
	action := r.PathValue("action")
	more, known := fields[action]
	if !known {
		s.fault("no action %q", action)
	}
	if !s.admit(w, r, "https://api.manage.microsoft.com//.default") {
		return
	}
	name := "notification"
	if action == "validateRequest" {
		name = "request"
	}
	f := s.read(r, "2018-02-20", name, append([]string{"transactionId", "certificateRequest", "callerInfo"}, more...)...)
	for key, form := range formats {
		if v, ok := f[key]; ok && !form.MatchString(fmt.Sprint(v)) {
			s.fault("%s: %s is %v", action, key, v)
		}
	}
	csr, err := base64.StdEncoding.DecodeString(fmt.Sprint(f["certificateRequest"]))
	if err != nil {
		s.fault("%s: the request: %v", action, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down[action] {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	s.calls = append(s.calls, Call{action, fmt.Sprint(f["transactionId"]), csr, f})
	code := s.say[action]
	if code == "" {
		code = s.judge(action, csr)
	}
	answer(w, map[string]any{"code": code, "errorDescription": "as the service has it"})
}

// judge is what Intune finds. The caller has the lock.
func (s *Server) judge(action string, csr []byte) string {
	if action != "validateRequest" {
		if !s.passed[string(csr)] {
			s.fault("%s about a request that was not validated", action)
		}
		return "Success"
	}
	q, err := pkcs10.Parse(csr)
	if err != nil {
		return "CertificateRequestDecodingFailed"
	}
	if q.Challenge == nil {
		return "ChallengePasswordMissing"
	}
	cn, ok := s.knows[string(q.Challenge.Bytes())]
	switch {
	case !ok:
		return "ChallengeDecryptionError"
	case len(q.Subject) != 1 || q.Subject[0].Value != cn:
		return "SubjectNameMismatch"
	}
	s.passed[string(csr)] = true
	return "Success"
}

func (s *Server) connector(w http.ResponseWriter, r *http.Request) {
	if !s.admit(w, r, "https://api.manage.microsoft.com//.default") {
		return
	}
	if r.PathValue("action") == "downloadRevocationRequests" {
		s.read(r, "5019-05-05", "downloadParameters", "maxRequests", "issuerName")
		s.mu.Lock()
		defer s.mu.Unlock()
		answer(w, map[string]any{"value": s.revoke})
		return
	}
	var body struct {
		Results []map[string]any `json:"results"`
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil || len(body.Results) == 0 {
		s.fault("no results: %v", err)
	}
	for _, v := range body.Results {
		if got := slices.Sorted(maps.Keys(v)); !slices.Equal(got, []string{"errorCode", "errorMessage", "requestContext", "succeeded"}) {
			s.fault("a result with %v", got)
		}
	}
	answer(w, map[string]any{"value": true})
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_ = json.NewEncoder(w).Encode(v)
}
