package policy

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"math"
	"math/big"
	"math/bits"
	"slices"
	"strings"
)

// The exponents that are certified (FIPS 186-5, section 5.4, narrowed to what
// other software can use).
const (
	minExponent = 1<<16 + 1
	maxExponent = 1 << 32
)

// The types of keys that can be certified, as [KeyFacts] name them.
const (
	keyRSA   = "RSA"
	keyECDSA = "ECDSA"
)

// takes reports whether keys of a type are certified.
func (k KeyRule) takes(kind string) bool {
	switch kind {
	case keyRSA:
		return k.RSA.Max > 0
	case keyECDSA:
		return len(k.ECDSA.Curves) > 0
	default:
		return false
	}
}

// key looks at the key, and that the facts say of it what its DER says.
func (r *run) key() {
	k, rule := r.f.Key, r.c.Key
	say := "the key has to be an RSA key"
	switch {
	case rule.takes(keyRSA) && rule.takes(keyECDSA):
		say = "the key has to be an RSA or an ECDSA key"
	case rule.takes(keyECDSA):
		say = "the key has to be an ECDSA key"
	}
	r.check(RuleKeyType, rule.takes(k.Type), k.Type, say)
	switch {
	case !rule.takes(k.Type):
	case k.Type == keyECDSA:
		r.check("key.ecdsa.curves", slices.Contains(rule.ECDSA.Curves, k.Curve), k.Curve, "the curve has to be one of "+strings.Join(rule.ECDSA.Curves, ", "))
		saw := r.curve()
		r.check("key.spki", saw == sound, saw, "the key has to be well formed, and what its facts say")
	default:
		r.check("key.rsa.min", k.Bits >= int64(rule.RSA.Min), itoa(k.Bits), "an RSA key needs "+itoa(rule.RSA.Min)+" bits at least")
		r.check("key.rsa.max", k.Bits <= int64(rule.RSA.Max), itoa(k.Bits), "an RSA key may have "+itoa(rule.RSA.Max)+" bits at most")
		r.check("key.rsa.exponent", k.Exponent >= minExponent && k.Exponent <= maxExponent && k.Exponent%2 == 1, itoa(k.Exponent),
			"an RSA key needs an odd exponent from 65537 to 2^32")
		saw := r.weakness()
		r.check("key.spki", saw == sound, saw, "the key has to be well formed, and what its facts say")
	}
	ok := rule.Reuse != "same-subject" || r.f.KeyOtherSubject == 0
	r.check("key.reuse", ok, itoa(r.f.KeyOtherSubject)+" (1: certified for another subject)", "the key may not be certified for another subject too")
}

// sound is what is said of a key that nothing is wrong with.
const sound = "sound"

// public returns the key of the facts, or nil and what is wrong.
func (r *run) public() (any, string) {
	der, err := base64.StdEncoding.DecodeString(r.f.Key.SPKI)
	if err != nil {
		return nil, "no base64"
	}
	pub, err := x509.ParsePKIXPublicKey(der) // a point is checked to be on its curve
	if err != nil {
		return nil, "no public key"
	}
	return pub, ""
}

// curve returns "sound", or what is wrong with the ECDSA key.
func (r *run) curve() string {
	pub, wrong := r.public()
	if wrong != "" {
		return wrong
	}
	k, ok := pub.(*ecdsa.PublicKey)
	if !ok || k.Params().Name != r.f.Key.Curve || int64(k.Params().BitSize) != r.f.Key.Bits {
		return "another key than the facts say"
	}
	return sound
}

// smallPrimes are the odd primes below 752.
var smallPrimes = [...]uint64{
	3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107,
	109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167, 173, 179, 181, 191, 193, 197, 199, 211, 223, 227,
	229, 233, 239, 241, 251, 257, 263, 269, 271, 277, 281, 283, 293, 307, 311, 313, 317, 331, 337, 347, 349,
	353, 359, 367, 373, 379, 383, 389, 397, 401, 409, 419, 421, 431, 433, 439, 443, 449, 457, 461, 463, 467,
	479, 487, 491, 499, 503, 509, 521, 523, 541, 547, 557, 563, 569, 571, 577, 587, 593, 599, 601, 607, 613,
	617, 619, 631, 641, 643, 647, 653, 659, 661, 673, 677, 683, 691, 701, 709, 719, 727, 733, 739, 743, 751,
}

