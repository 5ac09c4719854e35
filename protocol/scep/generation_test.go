package scep_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/cms"
)

// stage gives the world a next generation, whose RA holds the keys that others have
// elsewhere.
func (w *world) stage(t testing.TB) (next protocol.Generation, raSign, raDecrypt holder) {
	t.Helper()
	k := must(keys())(t)
	ca := certify(t, "next ca", ecKey(t), nil)
	raSign, raDecrypt = certify(t, "next ra sign", k[1], &ca), certify(t, "next ra decrypt", k[4], &ca)
	next = protocol.Generation{Name: "2027", RASign: raSign.cert, RADecrypt: raDecrypt.cert, CA: ca.cert}
	w.service.Generations = append(w.service.Generations, next)
	w.service.Next = next.Name
	w.more = []holder{raSign, raDecrypt}
	return next, raSign, raDecrypt
}

// to makes the envelope for another recipient, or several.
func to(t testing.TB, w *world, recipients ...holder) func(*request) {
	return func(r *request) {
		csr := w.csr(t, r.csrKey)
		r.content = func([]byte) []byte {
			out := must(cms.Envelop(rand.Reader, csr, recipients[0].parsed(t), r.cipher))(t)
			for _, h := range recipients[1:] {
				out = alsoTo(t, out, must(cms.Envelop(rand.Reader, csr, h.parsed(t), r.cipher))(t))
			}
			return out
		}
	}
}

// alsoTo adds the recipient of one envelope to another.
func alsoTo(t testing.TB, envelope, other []byte) []byte {
	t.Helper()
	read := func(der []byte) (c contentInfo, e envelopedData) {
		if _, err := unmarshal(der, &c); err != nil {
			t.Fatal(err)
		}
		if _, err := unmarshal(c.Content.Bytes, &e); err != nil {
			t.Fatal(err)
		}
		return c, e
	}
	c, e := read(envelope)
	_, o := read(other)
	e.Recipients.FullBytes, e.Recipients.Bytes = nil, slices.Concat(e.Recipients.Bytes, o.Recipients.Bytes)
	c.Content = tagged(2, 0, marshal(e))
	return marshal(c)
}

// The RecipientInfo decides which generation answers: its RA opens the envelope and
// signs, whether the request is granted or not.
//
// Covers: S-044, S-046, S-086
func TestTheRecipientDecidesTheGeneration(t *testing.T) {
	w := newWorld(t)
	_, raSign, raDecrypt := w.stage(t)
	signer := func(change func(*request)) (status string, by []byte) {
		r := w.certRep(t, w.post(t, w.message(t, change)))
		return r.status, r.Signer.Raw
	}
	w.anyRA = true
	for _, c := range []struct {
		what   string
		change func(*request)
		status string
		by     holder
	}{
		{"to the current one", nil, "0", w.raSign},
		{"to the next one", to(t, w, raDecrypt), "0", raSign},
		{"to the next one and a stranger", to(t, w, raDecrypt, w.other), "0", raSign},
		{"to both", to(t, w, raDecrypt, w.raDecrypt), "2", w.raSign},
		{"to the next one twice", to(t, w, raDecrypt, raDecrypt), "2", w.raSign},
		{"to a stranger", to(t, w, w.other), "2", w.raSign},
		{"to the RA that signs", to(t, w, raSign), "2", w.raSign},
		{"of no type, to the next one", func(r *request) { to(t, w, raDecrypt)(r); r.attrs[1] = messageType("99") }, "2", raSign},
		{"by a cipher that is not allowed", func(r *request) { r.cipher = cms.DES3CBC; to(t, w, raDecrypt)(r) }, "2", raSign},
	} {
		if status, by := signer(c.change); status != c.status || !bytes.Equal(by, c.by.cert) {
			t.Errorf("%s: status %s, signed by the wrong RA: %v", c.what, status, !bytes.Equal(by, c.by.cert))
		}
	}
}

// A signer that names a CA of another generation as its issuer renews all the same.
func TestARenewalCrossesGenerations(t *testing.T) {
	w := newWorld(t)
	w.stage(t)
	next := must(x509.ParseCertificate(w.service.Generations[1].CA))(t)
	old := certify(t, "device", w.device.key, &w.ca)
	w.anyRA = true
	r := w.certRep(t, w.post(t, w.message(t, func(r *request) {
		r.signer, r.csrKey = old, w.other.key
		to(t, w, w.more[1])(r)
	})))
	if r.status != "0" || !bytes.Equal(r.Signer.RawIssuer, next.RawSubject) {
		t.Errorf("status %s %s, by %s", r.status, r.failText, r.Signer.RawIssuer)
	}
}

