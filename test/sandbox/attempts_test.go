package sandbox_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/postern-pki/postern/test/sandbox/foreign"
)

// An attempt is one thing that an intruder would try.
type attempt struct {
	Kind   string
	Path   string `json:",omitempty"`
	Number int    `json:",omitempty"`
	Type   int    `json:",omitempty"`
}

func (a attempt) String() string {
	s := a.Kind
	if a.Path != "" {
		s += " " + a.Path
	}
	if a.Kind == "socket" || a.Kind == "socketpair" {
		s += fmt.Sprintf(" %d type %d", a.Number, a.Type)
	}
	return s
}

func (a attempt) try() syscall.Errno {
	switch a.Kind {
	case "socket":
		return opened(unix.Socket(a.Number, a.Type, 0))
	case "socketpair":
		fds, err := unix.Socketpair(a.Number, a.Type, 0)
		if err == nil {
			_ = unix.Close(fds[1])
		}
		return opened(fds[0], err)
	case "protocol":
		return opened(unix.Socket(unix.AF_INET, unix.SOCK_STREAM, a.Number))
	case "read":
		return opened(unix.Open(a.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0))
	case "write":
		return opened(unix.Open(a.Path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600))
	case "list":
		_, err := os.ReadDir(a.Path)
		return number(err)
	case "chmod":
		return number(unix.Chmod(a.Path, 0o600))
	case "truncate":
		return number(unix.Truncate(a.Path, 0))
	case "rename":
		err := unix.Rename(a.Path, a.Path+".moved")
		_ = unix.Rename(a.Path+".moved", a.Path)
		return number(err)
	case "connect":
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			return number(err)
		}
		defer func() { _ = unix.Close(fd) }()
		return number(unix.Connect(fd, &unix.SockaddrUnix{Name: a.Path}))
	case "bind":
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			return number(err)
		}
		return opened(fd, unix.Bind(fd, &unix.SockaddrUnix{})) // the kernel finds a name
	case "program":
		cmd := exec.Command("/bin/true")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stderr, os.Stderr
		return number(cmd.Run())
	case "signal a thread of my own":
		return number(unix.Tgkill(os.Getpid(), unix.Gettid(), 0))
	}
	return a.call()
}

// call makes one that needs nothing but numbers.
func (a attempt) call() syscall.Errno {
	raw := func(call, a1, a2, a3 uintptr) syscall.Errno {
		_, _, errno := unix.Syscall6(call, a1, a2, a3, 0, 0, 0)
		return errno
	}
	file := func(call, a1, a2, a3 uintptr) syscall.Errno {
		fd, _, errno := unix.Syscall6(call, a1, a2, a3, 0, 0, 0)
		if errno == 0 {
			_ = unix.Close(int(fd))
		}
		return errno
	}
	parent, none := uintptr(os.Getppid()), unsafe.Pointer(&[]byte("/nothing/is/here\x00")[0])
	ring := make([]byte, 256)
	switch a.Kind {
	case "io_uring":
		return file(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&ring[0])), 0)
	case "execve":
		return raw(unix.SYS_EXECVE, uintptr(none), 0, 0)
	case "execveat":
		return raw(unix.SYS_EXECVEAT, ^uintptr(99), uintptr(none), 0)
	case "ptrace":
		return raw(unix.SYS_PTRACE, unix.PTRACE_PEEKDATA, parent, 0)
	case "process_vm_readv":
		return raw(unix.SYS_PROCESS_VM_READV, parent, 0, 0)
	case "process_vm_writev":
		return raw(unix.SYS_PROCESS_VM_WRITEV, parent, 0, 0)
	case "pidfd_getfd":
		return raw(unix.SYS_PIDFD_GETFD, ^uintptr(0), 0, 0)
	case "kill":
		return raw(unix.SYS_KILL, parent, 0, 0)
	case "kill the group":
		return raw(unix.SYS_KILL, 0, 0, 0)
	case "prlimit":
		return raw(unix.SYS_PRLIMIT64, parent, unix.RLIMIT_NOFILE, 0)
	case "unshare":
		return raw(unix.SYS_UNSHARE, unix.CLONE_NEWUTS, 0, 0)
	case "setns":
		return raw(unix.SYS_SETNS, ^uintptr(0), 0, 0)
	case "clone3":
		return raw(unix.SYS_CLONE3, 0, 0, 0)
	case "mount":
		return raw(unix.SYS_MOUNT, uintptr(none), uintptr(none), 0)
	case "fsopen":
		return raw(unix.SYS_FSOPEN, 0, 0, 0)
	case "open_tree":
		return file(unix.SYS_OPEN_TREE, ^uintptr(99), uintptr(none), 0)
	case "chroot":
		return raw(unix.SYS_CHROOT, uintptr(none), 0, 0)
	case "bpf":
		return raw(unix.SYS_BPF, 99, 0, 0)
	case "perf_event_open":
		return raw(unix.SYS_PERF_EVENT_OPEN, 0, 0, 0)
	case "userfaultfd":
		return file(unix.SYS_USERFAULTFD, 0, 0, 0)
	case "keyctl":
		return raw(unix.SYS_KEYCTL, 99, 0, 0)
	case "init_module":
		return raw(unix.SYS_INIT_MODULE, 0, 0, 0)
	case "kexec_load":
		return raw(unix.SYS_KEXEC_LOAD, 0, 17, 0)
	case "setuid":
		return raw(unix.SYS_SETUID, uintptr(os.Getuid()), 0, 0)
	case "dumpable":
		return raw(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 1, 0)
	case "type into the terminal":
		return raw(unix.SYS_IOCTL, 0, unix.TIOCSTI, 0)
	case "a call that is newer":
		return raw(unix.SYS_RSEQ_SLICE_YIELD+1, 0, 0, 0)
	case "32-bit call": // getpid
		return syscall.Errno(max(0, -foreign.Int80(20)))
	case "x32 call": // getpid
		return raw(0x40000000|unix.SYS_GETPID, 0, 0, 0)
	}
	panic("unknown attempt " + a.Kind)
}

func opened(fd int, err error) syscall.Errno {
	if fd >= 0 {
		_ = unix.Close(fd)
	}
	return number(err)
}

func number(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return syscall.Errno(0xffff)
}
