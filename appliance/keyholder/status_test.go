package keyholder_test

import (
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/issuer"
)

// A list is signed once, by its own line, while the line has no outcome, and numbers go
// up: two lists of one number would each pass for the newest.
func TestAListIsSignedOnce(t *testing.T) {
	w := newWorld(t, func(w *world) {
		c := w.o.CAs["corp"]
		c.Limits.SubjectKeyID, c.Limits.MaxStatus = w.ca.SubjectKeyId, time.Hour
		w.o.CAs["corp"] = c
	})
	list := func(number uint64) ([]byte, audit.Object) {
		now := time.Now().UTC().Truncate(time.Second)
		tbs, in, err := w.issuer.TBSCertList(issuer.CRL{Number: number, ThisUpdate: now, NextUpdate: now.Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		return tbs, audit.Object{"crl": in.Object()}
	}
	intend := func(o audit.Object) uint64 {
		seq := w.chain.Head().Size
		w.feed(w.line("crl", "intent", o))
		return seq
	}
	refused := func(what string, tbs []byte, seq uint64) {
		t.Helper()
		if sig, err := w.holder.SignCRL(t.Context(), "corp", tbs, seq); sig != nil || !errors.Is(err, issuer.ErrNotSigned) {
			t.Errorf("%s: %x, %v", what, sig, err)
		}
	}
	tbs, o := list(7)
	refused("before the log was fed", tbs, 1)
	seq := intend(o)
	der, err := w.issuer.SignCRL(t.Context(), w.holder, tbs, seq)
	if err != nil {
		t.Fatal(err)
	}
	if err := must[*x509.RevocationList](t)(x509.ParseRevocationList(der)).CheckSignatureFrom(w.ca); err != nil {
		t.Error(err)
	}
	refused("a second time", tbs, seq)
	refused("the same number by another line", tbs, intend(o))
	lower, o := list(6)
	refused("a lower number", lower, intend(o))
	for _, outcome := range []string{"issued", "failed", "unknown"} {
		next, o := list(8)
		seq := intend(o)
		w.feed(w.line("crl", outcome, audit.Object{"intent_seq": seq}))
		refused(outcome+" already", next, seq)
	}
	next, o := list(8)
	if _, err := w.issuer.SignCRL(t.Context(), w.holder, next, intend(o)); err != nil {
		t.Errorf("the next list: %v", err)
	}
	if sig, err := w.holder.SignOCSP(t.Context(), "corp", next); sig != nil || !errors.Is(err, issuer.ErrNotSigned) {
		t.Errorf("an answer without a key for that: %x, %v", sig, err)
	}
}
