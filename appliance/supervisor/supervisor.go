// Package supervisor runs the roles as children of one process, for a demo or a
// small site: it opens the listening sockets, joins the children by links without
// names, and starts again what ended.
//
// # What a caller may rely on
//
// A child that ends is started again, with a growing pause, and the others get new
// ends of its links; they keep answering meanwhile. One that says that it cannot
// run, at the first start or by an exit status that says so, ends all. A stop goes
// from the gates inward, so that the log's last record is of the stop. No child
// outlives this process, however that ends.
//
// # What it does not protect against
//
// All children have the user of this process: what one user may do, each of them
// may, as far as its sandbox lets it. A service manager that gives each role a user
// of its own does better.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/postern-pki/postern/appliance/link"
)

// ControlFD is the descriptor of a child's control socket.
const ControlFD = 3

// ExitLater is the exit status of a child that failed at what may work later
// (sysexits' EX_TEMPFAIL).
const ExitLater = 75

// Pauses before a child is started again, and how long one has to serve to count as
// good; how long a stop waits for each.
const (
	firstPause = 50 * time.Millisecond
	longPause  = 5 * time.Second
	goodAfter  = 200 * time.Millisecond
	stopWithin = 25 * time.Second
)

// A Role is one child.
type Role struct {
	Name      string
	Args      []string          // of the program
	Listeners map[string]Socket // that it gets
	Calls     []string          // the roles that it has links to
}

// A Socket is a listening socket whose descriptor can be handed over.
type Socket interface {
	net.Listener
	File() (*os.File, error)
}

// Options are what [Run] needs.
type Options struct {
	Program string
	// Roles in the order in which they are started; they are stopped in the other.
	Roles []Role
	Out   io.Writer // of all children
	Ready func()    // called once, when all serve
	Log   *zap.Logger
}

// An ExitError says which role could not run, and its exit status.
type ExitError struct {
	Role string
	Code int
}

// Error implements error.
func (e *ExitError) Error() string { return fmt.Sprintf("the %s ended with status %d", e.Role, e.Code) }

// Run starts all roles and keeps them running until ctx ends, or one says that it
// cannot run.
func Run(ctx context.Context, o Options) error {
	// A child is killed when the thread that started it ends, so that none is left
	// when this process is killed.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	s := &supervisor{o: o, children: make(map[string]*child), events: make(chan event, 4*len(o.Roles))}
	for _, r := range o.Roles {
		if err := s.start(r); err != nil {
			return errors.Join(err, s.stop())
		}
	}
	err := s.watch(ctx)
	return errors.Join(err, s.stop())
}

type supervisor struct {
	o        Options
	children map[string]*child
	events   chan event
	served   bool // all were ready once
}

type child struct {
	role   Role
	cmd    *exec.Cmd
	hands  *link.Hands
	began  time.Time
	pause  time.Duration // before the next start
	ready  bool
	served time.Time // since when it is ready
	exited bool
}

// event is that a child is ready, lacks a link, ended, or is due to be started again.
type event struct {
	c     *child
	lacks string // the server
	ended bool
	due   bool
}

func (s *supervisor) start(r Role) error {
	ours, theirs, err := link.Pair(unix.SOCK_SEQPACKET)
	if err != nil {
		return err
	}
	defer func() { _ = theirs.Close() }()
	hands, err := link.NewHands(ours)
	if err != nil {
		return err
	}
	c := &child{role: r, hands: hands, began: time.Now(), pause: firstPause}
	if old := s.children[r.Name]; old != nil {
		c.pause = old.pause
	}
	c.cmd = exec.Command(s.o.Program, r.Args...) //nolint:gosec,noctx // this program itself; it is stopped in order
	c.cmd.Stdout, c.cmd.Stderr, c.cmd.ExtraFiles = s.o.Out, s.o.Out, []*os.File{theirs}
	// A group of its own: what a terminal sends to all would stop them in no order.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := c.cmd.Start(); err != nil {
		return errors.Join(fmt.Errorf("starting the %s: %w", r.Name, err), hands.Close())
	}
	s.children[r.Name] = c
	go func() {
		_ = c.cmd.Wait()
		s.events <- event{c: c, ended: true}
	}()
	go func() {
		_ = hands.Hear(func() { s.events <- event{c: c} }, func(server string) { s.events <- event{c: c, lacks: server} })
	}()
	if err := s.handOver(c); err != nil {
		s.o.Log.Warn("a role ended while it was started", zap.String("role", r.Name), zap.Error(err))
	}
	s.join(c)
	return nil
}

func (s *supervisor) handOver(c *child) error {
	for name, l := range c.role.Listeners {
		f, err := l.File()
		if err != nil {
			return fmt.Errorf("the socket %s: %w", name, err)
		}
		err = c.hands.Give(link.HandListen, name, f)
		_ = f.Close()
		if err != nil {
			return err
		}
	}
	return c.hands.Begin()
}

