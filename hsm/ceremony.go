package hsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"
)

// What follows is what only a ceremony asks of a token: to make keys, and to
// show what they refuse.

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
	config, err := look(ctx, c)
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
		out, err := generateAll(ctx, config, pin, plans)
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

func generateAll(ctx context.Context, config *crypto11.Config, pin PIN, plans []KeyPlan) (out []Generated, err error) {
	config.Pin = pin.reveal()
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

// A Proof is one thing that was tried with a key.
type Proof struct {
	Name  string // "private value cannot be read", ...
	Tried string // the call
	Holds bool
	Code  CKR    // the token's refusal; zero where it did what was asked
	Say   string // what happened, in words
}

// Prove tries what the key must not do, by asking the token for it, and what it
// must. It returns all proofs, and ErrProof if one of them does not hold or
// could not be tried: what was not refused is then possible for whoever has the PIN.
//
// Each attempt would change or reveal what it tries if the token let it: Prove
// belongs to a ceremony, before a key is put to use.
func (t *Token) Prove(ctx context.Context, k *Key) ([]Proof, error) {
	if k.token != t {
		return nil, &Error{Op: "prove", Key: k.spec.Label, Err: errors.New("the key is on another token")}
	}
	proofs, err := call(ctx, t, "prove", func(h pkcs11.SessionHandle) ([]Proof, error) {
		if _, err := k.object(h); err != nil {
			return nil, err
		}
		return t.refusals(k)
	})
	if err != nil {
		return nil, fault("prove", k.spec.Label, err)
	}
	proofs = append(proofs, k.works(ctx))
	for _, p := range proofs {
		if !p.Holds {
			err = errors.Join(err, &Error{Op: "prove", Key: k.spec.Label, Code: p.Code, Err: fmt.Errorf("%w: %s: %s", ErrProof, p.Name, p.Say)})
		}
	}
	return proofs, err
}

// Proofs lists what [Token.Prove] tries with a key of this purpose and algorithm,
// in its order, without results: for a verifier of what was recorded of it.
func Proofs(p Purpose, alg Algorithm) []Proof {
	var out []Proof
	for _, a := range attempts(p, alg) {
		out = append(out, Proof{Name: a.name, Tried: a.call})
	}
	return append(out, worksProof(p))
}

// attempts is everything that the token has to refuse.
func attempts(p Purpose, alg Algorithm) []attempted {
	part, called := uint(pkcs11.CKA_VALUE), "CKA_VALUE"
	if alg.IsRSA() {
		part, called = pkcs11.CKA_PRIVATE_EXPONENT, "CKA_PRIVATE_EXPONENT"
	}
	mech := func(m uint) []*pkcs11.Mechanism { return []*pkcs11.Mechanism{pkcs11.NewMechanism(m, nil)} }
	set := func(typ uint, v bool) try {
		return func(t *Token, h pkcs11.SessionHandle, o pkcs11.ObjectHandle) error {
			return t.module.p11.SetAttributeValue(h, o, []*pkcs11.Attribute{pkcs11.NewAttribute(typ, v)})
		}
	}
	signInit := func(m uint) try {
		return func(t *Token, h pkcs11.SessionHandle, o pkcs11.ObjectHandle) error {
			return t.module.p11.SignInit(h, mech(m), o)
		}
	}
	readOnly := []uint{pkcs11.CKR_ATTRIBUTE_READ_ONLY, pkcs11.CKR_ACTION_PROHIBITED, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID}
	forbidden := []uint{pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, pkcs11.CKR_KEY_TYPE_INCONSISTENT, pkcs11.CKR_MECHANISM_INVALID}
	all := []attempted{
		{"the private value cannot be read", "C_GetAttributeValue " + called, []uint{pkcs11.CKR_ATTRIBUTE_SENSITIVE}, func(t *Token, h pkcs11.SessionHandle, o pkcs11.ObjectHandle) error {
			got, err := t.module.p11.GetAttributeValue(h, o, []*pkcs11.Attribute{pkcs11.NewAttribute(part, nil)})
			for _, a := range got {
				clear(a.Value)
			}
			return err
		}},
		{"the private key cannot be wrapped", "C_WrapKey by a fresh AES key", []uint{pkcs11.CKR_KEY_UNEXTRACTABLE, pkcs11.CKR_KEY_NOT_WRAPPABLE}, (*Token).wrap},
		{"it cannot be made extractable", "C_SetAttributeValue CKA_EXTRACTABLE=true", readOnly, set(pkcs11.CKA_EXTRACTABLE, true)},
		{"it cannot be made readable", "C_SetAttributeValue CKA_SENSITIVE=false", readOnly, set(pkcs11.CKA_SENSITIVE, false)},
	}
	if p == RADecrypt {
		return append(all,
			attempted{"it cannot sign", "C_SignInit CKM_RSA_PKCS", forbidden, signInit(pkcs11.CKM_RSA_PKCS)},
			attempted{"it cannot sign by its own mechanism", "C_SignInit CKM_RSA_X_509", forbidden, signInit(pkcs11.CKM_RSA_X_509)},
			attempted{"it cannot be made to sign", "C_SetAttributeValue CKA_SIGN=true", readOnly, set(pkcs11.CKA_SIGN, true)})
	}
	if p == RA {
		return append(all,
			attempted{"it cannot be made to unwrap", "C_SetAttributeValue CKA_UNWRAP=true", readOnly, set(pkcs11.CKA_UNWRAP, true)},
			attempted{"it cannot be made to sign with recovery", "C_SetAttributeValue CKA_SIGN_RECOVER=true", readOnly, set(pkcs11.CKA_SIGN_RECOVER, true)},
			attempted{"it cannot be made to derive", "C_SetAttributeValue CKA_DERIVE=true", readOnly, set(pkcs11.CKA_DERIVE, true)})
	}
	return append(all,
		// For an EC key too: it is the only mechanism that decrypts at all.
		attempted{"it cannot decrypt", "C_DecryptInit CKM_RSA_PKCS", forbidden, func(t *Token, h pkcs11.SessionHandle, o pkcs11.ObjectHandle) error {
			return t.module.p11.DecryptInit(h, mech(pkcs11.CKM_RSA_PKCS), o)
		}},
		attempted{"it cannot be made to decrypt", "C_SetAttributeValue CKA_DECRYPT=true", readOnly, set(pkcs11.CKA_DECRYPT, true)})
}

// refusals makes all attempts, each in a session of its own: one that goes through
// leaves an operation open. The sessions can write, because in one that cannot, a
// change would be refused for that reason.
func (t *Token) refusals(k *Key) ([]Proof, error) {
	object := k.handle.Load().object
	var out []Proof
	for _, a := range attempts(k.spec.Purpose, k.alg) {
		h, err := t.module.p11.OpenSession(t.slot.Load().ID, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			return nil, err
		}
		out = append(out, a.judge(a.try(t, h, object)))
		if err := t.module.p11.CloseSession(h); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// A try asks the token for what it has to refuse.
type try func(t *Token, h pkcs11.SessionHandle, o pkcs11.ObjectHandle) error

// wrap tries to wrap the key under an AES key that lives as long as the session.
func (t *Token) wrap(h pkcs11.SessionHandle, object pkcs11.ObjectHandle) error {
	p11 := t.module.p11
	key, err := p11.GenerateKey(h, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32),
		pkcs11.NewAttribute(pkcs11.CKA_WRAP, true),
	})
	if err != nil {
		return fmt.Errorf("%w: %w", errNoWrapper, err)
	}
	err = error(nil)
	for _, m := range []*pkcs11.Mechanism{
		pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_WRAP_PAD, nil), pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_WRAP, nil),
		pkcs11.NewMechanism(pkcs11.CKM_AES_CBC_PAD, make([]byte, 16)),
	} {
		var wrapped []byte
		wrapped, err = p11.WrapKey(h, []*pkcs11.Mechanism{m}, key, object)
		clear(wrapped)
		if code, _ := CodeOf(err); uint(code) != pkcs11.CKR_MECHANISM_INVALID {
			return err
		}
	}
	return err
}

