package authority

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/scep"
)

// signWithin bounds a signature. It is made also when the device hung up, so that
// no intent is left open by that.
const signWithin = 15 * time.Second

// Submit implements [protocol.Authority]. A request that comes to no decision is
// recorded too: by our fault, or because its sender hung up.
func (p *Pipeline) Submit(ctx context.Context, r protocol.Request) (out protocol.Outcome, err error) {
	id, decided := newID(), false
	defer func() {
		if !decided { // an error, or a panic on its way up
			p.unserved(ctx, id, r, err)
		}
	}()
	out, err = p.submit(ctx, id, r)
	decided = err == nil
	return out, err
}

// submit takes every request through the same stages, in this order and no other.
func (p *Pipeline) submit(ctx context.Context, id string, r protocol.Request) (protocol.Outcome, error) {
	profile, ok := p.policies.Profile(r.Profile)
	if !ok {
		return protocol.Outcome{}, protocol.ErrUnknownProfile
	}
	q, v, err := p.verify(ctx, id, r, profile)
	if err != nil {
		return protocol.Outcome{}, err
	}
	if v != nil {
		return p.refuse(ctx, q, nil, v)
	}
	switch q.message.Type {
	case scep.CertPoll:
		return p.poll(ctx, q)
	case scep.GetCert, scep.GetCRL:
		return p.lookUp(ctx, q)
	default: // PKCSReq and RenewalReq, as verify saw to
		return p.enroll(ctx, q)
	}
}

// enroll takes a request for a certificate through the rest.
func (p *Pipeline) enroll(ctx context.Context, q *proven) (protocol.Outcome, error) {
	facts := p.facts(q)
	names := p.policies.NamesOf(facts)
	unlock, err := p.locks.lock(ctx, q.exclusive(names)...)
	if err != nil {
		return protocol.Outcome{}, fmt.Errorf("authority: waiting for the same device's other request: %w", err)
	}
	defer unlock()
	if out, ok, err := p.again(ctx, q); ok || err != nil {
		return out, err
	}
	if out, ok, err := p.waiting(ctx, q); ok || err != nil {
		return out, err
	}
	g, v, err := p.authorize(ctx, q, names)
	if err != nil {
		return protocol.Outcome{}, err
	}
	defer p.challenges.Release(g.challenge)
	if v != nil && v.kind == protocol.BadProof {
		return p.refuse(ctx, q, nil, v)
	}
	if v == nil {
		v = q.encryptable(g)
	}
	return p.decide(ctx, q, facts, g, v)
}

// exclusive names what a request must have to itself while it is decided and
// issued: its transaction, its names and, for a signer of ours, the lineage.
func (q *proven) exclusive(names policy.Names) []string {
	keys := []string{
		"tx/" + q.profile.Name + "/" + q.signerName + "/" + q.message.TransactionID,
		"names/" + q.profile.Name + "/" + names.Digest(),
		"key/" + q.spkiDigest,
	}
	if q.ours != nil {
		keys = append(keys, "lineage/"+q.ours.Lineage)
	}
	return keys
}

// again answers what was answered before: the same transaction, CSR and signer,
// or a renewal of the same certificate by the same CSR, while what was issued
// lives. The same asked of another generation is another request: what was issued is
// not that CA's.
func (p *Pipeline) again(ctx context.Context, q *proven) (protocol.Outcome, bool, error) {
	was, err := p.index.Transaction(ctx, q.ca.Issuer.Name(), q.profile.Name, q.message.TransactionID, q.signerName, q.csrDigest)
	if errors.Is(err, store.ErrNotFound) && q.ours != nil {
		was, err = p.index.RenewalOf(ctx, q.ca.Issuer.Name(), q.profile.Name, q.signerName, q.csrDigest)
	}
	if errors.Is(err, store.ErrNotFound) || err == nil && (was.RevocationDue || p.now().After(was.NotAfter)) {
		return protocol.Outcome{}, false, nil
	}
	if err != nil {
		return protocol.Outcome{}, false, fmt.Errorf("authority: looking up the transaction: %w", err)
	}
	if err := p.tell(ctx, q, was.Serial); err != nil {
		return protocol.Outcome{}, false, err
	}
	o := audit.Object{"serial": was.Serial, "first": was.Request, "profile": q.profile.Name, "transaction": cut(q.message.TransactionID)}
	addClient(o, q.sender(""))
	_, err = p.log.Append(ctx, audit.Entry{Event: store.EventEnroll, Outcome: store.OutRepeated, Request: q.id, Actor: q.actor(), Object: o})
	if err != nil {
		return protocol.Outcome{}, false, err
	}
	return protocol.Outcome{RequestID: q.id, Status: protocol.Issued, Certificates: [][]byte{was.Certificate}}, true, nil
}

