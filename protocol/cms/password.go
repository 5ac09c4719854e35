package cms

import (
	"crypto"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/sha1" //nolint:gosec // PBKDF2's default, as OpenSSL writes it
	"crypto/sha256"
	"crypto/subtle"
	"encoding/asn1"
	"fmt"
	"hash"
	"io"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Algorithms of a PasswordRecipientInfo (RFC 8018, appendix A; RFC 3211, section
// 2.3.1), and of OAEP (RFC 8017, appendix A.2.1).
var (
	oidPBKDF2     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
	oidPWRIKEK    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 3, 9}
	oidHMACSHA1   = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 7}
	oidHMACSHA256 = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 9}

	oidMGF1       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 8}
	oidPSpecified = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 9}
)

// tagPassword is that of a PasswordRecipientInfo (RFC 5652, section 6.2).
const tagPassword = cbasn1.Tag(0xa3)

// Bounds of a PasswordRecipientInfo. What is written is for a password that nobody
// guesses: iterations add little to a challenge of 128 random bits.
const (
	maxIterations   = 1_000_000
	maxSalt         = 64
	writeIterations = 10_000
	writeSalt       = 16
)

// A Password is a PasswordRecipientInfo (RFC 5652, section 6.2.4) by PBKDF2 and
// id-alg-PWRI-KEK.
type Password struct {
	salt       []byte
	iterations int
	length     int // of the derived key in octets; 0 if it is not said
	prf        func() hash.Hash
	kek        cipherInfo
	iv         []byte
	wrapped    []byte
}

// readPassword reads the fields of a PasswordRecipientInfo; false for one that is
// of no use here.
func readPassword(info cryptobyte.String) (p Password, ok bool) {
	var version int
	var derivation, parameters, key, iv cryptobyte.String
	if !info.ReadASN1Integer(&version) || version != 0 || !info.ReadASN1(&derivation, tagExplicit0) || !p.readDerivation(derivation) {
		return p, false
	}
	oid, inner, ok := readAlgorithm(&info)
	if !ok || !oid.Equal(oidPWRIKEK) || !info.ReadASN1(&key, cbasn1.OCTET_STRING) || !info.Empty() {
		return p, false
	}
	if oid, parameters, ok = readAlgorithm(&inner); !ok || !inner.Empty() || !parameters.ReadASN1(&iv, cbasn1.OCTET_STRING) || !parameters.Empty() {
		return p, false
	}
	c, err := cipherOf(oid)
	if err != nil || p.length != 0 && p.length != c.key || len(iv) != c.size || len(key) < 2*c.size || len(key)%c.size != 0 || len(key) > 8*c.size {
		return p, false
	}
	p.kek, p.iv, p.wrapped = c, iv, key
	return p, true
}

// readDerivation reads an AlgorithmIdentifier of PBKDF2, without its tag.
func (p *Password) readDerivation(s cryptobyte.String) bool {
	var oid asn1.ObjectIdentifier
	var params, salt cryptobyte.String
	if !s.ReadASN1ObjectIdentifier(&oid) || !oid.Equal(oidPBKDF2) || !s.ReadASN1(&params, cbasn1.SEQUENCE) || !s.Empty() {
		return false
	}
	if !params.ReadASN1(&salt, cbasn1.OCTET_STRING) || len(salt) == 0 || len(salt) > maxSalt ||
		!params.ReadASN1Integer(&p.iterations) || p.iterations < 1 || p.iterations > maxIterations {
		return false
	}
	if params.PeekASN1Tag(cbasn1.INTEGER) && (!params.ReadASN1Integer(&p.length) || p.length == 0) {
		return false
	}
	p.salt, p.prf = salt, sha1.New
	if params.Empty() {
		return usable(crypto.SHA1)
	}
	prf, none, ok := readAlgorithm(&params)
	if !ok || !noParams(none) || !params.Empty() {
		return false
	}
	switch {
	case prf.Equal(oidHMACSHA256):
		p.prf = sha256.New
		return true
	case prf.Equal(oidHMACSHA1):
		return usable(crypto.SHA1)
	default:
		return false
	}
}

// Key opens the content key of size octets with the password (RFC 3211, section
// 2.3.2). It fails with [ErrOpen] alone.
func (p Password) Key(password []byte, size int) ([]byte, error) {
	block, err := p.block(password)
	if err != nil {
		return nil, ErrOpen
	}
	// The last block first: it is the initialization vector of the second pass.
	out, n := slices.Clone(p.wrapped), p.kek.size
	last := len(out) - n
	cipher.NewCBCDecrypter(block, out[last-n:last]).CryptBlocks(out[last:], p.wrapped[last:])
	cipher.NewCBCDecrypter(block, out[last:]).CryptBlocks(out[:last], p.wrapped[:last])
	cipher.NewCBCDecrypter(block, p.iv).CryptBlocks(out, out)
	if int(out[0]) != size || len(out) < 4+size {
		return nil, ErrOpen
	}
	check := []byte{out[1] ^ out[4], out[2] ^ out[5], out[3] ^ out[6]}
	if size < 3 || subtle.ConstantTimeCompare(check, []byte{0xff, 0xff, 0xff}) != 1 {
		return nil, ErrOpen
	}
	return out[4 : 4+size], nil
}

// block returns the cipher of the key that is derived from the password.
func (p Password) block(password []byte) (cipher.Block, error) {
	kek, err := pbkdf2.Key(p.prf, string(password), p.salt, p.iterations, p.kek.key)
	if err != nil {
		return nil, err
	}
	defer clear(kek)
	return p.kek.block(kek)
}

