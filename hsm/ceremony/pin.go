package ceremony

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/term"

	"github.com/postern-pki/postern/hsm"
)

// A GivenPIN is a PIN that people brought, or one that was generated, with what
// may be told about it. Like an [hsm.PIN] it cannot be printed.
type GivenPIN struct {
	hsm.PIN
	Source   string // "generated", "file", "descriptor", "credential" or "terminal"
	length   int    // bytes
	distinct int    // different bytes among them
}

// A PINSource gets a PIN, once, before the token is touched.
type PINSource func(ctx context.Context) (GivenPIN, error)

// ErrWeakPIN says that a PIN is too short or too plain for the plan's class.
var ErrWeakPIN = errors.New("the PIN is too weak")

const (
	maxPIN           = 255 // bytes; SoftHSM's own limit
	minPIN           = 4   // the least that a token of PKCS#11 asks for
	minProductionPIN = 12
	minDistinct      = 5  // different characters in a production PIN: excludes 111111111111
	generatedBytes   = 16 // 128 bits; a ceremony must not generate less than 80
)

// strong checks a PIN against what the class asks for.
func (p GivenPIN) strong(what string, class Class) error {
	least := minPIN
	if class == Production {
		least = minProductionPIN
	}
	switch {
	case p.length < least:
		return fmt.Errorf("%w: %s of a %s token has at least %d characters", ErrWeakPIN, what, class, least)
	case class == Production && p.distinct < minDistinct:
		return fmt.Errorf("%w: %s has fewer than %d different characters", ErrWeakPIN, what, minDistinct)
	}
	return nil
}

// generatePIN makes a PIN of 128 random bits, and returns its text to be kept.
func generatePIN() (GivenPIN, []byte, error) {
	raw := make([]byte, generatedBytes)
	defer clear(raw)
	if _, err := rand.Read(raw); err != nil {
		return GivenPIN{}, nil, err
	}
	enc := base32.StdEncoding.WithPadding(base32.NoPadding)
	text := make([]byte, enc.EncodedLen(len(raw)))
	enc.Encode(text, raw)
	p, err := newPIN("generated", bytes.ToLower(text))
	return p, bytes.ToLower(text), err
}

func newPIN(source string, b []byte) (GivenPIN, error) {
	switch {
	case len(b) == 0:
		return GivenPIN{}, fmt.Errorf("PIN from %s: it is empty", source)
	case len(b) > maxPIN:
		return GivenPIN{}, fmt.Errorf("PIN from %s: it has more than %d bytes", source, maxPIN)
	case bytes.ContainsFunc(b, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return GivenPIN{}, fmt.Errorf("PIN from %s: it has a line break or a control character in it", source)
	}
	p := GivenPIN{PIN: hsm.NewPIN(b), Source: source, length: len(b)}
	for c := range 256 {
		if bytes.IndexByte(b, byte(c)) >= 0 {
			p.distinct++
		}
	}
	return p, nil
}

// PINFromFile reads a regular file that its owner alone may change and that
// not everybody may read. A line break at its end is no part of the PIN.
func PINFromFile(path string) PINSource {
	return func(context.Context) (GivenPIN, error) {
		f, err := os.Open(path)
		if err != nil {
			return GivenPIN{}, fmt.Errorf("PIN file: %w", err)
		}
		defer func() { _ = f.Close() }()
		info, err := f.Stat()
		if err != nil {
			return GivenPIN{}, fmt.Errorf("PIN file: %w", err)
		}
		if perm := info.Mode().Perm(); !info.Mode().IsRegular() || perm&0o027 != 0 {
			return GivenPIN{}, fmt.Errorf("PIN file %s: %v is too open, or no regular file: chmod 0400 it", path, info.Mode())
		}
		return readPIN("file", f)
	}
}

// PINFromCredential reads a credential of the service manager, by its name in
// $CREDENTIALS_DIRECTORY (systemd.exec(5)).
func PINFromCredential(name string) PINSource {
	return func(context.Context) (GivenPIN, error) {
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" || name != filepath.Base(name) || strings.HasPrefix(name, ".") {
			return GivenPIN{}, fmt.Errorf("PIN credential %q: $CREDENTIALS_DIRECTORY is not set, or this is no plain name", name)
		}
		f, err := os.OpenInRoot(dir, name)
		if err != nil {
			return GivenPIN{}, fmt.Errorf("PIN credential: %w", err)
		}
		defer func() { _ = f.Close() }()
		return readPIN("credential", f)
	}
}

// PINFromFD reads an inherited descriptor to its end, and closes it.
func PINFromFD(fd int) PINSource {
	return func(ctx context.Context) (GivenPIN, error) {
		f := os.NewFile(uintptr(max(fd, 0)), "PIN descriptor")
		if fd < 0 || f == nil {
			return GivenPIN{}, fmt.Errorf("PIN descriptor %d: not a descriptor", fd)
		}
		return wait(ctx, func() (GivenPIN, error) {
			defer func() { _ = f.Close() }()
			return readPIN("descriptor", f)
		})
	}
}

// PINFromTerminal asks on the controlling terminal, without echo: twice if the
// PIN is a new one.
func PINFromTerminal(what string, twice bool) PINSource {
	return func(ctx context.Context) (GivenPIN, error) {
		tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
		if err != nil {
			return GivenPIN{}, fmt.Errorf("PIN from terminal: %w", err)
		}
		fd := int(tty.Fd())
		before, err := term.GetState(fd)
		if err != nil {
			_ = tty.Close()
			return GivenPIN{}, fmt.Errorf("PIN from terminal: %w", err)
		}
		pin, err := wait(ctx, func() (GivenPIN, error) {
			defer func() { _ = tty.Close() }()
			pin, err := ask(tty, what+": ")
			if err != nil || !twice {
				return pin, err
			}
			again, err := ask(tty, what+", again: ")
			if err == nil && !again.Equal(pin.PIN) {
				err = errors.New("PIN from terminal: the two are not the same")
			}
			again.Wipe()
			return pin, err
		})
		if ctx.Err() != nil {
			_ = term.Restore(fd, before) // whoever was asked has gone; leave them their echo
		}
		return pin, err
	}
}

func ask(tty *os.File, prompt string) (GivenPIN, error) {
	if _, err := io.WriteString(tty, prompt); err != nil {
		return GivenPIN{}, fmt.Errorf("PIN from terminal: %w", err)
	}
	b, err := term.ReadPassword(int(tty.Fd()))
	defer clear(b)
	_, _ = io.WriteString(tty, "\n")
	if err != nil {
		return GivenPIN{}, fmt.Errorf("PIN from terminal: %w", err)
	}
	return newPIN("terminal", b)
}

// wait stops waiting for a read that may block for ever when ctx ends.
func wait(ctx context.Context, read func() (GivenPIN, error)) (GivenPIN, error) {
	type answer struct {
		pin GivenPIN
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
		return GivenPIN{}, fmt.Errorf("waiting for the PIN: %w", ctx.Err())
	}
}

func readPIN(source string, r io.Reader) (GivenPIN, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxPIN+3)) // a longer one is refused below, never cut
	defer clear(b)
	if err != nil {
		return GivenPIN{}, fmt.Errorf("PIN from %s: %w", source, err)
	}
	return newPIN(source, bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r")))
}
