package roles_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/appliance"
	"github.com/postern-pki/postern/appliance/link"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// A gate has the links of the devices' gate, and says what it likes over them.
type gate struct {
	*house
	*rpc.Authority
	raw  *link.Client // to the authority
	keys *rpc.Keyholder
	a    *appliance.Authority
	made int
}

func newGate(t *testing.T) *gate {
	h := newHouse(t)
	a, _ := h.honest()
	g := &gate{house: h, a: a, Authority: rpc.NewAuthority(toAuthority(a, rpc.RoleDevices)), keys: rpc.NewKeyholder(h.toKeyholder(rpc.RoleDevices)), raw: link.NewClient(toAuthority(a, rpc.RoleDevices))}
	t.Cleanup(func() { _, _, _ = g.Close(), g.keys.Close(), g.raw.Close() })
	for _, ready := range []func(context.Context) error{g.Ready, g.keys.Ready, g.raw.Ready} {
		no(t, ready(h.within()))
	}
	return g
}

// toAuthority is a link of a role to an authority, as the authority serves it.
func toAuthority(a *appliance.Authority, role string) link.ClientOptions {
	s := link.NewServer(link.ServerOptions{Self: hello(rpc.RoleAuthority), Verbs: a.Verbs().Table(),
		Refused: func(role string, v link.Verb, why error) { a.Refuse(role, uint8(v), why) }})
	return link.ClientOptions{Self: hello(role), Role: rpc.RoleAuthority, Dial: joint{s, role}}
}

func newKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	return must(rsa.GenerateKey(rand.Reader, 2048))(t)
}

// challenge is created by the administrator, through the operators' gate.
func (g *gate) challenge(profile, cn string) []byte {
	g.t.Helper()
	body := must(json.Marshal([]map[string]any{{"profile": profile, "subject": "CN=" + cn}}))(g.t)
	o := rpc.NewAuthority(toAuthority(g.a, rpc.RoleOperators))
	defer func() { _ = o.Close() }()
	no(g.t, o.Ready(g.within()))
	answer, err := o.Operate(g.within(), administrator(http.MethodPost, "/api/v1/challenges", body))
	var made []struct{ Challenge string }
	if err != nil || answer.Code != http.StatusCreated || json.Unmarshal(answer.Body, &made) != nil || len(made) != 1 {
		g.t.Fatalf("%d %s, %v", answer.Code, answer.Body, err)
	}
	return []byte(made[0].Challenge)
}

// administrator is what the operators' gate says of a call by the machine's root.
func administrator(method, path string, body []byte) rpc.Call {
	return rpc.Call{Actor: rpc.Actor{Kind: "operator", ID: "uid:0", Source: "local"}, Allowed: true, Method: method, Path: path, Body: body}
}

// message is a device's, opened as a gate opens it: with the keyholder's help.
func (g *gate) message(kind int, signer []byte, signerKey, key *rsa.PrivateKey, cn string, challenge []byte) protocol.Request {
	g.t.Helper()
	csr := must(client.NewCSR(key, client.CSR{Subject: pkix.Name{CommonName: cn}, Challenge: challenge}))(g.t)
	g.made++
	ra := g.cfg.Issuers[0].RADecrypt
	der := must(client.BuildRequest(client.Message{
		Type: kind, TransactionID: fmt.Sprint("transaction ", g.made), SenderNonce: bytes.Repeat([]byte{1}, 16), Signer: signer, SignerKey: signerKey,
		Recipient: ra.Raw, CSR: csr, Cipher: cms.AES128CBC, Digest: crypto.SHA256,
	}))(g.t)
	signed := must(cms.ParseSigned(must(cms.DER(der, cms.DefaultLimits()))(g.t)))(g.t)
	envelope := must(cms.ParseEnvelope(signed.Content))(g.t)
	content := must(g.keys.Open(g.within(), rpc.KeyIDOf(ra), envelope.Recipients[0].EncryptedKey, rpc.Transport{Size: 16}))(g.t)
	return protocol.Request{Protocol: "scep", Profile: "interop", Source: "192.0.2.7:4711", Arrived: time.Now(), Proof: protocol.Proof{
		SignerCert: signed.Signer.Raw, Digest: signed.Digest, SignedAttrs: signed.SignedAttrs, Signature: signed.Signature, Envelope: signed.Content, ContentKey: content,
	}}
}

// enrollment is the message of a device that has no certificate yet.
func (g *gate) enrollment(key *rsa.PrivateKey, cn string, challenge []byte) protocol.Request {
	g.t.Helper()
	return g.message(scep.PKCSReq, selfSigned(g.t, key), key, key, cn, challenge)
}