// wrap encrypts a content key (RFC 3211, section 2.3.1): its length, a check of
// three octets, the key, and random octets to two blocks at least, twice in one
// chain.
func (p *Password) wrap(random io.Reader, password, key []byte) error {
	n := p.kek.size
	out := make([]byte, max(2*n, (4+len(key)+n-1)/n*n))
	if _, err := io.ReadFull(random, out); err != nil {
		return fmt.Errorf("cms: random octets: %w", err)
	}
	out[0] = byte(len(key))
	for i := range 3 {
		out[1+i] = ^key[i]
	}
	copy(out[4:], key)
	block, err := p.block(password)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrAlgorithm, err)
	}
	chain := cipher.NewCBCEncrypter(block, p.iv)
	chain.CryptBlocks(out, out)
	chain.CryptBlocks(out, out)
	p.wrapped = out
	return nil
}

// EnvelopPassword encrypts content under a password (RFC 5652, section 6.2.4), for
// who has no key that something can be encrypted to: PBKDF2 with HMAC-SHA-256 and
// id-alg-PWRI-KEK with AES-128-CBC. It returns a ContentInfo, DER. The password has
// to be one that nobody can guess: whoever sees the message can try. rand gives all
// that is random. The error is [ErrAlgorithm] for a cipher that is not supported
// and for no password; else rand's.
func EnvelopPassword(random io.Reader, content, password []byte, c Cipher) ([]byte, error) {
	if len(password) == 0 {
		return nil, fmt.Errorf("%w: no password", ErrAlgorithm)
	}
	key, iv, text, err := encrypt(random, content, c)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	p := Password{salt: make([]byte, writeSalt), iterations: writeIterations, prf: sha256.New, kek: AES128CBC.info()}
	p.iv = make([]byte, p.kek.size)
	for _, b := range [][]byte{p.salt, p.iv} {
		if _, err := io.ReadFull(random, b); err != nil {
			return nil, fmt.Errorf("cms: random octets: %w", err)
		}
	}
	if err := p.wrap(random, password, key); err != nil {
		return nil, err
	}
	return marshalEnvelope(3, c.info(), iv, text, p.marshal) // RFC 5652, section 6.1: 3 where a password is
}

// marshal writes the PasswordRecipientInfo of [EnvelopPassword].
func (p Password) marshal(b *cryptobyte.Builder) {
	b.AddASN1(tagPassword, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) { // IMPLICIT, in the place of a SEQUENCE
			b.AddASN1ObjectIdentifier(oidPBKDF2)
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1OctetString(p.salt)
				b.AddASN1Int64(int64(p.iterations))
				addAlgorithm(b, oidHMACSHA256, true) // RFC 8018, appendix B.1.2
			})
		})
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidPWRIKEK)
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(p.kek.oid)
				b.AddASN1OctetString(p.iv)
			})
		})
		b.AddASN1OctetString(p.wrapped)
	})
}

// readOAEP reads RSAES-OAEP-params (RFC 8017, appendix A.2.1), all of which have
// defaults: SHA-1, MGF1 with SHA-1, an empty label. It returns 0, 0 for what is not
// served: other hashes, a label.
func readOAEP(params cryptobyte.String) (label, mgf crypto.Hash) {
	var list cryptobyte.String
	if label, mgf = crypto.SHA1, crypto.SHA1; noParams(params) {
		return usableOAEP(label, mgf)
	}
	if !params.ReadASN1(&list, cbasn1.SEQUENCE) || !params.Empty() {
		return 0, 0
	}
	var hash, generator, source cryptobyte.String
	var hasHash, hasGenerator, hasSource, ok bool
	if !list.ReadOptionalASN1(&hash, &hasHash, tagExplicit0) || !list.ReadOptionalASN1(&generator, &hasGenerator, tagExplicit1) ||
		!list.ReadOptionalASN1(&source, &hasSource, tagExplicit0|2) || !list.Empty() {
		return 0, 0
	}
	if hasHash {
		if label, ok = readHash(hash); !ok {
			return 0, 0
		}
	}
	if hasGenerator {
		oid, inner, read := readAlgorithm(&generator)
		if mgf, ok = readHash(inner); !read || !oid.Equal(oidMGF1) || !generator.Empty() || !ok {
			return 0, 0
		}
	}
	if hasSource {
		oid, inner, read := readAlgorithm(&source)
		var octets cryptobyte.String
		if !read || !oid.Equal(oidPSpecified) || !source.Empty() || !inner.ReadASN1(&octets, cbasn1.OCTET_STRING) || !inner.Empty() || len(octets) > 0 {
			return 0, 0
		}
	}
	return usableOAEP(label, mgf)
}

func usableOAEP(label, mgf crypto.Hash) (crypto.Hash, crypto.Hash) {
	for _, h := range [...]crypto.Hash{label, mgf} {
		if h != crypto.SHA256 && h != crypto.SHA1 || !usable(h) {
			return 0, 0
		}
	}
	return label, mgf
}

// readHash reads the AlgorithmIdentifier of a digest, and nothing after it.
func readHash(s cryptobyte.String) (crypto.Hash, bool) {
	oid, params, ok := readAlgorithm(&s)
	if !ok || !noParams(params) || !s.Empty() {
		return 0, false
	}
	a, ok := findHash(func(a hashAlgorithm) bool { return a.digest.Equal(oid) })
	return a.hash, ok
}
