package authority

import (
	"cmp"
	"context"
	"crypto"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
)

// maxReason bounds what an operator says, in octets.
const maxReason = 500

// A Ruling is what an operator decides on a request that waits. Digest is that of
// the request's line, as the operator saw it; "" stands for whatever waits under the
// id, which is always the same.
type Ruling struct {
	Request string
	Digest  string
	Reason  string
}

func (r Ruling) check() error {
	switch {
	case strings.TrimSpace(r.Reason) == "":
		return fmt.Errorf("%w: it is empty", ErrReason)
	case len(r.Reason) > maxReason, !utf8.ValidString(r.Reason), strings.ContainsFunc(r.Reason, unicode.IsControl):
		return fmt.Errorf("%w: one line of at most %d octets", ErrReason, maxReason)
	}
	return nil
}

// Approve issues the certificate of a request that waits, by the policy in force
// now and from the facts that were recorded: whether the policy still grants it is
// decided again. What is before it in the log is durable together with the approval.
// The device gets the certificate when it asks again. The error is
// [store.ErrNotFound], [ErrNotWaiting], [ErrRefused] with the reasons, or a fault: if
// it was not signed, the request still waits.
func (p *Pipeline) Approve(ctx context.Context, who audit.Actor, r Ruling, before ...audit.Entry) (store.Issuance, error) {
	w, q, unlock, err := p.rule(ctx, r)
	if err != nil {
		return store.Issuance{}, err
	}
	defer unlock()
	f, g, d, err := p.redecide(ctx, q, w)
	if err != nil {
		return store.Issuance{}, err
	}
	if !p.rate.take(q.profile.Name, int64(q.profile.Limits.PerMinute), p.now()) {
		return store.Issuance{}, fmt.Errorf("%w: %s (%s)", ErrRefused, sayPerMinute, rulePerMinute)
	}
	key, err := keyOf(f.Key)
	if err != nil {
		return store.Issuance{}, fmt.Errorf("authority: the key of request %s: %w", w.Request, err)
	}
	i := store.Issuance{Request: w.Request} // whose line spent the challenge
	ticket, err := p.prepare(q, f, g, d, &i, key)
	if finding, ok := errors.AsType[*issuer.LintError](err); ok {
		return store.Issuance{}, fmt.Errorf("%w: the certificate would not be well formed: %s", ErrRefused, finding.Error())
	}
	if err != nil {
		return store.Issuance{}, err
	}
	o := intentOf(ticket, i, f, g, d)
	o["pending"], o["source"] = w.Request, w.Source
	before = append(slices.Clone(before), audit.Entry{Event: store.EventEnroll, Outcome: store.OutApproved, Request: w.Request, Actor: who,
		Object: audit.Object{"pending": w.Request, "digest": w.Digest, "why": r.Reason}})
	der, err := p.issue(ctx, w.Request, who, ticket, o, before...)
	if errors.Is(err, audit.ErrTooLarge) { // so nothing of it was written
		return store.Issuance{}, fmt.Errorf("%w: the request asks for more than a record holds", ErrRefused)
	}
	if err != nil {
		return store.Issuance{}, err
	}
	i.Serial, i.State, i.Certificate = ticket.Intent().Serial, store.Issued, der
	return i, nil
}

// Deny refuses a request that waits, for good. The errors are those of Approve.
func (p *Pipeline) Deny(ctx context.Context, who audit.Actor, r Ruling, before ...audit.Entry) error {
	w, _, unlock, err := p.rule(ctx, r)
	if err != nil {
		return err
	}
	defer unlock()
	_, err = p.log.AppendAll(context.WithoutCancel(ctx), append(slices.Clone(before), audit.Entry{
		Event: store.EventEnroll, Outcome: store.OutDenied, Request: w.Request, Actor: who, Object: store.DenialObject(w.Request, r.Reason),
	})...)
	return err
}

