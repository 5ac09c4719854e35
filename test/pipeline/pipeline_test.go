package pipeline

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// testSite is made once: the tests use names of their own.
var testSite *site.Site

func TestMain(m *testing.M) {
	os.Exit(site.Main(context.Background(), "", func(s *site.Site) int { testSite = s; return m.Run() }))
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	return must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, bits))
}

func device(t testing.TB, profile string) *site.Device {
	t.Helper()
	return must[*site.Device](t)(testSite.Device(t.Context(), profile))
}

func challenge(t testing.TB, profile, cn string, more ...string) []byte {
	t.Helper()
	return []byte(must[site.Challenge](t)(testSite.NewChallenge(t.Context(), profile, "CN="+cn, more...)).Challenge)
}

func name(cn string) pkix.Name { return pkix.Name{CommonName: cn} }

func enroll(t testing.TB, profile, cn string) (*client.Result, *rsa.PrivateKey) {
	t.Helper()
	key := newKey(t, 2048)
	r := must[*client.Result](t)(device(t, profile).Enroll(t.Context(), client.Enrollment{Key: key, Subject: name(cn), Challenge: challenge(t, profile, cn)}))
	return r, key
}

// refused asserts a FAILURE and returns its text and the log's records of it.
func refused(t testing.TB, err error, failInfo string) (text, records string) {
	t.Helper()
	f, ok := errors.AsType[*client.FailError](err)
	if !ok {
		t.Fatalf("%v, want a FAILURE", err)
	}
	if f.Name != failInfo {
		t.Errorf("%s: %s, want %s", f.Name, f.Text, failInfo)
	}
	text, id, ok := strings.Cut(f.Text, " (request ")
	if !ok {
		t.Fatalf("the answer names no request: %q", f.Text)
	}
	out, errOut, code := testSite.Postern(t.Context(), nil, "audit", "show", "--req", strings.TrimSuffix(id, ")"))
	if code != 0 {
		t.Fatalf("postern audit show: %s", errOut)
	}
	return text, out
}

// race runs f n times at once and counts the successes.
func race(n int, f func(i int) error) int64 {
	var won atomic.Int64
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() {
			if f(i) == nil {
				won.Add(1)
			}
		})
	}
	group.Wait()
	return won.Load()
}

func TestOneChallengeIsOneCertificate(t *testing.T) {
	keys := make([]*rsa.PrivateKey, 16)
	for i := range keys {
		keys[i] = newKey(t, 2048)
	}
	for round := range 3 {
		cn := fmt.Sprintf("one-%d.demo.example", round)
		c, d := challenge(t, "interop", cn), device(t, "interop")
		if won := race(64, func(i int) error {
			_, err := d.Enroll(context.Background(), client.Enrollment{Key: keys[i%len(keys)], Subject: name(cn), Challenge: c})
			if _, ok := errors.AsType[*client.FailError](err); err != nil && !ok {
				t.Errorf("neither a certificate nor a FAILURE: %v", err)
			}
			return err
		}); won < 1 {
			t.Errorf("nobody got a certificate")
		}
		out, _, _ := testSite.Postern(t.Context(), nil, "cert", "list", "--subject", cn)
		if n := strings.Count(out, cn); n != 1 {
			t.Errorf("%d certificates for one challenge:\n%s", n, out)
		}
	}
}

func TestTheSameRequestAgainGetsTheSameCertificate(t *testing.T) {
	const cn = "again.demo.example"
	e := client.Enrollment{Key: newKey(t, 2048), Subject: name(cn), Challenge: challenge(t, "demo", cn)}
	d := device(t, "demo")
	var serials sync.Map
	race(64, func(int) error {
		r, err := d.Enroll(context.Background(), e) // a fresh self-signed signer each time, and the same CSR
		if err != nil {
			t.Errorf("a retransmission was refused: %v", err)
			return err
		}
		serials.Store(r.Certificate.SerialNumber.String(), true)
		return nil
	})
	n := 0
	serials.Range(func(any, any) bool { n++; return true })
	if n != 1 {
		t.Errorf("%d certificates for one request", n)
	}
}

