// Package appliance wires the roles and runs them: what each opens, in which
// order, and closes in the other.
//
// # What a caller may rely on
//
// A role serves only after it has proved what it can: the keyholder, that the
// token's keys are the ones of the certificates and have the attributes that their
// purpose asks for; the authority, that the log's chain holds, is not older than
// what the keyholder and the token know, and that its index is level with it; a
// gate, that it has a certificate and somebody to decide. Otherwise it refuses, and
// says what to do. Roles meet through interfaces alone: [Run] joins them by links
// between processes.
//
// # What it does not protect against
//
// Roles that run as one user share what that user may do; a service manager gives
// each its own.
package appliance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/audit"
)

// Env is what a caller may give in place of the real thing.
type Env struct {
	Now     func() time.Time // nil: time.Now
	Zap     *zap.Logger      // nil: none
	Version string
	Boot    string // which start of the machine this is; "": the kernel says
	// Listener returns the listening socket of that name that this process
	// inherited: devices, operators or local. nil: there is none.
	Listener func(name string) net.Listener
	// Devices is where the devices' listener is, if the configuration does not say.
	Devices string
	// Courier is the role that has the listeners' certificate from a directory; nil:
	// there is none.
	Courier rpc.CourierTLS
	// Validators asks those who vouch for requests; nil: there are none.
	Validators rpc.Validators
}

func (e Env) orDefault() Env {
	if e.Now == nil {
		e.Now = time.Now
	}
	if e.Zap == nil {
		e.Zap = zap.NewNop()
	}
	if e.Listener == nil {
		e.Listener = func(string) net.Listener { return nil }
	}
	return e
}

// closers are run from the last to the first, once.
type closers []func(context.Context) error

func (c *closers) onClose(f func(context.Context) error) { *c = append(*c, f) }

// Close stops in the order opposite to the opening; it is safe to call twice.
func (c *closers) Close(ctx context.Context) error {
	var errs []error
	for i := len(*c) - 1; i >= 0; i-- {
		errs = append(errs, (*c)[i](ctx))
	}
	*c = nil
	return errors.Join(errs...)
}

// failed closes what was opened before an error.
func (c *closers) failed(ctx context.Context, err *error) {
	if *err != nil {
		*err = errors.Join(*err, c.Close(context.WithoutCancel(ctx)))
	}
}

// background runs f until the role is closed.
func (c *closers) background(ctx context.Context, name string, f func(context.Context)) {
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(run)
	}()
	c.onClose(func(ctx context.Context) error {
		stop()
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", name, ctx.Err())
		}
	})
}

func folder(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	return nil
}

func auditDir(cfg *config.Config) string { return filepath.Join(cfg.State, "audit") }

// scanner reads the log's lines from the disk.
func scanner(cfg *config.Config) func(from uint64, fn func(audit.Line) error) error {
	return func(from uint64, fn func(audit.Line) error) error { return audit.Scan(auditDir(cfg), from, fn) }
}
