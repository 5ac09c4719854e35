package sandbox

import (
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the filter answers.
const (
	allow  = unix.SECCOMP_RET_ALLOW
	deny   = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	absent = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	kill   = unix.SECCOMP_RET_KILL_PROCESS
)

// Offsets into struct seccomp_data, on a little-endian machine.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16 // six of 8 octets
)

// maxProgram is the kernel's limit on a filter (BPF_MAXINSNS).
const maxProgram = 4096

// A block is what follows when a call's number is the one looked for. It always
// ends in an answer, so jumps are short and the number stays loaded for the
// next comparison.
type block []unix.SockFilter

func ret(answer uint32) block {
	return block{{Code: unix.BPF_RET | unix.BPF_K, K: answer}}
}

// load32 reads the lower half of an argument. The kernel takes an int, a pid or an
// unsigned command from there, whatever the upper half holds.
func load32(arg int) block {
	return block{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: uint32(offArgs + 8*arg)}}
}

func mask(k uint32) block {
	return block{{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: k}}
}

// ifEqual runs then where what is loaded is k, and goes on behind it otherwise.
func ifEqual(k uint32, then block) block {
	return append(block{{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: uint8(len(then)), K: k}}, then...)
}

// unlessOneOf denies where what is loaded is none of ks, and goes on otherwise.
func unlessOneOf(ks ...uint32) block {
	var b block
	for i, k := range ks {
		b = append(b, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: uint8(len(ks) - i), K: k})
	}
	return append(b, ret(deny)...)
}

// ifAny answers where what is loaded has one of the bits of k.
func ifAny(k, answer uint32) block {
	return append(block{{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jf: 1, K: k}}, ret(answer)...)
}

func join(bs ...block) block { return slices.Concat(bs...) }

// filter is the program that the kernel runs at each call. The kernel remembers the
// calls that it allows by number alone, so most of them cost nothing.
func filter(p Profile, pid int) ([]unix.SockFilter, error) {
	prog := join(
		block{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offArch}},
		block{{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: auditArch}}, ret(kill),
		block{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offNumber}},
		// The x32 variant of amd64 has the same name and its numbers above this bit;
		// elsewhere no call is that high.
		block{{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, Jf: 1, K: 0x40000000}}, ret(kill),
		block{{Code: unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K, Jf: 1, K: newestCall}}, ret(absent),
	)
	blocks := p.blocks(pid)
	for _, call := range p.denied() {
		blocks[call] = ret(deny)
	}
	for _, call := range sorted(blocks) {
		if len(blocks[call]) > 255 {
			return nil, fmt.Errorf("%w: the rule of call %d is too long", ErrProfile, call)
		}
		prog = append(prog, ifEqual(call, blocks[call])...)
	}
	prog = append(prog, ret(allow)...)
	if len(prog) > maxProgram {
		return nil, fmt.Errorf("%w: the filter is too long", ErrProfile)
	}
	return prog, nil
}

// sorted makes two filters of one profile the same.
func sorted(blocks map[uint32]block) []uint32 {
	calls := make([]uint32, 0, len(blocks))
	for call := range blocks {
		calls = append(calls, call)
	}
	slices.Sort(calls)
	return calls
}

// blocks are the calls that are looked at more closely than by their number.
func (p Profile) blocks(pid int) map[uint32]block {
	own := uint32(pid)
	b := map[uint32]block{
		unix.SYS_SOCKET:     p.sockets(),
		unix.SYS_SOCKETPAIR: p.sockets(),
		// Its flags are behind a pointer. A C library falls back to clone.
		unix.SYS_CLONE3: ret(absent),
		unix.SYS_CLONE:  p.clone(),
		unix.SYS_PRCTL: join(load32(0), ifEqual(unix.PR_SET_DUMPABLE, join(load32(1), ifEqual(0, ret(allow)), ret(deny))),
			ret(allow)),
		// Typing into the terminal of whoever started the process.
		unix.SYS_IOCTL:     join(load32(1), ifEqual(unix.TIOCSTI, ret(deny)), ifEqual(unix.TIOCLINUX, ret(deny)), ret(allow)),
		unix.SYS_PRLIMIT64: join(load32(0), unlessOneOf(0, own), ret(allow)),
	}
	if !p.Exec { // with children, their numbers are not known here
		b[unix.SYS_KILL] = join(load32(0), unlessOneOf(own), ret(allow))
		b[unix.SYS_TGKILL] = join(load32(0), unlessOneOf(own), ret(allow))
	}
	if !p.inet() {
		// A first packet with data connects, and Landlock is not asked.
		for call, flags := range map[uint32]int{unix.SYS_SENDTO: 3, unix.SYS_SENDMSG: 2, unix.SYS_SENDMMSG: 3} {
			b[call] = join(load32(flags), ifAny(unix.MSG_FASTOPEN, deny), ret(allow))
		}
	}
	return b
}

// sockets is the rule for socket and socketpair: family, type, protocol. Of the
// internet's families only TCP and UDP are left: the others are modules that the
// kernel would load for the asking.
func (p Profile) sockets() block {
	var b block
	for _, family := range p.Sockets {
		then := ret(allow)
		if family == unix.AF_INET || family == unix.AF_INET6 {
			then = join(
				load32(1), mask(0xf), unlessOneOf(unix.SOCK_STREAM, unix.SOCK_DGRAM),
				load32(2), unlessOneOf(unix.IPPROTO_IP, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_MPTCP),
				ret(allow),
			)
		}
		b = join(b, load32(0), ifEqual(uint32(family), then))
	}
	return join(b, ret(deny))
}

const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// clone allows threads, and processes only where programs may be run.
func (p Profile) clone() block {
	b := join(load32(0), ifAny(newNamespaces, deny))
	if p.Exec {
		return join(b, ret(allow))
	}
	return join(b, ifAny(unix.CLONE_THREAD, allow), ret(deny))
}

// load lays the filter on every thread of the process at once.
func load(program []unix.SockFilter) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("sandbox: no_new_privs: %w", err)
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	tid, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog))) //nolint:gosec // the call takes a pointer
	if errno != 0 {
		return fmt.Errorf("sandbox: seccomp: %w", errno)
	}
	if tid != 0 { // it has a filter that this thread has not
		return fmt.Errorf("sandbox: seccomp: thread %d cannot be bound", tid)
	}
	return nil
}
