package hsm_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha1"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/test/softhsm"
)

func sessionKey(n int) *hsm.SessionKeyOptions {
	return &hsm.SessionKeyOptions{SessionKeyLen: n}
}

func TestSignEveryAlgorithm(t *testing.T) {
	tok := softhsm.New(t)
	purposes := map[hsm.Algorithm]hsm.Purpose{
		hsm.RSA2048: hsm.RASign, hsm.RSA3072: hsm.CA, hsm.RSA4096: hsm.CA, hsm.P256: hsm.TLS, hsm.P384: hsm.CA,
	}
	var plans []hsm.KeyPlan
	for a, p := range purposes {
		plans = append(plans, hsm.KeyPlan{Purpose: p, Label: string(a), Algorithm: a})
	}
	made := generate(t, config(tok), plans...)
	token := open(t, config(tok))
	for _, g := range made {
		t.Run(g.Label, func(t *testing.T) {
			k, err := token.Key(t.Context(), hsm.KeySpec{Purpose: g.Purpose, Label: g.Label, ID: g.ID})
			if err != nil {
				t.Fatal(err)
			}
			if pub, ok := g.Public.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(k.Public()) || g.Tier != hsm.IfSupported {
				t.Errorf("the key found is not the key generated, or less than the whole template: %v", g.Tier)
			}
			for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
				signAndVerify(t, k, h)
			}
		})
	}
	found := token.Stats().Find
	signAndVerify(t, key(t, token, hsm.TLS, "P-256"), crypto.SHA256)
	if n := token.Stats().Find - found; n != 1 {
		t.Errorf("%d searches for finding a key and signing, want the first alone", n)
	}
}

func signAndVerify(t *testing.T, k *hsm.Key, h crypto.Hash) {
	t.Helper()
	w := h.New()
	w.Write([]byte("to be signed"))
	digest := w.Sum(nil)
	sig, err := k.With(t.Context()).Sign(rand.Reader, digest, h)
	if err != nil {
		t.Errorf("%v: %v", h, err)
		return
	}
	ok := false
	switch pub := k.Public().(type) {
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(pub, h, digest, sig) == nil
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(pub, digest, sig)
	}
	if !ok {
		t.Errorf("%v: the signature does not verify", h)
	}
}

