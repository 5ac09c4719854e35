package hsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"encoding/hex"
	"fmt"
	"math/big"
	"slices"

	"github.com/miekg/pkcs11"
)

// find finds the private key and its public half, and reads both.
func (t *Token) find(h pkcs11.SessionHandle, spec KeySpec) (pair, error) {
	t.stats.find.Add(1)
	private, err := t.one(h, pkcs11.CKO_PRIVATE_KEY, spec.Label, spec.ID)
	if err != nil {
		return pair{}, err
	}
	id, err := t.value(h, private, pkcs11.CKA_ID)
	if err != nil {
		return pair{}, err
	}
	public, err := t.one(h, pkcs11.CKO_PUBLIC_KEY, spec.Label, id)
	if err != nil {
		return pair{}, err
	}
	p := pair{private: private, id: id}
	if p.pub, p.alg, err = t.readPublic(h, public); err != nil {
		return pair{}, err
	}
	if p.alg.IsRSA() {
		if err := t.sameModulus(h, private, p.pub); err != nil {
			return pair{}, err
		}
	}
	own, err := t.audit(h, private, privateRules(spec.Purpose, p.alg.IsRSA()))
	if err != nil {
		return pair{}, err
	}
	pub, err := t.audit(h, public, publicRules(spec.Purpose, p.alg.IsRSA()))
	if err != nil {
		return pair{}, err
	}
	fit := Finding{Attribute: "algorithm", Tier: Required, Want: fmt.Sprint(spec.Purpose.Algorithms()), Got: string(p.alg), Supported: true}
	fit.OK = slices.Contains(spec.Purpose.Algorithms(), p.alg)
	p.findings = slices.Concat([]Finding{fit}, own, pub)
	return p, nil
}

// sameModulus makes sure that a public key belongs to the private one. An EC private key
// does not tell its point; there the check of each signature is the proof.
func (t *Token) sameModulus(h pkcs11.SessionHandle, private pkcs11.ObjectHandle, pub crypto.PublicKey) error {
	n, err := t.value(h, private, pkcs11.CKA_MODULUS)
	if err != nil {
		return err
	}
	if r, ok := pub.(*rsa.PublicKey); !ok || r.N.Cmp(new(big.Int).SetBytes(n)) != 0 {
		return fmt.Errorf("%w: the public key under this label belongs to another private key", ErrNoKey)
	}
	return nil
}

// one finds exactly one object; an empty id is not compared.
func (t *Token) one(h pkcs11.SessionHandle, class uint, label string, id []byte) (pkcs11.ObjectHandle, error) {
	template := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, class),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
	}
	if len(id) > 0 {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ID, id))
	}
	all, err := t.search(h, template, 2)
	if err != nil {
		return 0, err
	}
	if len(all) != 1 {
		kind := "private"
		if class == pkcs11.CKO_PUBLIC_KEY {
			kind = "public"
		}
		how := "no"
		if len(all) > 1 {
			how = "more than one"
		}
		return 0, fmt.Errorf("%w: %s %s key has this name", ErrNoKey, how, kind)
	}
	return all[0], nil
}

// search returns up to limit objects. To a session whose login is gone private
// objects are not there at all, which is no answer: that is CKR_USER_NOT_LOGGED_IN.
func (t *Token) search(h pkcs11.SessionHandle, template []*pkcs11.Attribute, limit int) (all []pkcs11.ObjectHandle, err error) {
	p11 := t.module.p11
	if err := p11.FindObjectsInit(h, template); err != nil {
		return nil, err
	}
	for len(all) < limit {
		some, _, err := p11.FindObjects(h, min(limit-len(all), 64))
		if err != nil {
			return nil, err
		}
		if len(some) == 0 {
			break
		}
		all = append(all, some...)
	}
	if err := p11.FindObjectsFinal(h); err != nil {
		return nil, err
	}
	info, err := p11.GetSessionInfo(h)
	if err != nil {
		return nil, err
	}
	if info.State != pkcs11.CKS_RO_USER_FUNCTIONS && info.State != pkcs11.CKS_RW_USER_FUNCTIONS {
		return nil, pkcs11.Error(pkcs11.CKR_USER_NOT_LOGGED_IN)
	}
	return all, nil
}

