package audit_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-pki/postern/audit"
)

func TestTwoCheckpointsOnABrokenDisk(t *testing.T) {
	for name, kind := range map[string]string{"note": "writefile", "sync": "sync"} {
		t.Run(name, func(t *testing.T) {
			s := newSigner(t)
			d := &badDisk{Disk: audit.RealDisk(), err: syscall.EIO}
			l := open(t, options(t, t.TempDir(), s).WithDisk(d))
			var wg sync.WaitGroup
			gate := make(chan struct{})
			s.set(func(context.Context) error { <-gate; return nil })
			for range 8 {
				wg.Go(func() { _, _ = l.Checkpoint(context.Background()) })
			}
			time.Sleep(100 * time.Millisecond)
			d.mu.Lock()
			// The first is alone and needs three operations. The others waited
			// for it and are one batch, whose first meets the bad disk.
			d.failAt = d.count + 3 + 1
			if kind == "sync" {
				d.failAt = d.count + 3 + 3
			}
			d.mu.Unlock()
			close(gate)
			wg.Wait()
			if len(d.after) > 0 {
				t.Errorf("after the disk failed it was asked again: %v (all: %v)", d.after, d.ops)
			}
		})
	}
}

func TestClockStepSeenAtACheckpoint(t *testing.T) {
	dir := t.TempDir()
	s := newSigner(t)
	o := options(t, dir, s)
	var mu sync.Mutex
	var shift time.Duration
	o.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(shift) }
	l := open(t, o)
	appendN(t, l, 1)
	mu.Lock()
	shift = -time.Hour
	mu.Unlock()
	if _, err := l.Checkpoint(context.Background()); err != nil {
		t.Fatal(err)
	}
	appendN(t, l, 1)
	if got := eventsOf(readAll(t, dir)); !strings.Contains(got, "time.step") {
		t.Errorf("the clock went back by an hour and the log does not say so: %s", got)
	}
}

func TestCloseHasABound(t *testing.T) {
	for name, what := range map[string]string{"a disk that hangs": "disk", "a signer that hangs and ignores its context": "signer"} {
		t.Run(name, func(t *testing.T) {
			s := newSigner(t)
			d := &badDisk{Disk: audit.RealDisk()}
			l, err := audit.Open(context.Background(), options(t, t.TempDir(), s).WithDisk(d))
			if err != nil {
				t.Fatal(err)
			}
			gate := make(chan struct{})
			defer close(gate)
			ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
			defer cancel()
			if what == "disk" {
				d.hang = gate
			} else {
				s.set(func(context.Context) error { <-gate; return nil })
			}
			if what == "disk" {
				if _, err := l.Append(ctx, refusal(0)); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("Append: %v", err)
				}
			}
			done := make(chan error, 1)
			go func() { done <- l.Close(ctx) }()
			select {
			case err := <-done:
				if err == nil {
					t.Error("Close said that all was well")
				}
			case <-time.After(5 * time.Second):
				t.Error("Close did not return when its context ended")
			}
		})
	}
}

func TestGroupCommit(t *testing.T) {
	const writers, each = 64, 25
	dir, d, f := t.TempDir(), &badDisk{Disk: audit.RealDisk()}, &follower{t: t}
	s := newSigner(t)
	o := options(t, dir, s, f).WithDisk(d)
	o.SegmentBytes, o.CheckpointRecords, o.MaxBatch = 64<<10, 300, 40
	l := open(t, o)
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := make(map[uint64]string)
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				e := refusal(w*each + i)
				lines, err := l.AppendAll(context.Background(), e, e)
				if err != nil {
					t.Error(err)
					return
				}
				if lines[1].Record.Seq != lines[0].Record.Seq+1 {
					t.Errorf("not adjacent: %d and %d", lines[0].Record.Seq, lines[1].Record.Seq)
				}
				if f.size() <= lines[1].Record.Seq {
					t.Errorf("line %d was acknowledged before the follower had it", lines[1].Record.Seq)
				}
				mu.Lock()
				for _, line := range lines {
					seen[line.Record.Seq] = string(line.Raw)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	closeLog(t, l)
	syncs := strings.Count(fmt.Sprint(d.ops), "sync") - strings.Count(fmt.Sprint(d.ops), "syncdir")
	if syncs >= writers*each {
		t.Errorf("%d syncs for %d requests: nothing was grouped", syncs, writers*each)
	}
	lines := readAll(t, dir)
	for _, line := range lines {
		if want, ok := seen[line.Record.Seq]; ok && want != string(line.Raw) {
			t.Errorf("line %d is not the one that was acknowledged", line.Record.Seq)
		}
		delete(seen, line.Record.Seq)
	}
	if len(seen) > 0 {
		t.Errorf("%d acknowledged lines are not in the log", len(seen))
	}
	r, err := audit.Verify(context.Background(), dir, audit.VerifyOptions{Verifier: s.verifier()})
	if err != nil || r.Records != uint64(len(lines)) || r.Records != f.size() || r.Segments < 2 {
		t.Errorf("Verify = %+v, %v; the follower has %d", r, err, f.size())
	}
}

// TestAppendHasABound: with a disk that hangs each caller leaves when its
// context ends, however many there are, and all is well once the disk is back.
func TestAppendHasABound(t *testing.T) {
	d := &badDisk{Disk: audit.RealDisk()}
	l := open(t, options(t, t.TempDir(), nil).WithDisk(d))
	gate := make(chan struct{})
	d.hang = gate
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := l.Append(ctx, refusal(0)); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Append: %v", err)
			}
		})
	}
	wg.Wait()
	close(gate)
	appendN(t, l, 1)
}

func TestFollowerErrorPoisons(t *testing.T) {
	f := &follower{t: t}
	l := open(t, options(t, t.TempDir(), nil, f))
	f.mu.Lock()
	f.fail = errors.New("index is full")
	f.mu.Unlock()
	for range 2 {
		if _, err := l.Append(context.Background(), refusal(0)); !errors.Is(err, audit.ErrPoisoned) {
			t.Errorf("Append: %v, want ErrPoisoned", err)
		}
	}
	if err := l.Healthy(); !errors.Is(err, audit.ErrPoisoned) {
		t.Errorf("Healthy: %v", err)
	}
}

func TestOneWriter(t *testing.T) {
	dir := t.TempDir()
	l := open(t, options(t, dir, nil))
	if _, err := audit.Open(context.Background(), options(t, dir, nil)); !errors.Is(err, audit.ErrLocked) {
		t.Errorf("a second writer: %v, want ErrLocked", err)
	}
	closeLog(t, l)
	if _, err := l.Append(context.Background(), refusal(0)); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("after Close: %v, want ErrClosed", err)
	}
	appendN(t, open(t, options(t, dir, nil)), 1)
}
