package sqlite

import (
	"context"
	"errors"
	"sync"
)

// checkpointLines is after how many lines the write-ahead log is copied into the
// database: some 20 MB of it. More would cost disk and time at a start after a
// crash, fewer would write the same pages more often.
const checkpointLines = 2048

// A keeper copies the write-ahead log into the database beside the writer, which
// would otherwise stop issuance for as long as the disk takes for that.
type keeper struct {
	wake  chan struct{}
	done  sync.WaitGroup
	lines int   // since it was last woken; guarded by Store.mu
	err   error // the last one; read after done
}

// keep starts the keeper of a store.
func keep(s *Store) *keeper {
	k := &keeper{wake: make(chan struct{}, 1)}
	k.done.Go(func() {
		for range k.wake {
			k.err = s.checkpoint()
		}
	})
	return k
}

// wrote counts lines. The caller has Store.mu.
func (k *keeper) wrote(lines int) {
	if k.lines += lines; k.lines < checkpointLines {
		return
	}
	k.lines = 0
	select {
	case k.wake <- struct{}{}:
	default: // it works on it
	}
}

// stop waits for the keeper to end. Nothing may be written any more.
func (k *keeper) stop() error {
	close(k.wake)
	k.done.Wait()
	return k.err
}

// checkpoint copies twice: most of it while batches go on, and the little that
// came meanwhile while none does, since only a log that was copied to its end is
// begun anew.
func (s *Store) checkpoint() error {
	err := s.copyLog()
	s.mu.Lock()
	defer s.mu.Unlock()
	// A failed commit is the next batch's to report.
	_ = s.commit(context.Background())
	return errors.Join(err, s.copyLog())
}

// copyLog never waits for a reader; what one still needs is copied next time.
func (s *Store) copyLog() error {
	var busy, pages, copied int
	return s.read.QueryRowContext(context.Background(), "PRAGMA wal_checkpoint(PASSIVE)").Scan(&busy, &pages, &copied)
}
