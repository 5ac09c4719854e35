package hsm_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/test/softhsm"
)

// mgf1 adds the mask to out, as RFC 8017, appendix B.2.1 has it.
func mgf1(h crypto.Hash, out, seed []byte) {
	var mask []byte
	for i := uint32(0); len(mask) < len(out); i++ {
		d := h.New()
		d.Write(binary.BigEndian.AppendUint32(bytes.Clone(seed), i))
		mask = d.Sum(mask)
	}
	for i := range out {
		out[i] ^= mask[i]
	}
}

// encoded masks an encoded message (RFC 8017, section 7.1.1, step 2) of which the
// first octet, the seed and the data block are given in clear.
func encoded(o hsm.OAEPOptions, em []byte) []byte {
	em = bytes.Clone(em)
	seed, db := em[1:1+o.Hash.Size()], em[1+o.Hash.Size():]
	mgf1(o.MGF, db, seed)
	mgf1(o.MGF, seed, db)
	return em
}

// clearOAEP is an encoded message in clear: label, zeros, one, secret.
func clearOAEP(o hsm.OAEPOptions, size int, secret []byte) []byte {
	em := make([]byte, size)
	_, _ = rand.Read(em[1 : 1+o.Hash.Size()])
	copy(em[1+o.Hash.Size():], o.Hash.New().Sum(nil))
	em[size-len(secret)-1] = 1
	copy(em[size-len(secret):], secret)
	return em
}

// What is wrong with the padding of OAEP is told by nothing: the answer is a random
// key.
// Covers: S-085, S-087
func TestOAEPIsNoOracle(t *testing.T) {
	tok := softhsm.New(t)
	generate(t, config(tok), hsm.KeyPlan{Purpose: hsm.RADecrypt, Label: "dec", Algorithm: hsm.RSA2048})
	k := key(t, open(t, config(tok)), hsm.RADecrypt, "dec")
	pub := k.Public().(*rsa.PublicKey)
	secret := bytes.Repeat([]byte{0xA5}, 16)
	for _, o := range []hsm.OAEPOptions{
		{KeyLen: 16, Hash: crypto.SHA1, MGF: crypto.SHA1}, {KeyLen: 16, Hash: crypto.SHA256, MGF: crypto.SHA256},
		{KeyLen: 16, Hash: crypto.SHA256, MGF: crypto.SHA1}, {KeyLen: 16, Hash: crypto.SHA1, MGF: crypto.SHA256},
	} {
		h := o.Hash.Size()
		for name, spoil := range map[string]func(em []byte){
			"good":                            nil,
			"a first octet that is not zero":  func(em []byte) { em[0] = 1 },
			"another label":                   func(em []byte) { em[1+h] ^= 1 },
			"no one":                          func(em []byte) { em[256-17] = 0 },
			"a two":                           func(em []byte) { em[256-17] = 2 },
			"something before the one":        func(em []byte) { em[256-18] = 1 },
			"something after the label":       func(em []byte) { em[1+2*h] = 9 },
			"a key one octet shorter":         func(em []byte) { em[256-17], em[256-16] = 0, 1 },
			"a key one octet longer":          func(em []byte) { em[256-18], em[256-17] = 1, 9 },
			"nothing but zeros and the label": func(em []byte) { clear(em[1+2*h:]) },
		} {
			em := clearOAEP(o, 256, secret)
			if spoil != nil {
				spoil(em)
			}
			ct := encrypt(pub, encoded(o, em))
			first, err := k.Decrypt(nil, ct, &o)
			second, err2 := k.With(t.Context()).Decrypt(nil, ct, &o)
			if err != nil || err2 != nil || len(first) != 16 || len(second) != 16 {
				t.Fatalf("%v/%v, %s: %x, %x, %v, %v: padding must never be an error", o.Hash, o.MGF, name, first, second, err, err2)
			}
			if spoil == nil && (!bytes.Equal(first, secret) || !bytes.Equal(second, secret)) {
				t.Errorf("%v/%v: %x", o.Hash, o.MGF, first)
			}
			if spoil != nil && (bytes.Equal(first, second) || bytes.Contains(em, first)) {
				t.Errorf("%v/%v, %s: %x and %x, want a fresh random key each time", o.Hash, o.MGF, name, first, second)
			}
		}
	}
	oaepRefuses(t, k, pub)
}

func oaepRefuses(t *testing.T, k *hsm.Key, pub *rsa.PublicKey) {
	t.Helper()
	theirs, err := rsa.EncryptOAEP(crypto.SHA256.New(), rand.Reader, pub, bytes.Repeat([]byte{7}, 32), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.Decrypt(nil, theirs, &hsm.OAEPOptions{KeyLen: 32, Hash: crypto.SHA256, MGF: crypto.SHA256}); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{7}, 32)) {
		t.Errorf("the standard library's: %x, %v", got, err)
	}
	for name, o := range map[string]crypto.DecrypterOpts{
		"no hash": &hsm.OAEPOptions{KeyLen: 16}, "MD5": &hsm.OAEPOptions{KeyLen: 16, Hash: crypto.MD5, MGF: crypto.SHA1},
		"no MGF": &hsm.OAEPOptions{KeyLen: 16, Hash: crypto.SHA1}, "no length": &hsm.OAEPOptions{Hash: crypto.SHA1, MGF: crypto.SHA1},
		"nil": (*hsm.OAEPOptions)(nil), "the standard library's": &rsa.OAEPOptions{Hash: crypto.SHA256},
	} {
		if got, err := k.Decrypt(nil, theirs, o); got != nil || !errors.Is(err, hsm.ErrAlgorithm) {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
}

// FuzzUnpadOAEP compares the constant-time unpadding with RFC 8017, section 7.1.2,
// step 3, as one would write it where nobody measures.
func FuzzUnpadOAEP(f *testing.F) {
	f.Add([]byte{0}, make([]byte, 90), false, byte(8))
	f.Add([]byte{1}, bytes.Repeat([]byte{1}, 100), true, byte(24))
	f.Fuzz(func(t *testing.T, first, rest []byte, wide bool, n byte) {
		o := hsm.OAEPOptions{Hash: crypto.SHA1, MGF: crypto.SHA256}
		if wide {
			o.Hash, o.MGF = crypto.SHA256, crypto.SHA1
		}
		h, size := o.Hash.Size(), 8+int(n)%57
		if len(rest) < h+1+size || len(first) == 0 {
			return
		}
		em := append(append([]byte{first[0] & 1}, rest[:h]...), o.Hash.New().Sum(nil)...)
		em = append(em, rest[h:]...)
		random := bytes.Repeat([]byte{0xC3}, size)
		got, want := bytes.Clone(random), random
		if ps := bytes.TrimLeft(rest[h:], "\x00"); em[0] == 0 && len(ps) == size+1 && ps[0] == 1 {
			want = ps[1:]
		}
		hsm.UnpadOAEP(&o, encoded(o, em), got)
		if !bytes.Equal(got, want) {
			t.Errorf("%x gives %x, want %x", em, got, want)
		}
	})
}
