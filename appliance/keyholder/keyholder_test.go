package keyholder_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"math/big"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/postern-pki/postern/appliance/keyholder"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/test/softhsm"
)

func TestMain(m *testing.M) { os.Exit(softhsm.Main(m)) }

const origin = "corp.example/log"

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// A world is a token with a CA key and an audit key, and a log to be fed.
type world struct {
	t      *testing.T
	ca     *x509.Certificate
	caKey  *hsm.Key
	holder *keyholder.Keyholder
	by     note.Verifier
	issuer *issuer.Issuer
	soft   softhsm.Token
	token  *hsm.Token
	o      keyholder.Options

	chain audit.Chain
	lines []audit.Line
}

func newWorld(t *testing.T, changes ...func(*world)) *world {
	t.Helper()
	tok := softhsm.New(t)
	config := hsm.Config{Module: tok.Module, Serial: tok.Serial, Label: tok.Label, PIN: hsm.PINFrom(hsm.NewPIN([]byte(tok.PIN))), Sessions: 4, Deadline: 10 * time.Second}
	must[[]hsm.Generated](t)(hsm.Generate(t.Context(), config, []hsm.KeyPlan{
		{Purpose: hsm.CA, Label: "ca", Algorithm: hsm.P256}, {Purpose: hsm.Audit, Label: "audit", Algorithm: hsm.P256},
	}))
	token := must[*hsm.Token](t)(hsm.Open(t.Context(), config))
	t.Cleanup(func() { _ = token.Close() })
	key := func(p hsm.Purpose, label string) *hsm.Key {
		return must[*hsm.Key](t)(token.Key(t.Context(), hsm.KeySpec{Purpose: p, Label: label}))
	}
	w := &world{t: t, soft: tok, token: token, caKey: key(hsm.CA, "ca")}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Corp CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(10_000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	w.ca = must[*x509.Certificate](t)(x509.ParseCertificate(must[[]byte](t)(x509.CreateCertificate(rand.Reader, template, template, w.caKey.Public(), w.caKey))))
	auditKey := key(hsm.Audit, "audit")
	w.by = must[note.Verifier](t)(audit.ECDSANoteVerifier(origin, auditKey.Public().(*ecdsa.PublicKey)))
	w.o = keyholder.Options{Origin: origin, Audit: auditKey, CAs: map[string]keyholder.CA{"corp": {Key: w.caKey, Limits: issuer.Limits{
		MaxValidity: 1000 * time.Hour, NotAfter: w.ca.NotAfter, Issuer: w.ca.RawSubject, IssuerSPKI: w.ca.RawSubjectPublicKeyInfo,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
	}}}, Token: token}
	for _, change := range changes {
		change(w)
	}
	w.holder = must[*keyholder.Keyholder](t)(keyholder.New(t.Context(), w.o))
	w.issuer = must[*issuer.Issuer](t)(issuer.New("corp", w.ca, w.holder, issuer.Options{}))
	w.feed(w.line("log.genesis", "ok", nil))
	return w
}

// line makes the next line of the log, without feeding it.
func (w *world) line(event, outcome string, o audit.Object) audit.Line {
	w.t.Helper()
	h := w.chain.Head()
	return must[audit.Line](w.t)(audit.Encode(audit.Record{
		Seq: h.Size, Prev: hex.EncodeToString(h.Prev[:]), Time: time.Now(), Boot: "b", Event: event, Outcome: outcome, Actor: audit.Actor{Kind: "system"}, Object: o,
	}))
}

// feed takes lines up and gives them to the keyholder.
func (w *world) feed(lines ...audit.Line) {
	w.t.Helper()
	for _, l := range lines {
		if err := w.chain.Step(l); err != nil {
			w.t.Fatal(err)
		}
		w.lines = append(w.lines, l)
	}
	if err := w.holder.Follow(w.t.Context(), lines); err != nil {
		w.t.Fatal(err)
	}
}

func template() *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: "a.corp.example"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

// ticket prepares a certificate, and returns its intent as an object of a line.
func (w *world) ticket() (*issuer.Ticket, audit.Object) {
	w.t.Helper()
	key := must[*ecdsa.PrivateKey](w.t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	ticket := must[*issuer.Ticket](w.t)(w.issuer.Prepare(template(), key.Public(), issuer.Meta{Profile: "wifi", Lineage: "l"}))
	return ticket, audit.Object{"intent": ticket.Intent().Object()}
}

// refused fails the test unless nothing was signed, and surely so.
func (w *world) refused(what string, name string, tbs []byte, seq uint64) {
	w.t.Helper()
	sig, err := w.holder.SignCertificate(w.t.Context(), name, tbs, seq)
	if err == nil || sig != nil || !errors.Is(err, issuer.ErrNotSigned) {
		w.t.Errorf("%s: signature %x, %v, want ErrNotSigned", what, sig, err)
	}
}

func TestOnlyAnOpenIntentIsSigned(t *testing.T) {
	w := newWorld(t)
	ticket, o := w.ticket()
	tbs := ticket.Intent().TBS
	w.refused("before the log was fed", "corp", tbs, 1)
	w.feed(w.line("enroll", "intent", o))
	other, _ := w.ticket()
	changed := bytes.Clone(tbs)
	changed[len(changed)-1] ^= 1
	w.refused("another certificate", "corp", other.Intent().TBS, 1)
	w.refused("one octet changed", "corp", changed, 1)
	w.refused("an octet more", "corp", append(bytes.Clone(tbs), 0), 1)
	w.refused("no octets", "corp", nil, 1)
	w.refused("another line's number", "corp", tbs, 0)
	w.refused("a line that is not there yet", "corp", tbs, 2)
	w.refused("an unknown issuer", "other", tbs, 1)
	der, err := ticket.Sign(t.Context(), 1)
	if err != nil {
		t.Fatalf("the intent itself: %v", err)
	}
	if err := must[*x509.Certificate](t)(x509.ParseCertificate(der)).CheckSignatureFrom(w.ca); err != nil {
		t.Error(err)
	}
	w.refused("a second time", "corp", tbs, 1)

	for n, outcome := range []string{"issued", "failed", "unknown"} {
		ticket, o := w.ticket()
		seq := w.chain.Head().Size
		w.feed(w.line("enroll", "intent", o))
		w.feed(w.line("enroll", outcome, audit.Object{"intent_seq": seq, "serial": ticket.Intent().Serial}))
		w.refused(outcome+" already", "corp", ticket.Intent().TBS, seq)
		// An intent of the same bytes in a later line is one of its own.
		again := w.chain.Head().Size
		w.feed(w.line("enroll", "intent", o))
		w.refused("by the number of the first", "corp", ticket.Intent().TBS, seq)
		if _, err := w.holder.SignCertificate(t.Context(), "corp", ticket.Intent().TBS, again); err != nil {
			t.Errorf("%d: %v", n, err)
		}
	}
}

// Whoever owns the authority writes what intents they like: what a CA key signs
// has bounds of its own.
func TestTheKeysOwnLimitsHold(t *testing.T) {
	w := newWorld(t)
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	for name, change := range map[string]func(c, parent *x509.Certificate){
		"a CA":             func(c, _ *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true },
		"a key that signs": func(c, _ *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign },
		"too long":         func(c, _ *x509.Certificate) { c.NotAfter = c.NotBefore.Add(1001 * time.Hour) },
		"longer than the CA": func(c, p *x509.Certificate) {
			c.NotBefore, c.NotAfter = p.NotAfter.Add(-time.Hour), p.NotAfter.Add(time.Second)
		},
		"another issuer's name":  func(_, p *x509.Certificate) { p.RawSubject, p.Subject = nil, pkix.Name{CommonName: "Other CA"} },
		"another serial's entry": nil,
	} {
		t.Run(name, func(t *testing.T) {
			c, parent := template(), *w.ca
			c.SerialNumber = new(big.Int).Lsh(big.NewInt(0x77), 120)
			if change != nil {
				change(c, &parent)
			}
			der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, c, &parent, key.Public(), w.caKey))
			tbs := must[*x509.Certificate](t)(x509.ParseCertificate(der)).RawTBSCertificate
			in := audit.Intent{Serial: c.SerialNumber.Text(16), TBS: tbs, Issuer: "corp", IssuerKey: issuer.KeyID(w.ca.RawSubjectPublicKeyInfo)}
			if change == nil {
				in.Serial = "01"
			}
			seq := w.chain.Head().Size
			w.feed(w.line("enroll", "intent", audit.Object{"intent": in.Object()}))
			w.refused(name, "corp", tbs, seq)
		})
	}
}

