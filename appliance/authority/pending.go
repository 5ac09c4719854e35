package authority

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/protocol"
)

// outPolled is the outcome of a CertPoll that was answered with what there is.
const outPolled = "polled"

// byApproval stands in the place of who vouched for a request where nobody did
// before an operator.
const byApproval = "approval"

// rulePending are the rules about requests that wait, as reasons name them.
const (
	rulePendingMax      = "pending.max"
	rulePendingConflict = "pending.transaction"
	rulePendingDenied   = "pending.denied"
	rulePoll            = "poll.transaction"
)

// pend makes a request wait that authorization and policy let through. The record
// spends the challenge, so that it is good for this one request whatever an operator
// decides: one that was only held would be free again at the next start. The CSR is
// not kept, it has the challenge in it; the facts are what an approval goes by.
func (p *Pipeline) pend(ctx context.Context, q *proven, f policy.Facts, g grant, d policy.Decision) (protocol.Outcome, error) {
	// Nobody takes another lock while holding this one.
	unlock, err := p.locks.lock(ctx, "pending/"+q.profile.Name)
	if err != nil {
		return protocol.Outcome{}, fmt.Errorf("authority: waiting for another request of the profile: %w", err)
	}
	defer unlock()
	now := p.now().UTC().Truncate(time.Second)
	n, err := p.index.PendingCount(ctx, q.profile.Name, now)
	if err != nil {
		return protocol.Outcome{}, fmt.Errorf("authority: counting requests that wait: %w", err)
	}
	if n >= int64(q.profile.Pending.Max) {
		return p.refuse(ctx, q, &f, notAllowed(rulePendingMax, strconv.FormatInt(n, 10), "too many requests wait for approval: try again later"))
	}
	w := store.Pending{
		Request: q.id, Profile: q.profile.Name, Issuer: q.ca.Issuer.Name(), Kind: g.kind, Subject: policy.FormatSubject(d.Subject()), Names: d.Names().Digest(), SPKI: q.spkiDigest,
		Transaction: q.message.TransactionID, Signer: q.signerName, CSR: q.csrDigest, Challenge: g.challenge.ID,
		Policy: d.Digest, Created: now, Expires: now.Add(q.profile.Pending.TTL), Facts: f,
	}
	if g.kind == kindRenewal {
		w.Predecessor = q.ours.Serial
	}
	o := store.PendingObject(w)
	o["by"], o["signer_cert"] = g.by, q.signerDigest
	addClient(o, q.sender(g.kind))
	if err := ctx.Err(); err != nil {
		return protocol.Outcome{}, fmt.Errorf("authority: before the record: %w", err)
	}
	// Waited for as long as it takes: whoever left while the record is on its way
	// would let another request spend the same challenge.
	_, err = p.log.Append(context.WithoutCancel(ctx), audit.Entry{Event: store.EventEnroll, Outcome: store.OutPending, Request: q.id, Actor: q.actor(), Object: o})
	if errors.Is(err, audit.ErrTooLarge) { // so nothing of it was written
		return p.refuse(ctx, q, &f, notAllowed("record", "too large", "the request asks for more than a record holds"))
	}
	if err != nil {
		return protocol.Outcome{}, fmt.Errorf("authority: recording a request that waits: %w", err)
	}
	return protocol.Outcome{RequestID: q.id, Status: protocol.Pending}, nil
}

// waiting answers a request that waits already, or that was denied: the same CSR by
// the same signer. Another CSR in a transaction that waits is refused (RFC 8894,
// section 4.4: one transaction, one request); once it is decided, it is a new one. So
// is the same CSR for another generation.
func (p *Pipeline) waiting(ctx context.Context, q *proven) (protocol.Outcome, bool, error) {
	if q.profile.Approve == policy.ApproveAutomatic {
		return protocol.Outcome{}, false, nil
	}
	was, err := p.index.PendingOf(ctx, q.profile.Name, q.message.TransactionID, q.signerName)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return protocol.Outcome{}, false, fmt.Errorf("authority: looking up what waits: %w", err)
	}
	if err == nil && p.undecided(was) {
		if was.CSR == q.csrDigest && cmp.Or(was.Issuer, q.profile.Issuer) == q.ca.Issuer.Name() {
			out, err := p.waits(ctx, q, was, store.OutRepeated)
			return out, true, err
		}
		out, err := p.refuse(ctx, q, nil, notAllowed(rulePendingConflict, "request "+was.Request, "another request of the same transaction waits for approval"))
		return out, true, err
	}
	if err == nil && was.State == store.Waiting && was.CSR == q.csrDigest && was.Challenge != "" {
		// It spent its challenge, which is no alarm as long as it comes with the same request.
		out, err := p.refuse(ctx, q, nil, late(was))
		return out, true, err
	}
	was, err = p.index.DeniedBefore(ctx, q.profile.Name, q.signerName, q.csrDigest)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return protocol.Outcome{}, false, nil
	case err != nil:
		return protocol.Outcome{}, false, fmt.Errorf("authority: looking up a denial: %w", err)
	}
	out, err := p.denied(ctx, q, was)
	return out, true, err
}

