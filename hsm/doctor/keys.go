package doctor

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/postern-pki/postern/hsm"
)

// Key is a kind of key that was made for the examination, in the session.
type Key struct {
	Purpose    hsm.Purpose   `json:"purpose"`
	Algorithm  hsm.Algorithm `json:"algorithm"`
	Made       bool          `json:"made"`
	Why        string        `json:"why,omitempty"` // it was not made
	Attributes []Attribute   `json:"attributes"`
	Micros     int64         `json:"median_us"` // of one signature or decryption, one after the other
}

// Attribute is one that was asked for and not simply taken.
type Attribute struct {
	Name   string `json:"name"`
	Result string `json:"result"`
}

// Decrypt is how the token opens key transport.
type Decrypt struct {
	Mode string `json:"mode"` // raw, pkcs1-mapped, oaep-only, none, or "" if it was not tried
}

// attributeNames are those of the templates.
var attributeNames = [...]struct {
	typ  uint
	name string
}{
	{pkcs11.CKA_PRIVATE, "CKA_PRIVATE"}, {pkcs11.CKA_SENSITIVE, "CKA_SENSITIVE"}, {pkcs11.CKA_EXTRACTABLE, "CKA_EXTRACTABLE"},
	{pkcs11.CKA_MODIFIABLE, "CKA_MODIFIABLE"}, {pkcs11.CKA_SIGN, "CKA_SIGN"}, {pkcs11.CKA_DECRYPT, "CKA_DECRYPT"},
	{pkcs11.CKA_SIGN_RECOVER, "CKA_SIGN_RECOVER"}, {pkcs11.CKA_UNWRAP, "CKA_UNWRAP"}, {pkcs11.CKA_DERIVE, "CKA_DERIVE"},
	{pkcs11.CKA_ALLOWED_MECHANISMS, "CKA_ALLOWED_MECHANISMS"}, {pkcs11.CKA_COPYABLE, "CKA_COPYABLE"}, {pkcs11.CKA_DESTROYABLE, "CKA_DESTROYABLE"},
	{pkcs11.CKA_ALWAYS_SENSITIVE, "CKA_ALWAYS_SENSITIVE"}, {pkcs11.CKA_NEVER_EXTRACTABLE, "CKA_NEVER_EXTRACTABLE"}, {pkcs11.CKA_LOCAL, "CKA_LOCAL"},
}

// keys makes one key of each kind that an appliance may want, and uses it.
func (e *examination) keys() error {
	if !e.LoggedIn {
		return nil
	}
	for _, k := range []struct {
		purpose hsm.Purpose
		alg     hsm.Algorithm
	}{{hsm.Audit, hsm.P256}, {hsm.CA, hsm.P384}, {hsm.RASign, hsm.RSA2048}, {hsm.CA, hsm.RSA3072}, {hsm.RADecrypt, hsm.RSA2048}} {
		if err := e.key(k.purpose, k.alg); err != nil {
			return fmt.Errorf("%s %s: %w", k.purpose, k.alg, err)
		}
	}
	return nil
}

func (e *examination) key(purpose hsm.Purpose, alg hsm.Algorithm) error {
	out := Key{Purpose: purpose, Algorithm: alg, Attributes: []Attribute{}}
	pub, private, err := e.make(&out, purpose, alg)
	if code, ok := refused(err); ok {
		out.Why = code.String()
		e.Keys = append(e.Keys, out)
		return nil
	}
	if err != nil {
		return err
	}
	out.Made = true
	defer func() { _, _ = e.p.DestroyObject(e.h, private), e.p.DestroyObject(e.h, pub) }() // else with the session
	if err := e.separation(&out, private); err != nil {
		return err
	}
	var median time.Duration
	if purpose == hsm.RADecrypt {
		median, err = e.decrypts(pub, private)
	} else {
		median, err = e.signs(alg, private)
	}
	if code, ok := refused(err); ok {
		out.Why, err = "made, but not used: "+code.String(), nil
	}
	out.Micros = median.Microseconds()
	e.Keys = append(e.Keys, out)
	return err
}

// make generates a key of the session by the template of its purpose, leaving out
// what the token refuses of the second tier, and reads the private half back.
func (e *examination) make(out *Key, purpose hsm.Purpose, alg hsm.Algorithm) (pub, private pkcs11.ObjectHandle, err error) {
	id := make([]byte, 8)
	if _, err := rand.Read(id); err != nil {
		return 0, 0, err
	}
	pubT, privT, err := hsm.Template(purpose, "postern-doctor", id, alg)
	if err != nil {
		return 0, 0, err
	}
	pubT, privT = ofSession(pubT), ofSession(privT)
	gen := uint(pkcs11.CKM_EC_KEY_PAIR_GEN)
	if alg.IsRSA() {
		gen = pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN
	}
	try := func(t []*pkcs11.Attribute) (err error) {
		pub, private, err = e.p.GenerateKeyPair(e.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(gen, nil)}, pubT, t)
		return err
	}
	err = try(privT)
	for _, without := range []uint{pkcs11.CKA_DESTROYABLE, pkcs11.CKA_COPYABLE, pkcs11.CKA_ALLOWED_MECHANISMS} {
		code, _ := hsm.CodeOf(err)
		if c := uint(code); c != pkcs11.CKR_ATTRIBUTE_TYPE_INVALID && c != pkcs11.CKR_ATTRIBUTE_VALUE_INVALID && c != pkcs11.CKR_TEMPLATE_INCONSISTENT {
			break
		}
		privT = slices.DeleteFunc(privT, func(a *pkcs11.Attribute) bool { return a.Type == without })
		out.Attributes = append(out.Attributes, Attribute{nameOf(without), "left out: the template was refused with " + code.String()})
		err = try(privT)
	}
	if err != nil {
		return 0, 0, err
	}
	return pub, private, e.readBack(out, private, privT)
}

