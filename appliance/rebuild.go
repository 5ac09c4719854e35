package appliance

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/appliance/store/sqlite"
	"github.com/postern-pki/postern/audit"
)

// Rebuilt says what a rebuild found.
type Rebuilt struct {
	Next uint64 `json:"next"`           // the first line that the index has not seen
	Same bool   `json:"same"`           // the old index had the same state
	Kept string `json:"kept,omitempty"` // where the old index is, if it differed
}

// rebuildBatch is how many lines one transaction takes.
const rebuildBatch = 512

// Rebuild makes the index anew from the log, beside the old one, and puts it in
// its place. The service has to be down: the log is locked meanwhile.
func Rebuild(ctx context.Context, cfg *config.Config) (Rebuilt, error) {
	dir := filepath.Join(cfg.State, "audit")
	unlock, err := audit.Lock(dir)
	if err != nil {
		return Rebuilt{}, err
	}
	defer unlock()
	path := filepath.Join(cfg.State, "index.db")
	fresh := path + ".rebuild"
	if err := removeDB(fresh); err != nil {
		return Rebuilt{}, err
	}
	next, dump, err := replay(ctx, dir, fresh)
	if err != nil {
		return Rebuilt{}, errors.Join(err, removeDB(fresh))
	}
	if err := handOver(cfg.State, fresh); err != nil {
		return Rebuilt{}, errors.Join(err, removeDB(fresh))
	}
	r := Rebuilt{Next: next}
	old, oldErr := dumpOf(ctx, path)
	r.Same = oldErr == nil && bytes.Equal(old, dump)
	if _, err := os.Stat(path); err == nil && !r.Same {
		r.Kept = path + "." + time.Now().UTC().Format("20060102T150405Z")
		if err := renameDB(path, r.Kept); err != nil {
			return Rebuilt{}, err
		}
	} else if err := removeDB(path); err != nil {
		return Rebuilt{}, err
	}
	return r, renameDB(fresh, path)
}

// handOver gives a database to who owns the folder that it is for: root makes it
// anew for a service that runs as somebody else.
func handOver(dir, path string) error {
	st, err := os.Stat(dir)
	if err != nil {
		return err
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 {
		return nil
	}
	for _, suffix := range dbFiles {
		if err := os.Chown(path+suffix, int(owner.Uid), int(owner.Gid)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// replay feeds the whole log to a new index, and returns its state as text.
func replay(ctx context.Context, dir, path string) (next uint64, dump []byte, err error) {
	index, err := sqlite.Open(ctx, path)
	if err != nil {
		return 0, nil, err
	}
	defer func() { err = errors.Join(err, index.Close()) }()
	var chain audit.Chain
	var batch []audit.Line
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := index.Follow(ctx, batch)
		batch = batch[:0]
		return err
	}
	err = audit.Scan(dir, 0, func(l audit.Line) error {
		if err := chain.Step(l); err != nil {
			return err
		}
		if batch = append(batch, l); len(batch) < rebuildBatch {
			return nil
		}
		return flush()
	})
	if err = errors.Join(err, flush()); err != nil {
		return 0, nil, err
	}
	if next, err = index.Next(ctx); err != nil {
		return 0, nil, err
	}
	var buf bytes.Buffer
	err = index.Dump(ctx, &buf)
	return next, buf.Bytes(), err
}

func dumpOf(ctx context.Context, path string) (_ []byte, err error) {
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	index, err := sqlite.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, index.Close()) }()
	var buf bytes.Buffer
	err = index.Dump(ctx, &buf)
	return buf.Bytes(), err
}

// The files of one database: SQLite keeps its journal beside it.
var dbFiles = [...]string{"", "-wal", "-shm"}

func removeDB(path string) error {
	for _, suffix := range dbFiles {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func renameDB(from, to string) error {
	for _, suffix := range dbFiles {
		if err := os.Rename(from+suffix, to+suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// AuditVerifier returns who signs the log's checkpoints: the certificate in the
// file trust, or else the configuration's. The origin is the configuration's, or
// that of the log in dir.
func AuditVerifier(cfg *config.Config, trust, dir string) (note.Verifier, error) {
	if trust == "" {
		return auditVerifier(cfg)
	}
	data, err := os.ReadFile(trust)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM certificate", trust)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", trust, err)
	}
	pub, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%s: its key is not ECDSA", trust)
	}
	origin := ""
	if cfg != nil {
		origin = cfg.Origin
	} else if origin, err = audit.OriginOf(dir); err != nil {
		return nil, err
	}
	return audit.ECDSANoteVerifier(origin, pub)
}