func TestAStrangerCannotTellOneBadChallengeFromAnother(t *testing.T) {
	const cn = "texts.demo.example"
	spent := challenge(t, "demo", cn)
	d := device(t, "demo")
	must[*client.Result](t)(d.Enroll(t.Context(), client.Enrollment{Key: newKey(t, 2048), Subject: name(cn), Challenge: spent}))
	texts := map[string]bool{}
	for why, c := range map[string][]byte{
		"spent":         spent,
		"unknown":       []byte("00000000000000000000000000"),
		"other-names":   challenge(t, "demo", "others.demo.example"),
		"other-profile": challenge(t, "interop", cn),
	} {
		_, err := d.Enroll(t.Context(), client.Enrollment{Key: newKey(t, 2048), Subject: name(cn), Challenge: c})
		text, records := refused(t, err, "badRequest")
		texts[text] = true
		if !strings.Contains(records, `saw "`+why+`"`) {
			t.Errorf("%s: the log says\n%s", why, records)
		}
		if (why == "spent") != strings.Contains(records, "security alert") {
			t.Errorf("%s: security event:\n%s", why, records)
		}
	}
	if len(texts) != 1 {
		t.Errorf("a stranger can tell them apart: %v", texts)
	}
}

func TestTheFifthRefusalRevokesAChallenge(t *testing.T) {
	const cn = "fifth.demo.example"
	c, d := challenge(t, "demo", cn), device(t, "demo")
	for range 5 {
		_, err := d.Enroll(t.Context(), client.Enrollment{Key: newKey(t, 2048), Subject: name("guess.demo.example"), Challenge: c})
		refused(t, err, "badRequest")
	}
	_, err := d.Enroll(t.Context(), client.Enrollment{Key: newKey(t, 2048), Subject: name(cn), Challenge: c})
	if _, records := refused(t, err, "badRequest"); !strings.Contains(records, `saw "revoked"`) {
		t.Errorf("the log says\n%s", records)
	}
}

func TestPolicyRefusalsGiveEveryReason(t *testing.T) {
	d := device(t, "demo")
	for why, tt := range map[string]struct {
		cn   string
		bits int
		rule string
	}{
		"a short key":     {"short.demo.example", 1024, "key.rsa.min"},
		"a foreign name":  {"www.other.example", 2048, "subject.CN.pattern"},
		"a look-alike":    {"a.demo.example.evil.test", 2048, "subject.CN"},
		"a path":          {"../../etc.demo.example", 2048, "subject.CN"},
		"a line":          {"a\nb.demo.example", 2048, "subject.CN"},
		"a NUL":           {"a\x00.demo.example", 2048, "subject.CN"},
		"no name at all":  {"", 2048, "subject.CN"},
		"an upper bound":  {strings.Repeat("a", 80) + ".demo.example", 2048, "subject.CN"},
		"a unicode twin":  {"\u0430.demo.example", 2048, "subject.CN"},
		"a trailing dot":  {"a.demo.example.", 2048, "subject.CN"},
		"an empty prefix": {".demo.example", 2048, "subject.CN"},
	} {
		_, err := d.Enroll(t.Context(), client.Enrollment{Key: newKey(t, tt.bits), Subject: name(tt.cn)})
		_, records := refused(t, err, "badRequest")
		if !strings.Contains(records, tt.rule) || !strings.Contains(records, "a new enrollment needs a challenge") {
			t.Errorf("%s: the log does not name %s and the missing challenge:\n%s", why, tt.rule, records)
		}
	}
}

func TestALineageHasABudget(t *testing.T) {
	first, key := enroll(t, "demo", "budget.demo.example")
	d := device(t, "demo")
	keys := make([]*rsa.PrivateKey, 16)
	for i := range keys {
		keys[i] = newKey(t, 2048)
	}
	if won := race(16, func(i int) error {
		_, err := d.Renew(context.Background(), client.Renewal{OldCert: first.Certificate, OldKey: key, NewKey: keys[i]})
		return err
	}); won != 1 {
		t.Errorf("%d renewals where the profile allows one", won)
	}
	_, err := d.Renew(t.Context(), client.Renewal{OldCert: first.Certificate, OldKey: key, NewKey: newKey(t, 2048)})
	if text, _ := refused(t, err, "badRequest"); !strings.Contains(text, "enroll again") {
		t.Errorf("the device is told %q", text)
	}
	// A new challenge begins a new lineage, from the same signer.
	again := challenge(t, "demo", "budget.demo.example")
	csr := must[[]byte](t)(client.NewCSR(newKey(t, 2048), client.CSR{Subject: name("budget.demo.example"), Challenge: again}))
	if _, err := send(t, "demo", client.Message{Type: 19, Signer: first.Certificate.Raw, SignerKey: key, CSR: csr}, key); err != nil {
		t.Errorf("a new challenge from the same signer: %v", err)
	}
}

