package sqlite

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/policy/challenge"
)

// writes are the statements of the one connection that writes.
type writes struct {
	notice, told            *sql.Stmt
	begin, commit, rollback *sql.Stmt
	head, setHead           *sql.Stmt
	create, revoke, refuse  *sql.Stmt
	intent, spend           *sql.Stmt
	result, due, free       *sql.Stmt
	pend, deny, approve     *sql.Stmt
	crl, crlIssued          *sql.Stmt
	current, fetch          *sql.Stmt
	all                     []*sql.Stmt
}

// close closes all statements: database/sql does not do so for those of one
// connection, and SQLite keeps a connection that has some.
func (w *writes) close() error { return closeAll(w.all) }

func closeAll(all []*sql.Stmt) error {
	var errs []error
	for _, s := range all {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

func (w *writes) prepare(ctx context.Context, conn *sql.Conn) (err error) {
	for _, p := range []struct {
		stmt **sql.Stmt
		text string
	}{
		{&w.begin, `BEGIN IMMEDIATE`},
		{&w.commit, `COMMIT`},
		{&w.rollback, `ROLLBACK`},
		{&w.head, `SELECT seq, hash FROM head`},
		{&w.setHead, `INSERT INTO head (one, seq, hash) VALUES (1, ?, ?)
			ON CONFLICT (one) DO UPDATE SET seq = excluded.seq, hash = excluded.hash`},
		{&w.create, `INSERT INTO challenge (seq, id, tag, profile, names, created, expires, state)
			VALUES (?, ?, ?, ?, ?, ?, ?, 'open')`},
		{&w.revoke, `UPDATE challenge SET state = 'revoked' WHERE id = ? AND state = 'open'`},
		{&w.refuse, `UPDATE challenge SET refusals = refusals + 1 WHERE id = ?`},
		{&w.intent, `INSERT INTO certificate (` + columns(intentColumns) + `)
			VALUES (` + strings.TrimSuffix(strings.Repeat("?, ", len(intentColumns)), ", ") + `)`},
		{&w.spend, `UPDATE challenge SET state = 'spent', spent_by = ?, lineage = ? WHERE id = ? AND state = 'open'`},
		{&w.result, `UPDATE certificate SET state = ?, result_seq = ?, der = ? WHERE intent_seq = ? AND state = 'intended'`},
		{&w.due, `UPDATE certificate SET revoked_at = iif(revocation_due, revoked_at, ?2), reason = iif(revocation_due, reason, ?3), revocation_due = 1
			WHERE serial = ?1 RETURNING intent_seq, state`},
		// A challenge that was freed already may have been spent by another intent.
		{&w.free, `UPDATE challenge SET state = 'open', spent_by = 0, lineage = ''
			WHERE id = (SELECT challenge FROM certificate WHERE intent_seq = ?1
				AND (state = 'failed' OR state = 'unknown' AND revocation_due = 1))
			AND state = 'spent' AND spent_by = ?1`},
		{&w.pend, `INSERT INTO pending (` + columns(pendingColumns) + `)
			VALUES (` + strings.TrimSuffix(strings.Repeat("?, ", len(pendingColumns)), ", ") + `)`},
		{&w.deny, `UPDATE pending SET denied_seq = ?, why = ? WHERE request = ? AND ` + waiting},
		{&w.approve, `UPDATE pending SET intent_seq = ? WHERE request = ? AND ` + waiting},
		{&w.crl, `INSERT INTO crl (issuer, number, seq, this_update, next_update, entries) VALUES (?, ?, ?, ?, ?, ?)
			ON CONFLICT (issuer) DO UPDATE SET number = excluded.number, seq = excluded.seq, this_update = excluded.this_update,
			next_update = excluded.next_update, entries = excluded.entries, sha256 = '' WHERE number < excluded.number`},
		{&w.notice, `INSERT INTO notice (serial, validator, since) VALUES (?, ?, ?)`},
		{&w.told, `DELETE FROM notice WHERE serial = ?`},
		{&w.crlIssued, `UPDATE crl SET sha256 = ?2 WHERE seq = ?1 AND sha256 = ''`},
		{&w.current, `INSERT INTO current_ca (issuer, generation, before, since) VALUES (?, ?, ?, ?)
			ON CONFLICT (issuer) DO UPDATE SET generation = excluded.generation, before = excluded.before, since = excluded.since`},
		{&w.fetch, `INSERT INTO next_ca_fetch (` + fetchColumns + `) VALUES (?1, ?2, ?3, ?4, ?4, 1)
			ON CONFLICT (profile, generation, source) DO UPDATE SET last = excluded.last, count = count + 1`},
	} {
		if *p.stmt, err = conn.PrepareContext(ctx, p.text); err != nil {
			return fmt.Errorf("preparing %q: %w", p.text, err)
		}
		w.all = append(w.all, *p.stmt)
	}
	return nil
}

// Next returns the seq of the first line that the index has not seen.
func (s *Store) Next(ctx context.Context) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.usable(ctx)
	if err == nil && !s.open {
		s.head, err = headOf(s.writes.head.QueryRowContext(context.WithoutCancel(ctx)))
	}
	if err != nil {
		return 0, fmt.Errorf("store: reading the head: %w", fault(err))
	}
	return s.head.next, nil
}

// head is how far the index has come.
type head struct {
	next uint64
	hash [32]byte // of the last line, zero if there is none
}

func headOf(r row) (head, error) {
	var seq uint64
	var hash []byte
	switch err := r.Scan(&seq, &hash); {
	case errors.Is(err, sql.ErrNoRows):
		return head{}, nil
	case err != nil:
		return head{}, err
	}
	if len(hash) != 32 {
		return head{}, fmt.Errorf("%w: the hash of the last line has %d bytes", ErrDamaged, len(hash))
	}
	return head{next: seq + 1, hash: [32]byte(hash)}, nil
}

// Version is another number after each batch that was applied here.
func (s *Store) Version() uint64 { return s.version.Load() }

// Follow applies the lines in order, all or none. It refuses lines that are not
// the next ones, or do not continue the chain, with [store.ErrGap]; and a line that
// contradicts the index. The context's end does not stop it: what is durable in
// the log has to be in the index.
func (s *Store) Follow(ctx context.Context, batch []audit.Line) error {
	if len(batch) == 0 {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return err
	}
	if err := s.begin(ctx); err != nil {
		return err
	}
	s.version.Add(1)
	h, err := s.apply(ctx, s.head, batch)
	if err != nil {
		s.takeBack(ctx)
		return fault(err)
	}
	s.head, s.recent = h, append(s.recent, batch...)
	s.keeper.wrote(len(batch))
	if len(s.recent) >= commitLines {
		return s.commit(ctx)
	}
	return nil
}

// commitLines and commitWithin say when a transaction ends: what is applied is
// seen at once by everyone who asks this index, and is durable in the log, so a
// transaction for each batch would only write the same pages again and again.
const (
	commitLines  = 256
	commitWithin = 250 * time.Millisecond
)

// begin begins a transaction unless one is open. The caller has Store.mu.
func (s *Store) begin(ctx context.Context) error {
	if s.open {
		return nil
	}
	_, err := s.writes.begin.ExecContext(ctx)
	if err == nil {
		// Another process may have written since; none can until the commit.
		s.head, err = headOf(s.writes.head.QueryRowContext(ctx))
	}
	if err != nil {
		_, _ = s.writes.rollback.ExecContext(ctx)
		return fmt.Errorf("store: beginning a transaction: %w", fault(err))
	}
	s.open, s.committed = true, s.head
	s.due.Reset(commitWithin)
	return nil
}

// commit ends the open transaction, if there is one. After an error nothing more
// is applied or read: what the log has is not in the index. The caller has Store.mu.
func (s *Store) commit(ctx context.Context) error {
	if !s.open || s.failed != nil {
		return s.failed
	}
	s.due.Stop()
	_, err := s.writes.setHead.ExecContext(ctx, s.head.next-1, s.head.hash[:])
	if err == nil {
		_, err = s.writes.commit.ExecContext(ctx)
	}
	if err != nil {
		s.failed = fmt.Errorf("store: committing lines up to %d: %w", s.head.next-1, fault(err))
		_, _ = s.writes.rollback.ExecContext(ctx)
	}
	clear(s.recent)
	s.open, s.recent = false, s.recent[:0]
	return s.failed
}

// commitDue is commit for who is not applying lines: before something is read
// over another connection, and when the time has come. The next batch and
// [Store.Healthy] report what went wrong.
func (s *Store) commitDue() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	return s.commit(context.Background())
}

