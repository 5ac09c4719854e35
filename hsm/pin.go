package hsm

import (
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/term"
)

// maxPIN is the longest PIN that is read, in bytes: SoftHSM's own limit, and
// above that of the hardware tokens that we know.
const maxPIN = 255

const redacted = "[redacted]"

var errPINSource = errors.New("not a usable PIN")

// A PIN opens a token. It cannot be printed, logged or marshaled by accident:
// every way of doing so gives "[redacted]". The zero value is an empty PIN.
//
// The bytes lie behind a pointer to a pointer, because fmt follows the unexported fields
// of a struct that holds a PIN without asking the PIN's own methods.
type PIN struct{ p *pinBytes }

type pinBytes struct{ b *[]byte }

// NewPIN returns a PIN with a copy of b.
func NewPIN(b []byte) PIN {
	c := bytes.Clone(b)
	return PIN{&pinBytes{&c}}
}

// Wipe overwrites the PIN, for every copy of the value. Go's runtime and the
// module may have made copies of the bytes that it cannot reach.
func (p PIN) Wipe() {
	if p.p != nil {
		clear(*p.p.b)
		*p.p.b = nil
	}
}

// Empty reports whether there is nothing in the PIN.
func (p PIN) Empty() bool { return p.p == nil || len(*p.p.b) == 0 }

// Equal compares in time that depends on the lengths alone.
func (p PIN) Equal(q PIN) bool { return subtle.ConstantTimeCompare(p.bytes(), q.bytes()) == 1 }

func (p PIN) bytes() []byte {
	if p.p == nil {
		return nil
	}
	return *p.p.b
}

// reveal is the PIN as the module's binding wants it.
func (p PIN) reveal() string { return string(p.bytes()) }

// Format implements [fmt.Formatter] for every verb.
func (PIN) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// String implements [fmt.Stringer].
func (PIN) String() string { return redacted }

// GoString implements [fmt.GoStringer].
func (PIN) GoString() string { return redacted }

// MarshalText implements [encoding.TextMarshaler].
func (PIN) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON implements [json.Marshaler].
func (PIN) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// A PINSource gets the PIN when a token is opened. It is asked once.
type PINSource func(ctx context.Context) (PIN, error)

// PINFrom is a source of a PIN that the caller has. It hands out copies, so
// that the one may be wiped while the other is in use.
func PINFrom(p PIN) PINSource {
	return func(context.Context) (PIN, error) { return NewPIN(p.bytes()), nil }
}

// PINFromFile reads a regular file, without the newline at its end. It refuses a
// file that everybody may read, or that others than its owner may change.
func PINFromFile(path string) PINSource {
	return func(context.Context) (PIN, error) {
		info, err := os.Stat(path)
		if err != nil {
			return PIN{}, fmt.Errorf("hsm: PIN file: %w", err)
		}
		if !info.Mode().IsRegular() {
			return PIN{}, fmt.Errorf("hsm: PIN file %s: %w: not a regular file", path, errPINSource)
		}
		if info.Mode().Perm()&0o026 != 0 || info.Mode().Perm()&0o004 != 0 {
			return PIN{}, fmt.Errorf("hsm: PIN file %s: %w: mode %v is too open; chmod 0400 it", path, errPINSource, info.Mode().Perm())
		}
		return readPINFile(path)
	}
}

// PINFromCredential reads a credential that the service manager handed over, by
// its name in $CREDENTIALS_DIRECTORY (systemd.exec(5)). Who may read it is the
// manager's business.
func PINFromCredential(name string) PINSource {
	return func(context.Context) (PIN, error) {
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" {
			return PIN{}, fmt.Errorf("hsm: PIN credential %q: %w: $CREDENTIALS_DIRECTORY is not set", name, errPINSource)
		}
		if name == "" || name != filepath.Base(name) || strings.HasPrefix(name, ".") {
			return PIN{}, fmt.Errorf("hsm: PIN credential %q: %w: not a plain name", name, errPINSource)
		}
		return readPINFile(filepath.Join(dir, name))
	}
}

// PINFromFD reads an inherited file descriptor to its end, and closes it.
func PINFromFD(fd int) PINSource {
	return func(ctx context.Context) (PIN, error) {
		if fd < 0 {
			return PIN{}, fmt.Errorf("hsm: PIN descriptor %d: %w", fd, errPINSource)
		}
		f := os.NewFile(uintptr(fd), "PIN descriptor")
		if f == nil {
			return PIN{}, fmt.Errorf("hsm: PIN descriptor %d: %w", fd, errPINSource)
		}
		return waitPIN(ctx, func() (PIN, error) {
			defer func() { _ = f.Close() }()
			return readPIN(f)
		})
	}
}

// PINFromTerminal asks on the controlling terminal, without echo.
func PINFromTerminal(prompt string) PINSource {
	return func(ctx context.Context) (PIN, error) {
		tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
		if err != nil {
			return PIN{}, fmt.Errorf("hsm: PIN from terminal: %w", err)
		}
		fd := int(tty.Fd())
		before, err := term.GetState(fd)
		if err != nil {
			_ = tty.Close()
			return PIN{}, fmt.Errorf("hsm: PIN from terminal: %w", err)
		}
		pin, err := waitPIN(ctx, func() (PIN, error) {
			defer func() { _ = tty.Close() }()
			if _, err := io.WriteString(tty, prompt); err != nil {
				return PIN{}, fmt.Errorf("hsm: PIN from terminal: %w", err)
			}
			b, err := term.ReadPassword(fd)
			defer clear(b)
			_, _ = io.WriteString(tty, "\n")
			if err != nil {
				return PIN{}, fmt.Errorf("hsm: PIN from terminal: %w", err)
			}
			return checkPIN(b)
		})
		if err != nil && ctx.Err() != nil {
			_ = term.Restore(fd, before) // whoever was asked has gone; leave them their echo
		}
		return pin, err
	}
}

// waitPIN runs a read that may block for ever and stops waiting with ctx.
func waitPIN(ctx context.Context, read func() (PIN, error)) (PIN, error) {
	type answer struct {
		pin PIN
		err error
	}
	done := make(chan answer, 1)
	go func() {
		pin, err := read()
		done <- answer{pin, err}
	}()
	select {
	case a := <-done:
		return a.pin, a.err
	case <-ctx.Done():
		return PIN{}, fmt.Errorf("hsm: waiting for the PIN: %w", ctx.Err())
	}
}

func readPINFile(path string) (PIN, error) {
	f, err := os.Open(path) //nolint:gosec // the operator names the file, or the service manager its folder
	if err != nil {
		return PIN{}, fmt.Errorf("hsm: PIN file: %w", err)
	}
	defer func() { _ = f.Close() }()
	return readPIN(f)
}

func readPIN(r io.Reader) (PIN, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxPIN+3)) // a longer one is refused below, never cut
	defer clear(b)
	if err != nil {
		return PIN{}, fmt.Errorf("hsm: reading the PIN: %w", err)
	}
	line := bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
	return checkPIN(line)
}

func checkPIN(b []byte) (PIN, error) {
	switch {
	case len(b) == 0:
		return PIN{}, fmt.Errorf("hsm: %w: it is empty", errPINSource)
	case len(b) > maxPIN:
		return PIN{}, fmt.Errorf("hsm: %w: more than %d bytes", errPINSource, maxPIN)
	case bytes.ContainsAny(b, "\x00\r\n"):
		return PIN{}, fmt.Errorf("hsm: %w: it has a line break or a zero byte in it", errPINSource)
	}
	return NewPIN(b), nil
}
