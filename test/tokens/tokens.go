// Package tokens has the tokens of other makers that tests use beside SoftHSM:
// p11-kit's remoting, as a stand-in for an HSM across a network, and
// opencryptoki's soft token.
//
// # What a caller may rely on
//
// Nothing outside the folder of a test is written, and what was started is
// ended with the test.
//
// # What it does not protect against
//
// The Debian packages p11-kit, p11-kit-modules and opencryptoki have to be there;
// opencryptoki has fixed paths and wants root, for a namespace of its own.
package tokens

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/postern-pki/postern/test/softhsm"
)

// module finds a library of Debian's below the folder of any machine's kind.
func module(tb testing.TB, name string) string {
	tb.Helper()
	found, err := filepath.Glob("/usr/lib/*/" + name)
	if err != nil || len(found) == 0 {
		tb.Fatalf("there is no /usr/lib/*/%s: %v; `make need-test` installs it", name, err)
	}
	return found[0]
}

// A Remote is a SoftHSM token behind a server on a socket: what a network HSM is.
type Remote struct {
	Module string // of the client
	soft   softhsm.Token
	socket string
	server *exec.Cmd
}

// NewRemote serves a token. It is not started yet.
func NewRemote(tb testing.TB, soft softhsm.Token) *Remote {
	tb.Helper()
	dir, err := os.MkdirTemp("", "p11-") // a socket's path is short
	if err != nil {
		tb.Fatal(err)
	}
	r := &Remote{Module: module(tb, "pkcs11/p11-kit-client.so"), soft: soft, socket: filepath.Join(dir, "s")}
	tb.Cleanup(func() {
		if r.server != nil {
			r.Kill(tb)
		}
		_ = os.RemoveAll(dir)
	})
	return r
}

// Env is this process' environment, for a child that uses the token through the server.
func (r *Remote) Env() []string {
	return append(os.Environ(), "P11_KIT_SERVER_ADDRESS=unix:path="+r.socket)
}

// Start starts the server and returns when it listens.
func (r *Remote) Start(tb testing.TB) {
	tb.Helper()
	_ = os.Remove(r.socket) // the one before was killed
	r.server = exec.CommandContext(context.Background(), "p11-kit", "server", "--foreground", "--provider", r.soft.Module, "--name", r.socket, "pkcs11:token="+r.soft.Label)
	r.server.Env = r.soft.Env()
	r.server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // with its child for each client
	if err := r.server.Start(); err != nil {
		tb.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(r.socket); err == nil {
			return
		}
		if time.Now().After(end) {
			tb.Fatal("p11-kit's server does not listen")
		}
	}
}

// Freeze stops the server where it stands, with its connections open: what a host
// that hangs looks like from afar. Thaw lets it go on.
func (r *Remote) Freeze(tb testing.TB) { r.signal(tb, syscall.SIGSTOP) }

// Thaw ends what Freeze began.
func (r *Remote) Thaw(tb testing.TB) { r.signal(tb, syscall.SIGCONT) }

func (r *Remote) signal(tb testing.TB, sig syscall.Signal) {
	tb.Helper()
	if err := syscall.Kill(-r.server.Process.Pid, sig); err != nil {
		tb.Error(err)
	}
}

// Kill ends the server and what it does for its clients, as a power cut does.
func (r *Remote) Kill(tb testing.TB) {
	tb.Helper()
	r.signal(tb, syscall.SIGKILL)
	_ = r.server.Wait()
	r.server = nil
}