// GetNextCACert has the next certificates in the outer and in the inner set, signed
// by the current RA, once an hour.
//
// Covers: S-040, S-041, S-043, S-045
func TestNextCA(t *testing.T) {
	w := newWorld(t)
	const path = "/scep/wifi?operation=GetNextCACert"
	if r := w.do(t, "GET", path, nil); r.status != http.StatusNotFound {
		t.Errorf("without a next CA: %d", r.status)
	}
	next, _, _ := w.stage(t)
	r := w.do(t, "GET", path, nil)
	if r.status != http.StatusOK || r.header.Get("Content-Type") != "application/x-x509-next-ca-cert" {
		t.Fatalf("%d %v", r.status, r.header)
	}
	if got := w.lastRejected(t); got.NextCA != "2027" || !got.Served || got.Profile != "wifi" {
		t.Errorf("recorded: %+v", got)
	}
	s := must(cms.ParseSigned(must(cms.DER(r.body, cms.DefaultLimits()))(t)))(t)
	if err := s.Verify(); err != nil || !bytes.Equal(s.Signer.Raw, w.raSign.cert) {
		t.Errorf("not signed by the current RA: %v", err)
	}
	want := [][]byte{next.RASign, next.RADecrypt, next.CA}
	inner := must(cms.ParseCertsOnly(must(cms.DER(s.Content, cms.DefaultLimits()))(t)))(t)
	if !slices.EqualFunc(inner, want, bytes.Equal) || !slices.EqualFunc(s.Certificates, append([][]byte{w.raSign.cert}, want...), func(c *cms.Certificate, der []byte) bool {
		return bytes.Equal(c.Raw, der)
	}) {
		t.Errorf("%d certificates inside, %d outside", len(inner), len(s.Certificates))
	}
	if again := w.do(t, "GET", path, nil); !bytes.Equal(again.body, r.body) || w.signs != 1 {
		t.Errorf("the key signed for each who asks: %d times", w.signs)
	}
	now := arrived.Add(2 * time.Hour)
	w.now = func() time.Time { return now }
	if w.do(t, "GET", path, nil); w.signs != 2 {
		t.Error("an old answer is given out for ever")
	}
	w.service.Next = ""
	if r := w.do(t, "GET", path, nil); r.status != http.StatusNotFound {
		t.Errorf("after the switch: %d", r.status)
	}
}

// What a profile says of the form of its answers is what devices get.
//
// Covers: S-038, S-067, S-126
func TestTheFormOfAnswers(t *testing.T) {
	w := newWorld(t)
	certs := func() [][]byte {
		r := w.do(t, "GET", "/scep/wifi?operation=GetCACert", nil)
		return must(cms.ParseCertsOnly(must(cms.DER(r.body, cms.DefaultLimits()))(t)))(t)
	}
	root := w.other.cert
	w.service.NoRoot = true
	if want := [][]byte{w.raSign.cert, w.raDecrypt.cert, w.ca.cert}; !slices.EqualFunc(certs(), want, bytes.Equal) {
		t.Error("the root is there, or something else is not")
	}
	w.service.CAFirst, w.service.NoRoot = true, false
	if want := [][]byte{w.ca.cert, root, w.raSign.cert, w.raDecrypt.cert}; !slices.EqualFunc(certs(), want, bytes.Equal) {
		t.Error("the CA is not first, in the order of the chain")
	}
	w.service.NoRoot, w.service.Current().Chain = true, nil
	if want := [][]byte{w.ca.cert, w.raSign.cert, w.raDecrypt.cert}; !slices.EqualFunc(certs(), want, bytes.Equal) {
		t.Error("a CA that is its own root is left out")
	}
	w.service.Current().Chain = [][]byte{root}
	for _, c := range []struct {
		chain, noRoot bool
		want          int
	}{{false, false, 1}, {true, false, 3}, {true, true, 2}} {
		w.service.ReplyChain, w.service.NoRoot = c.chain, c.noRoot
		r := w.certRep(t, w.post(t, w.message(t, nil)))
		e := must(cms.ParseEnvelope(must(cms.DER(r.Content, cms.DefaultLimits()))(t)))(t)
		key := must(w.device.key.(*rsa.PrivateKey).Decrypt(rand.Reader, e.Recipients[0].EncryptedKey, nil))(t)
		list := must(cms.ParseCertsOnly(must(cms.DER(must(e.Open(key))(t), cms.DefaultLimits()))(t)))(t)
		if len(list) != c.want || c.want > 1 && !bytes.Equal(list[1], w.ca.cert) {
			t.Errorf("chain %v, root left out %v: %d certificates", c.chain, c.noRoot, len(list))
		}
	}
	for _, off := range []bool{false, true} {
		w.service.NoFailInfoText = off
		if r := w.certRep(t, w.post(t, w.message(t, to(t, w, w.other)))); (r.failText == "") != off || r.failInfo != "1" {
			t.Errorf("failInfoText off %v: %q, failInfo %s", off, r.failText, r.failInfo)
		}
	}
}
