package hsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"sync/atomic"

	"github.com/miekg/pkcs11"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// A KeySpec names a key on a token and says what it must be.
type KeySpec struct {
	Purpose Purpose
	Label   string
	ID      []byte // CKA_ID; compared too if given
}

// A Key is a private key that never leaves its token. Its Sign and Decrypt are
// those of [crypto.Signer] and [crypto.Decrypter], within the token's deadline;
// With binds them to a context too.
type Key struct {
	token    *Token
	spec     KeySpec
	pub      crypto.PublicKey // read when the key was found, so that Public cannot fail
	alg      Algorithm
	findings []Finding
	handle   atomic.Pointer[handle]
}

// A handle is what the token calls the key, during one login.
type handle struct {
	object pkcs11.ObjectHandle
	login  uint64
}

// Bound is a [Key] with the context of one operation or request.
type Bound struct {
	key *Key
	ctx context.Context
}

var (
	_ crypto.Signer    = (*Key)(nil)
	_ crypto.Decrypter = (*Key)(nil)
	_ crypto.Signer    = Bound{}
	_ crypto.Decrypter = Bound{}
)

// pair is a key pair as it was found.
type pair struct {
	private  pkcs11.ObjectHandle
	id       []byte
	pub      crypto.PublicKey
	alg      Algorithm
	findings []Finding
}

// Key finds the one key pair that spec names and checks its attributes. It gives
// ErrNoKey if there is none, or more than one, and an [*AttributeError] with
// every difference.
func (t *Token) Key(ctx context.Context, spec KeySpec) (*Key, error) {
	spec.ID = bytes.Clone(spec.ID)
	if spec.Label == "" || spec.Purpose.Algorithms() == nil {
		return nil, &Error{Op: "find key", Key: spec.Label, Err: fmt.Errorf("%w: a label and a known purpose are needed, the purpose is %q", ErrNoKey, spec.Purpose)}
	}
	type found struct {
		pair
		login uint64
	}
	f, err := call(ctx, t, "find key", func(h pkcs11.SessionHandle) (found, error) {
		login := t.logins.Load()
		p, err := t.find(h, spec)
		return found{p, login}, err
	})
	if err != nil {
		return nil, fault("find key", spec.Label, err)
	}
	if d := differences(f.findings); len(d) > 0 {
		return nil, &AttributeError{Key: spec.Label, Differences: d}
	}
	spec.ID = f.id // found again by it, also if somebody gives its label to another key
	k := &Key{token: t, spec: spec, pub: f.pub, alg: f.alg, findings: f.findings}
	k.handle.Store(&handle{f.private, f.login})
	return k, nil
}

// Public returns an *rsa.PublicKey or *ecdsa.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.pub }

// Purpose returns what the key is for.
func (k *Key) Purpose() Purpose { return k.spec.Purpose }

// Label returns the key's label on its token.
func (k *Key) Label() string { return k.spec.Label }

// Algorithm returns the kind and size of the key.
func (k *Key) Algorithm() Algorithm { return k.alg }

// Findings returns the attributes as they were read when the key was found, also
// those that the token does not support.
func (k *Key) Findings() []Finding { return slices.Clone(k.findings) }

// With returns the key with its operations bound to ctx.
func (k *Key) With(ctx context.Context) Bound { return Bound{k, ctx} }

// Sign is [Bound.Sign] without a context.
func (k *Key) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.With(context.Background()).Sign(rand, digest, opts)
}

// Decrypt is [Bound.Decrypt] without a context.
func (k *Key) Decrypt(rand io.Reader, ciphertext []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	return k.With(context.Background()).Decrypt(rand, ciphertext, opts)
}

// Public is [Key.Public].
func (b Bound) Public() crypto.PublicKey { return b.key.pub }

// Sign signs a digest: RSASSA-PKCS1-v1_5 (RFC 8017, section 8.2) or ECDSA in DER
// (RFC 3279, section 2.2.3), by the type of the key. It ignores rand, as the
// token has its own. Errors are ErrPurpose, ErrAlgorithm and ErrDigest before the
// token is asked, ErrOwnSignature after, and those of the token.
func (b Bound) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k := b.key
	fail := func(err error) ([]byte, error) { return nil, &Error{Op: "sign", Key: k.spec.Label, Err: err} }
	if k.spec.Purpose == RADecrypt {
		return fail(ErrPurpose)
	}
	if opts == nil {
		return fail(fmt.Errorf("%w: no hash is named", ErrAlgorithm))
	}
	if _, pss := opts.(*rsa.PSSOptions); pss {
		return fail(fmt.Errorf("%w: RSASSA-PSS", ErrAlgorithm))
	}
	hash := opts.HashFunc()
	prefix := digestInfo(hash)
	if prefix == nil || hash == crypto.SHA1 && k.spec.Purpose != RASign {
		return fail(fmt.Errorf("%w: %v", ErrAlgorithm, hash))
	}
	if len(digest) != hash.Size() {
		return fail(fmt.Errorf("%w: %d bytes for %v", ErrDigest, len(digest), hash))
	}
	input := bytes.Clone(digest)
	if k.alg.IsRSA() {
		input = append(prefix, digest...)
	} else if n := k.alg.Bits() / 8; len(input) > n {
		input = input[:n] // the leftmost bits (FIPS 186-5, section 6.4.1); tokens differ in doing so themselves
	}
	sig, err := k.rawSign(b.ctx, input)
	if err != nil {
		return nil, fault("sign", k.spec.Label, err)
	}
	if sig, err = k.verified(hash, digest, sig); err != nil {
		k.token.stats.ownSignature.Add(1)
		return fail(err)
	}
	return sig, nil
}