// ofSession makes a template one of an object that goes with the session.
func ofSession(t []*pkcs11.Attribute) []*pkcs11.Attribute {
	t = slices.DeleteFunc(t, func(a *pkcs11.Attribute) bool { return a.Type == pkcs11.CKA_TOKEN })
	return append(t, pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false))
}

func nameOf(typ uint) string {
	for _, a := range attributeNames {
		if a.typ == typ {
			return a.name
		}
	}
	return fmt.Sprintf("0x%x", typ)
}

// readBack reports every attribute that is not what was asked for.
func (e *examination) readBack(out *Key, o pkcs11.ObjectHandle, asked []*pkcs11.Attribute) error {
	asked = append(slices.Clone(asked), pkcs11.NewAttribute(pkcs11.CKA_ALWAYS_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_NEVER_EXTRACTABLE, true), pkcs11.NewAttribute(pkcs11.CKA_LOCAL, true))
	for _, a := range asked {
		name := nameOf(a.Type)
		if name[0] == '0' {
			continue // class, label and the like
		}
		got, err := e.p.GetAttributeValue(e.h, o, []*pkcs11.Attribute{pkcs11.NewAttribute(a.Type, nil)})
		switch code, _ := hsm.CodeOf(err); {
		case err != nil && code.Class() == hsm.ClassSession:
			return err
		case err != nil:
			out.Attributes = append(out.Attributes, Attribute{name, "cannot be read: " + code.String()})
		case len(got) != 1 || !bytes.Equal(got[0].Value, a.Value):
			out.Attributes = append(out.Attributes, Attribute{name, fmt.Sprintf("asked for %x, is %x", a.Value, value(got))})
		}
	}
	return nil
}

func value(got []*pkcs11.Attribute) []byte {
	if len(got) != 1 {
		return nil
	}
	return got[0].Value
}

// separation tries to make the key do more than it was made for.
func (e *examination) separation(out *Key, o pkcs11.ObjectHandle) error {
	change := uint(pkcs11.CKA_DECRYPT)
	if out.Purpose == hsm.RADecrypt {
		change = pkcs11.CKA_SIGN
	}
	if err := e.p.SetAttributeValue(e.h, o, []*pkcs11.Attribute{pkcs11.NewAttribute(change, true)}); err == nil {
		out.Attributes = append(out.Attributes, Attribute{nameOf(change), "could be set to true afterwards: the key's purpose is not fixed"})
	} else if _, ok := refused(err); !ok {
		return err
	}
	part := uint(pkcs11.CKA_VALUE)
	if out.Algorithm.IsRSA() {
		part = pkcs11.CKA_PRIVATE_EXPONENT
	}
	got, err := e.p.GetAttributeValue(e.h, o, []*pkcs11.Attribute{pkcs11.NewAttribute(part, nil)})
	if v := value(got); err == nil && len(v) > 0 {
		clear(v)
		out.Attributes = append(out.Attributes, Attribute{"the private value", "COULD BE READ"})
	}
	return nil
}

func (e *examination) signs(alg hsm.Algorithm, o pkcs11.ObjectHandle) (time.Duration, error) {
	mech, input := uint(pkcs11.CKM_ECDSA), make([]byte, alg.Bits()/8)
	if alg.IsRSA() {
		mech, input = pkcs11.CKM_RSA_PKCS, make([]byte, 51) // a DigestInfo of SHA-256 is as long
	}
	return e.timed(func() error {
		if err := e.p.SignInit(e.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(mech, nil)}, o); err != nil {
			return err
		}
		sig, err := e.p.Sign(e.h, input)
		if err == nil && !alg.IsRSA() && len(sig) != 2*alg.Bits()/8 {
			return fmt.Errorf("a signature of %d bytes, not two numbers of %d", len(sig), alg.Bits()/8)
		}
		return err
	})
}

// decrypts finds out how, and how fast.
func (e *examination) decrypts(pub, private pkcs11.ObjectHandle) (time.Duration, error) {
	n, err := e.p.GetAttributeValue(e.h, pub, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_MODULUS, nil)})
	if err != nil {
		return 0, err
	}
	modulus := new(big.Int).SetBytes(value(n))
	small := new(big.Int).SetBytes(bytes.Repeat([]byte{0xa5}, 32)) // far below the modulus: it begins with zeros
	ct := new(big.Int).Exp(small, big.NewInt(65537), modulus).FillBytes(make([]byte, 256))
	once := func(mech uint) ([]byte, error) {
		if err := e.p.DecryptInit(e.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(mech, nil)}, private); err != nil {
			return nil, err
		}
		return e.p.Decrypt(e.h, ct)
	}
	got, err := once(pkcs11.CKM_RSA_X_509)
	if err == nil {
		if new(big.Int).SetBytes(got).Cmp(small) != 0 {
			e.quirk("raw RSA decryption gives another number than was encrypted")
			return 0, nil
		}
		e.Decrypt.Mode = "raw"
		if len(got) < 256 {
			e.quirk("raw RSA decryption strips leading zeros (Postern puts them back)")
		}
		return e.timed(func() error { _, err := once(pkcs11.CKM_RSA_X_509); return err })
	}
	code, ok := refused(err)
	if !ok {
		return 0, err
	}
	e.quirk("no raw RSA decryption: %s", code)
	e.Decrypt.Mode = "none"
	switch {
	case e.has("CKM_RSA_PKCS", "decrypt"):
		e.Decrypt.Mode = "pkcs1-mapped"
	case e.has("CKM_RSA_PKCS_OAEP", "decrypt"):
		e.Decrypt.Mode = "oaep-only"
	}
	return 0, err
}
