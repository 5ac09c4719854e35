package hsm

import (
	"context"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"
)

// A KeyPlan is a key pair to be generated.
type KeyPlan struct {
	Purpose   Purpose
	Label     string
	ID        []byte // CKA_ID; 16 random bytes if empty
	Algorithm Algorithm
}

// Generated is a key pair that was generated.
type Generated struct {
	KeyPlan // with its ID
	Public  crypto.PublicKey
	Tier    Tier // IfSupported if the token took the whole template, Required if it took less of what is not required
}

// Generate generates key pairs on a token that nobody has open, in order, with
// the attributes of [Template] and no other. It checks the whole plan, and that
// no label is taken (ErrKeyExists), before the first pair is made; it logs in
// once, under the rules of [Open], and has left the module when it returns, so
// that the token can be opened and each pair looked at by [Token.Key] and [Token.Prove].
// On an error it returns the pairs that were made; they stay on the token,
// which may not let them be destroyed.
//
// A generation cannot be canceled inside the module: if ctx ends, Generate
// returns, and the module stays in use until the running generation ends.
func Generate(ctx context.Context, c Config, plans []KeyPlan) ([]Generated, error) {
	const op = "generate keys"
	plans, err := complete(plans)
	if err != nil {
		return nil, err
	}
	slot, err := look(ctx, c)
	if err != nil {
		return nil, err
	}
	if c.PIN == nil {
		return nil, &Error{Op: op, Err: errors.New("no source for the PIN is configured")}
	}
	pin, err := c.PIN(ctx)
	if err != nil {
		return nil, fmt.Errorf("hsm: %s: %w", op, err)
	}
	done := make(chan answer[[]Generated], 1)
	go func() {
		defer pin.Wipe()
		out, err := generateAll(ctx, c.Module, slot, pin, plans)
		done <- answer[[]Generated]{out, err}
	}()
	select {
	case a := <-done:
		return a.v, fault(op, "", a.err)
	case <-ctx.Done():
		return nil, &Error{Op: op, Err: late(ctx.Err())}
	}
}

// complete checks a plan and gives each pair an id.
func complete(plans []KeyPlan) ([]KeyPlan, error) {
	const op = "generate keys"
	out := make([]KeyPlan, 0, len(plans))
	labels, ids := map[string]bool{}, map[string]bool{}
	for _, p := range plans {
		if len(p.ID) == 0 {
			p.ID = make([]byte, 16)
			if _, err := rand.Read(p.ID); err != nil {
				return nil, &Error{Op: op, Key: p.Label, Err: err}
			}
		}
		if _, _, err := Template(p.Purpose, p.Label, p.ID, p.Algorithm); err != nil {
			return nil, err
		}
		if labels[p.Label] || ids[string(p.ID)] {
			return nil, &Error{Op: op, Key: p.Label, Err: fmt.Errorf("%w: the plan has it twice (id %s)", ErrKeyExists, hex.EncodeToString(p.ID))}
		}
		labels[p.Label], ids[string(p.ID)] = true, true
		out = append(out, p)
	}
	return out, nil
}

// look finds the token by a module of our own, closed again, because crypto11
// looks at neither the flags nor for two tokens of one name.
func look(ctx context.Context, c Config) (Slot, error) {
	m, err := Load(c.Module)
	if err != nil {
		return Slot{}, err
	}
	slot, err := m.Find(ctx, c.Serial, c.Label)
	if err == nil {
		err = pinUsable(slot)
	}
	if cerr := m.Close(); err == nil {
		err = cerr
	}
	return slot, err
}

func generateAll(ctx context.Context, path string, slot Slot, pin PIN, plans []KeyPlan) (out []Generated, err error) {
	number := int(slot.ID)
	config := &crypto11.Config{Path: path, SlotNumber: &number, Pin: pin.reveal(), MaxSessions: 2}
	if slot.Serial != "" {
		config.SlotNumber, config.TokenSerial = nil, slot.Serial
	}
	p, err := crypto11.Configure(config)
	if err != nil {
		if ClassOf(err) == ClassPIN {
			return nil, sentinel("log in", ErrPIN, err)
		}
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	for _, plan := range plans {
		there, err := p.FindKeyPairs(nil, []byte(plan.Label))
		if err != nil {
			return nil, fault("look for key", plan.Label, err)
		}
		if len(there) > 0 {
			return nil, &Error{Op: "generate keys", Key: plan.Label, Err: ErrKeyExists}
		}
	}
	for _, plan := range plans {
		if err := ctx.Err(); err != nil {
			return out, late(err)
		}
		g, err := generate(p, plan)
		if err != nil {
			return out, fault("generate key", plan.Label, err)
		}
		out = append(out, g)
	}
	return out, nil
}

// generate asks for the whole template first, and for less of the second tier
// where the token does not know an attribute; without what is required there is
// no key.
func generate(p *crypto11.Context, plan KeyPlan) (g Generated, err error) {
	g = Generated{KeyPlan: plan, Tier: IfSupported}
	for _, without := range optional() {
		if len(without) > 0 {
			g.Tier = Required
		}
		g.Public, err = generateWithout(p, plan, without)
		switch code, _ := CodeOf(err); uint(code) {
		case pkcs11.CKR_ATTRIBUTE_TYPE_INVALID, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID, pkcs11.CKR_TEMPLATE_INCONSISTENT:
		default:
			return g, err
		}
	}
	return g, err
}

func generateWithout(p *crypto11.Context, plan KeyPlan, without []uint) (crypto.PublicKey, error) {
	pub, private, err := template(plan.Purpose, plan.Label, plan.ID, plan.Algorithm, without)
	if err != nil {
		return nil, err
	}
	set := func(attributes []*pkcs11.Attribute) crypto11.AttributeSet {
		s := crypto11.NewAttributeSet()
		for _, a := range attributes {
			s[a.Type] = a
		}
		return s
	}
	var key crypto.Signer
	switch {
	case plan.Algorithm.IsRSA():
		key, err = p.GenerateRSAKeyPairWithAttributes(set(pub), set(private), plan.Algorithm.Bits())
	case plan.Algorithm == P384:
		key, err = p.GenerateECDSAKeyPairWithAttributes(set(pub), set(private), elliptic.P384())
	default:
		key, err = p.GenerateECDSAKeyPairWithAttributes(set(pub), set(private), elliptic.P256())
	}
	if err != nil {
		return nil, err
	}
	return key.Public(), nil
}