func TestRefusedBeforeTheTokenIsAsked(t *testing.T) {
	tok := softhsm.New(t)
	generate(t, config(tok),
		hsm.KeyPlan{Purpose: hsm.CA, Label: "ca", Algorithm: hsm.P256},
		hsm.KeyPlan{Purpose: hsm.RASign, Label: "sign", Algorithm: hsm.RSA2048},
		hsm.KeyPlan{Purpose: hsm.RADecrypt, Label: "dec", Algorithm: hsm.RSA2048})
	token := open(t, config(tok))
	ca, sign, dec := key(t, token, hsm.CA, "ca"), key(t, token, hsm.RASign, "sign"), key(t, token, hsm.RADecrypt, "dec")
	n := dec.Public().(*rsa.PublicKey).N
	above := new(big.Int).Add(n, big.NewInt(1)).FillBytes(make([]byte, 256))
	do := func(k *hsm.Key, size int, o crypto.SignerOpts) func() error {
		return func() error { _, err := k.Sign(rand.Reader, make([]byte, size), o); return err }
	}
	open := func(k *hsm.Key, ct []byte, o crypto.DecrypterOpts) func() error {
		return func() error { _, err := k.Decrypt(rand.Reader, ct, o); return err }
	}
	for name, tt := range map[string]struct {
		do   func() error
		want error
	}{
		"a SHA-1 digest called SHA-256":             {do(ca, 20, crypto.SHA256), hsm.ErrDigest},
		"a digest one byte short":                   {do(sign, 31, crypto.SHA256), hsm.ErrDigest},
		"no digest":                                 {do(sign, 0, crypto.SHA256), hsm.ErrDigest},
		"a message that was not hashed":             {do(ca, 32, crypto.Hash(0)), hsm.ErrAlgorithm},
		"no options":                                {do(ca, 32, nil), hsm.ErrAlgorithm},
		"MD5":                                       {do(sign, 16, crypto.MD5), hsm.ErrAlgorithm},
		"SHA-1 by the CA":                           {do(ca, 20, crypto.SHA1), hsm.ErrAlgorithm},
		"PSS":                                       {do(sign, 32, &rsa.PSSOptions{Hash: crypto.SHA256}), hsm.ErrAlgorithm},
		"signing with the decryption key":           {do(dec, 32, crypto.SHA256), hsm.ErrPurpose},
		"decryption with a signing key":             {open(sign, make([]byte, 256), sessionKey(16)), hsm.ErrPurpose},
		"decryption without the key's length":       {open(dec, make([]byte, 256), sessionKey(0)), hsm.ErrAlgorithm},
		"decryption of a key that nothing has":      {open(dec, make([]byte, 256), sessionKey(65)), hsm.ErrAlgorithm},
		"decryption without options":                {open(dec, make([]byte, 256), nil), hsm.ErrAlgorithm},
		"OAEP":                                      {open(dec, make([]byte, 256), &rsa.OAEPOptions{Hash: crypto.SHA256}), hsm.ErrAlgorithm},
		"a ciphertext one byte short":               {open(dec, make([]byte, 255), sessionKey(16)), hsm.ErrCiphertext},
		"a ciphertext with a zero in front":         {open(dec, make([]byte, 257), sessionKey(16)), hsm.ErrCiphertext},
		"no ciphertext":                             {open(dec, nil, sessionKey(16)), hsm.ErrCiphertext},
		"a ciphertext that is the modulus":          {open(dec, n.Bytes(), sessionKey(16)), hsm.ErrCiphertext},
		"a ciphertext above the modulus":            {open(dec, above, sessionKey(16)), hsm.ErrCiphertext},
		"a ciphertext of the largest possible bits": {open(dec, bytes.Repeat([]byte{0xff}, 256), sessionKey(16)), hsm.ErrCiphertext},
	} {
		t.Run(name, func(t *testing.T) {
			before := token.Stats()
			if err := tt.do(); !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
			if token.Stats() != before {
				t.Error("the token was asked")
			}
		})
	}
	t.Run("SHA-1 by RA-sign is for a profile to allow", func(t *testing.T) { signAndVerify(t, sign, crypto.SHA1) })
}

// encrypt is RSA without any padding of its own.
func encrypt(pub *rsa.PublicKey, em []byte) []byte {
	c := new(big.Int).Exp(new(big.Int).SetBytes(em), big.NewInt(int64(pub.E)), pub.N)
	return c.FillBytes(make([]byte, pub.Size()))
}

// Covers: S-087
func TestDecryptIsNoOracle(t *testing.T) {
	tok := softhsm.New(t)
	generate(t, config(tok), hsm.KeyPlan{Purpose: hsm.RADecrypt, Label: "dec", Algorithm: hsm.RSA2048})
	token := open(t, config(tok))
	k := key(t, token, hsm.RADecrypt, "dec")
	pub := k.Public().(*rsa.PublicKey)
	secret := bytes.Repeat([]byte{0xA5}, 16)
	good := func() []byte {
		em := bytes.Repeat([]byte{0x77}, 256)
		em[0], em[1], em[256-17] = 0, 2, 0
		copy(em[256-16:], secret)
		return em
	}
	for name, tt := range map[string]struct {
		spoil func(em []byte)
		good  bool
	}{
		"good padding":                         {func([]byte) {}, true},
		"a key that begins with zeros":         {func(em []byte) { clear(em[240:244]) }, true},
		"a first byte that is not zero":        {func(em []byte) { em[0] = 1 }, false},
		"block type 1":                         {func(em []byte) { em[1] = 1 }, false},
		"block type 0":                         {func(em []byte) { em[1] = 0 }, false},
		"a zero in the first eight bytes":      {func(em []byte) { em[5] = 0 }, false},
		"a zero right after the block type":    {func(em []byte) { em[2] = 0 }, false},
		"a zero just before the separator":     {func(em []byte) { em[238] = 0 }, false},
		"no separator":                         {func(em []byte) { em[239] = 9 }, false},
		"no zero at all":                       {func(em []byte) { copy(em[2:], bytes.Repeat([]byte{7}, 254)) }, false},
		"a key one byte longer":                {func(em []byte) { em[239], em[238] = 9, 0 }, false},
		"a key one byte shorter":               {func(em []byte) { em[239], em[240] = 9, 0 }, false},
		"nothing but zeros":                    {func(em []byte) { clear(em) }, false},
		"the value one (many leading zeros)":   {func(em []byte) { clear(em); em[255] = 1 }, false},
		"an OAEP-like first byte, random rest": {func(em []byte) { _, _ = rand.Read(em[1:]) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			em := good()
			tt.spoil(em)
			want := bytes.Clone(em[240:])
			ct := encrypt(pub, em)
			first, err := k.Decrypt(nil, ct, sessionKey(16))
			second, err2 := k.With(t.Context()).Decrypt(nil, ct, sessionKey(16))
			if err != nil || err2 != nil {
				t.Fatalf("%v, %v: padding must never be an error", err, err2)
			}
			if len(first) != 16 || len(second) != 16 {
				t.Fatalf("%d and %d bytes, want 16", len(first), len(second))
			}
			if tt.good && (!bytes.Equal(first, want) || !bytes.Equal(second, want)) {
				t.Errorf("%x, want %x", first, want)
			}
			if !tt.good && (bytes.Equal(first, second) || bytes.Contains(em, first)) {
				t.Errorf("%x and %x: want a fresh random key each time", first, second)
			}
		})
	}
	t.Run("the random key is uniform", func(t *testing.T) { uniform(t, k, pub) })
}

