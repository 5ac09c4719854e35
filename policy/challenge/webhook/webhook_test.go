package webhook_test

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-pki/postern/policy/challenge"
	"github.com/postern-pki/postern/policy/challenge/webhook"
)

const hmacKey = "0123456789abcdef0123456789abcdef"

var csr = sync.OnceValue(func() []byte {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: "a.corp.example", Organization: []string{"Corp"}, ExtraNames: []pkix.AttributeTypeAndValue{{Type: []int{0, 9, 2342, 19200300, 100, 1, 1}, Value: "u1"}}},
		DNSNames: []string{"a.corp.example"}, IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)},
	}, key)
	if err != nil {
		panic(err)
	}
	return der
})

func question() challenge.Question {
	return challenge.Question{Occasion: challenge.OccasionCheck, Validator: "inventory", Profile: "wifi", Transaction: "t-1", Request: "r-1", Challenge: []byte("s3cret \"<&>\u00e9"), CSR: csr()}
}

// serve runs a service, and returns a client of it.
func serve(t *testing.T, h http.HandlerFunc, change ...func(*webhook.Options)) *webhook.Client {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	o := webhook.Options{URL: s.URL + "/scep?tenant=7", ID: "hook-1", Key: challenge.NewCredential([]byte(hmacKey)), Timeout: 5 * time.Second, HTTP: s.Client().Transport}
	for _, f := range change {
		f(&o)
	}
	c, err := webhook.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func say(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }
}

