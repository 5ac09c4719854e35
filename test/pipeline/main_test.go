package pipeline_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/scep"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// more are profiles beside the site's own: many has no limits that get in the
// way, short is over soon, few takes two requests a minute.
const more = `  - name: many
    protocols: [scep]
    issuer: demo
    challenge: {mode: one-time, ttl: 30m}
    approve: automatic
    key: {rsa: {min: 2048, max: 4096}, reuse: any}
    subject:
      CN: {pattern: '[a-z0-9-]{1,40}\.demo\.example', required: true}
    san:
      dns: {pattern: '[a-z0-9-]+\.demo\.example', max: 2}
    usage: {key: {rsa: [digitalSignature]}, extended: [clientAuth]}
    validity: {for: 365d, backdate: 1h}
    renewal: {window: 100%, max_count: 3, new_key: optional, old: keep}
    limits: {active_per_subject: 1000}
  - name: short
    protocols: [scep]
    issuer: demo
    challenge: {mode: one-time, ttl: 30m}
    approve: automatic
    key: {rsa: {min: 2048, max: 4096}, reuse: any}
    subject:
      CN: {pattern: '[a-z0-9-]{1,40}\.demo\.example', required: true}
    usage: {key: {rsa: [digitalSignature]}, extended: [clientAuth]}
    validity: {for: 3s}
    renewal: {window: 100%, max_count: 3, new_key: optional, old: keep}
    limits: {active_per_subject: 1000}
  - name: few
    protocols: [scep]
    issuer: demo
    challenge: {mode: one-time, ttl: 30m}
    approve: automatic
    key: {rsa: {min: 2048, max: 4096}, reuse: any}
    subject:
      CN: {pattern: '[a-z0-9-]{1,40}\.demo\.example', required: true}
    usage: {key: {rsa: [digitalSignature]}, extended: [clientAuth]}
    validity: {for: 365d}
    renewal: {window: 100%, max_count: 3, new_key: optional, old: keep}
    limits: {active_per_subject: 1000, per_minute: 2}
`

// The site, and a pool of keys for profiles that take any.
var (
	shared *site.Site
	keys   []*rsa.PrivateKey
)

func TestMain(m *testing.M) {
	var err error
	if keys, err = newKeys(16); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(site.Main(context.Background(), site.Profiles+more, func(s *site.Site) int { shared = s; return m.Run() }))
}

func newKeys(n int) ([]*rsa.PrivateKey, error) {
	out, errs := make([]*rsa.PrivateKey, n), make([]error, n)
	var wg sync.WaitGroup
	for i := range out {
		wg.Go(func() { out[i], errs[i] = rsa.GenerateKey(rand.Reader, 2048) })
	}
	wg.Wait()
	return out, errors.Join(errs...)
}

// must fails the test on an error.
func must[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	return must(rsa.GenerateKey(rand.Reader, 2048))(t)
}

// at is a device of a profile.
func at(t *testing.T, profile string) *site.Device {
	t.Helper()
	d := must(shared.Device(t.Context(), profile))(t)
	t.Cleanup(d.HTTP.CloseIdleConnections)
	return d
}

func challenge(t *testing.T, profile, cn string, more ...string) site.Challenge {
	t.Helper()
	return must(shared.NewChallenge(t.Context(), profile, "CN="+cn, more...))(t)
}

func name(cn string) pkix.Name { return pkix.Name{CommonName: cn} }

// ask is an ordinary CSR, with a challenge unless it is "".
func ask(t *testing.T, key *rsa.PrivateKey, cn, challenge string, dns ...string) []byte {
	t.Helper()
	c := client.CSR{Subject: name(cn), DNSNames: dns}
	if challenge != "" {
		c.Challenge = []byte(challenge)
	}
	return must(client.NewCSR(key, c))(t)
}

// selfSigned is the message of a device that has no certificate.
func selfSigned(t *testing.T, key crypto.Signer, csr []byte) client.Message {
	t.Helper()
	signer := must(site.SelfSigned(key, name("device"), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)))(t)
	return client.Message{Type: scep.PKCSReq, Signer: signer, SignerKey: key, CSR: csr}
}

func send(t *testing.T, d *site.Device, m client.Message) (*x509.Certificate, error) {
	t.Helper()
	r, err := d.Do(t.Context(), must(d.Request(m))(t))
	if err != nil {
		return nil, err
	}
	return r.Certificate, nil
}

// enroll sends an ordinary enrollment.
func enroll(t *testing.T, d *site.Device, key *rsa.PrivateKey, cn, challenge string) (*x509.Certificate, error) {
	t.Helper()
	return send(t, d, selfSigned(t, key, ask(t, key, cn, challenge)))
}

// enrolled has a certificate for a name, and the challenge that it cost.
func enrolled(t *testing.T, d *site.Device, profile, cn string, key *rsa.PrivateKey) (*x509.Certificate, site.Challenge) {
	t.Helper()
	c := challenge(t, profile, cn)
	return must(enroll(t, d, key, cn, c.Challenge))(t), c
}

// renew signs a CSR with a certificate that was issued.
func renew(t *testing.T, d *site.Device, kind int, old *x509.Certificate, oldKey *rsa.PrivateKey, csr []byte) (*x509.Certificate, error) {
	t.Helper()
	return send(t, d, client.Message{Type: kind, Signer: old.Raw, SignerKey: oldKey, CSR: csr})
}

