package roles_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/appliance/link"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/hsm/lint"
)

// Verbs of the keyholder, as a program that is not ours would say them.
const (
	verbSignReply       link.Verb = 33
	verbFollow          link.Verb = 65
	verbSignCertificate link.Verb = 66
	verbSignCheckpoint  link.Verb = 67
	verbSignManifest    link.Verb = 80
)

// A liar is an authority that was taken over: it has the log and the link to the
// keyholder, and writes and asks what it likes.
type liar struct {
	*house
	keys   *rpc.Holder
	log    *audit.Log
	issuer *issuer.Issuer
}

func (h *house) lie() *liar {
	h.t.Helper()
	l := &liar{house: h, keys: h.holder()}
	l.log = must(audit.Open(h.within(), audit.Options{
		Dir: h.log(), Origin: h.cfg.Origin, Signer: l.keys, Verifier: h.verifier(), Followers: []audit.Follower{l.keys},
		Genesis: func() (audit.Entry, error) { return audit.Entry{}, errors.New("there is a log") },
	}))(h.t)
	l.issuer = must(issuer.New("demo", h.cfg.Issuers[0].CA, l.keys, issuer.Options{}))(h.t)
	return l
}

// ticket prepares a certificate as an honest authority would.
func (l *liar) ticket() *issuer.Ticket {
	l.t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(l.t)
	return must(l.issuer.Prepare(template(), key.Public(), issuer.Meta{Profile: "interop", Lineage: "l"}))(l.t)
}

func template() *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: "a.demo.example"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

// intend writes an intent into the log, and returns its line's number.
func (l *liar) intend(in audit.Intent) uint64 {
	l.t.Helper()
	o := store.IntentObject(in, store.Issuance{NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), LineageFrom: time.Now()})
	line := must(l.log.Append(l.within(), audit.Entry{Event: "enroll", Outcome: "intent", Request: "r" + in.Serial, Actor: audit.Actor{Kind: "device"}, Object: o}))(l.t)
	return line.Record.Seq
}

// made is the intent of a certificate that the issuer's own rules would not let
// through: its octets are made by hand.
func (l *liar) made(change func(c, parent *x509.Certificate)) audit.Intent {
	l.t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(l.t)
	serial := make([]byte, 16)
	must(rand.Read(serial))(l.t)
	serial[0] = 0x55
	ca := l.cfg.Issuers[0].CA
	c, parent := template(), &x509.Certificate{RawSubject: ca.RawSubject, SubjectKeyId: ca.SubjectKeyId}
	c.SerialNumber, c.BasicConstraintsValid = new(big.Int).SetBytes(serial), true
	spki := must(x509.MarshalPKIXPublicKey(key.Public()))(l.t)
	c.SubjectKeyId = lint.KeyID(must(lint.KeyBits(spki))(l.t))
	change(c, parent)
	// The signature is another key's: only what it would be over is asked for.
	der := must(x509.CreateCertificate(rand.Reader, c, parent, key.Public(), key))(l.t)
	return l.intent(hex.EncodeToString(serial), must(x509.ParseCertificate(der))(l.t).RawTBSCertificate)
}

func (l *liar) intent(serial string, tbs []byte) audit.Intent {
	return audit.Intent{Serial: serial, TBS: tbs, Issuer: "demo", IssuerKey: issuer.KeyID(l.cfg.Issuers[0].CA.RawSubjectPublicKeyInfo), Profile: "interop", Lineage: "l"}
}

// refused wants that nothing was signed.
func (l *liar) refused(what, name string, tbs []byte, seq uint64) {
	l.t.Helper()
	sig, err := l.keys.SignCertificate(l.within(), name, tbs, seq)
	if sig != nil || !errors.Is(err, issuer.ErrNotSigned) {
		l.t.Errorf("%s: signature %x, %v; want ErrNotSigned", what, sig, err)
	}
}

