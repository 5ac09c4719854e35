// Package sandbox_test enters each role's sandbox in a process of its own, tries
// from several threads what an intruder would, and does what the role has to.
//
// # What a caller may rely on
//
// Each attempt is made without the sandbox too, and has to end otherwise there: a
// kernel that refuses it to everybody proves nothing.
//
// # What it does not protect against
//
// It runs on one kernel. What an older one leaves open is in the report, which is
// not tried here.
package sandbox_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-pki/postern/appliance/sandbox"
)

// run starts a child, with files as its descriptors from 3 on.
func run(t *testing.T, o order, files ...*os.File) result {
	t.Helper()
	done, err := start(t, exec.Command(os.Args[0]), o, files...)
	if err != nil {
		t.Fatal(err)
	}
	return done()
}

func start(t *testing.T, cmd *exec.Cmd, o order, files ...*os.File) (done func() result, err error) {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	var out, errs bytes.Buffer
	cmd.Env = append(os.Environ(), orderVar+"="+string(text), "GODEBUG=netdns=cgo", "GORACE=atexit_sleep_ms=0")
	cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = files, &out, &errs
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	limit := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	return func() result {
		t.Helper()
		err := cmd.Wait()
		limit.Stop()
		var r result
		if err != nil {
			t.Fatalf("%v\n%s%s", err, &out, &errs)
		}
		if err := json.Unmarshal(out.Bytes(), &r); err != nil {
			t.Fatalf("%v\n%s%s", err, &out, &errs)
		}
		return r
	}, nil
}

// powerful tells whether nothing but the sandbox refuses us anything.
func powerful(t *testing.T) bool {
	t.Helper()
	header, data := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	return data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0 && os.Geteuid() == 0
}

// A trial is an attempt and how it has to end inside: 0 is well.
type trial struct {
	attempt
	want syscall.Errno
}

// compare makes every attempt with the sandbox and without.
func compare(t *testing.T, p sandbox.Profile, trials []trial) {
	t.Helper()
	var all []attempt
	for _, tr := range trials {
		all = append(all, tr.attempt)
	}
	outside := run(t, order{Attempts: all})
	inside := run(t, order{Profile: &p, Attempts: all})
	if inside.Refusal != "" {
		t.Fatal(inside.Refusal)
	}
	t.Log(inside.Report)
	if len(inside.Errnos) != len(trials) {
		t.Fatalf("%d results of %d attempts", len(inside.Errnos), len(trials))
	}
	for _, tr := range trials {
		got := inside.Errnos[tr.String()]
		if len(got) < 4 {
			t.Errorf("%s: tried by %d threads", tr, len(got))
		}
		for thread, errno := range got {
			if syscall.Errno(errno) != tr.want {
				t.Errorf("%s, thread %s: %q, want %q", tr, thread, name(errno), name(int(tr.want)))
			}
			without := outside.Errnos[tr.String()][thread]
			switch {
			case tr.want == 0 && without != 0:
				t.Errorf("%s, thread %s: without a sandbox it ends with %s", tr, thread, name(without))
			case tr.want != 0 && without == int(tr.want) && powerful(t):
				t.Errorf("%s, thread %s: it ends so without a sandbox too", tr, thread)
			}
		}
	}
}

func name(errno int) string {
	if errno == 0 {
		return "allowed"
	}
	return unix.ErrnoName(syscall.Errno(errno))
}

// calls are refused to every role.
func calls() []trial {
	var all []trial
	for _, kind := range []string{
		"io_uring", "execve", "execveat", "program", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kill", "kill the group", "prlimit",
		"unshare", "setns", "mount", "fsopen", "open_tree", "chroot", "bpf", "perf_event_open", "userfaultfd", "keyctl", "init_module", "kexec_load",
		"setuid", "dumpable", "type into the terminal",
	} {
		all = append(all, trial{attempt{Kind: kind}, syscall.EPERM})
	}
	return append(all,
		trial{attempt{Kind: "clone3"}, syscall.ENOSYS}, // what a C library falls back from
		trial{attempt{Kind: "signal a thread of my own"}, 0},
	)
}

// sockets are refused in every family but those named.
func sockets(families ...int) []trial {
	var all []trial
	for family := range unix.AF_MAX {
		if slices.Contains(families, family) {
			continue
		}
		for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_RAW, unix.SOCK_SEQPACKET} {
			all = append(all, trial{attempt{Kind: "socket", Number: family, Type: typ}, syscall.EPERM})
		}
		all = append(all, trial{attempt{Kind: "socketpair", Number: family, Type: unix.SOCK_STREAM}, syscall.EPERM})
	}
	for _, family := range families {
		all = append(all, trial{attempt{Kind: "socket", Number: family, Type: unix.SOCK_STREAM}, 0})
	}
	return all
}

// A place is a host's folders.
type place struct{ dir, state, log, other, config string }

