package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/postern-pki/postern/appliance"
	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/status"
)

// oneProcess serves a site with all roles in this process, and no links between
// them: what the same code costs without being taken apart.
func oneProcess(ctx context.Context, path string) (err error) {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	if err := os.Setenv("SOFTHSM2_CONF", cfg.SoftHSM2Conf); err != nil {
		return err
	}
	debug.SetGCPercent(400) // as posternd
	env := appliance.Env{Version: "load"}
	keys, err := appliance.OpenKeyholder(ctx, cfg, env)
	if err != nil {
		return err
	}
	defer func() { _ = keys.Close(context.WithoutCancel(ctx)) }()
	sockets, remove, err := appliance.OpenSockets(ctx, cfg)
	if err != nil {
		return err
	}
	defer remove()
	env.Devices = sockets["devices"].Addr().String()
	env.Listener = sockets.Listener
	a, err := appliance.OpenAuthority(ctx, cfg, env, keys)
	if err != nil {
		return err
	}
	defer func() { _ = a.Close(context.WithoutCancel(ctx)) }()
	direct := authority{a.Verbs().Devices, a.Verbs().Status, a}
	devices, err := appliance.OpenDevices(ctx, cfg, env, direct, keys)
	if err != nil {
		return err
	}
	defer func() { _ = devices.Close(context.WithoutCancel(ctx)) }()
	operators, err := appliance.OpenOperators(ctx, cfg, env, direct, keys)
	if err != nil {
		return err
	}
	defer func() { _ = operators.Close(context.WithoutCancel(ctx)) }()
	ended := make(chan error, 2)
	for _, g := range []*appliance.Gate{devices, operators} {
		go func() { ended <- g.Serve(ctx) }()
	}
	return <-ended
}

// authority is what a gate needs, without a link.
type authority struct {
	protocol.Authority
	status.Source
	a *appliance.Authority
}

func (d authority) Operate(ctx context.Context, c rpc.Call) (rpc.Answer, error) {
	return d.a.Operate(ctx, rpc.RoleOperators, c)
}

func (d authority) Chain(context.Context) ([][]byte, error) { return d.a.Chain(), nil }

// serveOne is the command that serves a site by one process. The timer slack is what
// posternd gives itself.
func serveOne(self string) func(config string) *exec.Cmd {
	return func(config string) *exec.Cmd { return exec.Command(self, "-one", config) }
}

// slack has the processes that are started from here join what wakes within a
// millisecond, as posternd does for itself.
func slack() error {
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1_000_000, 0, 0, 0); err != nil {
		return fmt.Errorf("timer slack: %w", err)
	}
	return nil
}