// TestTheKeyholderIsNoOracle has an authority that was taken over ask for whatever
// it should not get. It owns the log; so an honest one, which comes after it,
// finds there what the keyholder was asked for.
//
//
func TestTheKeyholderIsNoOracle(t *testing.T) {
	h := newHouse(t)
	_, end := h.honest() // makes the log, and has the listeners' certificate
	end()
	l := h.lie()
	none := l.log.Head().Size + 100

	t.Run("without an intent", func(t *testing.T) {
		l.refused("no intent", "demo", l.ticket().Intent().TBS, none)
		l.refused("the genesis as an intent", "demo", l.ticket().Intent().TBS, 0)
	})
	t.Run("with another serial", func(t *testing.T) {
		one, other := l.ticket(), l.ticket()
		seq := l.intend(one.Intent())
		l.refused("another ticket", "demo", other.Intent().TBS, seq)
		changed := bytes.Replace(one.Intent().TBS, must(hex.DecodeString(one.Intent().Serial))(t), must(hex.DecodeString(other.Intent().Serial))(t), 1)
		l.refused("another serial in the same octets", "demo", changed, seq)
		l.refused("by a name that is none", "demo2", one.Intent().TBS, seq)
		if _, err := one.Sign(l.within(), seq); err != nil {
			t.Errorf("the intent itself: %v", err)
		}
		l.refused("twice", "demo", one.Intent().TBS, seq)
	})
	t.Run("beyond the key's own limits", func(t *testing.T) { l.limits(t) })
	t.Run("what is no TBSCertificate", func(t *testing.T) {
		digest := sha256.Sum256([]byte("anything"))
		csr := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "a"}}, must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)))(t)
		for what, octets := range map[string][]byte{
			"a digest": digest[:], "a checkpoint's text": []byte(audit.NoteText(h.cfg.Origin, l.log.Head())), "a whole certificate": h.cfg.Issuers[0].CA.Raw,
			"the CA's own": h.cfg.Issuers[0].CA.RawTBSCertificate, "a CSR": csr, "an empty sequence": {0x30, 0},
		} {
			serial := hex.EncodeToString(sha256.New().Sum([]byte(what))[:16])
			seq := l.intend(l.intent(serial, octets))
			l.refused(what, "demo", octets, seq)
			h.wants(fmt.Sprintf("a certificate beyond the limits of \"demo\" by line %d", seq))
		}
	})
	t.Run("late", func(t *testing.T) {
		ticket := l.ticket()
		seq := l.intend(ticket.Intent())
		h.ahead.Store(int64(2*time.Minute + time.Second))
		l.refused("an intent of two minutes ago", "demo", ticket.Intent().TBS, seq)
		h.ahead.Store(0)
		h.wants(fmt.Sprintf("by line %d: keyholder: no open intent for this certificate in the log: it is 2m", seq))
	})
	t.Run("a checkpoint", func(t *testing.T) { l.checkpoints(t) })
	t.Run("a manifest", func(t *testing.T) { l.manifests(t) })
	t.Run("a line that skips the chain", func(t *testing.T) { l.skips(t) })
	t.Run("faster than the rate", func(t *testing.T) { l.hurry(t) })

	no(t, l.log.Close(context.Background()))
	no(t, l.keys.Close())
	h.honest()
	h.recorded(append(h.wanted,
		fmt.Sprintf("a certificate of \"demo\" by line %d: keyholder: no open intent", none), "a certificate of \"demo2\" by line",
		"a certificate of \"demo\" by line 0: keyholder: no open intent")...)
}

// limits are the key's, whatever the log says.
func (l *liar) limits(t *testing.T) {
	for what, change := range map[string]func(c, parent *x509.Certificate){
		"CA:TRUE":                  func(c, _ *x509.Certificate) { c.IsCA = true },
		"a key that signs":         func(c, _ *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign },
		"another issuer":           func(_, p *x509.Certificate) { p.RawSubject, p.Subject = nil, pkix.Name{CommonName: "Another CA"} },
		"longer than the CA lives": func(c, _ *x509.Certificate) { c.NotAfter = time.Now().Add(100 * 365 * 24 * time.Hour) },
	} {
		in := l.made(change)
		seq := l.intend(in)
		l.refused(what, "demo", in.TBS, seq)
		l.wants(fmt.Sprintf("a certificate beyond the limits of \"demo\" by line %d", seq))
	}
	// The same within the limits is signed, so it is they that refuse.
	in := l.made(func(_, _ *x509.Certificate) {})
	if _, err := l.keys.SignCertificate(l.within(), "demo", in.TBS, l.intend(in)); err != nil {
		t.Errorf("within the limits: %v", err)
	}
	in = l.made(func(_, _ *x509.Certificate) {})
	in.Serial = "00" + in.Serial[2:]
	seq := l.intend(in)
	l.refused("a serial that the line does not name", "demo", in.TBS, seq)
	l.wants(fmt.Sprintf("a certificate beyond the limits of \"demo\" by line %d", seq))
}

