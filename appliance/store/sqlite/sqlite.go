// Package sqlite is the state index in one SQLite file, for an appliance of one
// node.
//
// # What a caller may rely on
//
// [Store.Follow] applies a batch of log lines whole or not at all, and only the
// next ones: after a crash the index is true up to a line that [Store.Next] names,
// and the log feeds it what is missing. A file that another version wrote, that
// somebody altered or that is damaged is refused, with the remedy in the error.
// A Store is safe for concurrent use; every answer is of after the last line that
// [Store.Follow] took.
//
// # What it does not protect against
//
// Who can write to the file can change what it says. A crash of the machine may
// lose the newest batches, which the log has.
package sqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mattn/go-sqlite3"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/policy/challenge"
)

// The errors that say that the file can not be used. The log has everything that
// it held, so the remedy of both is a rebuild.
var (
	ErrDamaged = errors.New("the index is damaged (remedy: stop the service and run \"postern rebuild\")")
	ErrSchema  = errors.New("the index was not made by this version (remedy: stop the service and run \"postern rebuild\", or run the version that made it)")
)

var errClosed = errors.New("store: the index is closed")

// readers is the number of connections that read: more than the cores that have
// something to ask at once.
const readers = 4

var (
	_ audit.Follower  = (*Store)(nil)
	_ challenge.Store = (*Store)(nil)
)

// Store is the index. It implements [audit.Follower] and [challenge.Store].
//
// What an enrollment asks is read over the connection that writes: it sees the
// open transaction, and costs no lock of the file. Lists, which take long, have
// connections of their own, and end the transaction first.
type Store struct {
	path   string
	write  *sql.DB // one connection: conn
	read   *sql.DB
	keeper *keeper

	version atomic.Uint64

	mu        sync.Mutex // serializes what uses conn, and guards what follows
	conn      *sql.Conn
	writes    writes
	reads     reads
	head      head         // after the last line that was applied, while a transaction is open
	open      bool         // a transaction is
	committed head         // before the open transaction
	recent    []audit.Line // applied in the open transaction
	due       *time.Timer  // ends it
	failed    error        // of a commit: the index is behind for good
	closed    bool
}

// Healthy returns what keeps the index from being right for good, if anything
// does: what the log has could not be committed.
func (s *Store) Healthy() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// usable reports whether there is anything to ask. The caller has Store.mu.
func (s *Store) usable(ctx context.Context) error {
	if s.closed {
		return errClosed
	}
	if s.failed != nil {
		return s.failed
	}
	return ctx.Err()
}

// Open opens the index at path, and makes it if there is none. The file and what
// SQLite keeps beside it are readable by the owner alone. The errors are
// [ErrDamaged], [ErrSchema] or those of the file system.
func Open(ctx context.Context, path string) (*Store, error) {
	s, err := open(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("store: opening %s: %w", path, fault(err))
	}
	return s, nil
}

func open(ctx context.Context, path string) (_ *Store, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := private(path); err != nil {
		return nil, err
	}
	s := &Store{path: path}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	// The keeper empties the write-ahead log. Where it does not come to that, the
	// writer does so itself, at 64 MiB.
	s.write = connect(path, 1, "PRAGMA wal_autocheckpoint = 16384", "PRAGMA journal_size_limit = 67108864", "PRAGMA cache_size = -16384")
	if s.conn, err = s.write.Conn(ctx); err != nil {
		return nil, err
	}
	if err := migrate(ctx, s.conn); err != nil {
		return nil, err
	}
	if err := s.writes.prepare(ctx, s.conn); err != nil {
		return nil, err
	}
	if err := s.reads.prepare(ctx, s.conn); err != nil {
		return nil, err
	}
	s.read = connect(path, readers, "PRAGMA query_only = ON", "PRAGMA cache_size = -4096")
	s.due = time.AfterFunc(time.Hour, func() { _ = s.commitDue() })
	s.due.Stop()
	s.keeper = keep(s)
	return s, nil
}

// private makes the file, or takes from others the right to read it. SQLite gives
// the files beside it the same mode.
func private(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o600), f.Close())
}

// Close ends all use of the index. It waits for a batch that is being applied.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	var errs []error
	if s.conn != nil {
		errs = append(errs, s.commit(context.Background()))
	}
	s.closed = true
	s.mu.Unlock()

	if s.keeper != nil {
		errs = append(errs, s.keeper.stop())
	}
	if s.read != nil {
		errs = append(errs, s.read.Close())
	}
	if s.conn != nil { // after those that read, so that it empties the write-ahead log
		errs = append(errs, s.reads.close(), s.writes.close(), s.conn.Close())
	}
	if s.write != nil {
		errs = append(errs, s.write.Close())
	}
	return errors.Join(errs...)
}

// connector opens connections that are all alike.
type connector struct {
	dsn    string
	driver *sqlite3.SQLiteDriver
}

func (c *connector) Connect(context.Context) (driver.Conn, error) { return c.driver.Open(c.dsn) }
func (c *connector) Driver() driver.Driver                        { return c.driver }

// connect returns a pool of at most n connections, on which the pragmas hold.
// Nothing is opened yet.
func connect(path string, n int, pragmas ...string) *sql.DB {
	u := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: url.Values{
		"_journal_mode": {"WAL"}, "_synchronous": {"NORMAL"}, "_busy_timeout": {"5000"}, "_foreign_keys": {"on"},
	}.Encode()}
	pragmas = append([]string{"PRAGMA trusted_schema = OFF", "PRAGMA cell_size_check = ON"}, pragmas...)
	db := sql.OpenDB(&connector{u.String(), &sqlite3.SQLiteDriver{ConnectHook: func(c *sqlite3.SQLiteConn) error {
		for _, p := range pragmas {
			if _, err := c.Exec(p, nil); err != nil {
				return err
			}
		}
		return nil
	}}})
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	return db
}

// fault names the remedy where SQLite says that the file is not what it wrote.
func fault(err error) error {
	e, ok := errors.AsType[sqlite3.Error](err)
	switch {
	case ok && (e.Code == sqlite3.ErrCorrupt || e.Code == sqlite3.ErrNotADB):
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	case errors.Is(err, sql.ErrNoRows):
		return store.ErrNotFound
	default:
		return err
	}
}