// A strict service finds everything where step-ca's webhooks have it.
func TestWhatIsAsked(t *testing.T) {
	var got map[string]any
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		m := hmac.New(sha256.New, []byte(hmacKey))
		m.Write(body)
		for name, want := range map[string]string{
			"X-Smallstep-Signature": hex.EncodeToString(m.Sum(nil)), "X-Smallstep-Webhook-Id": "hook-1", "X-Request-Id": "r-1",
			"Content-Type": "application/json", "Authorization": "Bearer tok",
		} {
			if v := r.Header.Values(name); len(v) != 1 || v[0] != want {
				t.Errorf("%s: %q, want %q", name, v, want)
			}
		}
		if r.Method != http.MethodPost || r.URL.String() != "/scep?tenant=7" {
			t.Errorf("%s %s", r.Method, r.URL)
		}
		if err := json.Unmarshal(body, &got); err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(w, `{"allow":true,"data":{"role":"x"}}`)
	}, func(o *webhook.Options) { o.Bearer = challenge.NewCredential([]byte("tok")) })
	if a := c.Ask(t.Context(), question()); a != (challenge.Answer{Verdict: challenge.Allowed}) {
		t.Fatalf("%+v", a)
	}
	if _, err := time.Parse(time.RFC3339Nano, got["timestamp"].(string)); err != nil {
		t.Error(err)
	}
	r := got["x509CertificateRequest"].(map[string]any)
	parsed, _ := x509.ParseCertificateRequest(csr())
	for key, want := range map[string][]byte{"raw": csr(), "publicKey": parsed.RawSubjectPublicKeyInfo, "rawSubject": parsed.RawSubject} {
		if r[key] != base64.StdEncoding.EncodeToString(want) {
			t.Errorf("%s: %v", key, r[key])
		}
		delete(r, key)
	}
	if ext := r["extensions"].([]any); len(ext) != 1 || ext[0].(map[string]any)["id"] != "2.5.29.17" {
		t.Errorf("extensions: %v", ext)
	}
	delete(r, "extensions")
	delete(got, "timestamp")
	want := map[string]any{
		"provisionerName": "wifi", "scepChallenge": "s3cret \"<&>\u00e9", "scepTransactionID": "t-1",
		"x509CertificateRequest": map[string]any{
			"version": 0.0, "signatureAlgorithm": "", "publicKeyAlgorithm": "RSA", "sans": nil,
			"subject":  map[string]any{"commonName": "a.corp.example", "organization": []any{"Corp"}, "extraNames": []any{map[string]any{"type": "0.9.2342.19200300.100.1.1", "value": "u1"}}},
			"dnsNames": []any{"a.corp.example"}, "ipAddresses": []any{"192.0.2.1"}, "emailAddresses": nil, "uris": nil,
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A challenge that is not the service's is in no part of what it is sent.
func TestABareRequest(t *testing.T) {
	q := question()
	q.Challenge, q.Bare = nil, true
	body, err := webhook.Body(q, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if s := string(body); strings.Contains(s, "scepChallenge") || strings.Contains(s, `"raw":`) || !strings.Contains(s, "a.corp.example") {
		t.Error(s)
	}
}

// Only a plain yes allows.
func TestAnswers(t *testing.T) {
	for body, want := range map[string]challenge.Answer{
		`{"allow":true}`:  {Verdict: challenge.Allowed},
		`{"allow":false}`: {Verdict: challenge.Refused},
		`{"allow":false,"error":{"code":"no-such-device","message":"not in the inventory\u0007\u00e9"}}`: {Verdict: challenge.Refused, Code: "no-such-device", Say: "not in the inventory"},
		`{"allow":false,"error":"gone"}`: {Verdict: challenge.Refused, Say: "gone"},
		`{"allow":false,"error":7}`:      {Verdict: challenge.Refused},
		`{"allow":"true"}`:               {Verdict: challenge.Unreadable, Say: "allow is neither true nor false"},
		`{"Allow":true}`:                 {Verdict: challenge.Unreadable, Say: "allow is neither true nor false"},
		`{"allow":1}`:                    {Verdict: challenge.Unreadable, Say: "allow is neither true nor false"},
		`{"allow":null}`:                 {Verdict: challenge.Unreadable, Say: "allow is neither true nor false"},
		`{"data":{"allow":true}}`:        {Verdict: challenge.Unreadable, Say: "allow is neither true nor false"},
		`{}`:                             {Verdict: challenge.Unreadable, Say: "allow is neither true nor false"},
		`null`:                           {Verdict: challenge.Unreadable, Say: "not a JSON object"},
		`true`:                           {Verdict: challenge.Unreadable, Say: "not a JSON object"},
		``:                               {Verdict: challenge.Unreadable, Say: "not a JSON object"},
		`{"allow":true}{"allow":true}`:   {Verdict: challenge.Unreadable, Say: "not a JSON object"},
		`{"allow":true}` + strings.Repeat(" ", 1<<16): {Verdict: challenge.Unreadable, Say: "more than 65536 octets"},
	} {
		if a := serve(t, say(body)).Ask(t.Context(), question()); a != want {
			t.Errorf("%.80s: %+v, want %+v", body, a, want)
		}
	}
}

// What is no answer says neither yes nor no, and each kind has its own word.
func TestNoAnswer(t *testing.T) {
	yes := `{"allow":true}`
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = io.WriteString(w, yes)
		}
	}
	for name, tt := range map[string]struct {
		serve http.HandlerFunc
		want  challenge.Verdict
		say   string
	}{
		"unauthorized": {status(http.StatusUnauthorized), challenge.Unreadable, "status 401"},
		"not found":    {status(http.StatusNotFound), challenge.Unreadable, "status 404"},
		"created":      {status(http.StatusCreated), challenge.Unreadable, "status 201"},
		"a fault":      {status(http.StatusBadGateway), challenge.Unreadable, "status 502"},
		"redirected": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}, challenge.Unreadable, "status 307"},
		"cut off": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, challenge.Unreachable, "EOF"},
		"silent": {func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // else the server does not see that the client leaves
			<-r.Context().Done()
		}, challenge.TimedOut, "no answer within 1.5s"},
	} {
		t.Run(name, func(t *testing.T) {
			a := serve(t, tt.serve, func(o *webhook.Options) { o.Timeout = 1500 * time.Millisecond }).Ask(t.Context(), question())
			if a.Verdict != tt.want || a.Code != "" || !strings.Contains(a.Say, tt.say) {
				t.Errorf("%+v, want %s, %s", a, tt.want, tt.say)
			}
		})
	}
	c := serve(t, say(yes), func(o *webhook.Options) { o.URL = "https://127.0.0.1:1/?token=mellon" })
	if a := c.Ask(t.Context(), question()); a.Verdict != challenge.Unreachable || strings.Contains(a.Say, "mellon") {
		t.Errorf("nobody there: %+v", a)
	}
	c = serve(t, say(yes), func(o *webhook.Options) { o.HTTP = http.DefaultTransport.(*http.Transport).Clone() })
	if a := c.Ask(t.Context(), question()); a.Verdict != challenge.Unreachable || !strings.Contains(a.Say, "certificate") {
		t.Errorf("a service whose certificate nobody vouches for: %+v", a)
	}
}

