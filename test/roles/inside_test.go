package roles_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/postern-pki/postern/appliance"
	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/appliance/link"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/appliance/supervisor"
	"github.com/postern-pki/postern/test/site"
)

// TestEveryRoleIsBound looks at the processes of the service from outside: each
// thread of each role has the filter, and none can gain rights.
func TestEveryRoleIsBound(t *testing.T) {
	s := newSite(t, nil)
	no(t, s.Start(t.Context()))
	all := must(s.Processes())(t)
	for _, role := range []string{"keyholder", "authority", "gate devices", "gate operators"} {
		pid, ok := all[role]
		if !ok {
			t.Errorf("no process is the %s: %v", role, all)
			continue
		}
		threads := must(filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid)))(t)
		if len(threads) < 3 {
			t.Errorf("the %s has %d threads", role, len(threads))
		}
		for _, path := range threads {
			data, err := os.ReadFile(path)
			if err != nil {
				continue // it has ended
			}
			for _, want := range []string{"\nSeccomp:\t2\n", "\nNoNewPrivs:\t1\n"} {
				if !strings.Contains(string(data), want) {
					t.Errorf("the %s: %s does not say %q:\n%s", role, path, strings.TrimSpace(want), data)
				}
			}
		}
	}
	no(t, s.Stop())
}

// insideVar has this program be a role instead of a test: the real one, which tries
// what an intruder in it would once it serves.
const insideVar = "POSTERN_TEST_ROLE"

// A tried is how an attempt of a role ended: 0 is well.
type tried struct {
	Role, What string
	Errno      syscall.Errno
}

// inside is the role. The paths that it tries come by the environment, the results
// go to its standard output, which it inherited.
func inside(role string) int {
	if err := beRole(role); err != nil {
		fmt.Fprintln(os.Stderr, role, err)
		return 1
	}
	return 0
}

func beRole(role string) error {
	cfg, err := config.Load(os.Args[len(os.Args)-1])
	if err != nil {
		return err
	}
	if err := os.Setenv("SOFTHSM2_CONF", cfg.SoftHSM2Conf); err != nil {
		return err
	}
	hands, err := link.NewHands(os.NewFile(supervisor.ControlFD, "control"))
	if err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	in, err := link.Inherit(hands, cancel)
	if err != nil {
		return err
	}
	env := appliance.Env{Version: "test", Boot: "b", Listener: in.Listener, Zap: zap.NewNop()}
	return appliance.Run(ctx, cfg, env, role, in, func() {
		out := json.NewEncoder(os.Stdout)
		for _, a := range attempts(cfg) {
			_ = out.Encode(tried{role, a.what, a.do()})
		}
		_ = out.Encode(tried{Role: role, What: "all"})
		_ = in.Ready()
	})
}

type attempt struct {
	what string
	do   func() syscall.Errno
}

// attempts are what a role that was taken over would try first.
func attempts(cfg *config.Config) []attempt {
	number := func(fd int, err error) syscall.Errno {
		if err == nil {
			_ = unix.Close(fd)
			return 0
		}
		errno, _ := err.(syscall.Errno) //nolint:errorlint // unix returns it as it is
		return errno
	}
	open := func(what, path string, flags int) attempt {
		return attempt{what, func() syscall.Errno { return number(unix.Open(path, flags|unix.O_CLOEXEC, 0o600)) }}
	}
	socket := func(what string, family, typ int) attempt {
		return attempt{what, func() syscall.Errno { return number(unix.Socket(family, typ|unix.SOCK_CLOEXEC, 0)) }}
	}
	segment := filepath.Join(cfg.State, "audit", "segments", "000000000000.jsonl")
	return []attempt{
		open("read the log", segment, unix.O_RDONLY), open("write the log", segment, unix.O_WRONLY), open("list the state folder", cfg.State, unix.O_RDONLY|unix.O_DIRECTORY),
		open("read the index", filepath.Join(cfg.State, "index.db"), unix.O_RDONLY),
		open("read the keyholder's head", filepath.Join(cfg.KeyholderState, "head"), unix.O_RDONLY),
		open("read the PIN", cfg.Tokens[0].PINPath, unix.O_RDONLY), open("read the challenges' key", cfg.ChallengeKeyPath, unix.O_RDONLY),
		open("read the configuration", cfg.Path, unix.O_RDONLY), open("read /etc/passwd", "/etc/passwd", unix.O_RDONLY),
		socket("TCP", unix.AF_INET, unix.SOCK_STREAM), socket("TCP over IPv6", unix.AF_INET6, unix.SOCK_STREAM), socket("UDP", unix.AF_INET, unix.SOCK_DGRAM),
		socket("netlink", unix.AF_NETLINK, unix.SOCK_RAW), socket("packets", unix.AF_PACKET, unix.SOCK_RAW), socket("vsock", unix.AF_VSOCK, unix.SOCK_STREAM), socket("the kernel's ciphers", unix.AF_ALG, unix.SOCK_SEQPACKET),
		socket("a Unix socket", unix.AF_UNIX, unix.SOCK_STREAM),
	}
}

