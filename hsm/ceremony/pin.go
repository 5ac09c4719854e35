package ceremony

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"

	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/ceremony/plan"
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
	if class == plan.Production {
		least = minProductionPIN
	}
	switch {
	case p.Len() < least:
		return fmt.Errorf("%w: %s of a %s token has at least %d characters", ErrWeakPIN, what, class, least)
	case class == plan.Production && p.Distinct() < minDistinct:
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

// pins gets the PINs that the steps to come need, and refuses weak ones while
// nothing depends on them yet.
func (r *run) pins(ctx context.Context) error {
	for _, t := range r.plan.Tokens {
		h := r.holders[t.On]
		if h.left {
			continue
		}
		if err := r.pinsOf(ctx, h); err != nil {
			return err
		}
	}
	return r.apart()
}

func (r *run) pinsOf(ctx context.Context, h *holder) (err error) {
	if r.opts.Rehearse {
		if h.pin, h.text, err = generatePIN(); err != nil {
			return err
		}
		var forgotten []byte // nobody resets the PIN of a throw-away token
		h.so, forgotten, err = generatePIN()
		clear(forgotten)
		return err
	}
	user, officer, of := r.opts.PIN, r.opts.SOPIN, ""
	if h.plan.On == plan.Root {
		user, officer, of = r.opts.RootPIN, r.opts.RootSOPIN, " of the root's token"
	}
	get := func(dst *GivenPIN, from PINSource, what string) error {
		if from == nil {
			return fmt.Errorf("no source for %s is given", what)
		}
		p, err := from(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		*dst = p
		if err := p.strong(what, r.plan.Class); err != nil {
			return &Error{Err: err, Hint: "choose another one; it is not changed later"}
		}
		return nil
	}
	if h.plan.New && !r.isDone(plan.Step{Name: plan.StepPIN, Of: string(h.plan.On)}) {
		if err := get(&h.so, officer, "the security officer's PIN"+of); err != nil {
			return err
		}
	}
	return get(&h.pin, user, "the user PIN"+of)
}

// apart refuses one PIN for two purposes.
func (r *run) apart() error {
	var all []GivenPIN
	for _, t := range r.plan.Tokens {
		for _, p := range []GivenPIN{r.holders[t.On].so, r.holders[t.On].pin} {
			if p.Empty() {
				continue
			}
			for _, other := range all {
				if p.Equal(other.PIN) {
					return &Error{Err: fmt.Errorf("%w: two PINs are the same", ErrWeakPIN), Hint: "whoever has one must not have the other"}
				}
			}
			all = append(all, p)
		}
	}
	return nil
}
