// Package pins has the PINs of ceremonies: where they come from, how strong they
// have to be, and how new ones are made.
//
// # What a caller may rely on
//
// A PIN cannot be printed, and its source is told without it. One that is made here
// has 128 random bits, or as many characters as the token takes.
//
// # What it does not protect against
//
// How long a PIN is says little of how it was chosen: what is reckoned of one that people
// bring is the most that it can be, and a word is far weaker. Go's runtime makes
// copies that cannot be wiped.
package pins

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"math"
	"math/big"
	"os/exec"
	"strings"
	"time"

	"github.com/postern-pki/postern/hsm"
)

// A Given is a PIN that people brought, or one that was generated. Like an
// [hsm.PIN] it cannot be printed.
type Given struct {
	hsm.PIN
	Source string // "generated", "file", "descriptor", "credential", "shares" or "terminal"
}

// A Source gets a PIN, once, before the token is touched.
type Source func(ctx context.Context) (Given, error)

// ErrWeak says that a PIN is too short or too plain for the plan's class.
var ErrWeak = errors.New("the PIN is too weak")

// MinBits is the least strength of a PIN for production, unless the token takes no
// longer one.
const MinBits = 80

const (
	minPIN         = 4  // the least that a token of PKCS#11 asks for
	generatedBytes = 16 // that are random in a PIN that is made here
	generatedLen   = 26 // characters of them in base32
	letters        = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
)

// Bits reckons how strong the PIN is: what is random in one that was made here. Of any
// other it is the most that can be: each character is counted as if it were chosen at
// random among those of its kinds, but for one that repeats the character before it or
// goes on counting from there.
func (p Given) Bits() int {
	bits := 0.0
	_ = p.Reveal(func(text []byte) error {
		if p.Source == "generated" && len(text) == generatedLen {
			bits = 8 * generatedBytes
			return nil
		}
		size, n := 0, 0
		var seen [4]bool
		for i, c := range text {
			if i == 0 || c != text[i-1] && c != text[i-1]+1 && c != text[i-1]-1 || p.Source == "generated" {
				n++
			}
			if k := kind(c); !seen[k] {
				seen[k], size = true, size+[4]int{10, 26, 26, 33}[k]
			}
		}
		if p.Source == "generated" {
			size = len(letters)
		}
		if n > 0 {
			bits = float64(n) * math.Log2(float64(size))
		}
		return nil
	})
	return int(bits)
}

// kind is that of a character: digits, lower and upper case letters, and the rest.
func kind(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return 0
	case c >= 'a' && c <= 'z':
		return 1
	case c >= 'A' && c <= 'Z':
		return 2
	default:
		return 3
	}
}

// Strong checks a PIN against what a plan of its class asks for. longest is the most
// characters that its token takes, 0 for no limit: such a PIN is as strong as it can be.
func (p Given) Strong(what string, production bool, longest int) error {
	switch {
	case p.Len() < minPIN:
		return fmt.Errorf("%w: %s has at least %d characters", ErrWeak, what, minPIN)
	case production && p.Bits() < MinBits && (longest == 0 || p.Len() < longest || p.Distinct() < minPIN):
		return fmt.Errorf("%w: %s has %d bits at most, and %d are asked for", ErrWeak, what, p.Bits(), MinBits)
	}
	return nil
}

// Generate makes a PIN of 128 random bits, and returns its text to be kept. If a token
// takes less than its 26 characters, it has longest letters and digits; 0 is no limit.
func Generate(longest int) (Given, []byte, error) {
	raw := make([]byte, generatedBytes)
	defer clear(raw)
	if _, err := rand.Read(raw); err != nil {
		return Given{}, nil, err
	}
	enc := base32.StdEncoding.WithPadding(base32.NoPadding)
	text := make([]byte, enc.EncodedLen(len(raw)))
	defer clear(text)
	enc.Encode(text, raw)
	kept := bytes.ToLower(text)
	if longest > 0 && longest < generatedLen {
		kept = kept[:longest]
		for i := range kept {
			n, err := rand.Int(rand.Reader, big.NewInt(int64(len(letters))))
			if err != nil {
				return Given{}, nil, err
			}
			kept[i] = letters[n.Int64()]
		}
	}
	return Given{hsm.NewPIN(kept), "generated"}, kept, nil
}

// Regain is a generated PIN whose text was kept.
func Regain(text []byte) Given { return Given{hsm.NewPIN(text), "generated"} }

// sealer is the program that encrypts credentials for this machine.
const sealer = "systemd-creds"

// Sealer returns where the program for [Seal] is; "" if there is none.
func Sealer() string {
	path, err := exec.LookPath(sealer)
	if err != nil {
		return ""
	}
	return path
}

// Seal encrypts a PIN's text as a credential of that name, for this machine alone: what
// LoadCredentialEncrypted= of a unit reads.
func Seal(ctx context.Context, name string, text []byte) ([]byte, error) {
	return seal(ctx, "encrypt", name, text)
}

// Unseal is the way back.
func Unseal(ctx context.Context, name string, sealed []byte) ([]byte, error) {
	return seal(ctx, "decrypt", name, sealed)
}

func seal(ctx context.Context, verb, name string, in []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, sealer, verb, "--name="+name, "-", "-") //nolint:gosec // the PIN is on its standard input
	var said bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), &said
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", sealer, verb, err, strings.ToValidUTF8(strings.TrimSpace(said.String()), "?"))
	}
	return out, nil
}

// named says where a source's PIN comes from.
func named(source string, get hsm.PINSource) Source {
	return func(ctx context.Context) (Given, error) {
		p, err := get(ctx)
		return Given{p, source}, err
	}
}

// FromFile is [hsm.PINFromFile].
func FromFile(path string) Source { return named("file", hsm.PINFromFile(path)) }

// FromCredential is [hsm.PINFromCredential].
func FromCredential(name string) Source {
	return named("credential", hsm.PINFromCredential(name))
}

// FromFD is [hsm.PINFromFD].
func FromFD(fd int) Source { return named("descriptor", hsm.PINFromFD(fd)) }

// FromTerminal is [hsm.PINFromTerminal].
func FromTerminal(what string, twice bool) Source {
	return named("terminal", hsm.PINFromTerminal(what, twice))
}
