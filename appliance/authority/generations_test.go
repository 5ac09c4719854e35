package authority_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/appliance/authority"
	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/scep"
)

// issuers has the first generation, and those after it: CAs with names of their own.
func (w *world) issuers(first authority.CA) map[string][]authority.CA {
	w.t.Helper()
	all := []authority.CA{first}
	w.ras = map[string][]byte{"first": w.raDER}
	for n, name := range w.later {
		begins := time.Now().Add(time.Duration(n+1)*time.Hour - 20*time.Hour)
		ca := &x509.Certificate{
			SerialNumber: big.NewInt(int64(10 + n)), Subject: pkix.Name{CommonName: "Corp CA " + name}, NotBefore: begins, NotAfter: begins.Add(9 * 365 * 24 * time.Hour),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{9, byte(n)},
		}
		der := w.certificate(filepath.Join(w.dir, name+".der"), ca, ca, w.token.key.Public())
		parsed := must[*x509.Certificate](w.t)(x509.ParseCertificate(der))
		ra := w.certificate(filepath.Join(w.dir, name+"-ra.der"), &x509.Certificate{SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "RA " + name}, NotBefore: begins, NotAfter: ca.NotAfter}, parsed, w.ra.Public())
		is := must[*issuer.Issuer](w.t)(issuer.New("corp."+name, parsed, w.token, issuer.Options{}))
		w.ras[name] = ra
		all = append(all, authority.CA{Issuer: is, Generation: protocol.Generation{Name: name, RASign: ra, RADecrypt: ra, CA: der}})
	}
	return map[string][]authority.CA{"corp": all}
}

// staged is a world with further generations.
func staged(t *testing.T, later ...string) *world {
	t.Helper()
	w := newWorld(t)
	w.close()
	w.later = later
	w.open()
	return w
}

// issuedBy is the name of the CA that issued what was asked for.
func (w *world) issuedBy(a asked) string {
	w.t.Helper()
	out, err := w.Submit(w.t.Context(), w.request(a))
	if err != nil || out.Status != protocol.Issued {
		return describe(out, err)
	}
	return must[*x509.Certificate](w.t)(x509.ParseCertificate(out.Certificates[0])).Issuer.CommonName
}

// Which CA issues stands in the envelope that the device signed. The gate, whose word
// it is not, is asked for nothing.
//
// Covers: S-044, S-046
func TestTheEnvelopeSaysWhichCAIssues(t *testing.T) {
	w := staged(t, "2027")
	key := deviceKeys()[0]
	for name, want := range map[string]string{"first": "Corp CA", "2027": "Corp CA 2027"} {
		cn := "of-" + name + ".corp.example"
		if got := w.issuedBy(asked{profile: "wifi", transaction: name, cn: cn, challenge: w.challenge("wifi", cn), key: key, recipient: w.ras[name]}); got != want {
			t.Errorf("to %s: %s, want %s", name, got, want)
		}
	}
	r := w.request(asked{profile: "wifi", transaction: "x", cn: "x.corp.example", challenge: w.challenge("wifi", "x.corp.example"), key: key, recipient: w.stranger()})
	if out, err := w.Submit(t.Context(), r); err != nil || out.Refusal == nil || out.Refusal.Kind != protocol.BadProof {
		t.Errorf("to a stranger: %s", describe(out, err))
	}
	if n := w.count(store.EventEnroll, store.OutIssued); n != 2 {
		t.Errorf("%d certificates", n)
	}
	w.sound()
}

