package challenge

import (
	"errors"
	"sync"
	"time"
)

// The errors of [Holds.Hold].
var (
	ErrHeld = errors.New("challenge: held by another request")
	ErrFull = errors.New("challenge: too many requests hold challenges")
)

// maxHolds bounds the memory of holds: some 100 bytes each, and far more than the
// requests that one appliance works on at once.
const maxHolds = 100_000

// Holds is the arbiter of one process: at most one request holds a challenge.
// It is safe for concurrent use.
type Holds struct {
	now func() time.Time
	max int

	mu   sync.Mutex // guards held
	held map[string]hold
}

type hold struct {
	request [32]byte
	until   time.Time
}

// NewHolds returns an arbiter that asks now for the time, [time.Now] if nil.
func NewHolds(now func() time.Time) *Holds {
	if now == nil {
		now = time.Now
	}
	return &Holds{now: now, max: maxHolds, held: map[string]hold{}}
}

// Hold gives the challenge to the request until the given time, or returns
// [ErrHeld]: also to the request that holds it, so that one request worked on
// twice is granted once. [ErrFull] means that too many are held.
func (h *Holds) Hold(id string, request [32]byte, until time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.now()
	if old, ok := h.held[id]; ok && now.Before(old.until) {
		return ErrHeld
	}
	if _, ok := h.held[id]; !ok && len(h.held) >= h.max {
		h.sweep(now)
		if len(h.held) >= h.max {
			return ErrFull
		}
	}
	h.held[id] = hold{request, until}
	return nil
}

// Release ends the hold that the request has, and reports whether it had one.
func (h *Holds) Release(id string, request [32]byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	old, ok := h.held[id]
	if !ok || old.request != request {
		return false
	}
	delete(h.held, id)
	return true
}

// sweep forgets the holds that ended by themselves. The caller has the lock.
func (h *Holds) sweep(now time.Time) {
	for id, old := range h.held {
		if !now.Before(old.until) {
			delete(h.held, id)
		}
	}
}