// takeBack undoes a batch that was refused: the transaction as a whole, and the
// batches before it in the same transaction are applied again.
func (s *Store) takeBack(ctx context.Context) {
	// Where SQLite has rolled back by itself this fails, and changes nothing.
	_, _ = s.writes.rollback.ExecContext(ctx)
	s.due.Stop()
	s.open, s.head = false, s.committed
	if len(s.recent) == 0 {
		return
	}
	again := s.recent
	s.recent = nil
	err := s.begin(ctx)
	if err == nil {
		s.head, err = s.apply(ctx, s.head, again)
	}
	if err != nil {
		s.failed = fmt.Errorf("store: applying lines up to %d again: %w", again[len(again)-1].Record.Seq, fault(err))
		return
	}
	s.recent = again
}

// apply applies lines inside the open transaction, after the one that h is, and
// returns what is the head then.
func (s *Store) apply(ctx context.Context, h head, batch []audit.Line) (head, error) {
	for _, l := range batch {
		if l.Record.Seq != h.next {
			return h, fmt.Errorf("%w: line %d came, and %d is the next", store.ErrGap, l.Record.Seq, h.next)
		}
		if l.Record.Prev != hex.EncodeToString(h.hash[:]) {
			return h, fmt.Errorf("%w: line %d does not continue the line before it as the index knows that", store.ErrGap, l.Record.Seq)
		}
		changes, err := store.Changes(l)
		if err != nil {
			return h, err
		}
		for _, c := range changes {
			if err := s.change(ctx, l.Record.Seq, c); err != nil {
				return h, fmt.Errorf("store: line %d: %w", l.Record.Seq, err)
			}
		}
		h = head{l.Record.Seq + 1, l.Hash()}
	}
	return h, nil
}

