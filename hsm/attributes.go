package hsm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/pkcs11"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// A Purpose is the one thing that a key is for. It is fixed at generation, by
// the attributes of the key, and read back whenever the key is found.
type Purpose string

// The purposes.
const (
	CA        Purpose = "ca"         // signs certificates and CRLs
	RASign    Purpose = "ra-sign"    // signs answers
	RADecrypt Purpose = "ra-decrypt" // opens envelopes, and signs nothing
	RA        Purpose = "ra"         // signs answers and opens envelopes: weaker than two keys
	TLS       Purpose = "tls"        // signs handshakes
	Audit     Purpose = "audit"      // signs checkpoints and manifests
	OCSP      Purpose = "ocsp"       // answers about certificates
)

// An Algorithm is a kind of key, with its size.
type Algorithm string

// The algorithms.
const (
	RSA2048 Algorithm = "RSA-2048"
	RSA3072 Algorithm = "RSA-3072"
	RSA4096 Algorithm = "RSA-4096"
	P256    Algorithm = "P-256"
	P384    Algorithm = "P-384"
)

// Bits returns the size of the modulus or of the curve; 0 if a is unknown.
func (a Algorithm) Bits() int {
	switch a {
	case RSA2048:
		return 2048
	case RSA3072:
		return 3072
	case RSA4096:
		return 4096
	case P256:
		return 256
	case P384:
		return 384
	}
	return 0
}

// IsRSA reports whether a is an RSA algorithm.
func (a Algorithm) IsRSA() bool { return a.Bits() >= 2048 }

// Algorithms returns what a key of this purpose may be, the usual choice first;
// none for an unknown purpose.
func (p Purpose) Algorithms() []Algorithm {
	switch p {
	case CA:
		return []Algorithm{P256, P384, RSA2048, RSA3072, RSA4096}
	case RASign, RADecrypt, RA:
		return []Algorithm{RSA2048, RSA3072, RSA4096}
	case TLS, Audit, OCSP:
		return []Algorithm{P256} // what checkpoints are signed with, and every device knows
	default:
		return nil
	}
}

// signs and opens say what a purpose allows.
func (p Purpose) signs() bool { return p != RADecrypt }
func (p Purpose) opens() bool { return p == RADecrypt || p == RA }

// signMechanism is the only one that a key signs with. RSA signs a DigestInfo whose hash
// is seen here; it decrypts raw, so that no token looks at the padding and tells failures.
func signMechanism(rsa bool) uint {
	if rsa {
		return pkcs11.CKM_RSA_PKCS
	}
	return pkcs11.CKM_ECDSA
}

// mechanisms is the list of what a key may be used with, as it lies in memory.
func mechanisms(p Purpose, rsa bool) (out []byte) {
	if p.signs() {
		out = ulong(signMechanism(rsa))
	}
	if p.opens() {
		out = append(out, ulong(pkcs11.CKM_RSA_X_509)...)
	}
	return out
}

// A Tier says what a token that does not know an attribute means.
type Tier string

// The tiers.
const (
	Required    Tier = "required"     // the key is refused
	IfSupported Tier = "if-supported" // it is reported as not supported
)

// A Finding is one attribute as the token has it. Values are "true", "false",
// hexadecimal numbers, or words; Got is "unreadable: CKR_..." if it was not told.
type Finding struct {
	Attribute string
	Tier      Tier
	Want, Got string
	OK        bool // as wanted
	Supported bool // the token told a value
}

// An AttributeError lists every attribute in which a key is not what it has to be.
type AttributeError struct {
	Key         string
	Differences []Finding
}

// Error names the differences.
func (e *AttributeError) Error() string {
	var all []string
	for _, d := range e.Differences {
		all = append(all, fmt.Sprintf("%s is %s, must be %s", d.Attribute, d.Got, d.Want))
	}
	return fmt.Sprintf("hsm: key %q: %s", e.Key, strings.Join(all, "; "))
}

// A rule is one attribute of a private key. readOnly ones are the token's own
// statement about the key's history and cannot be asked for.
type rule struct {
	typ      uint
	name     string
	want     []byte
	tier     Tier
	readOnly bool
}

func flag(v bool) []byte {
	if v {
		return []byte{1}
	}
	return []byte{0}
}

