package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/policy/challenge"
)

func testNoEffect(f *fixture) {
	f.follow()
	f.next(0)
	f.follow(f.log.Other())
	f.next(1)
	f.follow(f.log.Other(), f.log.Add(store.EventEnroll, store.OutRepeated, "r", audit.Object{"serial": "0a"}),
		f.log.Add(store.EventEnroll, store.OutRefused, "r", audit.Object{"serial": "0a"}))
	f.next(4)
}

func testAtomic(f *fixture) {
	f.follow(f.log.Created(Challenge("c1")))
	before := f.dump()
	i := Issuance("d1", "0a")
	i.Challenge = "c1"
	batch := []audit.Line{
		f.log.Created(Challenge("c2")), f.log.Revoked("c2"), f.log.Refused("c1"), f.log.Intent(i),
		f.log.Result(4, store.Issued), f.log.Due("0a"),
	}
	good := f.log.at
	batch = append(batch, f.log.Due("unknown"), f.log.Created(Challenge("c3")))
	if err := f.ix.Follow(f.ctx, batch); err == nil {
		f.Error("the batch was followed")
	}
	if after := f.dump(); after != before {
		f.Errorf("the batch left\n%s\nin place of\n%s", after, before)
	}
	f.next(1)
	if err := f.ix.Follow(f.ctx, batch[:6]); err != nil {
		f.Errorf("its good lines, afterwards: %v", err)
	}
	f.next(7)
	f.log.back(good)
	f.follow(f.log.Other())
}

func testGap(f *fixture) {
	for range 5 {
		f.log.Other()
	}
	lines := f.log.Lines
	gap := func(why string, batch ...audit.Line) {
		f.Helper()
		if err := f.ix.Follow(f.ctx, batch); !errors.Is(err, store.ErrGap) {
			f.Errorf("%s: %v, want ErrGap", why, err)
		}
	}
	gap("an empty index and the second line", lines[1])
	f.follow(lines[0], lines[1])
	gap("the same line again", lines[1])
	gap("an older line", lines[0])
	gap("a line too far", lines[3])
	gap("a batch with a hole", lines[2], lines[4])
	gap("a batch that repeats", lines[2], lines[2])
	f.next(2)
	f.follow(lines[2:]...)
	f.next(5)
}

func testChain(f *fixture) {
	other := NewLog(f)
	f.follow(f.log.Other())
	other.Created(Challenge("another log"))
	foreign := []audit.Line{other.Other(), other.Other()}
	if err := f.ix.Follow(f.ctx, foreign); !errors.Is(err, store.ErrGap) {
		f.Errorf("lines of another log: %v, want ErrGap", err)
	}
	mixed := []audit.Line{f.log.Other(), foreign[1]}
	if err := f.ix.Follow(f.ctx, mixed); !errors.Is(err, store.ErrGap) {
		f.Errorf("a batch that changes to another log: %v, want ErrGap", err)
	}
	f.next(1)
	empty := f.open(f, f.TempDir())
	defer func() {
		if err := empty.Close(); err != nil {
			f.Error(err)
		}
	}()
	first := other.Lines[0]
	first.Record.Prev = Digest("something before")
	if err := empty.Follow(f.ctx, []audit.Line{first}); !errors.Is(err, store.ErrGap) {
		f.Errorf("a first line that has one before it: %v, want ErrGap", err)
	}
}

func testLacking(f *fixture) {
	for why, c := range map[string]struct {
		event, out string
		object     audit.Object
	}{
		"a challenge without tag":           {store.EventChallenge, store.OutCreated, audit.Object{"id": "c1"}},
		"an intent without certificate":     {store.EventEnroll, store.OutIntent, audit.Object{"subject": "CN=x"}},
		"a result of nothing":               {store.EventEnroll, store.OutFailed, audit.Object{"serial": "0a"}},
		"an issuance without certificate":   {store.EventEnroll, store.OutIssued, audit.Object{"intent_seq": 1, "serial": "0a"}},
		"a request without facts":           {store.EventEnroll, store.OutPending, audit.Object{"profile": "wifi", "expires": 1, "facts": audit.Object{"unknown": "x"}}},
		"a request without an end":          {store.EventEnroll, store.OutPending, audit.Object{"profile": "wifi", "facts": audit.Object{}}},
		"a denial of nobody":                {store.EventEnroll, store.OutDenied, audit.Object{"why": "x"}},
		"a revocation that names no serial": {store.EventRevocation, store.OutDue, audit.Object{"why": "x"}},
	} {
		f.refuse(why, func(l *Log) audit.Line { return l.Add(c.event, c.out, "r", c.object) })
	}
}