// decide lets the policy speak, also when authorization failed, so that the log
// has every reason.
func (p *Pipeline) decide(ctx context.Context, q *proven, f policy.Facts, g grant, v *verdict) (protocol.Outcome, error) {
	if err := p.complete(ctx, q, &f, g, v); err != nil {
		return protocol.Outcome{}, err
	}
	if v == nil {
		var err error
		if v, err = p.vouch(ctx, q, &f, g); err != nil {
			return protocol.Outcome{}, err
		}
	}
	issued := false
	defer func() {
		if !issued {
			p.withdraw(ctx, q, &f)
		}
	}()
	d := p.policies.Decide(f)
	if !d.Issue || v != nil {
		return p.refuse(ctx, q, &f, v.and(d, g))
	}
	waits := q.profile.Waits(g.kind)
	if !waits && !p.rate.take(q.profile.Name, int64(q.profile.Limits.PerMinute), p.now()) {
		return p.refuse(ctx, q, &f, notAllowed(rulePerMinute, "reached while deciding", sayPerMinute))
	}
	i := store.Issuance{Request: q.id, Challenge: g.challenge.ID}
	ticket, err := p.prepare(q, f, g, d, &i, q.csr.PublicKey)
	if finding, ok := errors.AsType[*issuer.LintError](err); ok {
		return p.refuse(ctx, q, &f, notAllowed("lint", finding.Error(), "the certificate would not be well formed"))
	}
	if err != nil {
		return protocol.Outcome{}, err
	}
	if waits { // with what would be issued looked at, so that nobody approves what cannot be
		return p.pend(ctx, q, f, g, d)
	}
	o := intentOf(ticket, i, f, g, d)
	addClient(o, q.sender(g.kind))
	if v, ok := listener(q.profile); ok && g.kind != kindRenewal {
		store.TellObject(o, v.Name)
	}
	der, err := p.issue(ctx, q.id, q.actor(), ticket, o)
	if errors.Is(err, audit.ErrTooLarge) { // so nothing of it was written
		return p.refuse(ctx, q, &f, notAllowed("record", "too large", "the request asks for more than a record holds"))
	}
	if err != nil {
		return protocol.Outcome{}, err
	}
	issued = true
	if err := p.tell(ctx, q, ticket.Intent().Serial); err != nil {
		return protocol.Outcome{}, err
	}
	return protocol.Outcome{RequestID: q.id, Status: protocol.Issued, Certificates: [][]byte{der}}, nil
}

const sayPerMinute = "too many certificates in this minute: try again"

// prepare fills the issuance, of which the caller sets the request and the
// challenge, and makes the ticket for it. The error may be a [*issuer.LintError].
func (p *Pipeline) prepare(q *proven, f policy.Facts, g grant, d policy.Decision, i *store.Issuance, key crypto.PublicKey) (*issuer.Ticket, error) {
	template, ok := d.Template()
	if !ok {
		return nil, errors.New("authority: a decision to issue without a template")
	}
	i.Profile, i.Issuer, i.Names = q.profile.Name, q.ca.Issuer.Name(), d.Names().Digest()
	i.Subject, i.SPKI = policy.FormatSubject(d.Subject()), q.spkiDigest
	i.NotBefore, i.NotAfter = template.NotBefore, template.NotAfter
	i.Lineage, i.LineageFrom = i.Request, p.now().UTC()
	i.Transaction, i.Signer, i.CSR = q.message.TransactionID, q.signerName, q.csrDigest
	if g.kind == kindRenewal {
		i.Lineage, i.LineageFrom, i.Predecessor = q.ours.Lineage, q.ours.LineageFrom, q.ours.Serial
		i.Generation, i.Challenge = f.Renewal.Count+1, ""
	}
	q.ca.say(template)
	ticket, err := q.ca.Issuer.Prepare(template, key, issuer.Meta{
		Challenge: i.Challenge, RequestDigest: q.csrDigest, Profile: i.Profile, Lineage: i.Lineage, Except: q.profile.LintExceptions(),
	})
	if err != nil {
		return nil, fmt.Errorf("authority: preparing the certificate: %w", err)
	}
	return ticket, nil
}

