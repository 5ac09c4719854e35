package authority_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/authority"
	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/appliance/store/sqlite"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/policy/challenge"
	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
	"github.com/postern-pki/postern/protocol/scep/client"
)

var profiles = `profiles:
  - name: wifi
    protocols: [scep]
    issuer: corp
    challenge: {mode: one-time, ttl: 30m}
    approve: automatic
    key: {rsa: {min: 2048, max: 4096}, reuse: any}
    subject:
      CN: {pattern: '[a-z0-9-]{1,40}\.corp\.example', required: true}
    san:
      dns: {pattern: '[a-z0-9.-]+\.corp\.example', max: 64}
    usage: {key: {rsa: [digitalSignature]}, extended: [clientAuth]}
    validity: {for: 365d, backdate: 1h}
    renewal: {window: 100%, max_count: 1, max_age: 2y, new_key: required, old: keep}
    limits: {active_per_subject: 100}
    clients: {digests: [SHA-256], ciphers: [AES-128-CBC]}
  - name: slow
    protocols: [scep]
    issuer: corp
    challenge: {mode: one-time, ttl: 30m}
    approve: automatic
    key: {rsa: {min: 2048, max: 4096}, reuse: any}
    subject:
      CN: {pattern: '[a-z0-9-]{1,40}\.corp\.example', required: true}
    usage: {key: {rsa: [digitalSignature]}, extended: [clientAuth]}
    validity: {for: 365d, backdate: 1h}
    limits: {active_per_subject: 100, per_minute: 1}
    clients: {digests: [SHA-256], ciphers: [AES-128-CBC]}
` + waitingProfiles + vouchedProfiles

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// deviceKeys are made once: an RSA key costs more than all the rest.
var deviceKeys = sync.OnceValue(func() []*rsa.PrivateKey {
	out := make([]*rsa.PrivateKey, 4)
	for i := range out {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		out[i] = key
	}
	return out
})

// token is the CA's key in software: what it does when it is asked can be
// changed.
type token struct {
	key    *ecdsa.PrivateKey
	before func(ctx context.Context) error
}

func (k *token) SignCertificate(ctx context.Context, _ string, tbs []byte, _ uint64) ([]byte, error) {
	if k.before != nil {
		if err := k.before(ctx); err != nil {
			return nil, err
		}
	}
	sum := sha256.Sum256(tbs)
	return ecdsa.SignASN1(rand.Reader, k.key, sum[:])
}

var errFull = errors.New("no space left on device")

// gate is a follower that can hold a line up after it is durable, or refuse it.
type gate struct {
	audit.Follower
	mu   sync.Mutex
	next uint64
	at   func(audit.Line)
	fail string // the outcome of a line at which the disk is full
}

func (g *gate) Next(context.Context) (uint64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.next, nil
}

func (g *gate) Follow(_ context.Context, batch []audit.Line) error {
	g.mu.Lock()
	at, fail := g.at, g.fail
	g.next = batch[len(batch)-1].Record.Seq + 1
	g.mu.Unlock()
	for _, l := range batch {
		if fail != "" && l.Record.Outcome == fail {
			return errFull
		}
		if at != nil {
			at(l)
		}
	}
	return nil
}

func (g *gate) when(at func(audit.Line)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.at = at
}

// A world is a pipeline over a log on disk, an index and keys in software.
type world struct {
	*authority.Pipeline
	t       *testing.T
	dir     string
	log     *audit.Log
	index   *sqlite.Store
	token   *token
	gate    *gate
	ra      *rsa.PrivateKey
	raDER   []byte
	later   []string          // generations after the first
	ras     map[string][]byte // their RA certificates
	outside *outside
	ahead   atomic.Int64 // nanoseconds by which the clock is ahead
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), token: &token{key: must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))}, gate: &gate{}, outside: &outside{say: map[string]challenge.Answer{}}}
	w.ra = deviceKeys()[3]
	w.open()
	t.Cleanup(w.close)
	return w
}

