package appliance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/appliance/supervisor"
	"github.com/postern-pki/postern/tls/listen"
)

// ErrInUse says that another process serves the operators' socket.
var ErrInUse = errors.New("another process is there")

// Inherit takes the listening sockets that the service manager opened.
func (e *Env) Inherit() error {
	got, err := listen.Inherited()
	if err != nil {
		return fmt.Errorf("inherited sockets: %w", err)
	}
	e.Listener = func(name string) net.Listener {
		if l, ok := got[name]; ok {
			return l
		}
		return nil
	}
	return nil
}

// Sockets are listening sockets by name.
type Sockets map[string]supervisor.Socket

// Listener returns the one of that name, nil if there is none.
func (s Sockets) Listener(name string) net.Listener {
	if l, ok := s[name]; ok {
		return l
	}
	return nil
}

// OpenSockets opens the listening sockets that the service manager has not opened:
// devices, operators if there is such a listener, and local. remove takes away what
// has a name.
func OpenSockets(ctx context.Context, cfg *config.Config) (sockets Sockets, remove func(), err error) {
	sockets = make(Sockets)
	inherited, err := listen.Inherited()
	if err != nil {
		return nil, nil, err
	}
	for name, address := range map[string]string{"devices": cfg.Devices.Listen, "operators": cfg.Operators.Listen} {
		l := inherited[name]
		if l == nil && address != "" {
			l, err = listen.Open(ctx, address)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("the %s' listener: %w", name, err)
		}
		if s, ok := l.(supervisor.Socket); ok {
			sockets[name] = s
		}
	}
	path := cfg.Operators.Socket
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, nil, fmt.Errorf("the operators' socket: %w", err)
	}
	local, remove, err := listen.BindLocal(path, 0o660)
	if errors.Is(err, listen.ErrInUse) {
		err = fmt.Errorf("%w: %w", ErrInUse, err)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("the operators' socket: %w", err)
	}
	sockets["local"] = local
	return sockets, remove, nil
}
