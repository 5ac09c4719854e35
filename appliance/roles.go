package appliance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/appliance/link"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/appliance/sandbox"
)

// ErrHung says that a call is stuck inside the token's library: the process has to
// be started again, which cures it.
var ErrHung = errors.New("a call is stuck inside the token's library: this process ends, to be started again")

// Bounds of a role's start and stop.
const (
	peersWithin = 60 * time.Second // for the roles that it needs to be there
	stopWithin  = 20 * time.Second // the last checkpoint and the open requests
)

// Run opens a role, joins it to the others by its links, calls ready, and serves
// until ctx ends or it cannot go on.
func Run(ctx context.Context, cfg *config.Config, env Env, role string, ends link.Ends, ready func()) error {
	r := &running{cfg: cfg, env: env.orDefault(), role: role, ends: ends, ready: ready, dial: append(ends.Names(), sandbox.Manager()...)}
	if HasCourier(cfg) && role != rpc.RoleCourier && role != rpc.RoleKeyholder {
		c := rpc.NewCourier(r.client(rpc.RoleCourier))
		defer func() { _ = c.Close() }()
		r.env.Courier, r.env.Validators = c, c
	}
	switch role {
	case rpc.RoleKeyholder:
		return r.keyholder(ctx)
	case rpc.RoleAuthority:
		return r.authority(ctx)
	case rpc.RoleDevices:
		return r.gate(ctx, OpenDevices)
	case rpc.RoleOperators:
		return r.gate(ctx, OpenOperators)
	case rpc.RoleCourier:
		return r.courier(ctx)
	}
	return fmt.Errorf("no role is called %q", role)
}

type running struct {
	cfg   *config.Config
	env   Env
	role  string
	ends  link.Ends
	ready func()
	dial  []string // sockets with names that the role connects to; none where its ends were inherited
}

func (r *running) hello() link.Hello {
	return link.Hello{Role: r.role, Build: r.env.Version, Config: r.cfg.Digest + " " + r.cfg.Policies.Digest()}
}

func (r *running) client(server string) link.ClientOptions {
	return link.ClientOptions{Self: r.hello(), Dial: r.ends.Dialer(server), Log: r.env.Zap.Named("link")}
}

// closeWithin closes a role although its context has ended.
func closeWithin(ctx context.Context, err *error, c func(context.Context) error) {
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
	defer cancel()
	*err = errors.Join(*err, c(last))
}

func (r *running) keyholder(ctx context.Context) (err error) {
	if err := r.bindKeyholder(); err != nil { // before the library is loaded
		return err
	}
	k, err := OpenKeyholder(ctx, r.cfg, r.env)
	if err != nil {
		return err
	}
	hung := false
	defer func() {
		if !hung { // else closing would hang too
			closeWithin(ctx, &err, k.Close)
		}
	}()
	s := link.NewServer(link.ServerOptions{Self: r.hello(), Verbs: rpc.KeyholderTable(k, k), Log: r.env.Zap.Named("link"),
		Refused: func(role string, v link.Verb, why error) { k.Refuse(role, uint8(v), why) }})
	stop := r.accept(ctx, s)
	defer stop()
	r.ready()
	select {
	case <-k.Hung():
		hung = true
		return ErrHung
	case <-ctx.Done():
		return nil
	}
}

// accept serves links until stop is called, which waits for what is under way.
func (r *running) accept(ctx context.Context, s *link.Server) (stop func()) {
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			c, role, err := r.ends.Accept(run)
			if err != nil {
				if run.Err() == nil {
					r.env.Zap.Error("no more links", zap.Error(err))
				}
				return
			}
			wait.Go(func() { r.serve(run, s, c, role) })
		}
	})
	return func() {
		cancel()
		wait.Wait()
	}
}

func (r *running) serve(ctx context.Context, s *link.Server, c net.Conn, role string) {
	if err := s.Serve(ctx, c, role); err != nil && ctx.Err() == nil {
		r.env.Zap.Error("a link ended", zap.String("role", role), zap.Error(err))
	}
}

func (r *running) authority(ctx context.Context) (err error) {
	if err := r.bindAuthority(); err != nil {
		return err
	}
	o := rpc.HolderOptions{Link: r.client(rpc.RoleKeyholder), Scan: scanner(r.cfg)}
	holder := rpc.NewHolder(o)
	defer func() { err = errors.Join(err, holder.Close()) }()
	if err := r.wait(ctx, holder.Ready); err != nil {
		return err
	}
	a, err := OpenAuthority(ctx, r.cfg, r.env, holder)
	if err != nil {
		return err
	}
	defer closeWithin(ctx, &err, a.Close)
	s := link.NewServer(link.ServerOptions{Self: r.hello(), Verbs: a.Verbs().Table(), Log: r.env.Zap.Named("link"),
		Refused: func(role string, v link.Verb, why error) { a.Refuse(role, uint8(v), why) }})
	stop := r.accept(ctx, s)
	defer stop()
	r.ready()
	<-ctx.Done()
	return nil
}

// wait waits for another role.
func (r *running) wait(ctx context.Context, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, peersWithin)
	defer cancel()
	return ready(ctx)
}

type openGate func(context.Context, *config.Config, Env, GateAuthority, rpc.GateKeys) (*Gate, error)

func (r *running) gate(ctx context.Context, open openGate) (err error) {
	keys := rpc.NewKeyholder(r.client(rpc.RoleKeyholder))
	defer func() { err = errors.Join(err, keys.Close()) }()
	a := rpc.NewAuthority(r.client(rpc.RoleAuthority))
	defer func() { err = errors.Join(err, a.Close()) }()
	for _, ready := range []func(context.Context) error{keys.Ready, a.Ready} {
		if err := r.wait(ctx, ready); err != nil {
			return err
		}
	}
	g, err := open(ctx, r.cfg, r.env, a, keys)
	if err != nil {
		return err
	}
	defer closeWithin(ctx, &err, g.Close)
	if err := r.bindGate(); err != nil { // nobody was served yet
		return err
	}
	r.ready()
	return g.Serve(ctx)
}