func selfSigned(t *testing.T, key *rsa.PrivateKey) []byte {
	t.Helper()
	return must(site.SelfSigned(key, pkix.Name{CommonName: "device"}, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)))(t)
}

// issued wants a certificate.
func (g *gate) issued(what string, r protocol.Request) []byte {
	g.t.Helper()
	out, err := g.Submit(g.within(), r)
	if err != nil || out.Status != protocol.Issued || len(out.Certificates) == 0 {
		g.t.Fatalf("%s: %+v, %v", what, out, err)
	}
	return out.Certificates[0]
}

// refuses wants a refusal of a kind, and one record of it that gives the reason.
func (g *gate) refuses(what string, r protocol.Request, kind protocol.Kind, why ...string) {
	g.t.Helper()
	out, err := g.Submit(g.within(), r)
	if err != nil || out.Status != protocol.Refused || out.Refusal == nil || out.Refusal.Kind != kind || len(out.Certificates) != 0 {
		g.t.Errorf("%s: %+v, %v", what, out, err)
		return
	}
	all := g.records(func(a audit.Record) bool { return a.Request == out.RequestID && is("enroll", "refused")(a) })
	if len(all) != 1 {
		g.t.Errorf("%s: %d records of the refusal", what, len(all))
		return
	}
	var saw []string
	for _, reason := range all[0].Object.Objects("reasons") {
		saw = append(saw, reason.String("rule")+": "+reason.String("saw"))
	}
	if !slices.ContainsFunc(saw, func(s string) bool {
		return slices.Contains(why, s) || slices.Contains(why, strings.SplitN(s, ":", 2)[0])
	}) {
		g.t.Errorf("%s: the log says %q, none of %q", what, saw, why)
	}
}

// resign signs another device's attributes with a key that is at hand.
func resign(t *testing.T, key *rsa.PrivateKey, attributes []byte) []byte {
	t.Helper()
	sum := sha256.Sum256(attributes)
	return must(rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:]))(t)
}

const (
	badSignature = "proof: signature over the signed attributes"
	rejectedSays = "rejected"
)

// TestAGateThatLies has the devices' gate taken over: what it sends proves nothing
// that the device did not sign.
func TestAGateThatLies(t *testing.T) {
	g := newGate(t)
	victim, own := newKey(t), newKey(t)
	secret := g.challenge("interop", "victim.demo.example")
	good := g.enrollment(victim, "victim.demo.example", secret)
	other := g.enrollment(own, "own.demo.example", nil)
	with := func(change func(p *protocol.Proof)) protocol.Request {
		r := good
		change(&r.Proof)
		return r
	}
	issuances := func() int { return len(g.records(is("enroll", "intent"))) }
	before := issuances()
	for what, r := range map[string]protocol.Request{
		"a signature over other attributes": with(func(p *protocol.Proof) { p.SignedAttrs = other.Proof.SignedAttrs }),
		"another transaction in the attributes": with(func(p *protocol.Proof) {
			p.SignedAttrs = bytes.Replace(p.SignedAttrs, []byte("transaction 1"), []byte("transaction 9"), 1)
		}),
		"another's signature":               with(func(p *protocol.Proof) { p.Signature = other.Proof.Signature }),
		"the gate's own signature":          with(func(p *protocol.Proof) { p.Signature = resign(t, own, p.SignedAttrs) }),
		"the gate's own certificate":        with(func(p *protocol.Proof) { p.SignerCert = other.Proof.SignerCert }),
		"another digest's name":             with(func(p *protocol.Proof) { p.Digest = crypto.SHA512 }),
		"no digest":                         with(func(p *protocol.Proof) { p.Digest = 200 }),
		"another envelope with its own key": with(func(p *protocol.Proof) { p.Envelope, p.ContentKey = other.Proof.Envelope, other.Proof.ContentKey }),
		"another envelope, re-encrypted":    with(func(p *protocol.Proof) { p.Envelope, p.ContentKey = g.sealed(own, "own.demo.example", secret) }),
		"no signature":                      with(func(p *protocol.Proof) { p.Signature = nil }),
		"no attributes":                     with(func(p *protocol.Proof) { p.SignedAttrs = nil }),
	} {
		g.refuses(what, r, protocol.BadProof, badSignature)
	}
	for what, key := range map[string][]byte{"another content key": other.Proof.ContentKey, "a content key of no length": nil, "a longer content key": make([]byte, 32)} {
		g.refuses(what, with(func(p *protocol.Proof) { p.ContentKey = key }), protocol.BadProof,
			"proof: envelope content", "proof: CSR encoding", "proof: CSR structure") // noise has good padding now and then
	}
	// Its own signer and its own attributes, and the device's envelope: the CSR in it is
	// for another key.
	mine := good
	mine.Proof.SignerCert = other.Proof.SignerCert
	mine.Proof.SignedAttrs = bytes.Replace(other.Proof.SignedAttrs, digestOf(other.Proof.Envelope), digestOf(good.Proof.Envelope), 1)
	mine.Proof.Signature = resign(t, own, mine.Proof.SignedAttrs)
	g.refuses("the device's CSR, signed by the gate", mine, protocol.BadProof, "proof: the CSR's key is not the signer's")
	if n := issuances(); n != before {
		t.Fatalf("%d intents were recorded for lies", n-before)
	}

	// None of this cost the device anything: the true message is good still.
	der := g.issued("the device's own message", good)
	t.Run("a replay", func(t *testing.T) {
		before := issuances()
		for range 3 {
			if again := g.issued("the same message again", good); !bytes.Equal(again, der) {
				t.Error("another certificate for the same message")
			}
		}
		if n := issuances(); n != before {
			t.Errorf("%d more intents", n-before)
		}
		if n := len(g.records(is("enroll", "repeated"))); n != 3 {
			t.Errorf("%d of 3 replays are recorded", n)
		}
		// The challenge is spent: another message with it gets nothing.
		g.refuses("the challenge again", g.enrollment(own, "victim.demo.example", secret), protocol.NotAllowed, "challenge")
	})
	t.Run("a renewal without the device's key", func(t *testing.T) { g.renewals(t, der, victim, own) })
	t.Run("a profile", func(t *testing.T) { g.profiles(t, good) })
	t.Run("a source", func(t *testing.T) { g.sources(t, other) })
	t.Run("an operator's act", func(t *testing.T) { g.operate(t) })
	t.Run("what is no message", func(t *testing.T) { g.noise(t) })
}