func (w *world) open() {
	t := w.t
	w.index = must[*sqlite.Store](t)(sqlite.Open(t.Context(), filepath.Join(w.dir, "index.db")))
	next := must[uint64](t)(w.index.Next(t.Context()))
	w.gate.next = next
	w.log = must[*audit.Log](t)(audit.Open(t.Context(), audit.Options{
		Dir: filepath.Join(w.dir, "audit"), Origin: "corp.example/log", Followers: []audit.Follower{w.gate, w.index}, MinSize: next,
		Genesis: func() (audit.Entry, error) {
			return audit.Entry{Outcome: "ok", Actor: audit.Actor{Kind: "system"}}, nil
		},
	}))
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Corp CA"}, NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(10 * 365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1, 2, 3, 4},
	}
	path := filepath.Join(w.dir, "ca.der")
	der := w.certificate(path, ca, ca, w.token.key.Public())
	parsed := must[*x509.Certificate](t)(x509.ParseCertificate(der))
	w.raDER = w.certificate(filepath.Join(w.dir, "ra.der"), &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "RA"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter}, parsed, w.ra.Public())
	is := must[*issuer.Issuer](t)(issuer.New("corp", parsed, w.token, issuer.Options{}))
	set := must[*policy.Set](t)(policy.Load(policy.Source{Name: "profiles.yaml", Data: []byte(profiles)}))
	tagger := must[*challenge.Tagger](t)(challenge.NewTagger(bytes.Repeat([]byte{7}, 32)))
	w.Pipeline = must[*authority.Pipeline](t)(authority.New(authority.Options{
		Log: w.log, Index: w.index, Policies: set, Tagger: tagger, Issuers: w.issuers(authority.CA{Issuer: is, Generation: protocol.Generation{Name: "first", RASign: w.raDER, RADecrypt: w.raDER, CA: der}}), Now: func() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }, Zap: zap.NewNop(), Validators: w.outside,
	}))
}

