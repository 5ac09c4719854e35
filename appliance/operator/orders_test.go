package operator_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-pki/postern/appliance/operator"
	"github.com/postern-pki/postern/appliance/operator/acts"
	"github.com/postern-pki/postern/audit"
)

// office are the people with keys, of each kind one.
type office map[string]crypto.Signer

func newOffice(t *testing.T) office {
	t.Helper()
	_, ed := must2(ed25519.GenerateKey(rand.Reader))(t)
	return office{
		"ann":   must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)),
		"ben":   ed,
		"cat":   must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048)),
		"audit": must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)),
		"no":    must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)),
	}
}

func must2[A, B any](a A, b B, err error) func(*testing.T) (A, B) {
	return func(t *testing.T) (A, B) {
		if err != nil {
			t.Fatal(err)
		}
		return a, b
	}
}

// rules make everybody but "no" known: registration officers, and an auditor.
func (o office) rules(t *testing.T) func(*operator.Options) {
	return func(opt *operator.Options) {
		opt.Rules.TwoPerson = []string{acts.CreateChallenge, acts.CreateChallenges, acts.RevokeChallenge, acts.RevokeCertificate}
		for name := range o {
			role := acts.RegistrationOfficer
			switch name {
			case "no":
				continue
			case "audit":
				role = acts.Auditor
			}
			opt.Rules.People = append(opt.Rules.People, acts.Person{Name: name, ID: o.sign(t, acts.Order{}, name).ID(), Roles: []acts.Role{role}})
		}
	}
}

// sign signs without a look at what it is.
func (o office) sign(t *testing.T, order acts.Order, who string) acts.Signature {
	t.Helper()
	canonical, err := order.Canonical()
	if err != nil {
		canonical = []byte("no order")
	}
	return must[acts.Signature](t)(acts.Sign(o[who], canonical))
}

func (o office) signed(t *testing.T, order acts.Order, who ...string) acts.Signed {
	t.Helper()
	s := acts.Signed{Order: order}
	for _, name := range who {
		s.Signatures = append(s.Signatures, o.sign(t, order, name))
	}
	return s
}

func (w *world) place() acts.Place {
	h := w.log.Head()
	return acts.Place{Size: h.Size, Last: hex.EncodeToString(h.Prev[:])}
}

// order is for a challenge, at the place where the log is.
func (w *world) order(change ...func(*acts.Order)) acts.Order {
	p := acts.Parameters{Challenges: []acts.ChallengeRequest{{Profile: "wifi", Subject: "CN=a.corp.example", DNS: []string{"a.corp.example"}, TTL: "5m"}}}
	o := acts.NewOrder(acts.CreateChallenge, p, "corp.example/log", w.place(), time.Now().Add(time.Hour))
	for _, f := range change {
		f(&o)
	}
	return o
}

func (w *world) submit(t *testing.T, s acts.Signed, header ...string) answer {
	t.Helper()
	body, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return w.do(t, http.MethodPost, "/api/v1/acts", string(body), header...)
}

