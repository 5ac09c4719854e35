// Package appliance wires the roles and runs them: what is opened, in which
// order, and closed in the other.
//
// # What a caller may rely on
//
// [New] returns an appliance that has proved what it can before it serves: the
// configuration was checked, the token's keys are the ones of the certificates
// and have the attributes that their purpose asks for, the log's chain holds and
// its index is level with it. Otherwise it refuses, and says what to do.
//
// # What it does not protect against
//
// All roles run in one process here: what takes over the process has the PIN in
// its reach.
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

	"github.com/postern-pki/postern/appliance/authority"
	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/appliance/keyholder"
	"github.com/postern-pki/postern/appliance/store/sqlite"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm"
)

// Env is what a caller may give in place of the real thing.
type Env struct {
	Now       func() time.Time // nil: time.Now
	Zap       *zap.Logger      // nil: none
	Version   string
	Boot      string       // which start of the machine this is; "": the kernel says
	Devices   net.Listener // inherited sockets; nil: opened from the configuration
	Operators net.Listener
}

// Appliance is a running Postern.
type Appliance struct {
	cfg     *config.Config
	env     Env
	started time.Time

	token     *hsm.Token
	keys      map[string]*hsm.Key // by name
	log       *audit.Log
	index     *sqlite.Store
	authority *authority.Pipeline
	cert      certificate
	servers   []server
	device    net.Addr
	operator  net.Addr

	closers []func(context.Context) error // run from the last to the first
}

// New opens everything, in dependency order, and is the only place that does.
func New(ctx context.Context, cfg *config.Config, env Env) (_ *Appliance, err error) {
	if env.Now == nil {
		env.Now = time.Now
	}
	if env.Zap == nil {
		env.Zap = zap.NewNop()
	}
	a := &Appliance{cfg: cfg, env: env, started: env.Now().UTC()}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close(context.WithoutCancel(ctx)))
		}
	}()
	for _, open := range []func(context.Context) error{
		a.openState, a.openToken, a.openLog, a.openAuthority, a.openCertificate, a.openListeners,
	} {
		if err := open(ctx); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func (a *Appliance) onClose(f func(context.Context) error) { a.closers = append(a.closers, f) }

// Close stops in the other order; it is safe to call twice.
func (a *Appliance) Close(ctx context.Context) error {
	var errs []error
	for i := len(a.closers) - 1; i >= 0; i-- {
		errs = append(errs, a.closers[i](ctx))
	}
	a.closers = nil
	return errors.Join(errs...)
}

// DeviceAddr is where the devices' listener is.
func (a *Appliance) DeviceAddr() net.Addr { return a.device }

// OperatorAddr is where the operators' listener is; nil without one.
func (a *Appliance) OperatorAddr() net.Addr { return a.operator }

func (a *Appliance) openState(context.Context) error {
	for _, dir := range []string{a.cfg.State, filepath.Join(a.cfg.State, "tls")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("state folder: %w", err)
		}
	}
	return nil
}

// openToken logs in once and finds every key, with the attributes of its
// purpose and the public key that the ceremony recorded.
func (a *Appliance) openToken(ctx context.Context) error {
	t := a.cfg.Token
	token, err := hsm.Open(ctx, hsm.Config{
		Module: t.Module, Serial: t.Serial, Label: t.Label, PIN: hsm.PINFromFile(a.cfg.PINPath),
		Sessions: t.Sessions, Deadline: a.cfg.TokenDeadline, Log: a.env.Zap.Named("hsm"),
	})
	if err != nil {
		return fmt.Errorf("opening the token: %w", err)
	}
	a.token = token
	a.onClose(func(context.Context) error { return token.Close() })
	a.keys = make(map[string]*hsm.Key)
	for _, k := range a.cfg.Keys {
		if a.keys[k.Name], err = openKey(ctx, token, k); err != nil {
			return err
		}
	}
	return a.matchCertificates()
}

// openLog opens the log and what follows it: first the keyholder, then the
// index.
func (a *Appliance) openLog(ctx context.Context) error {
	index, err := sqlite.Open(ctx, filepath.Join(a.cfg.State, "index.db"))
	if err != nil {
		return fmt.Errorf("opening the index: %w", err)
	}
	a.index = index
	a.onClose(func(context.Context) error { return index.Close() })
	options, err := a.keyholderOptions()
	if err != nil {
		return err
	}
	holder := keyholder.New(options)
	next, err := index.Next(ctx)
	if err != nil {
		return fmt.Errorf("reading the index: %w", err)
	}
	verifier, err := auditVerifier(a.cfg)
	if err != nil {
		return err
	}
	a.log, err = audit.Open(ctx, audit.Options{
		Dir: a.auditDir(), Origin: a.cfg.Origin, Signer: holder, Verifier: verifier, Now: a.env.Now, Boot: a.env.Boot, Genesis: a.genesis,
		CheckpointEvery: a.cfg.CheckpointEvery, Followers: []audit.Follower{holder, index}, MinSize: next, Log: a.env.Zap.Named("audit"),
	})
	if err != nil {
		return fmt.Errorf("opening the log: %w", err)
	}
	a.onClose(func(ctx context.Context) error { return a.log.Close(ctx) })
	return a.openIssuers(holder)
}

func (a *Appliance) auditDir() string { return filepath.Join(a.cfg.State, "audit") }

// openAuthority records the start before the first request can come.
func (a *Appliance) openAuthority(ctx context.Context) error {
	begin := a.begin()
	if err := a.authority.Start(ctx, begin); err != nil {
		return fmt.Errorf("recording the start: %w", err)
	}
	if _, err := a.log.Checkpoint(ctx); err != nil {
		return fmt.Errorf("signing the first checkpoint: %w", err)
	}
	a.onClose(func(ctx context.Context) error { return a.authority.Stop(ctx) })
	return nil
}

// Serve serves until ctx ends or a listener fails.
func (a *Appliance) Serve(ctx context.Context) error {
	ended := make(chan error, len(a.servers))
	for _, s := range a.servers {
		go func() { ended <- s.Serve() }()
	}
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return nil
	}
}
