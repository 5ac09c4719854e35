package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/postern-pki/postern/appliance/store"
)

func (w *writes) owe(ctx context.Context, n store.Notice) error {
	if _, err := w.notice.ExecContext(ctx, n.Serial, n.Validator, n.Since.Unix()); err != nil {
		return fmt.Errorf("owing a notice of serial %s: %w", n.Serial, err)
	}
	return nil
}

func scanNotice(r row) (n store.Notice, err error) {
	var since int64
	err = r.Scan(&n.Serial, &n.Validator, &since)
	n.Since = unix(since)
	return n, err
}

// Untold returns what is owed of a certificate, or [store.ErrNotFound] where nothing is.
func (s *Store) Untold(ctx context.Context, serial string) (store.Notice, error) {
	n, err := one(ctx, s, s.reads.untold, scanNotice, serial)
	if errors.Is(err, sql.ErrNoRows) {
		return n, store.ErrNotFound
	}
	return n, reading("a notice", err)
}

// UntoldBefore returns the certificates of which a validator should have heard since
// before then, that were issued and are not revoked; oldest first, at most 1,000.
func (s *Store) UntoldBefore(ctx context.Context, then time.Time) ([]store.Notice, error) {
	rows, err := s.list(ctx, `SELECT n.serial, n.validator, n.since FROM notice AS n JOIN certificate AS c ON c.serial = n.serial
		WHERE n.since < ? AND c.state = 'issued' AND c.revocation_due = 0 ORDER BY n.since, n.serial LIMIT 1000`, then.Unix())
	list, err := collect(rows, err, scanNotice)
	return list, reading("the notices that are owed", err)
}