// certificate makes a certificate once and reads it the other times.
func (w *world) certificate(path string, c, parent *x509.Certificate, pub crypto.PublicKey) []byte {
	if data, err := os.ReadFile(path); err == nil {
		block, _ := pem.Decode(data)
		return block.Bytes
	}
	der := must[[]byte](w.t)(x509.CreateCertificate(rand.Reader, c, parent, pub, w.token.key))
	writeFile(w.t, path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return der
}

func (w *world) close() {
	w.gate.when(nil)
	w.gate.mu.Lock()
	w.gate.fail = ""
	w.gate.mu.Unlock()
	ctx := context.Background()
	if err := w.log.Close(ctx); err != nil && w.log.Healthy() == nil {
		w.t.Error(err)
	}
	if err := w.index.Close(); err != nil {
		w.t.Error(err)
	}
}

// restart opens everything anew, as a service would: what its log says must not
// keep it from serving.
func (w *world) restart() {
	w.t.Helper()
	w.close()
	w.open()
}

func (w *world) challenge(profile, cn string, dns ...string) []byte {
	w.t.Helper()
	made := must[[]authority.Challenge](w.t)(w.CreateChallenges(w.t.Context(), audit.Actor{Kind: "operator", ID: "test"},
		[]authority.NewChallenge{{Profile: profile, Subject: "CN=" + cn, DNS: dns}}))
	return []byte(made[0].Secret.Text())
}

// asked is one request of a device.
type asked struct {
	profile, transaction, cn string
	dns                      []string
	challenge                []byte
	key                      *rsa.PrivateKey
	kind                     int    // 19 if 0
	signer                   []byte // self-signed if nil
	csr                      []byte // made from the rest if nil
	signerKey                *rsa.PrivateKey
	recipient                []byte // the first generation's RA if nil
}

// request makes what the gate hands over.
func (w *world) request(a asked) protocol.Request {
	w.t.Helper()
	csr := a.csr
	if csr == nil {
		csr = must[[]byte](w.t)(client.NewCSR(a.key, client.CSR{Subject: pkix.Name{CommonName: a.cn}, DNSNames: a.dns, Challenge: a.challenge}))
	}
	if a.recipient == nil {
		a.recipient = w.raDER
	}
	if a.kind == 0 {
		a.kind = scep.PKCSReq
	}
	if a.signer == nil {
		self := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "self"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
		a.signer, a.signerKey = must[[]byte](w.t)(x509.CreateCertificate(rand.Reader, self, self, a.key.Public(), a.key)), a.key
	}
	der := must[[]byte](w.t)(client.BuildRequest(client.Message{
		Type: a.kind, TransactionID: a.transaction, SenderNonce: bytes.Repeat([]byte{1}, 16), Signer: a.signer, SignerKey: a.signerKey,
		Recipient: a.recipient, CSR: csr, Cipher: cms.AES128CBC, Digest: crypto.SHA256,
	}))
	signed := must[*cms.Signed](w.t)(cms.ParseSigned(must[[]byte](w.t)(cms.DER(der, cms.DefaultLimits()))))
	envelope := must[*cms.Envelope](w.t)(cms.ParseEnvelope(signed.Content))
	//lint:ignore SA1019 the key transport that clients have
	key := must[[]byte](w.t)(rsa.DecryptPKCS1v15(nil, w.ra, envelope.Recipients[0].EncryptedKey)) //nolint:staticcheck // as above
	return protocol.Request{Protocol: "scep", Profile: a.profile, Source: "192.0.2.7:4711", Arrived: time.Now(), Proof: protocol.Proof{
		SignerCert: signed.Signer.Raw, Digest: signed.Digest, SignedAttrs: signed.SignedAttrs, Signature: signed.Signature, Envelope: signed.Content, ContentKey: key,
	}}
}

// enroll has a certificate of the profile wifi issued.
func (w *world) enroll(cn string) (der []byte, key *rsa.PrivateKey) {
	w.t.Helper()
	key = deviceKeys()[0]
	out, err := w.Submit(w.t.Context(), w.request(asked{profile: "wifi", transaction: "enroll " + cn, cn: cn, challenge: w.challenge("wifi", cn), key: key}))
	if err != nil || out.Status != protocol.Issued {
		w.t.Fatal(describe(out, err))
	}
	return out.Certificates[0], key
}

// renewal asks for the successor of a certificate.
func (w *world) renewal(transaction string, der []byte, key, next *rsa.PrivateKey) protocol.Request {
	w.t.Helper()
	old := must[*x509.Certificate](w.t)(x509.ParseCertificate(der))
	return w.request(asked{profile: "wifi", transaction: transaction, cn: old.Subject.CommonName, kind: scep.RenewalReq, key: next, signer: der, signerKey: key})
}

// records returns the log's lines, oldest first, in which keep is true.
func (w *world) records(keep func(audit.Record) bool) []audit.Record {
	w.t.Helper()
	var out []audit.Record
	if err := audit.Scan(filepath.Join(w.dir, "audit"), 0, func(l audit.Line) error {
		if keep(l.Record) {
			out = append(out, l.Record)
		}
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *world) count(event, outcome string) int {
	w.t.Helper()
	return len(w.records(func(r audit.Record) bool { return r.Event == event && r.Outcome == outcome }))
}

// sound fails the test if the log takes no records, if an intent has no outcome,
// or if an index made anew from the log is another one.
func (w *world) sound() {
	w.t.Helper()
	if err := w.log.Healthy(); err != nil {
		w.t.Errorf("the log failed: %v", err)
	}
	if open := must[[]store.Issuance](w.t)(w.index.OpenIntents(context.Background())); len(open) > 0 {
		w.t.Errorf("%d intents have no outcome", len(open))
	}
	spent := map[string]uint64{}
	for _, r := range w.records(func(r audit.Record) bool { return r.Outcome == store.OutIntent }) {
		id := r.Object.Object("intent").String("challenge")
		failed := slices.ContainsFunc(w.records(func(f audit.Record) bool { return f.Outcome == store.OutFailed || f.Outcome == store.OutUnknown }),
			func(f audit.Record) bool { return uint64(f.Object.Int("intent_seq")) == r.Seq })
		if id == "" || failed {
			continue
		}
		if first, ok := spent[id]; ok {
			w.t.Errorf("challenge %s was spent by record %d and by record %d", id, first, r.Seq)
		}
		spent[id] = r.Seq
	}
	fresh := must[*sqlite.Store](w.t)(sqlite.Open(context.Background(), filepath.Join(w.t.TempDir(), "fresh.db")))
	defer func() { _ = fresh.Close() }()
	if err := audit.Scan(filepath.Join(w.dir, "audit"), 0, func(l audit.Line) error {
		return fresh.Follow(context.Background(), []audit.Line{l})
	}); err != nil {
		w.t.Fatalf("the index cannot be made anew from the log: %v", err)
	}
	var was, is bytes.Buffer
	for s, to := range map[*sqlite.Store]io.Writer{w.index: &was, fresh: &is} {
		if err := s.Dump(context.Background(), to); err != nil {
			w.t.Fatal(err)
		}
	}
	if was.String() != is.String() {
		w.t.Errorf("the index made anew differs:\n%s\n%s", was.String(), is.String())
	}
}

func describe(o protocol.Outcome, err error) string {
	if err != nil {
		return "error: " + err.Error()
	}
	if o.Refusal != nil {
		return fmt.Sprintf("refused as %s: %s", o.Refusal.Kind, o.Refusal.Say)
	}
	return o.Status.String()
}

// openEnvelope returns the CSR of a request.
func openEnvelope(t testing.TB, r protocol.Request) []byte {
	t.Helper()
	envelope := must[*cms.Envelope](t)(cms.ParseEnvelope(must[[]byte](t)(cms.DER(r.Proof.Envelope, cms.DefaultLimits()))))
	return must[[]byte](t)(envelope.Open(r.Proof.ContentKey))
}
