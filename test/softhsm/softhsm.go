// Package softhsm makes throw-away SoftHSM tokens for tests, and a shim around
// the module that misbehaves on demand.
//
// # What a caller may rely on
//
// All tokens of a process lie in one directory, which the process' environment
// names in SOFTHSM2_CONF: the module reads that variable at C_Initialize, once for
// the whole process, and child processes inherit it. A token is gone when its
// test ends. New has to come before the module is initialized, as SoftHSM looks for
// tokens then. [Main] removes the directory; without it, the end of the test that
// owns the last token does.
//
// # What it does not protect against
//
// PINs are on the command line of softhsm2-util. Nothing here is fit for keys
// that matter.
package softhsm

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Module is where Debian and its relatives install SoftHSM.
const Module = "/usr/lib/softhsm/libsofthsm2.so"

const (
	confVar = "SOFTHSM2_CONF"
	pin     = "postern-test-1234"
	soPIN   = "postern-test-so-5678"
)

// A Token is an initialized token with its user PIN set. For one that
// [Empty] made, Serial, Label and PIN are empty.
type Token struct {
	Module string // absolute path
	Serial string
	Label  string
	PIN    string
	SOPIN  string
	Conf   string // the configuration file, as in SOFTHSM2_CONF
	Dir    string // the process' directory; tokens lie below it
}

// process is what all tokens of this process share.
type process struct {
	mu     sync.Mutex
	dir    string
	users  int
	keep   bool // Main removes it
	number atomic.Int64
}

var shared process

// Main runs a package's tests with the directory set up, and returns the exit
// status. Use it as func TestMain(m *testing.M) { os.Exit(softhsm.Main(m)) }.
func Main(m *testing.M) int {
	if err := shared.open(true); err != nil {
		fmt.Fprintln(os.Stderr, "softhsm:", err)
		return 1
	}
	defer shared.remove()
	return m.Run()
}

// New makes a token with a label of its own, for as long as tb runs.
func New(tb testing.TB) Token {
	tb.Helper()
	t := Empty(tb)
	t.Label, t.PIN, t.SOPIN = fmt.Sprintf("test-%d", shared.number.Add(1)), pin, soPIN
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "softhsm2-util", "--init-token", "--free", "--label", t.Label, "--pin", t.PIN, "--so-pin", t.SOPIN)
	cmd.Env = t.Env()
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("softhsm2-util: %v\n%s", err, out)
	}
	t.Serial = t.serial(tb)
	tb.Cleanup(func() { t.delete(tb) })
	return t
}

// Empty makes sure that there is a slot with an uninitialized token, and says
// where. What a test initializes in it stays until the directory is removed.
func Empty(tb testing.TB) Token {
	tb.Helper()
	if err := shared.open(false); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(shared.release)
	return Token{Module: Module, Conf: os.Getenv(confVar), Dir: filepath.Dir(os.Getenv(confVar))}
}

// Env is this process' environment, for a child that uses the token.
func (t Token) Env() []string { return append(os.Environ(), confVar+"="+t.Conf) }

// PINFile writes the PIN to a file that only its owner can read.
func (t Token) PINFile(tb testing.TB) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "pin")
	if err := os.WriteFile(path, []byte(t.PIN+"\n"), 0o400); err != nil {
		tb.Fatal(err)
	}
	return path
}

func (p *process) open(keep bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keep = p.keep || keep
	if !keep {
		p.users++
	}
	if p.dir != "" {
		return nil
	}
	dir, err := os.MkdirTemp("", "postern-softhsm-")
	if err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "tokens"), 0o700); err != nil {
		return err
	}
	conf := filepath.Join(dir, "softhsm2.conf")
	text := "directories.tokendir = " + filepath.Join(dir, "tokens") + "\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return err
	}
	p.dir = dir
	return os.Setenv(confVar, conf)
}

func (p *process) release() {
	p.mu.Lock()
	p.users--
	last := p.users == 0 && !p.keep
	p.mu.Unlock()
	if last {
		p.remove()
	}
}

func (p *process) remove() {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = os.RemoveAll(p.dir)
	p.dir = ""
	_ = os.Unsetenv(confVar)
}

var serialLine = regexp.MustCompile(`(?s)Serial number:\s+(\S+)\s[^:]*Initialized:\s+yes.*?Label:\s+(\S+)`)

