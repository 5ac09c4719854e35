package sqlite

import (
	"context"
	"fmt"
	"time"

	"github.com/postern-pki/postern/appliance/store"
)

// living are the certificates c that count as in use at a time, which is the
// statement's next parameter: not renewed, and none of our own listeners'.
const living = "c.state = 'issued' AND c.not_after > ? AND c.revocation_due = 0 AND c.profile <> '" + store.ServerProfile + `'
	AND NOT EXISTS (SELECT 1 FROM certificate AS s
		WHERE s.predecessor = c.serial AND s.predecessor <> '' AND s.lineage = c.lineage AND s.` + valid + ")"

const fetchColumns = "profile, generation, source, first, last, count"

// CurrentCAs returns the generations that were switched to, by the issuer's name.
func (s *Store) CurrentCAs(ctx context.Context) (map[string]store.CurrentCA, error) {
	out := make(map[string]store.CurrentCA)
	rows, err := s.list(ctx, "SELECT issuer, generation, before, since FROM current_ca")
	err = each(rows, err, scanSwitch, func(c store.CASwitched) error {
		out[c.Issuer] = c.CurrentCA
		return nil
	})
	return out, reading("the current CAs", err)
}

func scanSwitch(r row) (c store.CASwitched, err error) {
	var since int64
	err = r.Scan(&c.Issuer, &c.Generation, &c.Before, &since)
	c.Since = unix(since)
	return c, err
}

// CountCAs counts the certificates that live at a time, by CA and profile. It looks
// at every certificate.
func (s *Store) CountCAs(ctx context.Context, now time.Time) ([]store.CACount, error) {
	rows, err := s.list(ctx, "SELECT c.issuer, c.profile, count(*) FROM certificate AS c WHERE "+living+" GROUP BY c.issuer, c.profile ORDER BY c.issuer, c.profile", now.Unix())
	list, err := collect(rows, err, func(r row) (c store.CACount, err error) {
		return c, r.Scan(&c.Issuer, &c.Profile, &c.Live)
	})
	return list, reading("the certificates of each CA", err)
}

// Fetches returns who was given the certificates of a generation as the next CA's in
// a profile, the newest first, and how many they are.
func (s *Store) Fetches(ctx context.Context, profile, generation string, limit int) (list []store.Fetch, all int64, err error) {
	var c conditions
	c.add("profile = ?", profile)
	c.add("generation = ?", generation)
	query, args := c.newest(fetchColumns, "next_ca_fetch", "last", limit)
	rows, err := s.list(ctx, query, args...)
	if list, err = collect(rows, err, scanFetch); err != nil {
		return nil, 0, reading("fetches of the next CA", err)
	}
	err = s.read.QueryRowContext(ctx, "SELECT count(*) FROM next_ca_fetch WHERE profile = ? AND generation = ?", profile, generation).Scan(&all)
	return list, all, reading("fetches of the next CA", err)
}

// Fetched returns when somebody at the address was last given the certificates of a
// generation as the next CA's, or [store.ErrNotFound].
func (s *Store) Fetched(ctx context.Context, profile, generation, source string) (time.Time, error) {
	if err := s.commitDue(); err != nil {
		return time.Time{}, err
	}
	var last int64
	err := s.read.QueryRowContext(ctx, "SELECT last FROM next_ca_fetch WHERE profile = ? AND generation = ? AND source = ?", profile, generation, source).Scan(&last)
	return unix(last), reading("a fetch of the next CA", err)
}

func scanFetch(r row) (f store.Fetch, err error) {
	var first, last int64
	err = r.Scan(&f.Profile, &f.Generation, &f.Source, &first, &last, &f.Count)
	f.First, f.Last = unix(first), unix(last)
	return f, err
}

// switchCA applies a switch.
func (w *writes) switchCA(ctx context.Context, c store.CASwitched) error {
	_, err := w.current.ExecContext(ctx, c.Issuer, c.Generation, c.Before, c.Since.Unix())
	if err != nil {
		return fmt.Errorf("switching the CA of %s: %w", c.Issuer, err)
	}
	return nil
}

// fetched counts an answer to GetNextCACert.
func (w *writes) fetched(ctx context.Context, c store.NextCAFetched) error {
	_, err := w.fetch.ExecContext(ctx, c.Profile, c.Generation, c.Source, c.At.Unix())
	if err != nil {
		return fmt.Errorf("counting a fetch of the next CA: %w", err)
	}
	return nil
}
