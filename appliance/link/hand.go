package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What a parent hands to a child, each with a descriptor: the end of a link to a
// server, the end of one to a client, a listening socket.
const (
	HandDial   = "dial"
	HandServe  = "serve"
	HandListen = "listen"
)

// What a parent and a child say without one: that all listening sockets were
// handed over, that the child is ready, and that it lacks the link to a server.
const (
	sayBegin = "begin"
	sayReady = "ready"
	sayAgain = "again"
)

// Bounds of the control socket: octets of what is said with a descriptor, how long a
// process that does not listen is waited for, and how often a child asks for a link
// that it lacks and is heard.
const (
	maxHand   = 256
	sayWithin = time.Second
	askEvery  = time.Second
	hearEvery = 100 * time.Millisecond
)

// Pair returns the two ends of a connection that has no name.
func Pair(kind int) (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("link: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "link"), os.NewFile(uintptr(fds[1]), "link"), nil
}

// A Hands is one end of the control socket between a parent and a child: one
// message for each thing that is handed over.
type Hands struct {
	c  *net.UnixConn
	mu sync.Mutex
}

// NewHands takes over an end of a pair of unix.SOCK_SEQPACKET.
func NewHands(f *os.File) (*Hands, error) {
	defer func() { _ = f.Close() }()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("link: control socket: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, errors.New("link: the control socket is no Unix socket")
	}
	return &Hands{c: u}, nil
}

// Close ends the control socket.
func (h *Hands) Close() error { return h.c.Close() }

// Give hands a descriptor over; the caller closes its own.
func (h *Hands) Give(what, name string, f *os.File) error {
	return h.say(what+" "+name, unix.UnixRights(int(f.Fd())))
}

// Begin says that all listening sockets were handed over.
func (h *Hands) Begin() error { return h.say(sayBegin, nil) }

// Ready says that the child serves.
func (h *Hands) Ready() error { return h.say(sayReady, nil) }

func (h *Hands) say(text string, rights []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.c.SetWriteDeadline(time.Now().Add(sayWithin)); err != nil {
		return fmt.Errorf("link: control socket: %w", err)
	}
	if _, _, err := h.c.WriteMsgUnix([]byte(text), rights, nil); err != nil {
		return fmt.Errorf("link: control socket: %w", err)
	}
	return nil
}

// take reads one message. f is nil where none came with it.
func (h *Hands) take() (what, name string, f *os.File, err error) {
	buf, oob := make([]byte, maxHand), make([]byte, unix.CmsgSpace(4))
	n, on, flags, _, err := h.c.ReadMsgUnix(buf, oob)
	if err != nil {
		return "", "", nil, err
	}
	if n == 0 || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return "", "", nil, fmt.Errorf("%w: on the control socket", ErrProtocol)
	}
	what, name, _ = strings.Cut(string(buf[:n]), " ")
	if on == 0 {
		return what, name, nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:on])
	if err != nil || len(msgs) != 1 {
		return "", "", nil, fmt.Errorf("%w: on the control socket", ErrProtocol)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return "", "", nil, fmt.Errorf("%w: on the control socket", ErrProtocol)
	}
	unix.CloseOnExec(fds[0])
	return what, name, os.NewFile(uintptr(fds[0]), what+" "+name), nil
}

// Hear calls ready when the child says that it serves, and again when it lacks the
// link to a server, until the child is gone.
func (h *Hands) Hear(ready func(), again func(server string)) error {
	for {
		what, name, f, err := h.take()
		if f != nil {
			_ = f.Close()
		}
		switch {
		case err != nil:
			return err
		case what == sayReady:
			ready()
		case what == sayAgain:
			again(name)
		}
		time.Sleep(hearEvery) // whatever the child does
	}
}

// Inherited are the ends of links that a parent hands to this process. It
// implements [Ends].
type Inherited struct {
	hands     *Hands
	listeners map[string]net.Listener

	mu   sync.Mutex
	next map[string]chan net.Conn // by server: the newest end
	in   chan served
	gone chan struct{}
}

type served struct {
	conn net.Conn
	role string
}

var _ Ends = (*Inherited)(nil)

// Inherit takes what the parent hands over until it says that this is all; links
// come later too. gone is called when the parent is no more: nobody would replace
// a lost link then, nor stop this process.
func Inherit(hands *Hands, gone func()) (*Inherited, error) {
	i := &Inherited{hands: hands, listeners: make(map[string]net.Listener), next: make(map[string]chan net.Conn), in: make(chan served, 16), gone: make(chan struct{})}
	for {
		begun, err := i.one()
		if err != nil {
			return nil, err
		}
		if begun {
			break
		}
	}
	go func() {
		defer gone()
		defer close(i.gone)
		for {
			if _, err := i.one(); err != nil {
				return
			}
		}
	}()
	return i, nil
}

// one takes one message.
func (i *Inherited) one() (begun bool, err error) {
	what, name, f, err := i.hands.take()
	if err != nil {
		return false, fmt.Errorf("link: the parent is gone: %w", err)
	}
	if f == nil {
		return what == sayBegin, nil
	}
	defer func() { _ = f.Close() }()
	if what == HandListen {
		l, err := net.FileListener(f)
		if err != nil {
			return false, fmt.Errorf("link: inherited socket %s: %w", name, err)
		}
		i.listeners[name] = l
		return false, nil
	}
	c, err := net.FileConn(f)
	if err != nil {
		return false, fmt.Errorf("link: inherited end %s: %w", name, err)
	}
	switch what {
	case HandServe:
		select {
		case i.in <- served{c, name}:
		default: // nobody serves: the peer sees that it is gone, and gets another one
			_ = c.Close()
		}
	case HandDial:
		next := i.end(name)
		select {
		case old := <-next: // nobody took it, and it is of a server that is gone
			_ = old.Close()
		default:
		}
		next <- c
	default:
		_ = c.Close()
	}
	return false, nil
}

func (i *Inherited) end(server string) chan net.Conn {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.next[server] == nil {
		i.next[server] = make(chan net.Conn, 1)
	}
	return i.next[server]
}

// Listener returns an inherited listening socket, nil if there is none.
func (i *Inherited) Listener(name string) net.Listener { return i.listeners[name] }

// Dialer implements [Ends].
func (i *Inherited) Dialer(server string) Dialer { return inheritedDialer{i, server} }

// Names implements [Ends]: there are none.
func (i *Inherited) Names() []string { return nil }

type inheritedDialer struct {
	i      *Inherited
	server string
}

// Dial has the end that the parent hands over. A link can be lost although the
// server lives, and the parent does not see that: it is asked for another one.
func (d inheritedDialer) Dial(ctx context.Context) (net.Conn, error) {
	ask := time.NewTicker(askEvery)
	defer ask.Stop()
	for {
		select {
		case c := <-d.i.end(d.server):
			return c, nil
		case <-ask.C:
			_ = d.i.hands.say(sayAgain+" "+d.server, nil) // a parent that is gone ends this process
		case <-d.i.gone:
			return nil, ErrDown
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Accept implements [Ends].
func (i *Inherited) Accept(ctx context.Context) (net.Conn, string, error) {
	select {
	case s := <-i.in:
		return s.conn, s.role, nil
	case <-i.gone:
		return nil, "", ErrDown
	case <-ctx.Done():
		return nil, "", ctx.Err()
	}
}

// Ready tells the parent that this process serves.
func (i *Inherited) Ready() error { return i.hands.Ready() }