// send sends a message that the test made by itself.
func send(t testing.TB, profile string, m client.Message, key *rsa.PrivateKey) (*client.Result, error) {
	t.Helper()
	d := device(t, profile)
	ca := must[*client.CA](t)(d.CACert(t.Context()))
	m.Recipient, m.Cipher, m.Digest = ca.RADecrypt.Raw, cms.AES128CBC, crypto.SHA256
	m.TransactionID = fmt.Sprintf("test-%d", time.Now().UnixNano())
	m.SenderNonce = must[[]byte](t)(client.Nonce(rand.Reader))
	der := must[[]byte](t)(client.BuildRequest(m))
	reply, err := d.Send(t.Context(), der)
	if err != nil {
		return nil, err
	}
	csr := must[*x509.CertificateRequest](t)(x509.ParseCertificateRequest(m.CSR))
	return client.Open(reply, client.Expectations{
		CA: ca, TransactionID: m.TransactionID, SenderNonce: m.SenderNonce, Signer: m.Signer, SignerKey: key, PublicKey: csr.RawSubjectPublicKeyInfo,
	})
}

func selfSigned(t testing.TB, key *rsa.PrivateKey, cn string) []byte {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: name(cn), NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-24 * time.Hour)}
	return must[[]byte](t)(x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key))
}

func TestWhoSignsDecidesWhatARequestIs(t *testing.T) {
	const cn = "signer.demo.example"
	spent := challenge(t, "interop", cn)
	key := newKey(t, 2048)
	d := device(t, "interop")
	first := must[*client.Result](t)(d.Enroll(t.Context(), client.Enrollment{Key: key, Subject: name(cn), Challenge: spent}))
	csr := func(key *rsa.PrivateKey, cn string, c []byte) []byte {
		return must[[]byte](t)(client.NewCSR(key, client.CSR{Subject: name(cn), Challenge: c}))
	}
	ours := func(kind int, csr []byte) client.Message {
		return client.Message{Type: kind, Signer: first.Certificate.Raw, SignerKey: key, CSR: csr}
	}
	ask := func(m client.Message) error { _, err := send(t, "interop", m, key); return err }
	if err := ask(ours(19, csr(newKey(t, 2048), cn, nil))); err != nil {
		t.Errorf("PKCSReq by our certificate is a renewal: %v", err)
	}
	if err := ask(ours(19, csr(newKey(t, 2048), cn, spent))); err != nil {
		t.Errorf("with the challenge that its own lineage spent too: %v", err)
	}
	if err := ask(ours(19, csr(newKey(t, 2048), cn, challenge(t, "interop", cn)))); err != nil {
		t.Errorf("with a new challenge it begins a lineage: %v", err)
	}
	if _, records := refused(t, ask(ours(19, csr(newKey(t, 2048), cn, challenge(t, "interop", "else.demo.example")))), "badRequest"); !strings.Contains(records, "security alert") {
		t.Errorf("with a challenge for other names it is a security event:\n%s", records)
	}
	refused(t, ask(ours(17, csr(newKey(t, 2048), "else.demo.example", nil))), "badMessageCheck")
	stranger := newKey(t, 2048)
	self := client.Message{Signer: selfSigned(t, stranger, cn), SignerKey: stranger}
	self.Type, self.CSR = 17, csr(stranger, cn, challenge(t, "interop", cn))
	_, err := send(t, "interop", self, stranger)
	if text, _ := refused(t, err, "badRequest"); !strings.Contains(text, "of this CA") {
		t.Errorf("a renewal by a stranger: %q", text)
	}
	self.Type, self.CSR = 19, csr(newKey(t, 2048), cn, challenge(t, "interop", cn))
	_, err = send(t, "interop", self, stranger)
	refused(t, err, "badMessageCheck") // the CSR's key is not the signer's
	self.CSR = csr(stranger, cn, challenge(t, "interop", cn))
	if _, err = send(t, "interop", self, stranger); err != nil {
		t.Errorf("a self-signed signer whose clock is wrong: %v", err)
	}
	// The profile is part of what a certificate may renew.
	_, err = send(t, "demo", ours(17, csr(newKey(t, 2048), cn, nil)), key)
	if text, _ := refused(t, err, "badRequest"); !strings.Contains(text, "another profile") {
		t.Errorf("a certificate of another profile: %q", text)
	}
}