func newPlace(t *testing.T) place {
	t.Helper()
	dir := t.TempDir()
	p := place{
		dir: dir, state: filepath.Join(dir, "own"), log: filepath.Join(dir, "authority", "log"),
		other: filepath.Join(dir, "other"), config: filepath.Join(dir, "postern.yaml"),
	}
	for _, d := range []string{p.state, filepath.Dir(p.log), p.other} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{p.log, p.config, filepath.Join(p.state, "head")} {
		if err := os.WriteFile(f, []byte("x\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// memory is that of another process: of this one, for its child.
func memory() string { return fmt.Sprintf("/proc/%d/mem", os.Getpid()) }

// elsewhere is what no role but the authority may touch.
func (p place) elsewhere() []trial {
	var all []trial
	for _, a := range []attempt{
		{Kind: "read", Path: p.log}, {Kind: "list", Path: filepath.Dir(p.log)}, {Kind: "write", Path: p.log}, {Kind: "write", Path: filepath.Join(p.other, "new")},
		{Kind: "truncate", Path: p.other + "/../postern.yaml"},
		{Kind: "rename", Path: p.other}, {Kind: "read", Path: "/etc/shadow"}, {Kind: "read", Path: "/etc/passwd"}, {Kind: "read", Path: memory()}, {Kind: "read", Path: "/proc/self/environ"},
		{Kind: "list", Path: "/"}, {Kind: "write", Path: "/etc/postern-was-here"},
	} {
		all = append(all, trial{a, syscall.EACCES})
	}
	return all
}

func TestGate(t *testing.T) {
	p := newPlace(t)
	listen := filepath.Join(p.dir, "link.sock")
	l, err := net.Listen("unix", listen)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	own := []trial{
		{attempt{Kind: "chmod", Path: p.config}, syscall.EPERM},
		{attempt{Kind: "read", Path: p.config}, syscall.EACCES},
		{attempt{Kind: "bind"}, syscall.EPERM},
	}
	trials := slices.Concat(calls(), sockets(unix.AF_UNIX), own)
	for _, tr := range p.elsewhere() {
		if tr.Kind == "truncate" { // that call is refused to who may write nothing
			tr.want = syscall.EPERM
		}
		trials = append(trials, tr)
	}
	t.Run("inherited links", func(t *testing.T) {
		compare(t, sandbox.Gate("devices", nil, nil), append(trials, trial{attempt{Kind: "connect", Path: listen}, syscall.EPERM}))
	})
	t.Run("named links", func(t *testing.T) {
		abstract, err := net.Listen("unix", "@"+filepath.Base(p.dir)+"-postern-test")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = abstract.Close() }()
		compare(t, sandbox.Gate("devices", []string{listen}, []string{p.state}), append(trials,
			trial{attempt{Kind: "connect", Path: listen}, 0},
			trial{attempt{Kind: "connect", Path: abstract.Addr().String()}, syscall.EPERM},
			trial{attempt{Kind: "read", Path: filepath.Join(p.state, "head")}, 0},
			trial{attempt{Kind: "write", Path: filepath.Join(p.state, "head")}, syscall.EACCES},
		))
	})
}

func TestAuthority(t *testing.T) {
	p := newPlace(t)
	profile := sandbox.Authority(filepath.Dir(p.log), []string{p.config}, nil, false)
	keyholder := filepath.Join(p.state, "head")
	trials := slices.Concat(calls(), sockets(unix.AF_UNIX), []trial{
		{attempt{Kind: "read", Path: p.log}, 0},
		{attempt{Kind: "write", Path: p.log}, 0},
		{attempt{Kind: "chmod", Path: p.log}, 0},
		{attempt{Kind: "read", Path: p.config}, 0},
		{attempt{Kind: "write", Path: p.config}, syscall.EACCES},
		{attempt{Kind: "truncate", Path: p.config}, syscall.EACCES},
		{attempt{Kind: "read", Path: keyholder}, syscall.EACCES},
		{attempt{Kind: "read", Path: "/etc/shadow"}, syscall.EACCES},
		{attempt{Kind: "read", Path: memory()}, syscall.EACCES},
	})
	compare(t, profile, trials)
	t.Run("with a database", func(t *testing.T) {
		compare(t, sandbox.Authority(filepath.Dir(p.log), nil, nil, true),
			append(sockets(unix.AF_UNIX, unix.AF_INET, unix.AF_INET6), trial{attempt{Kind: "read", Path: "/etc/hosts"}, 0}, trial{attempt{Kind: "protocol", Number: unix.IPPROTO_SCTP}, syscall.EPERM}))
	})
}

func TestKeyholder(t *testing.T) {
	p := newPlace(t)
	profile := sandbox.Keyholder(sandbox.Keys{State: p.state, Modules: []string{"/usr/lib/softhsm/libsofthsm2.so"}})
	compare(t, profile, slices.Concat(calls(), sockets(unix.AF_UNIX), p.elsewhere(), []trial{
		{attempt{Kind: "connect", Path: filepath.Join(p.dir, "nobody.sock")}, syscall.EPERM},
		{attempt{Kind: "read", Path: p.config}, syscall.EACCES},
		{attempt{Kind: "read", Path: "/usr/lib/softhsm/libsofthsm2.so"}, 0},
		{attempt{Kind: "write", Path: "/usr/lib/softhsm/postern-was-here"}, syscall.EACCES},
		{attempt{Kind: "write", Path: filepath.Join(p.state, "head")}, 0},
	}))
	t.Run("a token on the network", func(t *testing.T) {
		compare(t, sandbox.Keyholder(sandbox.Keys{State: p.state, Sockets: []int{unix.AF_INET}}), sockets(unix.AF_UNIX, unix.AF_INET))
	})
}

func TestCourier(t *testing.T) {
	p := newPlace(t)
	trials := slices.Concat(calls(), sockets(unix.AF_UNIX, unix.AF_INET, unix.AF_INET6), []trial{
		{attempt{Kind: "socket", Number: unix.AF_INET, Type: unix.SOCK_RAW}, syscall.EPERM},
		{attempt{Kind: "bind"}, syscall.EPERM},
		{attempt{Kind: "write", Path: filepath.Join(p.state, "head")}, 0},
	})
	compare(t, sandbox.Courier(p.state, nil, nil), slices.Concat(trials, p.elsewhere()))
}

// TestAProgramThatAModuleNeeds runs, and nothing else is open for it.
func TestAProgramThatAModuleNeeds(t *testing.T) {
	p := newPlace(t)
	profile := sandbox.Keyholder(sandbox.Keys{State: p.state, Read: []string{"/bin"}, Exec: true})
	compare(t, profile, slices.Concat(sockets(unix.AF_UNIX), []trial{
		{attempt{Kind: "program"}, 0},
		{attempt{Kind: "kill"}, syscall.EPERM},
		{attempt{Kind: "unshare"}, syscall.EPERM},
		{attempt{Kind: "read", Path: p.log}, syscall.EACCES},
	}))
}

// TestCallsOfAnotherArchitecture end the process: the numbers of the filter mean
// other calls there.
func TestCallsOfAnotherArchitecture(t *testing.T) {
	gate := sandbox.Gate("devices", nil, nil)
	for _, kind := range foreignCalls() {
		for _, profile := range []*sandbox.Profile{nil, &gate} {
			cmd := exec.Command(os.Args[0])
			_, err := start(t, cmd, order{Profile: profile, Attempts: []attempt{{Kind: kind}}})
			if err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			status := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if killed := status.Signaled() && status.Signal() == syscall.SIGSYS; killed != (profile != nil) {
				t.Errorf("%s, sandbox %v: %v", kind, profile != nil, cmd.ProcessState)
			}
		}
	}
	r := run(t, order{Profile: &gate, Attempts: []attempt{{Kind: "a call that is newer"}}})
	if got := r.Errnos["a call that is newer"]["after"]; got != int(syscall.ENOSYS) {
		t.Errorf("a call that is newer than the list: %s", name(got))
	}
}

// TestAnotherUser enters without any of root's rights, as a unit's user does.
func TestAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 { // it was without them all the time
		return
	}
	dir, err := os.MkdirTemp("", "postern-sandbox-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(dir, "child")
	if err := os.WriteFile(copied, program, 0o755); err != nil {
		t.Fatal(err)
	}
	gate := sandbox.Gate("devices", nil, nil)
	cmd := exec.Command(copied)
	cmd.Dir, cmd.SysProcAttr = dir, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	done, err := start(t, cmd, order{Profile: &gate, Attempts: []attempt{{Kind: "socket", Number: unix.AF_INET, Type: unix.SOCK_STREAM}, {Kind: "read", Path: "/etc/passwd"}}})
	if err != nil {
		t.Fatal(err)
	}
	r := done()
	if r.Refusal != "" {
		t.Fatal(r.Refusal)
	}
	for a, all := range r.Errnos {
		for thread, errno := range all {
			if errno == 0 {
				t.Errorf("%s, thread %s: allowed", a, thread)
			}
		}
	}
}

func TestProfilesThatCannotBeEntered(t *testing.T) {
	for what, p := range map[string]sandbox.Profile{
		"a path that is not there":       {Read: []string{"/nothing/is/here"}},
		"a path that is not absolute":    {Write: []string{"state"}},
		"a family that is none":          {Sockets: []int{unix.AF_UNSPEC}},
		"a folder that is not there":     sandbox.Authority("/nothing/is/here", nil, nil, false),
		"a module that is not installed": sandbox.Keyholder(sandbox.Keys{State: "/", Modules: []string{"/nothing/is/here.so"}}),
	} {
		if r := run(t, order{Profile: &p}); r.Refusal == "" {
			t.Errorf("%s: entered, %v", what, r.Report)
		}
	}
	missing := sandbox.Profile{Name: "x", ReadIf: []string{"/nothing/is/here"}, Required: true}
	r := run(t, order{Profile: &missing})
	if r.Refusal != "" || !strings.Contains(r.Report.String(), "not there: /nothing/is/here") || r.Report.Landlock < 3 {
		t.Errorf("%q, %v", r.Refusal, r.Report)
	}
}