func testReopen(f *fixture) {
	seq := f.intended("0a")
	f.follow(f.log.Result(seq, store.Issued), f.log.Intent(Issuance("d2", "0b")), f.log.Refused("c1"))
	before := f.dump()
	f.close()
	f.ix = f.open(f, f.dir)
	if after := f.dump(); after != before {
		f.Errorf("reopened:\n%s\nwant\n%s", after, before)
	}
	f.next(5)
	f.is("0a", store.Issued, 2, false)
	if err := f.ix.Follow(f.ctx, f.log.Lines[4:]); !errors.Is(err, store.ErrGap) {
		f.Errorf("the last line again: %v, want ErrGap", err)
	}
	f.follow(f.log.Result(3, store.Failed))
	f.next(6)
}

func testCanceled(f *fixture) {
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	if err := f.ix.Follow(ctx, []audit.Line{f.log.Created(Challenge("c1"))}); err != nil {
		f.Errorf("Follow after a cancellation: %v", err)
	}
	f.state("c1", challenge.Open, 0, "")
}

// testConcurrent reads while batches of an intent and its result are followed: no
// read fails, and none sees half a batch.
func testConcurrent(f *fixture) {
	const rounds, width = 50, 4
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range width {
		wg.Go(func() {
			for n := 0; ; n = (n + 1) % rounds {
				select {
				case <-done:
					return
				default:
				}
				i, err := f.ix.Certificate(f.ctx, fmt.Sprintf("%04x", n))
				if errors.Is(err, store.ErrNotFound) {
					continue
				}
				if err != nil || i.State != store.Issued {
					f.Errorf("beside a batch: %s, %v", i.State, err)
					return
				}
				if open, err := f.ix.OpenIntents(f.ctx); err != nil || len(open) != 0 {
					f.Errorf("half a batch: %v, %v", serials(open), err)
					return
				}
			}
		})
	}
	for n := range rounds {
		serial := fmt.Sprintf("%04x", n)
		batch := []audit.Line{f.log.Intent(Issuance("d"+serial, serial)), f.log.Result(uint64(2*n), store.Issued)}
		if err := f.ix.Follow(f.ctx, batch); err != nil {
			f.Errorf("Follow: %v", err)
			break
		}
		f.is(serial, store.Issued, uint64(2*n+1), false)
	}
	close(done)
	wg.Wait()
}

// testRebuild feeds one log in batches of several sizes, and as written as well as
// as read.
func testRebuild(t *testing.T, open Opener) {
	live := newFixture(t, open)
	history(live)
	want := live.dump()
	for _, size := range []int{1, 2, 7, 1 << 20} {
		for how, lines := range map[string][]audit.Line{"read": live.log.Lines, "written": live.log.Written} {
			f := newFixture(t, open)
			for from := 0; from < len(lines); from += size {
				f.follow(lines[from:min(from+size, len(lines))]...)
			}
			f.next(uint64(len(lines)))
			if got := f.dump(); got != want {
				t.Errorf("lines as %s, in batches of %d:\n%s\nwant\n%s", how, size, got, want)
			}
		}
	}
	f := newFixture(t, open)
	f.follow(live.log.Lines[:len(live.log.Lines)-1]...)
	if f.dump() == want {
		t.Error("one line less gives the same state")
	}
}

// history is a log in which everything happens.
func history(f *fixture) {
	for n := range 12 {
		id, device, serial := fmt.Sprintf("c%d", n), fmt.Sprintf("d%d", n%3), fmt.Sprintf("%02x", n)
		c := Challenge(id)
		if n%2 == 0 {
			c.Names.DNS = nil
		}
		i := Issuance(device, serial)
		i.Challenge = id
		f.follow(f.log.Created(c), f.log.Refused(id))
		f.follow(f.log.Intent(i))
		seq := f.log.Next() - 1
		switch n % 5 {
		case 0:
			f.follow(f.log.Result(seq, store.Failed), f.log.Revoked(id))
		case 1:
			f.follow(f.log.Result(seq, store.Unknown), f.log.Due(serial))
		case 2:
		default:
			f.follow(f.log.Result(seq, store.Issued), f.log.Other())
			f.end(Renewal(i, "f"+serial), store.Issued)
			f.follow(f.log.Due("f" + serial))
		}
	}
}
