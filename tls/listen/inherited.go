package listen

import (
	"fmt"
	"net"

	"github.com/coreos/go-systemd/v22/activation"
)

// Inherited returns the listening sockets that systemd opened for this process,
// by their FileDescriptorName: such as "devices" and "operators". There are none
// where the process was not started by a socket unit. It works once, and takes
// the descriptors out of the environment of children.
func Inherited() (map[string]net.Listener, error) {
	named, err := activation.ListenersWithNames()
	if err != nil {
		return nil, fmt.Errorf("listen: inherited sockets: %w", err)
	}
	all := make(map[string]net.Listener, len(named))
	for name, ls := range named {
		if len(ls) != 1 || ls[0] == nil {
			return nil, fmt.Errorf("%w: %d inherited sockets are called %q, or one of them does not listen", ErrOptions, len(ls), name)
		}
		all[name] = ls[0]
	}
	return all, nil
}
