package authority

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/policy/challenge"
	"github.com/postern-pki/postern/protocol"
)

// maxReasons bounds the reasons of one record; a request that breaks more rules
// is refused for these.
const maxReasons = 64

// whyPolicy says that a challenge was good and the request was refused all the
// same. It counts: who guesses at a policy with one challenge has five tries.
const whyPolicy challenge.Why = "policy"

// and joins what authorization said with what policy says. The device hears the
// first; the log hears all.
func (v *verdict) and(d policy.Decision, g grant) *verdict {
	if v == nil {
		v = &verdict{kind: protocol.NotAllowed}
		if g.challenge.ID != "" && !busy(d.Reasons) {
			v.challenge = &challenge.Refusal{ID: g.challenge.ID, Why: whyPolicy}
		}
		if len(d.Reasons) > 0 {
			v.say = d.Reasons[0].Say
			if d.Reasons[0].Rule == policy.RuleKeyType {
				v.kind = protocol.BadAlgorithm // RFC 8894, section 3.2.1.4: an algorithm that is not supported
			}
		}
	}
	for _, r := range d.Reasons {
		if r.Rule != policy.RuleAuthorization {
			v.reasons = append(v.reasons, r)
		}
	}
	return v
}

// busy reports whether nothing is wrong but that others came first this minute,
// which costs no challenge a try: the device is told to come again.
func busy(reasons []policy.Reason) bool {
	return !slices.ContainsFunc(reasons, func(r policy.Reason) bool { return r.Rule != rulePerMinute })
}

// rulePerMinute is policy's rule on how many certificates a profile issues.
const rulePerMinute = "limits.per_minute"

// recordWithin bounds a record that is made also when its sender hung up. A token
// that hangs keeps the log busy with a checkpoint for 10 s.
const recordWithin = 15 * time.Second

// refuse records a refusal with all its reasons and answers with one sentence. A
// device that does not wait for that is refused, and counted, all the same.
func (p *Pipeline) refuse(ctx context.Context, q *proven, f *policy.Facts, v *verdict) (protocol.Outcome, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordWithin)
	defer cancel()
	reasons := make([]any, 0, len(v.reasons))
	for _, r := range v.reasons[:min(len(v.reasons), maxReasons)] {
		reasons = append(reasons, audit.Object{"rule": r.Rule, "saw": cut(r.Saw), "say": r.Say})
	}
	o := audit.Object{
		"profile": q.profile.Name, "kind": v.kind.String(), "say": v.say, "reasons": reasons,
		"signer_cert": q.signerDigest, "policy": p.policies.Digest(),
	}
	for key, value := range map[string]string{"transaction": cut(q.message.TransactionID), "csr": q.csrDigest} {
		if value != "" {
			o[key] = value
		}
	}
	if v.challenge != nil {
		o["challenge_why"] = string(v.challenge.Why)
		if v.challenge.ID != "" {
			o["challenge_refused"] = v.challenge.ID
		}
	}
	kind := ""
	if f != nil {
		o["facts"], kind = audit.Object(f.Object()), f.Kind
	}
	addClient(o, q.sender(kind))
	if q.message.Type != 0 {
		o["message_type"] = strconv.Itoa(q.message.Type)
	}
	entries := []audit.Entry{{Event: q.event(), Outcome: store.OutRefused, Request: q.id, Actor: q.actor(), Object: o}}
	if v.security != "" {
		alert := audit.Object{"what": v.security, "profile": q.profile.Name, "signer_cert": q.signerDigest}
		if v.challenge != nil && v.challenge.ID != "" {
			alert["challenge"] = v.challenge.ID
		}
		entries = append(entries, audit.Entry{Event: "security", Outcome: "alert", Request: q.id, Actor: q.actor(), Object: alert})
		p.zap.Warn("security event", zap.String("what", v.security), zap.String("request", q.id), zap.String("source", q.source))
	}
	if v.challenge != nil && v.challenge.ID != "" {
		// Counted one at a time, so that the limit is reached once. Nobody takes
		// another lock while holding this one.
		unlock, err := p.locks.lock(ctx, "challenge/"+v.challenge.ID)
		if err != nil {
			return protocol.Outcome{}, fmt.Errorf("authority: waiting for the challenge: %w", err)
		}
		defer unlock()
	}
	worn, free := p.worn(ctx, q, v)
	defer free()
	if worn {
		entries = append(entries, audit.Entry{Event: store.EventChallenge, Outcome: store.OutRevoked, Request: q.id, Actor: system(),
			Object: audit.Object{"id": v.challenge.ID, "why": "refused too often"}})
	}
	_, err := p.log.AppendAll(ctx, entries...)
	if errors.Is(err, audit.ErrTooLarge) {
		shorten(o)
		_, err = p.log.AppendAll(ctx, entries...)
	}
	if err != nil {
		return protocol.Outcome{}, err
	}
	return protocol.Outcome{RequestID: q.id, Status: protocol.Refused, Refusal: &protocol.Refusal{Kind: v.kind, Say: v.say}}, nil
}

