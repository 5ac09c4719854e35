package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/policy/challenge"
)

// intentColumns are the columns that an intent sets, in the order of
// [intentValues]; resultColumns are the others.
var (
	intentColumns = []string{
		"intent_seq", "serial", "profile", "issuer", "request", "subject", "names", "spki", "not_before", "not_after",
		"lineage", "generation", "lineage_from", "predecessor", "challenge", "transaction_id", "signer", "csr", "state", "source",
	}
	resultColumns = []string{"result_seq", "revocation_due", "reason", "revoked_at", "der"}
)

const challengeColumns = "id, tag, profile, names, created, expires, state, refusals, spent_by, lineage"

func columns(lists ...[]string) string {
	var all []string
	for _, l := range lists {
		all = append(all, l...)
	}
	return strings.Join(all, ", ")
}

func intentValues(i *store.Issuance) []any {
	return []any{
		i.IntentSeq, i.Serial, i.Profile, i.Issuer, i.Request, i.Subject, i.Names, i.SPKI, i.NotBefore.Unix(), i.NotAfter.Unix(),
		i.Lineage, i.Generation, i.LineageFrom.Unix(), i.Predecessor, i.Challenge, i.Transaction, i.Signer, i.CSR, string(i.State), i.Source,
	}
}

// reads are the statements that an enrollment needs, on the connection that
// writes.
type reads struct {
	byTag, challenge, certificate        *sql.Stmt
	transaction, renewal, lineage, inUse *sql.Stmt
	pending, pendingOf, pendingBy        *sql.Stmt
	denied, pendings                     *sql.Stmt
	polledKey, polledCert, untold        *sql.Stmt
	all                                  []*sql.Stmt
}

func (r *reads) close() error { return closeAll(r.all) }

// intended lists the intents that have no result.
const intended = " FROM certificate WHERE state = 'intended' ORDER BY intent_seq"

// valid are the certificates that exist or may come to exist.
const valid = "state IN ('issued', 'intended')"

func (r *reads) prepare(ctx context.Context, conn *sql.Conn) (err error) {
	certificate := "SELECT " + columns(intentColumns, resultColumns) + " FROM certificate "
	for _, p := range []struct {
		stmt **sql.Stmt
		text string
	}{
		{&r.byTag, "SELECT " + challengeColumns + " FROM challenge WHERE tag = ?"},
		{&r.challenge, "SELECT " + challengeColumns + " FROM challenge WHERE id = ?"},
		{&r.certificate, certificate + "WHERE serial = ?"},
		{&r.transaction, certificate + `WHERE substr(csr, 1, 16) = substr(?1, 1, 16) AND csr = ?1 AND signer = ? AND issuer = ? AND profile = ? AND transaction_id = ? AND state = 'issued'
			ORDER BY intent_seq DESC LIMIT 1`},
		{&r.renewal, certificate + `WHERE substr(csr, 1, 16) = substr(?1, 1, 16) AND csr = ?1 AND signer = ? AND issuer = ? AND profile = ? AND state = 'issued'
			ORDER BY intent_seq DESC LIMIT 1`},
		{&r.lineage, "SELECT generation FROM certificate WHERE lineage = ? AND " + valid + " ORDER BY generation DESC LIMIT 1"},
		{&r.inUse, `SELECT (SELECT count(*) FROM certificate AS c
			WHERE substr(names, 1, 16) = substr(?1, 1, 16) AND names = ?1 AND not_after > ?2 AND profile = ?3 AND serial <> ?4 AND revocation_due = 0 AND ` + valid + `
			AND NOT EXISTS (SELECT 1 FROM certificate AS s
				WHERE s.predecessor = c.serial AND s.predecessor <> '' AND s.lineage = c.lineage AND s.` + valid + `)),
			EXISTS (SELECT 1 FROM certificate WHERE substr(spki, 1, 16) = substr(?5, 1, 16) AND spki = ?5
			AND names <> ?1 AND profile <> '` + store.ServerProfile + "' AND " + valid + ")"},
		{&r.pending, pendingRows() + "WHERE p.request = ?"},
		{&r.pendingOf, pendingRows() + "WHERE p.profile = ? AND p.transaction_id = ? AND p.signer = ? ORDER BY p.seq DESC LIMIT 1"},
		{&r.pendingBy, pendingRows() + "WHERE p.profile = ? AND p.transaction_id = ? ORDER BY p.seq DESC LIMIT 1"},
		{&r.denied, pendingRows() + `WHERE substr(p.csr, 1, 16) = substr(?1, 1, 16) AND p.csr = ?1 AND p.signer = ? AND p.profile = ? AND p.denied_seq > 0
			ORDER BY p.seq DESC LIMIT 1`},
		{&r.untold, "SELECT serial, validator, since FROM notice WHERE serial = ?"},
		{&r.pendings, "SELECT count(*) FROM pending WHERE profile = ? AND expires > ? AND " + waiting},
		{&r.polledKey, certificate + `WHERE substr(spki, 1, 16) = substr(?1, 1, 16) AND spki = ?1 AND signer = ? AND profile = ? AND transaction_id = ? AND state = 'issued'
			ORDER BY intent_seq DESC LIMIT 1`},
		{&r.polledCert, certificate + `WHERE predecessor = ?1 AND predecessor <> '' AND signer = ? AND profile = ? AND transaction_id = ? AND state = 'issued'
			ORDER BY intent_seq DESC LIMIT 1`},
	} {
		if *p.stmt, err = conn.PrepareContext(ctx, p.text); err != nil {
			return fmt.Errorf("preparing %q: %w", p.text, err)
		}
		r.all = append(r.all, *p.stmt)
	}
	return nil
}