// stranger is a certificate of the RA's key that no generation has.
func (w *world) stranger() []byte {
	w.t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(99), Subject: pkix.Name{CommonName: "stranger"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	ca := &x509.Certificate{SerialNumber: big.NewInt(98), Subject: pkix.Name{CommonName: "nobody"}}
	return w.certificate(filepath.Join(w.dir, "stranger.der"), c, ca, w.ra.Public())
}

// A renewal goes from one CA to the next: the lineage goes on, and its budget with it.
// The same CSR sent again to the same CA is the same certificate.
func TestARenewalGoesToTheNextCA(t *testing.T) {
	w := staged(t, "2027")
	old, key := w.enroll("moves.corp.example")
	next := deviceKeys()[1]
	ask := asked{profile: "wifi", transaction: "move", cn: "moves.corp.example", kind: scep.RenewalReq, key: next, signer: old, signerKey: key, recipient: w.ras["2027"]}
	if got := w.issuedBy(ask); got != "Corp CA 2027" {
		t.Fatal(got)
	}
	if got := w.issuedBy(ask); got != "Corp CA 2027" || w.count(store.EventEnroll, store.OutRepeated) != 1 || w.count(store.EventEnroll, store.OutIssued) != 2 {
		t.Errorf("sent again: %s", got)
	}
	// The other CA is asked for another certificate, which the budget does not have.
	ask.recipient = w.ras["first"]
	if got := w.issuedBy(ask); !strings.HasPrefix(got, "refused as not-allowed") || w.count(store.EventEnroll, store.OutIssued) != 2 {
		t.Errorf("the same asked of the other CA: %s", got)
	}
	list := must[[]store.Issuance](t)(w.index.Certificates(t.Context(), store.CertificateFilter{}))
	if len(list) != 2 || list[0].Issuer != "corp.2027" || list[1].Issuer != "corp" || list[0].Lineage != list[1].Lineage || list[0].Predecessor != list[1].Serial || list[0].Source != "192.0.2.7" {
		t.Errorf("%+v", list)
	}
	w.sound()
}

// state is the generations as devices and operators see them.
func (w *world) state() (order []string, next string, caps bool) {
	w.t.Helper()
	s := must[protocol.Service](w.t)(w.Service(w.t.Context(), "wifi"))
	for _, g := range s.Generations {
		order = append(order, g.Name)
	}
	return order, s.Next, slices.Contains(s.Capabilities, "GetNextCACert")
}

// The current CA is state: an act changes it, the log has it, and a start finds it.
//
// Covers: S-040
func TestTheCurrentCAIsState(t *testing.T) {
	w := staged(t, "2027", "2028")
	admin := audit.Actor{Kind: "operator", ID: "alice"}
	check := func(what, current, next string) {
		t.Helper()
		order, got, caps := w.state()
		if len(order) != 3 || order[0] != current || got != next || caps != (next != "") {
			t.Errorf("%s: %v, next %q, offered %v", what, order, got, caps)
		}
	}
	check("at first", "first", "2027")
	for what, s := range map[string]struct {
		authority.CASwitch
		want error
	}{
		"no issuer":          {authority.CASwitch{Issuer: "other", From: "first", To: "2027"}, authority.ErrNoCA},
		"no generation":      {authority.CASwitch{Issuer: "corp", From: "first", To: "2030"}, authority.ErrNoCA},
		"no generation from": {authority.CASwitch{Issuer: "corp", From: "", To: "2027"}, authority.ErrNoCA},
		"from another":       {authority.CASwitch{Issuer: "corp", From: "2027", To: "2028"}, authority.ErrCurrent},
		"to itself":          {authority.CASwitch{Issuer: "corp", From: "first", To: "first"}, authority.ErrNotNow},
	} {
		if err := w.SwitchCA(t.Context(), admin, s.CASwitch); !errors.Is(err, s.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := w.SwitchCA(t.Context(), admin, authority.CASwitch{Issuer: "corp", From: "first", To: "2027"}); err != nil {
		t.Fatal(err)
	}
	check("after the switch", "2027", "2028")
	w.restart()
	if err := w.Start(t.Context(), authority.Begin{Clean: true}); err != nil {
		t.Fatal(err)
	}
	check("after a start", "2027", "2028")
	if s := w.CAs(); len(s) != 3 || !s[1].Current || s[1].Before != "first" || s[1].Since.IsZero() || !s[2].Next || s[1].Name != "corp.2027" {
		t.Errorf("%+v", s)
	}
	if got := w.records(func(r audit.Record) bool { return r.Event == store.EventCA }); len(got) != 1 || got[0].Actor.ID != "alice" || got[0].Object.String("to") != "2027" {
		t.Errorf("recorded: %+v", got)
	}
	w.sound()
	w.later = []string{"2028"}
	w.restart()
	if err := w.Start(t.Context(), authority.Begin{Clean: true}); !errors.Is(err, authority.ErrNoCA) {
		t.Errorf("a start without the current CA: %v", err)
	}
}

// A CA whose certificates have ended is not switched to, and not told of.
func TestACAThatHasEndedIsNoNextOne(t *testing.T) {
	w := staged(t, "2027")
	w.ahead.Store(int64(9*365*24*time.Hour - time.Hour))
	if _, next, caps := w.state(); next != "" || caps {
		t.Errorf("devices are told of %q", next)
	}
	if err := w.SwitchCA(t.Context(), audit.Actor{Kind: "operator"}, authority.CASwitch{Issuer: "corp", From: "first", To: "2027"}); !errors.Is(err, authority.ErrNotNow) {
		t.Errorf("a switch to it: %v", err)
	}
	if n := w.count(store.EventCA, store.OutSwitched); n != 0 {
		t.Errorf("%d switches are recorded", n)
	}
}

// What is handed out as the next CA is counted by profile and address, where there is
// such a generation: a gate's word for another one is not kept.
func TestFetchesOfTheNextCAAreCounted(t *testing.T) {
	w := staged(t, "2027")
	for _, r := range []protocol.Rejected{
		{Profile: "wifi", NextCA: "2027", Source: "192.0.2.7:1", Served: true}, {Profile: "wifi", NextCA: "2027", Source: "192.0.2.7:2", Served: true},
		{Profile: "wifi", NextCA: "2027", Source: "[2001:db8::1]:9", Served: true}, {Profile: "wifi", NextCA: "2030", Source: "192.0.2.8:1", Served: true},
		{Profile: "none", NextCA: "2027", Source: "192.0.2.8:1", Served: true}, {Profile: "wifi", NextCA: "2027", Source: "192.0.2.8:1"},
	} {
		must[string](t)(w.Reject(t.Context(), r))
	}
	list, all, err := w.index.Fetches(t.Context(), "wifi", "2027", 10)
	if err != nil || all != 2 || len(list) != 2 {
		t.Fatalf("%d %+v, %v", all, list, err)
	}
	for _, f := range list {
		if want := map[string]int64{"192.0.2.7": 2, "2001:db8::1": 1}[f.Source]; f.Count != want || f.First.IsZero() || f.Last.Before(f.First) {
			t.Errorf("%+v", f)
		}
	}
	w.sound()
}

// A request that waits is issued by the generation that it was encrypted to, also after
// a switch; the same CSR for another generation is another request.
func TestARequestThatWaitsKeepsItsGeneration(t *testing.T) {
	w := staged(t, "2027")
	a := asked{profile: "vouched", transaction: "waits", cn: "waits.corp.example", key: deviceKeys()[0], recipient: w.ras["2027"]}
	a.csr = openEnvelope(t, w.request(a))
	id := w.ask(a, "pending").RequestID
	a.recipient = w.ras["first"]
	if out, err := w.Submit(t.Context(), w.request(a)); err != nil || out.Status != protocol.Refused {
		t.Errorf("the same for the other generation: %s", describe(out, err))
	}
	i, err := w.Approve(t.Context(), officer(), authority.Ruling{Request: id, Reason: "known"})
	if err != nil {
		t.Fatal(err)
	}
	c := must[*x509.Certificate](t)(x509.ParseCertificate(i.Certificate))
	got := must[store.Issuance](t)(w.index.Certificate(t.Context(), i.Serial))
	if c.Issuer.CommonName != "Corp CA 2027" || got.Issuer != "corp.2027" || got.Source != "192.0.2.7" {
		t.Errorf("issued by %s, recorded as of %s, asked for at %s", c.Issuer.CommonName, got.Issuer, got.Source)
	}
	w.sound()
}