func digestOf(p []byte) []byte {
	sum := sha256.Sum256(p)
	return sum[:]
}

// sealed is an envelope that the gate makes, for a CSR of its own.
func (g *gate) sealed(key *rsa.PrivateKey, cn string, challenge []byte) (envelope, contentKey []byte) {
	r := g.enrollment(key, cn, challenge)
	return r.Proof.Envelope, r.Proof.ContentKey
}

// renewals are signed by the certificate that is renewed; the gate has seen that
// one, and not its key.
func (g *gate) renewals(t *testing.T, der []byte, victim, own *rsa.PrivateKey) {
	next := newKey(t)
	captured := g.message(scep.RenewalReq, der, victim, next, "victim.demo.example", nil)
	forged := captured
	forged.Proof.Signature = resign(g.t, own, forged.Proof.SignedAttrs)
	g.refuses("signed by another key", forged, protocol.BadProof, badSignature)
	claimed := g.message(scep.RenewalReq, selfSigned(t, own), own, own, "victim.demo.example", nil)
	claimed.Proof.SignerCert = der
	g.refuses("another's certificate beside the gate's signature", claimed, protocol.BadProof, badSignature)
	// A certificate with the victim's names and the gate's key is not one of ours.
	old := must(x509.ParseCertificate(der))(t)
	twin := must(x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: old.SerialNumber, RawSubject: old.RawSubject, NotBefore: old.NotBefore, NotAfter: old.NotAfter},
		&x509.Certificate{RawSubject: old.RawIssuer}, own.Public(), own))(t)
	g.refuses("a twin of the victim's certificate", g.message(scep.RenewalReq, twin, own, own, "victim.demo.example", nil), protocol.NotAllowed, "renewal.signer")
	swapped := captured
	swapped.Proof.Envelope, swapped.Proof.ContentKey = g.sealed(own, "victim.demo.example", nil)
	g.refuses("the gate's CSR in the device's renewal", swapped, protocol.BadProof, badSignature)
	g.issued("the device's own renewal", captured)
}

// profiles are the authority's: one that is not there is nobody's, and a challenge
// is good for its own alone.
func (g *gate) profiles(t *testing.T, good protocol.Request) {
	if _, err := g.Service(g.within(), "nobody"); !errors.Is(err, protocol.ErrUnknownProfile) {
		t.Errorf("a profile that is not there offers something: %v", err)
	}
	unknown := good
	unknown.Profile = "nobody"
	if out, err := g.Submit(g.within(), unknown); !errors.Is(err, protocol.ErrUnknownProfile) || out.Status == protocol.Issued {
		t.Errorf("a profile that is not there: %+v, %v", out, err)
	}
	if all := g.records(func(r audit.Record) bool {
		return is("message", rejectedSays)(r) && r.Object.String("profile") == "nobody" && r.Object.String("why") == "unknown profile"
	}); len(all) != 1 {
		t.Errorf("%d records of a profile that is not there", len(all))
	}
	key, cn := newKey(t), "other.demo.example"
	r := g.enrollment(key, cn, g.challenge("interop", cn))
	r.Profile = "demo"
	g.refuses("another profile than the challenge's", r, protocol.NotAllowed, "challenge")
}