// A certificate is what `postern cert show` says.
type certificate struct {
	Serial, State, Request, Lineage, Predecessor string
	Renewal                                      int
}

func show(t *testing.T, c *x509.Certificate) certificate {
	t.Helper()
	out, errOut, code := shared.Postern(t.Context(), nil, "cert", "show", hex.EncodeToString(c.SerialNumber.Bytes()), "--output", "json")
	var v certificate
	if err := json.Unmarshal([]byte(out), &v); code != 0 || err != nil {
		t.Fatalf("postern cert show: exit %d: %s%s", code, out, errOut)
	}
	return v
}

// A record is a line of the log.
type record struct {
	Event   string `json:"ev"`
	Outcome string `json:"out"`
	Actor   struct {
		Source string `json:"src"`
	} `json:"actor"`
	Object struct {
		Challenge, Why, ID, What, Serial string
		MessageType                      string `json:"message_type"`
		ChallengeWhy                     string `json:"challenge_why"`
		Reasons                          []struct{ Rule, Saw, Say string }
	} `json:"ob"`
}

func logSize(t *testing.T) uint64 {
	t.Helper()
	return must(shared.LogSize(t.Context()))(t)
}

// records are the log's lines from one on. Only tests that run alone may take all
// of them for their own.
func records(t *testing.T, from uint64) []record {
	t.Helper()
	var all []record
	for _, l := range must(shared.Lines(from))(t) {
		all = append(all, parse(t, string(l.Raw)))
	}
	return all
}

func parse(t *testing.T, line string) record {
	t.Helper()
	var r record
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// A refusal is what a device was told, and what the log says of it.
type refusal struct {
	failInfo string
	text     string // without the request's id
	records  []record
}

// refused wants a FAILURE, and reads its records.
func refused(t *testing.T, err error) refusal {
	t.Helper()
	no, ok := errors.AsType[*client.FailError](err)
	if !ok {
		t.Fatalf("not refused: %v", err)
	}
	text, id, ok := strings.Cut(strings.TrimSuffix(no.Text, ")"), " (request ")
	if !ok {
		t.Fatalf("the answer names no request: %q", no.Text)
	}
	r := refusal{failInfo: no.Name, text: text}
	out, errOut, code := shared.Postern(t.Context(), nil, "audit", "show", "--req", id, "--output", "json")
	var v struct{ Records []string }
	if err := json.Unmarshal([]byte(out), &v); code != 0 || err != nil {
		t.Fatalf("postern audit show: exit %d: %s%s", code, out, errOut)
	}
	for _, line := range v.Records {
		r.records = append(r.records, parse(t, line))
	}
	return r
}

// is wants one failInfo, and a text that has these words.
func (r refusal) is(t *testing.T, failInfo, words string) refusal {
	t.Helper()
	if r.failInfo != failInfo || !strings.Contains(r.text, words) {
		t.Errorf("%s, %q; want %s, %q", r.failInfo, r.text, failInfo, words)
	}
	return r
}

// event returns the first record of a kind, and fails without one.
func (r refusal) event(t *testing.T, event, outcome string) record {
	t.Helper()
	for _, one := range r.records {
		if one.Event == event && one.Outcome == outcome {
			return one
		}
	}
	t.Errorf("the log has no %s %s for it: %+v", event, outcome, r.records)
	return record{}
}

// reasons wants all of these rules among the reasons in the log.
func (r refusal) reasons(t *testing.T, rules ...string) refusal {
	t.Helper()
	got := map[string]bool{}
	for _, reason := range r.event(t, "enroll", "refused").Object.Reasons {
		got[reason.Rule] = true
	}
	for _, rule := range rules {
		if !got[rule] {
			t.Errorf("the log does not give the reason %s: %v", rule, got)
		}
	}
	return r
}

// challengeWhy wants what the log says of the challenge.
func (r refusal) challengeWhy(t *testing.T, want string) refusal {
	t.Helper()
	if why := r.event(t, "enroll", "refused").Object.ChallengeWhy; why != want {
		t.Errorf("the log says %q of the challenge, not %q", why, want)
	}
	return r
}

// alarms reports whether the log has a security event.
func (r refusal) alarms() bool {
	for _, one := range r.records {
		if one.Event == "security" && one.Outcome == "alert" {
			return true
		}
	}
	return false
}

// together calls f n times at once, and returns the results.
func together[T any](n int, f func(i int) (T, error)) (got []T, errs []error) {
	all, failed := make([]T, n), make([]error, n)
	begin := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			<-begin
			all[i], failed[i] = f(i)
		})
	}
	close(begin)
	wg.Wait()
	for i, v := range all {
		if failed[i] == nil {
			got = append(got, v)
		} else {
			errs = append(errs, failed[i])
		}
	}
	return got, errs
}

// Short names for what the tests say often.
const (
	badAlg          = "badAlg"
	badMessageCheck = "badMessageCheck"
	badRequest      = "badRequest"
	badCertID       = "badCertId"
	notProven       = "the message does not prove what it says"
	notValid        = "the challenge is not valid for this request"
)