// worksProof is the positive proof: the private key belongs to the public one.
func worksProof(p Purpose) Proof {
	switch p {
	case RA:
		return Proof{Name: "it signs, and opens what the public key closed", Tried: "C_Sign, C_Decrypt"}
	case RADecrypt:
		return Proof{Name: "it opens what the public key closed", Tried: "C_Decrypt"}
	}
	return Proof{Name: "it signs, and the public key verifies", Tried: "C_Sign"}
}

func (k *Key) works(ctx context.Context) Proof {
	p := worksProof(k.spec.Purpose)
	if k.spec.Purpose.opens() {
		if p = k.decrypts(ctx, p); !p.Holds || !k.spec.Purpose.signs() {
			return p
		}
	}
	text := append([]byte("postern: proof of possession of a fresh key, for nothing else\x00"), random32()...)
	digest := sha256.Sum256(text)
	_, err := k.With(ctx).Sign(nil, digest[:], crypto.SHA256) // Sign verifies
	return p.did(err)
}

func (k *Key) decrypts(ctx context.Context, p Proof) Proof {
	pub, ok := k.pub.(*rsa.PublicKey)
	if !ok {
		return p.did(ErrAlgorithm)
	}
	secret := random32()
	//lint:ignore SA1019 what the devices do is what has to be opened
	ct, err := rsa.EncryptPKCS1v15(rand.Reader, pub, secret) //nolint:staticcheck // what the devices do is what has to be opened
	if err != nil {
		return p.did(err)
	}
	got, err := k.With(ctx).Decrypt(nil, ct, &SessionKeyOptions{SessionKeyLen: len(secret)})
	if err == nil && !bytes.Equal(got, secret) {
		err = errors.New("another value came out")
	}
	return p.did(err)
}

func (p Proof) did(err error) Proof {
	p.Code, _ = CodeOf(err)
	p.Holds, p.Say = err == nil, "done"
	if err != nil {
		p.Say = err.Error()
	}
	return p
}
