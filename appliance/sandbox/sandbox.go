// Package sandbox takes from a running process what it does not need any more:
// files, sockets, programs, and the kernel's calls that only an intruder would
// make. It is a second belt below the service manager's, and the only one where
// there is none.
//
// # What a caller may rely on
//
// After [Enter] returned without an error, all threads of the process, those that
// C code started included, and all that begin later, are bound: no new
// privileges, no core file and no debugger, no socket of another family than those
// named, none by io_uring either, no other program unless allowed, no reading of other processes,
// no mounts, no namespaces. Files that are opened from then on lie below the
// paths named. A TCP socket that was accepted cannot be pointed at another peer,
// and none can be opened by a first packet with data. None of it can be
// undone. What this kernel cannot do is in the [Report], or an error where the
// profile requires it.
//
// The filter of calls is a list of what is refused, with EPERM, so that a
// vendor's PKCS#11 module goes on working; calls of another architecture end the
// process, and calls that are newer than the list do not exist.
//
// # What it does not protect against
//
// What was open before stays open. Landlock does not cover changes of owner, mode,
// times and extended attributes (a profile that may write nothing has those calls refused),
// nor stat and access. Its rules for TCP do not see Multipath TCP, which is Go's
// default for listeners: a listener that is handed to a gate has to be plain
// TCP. Before Landlock's ABI 9 a Unix socket that the process' user may
// connect to by its path can be reached. On kernels before ABI 8 the file rules are
// laid on thread by thread: enter before a PKCS#11 module is loaded, as a module that
// starts a thread at that very moment is a race.
package sandbox

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Errors that a caller can tell apart.
var (
	ErrProfile     = errors.New("sandbox: a profile that makes no sense")
	ErrUnavailable = errors.New("sandbox: the kernel lacks what the profile requires")
	ErrLeaks       = errors.New("sandbox: it was entered, and does not hold")
)

// A Profile is what a process keeps. The zero value keeps nothing but what is open.
// Paths are absolute; a folder stands for all that is below it.
type Profile struct {
	Name string

	Read, Write     []string // Enter fails where one is missing; what is written may be read
	ReadIf, WriteIf []string // left out where they are missing, which the Report names
	// Dial is the Unix sockets, or their folders, that may be connected to by name,
	// where the kernel can tell them apart; the missing ones are left out.
	Dial []string

	Sockets []int // address families that may still be created, such as unix.AF_UNIX
	Connect bool  // connect(2)
	Listen  bool  // bind(2) and listen(2)
	Exec    bool  // other programs, from the paths that may be read

	// Required makes Enter fail where the kernel has no Landlock, or too little of
	// it to confine the file system.
	Required bool
}

// A Report says what holds.
type Report struct {
	Profile  string
	Landlock int      // the ABI whose rights are held, 0 for none
	Absent   []string // paths of ReadIf, WriteIf and Dial that are not there
	Missing  []string // what this kernel cannot do, and what that leaves open
}

// String is one line for a journal.
func (r Report) String() string {
	s := fmt.Sprintf("%s: calls filtered, Landlock ABI %d", r.Profile, r.Landlock)
	if len(r.Absent) > 0 {
		s += "; not there: " + strings.Join(r.Absent, ", ")
	}
	if len(r.Missing) > 0 {
		s += "; open on this kernel: " + strings.Join(r.Missing, ", ")
	}
	return s
}

// Enter binds the whole process to p, for ever. After an error it may be bound in
// part: the process should end.
func Enter(p Profile) (Report, error) {
	r := Report{Profile: p.Name}
	if err := p.check(); err != nil {
		return r, err
	}
	program, err := filter(p, unix.Getpid())
	if err != nil {
		return r, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := noCore(); err != nil {
		return r, err
	}
	if err := confine(p, &r); err != nil {
		return r, err
	}
	if err := load(program); err != nil {
		return r, err
	}
	return r, p.prove(r)
}

func (p Profile) check() error {
	for _, path := range slices.Concat(p.Read, p.Write, p.ReadIf, p.WriteIf, p.Dial) {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%w: %q is not an absolute path", ErrProfile, path)
		}
	}
	for _, family := range p.Sockets {
		if family <= unix.AF_UNSPEC {
			return fmt.Errorf("%w: %d is no address family", ErrProfile, family)
		}
	}
	return nil
}

// inet tells whether the process may make sockets of the internet's families.
func (p Profile) inet() bool {
	return slices.Contains(p.Sockets, unix.AF_INET) || slices.Contains(p.Sockets, unix.AF_INET6)
}

// noCore keeps core files and debuggers of the same user away.
func noCore() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("sandbox: making the process not dumpable: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("sandbox: the limit on core files: %w", err)
	}
	return nil
}

// prove tries what has to fail now. A filter that is laid on and lets everything
// through would otherwise be noticed by nobody.
func (p Profile) prove(r Report) error {
	if family := p.forbidden(); family != 0 {
		if err := refused(unix.Socket(family, unix.SOCK_STREAM, 0)); !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("%w: a socket of family %d: %w", ErrLeaks, family, err)
		}
	}
	if n, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || n != 1 {
		return fmt.Errorf("%w: no_new_privs is %d, %w", ErrLeaks, n, err)
	}
	if r.Landlock == 0 || slices.Contains(slices.Concat(p.Read, p.Write, p.ReadIf, p.WriteIf), "/") {
		return nil
	}
	if err := refused(unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)); !errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w: opening /: %w", ErrLeaks, err)
	}
	return nil
}

// forbidden is an address family that every kernel has and the profile has not.
func (p Profile) forbidden() int {
	for _, family := range []int{unix.AF_INET, unix.AF_UNIX} {
		if !slices.Contains(p.Sockets, family) {
			return family
		}
	}
	return 0
}

var errNone = errors.New("it was allowed")

// refused closes what should not have been opened.
func refused(fd int, err error) error {
	if err == nil {
		_ = unix.Close(fd)
		return errNone
	}
	return err
}