func uniform(t *testing.T, k *hsm.Key, pub *rsa.PublicKey) {
	ct := encrypt(pub, []byte{3})
	var ones, total int
	for range 60 {
		got, err := k.Decrypt(nil, ct, sessionKey(64))
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range got {
			for ; b != 0; b &= b - 1 {
				ones++
			}
		}
		total += 8 * len(got)
	}
	if d := ones - total/2; d < -6*88 || d > 6*88 { // 6 standard deviations of a fair coin, sqrt(30720)/2 = 88
		t.Errorf("%d of %d bits are set", ones, total)
	}
}

// rawGenerate makes a key pair by the given template, past all checks.
func rawGenerate(t *testing.T, tok softhsm.Token, attributes func() (pub, private []*pkcs11.Attribute)) {
	t.Helper()
	m, err := hsm.Load(tok.Module) // only so that damage finds the module initialized
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	generateBehind(t, tok, attributes)
}

// generateBehind is rawGenerate in a process that has the module initialized.
func generateBehind(t *testing.T, tok softhsm.Token, attributes func() (pub, private []*pkcs11.Attribute)) {
	t.Helper()
	damage(t, tok.Module, tok.Serial, func(p *pkcs11.Ctx, slot uint) error {
		h, err := p.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			return err
		}
		if err := p.Login(h, pkcs11.CKU_USER, tok.PIN); err != nil {
			return err
		}
		pub, private := attributes()
		mech := uint(pkcs11.CKM_EC_KEY_PAIR_GEN)
		if slices.ContainsFunc(pub, func(a *pkcs11.Attribute) bool { return a.Type == pkcs11.CKA_MODULUS_BITS }) {
			mech = pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN
		}
		if _, _, err := p.GenerateKeyPair(h, []*pkcs11.Mechanism{pkcs11.NewMechanism(mech, nil)}, pub, private); err != nil {
			return err
		}
		return p.CloseSession(h)
	})
}

