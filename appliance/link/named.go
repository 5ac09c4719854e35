package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Ends are where a role's links begin: those that it calls over, and those that it
// is called over.
type Ends interface {
	// Dialer returns how a server is reached.
	Dialer(server string) Dialer
	// Accept returns the next connection, and which role is at its other end.
	Accept(ctx context.Context) (net.Conn, string, error)
	// Names returns the folders of the sockets that are connected to by name.
	Names() []string
}

// Named are links by sockets that have names: one for each server, which tells
// its callers apart by the user that the kernel names. It implements [Ends].
type Named struct {
	dir      string
	listener net.Listener      // of this role; nil: it serves nobody
	roles    map[uint32]string // by user
}

var _ Ends = (*Named)(nil)

// NewNamed returns the links below a folder, in which a server has the socket
// <name>.sock. users are the names of the roles' users; one that the machine does
// not have is an error, and so is one that has two roles.
func NewNamed(dir string, listener net.Listener, users map[string]string) (*Named, error) {
	n := &Named{dir: dir, listener: listener, roles: make(map[uint32]string)}
	if listener == nil {
		return n, nil
	}
	for role, name := range users {
		u, err := user.Lookup(name)
		if err != nil {
			return nil, fmt.Errorf("link: the user of role %s: %w", role, err)
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("link: the user of role %s: %w", role, err)
		}
		if other, twice := n.roles[uint32(uid)]; twice {
			return nil, fmt.Errorf("link: %s and %s have the same user: nobody could tell them apart", role, other)
		}
		n.roles[uint32(uid)] = role
	}
	return n, nil
}

// Dialer implements [Ends].
func (n *Named) Dialer(server string) Dialer {
	return namedDialer(filepath.Join(n.dir, server+".sock"))
}

// Names implements [Ends].
func (n *Named) Names() []string { return []string{n.dir} }

type namedDialer string

func (d namedDialer) Dial(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{Timeout: helloWithin}).DialContext(ctx, "unix", string(d))
}

// Accept implements [Ends]. A peer of another user is turned away, and it says so.
func (n *Named) Accept(ctx context.Context) (net.Conn, string, error) {
	if n.listener == nil {
		<-ctx.Done()
		return nil, "", ctx.Err()
	}
	end := context.AfterFunc(ctx, func() { _ = n.listener.Close() })
	defer end()
	for {
		c, err := n.listener.Accept()
		if ctx.Err() != nil {
			return nil, "", ctx.Err()
		}
		if err != nil {
			if passes(err) {
				select {
				case <-time.After(firstPause):
				case <-ctx.Done():
				}
				continue
			}
			return nil, "", fmt.Errorf("link: %w", err)
		}
		uid, err := UIDOf(c)
		role, known := n.roles[uid]
		if err == nil && known {
			return c, role, nil
		}
		w := newWire(c)
		_ = w.fault(0, &Fault{Code: CodeRefused, Text: fmt.Sprintf("user %d has no role here", uid)})
		_ = c.Close()
	}
}

// passes reports whether a listener that failed so may work later: what a process or
// the machine has of descriptors and memory was used up, or the caller hung up.
func passes(err error) bool {
	if t, ok := errors.AsType[net.Error](err); ok && t.Timeout() {
		return true
	}
	return slices.ContainsFunc([]unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED}, func(e unix.Errno) bool { return errors.Is(err, e) })
}
