package link_test

import (
	"context"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/postern-pki/postern/appliance/link"
)

// exhausted is a listener of a process that has no descriptor left for a while.
type exhausted struct {
	net.Listener
	left int
}

func (l *exhausted) Accept() (net.Conn, error) {
	if l.left > 0 {
		l.left--
		return nil, &net.OpError{Op: "accept", Net: "unix", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return l.Listener.Accept()
}

func TestAServerWithoutDescriptorsForAWhileGoesOn(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "server.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	n, err := link.NewNamed(dir, &exhausted{l, 2}, map[string]string{"client": me.Username})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := n.Dialer("server").Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, role, err := n.Accept(ctx); err != nil || role != "client" {
		t.Errorf("Accept: role %q, %v", role, err)
	}
}
