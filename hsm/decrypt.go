package hsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/miekg/pkcs11"
)

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

// Decrypt opens RSAES-PKCS1-v1_5 key transport (RFC 8017, section 7.2.2) with a
// key whose purpose is RADecrypt. opts must be a [*SessionKeyOptions]
// with the length of the key that is looked for. It ignores rand: the random key comes from
// crypto/rand.
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
	if k.spec.Purpose != RADecrypt || !isRSA {
		return fail(ErrPurpose)
	}
	o, ok := opts.(*SessionKeyOptions)
	if !ok || o == nil || o.SessionKeyLen < minSessionKey || o.SessionKeyLen > maxSessionKey {
		return fail(fmt.Errorf("%w: only PKCS#1 v1.5 with the session key's length", ErrAlgorithm))
	}
	if len(ciphertext) != pub.Size() || new(big.Int).SetBytes(ciphertext).Cmp(pub.N) >= 0 {
		return fail(ErrCiphertext)
	}
	random := make([]byte, o.SessionKeyLen)
	if _, err := rand.Read(random); err != nil { // before the token is asked, so that no failure can be told by it
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
	return call(ctx, t, "decrypt", func(h pkcs11.SessionHandle) ([]byte, error) {
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

// unpad copies the last len(key) bytes of em to key if em is 00 02, at least
// eight bytes that are not zero, 00 and those bytes, and leaves key as it is if
// not. As the key's length is known, so is the place of the separator, and no
// branch or index depends on em. The caller makes em at least 11 bytes longer
// than key.
func unpad(em, key []byte) {
	split := len(em) - len(key)
	good := subtle.ConstantTimeByteEq(em[0], 0) & subtle.ConstantTimeByteEq(em[1], 2)
	for _, b := range em[2 : split-1] {
		good &= 1 ^ subtle.ConstantTimeByteEq(b, 0)
	}
	good &= subtle.ConstantTimeByteEq(em[split-1], 0)
	subtle.ConstantTimeCopy(good, key, em[split:])
}