// checkpoints are of the keyholder's own head, and come as heads.
func (l *liar) checkpoints(t *testing.T) {
	head := l.log.Head()
	for what, change := range map[string]func(h *audit.Head){
		"a line more": func(h *audit.Head) { h.Size++ }, "a line less": func(h *audit.Head) { h.Size-- },
		"another root": func(h *audit.Head) { h.Root[0] ^= 1 }, "no log": func(h *audit.Head) { *h = audit.Head{} },
	} {
		other := head
		change(&other)
		if n, err := l.keys.SignCheckpoint(l.within(), other); n != nil || !errors.Is(err, rpc.ErrNotHead) {
			t.Errorf("%s: %q, %v", what, n, err)
		}
		l.wants(fmt.Sprintf("a checkpoint of %d lines with root %x", other.Size, other.Root[:8]))
	}
	c := link.NewClient(l.toKeyholder(rpc.RoleAuthority))
	defer func() { _ = c.Close() }()
	no(t, c.Ready(l.within()))
	ask := func(fill func(e *link.Encoder)) error {
		e := new(link.Encoder)
		fill(e)
		_, err := c.Call(l.within(), verbSignCheckpoint, e)
		return err
	}
	text := []byte(audit.NoteText(l.cfg.Origin, head))
	digest := sha256.Sum256(text)
	for what, fill := range map[string]func(e *link.Encoder){
		"a digest":                 func(e *link.Encoder) { e.Bytes(digest[:]) },
		"a digest's octets":        func(e *link.Encoder) { e.Raw(digest[:]) },
		"a checkpoint's text":      func(e *link.Encoder) { e.Bytes(text) },
		"a head with a short root": func(e *link.Encoder) { e.Uint(head.Size); e.Bytes(head.Prev[:]); e.Bytes(head.Root[:31]) },
		"a head with a text": func(e *link.Encoder) {
			e.Uint(head.Size)
			e.Bytes(head.Prev[:])
			e.Bytes(head.Root[:])
			e.Bytes(text)
		},
	} {
		fault(t, what, ask(fill), link.CodeMessage)
	}
	l.wants(fmt.Sprintf("verb %d by the link of authority: link: not what a link says", verbSignCheckpoint))
	if err := ask(func(e *link.Encoder) { e.Uint(head.Size); e.Bytes(head.Prev[:]); e.Bytes(head.Root[:]) }); err != nil {
		t.Errorf("its own head, asked for by hand: %v", err)
	}
}

// skips has lines fed that do not continue what the keyholder saw.
func (l *liar) skips(t *testing.T) {
	head := l.log.Head()
	line := func(seq uint64, prev [32]byte) audit.Line {
		return must(audit.Encode(audit.Record{Seq: seq, Prev: hex.EncodeToString(prev[:]), Time: time.Now(), Event: "enroll", Outcome: "intent",
			Actor: audit.Actor{Kind: "device"}, Object: audit.Object{"intent": l.ticket().Intent().Object()}}))(t)
	}
	for what, one := range map[string]audit.Line{
		"a line left out": line(head.Size+1, head.Prev), "another line before it": line(head.Size, [32]byte{1}), "a line in the past": line(head.Size-1, head.Prev),
	} {
		k := l.holder()
		must(k.Next(l.within()))(t)
		_ = k.Follow(l.within(), []audit.Line{one}) // what is told has no answer: it is seen later
		l.until(t, what, func() bool { return errors.Is(k.Follow(l.within(), nil), rpc.ErrLine) })
		_ = k.Close()
	}
	c := link.NewClient(l.toKeyholder(rpc.RoleAuthority))
	defer func() { _ = c.Close() }()
	no(t, c.Ready(l.within()))
	e := new(link.Encoder)
	e.List([][]byte{[]byte("no line\n")})
	if _, err := c.Call(l.within(), verbFollow, e); err == nil {
		t.Error("what is no line was taken")
	}
	l.wants("a line that does not continue the log: audit: the line has another sequence number", "a line that does not continue the log: audit: the line names another line before it",
		fmt.Sprintf("verb %d by the link of authority", verbFollow))
	if now := l.log.Head(); now != head {
		t.Errorf("the log moved from %d to %d lines", head.Size, now.Size)
	}
	must(l.keys.SignCheckpoint(l.within(), head))(t) // the keyholder stands where it stood
}

