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
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"github.com/postern-pki/postern/appliance"
	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm"
)

// Exit statuses; the last is sysexits' EX_CONFIG, which a unit does not restart.
const (
	exitFailed  = 1
	exitMisused = 2
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
	var path string
	served := false
	root := &cobra.Command{
		Use: "posternd --config FILE", Short: "The Postern enrollment appliance", Args: cobra.NoArgs,
		SilenceErrors: true, SilenceUsage: true, Version: version(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			served = true
			return serve(cmd.Context(), path, errOut)
		},
	}
	root.Flags().StringVar(&path, "config", "/etc/postern/postern.yaml", "configuration `file`")
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	code, hint := exitMisused, "posternd --help"
	if served {
		code, hint = explain(err, path)
	}
	_, _ = fmt.Fprintf(errOut, "posternd: %v\nposternd: hint: %s\n", err, hint)
	return code
}

// A configError is around what is wrong with the configuration.
type configError struct{ error }

func (e *configError) Unwrap() error { return e.error }

// explain returns the exit status of a service that could not serve, and what
// to do about it.
func explain(err error, path string) (code int, hint string) {
	if _, ok := errors.AsType[*configError](err); ok {
		return exitConfig, "postern config check --config " + path
	}
	if _, ok := errors.AsType[*audit.MaintenanceError](err); ok {
		return exitFailed, "keep the disk as it is, and ask the auditor"
	}
	switch {
	case errors.Is(err, hsm.ErrModule):
		return exitFailed, "token.module names the PKCS#11 library; is it installed, and for this machine?"
	case errors.Is(err, hsm.ErrNoToken):
		return exitFailed, "is the token plugged in, and token.serial the one of the ceremony?"
	case errors.Is(err, hsm.ErrPINCount), errors.Is(err, hsm.ErrPIN):
		return exitFailed, "find out what used a wrong PIN before anything tries again: a token locks itself after a few"
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

// closeWithin bounds an orderly stop: the last checkpoint and the open requests.
const closeWithin = 20 * time.Second

func serve(ctx context.Context, path string, errOut io.Writer) error {
	if err := hideMemory(); err != nil {
		return err
	}
	cfg, err := config.Load(path)
	if err != nil {
		return &configError{err}
	}
	if conf := cfg.Token.SoftHSM2Conf; conf != "" {
		// The module reads it from the environment when it is loaded, once.
		if err := os.Setenv("SOFTHSM2_CONF", conf); err != nil {
			return err
		}
	}
	if os.Getenv("GOGC") == "" {
		// The heap that lives is a few megabytes: collecting it as often as Go would
		// by itself costs more time than the memory is worth.
		debug.SetGCPercent(gcPercent)
	}
	log := newLogger(errOut)
	defer func() { _ = log.Sync() }()
	env := appliance.Env{Zap: log, Version: version(), Boot: os.Getenv("POSTERN_BOOT_ID")} // as the unit has it
	if err := env.Inherit(); err != nil {
		return err
	}
	a, err := appliance.New(ctx, cfg, env)
	if err != nil {
		return err
	}
	log.Info("serving", zap.Stringer("devices", a.DeviceAddr()), zap.String("operators", address(a.OperatorAddr())), zap.String("socket", cfg.Operators.Socket))
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		log.Warn("telling the service manager", zap.Error(err))
	}
	err = a.Serve(ctx)
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	log.Info("stopping")
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWithin)
	defer cancel()
	return errors.Join(err, a.Close(last))
}

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

func address(a net.Addr) string {
	if a == nil {
		return ""
	}
	return a.String()
}
