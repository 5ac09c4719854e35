package link

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// UIDOf asks the kernel which user had the other end of a Unix socket when it was
// connected.
func UIDOf(c net.Conn) (uint32, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0, errors.New("link: not a Unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("link: %w", err)
	}
	var cred *unix.Ucred
	if e := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); e != nil {
		err = e
	}
	if err != nil {
		return 0, fmt.Errorf("link: who is at the other end: %w", err)
	}
	return cred.Uid, nil
}