// sources are the gate's word: they are recorded, and nothing else. None keeps a
// refusal out of the log.
func (g *gate) sources(t *testing.T, r protocol.Request) {
	for what, source := range map[string]string{"an address": "203.0.113.99:1", "no text": "\xff\xfe\x00", "a long one": strings.Repeat("x", 1024), "quotation marks": strings.Repeat(`"`, 1024), "nothing": ""} {
		r.Source = source
		out, err := g.Submit(g.within(), r)
		if err != nil || out.Status != protocol.Refused {
			t.Errorf("%s: %+v, %v", what, out, err)
			continue
		}
		all := g.records(func(a audit.Record) bool { return a.Request == out.RequestID && is("enroll", "refused")(a) })
		if len(all) != 1 || all[0].Actor.Kind != "device" || what == "an address" && all[0].Actor.Source != source {
			t.Errorf("%s: %+v", what, all)
		}
		id, err := g.Reject(g.within(), protocol.Rejected{Protocol: source + strings.Repeat("p", 60<<10), Source: source, Operation: source, Why: "a test", Profile: source})
		if all := g.records(func(a audit.Record) bool { return a.Request == id }); err != nil || len(all) != 1 {
			t.Errorf("%s: a rejected message has %d records: %v", what, len(all), err)
		}
	}
}

// operate sends operators' acts over the devices' link.
func (g *gate) operate(t *testing.T) {
	challenges := len(g.records(is("challenge", "created")))
	body := []byte(`[{"profile":"interop","subject":"CN=gate.demo.example"}]`)
	for _, c := range []rpc.Call{administrator(http.MethodPost, "/api/v1/challenges", body), administrator(http.MethodGet, "/api/v1/status", nil)} {
		answer, err := g.Operate(g.within(), c)
		if err != nil || answer.Code != http.StatusForbidden {
			t.Errorf("%s %s: %d %s, %v", c.Method, c.Path, answer.Code, answer.Body, err)
		}
	}
	if n := len(g.records(is("challenge", "created"))); n != challenges {
		t.Errorf("%d challenges were created by the devices' gate", n-challenges)
	}
	refused := g.records(is("operator", "refused"))
	alerts := g.records(func(r audit.Record) bool {
		return is("security", "alert")(r) && r.Object.String("what") == "an operator's act came from another gate"
	})
	if len(refused) != 2 || len(alerts) != 2 {
		t.Fatalf("%d refusals and %d alerts are recorded", len(refused), len(alerts))
	}
	if r := refused[0]; r.Actor != (audit.Actor{Kind: "gate", ID: rpc.RoleDevices}) || r.Object.String("path") != "/api/v1/challenges" || r.Object.String("claims") != "uid:0" {
		t.Errorf("recorded: %+v", r)
	}
}

// noise is what no gate that is its own sends: verbs that its link does not have,
// and octets that are no message.
func (g *gate) noise(t *testing.T) {
	const verbSubmit, verbNone = link.Verb(2), link.Verb(99)
	e := new(link.Encoder)
	e.String("scep")
	_, err := g.raw.Call(g.within(), verbSubmit, e)
	fault(t, "half a request", err, link.CodeMessage)
	_, err = g.raw.Call(g.within(), verbNone, new(link.Encoder))
	fault(t, "a verb that is none", err, link.CodeRefused)
	o := link.NewClient(toAuthority(g.a, rpc.RoleOperators))
	defer func() { _ = o.Close() }()
	no(t, o.Ready(g.within()))
	_, err = o.Call(g.within(), verbSubmit, new(link.Encoder))
	fault(t, "a device's request by the operators' gate", err, link.CodeRefused)
	for _, want := range []struct {
		role string
		verb link.Verb
	}{{rpc.RoleDevices, verbSubmit}, {rpc.RoleDevices, verbNone}, {rpc.RoleOperators, verbSubmit}} {
		if all := g.records(func(r audit.Record) bool {
			return is("security", "alert")(r) && r.Actor == (audit.Actor{Kind: "gate", ID: want.role}) && r.Object.Int("verb") == int64(want.verb)
		}); len(all) != 1 {
			t.Errorf("verb %d by the gate of %s has %d records", want.verb, want.role, len(all))
		}
	}
}