// rule returns a request that waits, to have to oneself until unlock: as if its
// device asked now.
func (p *Pipeline) rule(ctx context.Context, r Ruling) (w store.Pending, q *proven, unlock func(), err error) {
	if err := r.check(); err != nil {
		return w, nil, nil, err
	}
	if w, err = p.index.Pending(ctx, r.Request); err != nil {
		return w, nil, nil, err
	}
	if r.Digest != "" && r.Digest != w.Digest {
		return w, nil, nil, fmt.Errorf("%w: the digest is another request's", ErrNotWaiting)
	}
	profile, ok := p.policies.Profile(w.Profile)
	if !ok {
		return w, nil, nil, fmt.Errorf("%w: %q", ErrNoProfile, w.Profile)
	}
	q = &proven{
		id: w.Request, profile: profile, source: w.Source, message: scep.Message{TransactionID: w.Transaction},
		signerName: w.Signer, csrDigest: w.CSR, spkiDigest: w.SPKI,
		// A line from before there were generations names none.
		ca: p.issuers[profile.Issuer].ca(cmp.Or(w.Issuer, profile.Issuer)),
	}
	if q.ca == nil {
		return w, nil, nil, fmt.Errorf("%w: %s, which the request is for, is not configured any more", ErrNoCA, w.Issuer)
	}
	if w.Predecessor != "" {
		ours, err := p.index.Certificate(ctx, w.Predecessor)
		if err != nil {
			return w, nil, nil, fmt.Errorf("authority: the certificate that request %s renews: %w", w.Request, err)
		}
		q.ours = &ours
	}
	if unlock, err = p.locks.lock(ctx, q.exclusive(p.policies.NamesOf(w.Facts))...); err != nil {
		return w, nil, nil, fmt.Errorf("authority: waiting for the device's own request: %w", err)
	}
	if w, err = p.index.Pending(ctx, r.Request); err == nil { // as it is now that nobody else decides on it
		switch {
		case w.State != store.Waiting:
			err = fmt.Errorf("%w: it is %s", ErrNotWaiting, w.State)
		case !w.Open(p.now()):
			err = fmt.Errorf("%w: it has expired", ErrNotWaiting)
		}
	}
	if err != nil {
		unlock()
		return w, nil, nil, err
	}
	return w, q, unlock, nil
}

// redecide decides again on the facts of a request that waits, with what is looked
// up looked up anew.
func (p *Pipeline) redecide(ctx context.Context, q *proven, w store.Pending) (f policy.Facts, g grant, d policy.Decision, err error) {
	f, g = w.Facts, grant{kind: w.Kind, by: w.Facts.AuthorizedBy}
	f.Now = p.now().Unix()
	var v *verdict
	if g.kind == kindRenewal {
		if fresh, err := p.index.Certificate(ctx, w.Predecessor); err == nil {
			q.ours = &fresh
		} else {
			return f, g, d, fmt.Errorf("authority: the certificate that request %s renews: %w", w.Request, err)
		}
		g, v = p.byCertificate(q)
	}
	if err := p.complete(ctx, q, &f, g, v); err != nil {
		return f, g, d, err
	}
	d = p.policies.Decide(f)
	if v == nil && d.Issue {
		return f, g, d, nil
	}
	var said []string
	if v != nil {
		said = append(said, v.say)
	}
	for _, r := range d.Reasons {
		if r.Rule != policy.RuleAuthorization {
			said = append(said, fmt.Sprintf("%s (%s)", r.Say, r.Rule))
		}
	}
	return f, g, d, fmt.Errorf("%w: %s", ErrRefused, strings.Join(said[:min(len(said), maxReasons)], "; "))
}

// keyOf is the key of the facts.
func keyOf(f policy.KeyFacts) (crypto.PublicKey, error) {
	der, err := base64.StdEncoding.DecodeString(f.SPKI)
	if err != nil {
		return nil, err
	}
	key, err := cms.ParsePublicKey(der)
	if err == nil && key == nil {
		err = cms.ErrAlgorithm
	}
	return key, err
}
