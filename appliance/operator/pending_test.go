package operator_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-pki/postern/appliance/operator"
	"github.com/postern-pki/postern/appliance/operator/acts"
	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
	"github.com/postern-pki/postern/protocol/scep/client"
)

// vouchedProfile is one in which a person vouches for each request.
const vouchedProfile = `
  - name: vouched
    protocols: [scep]
    issuer: corp
    challenge: {mode: none}
    approve: manual
    key: {rsa: {min: 2048, max: 4096}, reuse: any}
    subject:
      CN: {pattern: '[a-z0-9-]{1,40}\.corp\.example', required: true}
    san:
      dns: {pattern: '[a-z0-9.-]+\.corp\.example', max: 64}
    usage: {key: {rsa: [digitalSignature]}, extended: [clientAuth]}
    validity: {for: 365d}
`

// deviceKey is made once: an RSA key costs more than all the rest.
var deviceKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

// raCertificate is an RA-decrypt certificate of the device's key: nobody here looks
// at who issued it.
func raCertificate(t *testing.T, name string) []byte {
	t.Helper()
	ra := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	return must[[]byte](t)(x509.CreateCertificate(rand.Reader, ra, ra, deviceKey().Public(), deviceKey()))
}

// asks has a device ask for a name, and returns the id under which that waits.
func (w *world) asks(t *testing.T, cn string) string {
	t.Helper()
	key := deviceKey()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	self := must[[]byte](t)(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
	csr := must[[]byte](t)(client.NewCSR(key, client.CSR{Subject: pkix.Name{CommonName: cn}, DNSNames: []string{cn}}))
	der := must[[]byte](t)(client.BuildRequest(client.Message{
		Type: scep.PKCSReq, TransactionID: "tx " + cn, SenderNonce: make([]byte, 16), Signer: self, SignerKey: key, Recipient: w.ra, CSR: csr,
		Cipher: cms.AES128CBC, Digest: crypto.SHA256,
	}))
	signed := must[*cms.Signed](t)(cms.ParseSigned(must[[]byte](t)(cms.DER(der, cms.DefaultLimits()))))
	envelope := must[*cms.Envelope](t)(cms.ParseEnvelope(signed.Content))
	content := must[[]byte](t)(key.Decrypt(nil, envelope.Recipients[0].EncryptedKey, nil))
	out, err := w.Submit(t.Context(), protocol.Request{Protocol: "scep", Profile: "vouched", Source: "192.0.2.7:4711", Arrived: time.Now(), Proof: protocol.Proof{
		SignerCert: signed.Signer.Raw, Digest: signed.Digest, SignedAttrs: signed.SignedAttrs, Signature: signed.Signature, Envelope: signed.Content, ContentKey: content,
	}})
	if err != nil || out.Status != protocol.Pending {
		t.Fatalf("%+v, %v", out, err)
	}
	return out.RequestID
}

// get reads an answer of 200.
func get[T any](t *testing.T, w *world, path string) (v T) {
	t.Helper()
	a := w.do(t, http.MethodGet, path, "")
	if err := json.Unmarshal([]byte(a.body), &v); err != nil || a.code != http.StatusOK {
		t.Fatalf("%s: %d %s", path, a.code, a.body)
	}
	return v
}

func ids(l operator.PendingList) string {
	var out []string
	for _, p := range l.Pending {
		out = append(out, p.ID)
	}
	return strings.Join(out, " ")
}

func TestRequestsThatWaitAreDecided(t *testing.T) {
	w := newWorld(t)
	first, second := w.asks(t, "a.corp.example"), w.asks(t, "b.corp.example")
	if got := ids(get[operator.PendingList](t, w, "/api/v1/pending?state=waiting&profile=vouched")); got != second+" "+first {
		t.Errorf("waiting: %s", got)
	}
	page := get[operator.PendingList](t, w, "/api/v1/pending?limit=1")
	if got := ids(get[operator.PendingList](t, w, fmt.Sprintf("/api/v1/pending?limit=1&before=%d", page.Before))); ids(page) != second || got != first {
		t.Errorf("pages: %s, %s", ids(page), got)
	}
	d := get[operator.PendingDetail](t, w, "/api/v1/pending/"+first)
	if d.State != "waiting" || d.Subject != "CN=a.corp.example" || len(d.DNS) != 1 || d.Source != "192.0.2.7:4711" || d.Key != "RSA 2048" ||
		len(d.KeySHA256) != 64 || d.VouchedBy != "approval" || d.Transaction != "tx a.corp.example" || len(d.Digest) != 64 || d.Facts["profile"] != "vouched" {
		t.Errorf("%+v", d)
	}
	ruling := func(reason, digest string) string {
		b := must[[]byte](t)(json.Marshal(operator.Ruling{Reason: reason, Digest: digest}))
		return string(b)
	}
	for _, c := range []struct {
		path, body, say string
		code            int
	}{
		{"approvals/" + first, "{}", "needs a reason", 400}, {"denials/" + first, ruling(" ", ""), "needs a reason", 400},
		{"approvals/" + first, "", "not a decision", 400}, {"approvals/" + first, ruling("x", "") + "{}", "not a decision", 400},
		{"approvals/" + first, `{"reason":"x","digets":"y"}`, "not a decision", 400},
		{"approvals/" + first, ruling("known", get[operator.PendingDetail](t, w, "/api/v1/pending/"+second).Digest), "another request", 409},
		{"approvals/none", ruling("known", ""), "no request", 404}, {"denials/none", ruling("known", ""), "no request", 404},
	} {
		a := w.do(t, http.MethodPost, "/api/v1/"+c.path, c.body)
		if p := a.problem(t); a.code != c.code || !strings.Contains(p.Error, c.say) || p.Hint == "" {
			t.Errorf("%s %s: %d %+v", c.path, c.body, a.code, p)
		}
	}
	var done operator.Ruled
	a := w.do(t, http.MethodPost, "/api/v1/approvals/"+first, ruling("known by its number", d.Digest), "X-Who", "registration-officer")
	if err := json.Unmarshal([]byte(a.body), &done); err != nil || a.code != http.StatusOK || done.ID != first || done.State != "issued" || done.Serial == "" {
		t.Fatalf("%d %s", a.code, a.body)
	}
	if a := w.do(t, http.MethodPost, "/api/v1/denials/"+second, ruling("not ours", "")); a.code != http.StatusOK || !strings.Contains(a.body, "denied") {
		t.Fatalf("%d %s", a.code, a.body)
	}
	approved, denied := w.records(t, "enroll", "approved"), w.records(t, "enroll", "denied")
	if len(approved) != 1 || approved[0].Actor.ID != "registration-officer" || approved[0].Object.String("why") != "known by its number" || approved[0].Object.String("digest") != d.Digest {
		t.Errorf("%+v", approved)
	}
	if len(denied) != 1 || denied[0].Actor.ID != "alice" || denied[0].Object.String("why") != "not ours" || denied[0].Request != second {
		t.Errorf("%+v", denied)
	}
	if d := get[operator.PendingDetail](t, w, "/api/v1/pending/"+first); d.State != "issued" || d.Serial != done.Serial {
		t.Errorf("%+v", d)
	}
	for _, query := range []string{"?state=lost", "?limit=0", "?before=x"} {
		if a := w.do(t, http.MethodGet, "/api/v1/pending"+query, ""); a.code != http.StatusBadRequest {
			t.Errorf("%s: %d", query, a.code)
		}
	}
	if a := w.do(t, http.MethodGet, "/api/v1/pending/none", ""); a.code != http.StatusNotFound {
		t.Errorf("%d %s", a.code, a.body)
	}
}

// What two people sign is one request as it stands in the log, and no other one.
func TestTwoPeopleApprove(t *testing.T) {
	people := newOffice(t)
	w := newWorld(t, people.rules(t), func(o *operator.Options) {
		o.Rules.TwoPerson = append(o.Rules.TwoPerson, acts.ApprovePending, acts.DenyPending)
	})
	first, second := w.asks(t, "a.corp.example"), w.asks(t, "b.corp.example")
	for _, path := range []string{"approvals/", "denials/"} {
		a := w.do(t, http.MethodPost, "/api/v1/"+path+first, `{"reason":"I say so"}`)
		if p := a.problem(t); a.code != http.StatusForbidden || !strings.Contains(p.Error, "takes 2 people") || !strings.Contains(p.Hint, "--act") {
			t.Errorf("%s by one person: %d %+v", path, a.code, p)
		}
	}
	digest := get[operator.PendingDetail](t, w, "/api/v1/pending/"+first).Digest
	order := func(act, id, digest, reason string) acts.Order {
		return acts.NewOrder(act, acts.Parameters{Pending: id, Digest: digest, Reason: reason}, "corp.example/log", w.place(), time.Now().Add(time.Hour))
	}
	for what, c := range map[string]struct {
		signed acts.Signed
		code   int
	}{
		"by one":             {people.signed(t, order(acts.ApprovePending, first, digest, "known"), "ann"), 403},
		"another's digest":   {people.signed(t, order(acts.ApprovePending, second, digest, "known"), "ann", "ben"), 409},
		"no digest":          {people.signed(t, order(acts.ApprovePending, first, "", "known"), "ann", "ben"), 400},
		"no reason":          {people.signed(t, order(acts.DenyPending, first, digest, ""), "ann", "ben"), 400},
		"changed afterwards": {acts.Signed{Order: order(acts.ApprovePending, first, digest, "other"), Signatures: people.signed(t, order(acts.ApprovePending, first, digest, "known"), "ann", "ben").Signatures}, 403},
	} {
		if a := w.submit(t, c.signed); a.code != c.code {
			t.Errorf("%s: %d %s", what, a.code, a.body)
		}
	}
	if n := len(w.records(t, "enroll", "intent")); n != 0 {
		t.Fatalf("%d certificates", n)
	}
	o := order(acts.ApprovePending, first, digest, "known")
	if a := w.submit(t, people.signed(t, o, "ann", "ben")); a.code != http.StatusOK || !strings.Contains(a.body, `"issued"`) {
		t.Fatalf("%d %s", a.code, a.body)
	}
	ordered, approved, intent := w.records(t, "operator", "approved"), w.records(t, "enroll", "approved"), w.records(t, "enroll", "intent")
	if len(ordered) != 1 || ordered[0].Request != o.ID || len(approved) != 1 || approved[0].Seq != ordered[0].Seq+1 || len(intent) != 1 || intent[0].Seq != approved[0].Seq+1 {
		t.Errorf("%+v, %+v, %+v", ordered, approved, intent)
	}
	p := ordered[0].Object.Object("signed").Object("parameters")
	if p.String("pending") != first || p.String("digest") != digest || p.String("reason") != "known" {
		t.Errorf("%v", p)
	}
	digest = get[operator.PendingDetail](t, w, "/api/v1/pending/"+second).Digest
	if a := w.submit(t, people.signed(t, order(acts.DenyPending, second, digest, "not ours"), "cat", "ben")); a.code != http.StatusOK {
		t.Errorf("%d %s", a.code, a.body)
	}
}
