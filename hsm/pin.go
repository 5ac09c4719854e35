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

	"golang.org/x/sys/unix"
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
func (p PIN) Empty() bool { return p.Len() == 0 }

// Len returns the number of bytes in the PIN.
func (p PIN) Len() int { return len(p.bytes()) }

// Distinct returns how many different bytes are in the PIN: how plain it is.
func (p PIN) Distinct() int {
	var seen [256]bool
	n := 0
	for _, b := range p.bytes() {
		if !seen[b] {
			n++
		}
		seen[b] = true
	}
	return n
}

// Equal compares in time that depends on the lengths alone.
func (p PIN) Equal(q PIN) bool { return subtle.ConstantTimeCompare(p.bytes(), q.bytes()) == 1 }

func (p PIN) bytes() []byte {
	if p.p == nil {
		return nil
	}
	return *p.p.b
}

// Reveal gives f a copy of the bytes, for the one place that has to show a secret to
// the person who keeps it, and wipes the copy.
func (p PIN) Reveal(f func(text []byte) error) error {
	b := bytes.Clone(p.bytes())
	defer clear(b)
	return f(b)
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
		// Without waiting: somebody may have put a pipe there.
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return PIN{}, fmt.Errorf("hsm: PIN file: %w", err)
		}
		defer func() { _ = f.Close() }()
		info, err := f.Stat() // of what is read, whatever the path means by then
		if err != nil {
			return PIN{}, fmt.Errorf("hsm: PIN file: %w", err)
		}
		if !info.Mode().IsRegular() {
			return PIN{}, fmt.Errorf("hsm: PIN file %s: %w: not a regular file", path, errPINSource)
		}
		if info.Mode().Perm()&0o026 != 0 {
			return PIN{}, fmt.Errorf("hsm: PIN file %s: %w: mode %v is too open; chmod 0400 it", path, errPINSource, info.Mode().Perm())
		}
		return readPIN(f)
	}
}

// PINFromCredential reads a credential that the service manager handed over, by
// its name in $CREDENTIALS_DIRECTORY (systemd.exec(5)). Who may read it is the
// manager's business.
func PINFromCredential(name string) PINSource {
	return func(context.Context) (PIN, error) {
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if name == "" || name != filepath.Base(name) || strings.HasPrefix(name, ".") {
			return PIN{}, fmt.Errorf("hsm: PIN credential %q: %w: not a plain name", name, errPINSource)
		}
		if dir == "" {
			return PIN{}, fmt.Errorf("hsm: PIN credential %q: %w: $CREDENTIALS_DIRECTORY is not set", name, errPINSource)
		}
		f, err := os.OpenInRoot(dir, name)
		if err != nil {
			return PIN{}, fmt.Errorf("hsm: PIN credential: %w", err)
		}
		defer func() { _ = f.Close() }()
		return readPIN(f)
	}
}

// PINFromFD reads an inherited file descriptor to its end, and closes it.
func PINFromFD(fd int) PINSource {
	return func(ctx context.Context) (PIN, error) {
		f := os.NewFile(uintptr(max(fd, 0)), "PIN descriptor")
		if fd < 0 || f == nil {
			return PIN{}, fmt.Errorf("hsm: PIN descriptor %d: %w: not a descriptor", fd, errPINSource)
		}
		return waitPIN(ctx, func() (PIN, error) {
			defer func() { _ = f.Close() }()
			return readPIN(f)
		})
	}
}

// PINFromTerminal asks on the controlling terminal, without echo: twice if the
// PIN is a new one, which is refused if the two are not the same.
func PINFromTerminal(what string, twice bool) PINSource {
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
			pin, err := askPIN(tty, what+": ")
			if err != nil || !twice {
				return pin, err
			}
			again, err := askPIN(tty, what+", again: ")
			defer again.Wipe()
			if err == nil && !again.Equal(pin) {
				err = fmt.Errorf("hsm: PIN from terminal: %w: the two are not the same", errPINSource)
			}
			if err != nil {
				pin.Wipe()
				return PIN{}, err
			}
			return pin, nil
		})
		if err != nil && ctx.Err() != nil {
			_ = term.Restore(fd, before) // whoever was asked has gone; leave them their echo
		}
		return pin, err
	}
}

func askPIN(tty *os.File, prompt string) (PIN, error) {
	if _, err := io.WriteString(tty, prompt); err != nil {
		return PIN{}, fmt.Errorf("hsm: PIN from terminal: %w", err)
	}
	b, err := term.ReadPassword(int(tty.Fd()))
	defer clear(b)
	_, _ = io.WriteString(tty, "\n")
	if err != nil {
		return PIN{}, fmt.Errorf("hsm: PIN from terminal: %w", err)
	}
	return checkPIN(b)
}

// waitPIN runs a read that may block for ever and stops waiting with ctx; what
// comes later is wiped.
func waitPIN(ctx context.Context, read func() (PIN, error)) (PIN, error) {
	done := make(chan answer[PIN], 1)
	go func() {
		pin, err := read()
		done <- answer[PIN]{pin, err}
	}()
	select {
	case a := <-done:
		return a.v, a.err
	case <-ctx.Done():
		go func() { (<-done).v.Wipe() }()
		return PIN{}, fmt.Errorf("hsm: waiting for the PIN: %w", ctx.Err())
	}
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
	case bytes.ContainsFunc(b, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return PIN{}, fmt.Errorf("hsm: %w: it has a line break or a control character in it", errPINSource)
	}
	return NewPIN(b), nil
}
