package vouch_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-pki/postern/policy/challenge"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// An inventory is an operator's service that knows which device may have which name.
type inventory struct {
	*httptest.Server
	t       *testing.T
	key     []byte
	mu      sync.Mutex
	known   map[string]string // challenge by name; "" where the service is asked without one
	bodies  []string
	answers func(w http.ResponseWriter) bool // true: it has answered
}

func newInventory(t *testing.T, callers *x509.Certificate) *inventory {
	t.Helper()
	i := &inventory{t: t, key: []byte("an HMAC key of some 32 octets...."), known: map[string]string{}}
	i.Server = httptest.NewUnstartedServer(i)
	pool := x509.NewCertPool()
	pool.AddCert(callers)
	i.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	i.StartTLS()
	t.Cleanup(i.Close)
	return i
}

func (i *inventory) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	m := hmac.New(sha256.New, i.key)
	m.Write(body)
	if r.Header.Get("X-Smallstep-Signature") != hex.EncodeToString(m.Sum(nil)) || r.Header.Get("X-Smallstep-Webhook-Id") != "hook-7" ||
		r.Header.Get("Authorization") != "Bearer open-sesame" || r.URL.Path != "/scep" || r.Method != http.MethodPost {
		i.t.Errorf("%s %s: %v", r.Method, r.URL, r.Header)
	}
	var q struct {
		Challenge string `json:"scepChallenge"`
		Request   struct {
			Subject struct{ CommonName string }
			Raw     []byte
		} `json:"x509CertificateRequest"`
	}
	if err := json.Unmarshal(body, &q); err != nil {
		i.t.Error(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.bodies = append(i.bodies, string(body)+string(q.Request.Raw))
	if i.answers != nil && i.answers(w) {
		return
	}
	want, ok := i.known[q.Request.Subject.CommonName]
	if ok && want == q.Challenge {
		_, _ = io.WriteString(w, `{"allow":true}`)
		return
	}
	_, _ = io.WriteString(w, `{"allow":false,"error":{"code":"unknown-device","message":"it is not in the inventory"}}`)
}

func (i *inventory) set(f func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f()
}

// hooked runs a service that asks an inventory by mutual TLS.
func hooked(t *testing.T) (*site.Site, *inventory) {
	t.Helper()
	k := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "courier"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, IsCA: true, BasicConstraintsValid: true}
	der := must(x509.CreateCertificate(rand.Reader, c, c, k.Public(), k))(t)
	i := newInventory(t, must(x509.ParseCertificate(der))(t))
	profiles := profile("hook", "{mode: webhook, webhook: inventory}") + profile("both", "{mode: [one-time, webhook], ttl: 30m, webhook: inventory}")
	s := serve(t, profiles, map[string][]byte{
		"hmac": []byte(base64.StdEncoding.EncodeToString(i.key) + "\n"), "bearer": []byte("open-sesame\n"),
		"roots.pem": pemOf("CERTIFICATE", i.Certificate().Raw), "client.pem": pemOf("CERTIFICATE", der), "client.key": pemOf("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(k))(t)),
	}, map[string]any{"validators": []any{map[string]any{"name": "inventory", "webhook": map[string]any{
		"url": i.URL + "/scep", "id": "hook-7", "key": file("hmac"), "bearer": file("bearer"), "roots": "roots.pem", "certificate": "client.pem", "private_key": file("client.key"), "timeout": "2s",
	}}}})
	return s, i
}

func file(name string) map[string]any { return map[string]any{"file": name} }

// refusedAs fails unless the device was refused with the one text.
func refusedAs(t *testing.T, err error, say string) {
	t.Helper()
	if f, ok := errors.AsType[*client.FailError](err); !ok || !strings.HasPrefix(f.Text, say) {
		t.Errorf("%v, want a refusal: %s", err, say)
	}
}

// TestAWebhook enrolls by an operator's own service, which says yes, no, and nothing.
func TestAWebhook(t *testing.T) {
	s, i := hooked(t)
	const secret = "what the inventory gave out"
	i.set(func() { i.known["printer-1.demo.example"] = secret })
	d, r := request(t, s, "hook", "printer-1.demo.example", secret)
	c, err := send(t, d, r)
	if err != nil {
		t.Fatalf("%v\n%s", err, s.Tail())
	}
	if again, err := send(t, d, r); err != nil || !again.Equal(c) {
		t.Errorf("sent again: %v", err)
	}
	if n := len(i.bodies); n != 1 {
		t.Errorf("the service was asked %d times", n)
	}
	_, wrong := request(t, s, "hook", "printer-1.demo.example", "guessed")
	_, err = send(t, d, wrong)
	refusedAs(t, err, challenge.Say)
	_, other := request(t, s, "hook", "printer-2.demo.example", secret)
	_, err = send(t, d, other)
	refusedAs(t, err, challenge.Say)
	refused := logged(t, s, "enroll", "refused")
	if len(refused) != 2 || !strings.Contains(string(must(json.Marshal(refused[0]["reasons"]))(t)), "refused (unknown-device): it is not in the inventory") {
		t.Errorf("the log: %v", refused)
	}
	nowhere(t, s, secret, "guessed", "open-sesame", base64.StdEncoding.EncodeToString(i.key))
	stop(t, s)
}

// TestADeadWebhook: without an answer the device is told to come again, and its
// challenge is as good as before.
func TestADeadWebhook(t *testing.T) {
	s, i := hooked(t)
	i.set(func() { i.known["printer-1.demo.example"] = "" })
	c := must(s.NewChallenge(t.Context(), "both", "CN=printer-1.demo.example"))(t)
	d, r := request(t, s, "both", "printer-1.demo.example", c.Challenge)
	for _, tt := range []struct {
		why    string
		answer func(w http.ResponseWriter) bool
	}{
		{"unreadable", func(w http.ResponseWriter) bool { w.WriteHeader(http.StatusForbidden); return true }},
		{"unreadable", func(w http.ResponseWriter) bool { _, _ = io.WriteString(w, "<html>"); return true }},
		{"unreachable", func(http.ResponseWriter) bool { panic(http.ErrAbortHandler) }},
		{"timed-out", func(http.ResponseWriter) bool { time.Sleep(2500 * time.Millisecond); return false }},
	} {
		i.set(func() { i.answers = tt.answer })
		_, err := send(t, d, r)
		unavailable(t, err)
		got := logged(t, s, "message", "rejected")
		if len(got) == 0 || got[len(got)-1]["why"] != "validator webhook inventory: "+tt.why {
			t.Errorf("%s: %v", tt.why, got)
		}
	}
	i.set(func() { i.answers = nil })
	if _, err := send(t, d, r); err != nil {
		t.Errorf("when it answers: %v\n%s", err, s.Tail())
	}
	i.set(func() {
		for _, b := range i.bodies {
			if strings.Contains(b, c.Challenge) || strings.Contains(b, "scepChallenge") {
				t.Error("the service was shown a challenge that is not its own")
			}
		}
	})
	nowhere(t, s, c.Challenge)
	stop(t, s)
}
