package listen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Errors of [NewLocal].
var (
	ErrInUse     = errors.New("listen: a server answers on that socket")
	ErrNotSocket = errors.New("listen: there is something at that path and it is no socket")
)

// A Peer is the process at the other end of a Unix socket, as the kernel noted it
// when the process connected.
type Peer struct {
	PID      int32
	UID, GID uint32
}

type peerKey struct{}

// PeerOf returns who sent a request, from its context. It is false for any other
// server than a [Local], and where the kernel did not say.
func PeerOf(ctx context.Context) (Peer, bool) {
	p, ok := ctx.Value(peerKey{}).(Peer)
	return p, ok
}

// A Local serves HTTP on a Unix socket, to processes of this machine only.
type Local struct {
	path     string
	listener *net.UnixListener
	http     *http.Server
	remove   func()
}

// NewLocal returns a server that listens on a Unix socket at path, as [BindLocal]
// makes it.
func NewLocal(path string, mode fs.FileMode, h http.Handler, log *zap.Logger) (*Local, error) {
	l, remove, err := BindLocal(path, mode)
	if err != nil {
		return nil, err
	}
	return newLocal(path, l, remove, h, log), nil
}

// NewLocalOn returns a server on a Unix socket that somebody else opened, and
// removes.
func NewLocalOn(l net.Listener, h http.Handler, log *zap.Logger) (*Local, error) {
	u, ok := l.(*net.UnixListener)
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrNotSocket, l.Addr())
	}
	u.SetUnlinkOnClose(false)
	return newLocal(l.Addr().String(), u, func() {}, h, log), nil
}

func newLocal(path string, l *net.UnixListener, remove func(), h http.Handler, log *zap.Logger) *Local {
	if log == nil {
		log = zap.NewNop()
	}
	s := &Local{path: path, listener: l, http: httpServer(h, log.With(zap.String("listener", path))), remove: remove}
	s.http.ConnContext = withPeer
	return s
}

// BindLocal listens on a Unix socket at path, which has the permission bits of mode
// from the moment it is there. A socket that a dead server left is replaced; one on
// which somebody answers is [ErrInUse]. remove takes it away, unless the path is
// another server's by then.
func BindLocal(path string, mode fs.FileMode) (l *net.UnixListener, remove func(), err error) {
	if err := vacant(path); err != nil {
		return nil, nil, err
	}
	if l, err = bind(path, mode); err != nil {
		return nil, nil, fmt.Errorf("listen: %w", err)
	}
	own, err := os.Lstat(path)
	if err != nil {
		_ = l.Close()
		return nil, nil, fmt.Errorf("listen: %w", err)
	}
	return l, sync.OnceFunc(func() {
		if now, err := os.Lstat(path); err == nil && os.SameFile(own, now) {
			_ = os.Remove(path)
		}
	}), nil
}

// vacant reports whether a socket may be put at path.
func vacant(path string) error {
	switch st, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("listen: %w", err)
	case st.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%w: %s", ErrNotSocket, path)
	}
	c, err := (&net.Dialer{Timeout: time.Second}).DialContext(context.Background(), "unix", path)
	switch {
	case err == nil:
		_ = c.Close()
		return fmt.Errorf("%w: %s", ErrInUse, path)
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	default: // a full backlog, or no permission: somebody is there
		return fmt.Errorf("%w: %s: %w", ErrInUse, path, err)
	}
}

// bind makes the socket in a private folder and moves it to its place, so that
// nobody can connect before it has its permission bits.
func bind(path string, mode fs.FileMode) (l *net.UnixListener, err error) {
	private, err := os.MkdirTemp(filepath.Dir(path), ".s")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(private)) }()
	temporary := filepath.Join(private, "s")
	l, err = net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(temporary, mode.Perm()); err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

// withPeer puts the peer's identity into the context of a connection.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if cerr != nil || err != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, Peer{cred.Pid, cred.Uid, cred.Gid})
}

// Addr returns the path that the server listens on.
func (s *Local) Addr() string { return s.path }

// Serve serves until [Local.Shutdown] or [Local.Close], and returns nil then.
func (s *Local) Serve() error {
	defer s.remove()
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("listen: %s: %w", s.path, err)
	}
	return nil
}

// Shutdown takes no more requests, removes the socket, and waits for the requests
// that run; when ctx ends first, it closes their connections.
func (s *Local) Shutdown(ctx context.Context) error {
	s.remove()
	defer func() { _ = s.listener.Close() }() // where Serve was never called
	if err := s.http.Shutdown(ctx); err != nil {
		_ = s.http.Close()
		return fmt.Errorf("listen: %s: %w", s.path, err)
	}
	return nil
}

// Close ends the server and every connection at once, and removes the socket.
func (s *Local) Close() error {
	s.remove()
	defer func() { _ = s.listener.Close() }()
	return s.http.Close()
}
