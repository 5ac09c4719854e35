package rpc

import (
	"context"
	"errors"
	"fmt"
	"sync"

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
	ErrNoToken  = errors.New("keyholder: the token does not work now")
)

// faults are the errors that keep their meaning on the way to another process.
var faults = [...]error{
	protocol.ErrUnknownProfile, issuer.ErrNotSigned, ErrNoIntent, ErrNotHead, ErrNoKey, ErrNoToken, ErrLine, issuer.ErrStatus,
	status.ErrUnknownIssuer, status.ErrUnauthorized,
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

// cache keeps answers that do not change while a link is up.
type cache[K comparable, V any] struct {
	mu sync.RWMutex
	m  map[K]V
}

// maxCached bounds a cache: a stranger chooses the names of profiles, but only
// those that are there get an answer to keep.
const maxCached = 1024

func (c *cache[K, V]) get(k K) (V, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	v, ok := c.m[k]
	return v, ok
}

func (c *cache[K, V]) put(k K, v V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil || len(c.m) >= maxCached {
		c.m = make(map[K]V)
	}
	c.m[k] = v
}

func (c *cache[K, V]) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.m = nil
}
