package status

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/crypto/ocsp"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/appliance/store/sqlite"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/protocol/status"
)

// A world is a service over a real log and index; its keys are in memory.
type world struct {
	*Service
	t     *testing.T
	log   *audit.Log
	index *sqlite.Store
	ca    *x509.Certificate
	now   time.Time
	dir   string

	mu     sync.Mutex
	before func() // an OCSP answer is signed
	fails  error  // of the CA's key
	caKey  *ecdsa.PrivateKey
	key    *ecdsa.PrivateKey
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (w *world) SignCRL(_ context.Context, _ string, tbs []byte, _ uint64) ([]byte, error) {
	if w.fails != nil {
		return nil, w.fails
	}
	return crypto.SignMessage(w.caKey, rand.Reader, tbs, crypto.SHA256)
}

func (w *world) SignOCSP(_ context.Context, _ string, data []byte) ([]byte, error) {
	w.mu.Lock()
	before := w.before
	w.before = nil
	w.mu.Unlock()
	if before != nil {
		before()
	}
	return crypto.SignMessage(w.key, rand.Reader, data, crypto.SHA256)
}

func (w *world) SignCertificate(context.Context, string, []byte, uint64) ([]byte, error) {
	return nil, errors.New("no certificates here")
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, now: time.Now(), dir: t.TempDir()}
	w.caKey = must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	w.key = must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	w.ca = w.certificate(&x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}, nil, w.caKey.Public())
	w.index = must[*sqlite.Store](t)(sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "index.db")))
	w.log = must[*audit.Log](t)(audit.Open(t.Context(), audit.Options{Dir: filepath.Join(t.TempDir(), "audit"), Origin: "corp.example/log", Followers: []audit.Follower{w.index},
		Genesis: func() (audit.Entry, error) {
			return audit.Entry{Outcome: "ok", Actor: audit.Actor{Kind: "system"}}, nil
		}}))
	t.Cleanup(func() { _ = errors.Join(w.log.Close(context.Background()), w.index.Close()) })
	w.again()
	return w
}

func (w *world) certificate(c, parent *x509.Certificate, pub crypto.PublicKey) *x509.Certificate {
	w.t.Helper()
	c.NotBefore, c.NotAfter = w.now.Add(-time.Hour), w.now.Add(10_000*time.Hour)
	if parent == nil {
		parent = c
	}
	return must[*x509.Certificate](w.t)(x509.ParseCertificate(must[[]byte](w.t)(x509.CreateCertificate(rand.Reader, c, parent, pub, w.caKey))))
}

// again makes a service that knows what is durable alone.
func (w *world) again() {
	w.t.Helper()
	is := must[*issuer.Issuer](w.t)(issuer.New("corp", w.ca, w, issuer.Options{}))
	cert := w.certificate(&x509.Certificate{SerialNumber: big.NewInt(2), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}, Value: asn1.NullBytes}}}, w.ca, w.key.Public())
	r := must[*issuer.Responder](w.t)(issuer.NewResponder(is, cert, w))
	w.Service = must[*Service](w.t)(New(Options{Log: w.log, Index: w.index, Signer: w, Dir: w.dir, Now: func() time.Time { return w.now }, Zap: zap.NewNop(),
		Issuers: []Issuer{{Issuer: is, Every: time.Hour, Validity: 48 * time.Hour, Responder: r, Answers: time.Hour}}}))
}

// append writes a line of the log.
func (w *world) append(event, out string, o audit.Object) uint64 {
	w.t.Helper()
	return must[audit.Line](w.t)(w.log.Append(w.t.Context(), audit.Entry{Event: event, Outcome: out, Request: "r", Actor: audit.Actor{Kind: "system"}, Object: o})).Record.Seq
}

// issue has a certificate issued that ends at a time.
func (w *world) issue(serial string, ends time.Time) {
	w.t.Helper()
	in := audit.Intent{Serial: serial, TBS: []byte{0x30, 0}, Issuer: "corp", Profile: "wifi", Lineage: serial}
	seq := w.append(store.EventEnroll, store.OutIntent, store.IntentObject(in, store.Issuance{NotBefore: w.now, NotAfter: ends, LineageFrom: w.now}))
	w.append(store.EventEnroll, store.OutIssued, store.ResultObject(seq, serial, []byte("DER of "+serial)))
}

