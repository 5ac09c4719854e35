package sqlite

import (
	"bufio"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/policy/challenge"
)

// The bounds of a list.
const (
	defaultLimit = 100
	maxLimit     = 1000
)

// conditions are what a filter asks for.
type conditions struct {
	terms []string
	args  []any
}

func (c *conditions) add(term string, args ...any) {
	c.terms, c.args = append(c.terms, term), append(c.args, args...)
}

// newest makes the query for the newest rows, by a column, that meet them all.
func (c *conditions) newest(columns, table, by string, limit int) (string, []any) {
	return c.newestOf("SELECT "+columns+" FROM "+table, by, limit)
}

// newestOf is newest for a query that lacks conditions, order and limit.
func (c *conditions) newestOf(query, by string, limit int) (string, []any) {
	switch {
	case limit <= 0:
		limit = defaultLimit
	case limit > maxLimit:
		limit = maxLimit
	}
	c.add("1 = 1")
	return query + " WHERE " + strings.Join(c.terms, " AND ") + " ORDER BY " + by + " DESC LIMIT ?",
		append(c.args, limit)
}

// Challenges returns the newest challenges that the filter selects.
func (s *Store) Challenges(ctx context.Context, f store.ChallengeFilter) ([]challenge.Record, error) {
	var c conditions
	if f.Profile != "" {
		c.add("profile = ?", f.Profile)
	}
	switch f.State {
	case "":
	case challenge.Open:
		c.add("state = 'open'") // as the partial index has it
	default:
		c.add("state = ?", string(f.State))
	}
	query, args := c.newest(challengeColumns, "challenge", "seq", f.Limit)
	rows, err := s.list(ctx, query, args...)
	list, err := collect(rows, err, scanChallenge)
	return list, reading("challenges", err)
}

// Certificates returns the newest intents that the filter selects, with what
// became of them. Subject is compared as it is, case included.
func (s *Store) Certificates(ctx context.Context, f store.CertificateFilter) ([]store.Issuance, error) {
	var c conditions
	if f.Before != 0 {
		c.add("intent_seq < ?", min(f.Before, math.MaxInt64))
	}
	if f.Profile != "" {
		c.add("profile = ?", f.Profile)
	}
	if len(f.Issuers) > 0 {
		args := make([]any, len(f.Issuers))
		for i, name := range f.Issuers {
			args[i] = name
		}
		c.add("issuer IN (?"+strings.Repeat(", ?", len(args)-1)+")", args...)
	}
	if !f.Living.IsZero() {
		c.add(living, f.Living.Unix())
	}
	if f.Subject != "" {
		c.add("instr(subject, ?) > 0", f.Subject)
	}
	switch f.State {
	case "":
	case store.Intended:
		c.add("state = 'intended'") // as the partial index has it
	default:
		c.add("state = ?", string(f.State))
	}
	query, args := c.newest(columns(intentColumns, resultColumns), "certificate AS c", "intent_seq", f.Limit)
	rows, err := s.list(ctx, query, args...)
	list, err := collect(rows, err, scanIssuance)
	return list, reading("certificates", err)
}

// Dump writes everything that the index says as lines of text, in an order that
// depends on the log alone: two indexes of the same log give the same bytes. In
// the place of a certificate stands its SHA-256. It sees one moment, and keeps
// nobody waiting: it has a connection of its own.
func (s *Store) Dump(ctx context.Context, w io.Writer) (err error) {
	if err := s.commitDue(); err != nil {
		return err
	}
	db := connect(s.path, 1, "PRAGMA query_only = ON")
	defer func() { err = errors.Join(err, db.Close()) }()
	conn, err := db.Conn(ctx)
	if err != nil {
		return reading("for a dump", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if _, err := conn.ExecContext(ctx, "BEGIN"); err != nil { // ends with the connection
		return reading("for a dump", err)
	}
	b := bufio.NewWriterSize(w, 64<<10)
	if err := dump(ctx, conn, b); err != nil {
		return reading("for a dump", err)
	}
	return b.Flush()
}

func dump(ctx context.Context, conn *sql.Conn, w io.Writer) error {
	h, err := headOf(conn.QueryRowContext(ctx, "SELECT seq, hash FROM head"))
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "next %d after %x\n", h.next, h.hash); err != nil {
		return err
	}
	rows, err := conn.QueryContext(ctx, ordered(challengeColumns, "challenge", "seq"))
	if err := each(rows, err, scanChallenge, func(c challenge.Record) error {
		return dumpLine(w, "challenge", struct {
			challenge.Record
			Tag   string
			Names names
		}{c, hex.EncodeToString(c.Tag[:]), namesOf(c.Names)})
	}); err != nil {
		return err
	}
	rows, err = conn.QueryContext(ctx, pendingRows()+"ORDER BY p.seq")
	if err := each(rows, err, scanPending, func(p store.Pending) error { return dumpLine(w, "pending", p) }); err != nil {
		return err
	}
	rows, err = conn.QueryContext(ctx, ordered("issuer, generation, before, since", "current_ca", "issuer"))
	if err := each(rows, err, scanSwitch, func(c store.CASwitched) error { return dumpLine(w, "current_ca", c) }); err != nil {
		return err
	}
	rows, err = conn.QueryContext(ctx, ordered(fetchColumns, "next_ca_fetch", "profile, generation, source"))
	if err := each(rows, err, scanFetch, func(c store.Fetch) error { return dumpLine(w, "next_ca_fetch", c) }); err != nil {
		return err
	}
	rows, err = conn.QueryContext(ctx, ordered(columns(intentColumns, resultColumns), "certificate", "intent_seq"))
	if err := each(rows, err, scanIssuance, func(i store.Issuance) error {
		var sum string
		if i.Certificate != nil {
			h := sha256.Sum256(i.Certificate)
			sum = "sha256:" + hex.EncodeToString(h[:])
		}
		return dumpLine(w, "certificate", struct {
			store.Issuance
			Certificate string
		}{i, sum})
	}); err != nil {
		return err
	}
	rows, err = conn.QueryContext(ctx, ordered("serial, validator, since", "notice", "serial"))
	if err := each(rows, err, scanNotice, func(n store.Notice) error { return dumpLine(w, "notice", n) }); err != nil {
		return err
	}
	rows, err = conn.QueryContext(ctx, ordered(crlColumns, "crl", "issuer"))
	return each(rows, err, scanCRL, func(c store.CRL) error { return dumpLine(w, "crl", c) })
}

// ordered makes the query for a whole table.
func ordered(columns, table, by string) string {
	return "SELECT " + columns + " FROM " + table + " ORDER BY " + by
}

func dumpLine(w io.Writer, kind string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s %s\n", kind, text)
	return err
}
