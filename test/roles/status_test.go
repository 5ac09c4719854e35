package roles_test

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/postern-pki/postern/appliance/link"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/protocol/status"
)

// crl is a list as an honest authority would have it.
func (l *liar) crl(number uint64, change func(c *issuer.CRL)) ([]byte, audit.CRLIntent) {
	l.t.Helper()
	now := time.Now().UTC().Truncate(time.Second)
	c := issuer.CRL{Number: number, ThisUpdate: now, NextUpdate: now.Add(24 * time.Hour), Entries: []issuer.Revoked{{Serial: "55aa", Reason: issuer.KeyCompromise, At: now}}}
	if change != nil {
		change(&c)
	}
	tbs, in, err := l.issuer.TBSCertList(c)
	no(l.t, err)
	return tbs, in
}

// intendCRL writes the intent of a list into the log, and returns its line's number.
func (l *liar) intendCRL(in audit.CRLIntent) uint64 {
	l.t.Helper()
	o := store.CRLObject(in, store.CRL{ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)})
	return must(l.log.Append(l.within(), audit.Entry{Event: "crl", Outcome: "intent", Actor: audit.Actor{Kind: "system"}, Object: o}))(l.t).Record.Seq
}

func (l *liar) refusedCRL(what, name string, tbs []byte, seq uint64) {
	l.t.Helper()
	if sig, err := l.keys.SignCRL(l.within(), name, tbs, seq); sig != nil || !errors.Is(err, issuer.ErrNotSigned) {
		l.t.Errorf("%s: signature %x, %v; want ErrNotSigned", what, sig, err)
	}
	l.wants(fmt.Sprintf("a CRL of %q by line %d: ", name, seq))
}

// TestTheKeyholderSignsNoListThatNoLineHas has an authority that was taken over ask for
// lists and answers that it should not get.
func TestTheKeyholderSignsNoListThatNoLineHas(t *testing.T) {
	h := newHouse(t)
	_, end := h.honest()
	end()
	l := h.lie()
	base := uint64(time.Now().Unix()) + 1000

	tbs, in := l.crl(base, nil)
	l.refusedCRL("no line", "demo", tbs, l.log.Head().Size+100)
	l.refusedCRL("the genesis", "demo", tbs, 0)
	l.refusedCRL("a certificate's line", "demo", tbs, l.intend(l.ticket().Intent()))
	seq := l.intendCRL(in)
	l.refusedCRL("by a name that is none", "demo2", tbs, seq)
	if _, err := l.issuer.SignCRL(l.within(), l.keys, tbs, seq); err != nil {
		t.Fatalf("the list itself: %v", err)
	}
	l.refusedCRL("twice", "demo", tbs, seq)
	l.lists(base)
	t.Run("answers", l.answers)

	no(t, l.log.Close(t.Context()))
	no(t, l.keys.Close())
	a, _ := h.honest()
	h.recorded(h.wanted...)
	h.burntIsListed(a)
}

// lists are committed to in a line, and not to be signed all the same.
func (l *liar) lists(number uint64) {
	l.t.Helper()
	next := func() uint64 { number++; return number }
	commit := func(tbs []byte) audit.CRLIntent {
		sum := sha256.Sum256(tbs)
		return audit.CRLIntent{Issuer: "demo", Number: number, Digest: hex.EncodeToString(sum[:])}
	}
	tbs, in := l.crl(next(), nil)
	in.Number = next()
	l.refusedCRL("another number than its line's", "demo", tbs, l.intendCRL(in))
	tbs, in = l.crl(next(), nil)
	l.refusedCRL("another list than its line's", "demo", bytes.Replace(tbs, []byte{0x55, 0xaa}, []byte{0x55, 0xab}, 1), l.intendCRL(in))
	for what, change := range map[string]func(c *issuer.CRL){
		"longer than the limit": func(c *issuer.CRL) { c.NextUpdate = c.ThisUpdate.Add(8 * 24 * time.Hour) },
		"of tomorrow": func(c *issuer.CRL) {
			c.ThisUpdate, c.NextUpdate = c.ThisUpdate.Add(24*time.Hour), c.NextUpdate.Add(24*time.Hour)
		},
		"of yesterday": func(c *issuer.CRL) { c.ThisUpdate = c.ThisUpdate.Add(-24 * time.Hour) },
	} {
		tbs, in := l.crl(next(), change)
		l.refusedCRL(what, "demo", tbs, l.intendCRL(in))
	}
	name := l.cfg.Issuers[0].CA.RawSubject
	other := bytes.Clone(name)
	other[len(other)-1] ^= 1
	tbs, _ = l.crl(next(), nil)
	digest := sha256.Sum256(tbs)
	for what, octets := range map[string][]byte{
		"another CA's list": bytes.Replace(tbs, name, other, 1), "a certificate": l.made(func(_, _ *x509.Certificate) {}).TBS,
		"the CA's own": l.cfg.Issuers[0].CA.RawTBSCertificate, "a digest": digest[:], "a checkpoint's text": []byte(audit.NoteText(l.cfg.Origin, l.log.Head())),
		"an octet more": append(bytes.Clone(tbs), 0), "an empty sequence": {0x30, 0},
	} {
		next()
		l.refusedCRL(what, "demo", octets, l.intendCRL(commit(octets)))
	}
}

