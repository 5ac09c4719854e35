package hsm

import (
	"crypto"
	"crypto/fips140"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha1" //nolint:gosec // OAEP's default, whose collisions do not matter there
	_ "crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
)

// OAEPOptions have Decrypt open RSAES-OAEP (RFC 8017, section 7.1.2) with an empty
// label: a key of KeyLen octets. Hash is that of the label, MGF that of MGF1; both
// are SHA-1 or SHA-256.
type OAEPOptions struct {
	KeyLen    int
	Hash, MGF crypto.Hash
}

// check says whether the options can be served by a modulus of size octets.
func (o *OAEPOptions) check(size int) error {
	for _, h := range [...]crypto.Hash{o.Hash, o.MGF} {
		if h != crypto.SHA1 && h != crypto.SHA256 || h == crypto.SHA1 && fips140.Enforced() {
			return fmt.Errorf("%w: OAEP with %v", ErrAlgorithm, h)
		}
	}
	if size < 2*o.Hash.Size()+2+o.KeyLen {
		return fmt.Errorf("%w: OAEP with a modulus of %d octets", ErrAlgorithm, size)
	}
	return nil
}

// keyLen returns the length of the key that is looked for, and how it is taken out
// of an encoded message.
func keyLen(opts any, pub *rsa.PublicKey) (n int, unpad func(em, key []byte), err error) {
	switch o := opts.(type) {
	case *SessionKeyOptions:
		if o != nil {
			n, unpad = o.SessionKeyLen, unpad15
		}
	case *OAEPOptions:
		if o != nil {
			n, unpad = o.KeyLen, o.unpad
			err = o.check(pub.Size())
		}
	}
	if err == nil && (n < minSessionKey || n > maxSessionKey) {
		err = fmt.Errorf("%w: only PKCS#1 v1.5 and OAEP with the session key's length", ErrAlgorithm)
	}
	return n, unpad, err
}

// randomKey returns n random octets: what is left of them if nothing unpads.
func randomKey(n int) ([]byte, error) {
	key := make([]byte, n)
	_, err := rand.Read(key)
	return key, err
}

// unpad copies the last len(key) octets of em to key if em is the encoding of just
// that many (RFC 8017, section 7.1.2, step 3), and leaves key as it is if not: it
// looks at all of em in any case. As the key's length is known, so is the place of
// the octet before it, and no branch or index depends on em: which of the checks
// failed must not show (Manger, CRYPTO 2001). em is not kept as it was.
func (o *OAEPOptions) unpad(em, key []byte) {
	h := o.Hash.Size()
	seed, db := em[1:1+h], em[1+h:]
	o.mask(seed, db)
	o.mask(db, seed)
	label := o.Hash.New().Sum(nil)
	split := len(db) - len(key)
	good := subtle.ConstantTimeByteEq(em[0], 0) & subtle.ConstantTimeCompare(db[:h], label)
	for _, b := range db[h : split-1] {
		good &= subtle.ConstantTimeByteEq(b, 0)
	}
	good &= subtle.ConstantTimeByteEq(db[split-1], 1)
	subtle.ConstantTimeCopy(good, key, db[split:])
}

// mask adds MGF1 of seed to out (RFC 8017, appendix B.2.1).
func (o *OAEPOptions) mask(out, seed []byte) {
	hash := o.MGF.New()
	for i := uint32(0); len(out) > 0; i++ {
		hash.Reset()
		hash.Write(seed)
		hash.Write(binary.BigEndian.AppendUint32(nil, i))
		n := subtle.XORBytes(out, out, hash.Sum(nil))
		out = out[n:]
	}
}
