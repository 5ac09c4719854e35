package operator

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/postern-pki/postern/appliance/operator/acts"
	"github.com/postern-pki/postern/audit"
)

// The record that spends an order.
const (
	eventOperator = "operator"
	outApproved   = "approved"
)

// submit carries out what two people ordered. Whoever sends it needs a role for
// the act too, and need not be one of them.
func (s *Service) submit(ctx context.Context, r *request) (int, any, error) {
	signed, err := acts.ParseSigned(r.Body)
	if err != nil {
		return 0, nil, err
	}
	o := signed.Order
	act, _ := acts.Named(o.Act)
	r.order = o.ID
	if err := r.permit(act); err != nil {
		return 0, nil, err
	}
	approval, err := s.approve(r, act, signed)
	if err != nil {
		return 0, nil, err
	}
	// Nobody else spends it between the look into the log and the record.
	select {
	case s.ordering <- struct{}{}:
		defer func() { <-s.ordering }()
	case <-ctx.Done():
		return 0, nil, ctx.Err()
	}
	if err := s.unused(ctx, o); err != nil {
		return 0, nil, err
	}
	return s.perform(ctx, r.who, o.Act, o.Parameters, approval)
}

// approve checks what an order says and who signed it, and returns its record.
func (s *Service) approve(r *request, act acts.Act, signed acts.Signed) (audit.Entry, error) {
	o := signed.Order
	canonical, err := o.Canonical()
	if err != nil {
		return audit.Entry{}, err
	}
	until, err := o.Until()
	if err != nil {
		return audit.Entry{}, err
	}
	switch now := s.Now(); {
	case o.Origin != s.Origin:
		return audit.Entry{}, refuse(http.StatusConflict, fmt.Sprintf("the act is for %.100q, and this is %q", o.Origin, s.Origin), "")
	case !now.Before(until):
		return audit.Entry{}, refuse(http.StatusConflict, "the act ended at "+until.Format(time.RFC3339), "write a new one, and have it signed")
	case until.After(now.Add(acts.MaxLife)):
		return audit.Entry{}, refuse(http.StatusConflict, fmt.Sprintf("the act ends more than %s from now", acts.MaxLife), "write a new one, and have it signed")
	}
	signers, err := s.signers(act, canonical, signed.Signatures)
	if err != nil {
		return audit.Entry{}, err
	}
	return audit.Entry{Event: eventOperator, Outcome: outApproved, Request: o.ID, Actor: r.who, Object: audit.Object{
		"act": o.Act, "signed": o.Object(), "signers": signers,
	}}, nil
}

// signers checks every signature and returns them as the log has them: with the
// order beside them, whoever reads it can check them again.
func (s *Service) signers(act acts.Act, canonical []byte, signatures []acts.Signature) ([]any, error) {
	seen := map[string]bool{}
	var out []any
	for _, sig := range signatures {
		id := sig.ID()
		p, known := s.Rules.Who(id)
		switch {
		case !known:
			return nil, refuse(http.StatusForbidden, "the act is signed with a key that is no operator's: "+id, "operators.people names their keys")
		case seen[id]:
			return nil, refuse(http.StatusForbidden, p.Name+" has signed the act twice", fmt.Sprintf("it takes %d people", acts.Signers))
		case !act.May(p.Roles):
			return nil, refuse(http.StatusForbidden, fmt.Sprintf("%s has signed the act, and may not: %s", p.Name, act.Name),
				"it takes one of the roles "+words(act.Roles))
		}
		if err := sig.Verify(canonical); err != nil {
			return nil, refuse(http.StatusForbidden, fmt.Sprintf("the signature of %s: %v", p.Name, err), "was the act changed after it was signed?")
		}
		seen[id] = true
		out = append(out, audit.Object{
			"name": p.Name, "id": id, "spki": base64.StdEncoding.EncodeToString(sig.SPKI), "signature": base64.StdEncoding.EncodeToString(sig.Value),
		})
	}
	if len(out) < acts.Signers {
		return nil, refuse(http.StatusForbidden, fmt.Sprintf("%s takes %d people, and %d signed the act", act.Name, acts.Signers, len(out)),
			"postern act sign --key FILE --cert FILE ACT")
	}
	return out, nil
}

// unused looks through the log from the place that the order names: there its last
// line has to be the one that the order knows, and no line after it may be the
// record of this order. The log forgets nothing over a restart.
func (s *Service) unused(ctx context.Context, o acts.Order) error {
	other := refuse(http.StatusConflict, "the act was written for another log, or for one that went another way since", "write a new one, and have it signed")
	if o.Place.Size > s.Log.Head().Size {
		return other
	}
	found := false
	err := s.Scan(o.Place.Size-1, func(l audit.Line) error {
		if l.Record.Seq == o.Place.Size-1 {
			hash := l.Hash()
			if found = hex.EncodeToString(hash[:]) == o.Place.Last; !found {
				return other
			}
		}
		if l.Record.Event == eventOperator && l.Record.Outcome == outApproved && l.Record.Request == o.ID {
			return refuse(http.StatusConflict, "the act was carried out before", "postern audit show --req "+o.ID)
		}
		return ctx.Err()
	})
	if err == nil && !found {
		err = other
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = refuse(http.StatusServiceUnavailable, "too much was recorded since the act was written to look through it", "write a new one, and have it signed")
	}
	return err
}
