package hsm_test

import (
	"crypto"
	"crypto/rand"
	"errors"
	"slices"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/test/softhsm"
)

func TestProofsHoldForEveryPurpose(t *testing.T) {
	tok := softhsm.New(t)
	plans := map[string]hsm.KeyPlan{
		"ca":     {Purpose: hsm.CA, Algorithm: hsm.P256},
		"ca-rsa": {Purpose: hsm.CA, Algorithm: hsm.RSA2048},
		"sign":   {Purpose: hsm.RASign, Algorithm: hsm.RSA2048},
		"dec":    {Purpose: hsm.RADecrypt, Algorithm: hsm.RSA2048},
		"ra":     {Purpose: hsm.RA, Algorithm: hsm.RSA2048},
		"tls":    {Purpose: hsm.TLS, Algorithm: hsm.P256},
		"audit":  {Purpose: hsm.Audit, Algorithm: hsm.P256},
	}
	var all []hsm.KeyPlan
	for label, p := range plans {
		p.Label = label
		all = append(all, p)
	}
	generate(t, config(tok), all...)
	token := open(t, config(tok))
	for label, p := range plans {
		t.Run(label, func(t *testing.T) {
			proofs, err := token.Prove(t.Context(), key(t, token, p.Purpose, label))
			if err != nil {
				t.Errorf("Prove: %v", err)
			}
			if len(proofs) < 7 {
				t.Errorf("%d proofs, want seven or more: %+v", len(proofs), proofs)
			}
			for _, p := range proofs {
				if !p.Holds || p.Name == "" || p.Tried == "" {
					t.Errorf("%+v", p)
				}
			}
		})
	}
	objects, err := token.Objects(t.Context())
	if err != nil || len(objects) != 2*len(plans) {
		t.Errorf("%d objects (%v), want the pairs alone: the proofs leave nothing behind", len(objects), err)
	}
}

// A key that was found in order and is not any more is what the proofs are for.
func TestProofsFailWhereTheTokenAllows(t *testing.T) {
	tok, shim := softhsm.New(t), softhsm.NewShim(t)
	generate(t, config(tok), hsm.KeyPlan{Purpose: hsm.RADecrypt, Label: "dec", Algorithm: hsm.RSA2048})
	c := config(tok)
	c.Module = shim.Module
	token := open(t, c)
	k := key(t, token, hsm.RADecrypt, "dec")
	for name, effect := range map[string]string{
		"the token does it":             "rv 0",
		"the token fails another way":   "rv 0x5",
		"the session, not the key, did": "rv 0x101",
	} {
		t.Run(name, func(t *testing.T) {
			shim.Spoil(t, "SignInit", effect, 2)
			_, err := token.Prove(t.Context(), k)
			if !errors.Is(err, hsm.ErrProof) {
				t.Errorf("Prove: %v, want ErrProof", err)
			}
		})
	}
}

func TestGenerateRefuses(t *testing.T) {
	tok := softhsm.New(t)
	generate(t, config(tok), hsm.KeyPlan{Purpose: hsm.CA, Label: "taken", Algorithm: hsm.P256})
	ca := func(label string) hsm.KeyPlan {
		return hsm.KeyPlan{Purpose: hsm.CA, Label: label, Algorithm: hsm.P256}
	}
	for name, tt := range map[string]struct {
		plans []hsm.KeyPlan
		want  error
	}{
		"a label that is taken":        {[]hsm.KeyPlan{ca("free"), ca("taken")}, hsm.ErrKeyExists},
		"a label twice":                {[]hsm.KeyPlan{ca("x"), ca("x")}, hsm.ErrKeyExists},
		"an EC key for decryption":     {[]hsm.KeyPlan{ca("x"), {Purpose: hsm.RADecrypt, Label: "y", Algorithm: hsm.P256}}, hsm.ErrAlgorithm},
		"an algorithm that is unknown": {[]hsm.KeyPlan{{Purpose: hsm.CA, Label: "y", Algorithm: "RSA-1024"}}, hsm.ErrAlgorithm},
		"a purpose that is unknown":    {[]hsm.KeyPlan{{Purpose: "any", Label: "y", Algorithm: hsm.P256}}, hsm.ErrAlgorithm},
	} {
		t.Run(name, func(t *testing.T) {
			if out, err := hsm.Generate(t.Context(), config(tok), tt.plans); !errors.Is(err, tt.want) || len(out) > 0 {
				t.Errorf("Generate: %v, %v; want %v and nothing made", out, err, tt.want)
			}
		})
	}
	objects, err := open(t, config(tok)).Objects(t.Context())
	if err != nil || len(objects) != 2 {
		t.Errorf("objects %+v, %v; want the one pair", objects, err)
	}
}

