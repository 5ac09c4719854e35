// Package certmonger runs certmonger, a client of SCEP, on a D-Bus of its own.
//
// # What a caller may rely on
//
// All of its state is in one folder, and neither systemd nor the system's bus is
// needed. What [Start] started ends with the function that it returns, helpers
// included. It needs Debian's certmonger and dbus-daemon, and root.
//
// # What it does not protect against
//
// It is for tests: whoever reaches the bus may do anything there.
package certmonger

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// patience is for what certmonger does in its own time: it looks at a CA, makes a
// key, and asks, as one small program after the other.
const patience = 60 * time.Second

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=%s</listen>
  <auth>EXTERNAL</auth>
  <policy context="default"><allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_type="signal"/><allow send_destination="*"/><allow receive_sender="*"/></policy>
</busconfig>
`

// A Daemon is a certmonger that runs.
type Daemon struct {
	dir string
	env []string
}

// Dir makes the folder for [Start]. A socket's path has to be short.
func Dir() (dir string, remove func(), err error) {
	dir, err = os.MkdirTemp("", "cm-")
	return dir, func() { _ = os.RemoveAll(dir) }, err
}

// Start runs the bus and certmonger in a folder; prefix stands before certmonger's
// own command, if there is any.
func Start(ctx context.Context, dir string, prefix ...string) (d *Daemon, end func(), err error) {
	d = &Daemon{dir: dir}
	d.env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS=unix:path="+d.File("bus"), "TMPDIR="+dir, "HOME="+dir, "CERTMONGER_SYSTEM_LOCK_FILE="+d.File("lock"))
	for name, variable := range map[string]string{"config": "CERTMONGER_CONFIG_DIR", "requests": "CERTMONGER_REQUESTS_DIR", "cas": "CERTMONGER_CAS_DIR", "local": "CERTMONGER_LOCAL_CA_DIR"} {
		if err := os.Mkdir(d.File(name), 0o700); err != nil {
			return nil, nil, err
		}
		d.env = append(d.env, variable+"="+d.File(name))
	}
	if err := os.WriteFile(d.File("bus.conf"), fmt.Appendf(nil, busConfig, d.File("bus")), 0o600); err != nil {
		return nil, nil, err
	}
	var ends []func()
	end = func() {
		for _, e := range ends {
			e()
		}
	}
	defer func() {
		if err != nil {
			end()
		}
	}()
	run := func(name string, args ...string) error {
		stop, err := d.run(name, args...)
		if err == nil {
			ends = append(ends, stop)
		}
		return err
	}
	if err := run("dbus-daemon", "dbus-daemon", "--config-file="+d.File("bus.conf"), "--nofork", "--nopidfile"); err != nil {
		return nil, nil, err
	}
	if err := d.Until(ctx, func() bool { _, err := os.Stat(d.File("bus")); return err == nil }); err != nil {
		return nil, nil, fmt.Errorf("the bus: %w", err)
	}
	if err := run("certmonger", append(prefix, "certmonger", "-S", "-n", "-d", "3", "-p", d.File("pid"))...); err != nil {
		return nil, nil, err
	}
	err = d.Until(ctx, func() bool { _, code := d.Getcert(ctx, "list-cas"); return code == 0 })
	return d, end, err
}

// File is the path of a file in its folder.
func (d *Daemon) File(name string) string { return filepath.Join(d.dir, name) }

// run runs a program, with a journal of that name, until stop is called.
func (d *Daemon) run(name string, args ...string) (stop func(), err error) {
	journal, err := os.Create(d.File(name + ".log"))
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = d.env, d.dir, journal, journal
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		_ = journal.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // its helpers too
		_ = cmd.Wait()
		_ = journal.Close()
	}, nil
}

// Getcert is the command by which a user talks to certmonger. It returns all that was
// printed, and the exit status.
func (d *Daemon) Getcert(ctx context.Context, args ...string) (out string, code int) {
	cmd := exec.CommandContext(ctx, "getcert", append(args, "-S")...)
	cmd.Env, cmd.Dir = d.env, d.dir
	b, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		return err.Error(), -1
	}
	return string(b), cmd.ProcessState.ExitCode()
}

// Until waits, for a minute at most, until something is done. The error says what
// certmonger has to say.
func (d *Daemon) Until(ctx context.Context, done func() bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("not within a minute"))
	defer cancel()
	for !done() {
		select {
		case <-ctx.Done():
			list, _ := d.Getcert(context.WithoutCancel(ctx), "list", "-v")
			journal, _ := os.ReadFile(d.File("certmonger.log"))
			return fmt.Errorf("%w: %s\n%s", context.Cause(ctx), list, journal[max(0, len(journal)-4000):])
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}