func TestAttributeDifferencesRefuse(t *testing.T) {
	tok := softhsm.New(t)
	change := func(typ uint, v any) func([]*pkcs11.Attribute) []*pkcs11.Attribute {
		return func(all []*pkcs11.Attribute) []*pkcs11.Attribute {
			all = slices.DeleteFunc(all, func(a *pkcs11.Attribute) bool { return a.Type == typ })
			if v != nil {
				all = append(all, pkcs11.NewAttribute(typ, v))
			}
			return all
		}
	}
	cases := map[string]struct {
		public  bool
		purpose hsm.Purpose
		change  func([]*pkcs11.Attribute) []*pkcs11.Attribute
		want    []string
	}{
		"as it should be":             {false, hsm.CA, change(pkcs11.CKA_LOCAL+0x10000, nil), nil},
		"extractable":                 {false, hsm.CA, change(pkcs11.CKA_EXTRACTABLE, true), []string{"CKA_EXTRACTABLE", "CKA_NEVER_EXTRACTABLE"}},
		"not sensitive":               {false, hsm.CA, change(pkcs11.CKA_SENSITIVE, false), []string{"CKA_SENSITIVE", "CKA_ALWAYS_SENSITIVE"}},
		"signs and decrypts":          {false, hsm.RASign, change(pkcs11.CKA_DECRYPT, true), []string{"CKA_DECRYPT"}},
		"decrypts and signs":          {false, hsm.RADecrypt, change(pkcs11.CKA_SIGN, true), []string{"CKA_SIGN"}},
		"one for both that unwraps":   {false, hsm.RA, change(pkcs11.CKA_UNWRAP, true), []string{"CKA_UNWRAP"}},
		"one for both that recovers":  {false, hsm.RA, change(pkcs11.CKA_SIGN_RECOVER, true), []string{"CKA_SIGN_RECOVER"}},
		"one for both that signs not": {false, hsm.RA, change(pkcs11.CKA_SIGN, false), []string{"CKA_SIGN"}},
		"unwraps":                     {false, hsm.RADecrypt, change(pkcs11.CKA_UNWRAP, true), []string{"CKA_UNWRAP"}},
		"modifiable by default":       {false, hsm.CA, change(pkcs11.CKA_MODIFIABLE, nil), []string{"CKA_MODIFIABLE"}},
		"recovers by default":         {false, hsm.RASign, change(pkcs11.CKA_SIGN_RECOVER, nil), []string{"CKA_SIGN_RECOVER"}},
		"derives":                     {false, hsm.CA, change(pkcs11.CKA_DERIVE, true), []string{"CKA_DERIVE"}},
		"any mechanism":               {false, hsm.RASign, change(pkcs11.CKA_ALLOWED_MECHANISMS, nil), []string{"CKA_ALLOWED_MECHANISMS"}},
		"copyable":                    {false, hsm.CA, change(pkcs11.CKA_COPYABLE, true), []string{"CKA_COPYABLE"}},
		"a public half that wraps":    {true, hsm.RADecrypt, change(pkcs11.CKA_WRAP, true), []string{"public CKA_WRAP"}},
		"a public half that is new":   {true, hsm.CA, change(pkcs11.CKA_MODIFIABLE, true), []string{"public CKA_MODIFIABLE"}},
	}
	var id byte
	for name, tt := range cases {
		id++
		rawGenerate(t, tok, func() (pub, private []*pkcs11.Attribute) {
			pub, private, err := hsm.Template(tt.purpose, name, []byte{id}, tt.purpose.Algorithms()[0])
			if err != nil {
				t.Fatal(err)
			}
			if tt.public {
				return tt.change(pub), private
			}
			return pub, tt.change(private)
		})
	}
	token := open(t, config(tok))
	for name, tt := range cases {
		t.Run(name, func(t *testing.T) {
			k, err := token.Key(t.Context(), hsm.KeySpec{Purpose: tt.purpose, Label: name})
			var got []string
			if e, ok := errors.AsType[*hsm.AttributeError](err); ok {
				for _, d := range e.Differences {
					got = append(got, d.Attribute)
				}
			} else if err != nil {
				t.Fatal(err)
			}
			slices.Sort(got)
			slices.Sort(tt.want)
			if !slices.Equal(got, tt.want) || (k == nil) != (len(tt.want) > 0) {
				t.Errorf("differences %v, want %v", got, tt.want)
			}
		})
	}
	t.Run("a key for another purpose", func(t *testing.T) {
		_, err := token.Key(t.Context(), hsm.KeySpec{Purpose: hsm.RADecrypt, Label: "as it should be"})
		if e, ok := errors.AsType[*hsm.AttributeError](err); !ok || len(e.Differences) < 4 || !strings.Contains(e.Error(), "P-256") {
			t.Errorf("Key: %v, want every difference", err)
		}
	})
	t.Run("a key that is not there", func(t *testing.T) {
		if _, err := token.Key(t.Context(), hsm.KeySpec{Purpose: hsm.CA, Label: "nobody"}); !errors.Is(err, hsm.ErrNoKey) {
			t.Errorf("Key: %v, want ErrNoKey", err)
		}
		if _, err := token.Key(t.Context(), hsm.KeySpec{Purpose: hsm.CA, Label: "as it should be", ID: []byte{200}}); !errors.Is(err, hsm.ErrNoKey) {
			t.Errorf("Key by another id: %v, want ErrNoKey", err)
		}
	})
}