func (t Token) serial(tb testing.TB) string {
	tb.Helper()
	cmd := exec.CommandContext(context.Background(), "softhsm2-util", "--show-slots")
	cmd.Env = t.Env()
	out, err := cmd.CombinedOutput()
	if err != nil {
		tb.Fatalf("softhsm2-util: %v\n%s", err, out)
	}
	for _, slot := range strings.Split(string(out), "\nSlot ") {
		if m := serialLine.FindStringSubmatch(slot); m != nil && m[2] == t.Label {
			return m[1]
		}
	}
	tb.Fatalf("no token %q in:\n%s", t.Label, out)
	return ""
}

func (t Token) delete(tb testing.TB) {
	cmd := exec.CommandContext(context.Background(), "softhsm2-util", "--delete-token", "--serial", t.Serial)
	cmd.Env = t.Env()
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Logf("softhsm2-util: %v\n%s", err, out)
	}
}

//go:embed testdata/shim.c
var shimSource []byte

// A Shim is a module that passes all calls on to SoftHSM, except those that a
// test told it to spoil. Its Module goes where SoftHSM's would.
type Shim struct {
	Module  string
	control string
}

// NewShim builds a shim with the C compiler that cgo needs anyway. The shim finds its
// control file by its own path, so it works in child processes too.
func NewShim(tb testing.TB) Shim {
	tb.Helper()
	dir := tb.TempDir()
	s := Shim{Module: filepath.Join(dir, "shim.so"), control: filepath.Join(dir, "control")}
	src := filepath.Join(dir, "shim.c")
	if err := os.WriteFile(src, shimSource, 0o600); err != nil {
		tb.Fatal(err)
	}
	cmd := exec.CommandContext(context.Background(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/miekg/pkcs11")
	headers, err := cmd.Output()
	if err != nil {
		tb.Fatal(err)
	}
	build := exec.CommandContext(context.Background(), "gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror",
		"-I"+strings.TrimSpace(string(headers)), `-DREAL="`+Module+`"`, `-DCONTROL="`+s.control+`"`, "-o", s.Module, src, "-ldl")
	if out, err := build.CombinedOutput(); err != nil {
		tb.Fatalf("building the shim: %v\n%s", err, out)
	}
	return s
}

// Always is a count that does not run out.
const Always = 1 << 30

// Spoil changes what the next calls of one function do; function is "Initialize", "Finalize",
// "GetSlotList", "GetTokenInfo", "OpenSession", "GetSessionInfo", "Login",
// "FindObjectsInit", "GetAttributeValue", "CreateObject", "DestroyObject",
// "GenerateRandom", "SignInit", "Sign", "DecryptInit" or "Decrypt", or "*" for all of
// these. The last four may be followed by a colon and the label of the one key that is
// meant. effect is "rv 0x..." (return this instead of calling; 0 is CKR_OK), "delay N"
// (milliseconds, before the call), "hold" (before the call, until Spoil is called
// again, at most 30 s), "hang N" (as hold, in one process alone: one that is
// started after it is spared, and takes N milliseconds to log in), "flip" (one bit of the answer of Sign or Decrypt), "gone" (the
// token was pulled out: its sessions are lost and no slot has one) or, for Decrypt,
// "picky 0x..." (return this for a ciphertext that begins with four zeros, as some
// tokens do for padding that they do not like). It lasts for count calls, in each
// process that has the module.
func (s Shim) Spoil(tb testing.TB, function, effect string, count int) {
	tb.Helper()
	if err := os.Remove(s.control + ".hung"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		tb.Fatal(err)
	}
	tmp := s.control + ".new"
	if err := os.WriteFile(tmp, fmt.Appendf(nil, "%s %d %s\n", function, count, effect), 0o600); err != nil {
		tb.Fatal(err)
	}
	if err := os.Rename(tmp, s.control); err != nil { // whole or not at all: a call may read it now
		tb.Fatal(err)
	}
}

// Heal ends what Spoil began.
func (s Shim) Heal(tb testing.TB) {
	tb.Helper()
	s.Spoil(tb, "none", "none", 0)
}

// Spoiled is how many calls were spoiled since the shim was made.
func (s Shim) Spoiled(tb testing.TB) int {
	tb.Helper()
	return s.Count(tb, "spoiled")
}

// Count is how many calls of "Login", "Initialize" or "OpenSession" there were since
// the shim was made, in all processes.
func (s Shim) Count(tb testing.TB, function string) int {
	tb.Helper()
	b, err := os.ReadFile(s.control + "." + function)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		tb.Fatal(err)
	}
	return len(b)
}