// ulong is a CK_ULONG in memory: all supported machines are 64-bit, and the
// binding copies attribute values as they lie there.
func ulong(v uint) []byte { return binary.NativeEndian.AppendUint64(nil, uint64(v)) }

// privateRules is the whole of what is fixed for a private key (PKCS #11 v2.40,
// sections 4.7 to 4.9). SIGN_RECOVER and MODIFIABLE default to true where
// nothing is said, and on a modifiable key the rest means nothing.
func privateRules(p Purpose, rsa bool) []rule {
	gen := uint(pkcs11.CKM_EC_KEY_PAIR_GEN)
	kind := uint(pkcs11.CKK_EC)
	if rsa {
		gen, kind = pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, pkcs11.CKK_RSA
	}
	return []rule{
		{pkcs11.CKA_CLASS, "CKA_CLASS", ulong(pkcs11.CKO_PRIVATE_KEY), Required, false},
		{pkcs11.CKA_KEY_TYPE, "CKA_KEY_TYPE", ulong(kind), Required, false},
		{pkcs11.CKA_TOKEN, "CKA_TOKEN", flag(true), Required, false},
		{pkcs11.CKA_PRIVATE, "CKA_PRIVATE", flag(true), Required, false},
		{pkcs11.CKA_SENSITIVE, "CKA_SENSITIVE", flag(true), Required, false},
		{pkcs11.CKA_ALWAYS_SENSITIVE, "CKA_ALWAYS_SENSITIVE", flag(true), Required, true},
		{pkcs11.CKA_EXTRACTABLE, "CKA_EXTRACTABLE", flag(false), Required, false},
		{pkcs11.CKA_NEVER_EXTRACTABLE, "CKA_NEVER_EXTRACTABLE", flag(true), Required, true},
		{pkcs11.CKA_LOCAL, "CKA_LOCAL", flag(true), Required, true},
		{pkcs11.CKA_MODIFIABLE, "CKA_MODIFIABLE", flag(false), Required, false},
		{pkcs11.CKA_SIGN, "CKA_SIGN", flag(p.signs()), Required, false},
		{pkcs11.CKA_DECRYPT, "CKA_DECRYPT", flag(p.opens()), Required, false},
		{pkcs11.CKA_SIGN_RECOVER, "CKA_SIGN_RECOVER", flag(false), Required, false},
		{pkcs11.CKA_UNWRAP, "CKA_UNWRAP", flag(false), Required, false},
		{pkcs11.CKA_DERIVE, "CKA_DERIVE", flag(false), Required, false},
		{pkcs11.CKA_WRAP, "CKA_WRAP", flag(false), IfSupported, true}, // no attribute of a private key; some tokens have it all the same
		{pkcs11.CKA_ALWAYS_AUTHENTICATE, "CKA_ALWAYS_AUTHENTICATE", flag(false), IfSupported, true},
		{pkcs11.CKA_KEY_GEN_MECHANISM, "CKA_KEY_GEN_MECHANISM", ulong(gen), IfSupported, true},
		{pkcs11.CKA_ALLOWED_MECHANISMS, "CKA_ALLOWED_MECHANISMS", mechanisms(p, rsa), IfSupported, false},
		{pkcs11.CKA_COPYABLE, "CKA_COPYABLE", flag(false), IfSupported, false},
		{pkcs11.CKA_DESTROYABLE, "CKA_DESTROYABLE", flag(false), IfSupported, false},
	}
}

// publicRules is what is fixed for the public half. It is checked because a
// public key that wraps would let the token's other keys out under this one.
func publicRules(p Purpose, rsa bool) []rule {
	kind := uint(pkcs11.CKK_EC)
	if rsa {
		kind = pkcs11.CKK_RSA
	}
	return []rule{
		{pkcs11.CKA_CLASS, "public CKA_CLASS", ulong(pkcs11.CKO_PUBLIC_KEY), Required, false},
		{pkcs11.CKA_KEY_TYPE, "public CKA_KEY_TYPE", ulong(kind), Required, false},
		{pkcs11.CKA_TOKEN, "public CKA_TOKEN", flag(true), Required, false},
		{pkcs11.CKA_MODIFIABLE, "public CKA_MODIFIABLE", flag(false), Required, false},
		{pkcs11.CKA_VERIFY, "public CKA_VERIFY", flag(p.signs()), Required, false},
		{pkcs11.CKA_ENCRYPT, "public CKA_ENCRYPT", flag(p.opens()), Required, false},
		{pkcs11.CKA_VERIFY_RECOVER, "public CKA_VERIFY_RECOVER", flag(false), Required, false},
		{pkcs11.CKA_WRAP, "public CKA_WRAP", flag(false), Required, false},
		{pkcs11.CKA_DERIVE, "public CKA_DERIVE", flag(false), Required, false},
	}
}

