package rpc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/postern-pki/postern/appliance/link"
	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/status"
)

// The roles, as a hello names them.
const (
	RoleDevices   = "devices"
	RoleOperators = "operators"
	RoleAuthority = "authority"
	RoleKeyholder = "keyholder"
	RoleCourier   = "courier"
)

// Errors of the keyholder that its callers tell apart.
var (
	ErrNoIntent = errors.New("keyholder: no open intent for this certificate in the log")
	ErrNotHead  = errors.New("keyholder: not the head of the log that was followed")
	ErrNoKey    = errors.New("keyholder: no such key for this use")
	ErrLine     = errors.New("keyholder: the log does not continue what it has seen of it")
	ErrManifest = errors.New("keyholder: not a manifest that names a checkpoint of the log that was followed")
	ErrNoToken  = errors.New("keyholder: the token does not work now")
)

// faults are the errors that keep their meaning on the way to another process.
var faults = [...]error{
	protocol.ErrUnknownProfile, issuer.ErrNotSigned, ErrNoIntent, ErrNotHead, ErrNoKey, ErrNoToken, ErrLine, issuer.ErrStatus,
	status.ErrUnknownIssuer, status.ErrUnauthorized, ErrManifest,
}

// toFault makes an error one that the other end can tell from others. A bit of the
// code stands for each of the errors above, as one error can be several of them.
func toFault(err error) *link.Fault {
	code := link.CodeOther
	for i, known := range faults {
		if errors.Is(err, known) {
			code |= link.FirstCode << i
		}
	}
	switch {
	case code != link.CodeOther:
	case errors.Is(err, context.DeadlineExceeded):
		code = link.CodeDeadline
	case errors.Is(err, context.Canceled):
		code = link.CodeCanceled
	}
	return &link.Fault{Code: code, Text: err.Error()}
}

// fromFault gives a fault its meaning back.
func fromFault(err error) error {
	f, ok := errors.AsType[*link.Fault](err)
	if !ok || f.Code < link.FirstCode {
		return err
	}
	for i, known := range faults {
		if f.Code&(link.FirstCode<<i) != 0 {
			err = fmt.Errorf("%w: %w", known, err)
		}
	}
	return err
}

// cache keeps answers while a link is up, each for a time: long enough that a busy
// gate seldom asks, short enough that nobody notices.
type cache[K comparable, V any] struct {
	mu sync.RWMutex
	m  map[K]cached[V]
}

type cached[V any] struct {
	v     V
	until time.Time
}

// Bounds of a cache. A stranger chooses the names of profiles, but only those that
// are there get an answer to keep.
const (
	maxCached = 1024
	cachedFor = time.Second
)

func (c *cache[K, V]) get(k K) (V, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	e, ok := c.m[k]
	if !ok || time.Now().After(e.until) {
		var none V
		return none, false
	}
	return e.v, true
}

func (c *cache[K, V]) put(k K, v V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil || len(c.m) >= maxCached {
		c.m = make(map[K]cached[V])
	}
	c.m[k] = cached[V]{v, time.Now().Add(cachedFor)}
}

func (c *cache[K, V]) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.m = nil
}
