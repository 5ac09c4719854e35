package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/postern-pki/postern/appliance/store"
)

func (w *writes) revocation(ctx context.Context, r store.Revocation) error {
	var seq uint64
	var state string
	err := w.due.QueryRowContext(ctx, r.Serial, r.At.Unix(), r.Reason).Scan(&seq, &state)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("a revocation of serial %s, which is unknown", r.Serial)
	case err != nil:
		return fmt.Errorf("marking serial %s: %w", r.Serial, err)
	case store.State(state) != store.Unknown:
		return nil
	}
	_, err = w.free.ExecContext(ctx, seq)
	return err
}

// list takes an issuer's newest list, whose number is above that of the last.
func (w *writes) list(ctx context.Context, c store.CRL) error {
	n, err := changed(w.crl.ExecContext(ctx, c.Issuer, c.Number, c.Seq, c.ThisUpdate.Unix(), c.NextUpdate.Unix(), c.Entries))
	switch {
	case err != nil:
		return fmt.Errorf("adding CRL %d of %s: %w", c.Number, c.Issuer, err)
	case n != 1:
		return fmt.Errorf("CRL %d of %s does not come after the last one", c.Number, c.Issuer)
	}
	return nil
}

// Revocations returns what an issuer's list names, by serial: every certificate that
// is revoked, or whose intent came to nobody knows what, and that ends at or after a
// time.
func (s *Store) Revocations(ctx context.Context, issuer string, ends time.Time) ([]store.Revocation, error) {
	rows, err := s.list(ctx, "SELECT serial, reason, revoked_at FROM certificate WHERE issuer = ? AND revocation_due = 1 AND not_after >= ? ORDER BY serial", issuer, ends.Unix())
	list, err := collect(rows, err, func(r row) (v store.Revocation, err error) {
		var at int64
		err = r.Scan(&v.Serial, &v.Reason, &at)
		v.At = unix(at)
		return v, err
	})
	return list, reading("the revocations", err)
}

const crlColumns = "issuer, number, seq, this_update, next_update, entries, sha256"

func scanCRL(r row) (c store.CRL, err error) {
	var this, next int64
	err = r.Scan(&c.Issuer, &c.Number, &c.Seq, &this, &next, &c.Entries, &c.SHA256)
	c.ThisUpdate, c.NextUpdate, c.Issued = unix(this), unix(next), c.SHA256 != ""
	return c, err
}

// CRL returns the newest list of an issuer, or [store.ErrNotFound].
func (s *Store) CRL(ctx context.Context, issuer string) (store.CRL, error) {
	rows, err := s.list(ctx, "SELECT "+crlColumns+" FROM crl WHERE issuer = ?", issuer)
	list, err := collect(rows, err, scanCRL)
	if err == nil && len(list) == 0 {
		err = sql.ErrNoRows
	}
	if err != nil {
		return store.CRL{}, reading("a CRL", err)
	}
	return list[0], nil
}

// Serials returns serial numbers of an issuer's, in order and after one of them, about
// which something can be said: issued, or revoked, and ending at or after a time.
func (s *Store) Serials(ctx context.Context, issuer, after string, ends time.Time, limit int) ([]string, error) {
	rows, err := s.list(ctx, `SELECT serial FROM certificate WHERE serial > ? AND issuer = ? AND not_after >= ? AND (state = 'issued' OR revocation_due = 1)
		ORDER BY serial LIMIT ?`, after, issuer, ends.Unix(), limit)
	list, err := collect(rows, err, value[string])
	return list, reading("serial numbers", err)
}