func TestInitializeAnEmptySlot(t *testing.T) {
	store := softhsm.Empty(t)
	so, user := hsm.NewPIN([]byte("so-secret")), hsm.NewPIN([]byte("user-secret"))
	label := "fresh-" + rand.Text()[:8] // what is initialized stays until the process ends
	slot := initialize(t, store.Module, label, so, user)
	c := hsm.Config{Module: store.Module, Serial: slot.Serial, Label: label, PIN: hsm.PINFrom(user)}
	generate(t, c, hsm.KeyPlan{Purpose: hsm.Audit, Label: "audit", Algorithm: hsm.P256})
	signAndVerify(t, key(t, open(t, c), hsm.Audit, "audit"), crypto.SHA256)
}

// initialize makes a token, trying also what must be refused.
func initialize(t *testing.T, module, label string, so, user hsm.PIN) hsm.Slot {
	t.Helper()
	m, err := hsm.Load(module)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}()
	slots, err := m.Slots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(slots, func(s hsm.Slot) bool { return !s.Initialized })
	if i < 0 {
		t.Fatalf("no empty slot: %+v", slots)
	}
	slot, err := m.InitToken(t.Context(), slots[i], label, so)
	if err != nil {
		t.Fatal(err)
	}
	if !slot.Initialized || slot.Serial == "" || slot.Label != label || slot.UserPINSet {
		t.Errorf("a fresh token: %+v", slot)
	}
	if _, err := m.InitToken(t.Context(), slot, "again", so); err == nil {
		t.Error("an initialized token was erased")
	}
	if _, err := m.Open(t.Context(), hsm.Config{Label: label, PIN: hsm.PINFrom(user)}); !errors.Is(err, hsm.ErrPIN) {
		t.Errorf("Open without a user PIN on the token: %v, want ErrPIN", err)
	}
	if err := m.InitPIN(t.Context(), slot, so, user); err != nil {
		t.Fatal(err)
	}
	if err := m.InitPIN(t.Context(), slot, so, user); err == nil {
		t.Error("a user PIN was replaced")
	}
	return slot
}

func TestTemplatesMatchTheAudit(t *testing.T) {
	for _, p := range []hsm.Purpose{hsm.CA, hsm.RASign, hsm.RADecrypt, hsm.RA, hsm.TLS, hsm.Audit} {
		for _, a := range p.Algorithms() {
			_, private, err := hsm.Template(p, "label", []byte{1}, a)
			if err != nil {
				t.Fatal(err)
			}
			has := func(typ uint, v byte) bool {
				return slices.ContainsFunc(private, func(x *pkcs11.Attribute) bool { return x.Type == typ && len(x.Value) == 1 && x.Value[0] == v })
			}
			if has(pkcs11.CKA_SIGN, 1) == has(pkcs11.CKA_DECRYPT, 1) != (p == hsm.RA) || !has(pkcs11.CKA_UNWRAP, 0) || !has(pkcs11.CKA_SIGN_RECOVER, 0) || !has(pkcs11.CKA_DERIVE, 0) || !has(pkcs11.CKA_SENSITIVE, 1) || !has(pkcs11.CKA_EXTRACTABLE, 0) || !has(pkcs11.CKA_MODIFIABLE, 0) {
				t.Errorf("%s %s: not exactly one use, or not locked down", p, a)
			}
			if len(hsm.Rules(p, a)) < len(private) {
				t.Errorf("%s %s: fewer rules than attributes", p, a)
			}
		}
	}
}