func TestTwoPeopleOrderAndItStandsInTheLog(t *testing.T) {
	people := newOffice(t)
	w := newWorld(t, people.rules(t))
	for n, who := range [][]string{{"ann", "ben"}, {"ben", "cat"}, {"cat", "ann", "ben"}} {
		order := w.order()
		a := w.submit(t, people.signed(t, order, who...))
		var made []operator.Challenge
		if err := json.Unmarshal([]byte(a.body), &made); err != nil || a.code != http.StatusCreated || len(made) != 1 || len(made[0].Challenge) != 26 {
			t.Fatalf("%v: %d %s", who, a.code, a.body)
		}
		approved, created := w.records(t, "operator", "approved"), w.records(t, "challenge", "created")
		if len(approved) != n+1 || len(created) != n+1 || approved[n].Seq+1 != created[n].Seq {
			t.Fatalf("%v: %d orders and %d challenges are recorded", who, len(approved), len(created))
		}
		r := approved[n]
		if r.Request != order.ID || r.Actor.ID != "alice" || r.Object.String("act") != "challenge.create" || r.Object.Object("signed").String("id") != order.ID || len(r.Object.Objects("signers")) != len(who) {
			t.Errorf("%+v", r)
		}
		for i, s := range r.Object.Objects("signers") {
			if s.String("name") != who[i] || s.String("spki") == "" || s.String("signature") == "" {
				t.Errorf("signer %d is recorded as %v", i, s)
			}
		}
	}
	// Revoking is under the rule too.
	id := w.records(t, "challenge", "created")[0].Object.String("id")
	if a := w.do(t, http.MethodDelete, "/api/v1/challenges/"+id, ""); a.code != http.StatusForbidden {
		t.Errorf("one person revokes: %d %s", a.code, a.body)
	}
	order := acts.NewOrder(acts.RevokeChallenge, acts.Parameters{Challenge: id}, "corp.example/log", w.place(), time.Now().Add(time.Minute))
	if a := w.submit(t, people.signed(t, order, "ann", "ben")); a.code != http.StatusOK {
		t.Errorf("two people revoke: %d %s", a.code, a.body)
	}
	revoked, approved := w.records(t, "challenge", "revoked"), w.records(t, "operator", "approved")
	if len(revoked) != 1 || revoked[0].Object.String("id") != id || len(approved) != 4 || approved[3].Request != order.ID || approved[3].Seq+1 != revoked[0].Seq {
		t.Errorf("%+v after %+v", revoked, approved)
	}
}

