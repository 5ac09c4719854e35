// Package pins has the PINs of ceremonies: where they come from, how strong they
// have to be, and how new ones are made.
//
// # What a caller may rely on
//
// A PIN cannot be printed, and its source is told without it. One that is made here
// has 128 random bits.
//
// # What it does not protect against
//
// How long a PIN is says little of how it was chosen: people who bring their own
// are asked for length and variety, and no more can be seen. Go's runtime makes
// copies that cannot be wiped.
package pins

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"

	"github.com/postern-pki/postern/hsm"
)

// A Given is a PIN that people brought, or one that was generated. Like an
// [hsm.PIN] it cannot be printed.
type Given struct {
	hsm.PIN
	Source string // "generated", "file", "descriptor", "credential" or "terminal"
}

// A Source gets a PIN, once, before the token is touched.
type Source func(ctx context.Context) (Given, error)

// ErrWeak says that a PIN is too short or too plain for the plan's class.
var ErrWeak = errors.New("the PIN is too weak")

const (
	minPIN           = 4 // the least that a token of PKCS#11 asks for
	minProductionPIN = 12
	minDistinct      = 5 // different characters in a production PIN: excludes 111111111111
)

// GeneratedBytes is how many random bytes are in a PIN that is made here: a ceremony
// must not make less than 10.
const GeneratedBytes = 16

// Strong checks a PIN against what a plan of its class asks for.
func (p Given) Strong(what string, production bool) error {
	least := minPIN
	if production {
		least = minProductionPIN
	}
	switch {
	case p.Len() < least:
		return fmt.Errorf("%w: %s has at least %d characters", ErrWeak, what, least)
	case production && p.Distinct() < minDistinct:
		return fmt.Errorf("%w: %s has fewer than %d different characters", ErrWeak, what, minDistinct)
	}
	return nil
}

// Generate makes a PIN of 128 random bits, and returns its text to be kept.
func Generate() (Given, []byte, error) {
	raw := make([]byte, GeneratedBytes)
	defer clear(raw)
	if _, err := rand.Read(raw); err != nil {
		return Given{}, nil, err
	}
	enc := base32.StdEncoding.WithPadding(base32.NoPadding)
	text := make([]byte, enc.EncodedLen(len(raw)))
	defer clear(text)
	enc.Encode(text, raw)
	lower := bytes.ToLower(text)
	return Given{hsm.NewPIN(lower), "generated"}, lower, nil
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