func (w *world) revoke(serial string) {
	w.t.Helper()
	w.append(store.EventRevocation, store.OutRevoked, store.RevokedObject(store.Revocation{Serial: serial, Reason: 4, At: w.now}))
	w.Revoked("corp", serial)
}

func (w *world) ask(serial string) (*ocsp.Response, []byte, error) {
	w.t.Helper()
	ids := must[map[crypto.Hash][2][]byte](w.t)(issuer.CertIDs(w.ca))[crypto.SHA256]
	a, err := w.Answer(w.t.Context(), "corp", status.CertID{Hash: crypto.SHA256, NameHash: ids[0], KeyHash: ids[1], Serial: serial})
	if err != nil {
		return nil, nil, err
	}
	return must[*ocsp.Response](w.t)(ocsp.ParseResponse(a.DER, w.ca)), a.DER, nil
}

// said wants what is said of a certificate, and returns the answer.
func (w *world) said(serial string, want int) []byte {
	w.t.Helper()
	r, der, err := w.ask(serial)
	if err != nil || r.Status != want {
		w.t.Errorf("%s: %+v, %v, want status %d", serial, r, err, want)
	}
	return der
}

// An answer that is being signed while its certificate is revoked is not kept: the
// next one says that it is revoked.
func TestARevocationOvertakesAnAnswer(t *testing.T) {
	w := newWorld(t)
	w.issue("0a", w.now.Add(time.Hour))
	w.before = func() { w.revoke("0a") }
	w.said("0a", ocsp.Good) // it was, when it was asked for
	w.said("0a", ocsp.Revoked)
}

func TestAnAnswerIsKeptForHalfItsLife(t *testing.T) {
	w := newWorld(t)
	w.issue("0a", w.now.Add(1000*time.Hour))
	first := w.said("0a", ocsp.Good)
	for _, step := range []struct {
		after time.Duration
		same  bool
	}{{29 * time.Minute, true}, {31 * time.Minute, false}} {
		w.now = w.now.Add(step.after)
		if again := w.said("0a", ocsp.Good); (string(again) == string(first)) != step.same {
			t.Errorf("after %s more: the same is %v", step.after, !step.same)
		}
	}
	w.now = w.now.Add(-time.Hour) // a clock that was set back
	if r, _, err := w.ask("0a"); err != nil || r.ThisUpdate.After(w.now) {
		t.Errorf("an answer of the future: %+v, %v", r, err)
	}
}