// row is what [sql.Row] and [sql.Rows] have in common.
type row interface{ Scan(dest ...any) error }

func scanChallenge(r row) (challenge.Record, error) {
	var c challenge.Record
	var tag, names []byte
	var created, expires int64
	err := r.Scan(&c.ID, &tag, &c.Profile, &names, &created, &expires, &c.State, &c.Refusals, &c.SpentBy, &c.Lineage)
	if err != nil {
		return challenge.Record{}, err
	}
	if len(tag) != len(c.Tag) {
		return challenge.Record{}, fmt.Errorf("%w: the tag of challenge %s has %d bytes", ErrDamaged, c.ID, len(tag))
	}
	c.Tag, c.Created, c.Expires = [32]byte(tag), unix(created), unix(expires)
	if c.Names, err = unmarshalNames(names); err != nil {
		return challenge.Record{}, fmt.Errorf("%w: the names of challenge %s: %w", ErrDamaged, c.ID, err)
	}
	return c, nil
}

// scanIssuance reads intentColumns and resultColumns.
func scanIssuance(r row) (store.Issuance, error) {
	var i store.Issuance
	var before, after, from, revoked int64
	err := r.Scan(
		&i.IntentSeq, &i.Serial, &i.Profile, &i.Issuer, &i.Request, &i.Subject, &i.Names, &i.SPKI, &before, &after,
		&i.Lineage, &i.Generation, &from, &i.Predecessor, &i.Challenge, &i.Transaction, &i.Signer, &i.CSR, &i.State, &i.Source,
		&i.ResultSeq, &i.RevocationDue, &i.Reason, &revoked, &i.Certificate,
	)
	if err != nil {
		return store.Issuance{}, err
	}
	i.NotBefore, i.NotAfter, i.LineageFrom = unix(before), unix(after), unix(from)
	if i.RevocationDue {
		i.RevokedAt = unix(revoked)
	}
	return i, nil
}

// one asks for one row and scans it. What began is not interrupted: watching the
// context would cost as much as half the look-up.
func one[T any](ctx context.Context, s *Store, stmt *sql.Stmt, scan func(row) (T, error), args ...any) (T, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		var none T
		return none, err
	}
	return scan(stmt.QueryRowContext(context.WithoutCancel(ctx), args...))
}

// value scans the only column of a row.
func value[T any](r row) (v T, err error) {
	err = r.Scan(&v)
	return v, err
}

func unix(s int64) time.Time { return time.Unix(s, 0).UTC() }

