package status

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/protocol/status"
)

// Bounds of what is kept and counted.
const (
	maxAnswers  = 1 << 14 // about 16 MB
	countEvery  = time.Minute
	countWithin = 15 * time.Second
)

// key is what one answer is about.
type key struct {
	hash   crypto.Hash
	serial string
}

// counts are of what was asked since the last record.
type counts struct{ lists, good, revoked, unauthorized, malformed int64 }

func (c *counts) answered(revoked bool) {
	if revoked {
		c.revoked++
	} else {
		c.good++
	}
}

// A keptAnswer is signed already.
type keptAnswer struct {
	status.Answer
	revoked bool
}

// Answer implements [status.Source].
func (s *Service) Answer(ctx context.Context, name string, id status.CertID) (status.Answer, error) {
	n, ok := s.issuers[name]
	if !ok || n.Responder == nil {
		return status.Answer{}, status.ErrUnknownIssuer
	}
	k := key{id.Hash, id.Serial}
	if !n.matches(id) {
		return status.Answer{}, n.unauthorized()
	}
	now := s.o.Now()
	n.mu.Lock()
	a, kept := n.answers[k]
	changes := n.changes
	if kept && !now.Before(a.ThisUpdate) && now.Before(a.ThisUpdate.Add(n.Answers/2)) {
		n.counts.answered(a.revoked)
		n.mu.Unlock()
		return a.Answer, nil
	}
	n.mu.Unlock()
	return s.make(ctx, n, k, changes)
}

func (n *one) unauthorized() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.counts.unauthorized++
	return status.ErrUnauthorized
}

// make has an answer signed by what the index says now.
func (s *Service) make(ctx context.Context, n *one, k key, changes uint64) (status.Answer, error) {
	name, now := n.Issuer.Issuer.Name(), s.o.Now().UTC().Truncate(time.Second)
	i, err := s.o.Index.Certificate(ctx, k.serial)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return status.Answer{}, n.unauthorized()
	case err != nil:
		return status.Answer{}, fmt.Errorf("status: %w", err)
	case i.Issuer != name, i.State != store.Issued && !i.RevocationDue, now.After(i.NotAfter.Add(n.Validity)):
		// Never issued here, not issued yet, or ended and in no list any more.
		return status.Answer{}, n.unauthorized()
	}
	answer := issuer.Answer{Hash: k.hash, Serial: i.Serial, ThisUpdate: now, NextUpdate: now.Add(n.Answers)}
	if i.RevocationDue {
		answer.Revoked = &issuer.Revoked{Serial: i.Serial, Reason: i.Reason, At: i.RevokedAt}
	}
	select {
	case n.sign <- struct{}{}:
		defer func() { <-n.sign }()
	case <-ctx.Done():
		return status.Answer{}, ctx.Err()
	}
	der, err := n.Responder.Respond(ctx, answer)
	if err != nil {
		return status.Answer{}, fmt.Errorf("status: %w", err)
	}
	a := status.Answer{DER: der, ThisUpdate: now, NextUpdate: answer.NextUpdate}
	n.keep(k, a, changes, answer.Revoked != nil)
	return a, nil
}

// keep keeps an answer, unless something was revoked since the index was asked.
func (n *one) keep(k key, a status.Answer, changes uint64, revoked bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.counts.answered(revoked)
	if n.changes != changes {
		return
	}
	if len(n.answers) >= maxAnswers {
		for old := range n.answers { // any one: which is asked for next is not known
			delete(n.answers, old)
			break
		}
	}
	n.answers[k] = keptAnswer{a, revoked}
}

// runCounts records what was asked, once a minute and at the end.
func (s *Service) runCounts(ctx context.Context) {
	tick := time.NewTicker(countEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.recordCounts(ctx)
		case <-ctx.Done():
			s.recordCounts(ctx)
			return
		}
	}
}

func (s *Service) recordCounts(ctx context.Context) {
	o := audit.Object{}
	for name, n := range s.issuers {
		n.mu.Lock()
		c := n.counts
		n.counts = counts{}
		n.mu.Unlock()
		if c != (counts{}) {
			o[name] = audit.Object{"crl": c.lists, "good": c.good, "revoked": c.revoked, "unauthorized": c.unauthorized, "malformed": c.malformed}
		}
	}
	if len(o) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), countWithin)
	defer cancel()
	if _, err := s.o.Log.Append(ctx, audit.Entry{Event: "status", Outcome: "served", Actor: audit.Actor{Kind: "system", ID: "posternd"}, Object: audit.Object{"issuers": o}}); err != nil {
		s.o.Zap.Error("what was asked about certificates could not be recorded", zap.Error(err))
	}
}
