package audit

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"time"

	"go.uber.org/zap"
)

// signWithin bounds the signer, and retryAfter how soon one that failed is asked
// again.
const (
	signWithin = 10 * time.Second
	retryAfter = 5 * time.Second
)

// keepNotes is how many checkpoint files are kept: each note stands in the log
// too.
const keepNotes = 16

// whenDue signs a checkpoint if it is time for one.
func (l *Log) whenDue() {
	if l.opt.Signer == nil || l.Healthy() != nil || time.Now().Before(l.w.retry) {
		return
	}
	age := time.Since(l.w.at)
	many := l.w.chain.size-l.w.signed >= l.opt.CheckpointRecords
	if !many && age < l.opt.CheckpointIdle && (!l.w.active || age < l.opt.CheckpointEvery) {
		return
	}
	if _, err := l.checkpoint(); err != nil {
		l.w.retry = time.Now().Add(retryAfter)
		l.opt.Log.Warn("no checkpoint was signed; it is tried again", zap.Error(err))
	}
}

// checkpoint has the head signed, keeps the note, and records it. A signer that
// fails costs nothing but the checkpoint; a disk that fails poisons the log.
func (l *Log) checkpoint() ([]byte, error) {
	h := l.w.chain.Head()
	ctx, cancel := context.WithTimeout(context.Background(), signWithin)
	defer cancel()
	note, err := l.opt.Signer.SignCheckpoint(ctx, h)
	if err != nil {
		return nil, fmt.Errorf("audit: signing the checkpoint at %d: %w", h.Size, err)
	}
	size, root, err := OpenCheckpoint(note, l.opt.Verifier)
	if err != nil {
		return nil, err
	}
	if size != h.Size || root != h.Root {
		return nil, fmt.Errorf("%w: the signer signed another head", ErrCheckpoint)
	}
	if err := l.opt.disk.WriteFile(l.path(checkpointDir, noteName(h.Size)), note); err != nil {
		return nil, l.fail(fmt.Errorf("writing the checkpoint: %w", err))
	}
	p, err := prepare(Entry{Event: "log.checkpoint", Outcome: "signed", Actor: Actor{Kind: "system", ID: "log"},
		Object: Object{"size": h.Size, "root": hex.EncodeToString(h.Root[:]), "note": string(note)}})
	if err != nil {
		return nil, err
	}
	if _, err := l.write([]*prepared{p}, false); err != nil {
		return nil, l.fail(err)
	}
	l.w.signed, l.w.at, l.w.active = h.Size, time.Now(), false
	l.forget()
	return note, nil
}

func noteName(size uint64) string { return fmt.Sprintf("%012d.note", size) }

// forget removes old checkpoint files. A failure is no harm.
func (l *Log) forget() {
	sizes, err := numbered(l.path(checkpointDir), ".note")
	if err != nil {
		return
	}
	for _, n := range sizes[:max(0, len(sizes)-keepNotes)] {
		_ = os.Remove(l.path(checkpointDir, noteName(n)))
	}
}
