// Package opencryptoki has tests run beside opencryptoki's soft token, a second
// maker's: RSA alone, PINs of at most eight characters, and fewer attributes.
//
// # What a caller may rely on
//
// [Main] runs a package's tests in namespaces of their own, in which the library's fixed
// paths are empty folders and its daemon runs: the machine's own opencryptoki, if
// there is one, is not touched, and nothing is left.
//
// # What it does not protect against
//
// It wants root and the Debian package opencryptoki. The PINs are known.
package opencryptoki

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
)

// What a token is opened with.
const (
	PIN   = "24681357" // the longest that the soft token takes
	SOPIN = "76543210"

	firstSOPIN = "87654321" // of each token that was never initialized
	firstPIN   = "11223344"
	inside     = "POSTERN_OPENCRYPTOKI"
)

// A Token is an initialized soft token with its user PIN set.
type Token struct {
	Module string
	Serial string
	Label  string
}

// Main is for a package's TestMain: func TestMain(m *testing.M) { os.Exit(opencryptoki.Main(m)) }.
func Main(m *testing.M) int {
	if os.Getenv(inside) == "" {
		return enter()
	}
	end, err := serve()
	if err != nil {
		fmt.Fprintln(os.Stderr, "opencryptoki:", err)
		return 1
	}
	defer end()
	return m.Run()
}

// enter runs this program again in namespaces of its own.
func enter() int {
	cmd := exec.CommandContext(context.Background(), "/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "opencryptoki: a namespace of its own (as root):", err)
		return 1
	}
	return 0
}

// maxTokens is how many tokens there are for the tests of a package.
const maxTokens = 16

// serve makes the library's folders anew and starts its daemon.
func serve() (end func(), err error) {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return nil, err
	}
	for _, dir := range []string{"/etc/opencryptoki", "/var/lib/opencryptoki", "/run"} {
		if err := syscall.Mount("postern-test", dir, "tmpfs", 0, "mode=0755"); err != nil {
			return nil, fmt.Errorf("%s: %w; `make need-test` installs opencryptoki", dir, err)
		}
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil { // the daemon looks there for its clients
		return nil, err
	}
	conf := "version opencryptoki-3.1\n"
	for i := range maxTokens {
		conf += fmt.Sprintf("slot %d\n{\nstdll = libpkcs11_sw.so\ntokname = t%d\n}\n", i, i)
		for _, dir := range []string{fmt.Sprintf("/var/lib/opencryptoki/t%d/TOK_OBJ", i), fmt.Sprintf("/run/lock/opencryptoki/t%d", i)} {
			if err := os.MkdirAll(dir, 0o770); err != nil {
				return nil, err
			}
		}
	}
	if err := os.WriteFile("/etc/opencryptoki/opencryptoki.conf", []byte(conf), 0o600); err != nil {
		return nil, err
	}
	daemon := exec.CommandContext(context.Background(), "/usr/sbin/pkcsslotd", "-f")
	daemon.Stdout, daemon.Stderr = os.Stderr, os.Stderr
	if err := daemon.Start(); err != nil {
		return nil, err
	}
	end = func() { _ = daemon.Process.Kill(); _ = daemon.Wait() }
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat("/run/pkcsslotd.socket"); err == nil {
			return end, nil
		}
		if time.Now().After(until) {
			end()
			return nil, errors.New("its daemon does not listen")
		}
	}
}

// New initializes a token that no test had before. They differ by label alone.
func New(tb testing.TB) Token {
	tb.Helper()
	found, err := filepath.Glob("/usr/lib/*/pkcs11/libopencryptoki.so")
	if err != nil || len(found) == 0 {
		tb.Fatal("there is no libopencryptoki.so; `make need-test` installs it")
	}
	p := pkcs11.New(found[0])
	if p == nil {
		tb.Fatal("cannot load " + found[0])
	}
	defer p.Destroy()
	check := func(what string, err error) {
		tb.Helper()
		if err != nil {
			tb.Fatalf("%s: %v", what, err)
		}
	}
	check("C_Initialize", p.Initialize())
	defer func() { _ = p.Finalize() }()
	slots, err := p.GetSlotList(true)
	check("C_GetSlotList", err)
	for _, slot := range slots {
		info, err := p.GetTokenInfo(slot)
		check("C_GetTokenInfo", err)
		if info.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0 {
			continue
		}
		label := fmt.Sprintf("second-maker-%d", slot)
		check("C_InitToken", p.InitToken(slot, firstSOPIN, label))
		session := func(user uint, pin string, do func(h pkcs11.SessionHandle)) {
			h, err := p.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
			check("C_OpenSession", err)
			check("C_Login", p.Login(h, user, pin))
			do(h)
			check("C_CloseSession", p.CloseSession(h)) // logs out
		}
		// Both PINs count as never set until their owner has changed them.
		session(pkcs11.CKU_SO, firstSOPIN, func(h pkcs11.SessionHandle) { check("C_SetPIN", p.SetPIN(h, firstSOPIN, SOPIN)) })
		session(pkcs11.CKU_SO, SOPIN, func(h pkcs11.SessionHandle) { check("C_InitPIN", p.InitPIN(h, firstPIN)) })
		session(pkcs11.CKU_USER, firstPIN, func(h pkcs11.SessionHandle) { check("C_SetPIN", p.SetPIN(h, firstPIN, PIN)) })
		return Token{Module: found[0], Serial: info.SerialNumber, Label: label}
	}
	tb.Fatalf("all %d tokens were used", maxTokens)
	return Token{}
}
