package pipeline_test

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/scep"
	"github.com/postern-pki/postern/protocol/scep/client"
)

// Covers: S-024, S-110, S-111, S-112, S-113, S-116
func TestRenewal(t *testing.T) {
	d := at(t, "demo")
	const cn = "renew.demo.example"
	k0, k1 := newKey(t), newKey(t)
	first, _ := enrolled(t, d, "demo", cn, k0)
	request := must(d.Request(client.Message{Type: scep.RenewalReq, Signer: first.Raw, SignerKey: k0, CSR: ask(t, k1, cn, "")}))(t)
	second := must(d.Do(t.Context(), request))(t).Certificate
	was, is := show(t, first), show(t, second)
	if is.Renewal != 1 || is.Lineage != was.Lineage || is.Predecessor != was.Serial {
		t.Errorf("%+v renewed as %+v", was, is)
	}
	if again := must(d.Do(t.Context(), request))(t).Certificate; !again.Equal(second) {
		t.Errorf("the same renewal got serials %x and %x", second.SerialNumber, again.SerialNumber)
	}
	_, err := renew(t, d, scep.RenewalReq, second, k1, ask(t, k0, cn, ""))
	refused(t, err).is(t, badRequest, "enroll again").reasons(t, "renewal.max_count")
	_, err = renew(t, d, scep.RenewalReq, first, k0, ask(t, newKey(t), cn, ""))
	refused(t, err).is(t, badRequest, "enroll again").reasons(t, "renewal.max_count")
}

// Covers: S-112
func TestRenewalWithTheSameKey(t *testing.T) {
	const cn = "samekey.demo.example"
	d, key := at(t, "demo"), newKey(t)
	cert, _ := enrolled(t, d, "demo", cn, key)
	_, err := renew(t, d, scep.RenewalReq, cert, key, ask(t, key, cn, ""))
	refused(t, err).is(t, badRequest, "new key").reasons(t, "renewal.new_key")
}

// TestRenewalsAtOnce spends the last renewal of a budget from 16 sides.
func TestRenewalsAtOnce(t *testing.T) {
	fresh := must(newKeys(16))(t)
	for _, tt := range []struct {
		profile, cn string
		before      int
	}{{"demo", "last-demo.demo.example", 0}, {"many", "last-many.demo.example", 2}} {
		t.Run(tt.profile, func(t *testing.T) {
			d, key := at(t, tt.profile), newKey(t)
			cert, _ := enrolled(t, d, tt.profile, tt.cn, key)
			for i := range tt.before {
				cert, key = must(renew(t, d, scep.RenewalReq, cert, key, ask(t, keys[i], tt.cn, "")))(t), keys[i]
			}
			got, errs := together(len(fresh), func(i int) (*x509.Certificate, error) {
				return renew(t, d, scep.RenewalReq, cert, key, ask(t, fresh[i], tt.cn, ""))
			})
			if len(got) != 1 {
				t.Fatalf("%d renewals; %v", len(got), errs)
			}
			for _, err := range errs {
				refused(t, err).is(t, badRequest, "enroll again").reasons(t, "renewal.max_count")
			}
			// A new challenge begins a new lineage, from the same signer.
			again := must(renew(t, d, scep.PKCSReq, cert, key, ask(t, newKey(t), tt.cn, challenge(t, tt.profile, tt.cn).Challenge)))(t)
			if is := show(t, again); is.Renewal != 0 || is.Lineage == show(t, cert).Lineage {
				t.Errorf("a new lineage: %+v", is)
			}
		})
	}
}

