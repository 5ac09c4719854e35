package sqlite

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

//go:embed migrations/*.sql
var files embed.FS

// A migration is one step of the schema. Its file is never changed once released.
type migration struct {
	version int
	name    string
	sql     string
	sha256  string
}

// migrations returns the steps that this version knows, in order.
func migrations() ([]migration, error) {
	entries, err := fs.ReadDir(files, "migrations") // sorted by name
	if err != nil {
		return nil, err
	}
	list := make([]migration, 0, len(entries))
	for i, e := range entries {
		number, name, ok := strings.Cut(strings.TrimSuffix(e.Name(), ".sql"), "_")
		version, err := strconv.Atoi(number)
		if err != nil || !ok || len(number) != 4 || version != i+1 {
			return nil, fmt.Errorf("migration %q is not NNNN_name.sql in sequence", e.Name())
		}
		text, err := files.ReadFile(path.Join("migrations", e.Name()))
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(text)
		list = append(list, migration{version, name, string(text), hex.EncodeToString(sum[:])})
	}
	return list, nil
}

// migrate brings the schema to this version in one transaction, and refuses one
// that is not the result of the steps that it says were taken.
func migrate(ctx context.Context, conn *sql.Conn) error {
	steps, err := migrations()
	if err != nil {
		return err
	}
	if err := upgrade(ctx, conn, steps); err != nil {
		return err
	}
	want, err := freshSchema(ctx, steps)
	if err != nil {
		return err
	}
	got, err := schema(ctx, conn)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("%w: its tables, indexes or triggers were altered", ErrSchema)
	}
	return nil
}

// upgrade takes the steps that are missing, all or none.
func upgrade(ctx context.Context, conn *sql.Conn, steps []migration) (err error) {
	if _, err := conn.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_, rerr := conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
			err = errors.Join(err, rerr)
		}
	}()
	done, err := applied(ctx, conn, steps)
	if err != nil {
		return err
	}
	for _, m := range steps[done:] {
		if _, err := conn.ExecContext(ctx, m.sql); err != nil {
			return fmt.Errorf("migration %04d_%s: %w", m.version, m.name, err)
		}
		if _, err := conn.ExecContext(ctx, "INSERT INTO migration (version, name, sha256) VALUES (?, ?, ?)", m.version, m.name, m.sha256); err != nil {
			return err
		}
	}
	_, err = conn.ExecContext(ctx, "COMMIT")
	return err
}

// applied returns how many of the steps were taken already. An empty database
// gets the table that says so; one of somebody else's is refused.
func applied(ctx context.Context, conn *sql.Conn, steps []migration) (done int, err error) {
	var tables, ours int
	err = conn.QueryRowContext(ctx, "SELECT count(*), coalesce(sum(name = 'migration'), 0) FROM sqlite_master").Scan(&tables, &ours)
	if err != nil {
		return 0, err
	}
	if tables == 0 {
		_, err := conn.ExecContext(ctx, createMigration)
		return 0, err
	}
	if ours == 0 {
		return 0, fmt.Errorf("%w: it is a database of another program", ErrSchema)
	}
	rows, err := conn.QueryContext(ctx, "SELECT version, sha256 FROM migration ORDER BY version")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for ; rows.Next(); done++ {
		var version int
		var sum string
		if err := rows.Scan(&version, &sum); err != nil {
			return 0, err
		}
		switch {
		case version > len(steps):
			return 0, fmt.Errorf("%w: it has schema version %d, and this version knows %d", ErrSchema, version, len(steps))
		case version != done+1 || sum != steps[done].sha256:
			return 0, fmt.Errorf("%w: its schema version %d is another one", ErrSchema, version)
		}
	}
	return done, rows.Err()
}

const createMigration = `CREATE TABLE migration (
	version INTEGER PRIMARY KEY,
	name    TEXT NOT NULL,
	sha256  TEXT NOT NULL
) STRICT`

// freshSchema is the schema as all steps together make it.
func freshSchema(ctx context.Context, steps []migration) (text string, err error) {
	db := connect(":memory:", 1)
	defer func() { err = errors.Join(err, db.Close()) }()
	conn, err := db.Conn(ctx)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := upgrade(ctx, conn, steps); err != nil {
		return "", err
	}
	return schema(ctx, conn)
}

// schema returns the text of everything that the database has by a name, but for
// what SQLite itself adds.
func schema(ctx context.Context, conn *sql.Conn) (string, error) {
	var text sql.NullString
	err := conn.QueryRowContext(ctx, `SELECT group_concat(coalesce(sql, ''), char(10)) FROM
		(SELECT sql FROM sqlite_master WHERE name NOT LIKE 'sqlite\_%' ESCAPE '\' ORDER BY type, name)`).Scan(&text)
	return text.String, err
}