func (t *Token) value(h pkcs11.SessionHandle, o pkcs11.ObjectHandle, typ uint) ([]byte, error) {
	got, err := t.module.p11.GetAttributeValue(h, o, []*pkcs11.Attribute{pkcs11.NewAttribute(typ, nil)})
	if err != nil {
		return nil, err
	}
	if len(got) != 1 {
		return nil, fmt.Errorf("attribute 0x%x has no value", typ)
	}
	return got[0].Value, nil
}

func (t *Token) remember(k *Key) {
	t.keysMu.Lock()
	defer t.keysMu.Unlock()
	t.keys[string(k.spec.Purpose)+"\x00"+k.spec.Label+"\x00"+string(k.spec.ID)] = k
}

func (t *Token) known() []*Key {
	t.keysMu.Lock()
	defer t.keysMu.Unlock()
	var all []*Key
	for _, k := range t.keys {
		all = append(all, k)
	}
	return all
}

// opens has the token decrypt a number that was encrypted here.
func (k *Key) opens(h pkcs11.SessionHandle) error {
	pub, ok := k.pub.(*rsa.PublicKey)
	if !ok {
		return ErrAlgorithm
	}
	object, err := k.object(h)
	if err != nil {
		return err
	}
	m := new(big.Int).SetBytes(random32())
	c := new(big.Int).Exp(m, big.NewInt(int64(pub.E)), pub.N).FillBytes(make([]byte, pub.Size()))
	p11 := k.token.module.p11
	if err := p11.DecryptInit(h, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_X_509, nil)}, object); err != nil {
		return err
	}
	got, err := p11.Decrypt(h, c)
	if err == nil && new(big.Int).SetBytes(got).Cmp(m) != 0 {
		err = pkcs11.Error(pkcs11.CKR_FUNCTION_FAILED) // it cannot be relied on, whatever it says
	}
	return err
}

// An Object is something that is stored on a token.
type Object struct {
	Class string // "private key", "public key", "secret key", "certificate", "data", or a number
	Label string
	ID    []byte
}

// maxObjects bounds a listing; a token of ours holds some ten objects.
const maxObjects = 10_000

// Objects lists everything on the token that its user can see.
func (t *Token) Objects(ctx context.Context) ([]Object, error) {
	return call(ctx, t, "list objects", func(h pkcs11.SessionHandle) ([]Object, error) {
		handles, err := t.search(h, nil, maxObjects)
		if err != nil {
			return nil, err
		}
		var out []Object
		for _, o := range handles {
			class, err := t.value(h, o, pkcs11.CKA_CLASS)
			if err != nil {
				return nil, err
			}
			label, err := t.optional(h, o, pkcs11.CKA_LABEL)
			if err != nil {
				return nil, err
			}
			id, err := t.optional(h, o, pkcs11.CKA_ID)
			if err != nil {
				return nil, err
			}
			out = append(out, Object{Class: className(class), Label: string(label), ID: id})
		}
		return out, nil
	})
}

// optional reads an attribute that not every class of object has.
func (t *Token) optional(h pkcs11.SessionHandle, o pkcs11.ObjectHandle, typ uint) ([]byte, error) {
	v, err := t.value(h, o, typ)
	if code, ok := CodeOf(err); ok && code.Class() == ClassOther {
		return nil, nil
	}
	return v, err
}

func className(v []byte) string {
	for class, name := range map[uint]string{
		pkcs11.CKO_PRIVATE_KEY: "private key", pkcs11.CKO_PUBLIC_KEY: "public key", pkcs11.CKO_SECRET_KEY: "secret key",
		pkcs11.CKO_CERTIFICATE: "certificate", pkcs11.CKO_DATA: "data",
	} {
		if string(v) == string(ulong(class)) {
			return name
		}
	}
	return "0x" + hex.EncodeToString(v)
}

// MarkLabel is the label of the data object that keeps the log's newest checkpoint.
const MarkLabel = "postern log mark"

// Bounds of the data objects that are kept on a token, in bytes and in number.
const (
	maxData    = 16 << 10
	maxLabel   = 64
	maxDataOld = 16 // with one label; a crash leaves one too many, and the next change clears up
)

// dataTemplate is what tells our data objects of a label from everybody's. Who
// has no PIN can store objects that are not private, under any name: those do not count.
func dataTemplate(label string) []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_DATA),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_APPLICATION, "postern"),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
	}
}