// Template returns the attributes that a key pair of this purpose is generated
// with, those of both tiers. It is ErrAlgorithm if the purpose does not have the algorithm.
func Template(p Purpose, label string, id []byte, alg Algorithm) (public, private []*pkcs11.Attribute, err error) {
	return template(p, label, id, alg, nil)
}

// optional are the attributes of the second tier that can be asked for, as sets
// to leave out, one after the other, for a token that does not know them all:
// COPYABLE and DESTROYABLE are younger than the rest.
func optional() [][]uint {
	younger := []uint{pkcs11.CKA_COPYABLE, pkcs11.CKA_DESTROYABLE}
	return [][]uint{nil, younger, append(younger, pkcs11.CKA_ALLOWED_MECHANISMS)}
}

func template(p Purpose, label string, id []byte, alg Algorithm, without []uint) (public, private []*pkcs11.Attribute, err error) {
	if !slices.Contains(p.Algorithms(), alg) {
		return nil, nil, &Error{Op: "template", Key: label, Err: fmt.Errorf("%w: %q for purpose %q", ErrAlgorithm, alg, p)}
	}
	if label == "" || len(id) == 0 {
		return nil, nil, &Error{Op: "template", Key: label, Err: fmt.Errorf("a key needs a label and an id")}
	}
	fill := func(rules []rule) []*pkcs11.Attribute {
		out := []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
			pkcs11.NewAttribute(pkcs11.CKA_ID, bytes.Clone(id)),
		}
		for _, r := range rules {
			if !r.readOnly && !slices.Contains(without, r.typ) {
				out = append(out, pkcs11.NewAttribute(r.typ, r.want))
			}
		}
		return out
	}
	public, private = fill(publicRules(p, alg.IsRSA())), fill(privateRules(p, alg.IsRSA()))
	if alg.IsRSA() {
		public = append(public,
			pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, alg.Bits()),
			pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}))
	} else {
		public = append(public, pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, curveOID(alg)))
	}
	return public, private, nil
}

// curveOID is the DER of the curve's name (RFC 5480, section 2.1.1.1).
func curveOID(a Algorithm) []byte {
	if a == P384 {
		return []byte{0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22}
	}
	return []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}
}

// Rules lists what a key of this purpose and algorithm is held to, as findings
// without a value: for a plan or a transcript to show.
func Rules(p Purpose, alg Algorithm) []Finding {
	var out []Finding
	for _, r := range append(privateRules(p, alg.IsRSA()), publicRules(p, alg.IsRSA())...) {
		out = append(out, Finding{Attribute: r.name, Tier: r.tier, Want: r.show(r.want)})
	}
	return out
}

func (r rule) show(v []byte) string {
	switch {
	case len(v) == 1 && v[0] <= 1:
		return strconv.FormatBool(v[0] == 1)
	case len(v) == 8:
		return "0x" + strconv.FormatUint(binary.NativeEndian.Uint64(v), 16)
	default:
		return "0x" + hex.EncodeToString(v)
	}
}

