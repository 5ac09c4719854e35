package authority

import (
	"context"
	"slices"
	"sync"
	"time"
)

// keyedLocks gives exclusive use of several named things at once: a transaction,
// a lineage, a subject. Two requests that share a name run one after the other,
// so that each sees in the index what the other did.
type keyedLocks struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when the holder is done
}

// lock waits for all names, in sorted order so that no two callers can wait for
// each other, until ctx ends.
func (k *keyedLocks) lock(ctx context.Context, names ...string) (unlock func(), err error) {
	slices.Sort(names)
	names = slices.Compact(names)
	got := 0
	unlock = func() { k.release(names[:got]) }
	for _, n := range names {
		if err := k.one(ctx, n); err != nil {
			unlock()
			return nil, err
		}
		got++
	}
	return unlock, nil
}

func (k *keyedLocks) one(ctx context.Context, name string) error {
	for {
		k.mu.Lock()
		if k.held == nil {
			k.held = make(map[string]chan struct{})
		}
		busy, ok := k.held[name]
		if !ok {
			k.held[name] = make(chan struct{})
			k.mu.Unlock()
			return nil
		}
		k.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (k *keyedLocks) release(names []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, n := range names {
		close(k.held[n])
		delete(k.held, n)
	}
}

// rates counts what each profile issued in the last minute, and reserves at the
// time of asking, so that two requests cannot both take the last place.
type rates struct {
	mu sync.Mutex
	at map[string][]time.Time
}

// last returns how many were issued or reserved in the minute before now.
func (r *rates) last(profile string, now time.Time) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	from := now.Add(-time.Minute)
	i, _ := slices.BinarySearchFunc(r.at[profile], from, time.Time.Compare)
	if i > 0 {
		r.at[profile] = slices.Clone(r.at[profile][i:])
	}
	return int64(len(r.at[profile]))
}

// take reserves one place for the profile if fewer than limit are taken; limit 0
// is none.
func (r *rates) take(profile string, limit int64, now time.Time) bool {
	if limit == 0 {
		return true
	}
	if r.last(profile, now) >= limit {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.at == nil {
		r.at = make(map[string][]time.Time)
	}
	if int64(len(r.at[profile])) >= limit {
		return false
	}
	r.at[profile] = append(r.at[profile], now)
	return true
}