// hurry asks for more certificates than the rate of the CA allows.
func (l *liar) hurry(t *testing.T) {
	type job struct {
		*issuer.Ticket
		seq uint64
	}
	var jobs []job
	for range 60 {
		ticket := l.ticket()
		jobs = append(jobs, job{ticket, l.intend(ticket.Intent())})
	}
	refused := 0
	for _, j := range jobs {
		if _, err := j.Sign(l.within(), j.seq); errors.Is(err, issuer.ErrNotSigned) {
			refused++
		} else if err != nil {
			t.Error(err)
		}
	}
	if refused == 0 {
		t.Errorf("%d certificates were signed at once, at 4 a second", len(jobs))
	}
	l.wants("certificates of \"demo\" faster than its rate")
}

func (l *liar) until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: it was taken", what)
		}
	}
}

// TestAGateIsNoAuthority has gates ask the keyholder for what is not theirs.
//
// Covers: S-035
func TestAGateIsNoAuthority(t *testing.T) {
	h := newHouse(t)
	h.honest()
	digest := make([]byte, 32)
	i := h.cfg.Issuers[0]
	k := rpc.NewKeyholder(h.toKeyholder(rpc.RoleDevices))
	defer func() { _ = k.Close() }()
	no(t, k.Ready(h.within()))
	sealed := make([]byte, 256)
	sealed[255] = 2
	for what, id := range map[string]rpc.KeyID{
		"the CA key": rpc.KeyIDOf(i.CA), "the audit key": rpc.KeyIDOf(h.cfg.AuditCertificate), "the RA-decrypt key": rpc.KeyIDOf(i.RADecrypt), "no key": {},
	} {
		if sig, err := k.SignReply(h.within(), id, digest, crypto.SHA256); sig != nil || !errors.Is(err, rpc.ErrNoKey) {
			t.Errorf("a reply by %s: %x, %v", what, sig, err)
		}
		h.wants(fmt.Sprintf("to sign a reply with key %x", id[:8]))
	}
	for what, id := range map[string]rpc.KeyID{"the CA key": rpc.KeyIDOf(i.CA), "the audit key": rpc.KeyIDOf(h.cfg.AuditCertificate), "the RA-sign key": rpc.KeyIDOf(i.RASign)} {
		if key, err := k.Open(h.within(), id, sealed, rpc.Transport{Size: 16}); key != nil || !errors.Is(err, rpc.ErrNoKey) {
			t.Errorf("an envelope by %s: %x, %v", what, key, err)
		}
		h.wants(fmt.Sprintf("to open an envelope with key %x", id[:8]))
	}
	if _, err := k.SignReply(h.within(), rpc.KeyIDOf(i.RASign), digest, crypto.SHA256); err != nil {
		t.Errorf("a reply by the key for replies: %v", err)
	}
	if _, err := k.Open(h.within(), rpc.KeyIDOf(i.RADecrypt), sealed, rpc.Transport{Size: 16}); err != nil {
		t.Errorf("an envelope by the key for envelopes: %v", err)
	}

	own := rpc.KeyholderTable(h.keys, h.keys)
	for _, role := range []string{rpc.RoleDevices, rpc.RoleOperators} {
		c := link.NewClient(h.toKeyholder(role))
		no(t, c.Ready(h.within()))
		for v := range 128 {
			verb := link.Verb(v)
			if _, ok := own[role][verb]; ok {
				continue
			}
			_, err := c.Call(h.within(), verb, new(link.Encoder))
			fault(t, fmt.Sprintf("verb %d by the %s' gate", verb, role), err, link.CodeRefused)
		}
		_ = c.Close()
		h.wants(fmt.Sprintf("verb %d by the link of %s: ", verbSignCertificate, role), fmt.Sprintf("verb %d by the link of %s: ", verbSignCheckpoint, role), fmt.Sprintf("verb %d by the link of %s: ", verbSignManifest, role), fmt.Sprintf("verb %d by the link of %s: ", verbFollow, role))
	}
	h.wants(fmt.Sprintf("verb %d by the link of operators: ", verbSignReply))
	if len(own) != 3 || len(own[rpc.RoleOperators]) != 1 {
		t.Errorf("%d roles have verbs, the operators' gate %d", len(own), len(own[rpc.RoleOperators]))
	}
	// A gate that says it is the authority is not: the kernel says who it is.
	o := h.toKeyholder(rpc.RoleDevices)
	o.Self = hello(rpc.RoleAuthority)
	c := link.NewClient(o)
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := c.Ready(ctx); err == nil {
		t.Error("a gate is taken for the authority")
	}
	h.recorded(h.wanted...)
	if n := len(strings.Join(h.wanted, "")); n == 0 {
		t.Error("nothing was looked for")
	}
}