// collector takes what the roles tried.
type collector struct {
	mu   sync.Mutex
	text strings.Builder
}

func (c *collector) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.Write(p)
}

func (c *collector) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// TestInsideEachRole runs all roles as the service does, each of which tries, when
// it serves, what is not its own.
func TestInsideEachRole(t *testing.T) {
	s := newSite(t, nil)
	no(t, s.Start(t.Context())) // makes what is tried
	no(t, s.Stop())
	got, out := served(t, s)
	mine := map[string][]string{
		rpc.RoleAuthority: {"read the log", "write the log", "list the state folder", "read the index", "read the challenges' key"},
		rpc.RoleKeyholder: {"read the keyholder's head", "read the PIN"},
		rpc.RoleDevices:   {},
		rpc.RoleOperators: {},
	}
	for role, own := range mine {
		may := map[string]bool{"a Unix socket": true, "all": true}
		for _, what := range own {
			may[what] = true
		}
		if len(got[role]) < 17 {
			t.Fatalf("the %s tried %d things: %s", role, len(got[role]), out)
		}
		for what, errno := range got[role] {
			switch {
			case may[what] && errno != 0:
				t.Errorf("the %s cannot do its work: %s: %s", role, what, unix.ErrnoName(errno))
			case !may[what] && errno != unix.EACCES && errno != unix.EPERM:
				t.Errorf("the %s can: %s: %q", role, what, unix.ErrnoName(errno))
			}
		}
	}
	// Nothing but the sandbox refused it: this process may.
	cfg := must(config.Load(s.Config()))(t)
	for _, a := range attempts(cfg) {
		if errno := a.do(); errno == unix.EACCES {
			t.Errorf("without a sandbox it is refused too: %s", a.what)
		}
	}
}

// served runs the roles until all of them have tried everything.
func served(t *testing.T, s *site.Site) (got map[string]map[string]syscall.Errno, out string) {
	t.Helper()
	cfg := must(config.Load(s.Config()))(t)
	sockets, remove, err := appliance.OpenSockets(t.Context(), cfg)
	no(t, err)
	defer remove()
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	text := new(collector)
	program := must(os.Executable())(t)
	role := func(name string, listeners []string, calls ...string) supervisor.Role {
		r := supervisor.Role{Name: name, Args: []string{insideVar + "=" + name, program, cfg.Path}, Listeners: map[string]supervisor.Socket{}, Calls: calls}
		for _, l := range listeners {
			if one, ok := sockets[l]; ok {
				r.Listeners[l] = one
			}
		}
		return r
	}
	no(t, supervisor.Run(ctx, supervisor.Options{Program: "/usr/bin/env", Out: text, Log: zap.NewNop(), Ready: stop, Roles: []supervisor.Role{
		role(rpc.RoleKeyholder, nil), role(rpc.RoleAuthority, nil, rpc.RoleKeyholder),
		role(rpc.RoleDevices, []string{"devices"}, rpc.RoleKeyholder, rpc.RoleAuthority),
		role(rpc.RoleOperators, []string{"operators", "local"}, rpc.RoleKeyholder, rpc.RoleAuthority),
	}}))
	got = map[string]map[string]syscall.Errno{}
	for line := range strings.Lines(text.String()) {
		var one tried
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			t.Fatalf("%v: %s", err, text.String())
		}
		if got[one.Role] == nil {
			got[one.Role] = map[string]syscall.Errno{}
		}
		got[one.Role][one.What] = one.Errno
	}
	return got, text.String()
}