// What an auditor has is the log: the octets of the order as they stand there are
// what was signed, and openssl checks that with nothing of ours.
func TestTheRecordIsEvidenceByItself(t *testing.T) {
	people := newOffice(t)
	w := newWorld(t, people.rules(t))
	order := w.order()
	if a := w.submit(t, people.signed(t, order, "ann", "ben")); a.code != http.StatusCreated {
		t.Fatalf("%d %s", a.code, a.body)
	}
	var line struct {
		Ob struct {
			Signed  json.RawMessage
			Signers []struct{ SPKI, Signature []byte }
		}
	}
	lines := must[[]audit.Line](t)(audit.Find(t.Context(), w.dir, order.ID, 1))
	if err := json.Unmarshal(lines[0].Raw, &line); err != nil {
		t.Fatal(err)
	}
	dir, ann := t.TempDir(), line.Ob.Signers[0]
	for name, data := range map[string][]byte{
		"order": line.Ob.Signed, "other": bytes.ReplaceAll(line.Ob.Signed, []byte("a.corp"), []byte("b.corp")), "spki": ann.SPKI, "signature": ann.Signature,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, good := range map[string]bool{"order": true, "other": false} {
		cmd := exec.CommandContext(t.Context(), "openssl", "dgst", "-sha256", "-verify", "spki", "-keyform", "DER", "-signature", "signature", name)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); (err == nil) != good {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
}

func TestAnOrderThatIsNotGoodIsRefusedAndRecorded(t *testing.T) {
	people := newOffice(t)
	now := time.Now()
	expires := func(d time.Duration) func(*acts.Order) {
		return func(o *acts.Order) { o.Expires = now.Add(d).UTC().Format(time.RFC3339) }
	}
	for name, tt := range map[string]struct {
		make func(w *world) acts.Signed
		who  string // alice if ""
		code int
		say  string
	}{
		"no signature":  {func(w *world) acts.Signed { return people.signed(t, w.order()) }, "", 403, "0 signed"},
		"one signature": {func(w *world) acts.Signed { return people.signed(t, w.order(), "ann") }, "", 403, "takes 2 people, and 1 signed"},
		"one person twice": {
			func(w *world) acts.Signed { return people.signed(t, w.order(), "ann", "ann") }, "", 403, "ann has signed the act twice",
		},
		"one person three times": {
			func(w *world) acts.Signed { return people.signed(t, w.order(), "ben", "ann", "ben") }, "", 403, "ben has signed the act twice",
		},
		"a person without the role": {
			func(w *world) acts.Signed { return people.signed(t, w.order(), "ann", "audit") }, "", 403, "audit has signed the act, and may not",
		},
		"a person without the role beside two with it": {
			func(w *world) acts.Signed { return people.signed(t, w.order(), "ann", "ben", "audit") }, "", 403, "audit has signed the act, and may not",
		},
		"a key that nobody has": {
			func(w *world) acts.Signed { return people.signed(t, w.order(), "ann", "no") }, "", 403, "no operator's",
		},
		"a signature on another order": {func(w *world) acts.Signed {
			s := people.signed(t, w.order(), "ann")
			s.Signatures = append(s.Signatures, people.sign(t, w.order(), "ben"))
			return s
		}, "", 403, "the signature of ben"},
		"another subject than the signed one": {func(w *world) acts.Signed {
			s := people.signed(t, w.order(), "ann", "ben")
			s.Order.Parameters.Challenges[0].Subject = "CN=b.corp.example"
			return s
		}, "", 403, "the signature of ann"},
		"a longer life than the signed one": {func(w *world) acts.Signed {
			s := people.signed(t, w.order(), "cat", "ben")
			expires(2 * time.Hour)(&s.Order)
			return s
		}, "", 403, "the signature of cat"},
		"ann's signature with ben's key": {func(w *world) acts.Signed {
			s := people.signed(t, w.order(), "ann", "ben")
			s.Signatures[1].Value = s.Signatures[0].Value
			return s
		}, "", 403, "the signature of ben"},
		"an empty signature": {func(w *world) acts.Signed {
			s := people.signed(t, w.order(), "ann", "cat")
			s.Signatures[1].Value = nil
			return s
		}, "", 403, "the signature of cat"},
		"it has ended":       {func(w *world) acts.Signed { return people.signed(t, w.order(expires(-time.Second)), "ann", "ben") }, "", 409, "ended at"},
		"it lives for weeks": {func(w *world) acts.Signed { return people.signed(t, w.order(expires(25*time.Hour)), "ann", "ben") }, "", 409, "more than 24h"},
		"for another origin": {func(w *world) acts.Signed {
			return people.signed(t, w.order(func(o *acts.Order) { o.Origin = "other.example/log" }), "ann", "ben")
		}, "", 409, "other.example/log"},
		"for another history": {func(w *world) acts.Signed {
			return people.signed(t, w.order(func(o *acts.Order) { o.Place.Last = strings.Repeat("0", 64) }), "ann", "ben")
		}, "", 409, "another log"},
		"from the future": {func(w *world) acts.Signed {
			return people.signed(t, w.order(func(o *acts.Order) { o.Place.Size += 50 }), "ann", "ben")
		}, "", 409, "another log"},
		"of another type": {
			func(w *world) acts.Signed {
				return people.signed(t, w.order(func(o *acts.Order) { o.Type = "x" }), "ann", "ben")
			}, "", 400, "type",
		},
		"for an act that only reads": {
			func(w *world) acts.Signed {
				return people.signed(t, w.order(func(o *acts.Order) { o.Act = acts.ShowRecords }), "ann", "ben")
			}, "", 400, "no act that people sign",
		},
		"with another act's parameters": {
			func(w *world) acts.Signed {
				return people.signed(t, w.order(func(o *acts.Order) { o.Act = acts.RevokeChallenge }), "ann", "ben")
			}, "", 400, "parameters",
		},
		"for names that the profile refuses": {func(w *world) acts.Signed {
			return people.signed(t, w.order(func(o *acts.Order) { o.Parameters.Challenges[0].Subject = "CN=a.evil.example" }), "ann", "ben")
		}, "", 400, "would refuse"},
		"sent by an auditor": {func(w *world) acts.Signed { return people.signed(t, w.order(), "ann", "ben") }, "auditor", 403, "the auditor may not"},
		"sent by who may revoke alone": {
			func(w *world) acts.Signed { return people.signed(t, w.order(), "ann", "ben") }, "security-officer", 403, "challenge.create",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, people.rules(t))
			who := tt.who
			if who == "" {
				who = "alice"
			}
			a := w.submit(t, tt.make(w), "X-Who", who)
			if p := a.problem(t); a.code != tt.code || !strings.Contains(p.Error, tt.say) {
				t.Errorf("%d %+v, want %d and %q", a.code, p, tt.code, tt.say)
			}
			if n := len(w.records(t, "challenge", "created")) + len(w.records(t, "operator", "approved")); n != 0 {
				t.Errorf("%d records of what was not done", n)
			}
			got := append(w.records(t, "operator", "denied"), w.records(t, "operator", "refused")...)
			if len(got) != 1 || got[0].Actor.ID != who || got[0].Object.String("why") == "" || tt.code != 400 && who != "auditor" && got[0].Object.String("id") == "" {
				t.Errorf("records: %+v", got)
			}
		})
	}
}

