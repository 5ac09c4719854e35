package hsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"maps"
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

	// Recorded are the attributes of a key that the maker's own tool copied to its token,
	// as the ceremony of the copy has them, by name: what a token tells of a key's past
	// (CKA_LOCAL and the like) is another there. They are wanted exactly so.
	Recorded map[string]string
}

// TellsThePast reports whether an attribute is the token's word about how a key came to
// it. No other may differ on a copy.
func TellsThePast(attribute string) bool {
	switch attribute {
	case "CKA_LOCAL", "CKA_KEY_GEN_MECHANISM", "CKA_ALWAYS_SENSITIVE", "CKA_NEVER_EXTRACTABLE":
		return true
	}
	return false
}

// wanted are the findings, held to what was recorded of the key.
func (s KeySpec) wanted(found []Finding) []Finding {
	for i, f := range found {
		if want, ok := s.Recorded[f.Attribute]; ok {
			found[i].Want, found[i].Tier = want, Required
			found[i].OK = f.Supported && f.Got == want
		}
	}
	return found
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
	for name := range spec.Recorded {
		if !TellsThePast(name) {
			return nil, &Error{Op: "find key", Key: spec.Label, Err: fmt.Errorf("%w: %s may not differ on a copy", ErrPurpose, name)}
		}
	}
	spec.Recorded = maps.Clone(spec.Recorded)
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
	if d := differences(spec.wanted(f.findings)); len(d) > 0 {
		return nil, &AttributeError{Key: spec.Label, Differences: d}
	}
	spec.ID = f.id // found again by it, also if somebody gives its label to another key
	k := &Key{token: t, spec: spec, pub: f.pub, alg: f.alg, findings: f.findings}
	k.handle.Store(&handle{f.private, f.login})
	t.remember(k)
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
// token is asked, ErrMaybeUsed and ErrOwnSignature after, and those of the token.
func (b Bound) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k := b.key
	fail := func(err error) ([]byte, error) { return nil, &Error{Op: "sign", Key: k.spec.Label, Err: err} }
	if !k.spec.Purpose.signs() {
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
	if prefix == nil || hash == crypto.SHA1 && k.spec.Purpose != RASign && k.spec.Purpose != RA {
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
		e := &Error{Op: "sign", Key: k.spec.Label, Err: err}
		k.token.forged(e)
		return nil, e
	}
	k.token.wrong.Store(nil)
	k.token.forgeries.Store(0)
	return sig, nil
}

func (k *Key) rawSign(ctx context.Context, input []byte) ([]byte, error) {
	t, mech := k.token, signMechanism(k.alg.IsRSA())
	return call(ctx, t, "sign", func(h pkcs11.SessionHandle) ([]byte, error) {
		object, err := k.object(h)
		if err != nil {
			return nil, err
		}
		if err := t.module.p11.SignInit(h, []*pkcs11.Mechanism{pkcs11.NewMechanism(mech, nil)}, object); err != nil {
			return nil, err
		}
		t.stats.sign.Add(1)
		sig, err := t.module.p11.Sign(h, input)
		if code, _ := CodeOf(err); code.Class() == ClassModule {
			err = &Error{Op: "sign", Code: code, Err: ErrMaybeUsed}
		}
		return sig, err
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
	if !samePublic(k.pub, p.pub) || len(differences(k.spec.wanted(p.findings))) > 0 {
		return 0, &Error{Op: "find key again", Key: k.spec.Label, Err: ErrKeyChanged}
	}
	k.handle.Store(&handle{p.private, login})
	return p.private, nil
}

func samePublic(a, b crypto.PublicKey) bool {
	e, ok := a.(interface{ Equal(x crypto.PublicKey) bool })
	return ok && e.Equal(b)
}

// Lengths of a content-encryption key, in bytes: DES has 8, and nothing has more
// than 64.
const (
	minSessionKey = 8
	maxSessionKey = 64
)

// SessionKeyOptions says how long the key in an envelope is. It is the standard
// library's type, named here once because that calls it dangerous; SCEP knows no
// other key transport that all of its clients have (RFC 8894, section 3.1), and
// what is dangerous in it is what Decrypt is about.
//
//lint:ignore SA1019 see above
type SessionKeyOptions = rsa.PKCS1v15DecryptOptions //nolint:staticcheck // see above

// Decrypt opens RSAES-PKCS1-v1_5 (RFC 8017, section 7.2.2) or RSAES-OAEP key transport
// with a key whose purpose is RADecrypt or RA. opts is a [*SessionKeyOptions] or an
// [*OAEPOptions]. It ignores rand: the random key comes from crypto/rand.
//
// Whatever is wrong with the padding, or if the key in it has another length, the answer is a random
// key of that length and no error, after the same work: the caller must decrypt
// the content with what it got. An error means ErrPurpose, ErrAlgorithm,
// ErrCiphertext (its length is not the modulus' or its value not below it, both
// of which a stranger knows beforehand; the token was not asked) or a failure of the token.
func (b Bound) Decrypt(_ io.Reader, ciphertext []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	k := b.key
	fail := func(err error) ([]byte, error) { return nil, &Error{Op: "decrypt", Key: k.spec.Label, Err: err} }
	pub, isRSA := k.pub.(*rsa.PublicKey)
	if !k.spec.Purpose.opens() || !isRSA {
		return fail(ErrPurpose)
	}
	n, unpad, err := keyLen(opts, pub)
	if err != nil {
		return fail(err)
	}
	if len(ciphertext) != pub.Size() || new(big.Int).SetBytes(ciphertext).Cmp(pub.N) >= 0 {
		return fail(ErrCiphertext)
	}
	random, err := randomKey(n) // before the token is asked, so that no failure can be told by it
	if err != nil {
		return fail(err)
	}
	em, err := k.rawDecrypt(b.ctx, bytes.Clone(ciphertext), pub.Size())
	if err != nil {
		return nil, fault("decrypt", k.spec.Label, err)
	}
	unpad(em, random)
	clear(em)
	return random, nil
}

// rawDecrypt returns the encoded message, size bytes, right-aligned: some tokens
// strip leading zeros.
func (k *Key) rawDecrypt(ctx context.Context, ciphertext []byte, size int) ([]byte, error) {
	t := k.token
	return run(ctx, t, foreign, "decrypt", func(h pkcs11.SessionHandle) ([]byte, error) {
		object, err := k.object(h)
		if err != nil {
			return nil, err
		}
		if err := t.module.p11.DecryptInit(h, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_X_509, nil)}, object); err != nil {
			return nil, err
		}
		t.stats.decrypt.Add(1)
		out, err := t.module.p11.Decrypt(h, ciphertext)
		defer clear(out)
		if err != nil {
			return nil, err
		}
		if len(out) > size {
			return nil, errors.New("the token's answer is longer than the modulus")
		}
		em := make([]byte, size)
		copy(em[size-len(out):], out)
		return em, nil
	})
}

// unpad15 copies the last len(key) bytes of em to key if em is 00 02, at least
// eight bytes that are not zero, 00 and those bytes, and leaves key as it is if
// not. As the key's length is known, so is the place of the separator, and no
// branch or index depends on em. The caller makes em at least 11 bytes longer
// than key.
func unpad15(em, key []byte) {
	split := len(em) - len(key)
	good := subtle.ConstantTimeByteEq(em[0], 0) & subtle.ConstantTimeByteEq(em[1], 2)
	for _, b := range em[2 : split-1] {
		good &= 1 ^ subtle.ConstantTimeByteEq(b, 0)
	}
	good &= subtle.ConstantTimeByteEq(em[split-1], 0)
	subtle.ConstantTimeCopy(good, key, em[split:])
}