func TestConcurrentUse(t *testing.T) {
	tok := softhsm.New(t)
	generate(t, config(tok),
		hsm.KeyPlan{Purpose: hsm.CA, Label: "ca", Algorithm: hsm.P256},
		hsm.KeyPlan{Purpose: hsm.RASign, Label: "sign", Algorithm: hsm.RSA2048},
		hsm.KeyPlan{Purpose: hsm.RADecrypt, Label: "dec", Algorithm: hsm.RSA2048})
	token := open(t, config(tok))
	ca, sign, dec := key(t, token, hsm.CA, "ca"), key(t, token, hsm.RASign, "sign"), key(t, token, hsm.RADecrypt, "dec")
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			for j := range 8 {
				secret := fmt.Appendf(nil, "%08d%08d", i, j)
				em := bytes.Repeat([]byte{0x55}, 256)
				em[0], em[1], em[239] = 0, 2, 0
				copy(em[240:], secret)
				ct := encrypt(dec.Public().(*rsa.PublicKey), em)
				if got, err := dec.Decrypt(nil, ct, sessionKey(16)); err != nil || !bytes.Equal(got, secret) {
					t.Errorf("Decrypt: %x, %v", got, err)
				}
				signAndVerify(t, ca, crypto.SHA256)
				signAndVerify(t, sign, crypto.SHA256)
			}
		})
	}
	wg.Wait()
	if s := token.Stats(); s.Sign != 24*8*2 || s.Decrypt != 24*8 || s.Dropped != 0 || s.Find != 3 || s.Login != 1 {
		t.Errorf("%+v, want one token call for each operation, and no search", s)
	}
}

// A key that did not come to be on its token is accepted with exactly what was recorded
// of its past, and with nothing else.
func TestARecordedPastIsWantedExactly(t *testing.T) {
	tok := softhsm.New(t)
	soft, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	value, err := soft.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	point, err := soft.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	raw(t, tok, true, func(p *pkcs11.Ctx, h pkcs11.SessionHandle) error {
		pub, private, err := hsm.Template(hsm.CA, "copied", []byte{1}, hsm.P256)
		if err != nil {
			return err
		}
		params := slices.IndexFunc(pub, func(a *pkcs11.Attribute) bool { return a.Type == pkcs11.CKA_EC_PARAMS })
		pub = append(pub, pkcs11.NewAttribute(pkcs11.CKA_EC_POINT, append([]byte{4, byte(len(point))}, point...)))
		private = append(private, pkcs11.NewAttribute(pkcs11.CKA_VALUE, value), pub[params])
		if _, err := p.CreateObject(h, pub); err != nil {
			return err
		}
		_, err = p.CreateObject(h, private)
		return err
	})
	token := open(t, config(tok))
	recorded := map[string]string{}
	_, err = token.Key(t.Context(), hsm.KeySpec{Purpose: hsm.CA, Label: "copied"})
	e, ok := errors.AsType[*hsm.AttributeError](err)
	if !ok {
		t.Fatalf("without a record: %v", err)
	}
	for _, d := range e.Differences {
		recorded[d.Attribute] = d.Got
	}
	if recorded["CKA_LOCAL"] != "false" {
		t.Fatalf("the token tells of its past: %v", recorded)
	}
	find := func(change func(map[string]string)) error {
		m := maps.Clone(recorded)
		change(m)
		_, err := token.Key(t.Context(), hsm.KeySpec{Purpose: hsm.CA, Label: "copied", Recorded: m})
		return err
	}
	if err := find(func(map[string]string) {}); err != nil {
		t.Errorf("as it was recorded: %v", err)
	}
	if err := find(func(m map[string]string) { m["CKA_LOCAL"] = "true" }); err == nil {
		t.Error("another past than the recorded one is accepted")
	}
	if err := find(func(m map[string]string) { delete(m, "CKA_LOCAL") }); err == nil {
		t.Error("a past that was not recorded is accepted")
	}
	if err := find(func(m map[string]string) { m["CKA_EXTRACTABLE"] = "false" }); !errors.Is(err, hsm.ErrPurpose) {
		t.Errorf("another attribute than those of the past: %v", err)
	}
}