// A service that stumbles is asked once more, one that refuses is not.
func TestOneMoreTry(t *testing.T) {
	for name, tt := range map[string]struct {
		first int
		calls int32
		want  challenge.Verdict
	}{
		"a fault":   {http.StatusServiceUnavailable, 2, challenge.Allowed},
		"a refusal": {http.StatusForbidden, 1, challenge.Unreadable},
	} {
		var calls atomic.Int32
		c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			if calls.Add(1) == 1 {
				w.WriteHeader(tt.first)
				return
			}
			_, _ = io.WriteString(w, `{"allow":true}`)
		})
		if a := c.Ask(t.Context(), question()); a.Verdict != tt.want || calls.Load() != tt.calls {
			t.Errorf("%s: %+v after %d calls", name, a, calls.Load())
		}
	}
}

// A CSR that cannot be shown is refused, and nobody is asked.
func TestACSRThatCannotBeShown(t *testing.T) {
	c := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("asked") })
	q := question()
	q.CSR = []byte{0x30, 0}
	if a := c.Ask(t.Context(), q); a.Verdict != challenge.Refused {
		t.Errorf("%+v", a)
	}
	q.Occasion = challenge.OccasionIssued
	if a := c.Ask(t.Context(), q); a.Verdict != challenge.Allowed {
		t.Errorf("told: %+v", a)
	}
}

func TestOptions(t *testing.T) {
	good := webhook.Options{URL: "https://a.example/", Key: challenge.NewCredential([]byte(hmacKey)), HTTP: http.DefaultTransport}
	for name, change := range map[string]func(*webhook.Options){
		"plain HTTP":         func(o *webhook.Options) { o.URL = "http://a.example/" },
		"a user":             func(o *webhook.Options) { o.URL = "https://u:p@a.example/" },
		"no host":            func(o *webhook.Options) { o.URL = "https:///x" },
		"no key":             func(o *webhook.Options) { o.Key = challenge.Credential{} },
		"a short key":        func(o *webhook.Options) { o.Key = challenge.NewCredential([]byte("0123456789")) },
		"nothing to send by": func(o *webhook.Options) { o.HTTP = nil },
		"two ways in":        func(o *webhook.Options) { o.User, o.Bearer = "u", challenge.NewCredential([]byte("b")) },
		"for ever":           func(o *webhook.Options) { o.Timeout = time.Minute },
	} {
		o := good
		change(&o)
		if _, err := webhook.New(o); !errors.Is(err, webhook.ErrOptions) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s := fmt.Sprintf("%v %+v %#v %s", good, good, good, good.Key); strings.Contains(s, hmacKey) {
		t.Error("the key is printed")
	}
}

// FuzzAnswer has bodies as a service may send them: what is allowed says so.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{`{"allow":true}`, `{"allow":false,"error":{"code":"c","message":"m"}}`, `{"allow":false,"error":"x"}`, `[]`, `{"allow":tru`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		a := webhook.ParseAnswer(body)
		if len(a.Code) > challenge.MaxCode || len(a.Say) > challenge.MaxSay {
			t.Errorf("%+v", a)
		}
		if a.Verdict == challenge.Allowed && !strings.Contains(string(body), "true") {
			t.Errorf("%q is allowed", body)
		}
	})
}
