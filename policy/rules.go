package policy

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"math"
	"math/big"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

func itoa[N int | int64](n N) string { return strconv.FormatInt(int64(n), 10) }

// authorization looks at who asks, and for what.
func (r *run) authorization() {
	known := slices.Contains([]string{KindNew, KindRenewal, KindNewLineage}, r.f.Kind)
	r.check("kind", known && (r.f.Kind == KindRenewal) == (r.f.Renewal != nil), r.f.Kind,
		"a request has to be new or a renewal, and its facts have to say which")
	r.check(RuleAuthorization, r.f.Authorization == Authorized, r.f.Authorization, "the request has to be authorized")
}

// tripleDES are the names that triple DES in CBC mode goes by.
var tripleDES = []string{"DES-EDE3-CBC", "DES3-CBC", "3DES-CBC", "DES-CBC3"}

// csrSignatures are the signatures that a request for an RSA key may carry, by
// crypto/x509's names. SHA-1 needs legacy.
var csrSignatures = []string{"SHA256-RSA", "SHA384-RSA", "SHA512-RSA"}

// clients looks at the algorithms of the message and of the CSR.
func (r *run) clients() {
	p := r.c.Clients
	digests, ciphers, signatures := slices.Clone(p.Digests), slices.Clone(p.Ciphers), slices.Clone(csrSignatures)
	if p.SHA1 {
		digests, signatures = append(digests, "SHA-1"), append(signatures, "SHA1-RSA")
	}
	triple := p.DES3 && slices.Contains(tripleDES, r.f.Cipher)
	if p.DES3 {
		ciphers = append(ciphers, tripleDES[0])
	}
	r.check("clients.digests", slices.Contains(digests, r.f.Digest), r.f.Digest,
		"the message's digest has to be one of "+strings.Join(digests, ", "))
	r.check("clients.ciphers", slices.Contains(ciphers, r.f.Cipher) || triple, r.f.Cipher,
		"the message's cipher has to be one of "+strings.Join(ciphers, ", "))
	r.check("clients.csr", slices.Contains(signatures, r.f.CSRSignature), r.f.CSRSignature,
		"the CSR's signature has to be one of "+strings.Join(signatures, ", "))
}

// The exponents that are certified (FIPS 186-5, section 5.4, narrowed to what
// other software can use).
const (
	minExponent = 1<<16 + 1
	maxExponent = 1 << 32
)