// An order is carried out once: not again, not by many at once, not after the
// service was started again, and not with more signatures.
func TestAnOrderIsCarriedOutOnce(t *testing.T) {
	people := newOffice(t)
	w := newWorld(t, people.rules(t), func(o *operator.Options) {
		scan := o.Scan
		o.Scan = func(from uint64, fn func(audit.Line) error) error {
			err := scan(from, fn)
			time.Sleep(20 * time.Millisecond) // the others have looked by then, if they may
			return err
		}
	})
	s := people.signed(t, w.order(), "ann", "ben")
	var group sync.WaitGroup
	codes := make([]int, 8)
	for i := range codes {
		group.Go(func() { codes[i] = w.submit(t, s).code })
	}
	group.Wait()
	slices.Sort(codes)
	if codes[0] != http.StatusCreated || codes[1] != http.StatusConflict || codes[7] != http.StatusConflict {
		t.Errorf("%v", codes)
	}
	more := people.signed(t, s.Order, "ann", "ben", "cat") // other signatures, the same order
	for name, submit := range map[string]acts.Signed{"again": s, "with a third person": more} {
		if p := w.submit(t, submit).problem(t); !strings.Contains(p.Error, "carried out before") {
			t.Errorf("%s: %+v", name, p)
		}
	}
	w.again(people.rules(t))
	if p := w.submit(t, s).problem(t); !strings.Contains(p.Error, "carried out before") {
		t.Errorf("after a start: %+v", p)
	}
	if n := len(w.records(t, "challenge", "created")); n != 1 {
		t.Errorf("%d challenges", n)
	}
	if n := len(w.records(t, "operator", "refused")); n != 10 {
		t.Errorf("%d refusals are recorded", n)
	}
	if a := w.submit(t, people.signed(t, w.order(), "ann", "ben")); a.code != http.StatusCreated {
		t.Errorf("another order: %d %s", a.code, a.body)
	}
}

func TestOnePersonDoesNotDoWhatTakesTwo(t *testing.T) {
	w := newWorld(t, newOffice(t).rules(t))
	two := one[:len(one)-1] + "," + one[1:]
	for n, tt := range []struct{ method, path, body, act string }{
		{http.MethodPost, "/api/v1/challenges", one, "challenge.create"},
		{http.MethodPost, "/api/v1/challenges", two, "challenge.batch"},
		{http.MethodDelete, "/api/v1/challenges/x", "", "challenge.revoke"},
		{http.MethodDelete, "/api/v1/certificates/0a?reason=superseded", "", "certificate.revoke"},
	} {
		p := w.do(t, tt.method, tt.path, tt.body).problem(t)
		if !strings.Contains(p.Error, tt.act+" takes 2 people") || !strings.Contains(p.Hint, "--act") {
			t.Errorf("%+v", p)
		}
		if got := w.records(t, "operator", "denied"); len(got) != n+1 || got[n].Object.String("act") != tt.act {
			t.Errorf("%+v", got)
		}
	}
	if n := len(w.records(t, "challenge", "created")); n != 0 {
		t.Errorf("%d challenges", n)
	}
}

// A log that is far behind is looked through as far as the time allows.
func TestAnOrderIsNotCarriedOutUnlooked(t *testing.T) {
	people := newOffice(t)
	w := newWorld(t, people.rules(t), func(o *operator.Options) {
		scan := o.Scan
		o.Scan = func(from uint64, fn func(audit.Line) error) error {
			return scan(from, func(l audit.Line) error {
				if err := fn(l); err != nil {
					return err
				}
				return context.DeadlineExceeded
			})
		}
	})
	if a := w.submit(t, people.signed(t, w.order(), "ann", "ben")); a.code != http.StatusServiceUnavailable {
		t.Errorf("%d %s", a.code, a.body)
	}
	if n := len(w.records(t, "challenge", "created")); n != 0 {
		t.Errorf("%d challenges", n)
	}
}