// shorten makes room in the record of a refusal, so that nobody escapes the log by
// asking for much: what is left out has its digest there.
func shorten(o audit.Object) {
	const few = 16 // of at most 64 reasons, which quote 256 octets each
	if facts, err := json.Marshal(o["facts"]); err == nil {
		delete(o, "facts")
		o["facts_sha256"] = digest(facts)
	}
	if reasons, ok := o["reasons"].([]any); ok && len(reasons) > few {
		o["reasons"] = reasons[:few]
		o["reasons_more"] = len(reasons) - few
	}
}

// worn reports whether this refusal is the last that the challenge survives. The
// challenge is held until free is called: a request that holds it now may be on
// its way to spend it, and no index could follow a log in which a challenge is
// revoked first. Such a one is not revoked here; as refused it is either spent, or
// has been refused as often as one that is.
func (p *Pipeline) worn(ctx context.Context, q *proven, v *verdict) (yes bool, free func()) {
	free = func() {}
	if v.challenge == nil || v.challenge.ID == "" {
		return false, free
	}
	id, request := v.challenge.ID, requestDigest(q)
	if w := v.challenge.Why; w != whyPolicy && w != whyValidator { // else this request has it
		if p.holds.Hold(id, request, p.now().Add(challenge.HoldFor)) != nil {
			return false, free
		}
		free = func() { p.holds.Release(id, request) }
	}
	r, err := p.index.Challenge(ctx, id)
	return err == nil && r.State == challenge.Open && r.Refusals+1 >= challenge.MaxRefusals, free
}

// unserved records a request that was neither granted nor refused.
func (p *Pipeline) unserved(ctx context.Context, id string, r protocol.Request, err error) {
	why := unservedWhy(ctx, err)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordWithin)
	defer cancel()
	o := audit.Object{"protocol": r.Protocol, "profile": cut(r.Profile), "why": why, "signer_cert": digest(r.Proof.SignerCert)}
	addClient(o, r.Client)
	_, err = p.log.Append(ctx, audit.Entry{Event: "message", Outcome: "rejected", Request: id, Actor: audit.Actor{Kind: "device", Source: r.Source}, Object: o})
	if err != nil {
		p.zap.Error("a request that was not decided could not be recorded", zap.String("request", id), zap.Error(err))
	}
}

// Reject implements [protocol.Authority]: what never became a request is
// recorded too.
func (p *Pipeline) Reject(ctx context.Context, r protocol.Rejected) (string, error) {
	id, out := newID(), "rejected"
	if r.Served {
		out = "served"
	}
	r.Protocol, r.Source = cut(r.Protocol), cut(r.Source)
	o := audit.Object{"protocol": r.Protocol, "kind": r.Kind.String(), "bytes": r.Bytes}
	for key, value := range map[string]string{
		"profile": r.Profile, "operation": r.Operation, "why": r.Why, "transaction": r.Transaction,
		"message_type": r.MessageType, "message": r.MessageDigest, "next_ca": p.handedOut(r),
	} {
		if value != "" {
			o[key] = cut(value)
		}
	}
	addClient(o, r.Client)
	_, err := p.log.Append(ctx, audit.Entry{Event: "message", Outcome: out, Request: id, Actor: audit.Actor{Kind: "device", Source: r.Source}, Object: o})
	return id, err
}

// handedOut is the generation whose certificates somebody was given as the next
// CA's, if there is one of that name; "" for any other question.
func (p *Pipeline) handedOut(r protocol.Rejected) string {
	if r.NextCA == "" || !r.Served {
		return ""
	}
	if pr, ok := p.policies.Profile(r.Profile); ok && p.issuers[pr.Issuer].named(r.NextCA) != nil {
		return r.NextCA
	}
	return ""
}