// TestPKCSReqByOurs: what a PKCSReq that a certificate of ours signed is, depends
// on its challenge.
//
// Covers: S-113, S-115
func TestPKCSReqByOurs(t *testing.T) {
	d := at(t, "many")
	const cn = "ours.demo.example"
	key := keys[0]
	cert, spent := enrolled(t, d, "many", cn, key)
	was := show(t, cert)
	other, spentByOther := enrolled(t, d, "many", cn, keys[1])
	if show(t, other).Lineage == was.Lineage {
		t.Fatal("two enrollments share a lineage")
	}
	for i, tt := range []struct {
		what, challenge string
		renewal         int
		same            bool
	}{
		{"no challenge", "", 1, true},
		{"the spent challenge of its lineage", spent.Challenge, 2, true},
		{"a fresh challenge", challenge(t, "many", cn).Challenge, 0, false},
	} {
		t.Run(tt.what, func(t *testing.T) {
			is := show(t, must(renew(t, d, scep.PKCSReq, cert, key, ask(t, keys[2+i], cn, tt.challenge)))(t))
			if is.Renewal != tt.renewal || (is.Lineage == was.Lineage) != tt.same {
				t.Errorf("%+v became %+v", was, is)
			}
		})
	}
	for _, tt := range []struct{ what, challenge, why string }{
		{"the spent challenge of another lineage", spentByOther.Challenge, "spent"},
		{"a challenge for other names", challenge(t, "many", "not-ours.demo.example").Challenge, "other-names"},
		{"a challenge of another profile", challenge(t, "demo", cn).Challenge, "other-profile"},
		{"an unknown challenge", "00000000000000000000000000", "unknown"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			_, err := renew(t, d, scep.PKCSReq, cert, key, ask(t, keys[10], cn, tt.challenge))
			refused(t, err).is(t, badRequest, notValid).reasons(t, "challenge").challengeWhy(t, tt.why).event(t, "security", "alert")
		})
	}
}

// TestASignerWithOtherNames signs another device's request with a certificate of
// its own: it learns nothing of the challenge in it, and however often that is
// done, the challenge stays good for whom it is for.
func TestASignerWithOtherNames(t *testing.T) {
	d := at(t, "many")
	cert, _ := enrolled(t, d, "many", "me.demo.example", keys[0])
	const you = "you.demo.example"
	c := challenge(t, "many", you)
	captured := ask(t, keys[1], you, c.Challenge)
	for range 6 {
		_, err := renew(t, d, scep.PKCSReq, cert, keys[0], captured)
		refused(t, err).is(t, badMessageCheck, notProven).reasons(t, "proof").event(t, "security", "alert")
	}
	_, err := renew(t, d, scep.PKCSReq, cert, keys[0], ask(t, keys[1], you, ""))
	refused(t, err).is(t, badMessageCheck, notProven)
	must(send(t, d, selfSigned(t, keys[1], captured)))(t)
}

// Covers: S-111
func TestASelfSignedRenewal(t *testing.T) {
	const cn = "self.demo.example"
	d, key := at(t, "many"), keys[0]
	c := challenge(t, "many", cn)
	for _, word := range []string{"", c.Challenge} {
		m := selfSigned(t, key, ask(t, key, cn, word))
		m.Type = scep.RenewalReq
		_, err := send(t, d, m)
		refused(t, err).is(t, badRequest, "a renewal is signed by a certificate of this CA").reasons(t, "renewal.signer")
	}
	must(enroll(t, d, key, cn, c.Challenge))(t) // the challenge was not looked at
}

// Covers: S-114
func TestAnExpiredSigner(t *testing.T) {
	t.Parallel() // it waits
	const cn = "late.demo.example"
	d := at(t, "short")
	cert, spent := enrolled(t, d, "short", cn, keys[0])
	time.Sleep(time.Until(cert.NotAfter) + 1100*time.Millisecond)
	for _, tt := range []struct {
		kind      int
		challenge string
	}{{scep.RenewalReq, ""}, {scep.PKCSReq, ""}, {scep.PKCSReq, spent.Challenge}} {
		_, err := renew(t, d, tt.kind, cert, keys[0], ask(t, keys[1], cn, tt.challenge))
		refused(t, err).is(t, badRequest, "has expired: enroll again with a new challenge").reasons(t, "renewal.expired")
	}
	// A new challenge is enough, whoever signs.
	must(renew(t, d, scep.PKCSReq, cert, keys[0], ask(t, keys[1], cn, challenge(t, "short", cn).Challenge)))(t)
}