// smallFactor reports whether a small prime divides n: then n was not made from
// two large ones. It divides by as many of them at once as fit a word.
func smallFactor(n *big.Int) bool {
	for i := 0; i < len(smallPrimes); {
		first, product := i, uint64(1)
		for ; i < len(smallPrimes) && product <= math.MaxUint64/smallPrimes[i]; i++ {
			product *= smallPrimes[i]
		}
		r := mod(n, product)
		for _, p := range smallPrimes[first:i] {
			if r%p == 0 {
				return true
			}
		}
	}
	return n.Bit(0) == 0
}

// mod returns |n| modulo m, which is not 0. [big.Int.Mod] makes a quotient too.
func mod(n *big.Int, m uint64) (r uint64) {
	if bits.UintSize == 64 {
		for _, w := range slices.Backward(n.Bits()) {
			_, r = bits.Div64(r, uint64(w), m)
		}
		return r
	}
	return new(big.Int).Mod(new(big.Int).Abs(n), new(big.Int).SetUint64(m)).Uint64()
}

// weakness returns "sound", or what is wrong with the RSA key.
func (r *run) weakness() string {
	pub, wrong := r.public()
	if wrong != "" {
		return wrong
	}
	k, ok := pub.(*rsa.PublicKey)
	switch {
	case !ok, int64(k.N.BitLen()) != r.f.Key.Bits, int64(k.E) != r.f.Key.Exponent:
		return "another key than the facts say"
	case smallFactor(k.N):
		return "a modulus with a small factor"
	case infineon(k.N):
		return "a modulus of the form that CVE-2017-15361 is about"
	case closePrimes(k.N):
		return "a modulus of two primes that lie close together"
	}
	return sound
}

// infineon reports whether a modulus is, modulo each small prime, a power of
// 65537: so are all that Infineon's library made (ROCA: Nemec and others, CCS
// 2017), which smart cards and TPMs of that time hold, and no other in 2^27.
func infineon(n *big.Int) bool {
	for _, p := range smallPrimes[:38] { // to 167
		r := mod(n, p)
		power, found := uint64(1), r == 1
		for i := uint64(1); i < p && !found; i++ {
			power = power * 65537 % p
			found = power == r
		}
		if !found {
			return false
		}
	}
	return true
}

// closePrimes reports whether Fermat's method splits n within 100 steps, which
// it does for primes that were searched one after the other (CVE-2022-26320:
// printers and network gear). A step looks at residues alone, and at the numbers
// themselves where they could be those of a square.
func closePrimes(n *big.Int) bool {
	const steps = 100
	moduli := [...]uint64{64, 63, 55, 13, 17, 19, 23, 29, 31}
	all := uint64(1)
	var squares [len(moduli)]uint64 // bit r is set if r is a square
	for i, m := range moduli {
		all *= m
		for x := range m {
			squares[i] |= 1 << (x * x % m)
		}
	}
	a := new(big.Int).Sqrt(n)
	a.Add(a, big.NewInt(1))
	difference := new(big.Int).Mul(a, a)
	difference.Sub(difference, n)               // n = a² - difference
	ra, rd := mod(a, all), mod(difference, all) // a² is over n: neither is negative
	for step := range uint64(steps) {
		maybe := true
		for i, m := range moduli {
			if squares[i]>>(rd%m)&1 == 0 {
				maybe = false
				break
			}
		}
		if maybe {
			b := new(big.Int).Add(a, new(big.Int).SetUint64(step))
			b.Sub(b.Mul(b, b), n)
			if root := new(big.Int).Sqrt(b); root.Mul(root, root).Cmp(b) == 0 {
				return true
			}
		}
		rd = (rd + 2*(ra+step) + 1) % all // (a+1)² = a² + 2a + 1
	}
	return false
}
