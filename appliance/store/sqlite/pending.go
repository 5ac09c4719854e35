package sqlite

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/postern-pki/postern/appliance/store"
)

// pendingColumns are those that the line of a request that waits sets, in the order
// of [writes.wait] and [scanPending].
var pendingColumns = []string{
	"seq", "digest", "request", "profile", "kind", "subject", "names", "spki", "transaction_id", "signer", "csr",
	"challenge", "predecessor", "source", "policy", "created", "expires", "facts", "issuer",
}

// waiting is what an approval and a denial want of a request: nobody decided, or
// what was approved was not signed.
const waiting = `denied_seq = 0 AND (intent_seq = 0 OR
	EXISTS (SELECT 1 FROM certificate AS c WHERE c.intent_seq = pending.intent_seq AND c.state IN ('failed', 'unknown')))`

// pendingRows are requests with what became of them.
func pendingRows() string {
	return "SELECT p." + strings.Join(pendingColumns, ", p.") + `, p.denied_seq, p.why, coalesce(c.state, ''), coalesce(c.serial, '')
		FROM pending AS p LEFT JOIN certificate AS c ON c.intent_seq = p.intent_seq AND p.intent_seq > 0 `
}

func (w *writes) wait(ctx context.Context, p store.Pending) error {
	facts, err := json.Marshal(p.Facts)
	if err != nil {
		return fmt.Errorf("the facts of request %s: %w", p.Request, err)
	}
	if _, err := w.pend.ExecContext(ctx, p.Seq, p.Digest, p.Request, p.Profile, p.Kind, p.Subject, p.Names, p.SPKI, p.Transaction, p.Signer, p.CSR,
		p.Challenge, p.Predecessor, p.Source, p.Policy, p.Created.Unix(), p.Expires.Unix(), string(facts), p.Issuer); err != nil {
		return fmt.Errorf("adding request %s: %w", p.Request, err)
	}
	return w.spent(ctx, p.Challenge, p.Seq, p.Request)
}

func (w *writes) denied(ctx context.Context, d store.PendingDenied) error {
	return decided(d.Request)(changed(w.deny.ExecContext(ctx, d.Seq, d.Why, d.Request)))
}

func (w *writes) approved(ctx context.Context, request string, intentSeq uint64) error {
	return decided(request)(changed(w.approve.ExecContext(ctx, intentSeq, request)))
}

func decided(request string) func(n int64, err error) error {
	return func(n int64, err error) error {
		if err == nil && n != 1 {
			err = fmt.Errorf("request %s does not wait for a decision", request)
		}
		return err
	}
}

func scanPending(r row) (store.Pending, error) {
	var p store.Pending
	var created, expires int64
	var facts []byte
	var state store.State
	err := r.Scan(&p.Seq, &p.Digest, &p.Request, &p.Profile, &p.Kind, &p.Subject, &p.Names, &p.SPKI, &p.Transaction, &p.Signer, &p.CSR,
		&p.Challenge, &p.Predecessor, &p.Source, &p.Policy, &created, &expires, &facts, &p.Issuer, &p.DeniedSeq, &p.Why, &state, &p.Serial)
	if err != nil {
		return store.Pending{}, err
	}
	if err := json.Unmarshal(facts, &p.Facts); err != nil {
		return store.Pending{}, fmt.Errorf("%w: the facts of request %s: %w", ErrDamaged, p.Request, err)
	}
	p.Created, p.Expires, p.State = unix(created), unix(expires), store.Waiting
	switch {
	case p.DeniedSeq > 0:
		p.State = store.Denied
	case state == store.Intended:
		p.State = store.Approved
	case state == store.Issued:
		p.State = store.Granted
	}
	return p, nil
}

// Pending returns the request that waits, or did, by its id, or [store.ErrNotFound].
func (s *Store) Pending(ctx context.Context, request string) (store.Pending, error) {
	p, err := one(ctx, s, s.reads.pending, scanPending, request)
	return p, reading("a request that waits", err)
}

// PendingOf returns the newest request of the transaction that waits or did, or
// [store.ErrNotFound]. The signer "" is any.
func (s *Store) PendingOf(ctx context.Context, profile, transaction, signer string) (store.Pending, error) {
	stmt, args := s.reads.pendingOf, []any{profile, transaction, signer}
	if signer == "" {
		stmt, args = s.reads.pendingBy, args[:2]
	}
	p, err := one(ctx, s, stmt, scanPending, args...)
	return p, reading("a transaction that waits", err)
}

// DeniedBefore returns the newest request of this signer with this CSR that was
// denied, under whatever transaction, or [store.ErrNotFound].
func (s *Store) DeniedBefore(ctx context.Context, profile, signer, csr string) (store.Pending, error) {
	p, err := one(ctx, s, s.reads.denied, scanPending, csr, signer, profile)
	return p, reading("a denial", err)
}

// PendingCount returns how many requests of the profile wait at the time now.
func (s *Store) PendingCount(ctx context.Context, profile string, now time.Time) (int64, error) {
	n, err := one(ctx, s, s.reads.pendings, value[int64], profile, now.Unix())
	return n, reading("how many requests wait", err)
}

// Polled returns the newest certificate that was issued under the transaction to
// the signer: by the key's digest where the signer signed for itself, by its serial
// where we issued the signer's certificate; the other is "". The error may be
// [store.ErrNotFound].
func (s *Store) Polled(ctx context.Context, profile, transaction, signer, spki, predecessor string) (store.Issuance, error) {
	stmt, by := s.reads.polledKey, spki
	if predecessor != "" {
		stmt, by = s.reads.polledCert, predecessor
	}
	i, err := one(ctx, s, stmt, scanIssuance, by, signer, profile, transaction)
	return i, reading("what was issued in a transaction", err)
}

// PendingList returns the newest requests that the filter selects.
func (s *Store) PendingList(ctx context.Context, f store.PendingFilter) ([]store.Pending, error) {
	var c conditions
	if f.Before != 0 {
		c.add("p.seq < ?", min(f.Before, math.MaxInt64))
	}
	if f.Profile != "" {
		c.add("p.profile = ?", f.Profile)
	}
	if !f.After.IsZero() {
		c.add("p.expires > ?", f.After.Unix())
	}
	switch f.State {
	case "":
	case store.Waiting:
		c.add("p.denied_seq = 0 AND coalesce(c.state, '') NOT IN ('intended', 'issued')")
	case store.Denied:
		c.add("p.denied_seq > 0")
	case store.Approved:
		c.add("p.denied_seq = 0 AND c.state = 'intended'")
	case store.Granted:
		c.add("p.denied_seq = 0 AND c.state = 'issued'")
	default:
		c.add("1 = 0")
	}
	query, args := c.newestOf(pendingRows(), "p.seq", f.Limit)
	rows, err := s.list(ctx, query, args...)
	list, err := collect(rows, err, scanPending)
	return list, reading("requests that wait", err)
}
