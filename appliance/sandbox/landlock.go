package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// Rights on the file system. What a folder may have and a file may not is kept
// apart, as the kernel refuses a rule that gives a file a folder's rights.
const (
	readFile   = ll.AccessFSReadFile
	readFolder = ll.AccessFSReadDir
	// A device file may be spoken to: a token on the bus is one.
	writeFile   = readFile | ll.AccessFSWriteFile | ll.AccessFSTruncate | ll.AccessFSIoctlDev
	writeFolder = readFolder | ll.AccessFSRemoveDir | ll.AccessFSRemoveFile | ll.AccessFSMakeDir | ll.AccessFSMakeReg

	everyFS    = ll.AccessFSResolveUnix<<1 - 1
	everyNet   = ll.AccessNetBindTCP | ll.AccessNetConnectTCP | ll.AccessNetBindUDP | ll.AccessNetConnectSendUDP
	everyScope = ll.ScopeAbstractUnixSocket | ll.ScopeSignal
)

// gaps says what is open on kernels before an ABI.
var gaps = []struct {
	abi     int
	say     string
	applies func(Profile) bool
}{
	{1, "the file system is as the user's rights have it", func(Profile) bool { return true }},
	{3, "files anywhere can be cut short by their path", func(Profile) bool { return true }},
	{4, "an accepted TCP connection can be pointed elsewhere", func(p Profile) bool { return !p.inet() && p.Connect }},
	{6, "abstract Unix sockets of other processes can be reached", func(p Profile) bool { return p.Connect }},
	{9, "Unix sockets can be reached by any path that the user's rights allow", func(p Profile) bool { return p.Connect }},
}

// abi is what the kernel offers. Signals between threads of one process fail on
// those that have ABI 6 and not its correction: that part is then left out.
func abi() int {
	v, err := ll.LandlockGetABIVersion()
	if err != nil {
		return 0
	}
	if fixed, err := ll.LandlockGetErrata(); v >= 6 && (err != nil || fixed&2 == 0) {
		return 5
	}
	return v
}

// confine lays Landlock's rules on every thread.
func confine(p Profile, r *Report) error {
	r.Landlock = abi()
	for _, gap := range gaps {
		if r.Landlock < gap.abi && gap.applies(p) {
			r.Missing = append(r.Missing, gap.say)
		}
	}
	if p.Required && r.Landlock < 3 {
		return fmt.Errorf("%w: Landlock of ABI 3 is needed, it has %d", ErrUnavailable, r.Landlock)
	}
	rules, err := p.rules(r)
	if err != nil {
		return err
	}
	net := landlock.AccessNetSet(everyNet) // no rule allows anything of it
	if p.inet() {
		net = 0
	}
	c, err := landlock.NewConfig(landlock.AccessFSSet(everyFS), net, landlock.ScopedSet(everyScope))
	if err != nil {
		return fmt.Errorf("sandbox: %w", err)
	}
	if err := c.BestEffort().Restrict(rules...); err != nil {
		return fmt.Errorf("sandbox: Landlock: %w", err)
	}
	return nil
}

// rules gives each path its rights.
func (p Profile) rules(r *Report) ([]landlock.Rule, error) {
	file, folder := landlock.AccessFSSet(readFile), landlock.AccessFSSet(readFolder)
	if p.Exec {
		file |= ll.AccessFSExecute
	}
	wFile, wFolder := landlock.AccessFSSet(writeFile), landlock.AccessFSSet(writeFolder)
	if r.Landlock >= 2 { // before it nothing moves between folders, and a rule about it voids all the others
		wFolder |= ll.AccessFSRefer
	}
	if p.Listen {
		wFolder |= ll.AccessFSMakeSock
	}
	var rules []landlock.Rule
	for _, set := range []struct {
		paths        []string
		optional     bool
		file, folder landlock.AccessFSSet
	}{
		{p.Read, false, file, folder},
		{p.ReadIf, true, file, folder},
		{p.Write, false, wFile, wFolder},
		{p.WriteIf, true, wFile, wFolder},
		{p.Dial, true, ll.AccessFSResolveUnix, 0},
	} {
		for _, path := range set.paths {
			st, err := os.Stat(path)
			switch {
			case set.optional && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)):
				r.Absent = append(r.Absent, path)
			case err != nil:
				return nil, fmt.Errorf("sandbox: %w", err)
			case st.IsDir():
				rules = append(rules, landlock.PathAccess(set.file|set.folder, path))
			default:
				rules = append(rules, landlock.PathAccess(set.file, path))
			}
		}
	}
	slices.Sort(r.Absent)
	return rules, nil
}
