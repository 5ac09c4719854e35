package audit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// write is the one place where lines reach the disk: one write, one fdatasync,
// then the followers in their order. Only where clock is true may a time.step go
// before the entries: a checkpoint has to follow its head, and log.segment is a
// segment's first line.
func (l *Log) write(entries []*prepared, clock bool) ([]Line, error) {
	now, mono := l.opt.Now().UTC(), bootMicros()
	extra := 0
	if clock {
		if step := l.step(now, mono); step != nil {
			entries = append([]*prepared{step}, entries...)
			extra = 1
		}
	}
	if clock || l.w.wall.IsZero() { // else the next batch still has to see the step
		l.w.wall, l.w.mono = now, mono
	}
	next := l.w.chain.Clone()
	lines := make([]Line, 0, len(entries))
	size := 0
	for _, p := range entries {
		size += p.most()
	}
	buf := make([]byte, 0, size) // the lines are parts of it
	for _, p := range entries {
		var line Line
		var err error
		line, buf, err = p.place(buf, next.size, hex.EncodeToString(next.prev[:]), now, l.w.boot, mono)
		if err == nil {
			line = line.summed()
			err = next.Step(line)
		}
		if err != nil {
			return nil, err
		}
		lines = append(lines, line)
	}
	if _, err := l.w.out.Write(buf); err != nil {
		return nil, fmt.Errorf("writing segment %s: %w", l.w.name, err)
	}
	if err := l.w.out.Sync(); err != nil {
		return nil, fmt.Errorf("syncing segment %s: %w", l.w.name, err)
	}
	_, _ = l.w.sum.Write(buf)
	l.w.size += int64(len(buf))
	l.w.chain = *next
	ctx, cancel := context.WithTimeout(context.Background(), followWithin)
	defer cancel()
	for _, f := range l.opt.Followers {
		if err := f.Follow(ctx, lines); err != nil {
			return nil, fmt.Errorf("a follower refused lines %d to %d: %w", lines[0].Record.Seq, next.size-1, err)
		}
	}
	head := next.Head()
	l.mu.Lock()
	l.head = head
	l.mu.Unlock()
	return lines[extra:], nil
}

// followWithin bounds what a follower may take for one batch.
const followWithin = 30 * time.Second

// maxClockStep is how far wall clock and monotonic clock may part between two
// batches before that is recorded.
const maxClockStep = 2 * time.Second

// step returns the record of a clock that was set, or nil.
func (l *Log) step(now time.Time, mono int64) *prepared {
	if l.w.wall.IsZero() {
		return nil
	}
	expected := l.w.wall.Add(time.Duration(mono-l.w.mono) * time.Microsecond)
	if d := now.Sub(expected); d.Abs() <= maxClockStep {
		return nil
	}
	p, err := prepare(Entry{Event: "time.step", Outcome: "found", Actor: Actor{Kind: "system", ID: "log"},
		Object: Object{"expected": expected.UTC().Format(timeForm), "found": now.Format(timeForm)}})
	if err != nil {
		return nil
	}
	return p
}

// roll begins a new segment. Its first line says what the finished one hashes
// to, and has the tree's frontier, so that a start need read no more than the
// last segment.
func (l *Log) roll() error {
	err := l.w.out.Close()
	l.w.out = nil
	if err != nil {
		return fmt.Errorf("closing segment %s: %w", l.w.name, err)
	}
	var frontier []string
	for _, h := range l.w.chain.Frontier() {
		frontier = append(frontier, hex.EncodeToString(h[:]))
	}
	p, err := prepare(Entry{Event: "log.segment", Outcome: "begun", Actor: Actor{Kind: "system", ID: "log"}, Object: Object{
		"previous": l.w.name, "previous_sha256": hex.EncodeToString(l.w.sum.Sum(nil)), "size": l.w.chain.size, "frontier": frontier,
	}})
	if err != nil {
		return err
	}
	if err := l.begin(segmentName(l.w.chain.size)); err != nil {
		return err
	}
	if _, err := l.write([]*prepared{p}, false); err != nil {
		return err
	}
	l.w.active = true
	l.w.at = time.Time{} // a checkpoint is due
	return nil
}

// begin opens a new segment for writing.
func (l *Log) begin(name string) error {
	out, err := l.opt.disk.Append(l.path(segmentDir, name))
	if err != nil {
		return fmt.Errorf("beginning segment %s: %w", name, err)
	}
	if err := l.opt.disk.SyncDir(l.path(segmentDir)); err != nil {
		return errors.Join(fmt.Errorf("beginning segment %s: %w", name, err), out.Close())
	}
	l.w.out, l.w.name, l.w.size, l.w.sum, l.w.began = out, name, 0, sha256.New(), l.opt.Now()
	return nil
}