// key looks at the key, and that the facts say of it what its DER says.
func (r *run) key() {
	k, rule := r.f.Key, r.c.Key
	r.check(RuleKeyType, k.Type == "RSA", k.Type, "the key has to be an RSA key")
	if k.Type == "RSA" {
		r.check("key.rsa.min", k.Bits >= int64(rule.RSA.Min), itoa(k.Bits), "an RSA key needs "+itoa(rule.RSA.Min)+" bits at least")
		r.check("key.rsa.max", k.Bits <= int64(rule.RSA.Max), itoa(k.Bits), "an RSA key may have "+itoa(rule.RSA.Max)+" bits at most")
		r.check("key.rsa.exponent", k.Exponent >= minExponent && k.Exponent <= maxExponent && k.Exponent%2 == 1, itoa(k.Exponent),
			"an RSA key needs an odd exponent from 65537 to 2^32")
		saw := r.weakness()
		r.check("key.spki", saw == "sound", saw, "the key has to be well formed, and what its facts say")
	}
	ok := rule.Reuse != "same-subject" || r.f.KeyOtherSubject == 0
	r.check("key.reuse", ok, itoa(r.f.KeyOtherSubject)+" (1: certified for another subject)", "the key may not be certified for another subject too")
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
	der, err := base64.StdEncoding.DecodeString(r.f.Key.SPKI)
	if err != nil {
		return "no base64"
	}
	pub, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return "no public key"
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
	return "sound"
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

// subject looks at each attribute that was asked for, and at each rule.
func (r *run) subject() {
	asked := r.f.Subject
	if len(asked) > maxAttributes {
		r.check("subject.count", false, itoa(len(asked)), "a subject may have "+itoa(maxAttributes)+" attributes at most")
		asked = asked[:maxAttributes]
	}
	for _, a := range asked {
		name := canonicalName(a.Name)
		known := slices.ContainsFunc(r.c.subject, func(s subjectRule) bool { return s.typ.name == name })
		if _, ok := typeOf(name); !known && (ok || dotted(name)) {
			r.check("subject."+name, false, a.Value, "the profile does not allow "+name+" in a subject")
		} else if !known {
			r.check("subject.other", false, a.Name+"="+a.Value, "the profile does not allow all attributes of this subject")
		}
	}
	for _, rule := range r.c.subject {
		var values []string
		for _, a := range asked {
			if canonicalName(a.Name) == rule.typ.name {
				values = append(values, a.Value)
			}
		}
		r.attribute(rule, values)
	}
}

func (r *run) attribute(rule subjectRule, values []string) {
	name, at := rule.typ.name, "subject."+rule.typ.name
	if rule.value != "" {
		r.check(at+".value", true, strings.Join(values, ", "), name+" is set by the profile, whatever was asked")
		return
	}
	for _, v := range values {
		if kind, say := valueFault(rule.typ, v); say != "" {
			r.check(at+"."+kind, false, v, say)
		}
		r.check(at+".pattern", rule.pattern != nil && rule.pattern.MatchString(v), v, name+" has to match the profile's pattern")
	}
	if rule.required {
		r.check(at+".required", len(values) > 0, itoa(len(values)), name+" has to be there")
	}
	r.check(at+".max", len(values) <= rule.max, itoa(len(values)), name+" may occur "+itoa(rule.max)+" times at most")
}

// sans looks at the subjectAltNames.
func (r *run) sans() {
	for _, kind := range []struct {
		name   string
		values []string
	}{{"dns", r.f.DNS}, {"ip", r.f.IP}, {"email", r.f.Email}, {"uri", r.f.URI}} {
		values := kind.values
		if len(values) > maxSANs {
			r.check("san."+kind.name+".count", false, itoa(len(values)), "a request may have "+itoa(maxSANs)+" names of one kind at most")
			values = values[:maxSANs]
		}
		if rule := r.c.san[kind.name]; rule != nil {
			r.sanKind(kind.name, rule, values)
			continue
		}
		for _, v := range values {
			r.check("san."+kind.name, false, v, "the profile does not allow subjectAltNames of the kind "+kind.name)
		}
	}
	if n := len(r.f.OtherSAN); n > 0 {
		r.check("san.other", false, strings.Join(r.f.OtherSAN[:min(n, maxSANs)], ", "), "the profile does not allow subjectAltNames of this kind")
	}
}

func (r *run) sanKind(kind string, rule *sanRule, values []string) {
	at := "san." + kind
	seen := map[string]bool{}
	for _, v := range values {
		if say := sanFault(kind, v); say != "" {
			r.check(at+".syntax", false, v, "a subjectAltName of the kind "+kind+" "+say)
		}
		if seen[lower(v)] {
			r.check(at+".twice", false, v, "a subjectAltName may not occur twice")
		}
		seen[lower(v)] = true
		if rule.pattern != nil {
			r.check(at+".pattern", rule.pattern.MatchString(v), v, "a subjectAltName of the kind "+kind+" has to match the profile's pattern")
		}
		if kind == "ip" {
			a, err := netip.ParseAddr(v)
			ok := err == nil && slices.ContainsFunc(rule.networks, func(p netip.Prefix) bool { return p.Contains(a) })
			r.check(at+".networks", ok, v, "an address has to lie in the profile's networks")
		}
		if rule.mustEqual {
			r.check(at+".must_equal", r.isCN(v), v, "a dNSName has to equal the CN")
		}
	}
	if rule.required && (!r.binding || !rule.mustEqual) {
		r.check(at+".required", len(values) > 0, itoa(len(values)), "a subjectAltName of the kind "+kind+" has to be there")
	}
	r.check(at+".max", len(values) <= rule.max, itoa(len(values)), "a request may have "+itoa(rule.max)+" subjectAltNames of the kind "+kind+" at most")
}

// isCN reports whether the name equals the CN as it would be issued.
func (r *run) isCN(v string) bool {
	for _, a := range namesOf(r.c, r.f, true).Subject {
		if a.Name == "CN" && lower(a.Value) == lower(v) {
			return true
		}
	}
	return false
}

// extensions looks at what was asked for besides names, none of which is issued.
func (r *run) extensions() {
	const oidSAN = "2.5.29.17"
	asked := r.f.RequestedExtensions
	for _, e := range asked[:min(len(asked), maxSANs)] {
		id, ca := strings.CutSuffix(e, caMark)
		switch {
		case ca:
			r.check("extensions.basicConstraints", false, id+caMark, "a device may not ask to be a CA")
		case id != oidSAN:
			r.check("extensions.ignored", true, id, "requested extensions are ignored: the profile says what a certificate has")
		}
	}
}

// maxTime bounds the times of facts, in seconds: certificates end before the year
// 10000 (RFC 5280, section 4.1.2.5).
const maxTime = 253402300799 - int64(maxAge/time.Second)

func plausible(times ...int64) bool {
	return !slices.ContainsFunc(times, func(t int64) bool { return t < 0 || t > maxTime })
}

func rfc3339(seconds int64) string { return time.Unix(seconds, 0).UTC().Format(time.RFC3339) }

// renewal looks at what only a renewal has to meet.
func (r *run) renewal() {
	f, rule := r.f.Renewal, r.c.Renewal
	if f == nil {
		return
	}
	r.check("renewal", rule.Allowed, r.f.Kind, "the profile does not allow renewals: enroll again with a new challenge")
	r.check("renewal.names", f.SameNames == 1, itoa(f.SameNames)+" (1: the same)", "a renewal has to have the names of the certificate that it renews")
	if !plausible(f.NotBefore, f.NotAfter, f.LineageStart, r.f.Now) {
		r.check("renewal.times", false, "", "the times of a renewal have to be plausible")
		return
	}
	r.check("renewal.expired", r.f.Now <= f.NotAfter, rfc3339(f.NotAfter), "a renewal has to come before the certificate ends: enroll again with a new challenge")
	if !rule.Allowed {
		return
	}
	opens := rule.Window.Opens(time.Unix(f.NotBefore, 0), time.Unix(f.NotAfter, 0)).Unix()
	r.check("renewal.window", r.f.Now >= opens, rfc3339(r.f.Now), "a renewal of this certificate is allowed from "+rfc3339(opens))
	r.check("renewal.max_count", f.Count < int64(rule.MaxCount), itoa(f.Count),
		"a certificate may be renewed "+itoa(rule.MaxCount)+" times at most: enroll again with a new challenge")
	if rule.NewKey == "required" {
		r.check("renewal.new_key", f.SameKey == 0, itoa(f.SameKey)+" (1: the same)", "a renewal has to have a new key")
	}
}

// limits looks at how much was issued.
func (r *run) limits() {
	l := r.c.Limits
	r.check("limits.active_per_subject", r.f.ActiveForSubject < int64(l.ActivePerSubject), itoa(r.f.ActiveForSubject),
		"a subject may have "+itoa(l.ActivePerSubject)+" living certificates at most")
	if l.PerMinute > 0 {
		r.check("limits.per_minute", r.f.IssuedLastMinute < int64(l.PerMinute), itoa(r.f.IssuedLastMinute),
			"the profile issues "+itoa(l.PerMinute)+" certificates a minute at most: try again")
	}
}

// validity returns the certificate's life: For from Backdate ago, cut at the end
// of the lineage.
func (r *run) validity() built {
	seconds := func(d time.Duration) int64 { return int64(d / time.Second) }
	if !plausible(r.f.Now) || r.f.Now < seconds(maxBackdate) {
		r.check("validity", false, itoa(r.f.Now), "the time has to be plausible")
		return built{}
	}
	v := r.c.Validity
	from := r.f.Now - seconds(v.Backdate)
	to := from + seconds(v.For)
	if age := seconds(r.c.Renewal.MaxAge); age > 0 {
		start := r.f.Now
		if r.f.Renewal != nil && plausible(r.f.Renewal.LineageStart) {
			start = min(start, r.f.Renewal.LineageStart)
		}
		to = min(to, start+age)
		r.check("renewal.max_age", to > r.f.Now, rfc3339(start), "nothing is left of the "+sayDuration(r.c.Renewal.MaxAge)+
			" that a certificate and its renewals may live: enroll again with a new challenge")
	}
	r.check("validity.for", true, rfc3339(from)+" to "+rfc3339(to), "a certificate lives "+sayDuration(v.For)+" at most")
	return built{notBefore: time.Unix(from, 0).UTC(), notAfter: time.Unix(to, 0).UTC()}
}