func (k *Key) rawSign(ctx context.Context, input []byte) ([]byte, error) {
	t, mech := k.token, mechanism(k.spec.Purpose, k.alg.IsRSA())
	return call(ctx, t, "sign", func(h pkcs11.SessionHandle) ([]byte, error) {
		object, err := k.object(h)
		if err != nil {
			return nil, err
		}
		if err := t.module.p11.SignInit(h, []*pkcs11.Mechanism{pkcs11.NewMechanism(mech, nil)}, object); err != nil {
			return nil, err
		}
		t.stats.sign.Add(1)
		return t.module.p11.Sign(h, input)
	})
}

// verified turns the token's signature into the form that leaves, and checks it:
// a fault in an RSA-CRT signature gives the key away (Boneh, DeMillo, Lipton).
func (k *Key) verified(hash crypto.Hash, digest, raw []byte) ([]byte, error) {
	switch pub := k.pub.(type) {
	case *rsa.PublicKey:
		if rsa.VerifyPKCS1v15(pub, hash, digest, raw) != nil {
			return nil, ErrOwnSignature
		}
		return raw, nil
	case *ecdsa.PublicKey:
		sig, err := ecdsaDER(raw)
		if err != nil || !ecdsa.VerifyASN1(pub, digest, sig) {
			return nil, ErrOwnSignature
		}
		return sig, nil
	default:
		return nil, ErrAlgorithm
	}
}

func ecdsaDER(raw []byte) ([]byte, error) {
	if len(raw) == 0 || len(raw)%2 != 0 {
		return nil, errors.New("not two numbers of one length")
	}
	r, s := new(big.Int).SetBytes(raw[:len(raw)/2]), new(big.Int).SetBytes(raw[len(raw)/2:])
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(r)
		b.AddASN1BigInt(s)
	})
	return b.Bytes()
}

// digestInfo is the DER before the digest in a DigestInfo (RFC 8017, section
// 9.2, note 1); nil for a hash that nothing here signs.
func digestInfo(h crypto.Hash) []byte {
	switch h {
	case crypto.SHA1:
		return []byte{0x30, 0x21, 0x30, 0x09, 0x06, 0x05, 0x2b, 0x0e, 0x03, 0x02, 0x1a, 0x05, 0x00, 0x04, 0x14}
	case crypto.SHA256:
		return []byte{0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20}
	case crypto.SHA384:
		return []byte{0x30, 0x41, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, 0x04, 0x30}
	case crypto.SHA512:
		return []byte{0x30, 0x51, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03, 0x05, 0x00, 0x04, 0x40}
	default:
		return nil
	}
}

// object returns the key's handle; after a new login the key is found again,
// with all its attributes, and must be the same one.
func (k *Key) object(h pkcs11.SessionHandle) (pkcs11.ObjectHandle, error) {
	login := k.token.logins.Load()
	if c := k.handle.Load(); c.login == login {
		return c.object, nil
	}
	p, err := k.token.find(h, k.spec)
	if errors.Is(err, ErrNoKey) {
		return 0, &Error{Op: "find key again", Key: k.spec.Label, Err: fmt.Errorf("%w: %w", ErrKeyChanged, err)}
	}
	if err != nil {
		return 0, err
	}
	if !samePublic(k.pub, p.pub) || len(differences(p.findings)) > 0 {
		return 0, &Error{Op: "find key again", Key: k.spec.Label, Err: ErrKeyChanged}
	}
	k.handle.Store(&handle{p.private, login})
	return p.private, nil
}

func samePublic(a, b crypto.PublicKey) bool {
	e, ok := a.(interface{ Equal(x crypto.PublicKey) bool })
	return ok && e.Equal(b)
}

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

// search returns up to limit objects.
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
	return all, p11.FindObjectsFinal(h)
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