// Covers: S-114
func TestACertificateOfAnotherProfile(t *testing.T) {
	const cn = "foreign.demo.example"
	key := newKey(t)
	cert, _ := enrolled(t, at(t, "interop"), "interop", cn, key)
	d := at(t, "demo")
	for _, kind := range []int{scep.RenewalReq, scep.PKCSReq} {
		_, err := renew(t, d, kind, cert, key, ask(t, keys[0], cn, ""))
		refused(t, err).is(t, badRequest, "another profile").reasons(t, "renewal.profile")
	}
}

// TestARevokedSigner: what an operator revoked renews nothing, and whoever has its key
// gets nothing; its owner enrolls again with a new challenge.
//
// Covers: S-114, A-6
func TestARevokedSigner(t *testing.T) {
	const cn = "revoked.demo.example"
	d, key := at(t, "many"), keys[0]
	cert, spent := enrolled(t, d, "many", cn, key)
	if _, errOut, code := shared.Postern(t.Context(), nil, "cert", "revoke", hex.EncodeToString(cert.SerialNumber.Bytes()), "--reason", "keyCompromise", "--apply"); code != 0 {
		t.Fatalf("postern cert revoke: exit %d: %s", code, errOut)
	}
	for _, tt := range []struct {
		kind      int
		challenge string
	}{{scep.RenewalReq, ""}, {scep.PKCSReq, ""}, {scep.PKCSReq, spent.Challenge}} {
		_, err := renew(t, d, tt.kind, cert, key, ask(t, keys[1], cn, tt.challenge))
		refused(t, err).is(t, badRequest, "revoked").reasons(t, "renewal.revoked")
	}
	must(enroll(t, d, keys[1], cn, challenge(t, "many", cn).Challenge))(t)
}

// TestARenewalThatProvesNothing asks for other names than the signer's, or for a
// key that somebody else has.
//
// Covers: S-091, S-114
func TestARenewalThatProvesNothing(t *testing.T) {
	const cn = "mine.demo.example"
	d := at(t, "many")
	cert, _ := enrolled(t, d, "many", cn, keys[0])
	for _, csr := range [][]byte{ask(t, keys[1], "yours.demo.example", ""), ask(t, keys[1], cn, "", cn)} {
		_, err := renew(t, d, scep.RenewalReq, cert, keys[0], csr)
		refused(t, err).is(t, badMessageCheck, notProven).reasons(t, "proof")
	}
	_, err := renew(t, d, scep.RenewalReq, cert, keys[0], resigned(t, ask(t, keys[1], cn, ""), keys[0]))
	refused(t, err).is(t, badMessageCheck, notProven).rejected(t, "CSR signature")
}

// TestAForeignSigner names the CA as the issuer of its certificate, which it is
// not: that gets past the gate, and not past the authority.
//
// Covers: S-111, S-114
func TestAForeignSigner(t *testing.T) {
	const cn = "fake.demo.example"
	d := at(t, "many")
	cert, _ := enrolled(t, d, "many", cn, keys[0])
	issuer := &x509.Certificate{RawSubject: d.CA.CA.RawSubject, SubjectKeyId: d.CA.CA.SubjectKeyId}
	for what, template := range map[string]*x509.Certificate{
		"a serial of its own":   {SerialNumber: d.CA.CA.SerialNumber, Subject: name(cn), NotBefore: cert.NotBefore, NotAfter: cert.NotAfter},
		"the serial of another": {SerialNumber: cert.SerialNumber, RawSubject: cert.RawSubject, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter},
	} {
		t.Run(what, func(t *testing.T) {
			fake := must(x509.CreateCertificate(rand.Reader, template, issuer, &keys[3].PublicKey, keys[3]))(t)
			for _, kind := range []int{scep.RenewalReq, scep.PKCSReq} {
				_, err := send(t, d, client.Message{Type: kind, Signer: fake, SignerKey: keys[3], CSR: ask(t, keys[4], cn, "")})
				refused(t, err).is(t, badMessageCheck, notProven).reasons(t, "proof")
			}
		})
	}
}