// ByTag returns the challenge that has the tag, or [challenge.ErrUnknown].
func (s *Store) ByTag(ctx context.Context, tag [32]byte) (challenge.Record, error) {
	c, err := one(ctx, s, s.reads.byTag, scanChallenge, tag[:])
	if errors.Is(err, sql.ErrNoRows) {
		return challenge.Record{}, challenge.ErrUnknown
	}
	return c, reading("a challenge by its tag", err)
}

// Challenge returns the challenge that has the id, or [store.ErrNotFound].
func (s *Store) Challenge(ctx context.Context, id string) (challenge.Record, error) {
	c, err := one(ctx, s, s.reads.challenge, scanChallenge, id)
	return c, reading("a challenge", err)
}

// Certificate returns what is known of a serial number, or [store.ErrNotFound].
func (s *Store) Certificate(ctx context.Context, serial string) (store.Issuance, error) {
	i, err := one(ctx, s, s.reads.certificate, scanIssuance, serial)
	return i, reading("a certificate", err)
}

// Transaction returns the newest certificate that was issued for exactly these,
// or [store.ErrNotFound].
func (s *Store) Transaction(ctx context.Context, issuer, profile, transaction, signer, csr string) (store.Issuance, error) {
	i, err := one(ctx, s, s.reads.transaction, scanIssuance, csr, signer, issuer, profile, transaction)
	return i, reading("a transaction", err)
}

// RenewalOf returns the newest certificate that was issued to this signer for this
// CSR, under whatever transaction, or [store.ErrNotFound].
func (s *Store) RenewalOf(ctx context.Context, issuer, profile, signer, csr string) (store.Issuance, error) {
	i, err := one(ctx, s, s.reads.renewal, scanIssuance, csr, signer, issuer, profile)
	return i, reading("a renewal", err)
}

// LineageRenewals returns the highest generation among what was issued or is
// intended in the lineage: 0 if it was never renewed, and -1 with
// [store.ErrNotFound] if there is nothing of it.
func (s *Store) LineageRenewals(ctx context.Context, lineage string) (int64, error) {
	n, err := one(ctx, s, s.reads.lineage, value[int64], lineage)
	if err != nil {
		return -1, reading("a lineage", err)
	}
	return n, nil
}

// InUse returns what the policy counts. Active is how many certificates of these
// names, a digest of [policy.Names], the profile has: issued or intended, not
// expired, not due to be revoked, not renewed. The serial Except, which a renewal is
// about to replace, does not count; "" is none. KeyByOther reports whether the
// key is in a certificate of other names that was issued or is intended, in any
// profile but that of our own listeners.
func (s *Store) InUse(ctx context.Context, u store.Use) (store.Used, error) {
	used, err := one(ctx, s, s.reads.inUse, func(r row) (u store.Used, err error) {
		err = r.Scan(&u.Active, &u.KeyByOther)
		return u, err
	}, u.Names, u.Now.Unix(), u.Profile, u.Except, u.SPKI)
	return used, reading("what is in use", err)
}

// OpenIntents returns the intents that have no result, oldest first.
func (s *Store) OpenIntents(ctx context.Context) ([]store.Issuance, error) {
	rows, err := s.list(ctx, "SELECT "+columns(intentColumns, resultColumns)+intended)
	list, err := collect(rows, err, scanIssuance)
	return list, reading("the open intents", err)
}

// list asks for many rows, over a connection of its own.
func (s *Store) list(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if err := s.commitDue(); err != nil {
		return nil, err
	}
	return s.read.QueryContext(ctx, query, args...)
}

// reading says what was being read where err is not nil.
func reading(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("store: reading %s: %w", what, fault(err))
}

// collect reads all rows. It takes the error of the query as well.
func collect[T any](rows *sql.Rows, err error, scan func(row) (T, error)) (list []T, _ error) {
	err = each(rows, err, scan, func(v T) error {
		list = append(list, v)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// each reads all rows, one at a time. It takes the error of the query as well.
func each[T any](rows *sql.Rows, err error, scan func(row) (T, error), do func(T) error) (_ error) {
	if err != nil {
		return err
	}
	for rows.Next() {
		v, err := scan(rows)
		if err == nil {
			err = do(v)
		}
		if err != nil {
			return errors.Join(err, rows.Close())
		}
	}
	return errors.Join(rows.Err(), rows.Close())
}
