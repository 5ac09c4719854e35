package ceremony

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"

	"github.com/postern-pki/postern/hsm"
)

// A GivenPIN is a PIN that people brought, or one that was generated. Like an
// [hsm.PIN] it cannot be printed.
type GivenPIN struct {
	hsm.PIN
	Source string // "generated", "file", "descriptor", "credential" or "terminal"
}

// A PINSource gets a PIN, once, before the token is touched.
type PINSource func(ctx context.Context) (GivenPIN, error)

// ErrWeakPIN says that a PIN is too short or too plain for the plan's class.
var ErrWeakPIN = errors.New("the PIN is too weak")

const (
	minPIN           = 4 // the least that a token of PKCS#11 asks for
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
	case p.Len() < least:
		return fmt.Errorf("%w: %s of a %s token has at least %d characters", ErrWeakPIN, what, class, least)
	case class == Production && p.Distinct() < minDistinct:
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
	defer clear(text)
	enc.Encode(text, raw)
	lower := bytes.ToLower(text)
	return GivenPIN{hsm.NewPIN(lower), "generated"}, lower, nil
}

// named says where a source's PIN comes from.
func named(source string, get hsm.PINSource) PINSource {
	return func(ctx context.Context) (GivenPIN, error) {
		p, err := get(ctx)
		return GivenPIN{p, source}, err
	}
}

// PINFromFile is [hsm.PINFromFile].
func PINFromFile(path string) PINSource { return named("file", hsm.PINFromFile(path)) }

// PINFromCredential is [hsm.PINFromCredential].
func PINFromCredential(name string) PINSource {
	return named("credential", hsm.PINFromCredential(name))
}

// PINFromFD is [hsm.PINFromFD].
func PINFromFD(fd int) PINSource { return named("descriptor", hsm.PINFromFD(fd)) }

// PINFromTerminal is [hsm.PINFromTerminal].
func PINFromTerminal(what string, twice bool) PINSource {
	return named("terminal", hsm.PINFromTerminal(what, twice))
}