// change applies one change of the line seq.
func (s *Store) change(ctx context.Context, seq uint64, c store.Change) error {
	w := &s.writes
	switch c := c.(type) {
	case store.ChallengeCreated:
		return w.challenge(ctx, seq, c.Record)
	case store.ChallengeRevoked:
		_, err := w.revoke.ExecContext(ctx, c.ID)
		return err
	case store.ChallengeRefused:
		_, err := w.refuse.ExecContext(ctx, c.ID)
		return err
	case store.Intent:
		return w.intend(ctx, c)
	case store.PendingAdded:
		return w.wait(ctx, c.Pending)
	case store.PendingDenied:
		return w.denied(ctx, c)
	case store.Result:
		return w.end(ctx, c)
	case store.RevocationDue:
		return w.revocation(ctx, c.Revocation)
	case store.CRLIntent:
		return w.list(ctx, c.CRL)
	case store.NoticeOwed:
		return w.owe(ctx, c.Notice)
	case store.NoticeGiven:
		_, err := w.told.ExecContext(ctx, c.Serial)
		return err
	case store.CRLIssued:
		_, err := w.crlIssued.ExecContext(ctx, c.Seq, c.SHA256) // of a newer one's predecessor there is no row
		return err
	case store.CASwitched:
		return w.switchCA(ctx, c)
	case store.NextCAFetched:
		return w.fetched(ctx, c)
	default:
		return fmt.Errorf("a change %T that the index does not know", c)
	}
}

func (w *writes) challenge(ctx context.Context, seq uint64, r challenge.Record) error {
	names, err := marshalNames(r.Names)
	if err != nil {
		return err
	}
	_, err = w.create.ExecContext(ctx, seq, r.ID, r.Tag[:], r.Profile, names, r.Created.Unix(), r.Expires.Unix())
	if err != nil {
		return fmt.Errorf("creating challenge %s: %w", r.ID, err)
	}
	return nil
}

func (w *writes) intend(ctx context.Context, c store.Intent) error {
	i := c.Issuance
	if _, err := w.intent.ExecContext(ctx, intentValues(&i)...); err != nil {
		return fmt.Errorf("adding serial %s: %w", i.Serial, err)
	}
	if c.Pending != "" {
		if err := w.approved(ctx, c.Pending, i.IntentSeq); err != nil {
			return err
		}
	}
	return w.spent(ctx, i.Challenge, i.IntentSeq, i.Lineage)
}

// spent spends the challenge, if there is one, for the line seq.
func (w *writes) spent(ctx context.Context, id string, seq uint64, lineage string) error {
	if id == "" {
		return nil
	}
	switch n, err := changed(w.spend.ExecContext(ctx, seq, lineage, id)); {
	case err != nil:
		return fmt.Errorf("spending challenge %s: %w", id, err)
	case n != 1:
		return fmt.Errorf("line %d spends challenge %s, which is not open", seq, id)
	}
	return nil
}

func (w *writes) end(ctx context.Context, r store.Result) error {
	var der any
	if r.State == store.Issued {
		der = r.Certificate
	}
	switch n, err := changed(w.result.ExecContext(ctx, string(r.State), r.Seq, der, r.IntentSeq)); {
	case err != nil:
		return fmt.Errorf("closing intent %d: %w", r.IntentSeq, err)
	case n != 1:
		return fmt.Errorf("a result for intent %d, which is unknown or has one", r.IntentSeq)
	case r.State == store.Issued:
		return nil
	}
	_, err := w.free.ExecContext(ctx, r.IntentSeq)
	return err
}

// changed returns the number of rows that a statement changed.
func changed(r sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// names is the form in which names are kept. An empty list and none are the same
// text, so that a rebuild gives what the service wrote.
type names struct {
	Subject []policy.Attribute `json:"subject,omitempty"`
	DNS     []string           `json:"dns,omitempty"`
	IP      []string           `json:"ip,omitempty"`
	Email   []string           `json:"email,omitempty"`
	URI     []string           `json:"uri,omitempty"`
}

func namesOf(n policy.Names) names { return names{n.Subject, n.DNS, n.IP, n.Email, n.URI} }

func marshalNames(n policy.Names) (string, error) {
	b, err := json.Marshal(namesOf(n))
	return string(b), err
}

func unmarshalNames(text []byte) (policy.Names, error) {
	var n names
	err := json.Unmarshal(text, &n)
	return policy.Names{Subject: n.Subject, DNS: n.DNS, IP: n.IP, Email: n.Email, URI: n.URI}, err
}