func TestOneOfManyAsksGetsTheSignature(t *testing.T) {
	w := newWorld(t)
	ticket, o := w.ticket()
	w.feed(w.line("enroll", "intent", o))
	var signed atomic.Int64
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			if _, err := w.holder.SignCertificate(t.Context(), "corp", ticket.Intent().TBS, 1); err == nil {
				signed.Add(1)
			} else if !errors.Is(err, rpc.ErrNoIntent) {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if signed.Load() != 1 {
		t.Errorf("%d signatures for one intent", signed.Load())
	}
}

func TestTheLogIsFollowedLineByLine(t *testing.T) {
	w := newWorld(t)
	first := w.line("note", "ok", nil)
	w.feed(first)
	next := w.line("note", "ok", audit.Object{"n": 2})
	forged := must[audit.Line](t)(audit.Encode(audit.Record{
		Seq: next.Record.Seq, Prev: hex.EncodeToString(make([]byte, 32)), Time: time.Now(), Event: "note", Outcome: "ok", Actor: audit.Actor{Kind: "system"},
	}))
	gap := next
	gap.Record.Seq++
	for name, tt := range map[string]struct {
		line audit.Line
		want error
	}{"a repeat": {first, audit.ErrSequence}, "a gap": {gap, audit.ErrSequence}, "another line before it": {forged, audit.ErrPrevious}} {
		if err := w.holder.Follow(t.Context(), []audit.Line{tt.line}); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	w.feed(next) // none of them changed where it stands
	if n := must[uint64](t)(w.holder.Next(t.Context())); n != 3 {
		t.Errorf("it stands before line %d, want 3", n)
	}
}

func TestOnlyItsOwnHeadIsSigned(t *testing.T) {
	w := newWorld(t)
	head := w.chain.Head()
	for name, change := range map[string]func(h *audit.Head){
		"a size more":   func(h *audit.Head) { h.Size++ },
		"a size less":   func(h *audit.Head) { h.Size-- },
		"another root":  func(h *audit.Head) { h.Root[0] ^= 1 },
		"another line":  func(h *audit.Head) { h.Prev[31] ^= 1 },
		"no log at all": func(h *audit.Head) { *h = audit.Head{} },
	} {
		h := head
		change(&h)
		if n, err := w.holder.SignCheckpoint(t.Context(), h); !errors.Is(err, rpc.ErrNotHead) || n != nil {
			t.Errorf("%s: %q, %v, want ErrNotHead", name, n, err)
		}
	}
	signed := must[[]byte](t)(w.holder.SignCheckpoint(t.Context(), head))
	if size, root, err := audit.OpenCheckpoint(signed, w.by); err != nil || size != head.Size || root != head.Root {
		t.Errorf("its own head: %d, %v", size, err)
	}
	w.feed(w.line("note", "ok", nil))
	if _, err := w.holder.SignCheckpoint(t.Context(), head); !errors.Is(err, rpc.ErrNotHead) {
		t.Errorf("a head of the past: %v", err)
	}
}

// An attempt that was not made in time uses the intent up: whether it was signed
// is for the caller to say, and it is never signed again.
func TestAnAttemptUsesTheIntentUp(t *testing.T) {
	w := newWorld(t)
	ticket, o := w.ticket()
	w.feed(w.line("enroll", "intent", o))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.holder.SignCertificate(ctx, "corp", ticket.Intent().TBS, 1); err == nil || errors.Is(err, rpc.ErrNoIntent) {
		t.Errorf("after its time: %v", err)
	}
	w.refused("again", "corp", ticket.Intent().TBS, 1)
}

func TestACertificateIsMatchedWithItsKey(t *testing.T) {
	w := newWorld(t)
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	c := template()
	c.SerialNumber = big.NewInt(1)
	other := must[*x509.Certificate](t)(x509.ParseCertificate(must[[]byte](t)(x509.CreateCertificate(rand.Reader, c, c, key.Public(), key))))
	if !keyholder.MatchesCertificate(w.caKey, w.ca) || keyholder.MatchesCertificate(w.caKey, other) {
		t.Error("a certificate was taken for that of another key")
	}
}