// answers are signed by their own key, and nothing else is.
func (l *liar) answers(t *testing.T) {
	i := l.cfg.Issuers[0]
	r := must(issuer.NewResponder(l.issuer, i.Status.OCSP, l.keys))(t)
	now := time.Now().UTC().Truncate(time.Second)
	good := issuer.Answer{Hash: crypto.SHA1, Serial: "55aa", ThisUpdate: now, NextUpdate: now.Add(time.Hour)}
	data := must(r.ResponseData(good))(t)
	longer, old := good, good
	longer.NextUpdate = now.Add(48 * time.Hour)
	old.ThisUpdate = now.Add(-time.Hour)
	list, _ := l.crl(1, nil)
	digest := sha256.Sum256(data)
	for what, octets := range map[string][]byte{
		"a certificate": l.ticket().Intent().TBS, "the CA's own": i.CA.RawTBSCertificate, "a list": list, "a digest": digest[:], "nothing": {},
		"longer than the limit": must(r.ResponseData(longer))(t), "of an hour ago": must(r.ResponseData(old))(t),
		"another responder": bytes.Replace(data, data[10:20], make([]byte, 10), 1), "an octet more": append(bytes.Clone(data), 0),
		"another CA": bytes.Replace(data, must(hex.DecodeString(hex.EncodeToString(keyHash(t, i.CA))))(t), make([]byte, 20), 1),
	} {
		if sig, err := l.keys.SignOCSP(l.within(), "demo", octets); sig != nil || err == nil {
			t.Errorf("%s: signature %x, %v", what, sig, err)
		}
	}
	if sig, err := l.keys.SignOCSP(l.within(), "demo2", data); sig != nil || !errors.Is(err, rpc.ErrNoKey) {
		t.Errorf("of no issuer: %x, %v", sig, err)
	}
	l.wants("an OCSP answer of \"demo\": ", "an OCSP answer of \"demo2\", which has no key for that")
	der := must(r.Respond(l.within(), good))(t)
	if a, err := ocsp.ParseResponse(der, i.CA); err != nil || a.Status != ocsp.Good {
		t.Errorf("the answer itself: %v, %v", a, err)
	}
	c := link.NewClient(l.toKeyholder(rpc.RoleDevices))
	defer func() { _ = c.Close() }()
	no(t, c.Ready(l.within()))
	for _, verb := range []link.Verb{verbSignCRL, verbSignOCSP} {
		_, err := c.Call(l.within(), verb, new(link.Encoder))
		fault(t, fmt.Sprintf("verb %d by a gate", verb), err, link.CodeRefused)
	}
}

const (
	verbSignCRL  link.Verb = 70
	verbSignOCSP link.Verb = 71
)

// keyHash is how a CertID of SHA-1 names a CA's key.
func keyHash(t *testing.T, ca *x509.Certificate) []byte {
	t.Helper()
	var spki struct {
		Algorithm asn1.RawValue
		Key       asn1.BitString
	}
	_, err := asn1.Unmarshal(ca.RawSubjectPublicKeyInfo, &spki)
	no(t, err)
	h := crypto.SHA1.New()
	_, _ = h.Write(spki.Key.RightAlign())
	return h.Sum(nil)
}

// burntIsListed wants the serial numbers that the liar left open to be listed: nobody
// knows what was signed for them.
func (h *house) burntIsListed(a interface{ Verbs() rpc.AuthorityVerbs }) {
	h.t.Helper()
	var burnt []string
	for _, r := range h.records(is("revocation", "due")) {
		burnt = append(burnt, r.Object.String("serial"))
	}
	if len(burnt) == 0 {
		h.t.Fatal("no serial was burnt")
	}
	source := a.Verbs().Status
	var listed []string
	for deadline := time.Now().Add(20 * time.Second); !slices.Equal(listed, slices.Sorted(slices.Values(burnt))); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Fatalf("burnt %v, listed %v", burnt, listed)
		}
		list, err := source.List(h.within(), "demo", [32]byte{})
		if err != nil {
			continue // it is being signed
		}
		listed = nil
		for _, e := range must(x509.ParseRevocationList(list.DER))(h.t).RevokedCertificateEntries {
			listed = append(listed, hex.EncodeToString(e.SerialNumber.Bytes()))
		}
	}
	ca := h.cfg.Issuers[0].CA
	ids := must(issuer.CertIDs(ca))(h.t)[crypto.SHA256]
	answer := must(source.Answer(h.within(), "demo", status.CertID{Hash: crypto.SHA256, NameHash: ids[0], KeyHash: ids[1], Serial: burnt[0]}))(h.t)
	if r, err := ocsp.ParseResponse(answer.DER, ca); err != nil || r.Status != ocsp.Revoked || strings.TrimLeft(r.SerialNumber.Text(16), "0") != strings.TrimLeft(burnt[0], "0") {
		h.t.Errorf("the answer about a burnt serial: %+v, %v", r, err)
	}
}