// join makes the links between a new child and those that run.
func (s *supervisor) join(c *child) {
	for _, other := range s.children {
		if other == c || other.exited {
			continue
		}
		for _, name := range c.role.Calls {
			if name == other.role.Name {
				s.link(c, other)
			}
		}
		for _, name := range other.role.Calls {
			if name == c.role.Name {
				s.link(other, c)
			}
		}
	}
}

// link gives a caller and a server the ends of a new connection. One that is gone
// gets another one when it is back.
func (s *supervisor) link(caller, server *child) {
	a, b, err := link.Pair(unix.SOCK_STREAM)
	if err != nil {
		s.o.Log.Error("a link could not be made", zap.Error(err))
		return
	}
	defer func() { _, _ = a.Close(), b.Close() }()
	if err := errors.Join(server.hands.Give(link.HandServe, caller.role.Name, a), caller.hands.Give(link.HandDial, server.role.Name, b)); err != nil {
		s.o.Log.Warn("a link could not be handed over", zap.String("from", caller.role.Name), zap.String("to", server.role.Name), zap.Error(err))
	}
}

// again joins a child to a server that it has lost although both live. One that is
// not there now is joined when it is started.
func (s *supervisor) again(c *child, server string) {
	other := s.children[server]
	if other == nil || other.exited || c.exited || !slices.Contains(c.role.Calls, server) {
		return
	}
	s.o.Log.Warn("a link was lost, and is made again", zap.String("from", c.role.Name), zap.String("to", server))
	s.link(c, other)
}

func (s *supervisor) watch(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-s.events:
			if err := s.handle(ctx, e); err != nil {
				return err
			}
		}
	}
}

func (s *supervisor) handle(ctx context.Context, e event) error {
	switch {
	case e.due:
		if err := s.start(e.c.role); err != nil { // no process or descriptor to be had now
			s.o.Log.Error("a role could not be started, which is tried again", zap.String("role", e.c.role.Name), zap.Error(err))
			s.later(ctx, e.c)
		}
		return nil
	case e.ended:
		return s.ended(ctx, e.c)
	case e.lacks != "":
		s.again(e.c, e.lacks)
		return nil
	}
	e.c.ready, e.c.served = true, time.Now()
	if s.served {
		s.o.Log.Info("a role serves again", zap.String("role", e.c.role.Name), zap.Duration("after", time.Since(e.c.began)))
		return nil
	}
	for _, c := range s.children {
		if !c.ready {
			return nil
		}
	}
	s.served = true
	s.o.Ready()
	return nil
}

// ended decides whether a child is started again.
func (s *supervisor) ended(ctx context.Context, c *child) error {
	c.exited = true
	_ = c.hands.Close()
	code := c.cmd.ProcessState.ExitCode()             // -1: a signal
	said := code > 0 && code != ExitLater && !c.ready // why it cannot run: a person has to read that
	if !s.served || said {
		return &ExitError{c.role.Name, code}
	}
	s.o.Log.Error("a role ended, and is started again", zap.String("role", c.role.Name), zap.Stringer("how", c.cmd.ProcessState))
	if c.ready && time.Since(c.served) > goodAfter {
		c.pause = firstPause
	}
	s.later(ctx, c)
	return nil
}

// later has a child started again after its pause, which grows.
func (s *supervisor) later(ctx context.Context, c *child) {
	pause := c.pause
	c.pause = min(2*c.pause, longPause)
	time.AfterFunc(pause, func() {
		select {
		case s.events <- event{c: c, due: true}:
		case <-ctx.Done():
		}
	})
}

// stop ends the children from the last to the first: the gates, then the
// authority, which records the stop, then the keyholder.
func (s *supervisor) stop() error {
	var errs []error
	for i := len(s.o.Roles) - 1; i >= 0; i-- {
		c := s.children[s.o.Roles[i].Name]
		if c == nil || c.exited {
			continue
		}
		_ = c.cmd.Process.Signal(syscall.SIGTERM)
		if !s.waitFor(c, stopWithin) {
			_ = c.cmd.Process.Kill()
			s.waitFor(c, time.Minute)
			errs = append(errs, fmt.Errorf("the %s did not stop in time", c.role.Name))
			continue
		}
		if code := c.cmd.ProcessState.ExitCode(); code != 0 {
			errs = append(errs, &ExitError{c.role.Name, code})
		}
	}
	return errors.Join(errs...)
}

// waitFor waits for the end of a child, and takes note of others that end.
func (s *supervisor) waitFor(c *child, within time.Duration) bool {
	late := time.After(within)
	for !c.exited {
		select {
		case e := <-s.events:
			if e.ended {
				e.c.exited = true
				_ = e.c.hands.Close()
			}
		case <-late:
			return false
		}
	}
	return true
}