// What was never issued, or has ended for so long that no list names it, gets no answer.
func TestNothingIsSaidOfOthers(t *testing.T) {
	w := newWorld(t)
	w.issue("0a", w.now.Add(time.Hour))
	in := audit.Intent{Serial: "0b", TBS: []byte{0x30, 0}, Issuer: "corp", Profile: "wifi", Lineage: "0b"}
	seq := w.append(store.EventEnroll, store.OutIntent, store.IntentObject(in, store.Issuance{NotBefore: w.now, NotAfter: w.now.Add(time.Hour), LineageFrom: w.now}))
	for _, serial := range []string{"0b", "0c", ""} {
		if _, _, err := w.ask(serial); !errors.Is(err, status.ErrUnauthorized) {
			t.Errorf("%q: %v", serial, err)
		}
	}
	w.append(store.EventRevocation, store.OutDue, store.RevocationObject("0b", "test"))
	w.append(store.EventEnroll, store.OutUnknown, store.ResultObject(seq, "0b", nil))
	w.said("0b", ocsp.Revoked)
	w.now = w.now.Add(50 * time.Hour)
	if _, _, err := w.ask("0a"); !errors.Is(err, status.ErrUnauthorized) {
		t.Errorf("one that has ended: %v", err)
	}
	for name, id := range map[string]status.CertID{
		"another key": {Hash: crypto.SHA256, NameHash: make([]byte, 32), KeyHash: make([]byte, 32), Serial: "0a"}, "another hash": {Hash: crypto.SHA512, Serial: "0a"},
	} {
		if _, err := w.Answer(t.Context(), "corp", id); !errors.Is(err, status.ErrUnauthorized) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := w.Answer(t.Context(), "other", status.CertID{}); !errors.Is(err, status.ErrUnknownIssuer) {
		t.Errorf("of no issuer: %v", err)
	}
}

// A list names what is revoked, until a while after its end, and its number goes on
// from the log, whatever the clock says.
func TestListsGoOn(t *testing.T) {
	w := newWorld(t)
	w.issue("0a", w.now.Add(time.Hour))
	w.issue("0b", w.now.Add(1000*time.Hour))
	w.revoke("0a")
	w.revoke("0b")
	var last uint64
	for _, step := range []struct {
		after time.Duration
		names int
	}{{0, 2}, {40 * time.Hour, 2}, {10 * time.Hour, 1}, {-100 * time.Hour, 2}} {
		w.now = w.now.Add(step.after)
		l := w.sign()
		crl := must[*x509.RevocationList](t)(x509.ParseRevocationList(l.DER))
		if len(crl.RevokedCertificateEntries) != step.names || last != 0 && l.Number != last+1 || crl.Number.Uint64() != l.Number {
			t.Errorf("after %s: list %d with %d entries, after %d", step.after, l.Number, len(crl.RevokedCertificateEntries), last)
		}
		last = l.Number
	}
	w.fails = errors.New("no token")
	if err := w.Sign(t.Context(), "corp"); err == nil || w.Overview()[0].Trouble == "" || w.Overview()[0].Number != last {
		t.Errorf("without the key: %v, %+v", err, w.Overview())
	}
	w.fails = nil
	if l := w.sign(); l.Number != last+2 || w.Overview()[0].Trouble != "" {
		t.Errorf("list %d after %d and one that was not signed: %+v", l.Number, last, w.Overview())
	}
}

func (w *world) sign() status.List {
	w.t.Helper()
	if err := w.Sign(w.t.Context(), "corp"); err != nil {
		w.t.Fatal(err)
	}
	return must[status.List](w.t)(w.List(w.t.Context(), "corp", [32]byte{}))
}

// At a start the list on disk is looked at: it is the newest one and says what the
// index says, or there is another.
func TestTheListOnDiskIsLookedAt(t *testing.T) {
	w := newWorld(t)
	w.issue("0a", w.now.Add(1000*time.Hour))
	stale := func() bool {
		w.again()
		return w.stale(t.Context(), w.issuers["corp"])
	}
	if !stale() {
		t.Error("without a list none is wanted")
	}
	first := w.sign()
	if stale() {
		t.Error("a new list is replaced")
	}
	if l, err := w.List(t.Context(), "corp", sha256.Sum256(first.DER)); err != nil || l.DER != nil || l.Number != first.Number {
		t.Errorf("the list that the gate has: %+v, %v", l, err)
	}
	w.now = w.now.Add(25 * time.Hour)
	if !stale() {
		t.Error("a list beyond half its life is kept")
	}
	w.now = w.now.Add(-25 * time.Hour)
	w.revoke("0a")
	if !stale() {
		t.Error("a list is kept that does not name what is revoked")
	}
	w.sign()
	path := filepath.Join(w.dir, "corp.crl")
	if err := os.WriteFile(path, first.DER, 0o600); err != nil {
		t.Fatal(err)
	}
	if !stale() {
		t.Error("an older list is kept")
	}
	for what, data := range map[string][]byte{"nothing": nil, "no list": []byte("hello"), "another CA's": newWorld(t).sign().DER} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if !stale() {
			t.Errorf("%s is kept", what)
		}
		if l, err := w.List(t.Context(), "corp", [32]byte{}); err == nil {
			t.Errorf("%s is served as list %d", what, l.Number)
		}
	}
}