// intentOf is the object of the intent line, with what was decided on.
func intentOf(t *issuer.Ticket, i store.Issuance, f policy.Facts, g grant, d policy.Decision) audit.Object {
	o := store.IntentObject(t.Intent(), i)
	o["kind"], o["policy"], o["facts"], o["by"] = g.kind, d.Digest, audit.Object(f.Object()), g.by
	return o
}

// issue is the order that nothing may change: intent durable, sign, result
// durable. A device that hangs up before is let go; what was begun is finished all
// the same, and each record is waited for as long as it takes: whoever left while
// the intent is on its way would let another request spend the same challenge,
// which no index could follow.
//
// What is before the intent in the log is durable together with it.
func (p *Pipeline) issue(ctx context.Context, id string, who audit.Actor, t *issuer.Ticket, intent audit.Object, before ...audit.Entry) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("authority: before the intent: %w", err)
	}
	ctx = context.WithoutCancel(ctx)
	serial := t.Intent().Serial
	lines, err := p.log.AppendAll(ctx, append(slices.Clone(before), audit.Entry{Event: store.EventEnroll, Outcome: store.OutIntent, Request: id, Actor: who, Object: intent})...)
	if err != nil {
		return nil, fmt.Errorf("authority: recording the intent: %w", err)
	}
	line := lines[len(lines)-1]
	der, serr := p.sign(ctx, t, line.Record.Seq)
	if serr != nil {
		return nil, p.failed(ctx, id, line.Record.Seq, t.Intent(), serr)
	}
	_, err = p.log.Append(ctx, audit.Entry{
		Event: store.EventEnroll, Outcome: store.OutIssued, Request: id, Actor: who,
		Object: store.ResultObject(line.Record.Seq, serial, der),
	})
	if err != nil {
		return nil, fmt.Errorf("authority: recording the certificate: %w", err)
	}
	return der, nil
}

// sign makes a panic an error, since the intent has to get its outcome.
func (p *Pipeline) sign(ctx context.Context, t *issuer.Ticket, intent uint64) (der []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, signWithin)
	defer cancel()
	defer func() {
		if v := recover(); v != nil {
			p.zap.Error("panic while signing", zap.Any("value", v), zap.ByteString("stack", debug.Stack()))
			err = errors.New("authority: panic while signing")
		}
	}()
	return t.Sign(ctx, intent)
}

// failed closes an intent whose signature did not come. A token that did not
// answer may still have signed: then the serial is burnt. Either way the
// challenge is free again.
func (p *Pipeline) failed(ctx context.Context, id string, seq uint64, in audit.Intent, serr error) error {
	serial := in.Serial
	o := store.ResultObject(seq, serial, nil)
	o["why"] = cut(serr.Error())
	entries := []audit.Entry{{Event: store.EventEnroll, Outcome: store.OutFailed, Request: id, Actor: system(), Object: o}}
	if !errors.Is(serr, issuer.ErrNotSigned) {
		entries = burnt(id, seq, serial, cut(serr.Error()))
	}
	if _, err := p.log.AppendAll(ctx, entries...); err != nil {
		p.zap.Error("an intent stays open until the next start", zap.String("serial", serial), zap.Error(err))
	} else if len(entries) > 1 {
		p.revoked(in.Issuer, serial)
	}
	return fmt.Errorf("authority: signing: %w", serr)
}

// burnt closes an intent of which nobody knows whether it was signed. The
// revocation comes first: should a crash leave that line alone, the intent is
// still open, and the next start writes both.
func burnt(id string, seq uint64, serial, why string) []audit.Entry {
	o := store.ResultObject(seq, serial, nil)
	o["why"] = why
	return []audit.Entry{
		{Event: store.EventRevocation, Outcome: store.OutDue, Request: id, Actor: system(), Object: store.RevocationObject(serial, why)},
		{Event: store.EventEnroll, Outcome: store.OutUnknown, Request: id, Actor: system(), Object: o},
	}
}