// audit reads each attribute on its own, because one that a token does not know
// makes some tokens refuse all that were asked for with it.
func (t *Token) audit(h pkcs11.SessionHandle, o pkcs11.ObjectHandle, rules []rule) ([]Finding, error) {
	var out []Finding
	for _, r := range rules {
		f := Finding{Attribute: r.name, Tier: r.tier, Want: r.show(r.want)}
		got, err := t.module.p11.GetAttributeValue(h, o, []*pkcs11.Attribute{pkcs11.NewAttribute(r.typ, nil)})
		code, asked := CodeOf(err)
		switch {
		case err != nil && (!asked || code.Class() != ClassOther) && (r.tier == Required || !t.answers(h, o)):
			return nil, err
		case err != nil:
			f.Got = "unreadable: " + code.String()
		case r.typ == pkcs11.CKA_ALLOWED_MECHANISMS && len(got) == 1 && got[0].Value != nil && len(got[0].Value) == 0:
			f.Supported, f.Got = true, "any mechanism" // it knows the attribute, and has an empty list
		case len(got) != 1 || len(got[0].Value) == 0:
			f.Got = "unreadable: no value"
		default:
			f.Supported, f.Got = true, r.show(got[0].Value)
			f.OK = bytes.Equal(got[0].Value, r.want)
		}
		out = append(out, f)
	}
	return out, nil
}

// answers tells whether the token still does: one that is reached through p11-kit
// 0.24 answers a list of mechanisms with CKR_DEVICE_ERROR, and nothing is wrong with it.
func (t *Token) answers(h pkcs11.SessionHandle, o pkcs11.ObjectHandle) bool {
	_, err := t.value(h, o, pkcs11.CKA_CLASS)
	return err == nil
}

// differences picks what makes a key unusable: every value that is not the
// wanted one, and every required one that the token does not tell.
func differences(found []Finding) (out []Finding) {
	for _, f := range found {
		if !f.OK && (f.Supported || f.Tier == Required) {
			out = append(out, f)
		}
	}
	return out
}

func (t *Token) readPublic(h pkcs11.SessionHandle, o pkcs11.ObjectHandle) (crypto.PublicKey, Algorithm, error) {
	kind, err := t.value(h, o, pkcs11.CKA_KEY_TYPE)
	if err != nil {
		return nil, "", err
	}
	switch {
	case bytes.Equal(kind, ulong(pkcs11.CKK_RSA)):
		return t.readRSA(h, o)
	case bytes.Equal(kind, ulong(pkcs11.CKK_EC)):
		return t.readEC(h, o)
	default:
		return nil, "", fmt.Errorf("%w: key type 0x%x", ErrAlgorithm, kind)
	}
}

func (t *Token) readRSA(h pkcs11.SessionHandle, o pkcs11.ObjectHandle) (crypto.PublicKey, Algorithm, error) {
	n, err := t.value(h, o, pkcs11.CKA_MODULUS)
	if err != nil {
		return nil, "", err
	}
	e, err := t.value(h, o, pkcs11.CKA_PUBLIC_EXPONENT)
	if err != nil {
		return nil, "", err
	}
	pub := &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}
	if !bytes.Equal(bytes.TrimLeft(e, "\x00"), []byte{1, 0, 1}) {
		return nil, "", fmt.Errorf("%w: an RSA public exponent other than 65537", ErrAlgorithm)
	}
	for _, a := range []Algorithm{RSA2048, RSA3072, RSA4096} {
		if pub.N.BitLen() == a.Bits() {
			return pub, a, nil
		}
	}
	return nil, "", fmt.Errorf("%w: RSA with %d bits", ErrAlgorithm, pub.N.BitLen())
}

// readEC reads a point that is wrapped in an OCTET STRING, as PKCS #11 v2.40
// (section 2.3.3 of the mechanisms) has it, or bare, as some tokens have it.
func (t *Token) readEC(h pkcs11.SessionHandle, o pkcs11.ObjectHandle) (crypto.PublicKey, Algorithm, error) {
	params, err := t.value(h, o, pkcs11.CKA_EC_PARAMS)
	if err != nil {
		return nil, "", err
	}
	point, err := t.value(h, o, pkcs11.CKA_EC_POINT)
	if err != nil {
		return nil, "", err
	}
	curve, alg := elliptic.P256(), P256
	switch {
	case bytes.Equal(params, curveOID(P256)):
	case bytes.Equal(params, curveOID(P384)):
		curve, alg = elliptic.P384(), P384
	default:
		return nil, "", fmt.Errorf("%w: curve %x", ErrAlgorithm, params)
	}
	wrapped := cryptobyte.String(point)
	var inner cryptobyte.String
	if wrapped.ReadASN1(&inner, asn1.OCTET_STRING) && wrapped.Empty() {
		point = inner
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrAlgorithm, err)
	}
	return pub, alg, nil
}
