package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"

	"github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance"
	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/appliance/link"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/appliance/supervisor"
)

// options are what the command line says.
type options struct {
	path    string
	child   bool
	devices string
	errOut  io.Writer
}

// prepared is what every process of the service begins with.
func prepared(o options) (*config.Config, *zap.Logger, error) {
	if err := hideMemory(); err != nil {
		return nil, nil, err
	}
	cfg, err := config.Load(o.path)
	if err != nil {
		return nil, nil, &configError{err}
	}
	if os.Getenv("GOGC") == "" {
		// The heap that lives is a few megabytes: collecting it as often as Go would
		// by itself costs more time than the memory is worth.
		debug.SetGCPercent(gcPercent)
	}
	return cfg, newLogger(o.errOut), nil
}

// serve runs one role: as a child, or as a service of its own.
func serve(ctx context.Context, o options, role string) error {
	cfg, log, err := prepared(o)
	if err != nil {
		return err
	}
	log = log.With(zap.String("role", role))
	if n := threads(role); n > 0 && os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(n)
	}
	defer func() { _ = log.Sync() }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	env := appliance.Env{Zap: log, Version: version(), Boot: os.Getenv("POSTERN_BOOT_ID"), Devices: o.devices} // as the unit has it
	ends, ready, err := joined(o, cfg.Links, role, &env, cancel)
	if err != nil {
		return err
	}
	if conf := cfg.SoftHSM2Conf; conf != "" && role == rpc.RoleKeyholder {
		// The module reads it from the environment when it is loaded, once.
		if err := os.Setenv("SOFTHSM2_CONF", conf); err != nil {
			return err
		}
	}
	err = appliance.Run(ctx, cfg, env, role, ends, ready)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil // it was told to stop before it had begun
	}
	return err
}

// threads is how many threads of a role compute at once; 0 leaves it to the runtime.
// The token takes most of the machine: a gate computes a sixth of what the token does
// for the same request, the authority a third, and more threads would wake each
// other up for nothing.
func threads(role string) int {
	switch role {
	case rpc.RoleDevices, rpc.RoleOperators:
		return max(1, runtime.NumCPU()/4)
	case rpc.RoleAuthority:
		return max(1, runtime.NumCPU()/2)
	}
	return 0
}

// joined takes what was handed over: by the parent, or by the service manager.
func joined(o options, l config.Links, role string, env *appliance.Env, gone func()) (link.Ends, func(), error) {
	if o.child {
		// The parent talks to the service manager; a child that could would need the
		// right to connect.
		if err := os.Unsetenv("NOTIFY_SOCKET"); err != nil {
			return nil, nil, err
		}
		hands, err := link.NewHands(os.NewFile(supervisor.ControlFD, "control"))
		if err != nil {
			return nil, nil, fmt.Errorf("--child is for the parent to use: %w", err)
		}
		in, err := link.Inherit(hands, gone)
		if err != nil {
			return nil, nil, err
		}
		env.Listener = in.Listener
		return in, func() {
			if err := in.Ready(); err != nil {
				env.Zap.Warn("telling the parent", zap.Error(err))
			}
		}, nil
	}
	if err := env.Inherit(); err != nil {
		return nil, nil, err
	}
	named, err := link.NewNamed(l.Folder, env.Listener(role), map[string]string{rpc.RoleAuthority: l.Authority, rpc.RoleDevices: l.Devices, rpc.RoleOperators: l.Operators})
	if err != nil {
		return nil, nil, err
	}
	return named, func() { notify(env.Zap) }, nil
}

func notify(log *zap.Logger) {
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		log.Warn("telling the service manager", zap.Error(err))
	}
}

// supervise opens the sockets and runs all roles as children.
func supervise(ctx context.Context, o options) error {
	cfg, log, err := prepared(o)
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }()
	path, err := filepath.Abs(o.path)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	sockets, remove, err := appliance.OpenSockets(ctx, cfg)
	if err != nil {
		return err
	}
	defer remove()
	devices, operators := sockets["devices"].Addr().String(), ""
	if s, ok := sockets["operators"]; ok {
		operators = s.Addr().String()
	}
	role := func(name string, words []string, listeners []string, calls ...string) supervisor.Role {
		r := supervisor.Role{Name: name, Args: append(words, "--child", "--devices", devices, "--config", path), Listeners: map[string]supervisor.Socket{}, Calls: calls}
		for _, l := range listeners {
			if s, ok := sockets[l]; ok {
				r.Listeners[l] = s
			}
		}
		return r
	}
	stopping := context.AfterFunc(ctx, func() {
		log.Info("stopping")
		_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	})
	defer stopping()
	roles := []supervisor.Role{role(rpc.RoleKeyholder, []string{"keyholder"}, nil)}
	var couriers []string
	if appliance.HasCourier(cfg) {
		roles = append(roles, role(rpc.RoleCourier, []string{"courier"}, nil))
		couriers = []string{rpc.RoleCourier}
	}
	roles = append(roles,
		role(rpc.RoleAuthority, []string{"authority"}, nil, append(couriers, rpc.RoleKeyholder)...),
		role(rpc.RoleDevices, []string{"gate", "devices"}, []string{"devices"}, append(couriers, rpc.RoleKeyholder, rpc.RoleAuthority)...),
		role(rpc.RoleOperators, []string{"gate", "operators"}, []string{"operators", "local"}, append(couriers, rpc.RoleKeyholder, rpc.RoleAuthority)...))
	return supervisor.Run(ctx, supervisor.Options{
		Program: self, Out: o.errOut, Log: log, Roles: roles,
		Ready: func() {
			log.Info("serving", zap.String("devices", devices), zap.String("operators", operators), zap.String("socket", cfg.Operators.Socket))
			notify(log)
		},
	})
}
