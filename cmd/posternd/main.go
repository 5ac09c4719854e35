// Command posternd is the enrollment appliance.
//
// # What a caller may rely on
//
// It serves only after everything that can be checked was checked: the
// configuration, the token's keys and their attributes, the log. It tells the
// service manager when it is ready, stops in order on SIGTERM, and exits 0 then,
// 1 when something failed, 2 when it was misused, and 78 when its configuration
// is wrong.
//
// # What it does not protect against
//
// The PIN is in this process while it runs, inside the PKCS#11 module.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"github.com/postern-pki/postern/appliance"
	"github.com/postern-pki/postern/appliance/keyholder"
	"github.com/postern-pki/postern/appliance/link"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/appliance/supervisor"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm"
)

// Exit statuses; the last is sysexits' EX_CONFIG, which a unit does not restart.
const (
	exitFailed  = 1
	exitMisused = 2
	exitLater   = supervisor.ExitLater // it may work when it is started again
	exitConfig  = 78
)

func main() {
	calm()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	o := options{errOut: errOut}
	served := false
	act := func(f func(context.Context, options) error) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, _ []string) error {
			served = true
			return f(cmd.Context(), o)
		}
	}
	root := &cobra.Command{
		Use: "posternd --config FILE", Short: "The Postern enrollment appliance: all roles, as children of one process", Args: cobra.NoArgs,
		SilenceErrors: true, SilenceUsage: true, Version: version(), RunE: act(supervise),
	}
	root.PersistentFlags().StringVar(&o.path, "config", "/etc/postern/postern.yaml", "configuration `file`")
	root.PersistentFlags().BoolVar(&o.child, "child", false, "the parent hands over sockets and links")
	root.PersistentFlags().StringVar(&o.devices, "devices", "", "`address` of the devices' listener")
	for _, hidden := range []string{"child", "devices"} {
		_ = root.PersistentFlags().MarkHidden(hidden)
	}
	command := func(name, short, role string) *cobra.Command {
		return &cobra.Command{Use: name, Short: short, Args: cobra.NoArgs, RunE: act(func(ctx context.Context, o options) error { return serve(ctx, o, role) })}
	}
	gate := &cobra.Command{Use: "gate", Short: "One of the roles that listen"}
	gate.AddCommand(command("devices", "The devices' listener", rpc.RoleDevices), command("operators", "The operators' socket and listener", rpc.RoleOperators))
	root.AddCommand(gate, command("authority", "The role that decides and records", rpc.RoleAuthority), command("keyholder", "The role that has the token", rpc.RoleKeyholder),
		command("courier", "The role that asks others over the network", rpc.RoleCourier))
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	code, hint := exitMisused, "posternd --help"
	if served {
		code, hint = explain(err, o)
	}
	_, _ = fmt.Fprintf(errOut, "posternd: %v\nposternd: hint: %s\n", err, hint)
	return code
}

// A configError is around what is wrong with the configuration.
type configError struct{ error }

func (e *configError) Unwrap() error { return e.error }

// explain returns the exit status of a service that could not serve, and what
// to do about it.
func explain(err error, o options) (code int, hint string) {
	if child, ok := errors.AsType[*supervisor.ExitError](err); ok {
		code = exitFailed
		if child.Code == exitMisused || child.Code == exitConfig {
			code = child.Code
		}
		return code, "the " + child.Role + " says above why, and what to do"
	}
	later := exitFailed
	if o.child {
		later = exitLater
	}
	if _, ok := errors.AsType[*configError](err); ok {
		return exitConfig, "postern config check --config " + o.path
	}
	if _, ok := errors.AsType[*audit.MaintenanceError](err); ok {
		return exitFailed, "keep the disk as it is, and ask the auditor"
	}
	switch {
	case errors.Is(err, appliance.ErrHung):
		return exitLater, "it is started again by itself"
	case errors.Is(err, link.ErrDown):
		return later, "the other role's journal says why it is not there"
	case errors.Is(err, hsm.ErrModule):
		return later, "token.module names the PKCS#11 library; is it installed, and for this machine?"
	case errors.Is(err, hsm.ErrNoToken):
		return later, "is the token plugged in, and token.serial the one of the ceremony?"
	case errors.Is(err, hsm.ErrPINCount), errors.Is(err, hsm.ErrPIN):
		return exitFailed, "find out what used a wrong PIN before anything tries again: a token locks itself after a few"
	case errors.Is(err, keyholder.ErrMark), errors.Is(err, rpc.ErrNotHead), errors.Is(err, rpc.ErrLine):
		return exitFailed, "the log on this disk is not the one that the token knows: keep both as they are, and ask the auditor"
	case errors.Is(err, appliance.ErrInUse):
		return exitFailed, "another posternd is at work with this configuration"
	case errors.Is(err, audit.ErrLocked):
		return exitFailed, "another posternd, or postern rebuild, is at work on this state folder"
	case errors.Is(err, syscall.EADDRINUSE):
		return exitFailed, "something else listens there: ss -ltnp names it"
	case errors.Is(err, fs.ErrNotExist):
		return exitFailed, "is the path right?"
	case errors.Is(err, fs.ErrPermission):
		return exitFailed, "may the service's user read and write it?"
	}
	return exitFailed, "the lines above have the details"
}

// gcPercent keeps the service below 100 MB under load (make bench prints it).
const gcPercent = 400

// calm has the kernel join what wakes within a millisecond. The runtime's monitor
// looks every 20 us for threads that are inside C, as they are here most of the
// time: that alone is a fifteenth of the processor time of an enrollment. Its thread
// is there before main, and inherits what the process was started with, so
// the process starts itself again; a unit sets TimerSlackNSec= and spares that.
// Without it everything works, a little dearer.
func calm() {
	const slack = time.Millisecond
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	enough := func() bool {
		now, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
		return err == nil && time.Duration(now) >= slack
	}
	if enough() {
		return
	}
	self, err := os.Executable()
	// The kernel takes it from a real-time process without a word and does nothing:
	// such a one would start itself again for ever.
	if err != nil || unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack), 0, 0, 0) != nil || !enough() {
		return
	}
	_ = syscall.Exec(self, os.Args, os.Environ()) //nolint:gosec // itself; where that may not be, it goes on
}

// hideMemory keeps core files and debuggers of the same user away from the PIN.
func hideMemory() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("making the process not dumpable: %w", err)
	}
	return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
}

func newLogger(w io.Writer) *zap.Logger {
	enc := zap.NewProductionEncoderConfig()
	enc.EncodeTime = zapcore.ISO8601TimeEncoder
	return zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(enc), zapcore.Lock(zapcore.AddSync(w)), zap.InfoLevel))
}

// version is what the build knows of itself.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "unknown"
	}
	return info.Main.Version
}