// ReadData returns the values of all data objects of that label that [Token.ReplaceData]
// left, in no order, of 1 byte to 16 KiB each: one, or two and more if a replacement was
// interrupted, and the caller says which of them counts. ErrNoData says that there is none.
func (t *Token) ReadData(ctx context.Context, label string) ([][]byte, error) {
	const op = "read data"
	if err := dataLabel(op, label); err != nil {
		return nil, err
	}
	out, err := call(ctx, t, op, func(h pkcs11.SessionHandle) ([][]byte, error) {
		t.data.Lock() // between the two halves of a replacement the old value is there for nobody
		defer t.data.Unlock()
		all, err := t.search(h, dataTemplate(label), maxDataOld+1)
		if err != nil {
			return nil, err
		}
		switch {
		case len(all) == 0:
			return nil, ErrNoData
		case len(all) > maxDataOld:
			return nil, fmt.Errorf("more than %d data objects have this label", maxDataOld)
		}
		var out [][]byte
		for _, o := range all {
			v, err := t.value(h, o, pkcs11.CKA_VALUE)
			if err != nil {
				return nil, err
			}
			if len(v) == 0 || len(v) > maxData {
				return nil, fmt.Errorf("a data object of %d bytes, not of 1 to %d", len(v), maxData)
			}
			out = append(out, v)
		}
		return out, nil
	})
	return out, fault(op, label, err)
}

// ReplaceData makes value, of 1 byte to 16 KiB, the one data object of that label: it
// creates a private object of the token, reads it back, and only then destroys
// the old ones. An error leaves the old value, the new one or both. Replacements of
// one process come one after the other.
func (t *Token) ReplaceData(ctx context.Context, label string, value []byte) error {
	const op = "replace data"
	if err := dataLabel(op, label); err != nil {
		return err
	}
	if len(value) == 0 || len(value) > maxData {
		return &Error{Op: op, Key: label, Err: fmt.Errorf("%w: %d bytes, not 1 to %d", ErrData, len(value), maxData)}
	}
	value = bytes.Clone(value)
	_, err := call(ctx, t, op, func(pkcs11.SessionHandle) (struct{}, error) {
		t.data.Lock()
		defer t.data.Unlock()
		// In a session of its own: those of the pool cannot write.
		h, err := t.module.p11.OpenSession(t.slot.Load().ID, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			return struct{}{}, err
		}
		defer func() { _ = t.module.p11.CloseSession(h) }() // it is given up either way
		return struct{}{}, t.replace(h, label, value)
	})
	return fault(op, label, err)
}

func (t *Token) replace(h pkcs11.SessionHandle, label string, value []byte) error {
	p11 := t.module.p11
	old, err := t.search(h, dataTemplate(label), maxObjects)
	if err != nil {
		return err
	}
	fresh, err := p11.CreateObject(h, append(dataTemplate(label), pkcs11.NewAttribute(pkcs11.CKA_VALUE, value)))
	if err != nil {
		return err
	}
	got, err := t.value(h, fresh, pkcs11.CKA_VALUE)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, value) {
		return fmt.Errorf("%w: the token stored another value; the old one is kept", ErrData)
	}
	for _, o := range old {
		if err := p11.DestroyObject(h, o); err != nil {
			return err
		}
	}
	return nil
}

func dataLabel(op, label string) error {
	if label == "" || len(label) > maxLabel {
		return &Error{Op: op, Key: label, Err: fmt.Errorf("%w: a label has 1 to %d bytes", ErrData, maxLabel)}
	}
	return nil
}

// EraseToken initializes a token anew under its label: everything on it is gone,
// its keys for ever, and it has no user PIN. slot says which one by its serial and
// label, and the officer's PIN is tried once, as in [Module.InitPIN].
func (m *Module) EraseToken(ctx context.Context, slot Slot, so PIN) error {
	const op = "erase token"
	there, err := m.Find(ctx, slot.Serial, slot.Label)
	if err != nil {
		return err
	}
	if there.SOCountLow || there.SOLocked {
		return &Error{Op: op, Err: ErrPINCount}
	}
	officer := so.reveal() // now, as in InitPIN
	_, err = bounded(ctx, m, op, func() (struct{}, error) {
		err := m.p11.InitToken(there.ID, officer, there.Label)
		if ClassOf(err) == ClassPIN {
			err = sentinel(op, ErrPIN, err)
		}
		return struct{}{}, err
	})
	return err
}