// undecided reports whether the answer to the request is PENDING.
func (p *Pipeline) undecided(w store.Pending) bool {
	return w.State == store.Approved || w.Open(p.now())
}

// waits answers PENDING.
func (p *Pipeline) waits(ctx context.Context, q *proven, w store.Pending, outcome string) (protocol.Outcome, error) {
	if err := p.answered(ctx, q, outcome, audit.Object{"pending": w.Request}); err != nil {
		return protocol.Outcome{}, err
	}
	return protocol.Outcome{RequestID: w.Request, Status: protocol.Pending}, nil
}

// answered records that something was answered that had been decided before.
func (p *Pipeline) answered(ctx context.Context, q *proven, outcome string, o audit.Object) error {
	o["profile"], o["transaction"], o["message_type"] = q.profile.Name, cut(q.message.TransactionID), strconv.Itoa(q.message.Type)
	_, err := p.log.Append(ctx, audit.Entry{Event: store.EventEnroll, Outcome: outcome, Request: q.id, Actor: q.actor(), Object: o})
	return err
}

// denied refuses what an operator denied, for good. The device is told the id under
// which the operators have it; their reason is for the log.
func (p *Pipeline) denied(ctx context.Context, q *proven, w store.Pending) (protocol.Outcome, error) {
	out, err := p.refuse(ctx, q, nil, notAllowed(rulePendingDenied, "request "+w.Request, "an operator has denied the request"))
	if err == nil {
		out.RequestID = w.Request
	}
	return out, err
}

// poll answers a CertPoll (RFC 8894, section 3.3.3) by profile, transactionID and
// the key or certificate that signed the request; what the envelope holds means
// nothing. Once it is issued, the certificate is there again and again, as long as
// it lives: an answer may have been lost.
func (p *Pipeline) poll(ctx context.Context, q *proven) (protocol.Outcome, error) {
	was, err := p.index.PendingOf(ctx, q.profile.Name, q.message.TransactionID, q.signerName)
	known := err == nil
	switch {
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return protocol.Outcome{}, fmt.Errorf("authority: looking up what waits: %w", err)
	case known && was.State == store.Denied:
		return p.denied(ctx, q, was)
	case known && p.undecided(was):
		return p.waits(ctx, q, was, outPolled)
	}
	i, err := p.polled(ctx, q, was)
	switch {
	case err == nil && !i.RevocationDue && !p.now().After(i.NotAfter):
		if ok, err := p.delivered(ctx, i.Serial); err != nil {
			return protocol.Outcome{}, err
		} else if !ok { // a poll has no request in it that could be told with: the same request again has
			return p.refuse(ctx, q, nil, unknownTransaction("serial "+i.Serial+" is not delivered yet"))
		}
		if err := p.answered(ctx, q, outPolled, audit.Object{"serial": i.Serial, "first": i.Request}); err != nil {
			return protocol.Outcome{}, err
		}
		return protocol.Outcome{RequestID: q.id, Status: protocol.Issued, Certificates: [][]byte{i.Certificate}}, nil
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return protocol.Outcome{}, fmt.Errorf("authority: looking up what was polled for: %w", err)
	case err == nil:
		return p.refuse(ctx, q, nil, unknownTransaction("serial "+i.Serial+" is revoked or has expired"))
	case known:
		return p.refuse(ctx, q, nil, late(was))
	}
	switch was, err = p.index.PendingOf(ctx, q.profile.Name, q.message.TransactionID, ""); {
	case err == nil:
		return p.refuse(ctx, q, nil, notAllowed(rulePoll, "request "+was.Request, "the request of this transaction was signed by another key"))
	case !errors.Is(err, store.ErrNotFound):
		return protocol.Outcome{}, fmt.Errorf("authority: looking up what waits: %w", err)
	}
	return p.refuse(ctx, q, nil, unknownTransaction("no such transaction"))
}

// polled returns the certificate of a request that waited, or else the newest one of
// the transaction.
func (p *Pipeline) polled(ctx context.Context, q *proven, was store.Pending) (store.Issuance, error) {
	switch {
	case was.State == store.Granted:
		return p.index.Certificate(ctx, was.Serial)
	case q.ours != nil:
		return p.index.Polled(ctx, q.profile.Name, q.message.TransactionID, q.signerName, "", q.ours.Serial)
	default:
		return p.index.Polled(ctx, q.profile.Name, q.message.TransactionID, q.signerName, digest(q.signer.RawSPKI), "")
	}
}

func late(w store.Pending) *verdict {
	return notAllowed("pending.ttl", "request "+w.Request, "nobody approved the request in time: enroll again")
}

func unknownTransaction(saw string) *verdict {
	const say = "no request of this transaction is known"
	return &verdict{kind: protocol.NotFound, say: say, reasons: []policy.Reason{{Rule: rulePoll, Saw: saw, Say: say}}}
}
