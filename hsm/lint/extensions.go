package lint

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// readOID reads an OBJECT IDENTIFIER into its dotted form.
func readOID(in *cryptobyte.String) (string, bool) {
	var id asn1.ObjectIdentifier
	ok := in.ReadASN1ObjectIdentifier(&id)
	return id.String(), ok
}

func extensionRepeated(t *TBS, _ Rules) string {
	for i, e := range t.Extensions {
		if slices.ContainsFunc(t.Extensions[:i], func(f Extension) bool { return f.ID.Equal(e.ID) }) {
			return fmt.Sprintf("%s is there twice", e.ID)
		}
	}
	return ""
}

// known are the extensions that a profile can give a device's certificate.
func known(id asn1.ObjectIdentifier) bool {
	switch id.String() {
	case "2.5.29.14", "2.5.29.15", "2.5.29.17", "2.5.29.19", "2.5.29.31", "2.5.29.32", "2.5.29.35", "2.5.29.37", "1.3.6.1.5.5.7.1.1":
		return true
	}
	return false
}

func extensionUnknown(t *TBS, _ Rules) string {
	for _, e := range t.Extensions {
		if !e.Critical && !known(e.ID) {
			return fmt.Sprintf("%s is not an extension of a device's certificate", e.ID)
		}
	}
	return ""
}

func extensionCriticalUnknown(t *TBS, _ Rules) string {
	for _, e := range t.Extensions {
		if e.Critical && !known(e.ID) {
			return fmt.Sprintf("%s is critical and unknown", e.ID)
		}
	}
	return ""
}

// basicConstraints wants the extension there and saying no: a verifier that
// takes a missing one for permission exists for every decade of X.509.
func basicConstraints(t *TBS, _ Rules) string {
	e, ok := t.extension(2, 5, 29, 19)
	if !ok {
		return "basicConstraints is missing"
	}
	// cA FALSE is the default, and pathLen belongs to a CA: DER leaves both out.
	if !bytes.Equal(e.Value, []byte{0x30, 0}) {
		return "basicConstraints says more than that this is no CA"
	}
	return ""
}

// usageBits reads a KeyUsage (RFC 5280, section 4.2.1.3) with the first named
// bit as the lowest, which is how crypto/x509 counts.
func usageBits(value []byte) (x509.KeyUsage, bool) {
	in := cryptobyte.String(value)
	var s asn1.BitString
	if !in.ReadASN1BitString(&s) || !in.Empty() || s.BitLength == 0 || s.BitLength > 9 || s.At(s.BitLength-1) == 0 {
		return 0, false
	}
	var usage x509.KeyUsage
	for i := range s.BitLength {
		usage |= x509.KeyUsage(s.At(i) << i)
	}
	return usage, true
}

func keyUsage(t *TBS, want Rules) string {
	e, ok := t.extension(2, 5, 29, 15)
	if !ok {
		return ""
	}
	usage, ok := usageBits(e.Value)
	switch {
	case !ok:
		return "keyUsage does not parse or names no usage"
	case !e.Critical:
		return "keyUsage is not critical"
	case usage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return "keyUsage has keyCertSign or cRLSign"
	case want.KeyUsage != 0 && usage&^want.KeyUsage != 0:
		return fmt.Sprintf("keyUsage has bit %d, which is not allowed", bits.TrailingZeros(uint(usage&^want.KeyUsage)))
	}
	return ""
}

func keyUsagePresent(t *TBS, _ Rules) string {
	if _, ok := t.extension(2, 5, 29, 15); !ok {
		return "keyUsage is missing"
	}
	return ""
}

// keyUsageFitsKey holds RFC 8017 and RFC 5480, section 3: RSA keys agree on
// nothing, and elliptic curve keys encipher nothing.
func keyUsageFitsKey(t *TBS, _ Rules) string {
	e, _ := t.extension(2, 5, 29, 15)
	usage, ok := usageBits(e.Value)
	if !ok {
		return ""
	}
	spki := cryptobyte.String(t.SPKI)
	var body, algorithm cryptobyte.String
	if !spki.ReadASN1(&body, cbasn1.SEQUENCE) || !body.ReadASN1(&algorithm, cbasn1.SEQUENCE) {
		return "the key does not parse"
	}
	id, _ := readOID(&algorithm)
	const encipher = x509.KeyUsageKeyEncipherment | x509.KeyUsageDataEncipherment
	const agree = x509.KeyUsageKeyAgreement | x509.KeyUsageEncipherOnly | x509.KeyUsageDecipherOnly
	if rsa := id == "1.2.840.113549.1.1.1"; rsa && usage&agree != 0 || !rsa && usage&encipher != 0 {
		return "keyUsage has a usage that a key of this type cannot serve"
	}
	return ""
}

func extendedKeyUsage(t *TBS, want Rules) string {
	e, ok := t.extension(2, 5, 29, 37)
	if !ok {
		return ""
	}
	in := cryptobyte.String(e.Value)
	var list cryptobyte.String
	if !in.ReadASN1(&list, cbasn1.SEQUENCE) || !in.Empty() || list.Empty() {
		return "extKeyUsage does not parse or names no usage"
	}
	var seen []asn1.ObjectIdentifier
	for !list.Empty() {
		var id asn1.ObjectIdentifier
		if !list.ReadASN1ObjectIdentifier(&id) {
			return "extKeyUsage does not parse"
		}
		has := func(ids []asn1.ObjectIdentifier) bool { return slices.ContainsFunc(ids, id.Equal) }
		switch {
		case has(seen):
			return fmt.Sprintf("extKeyUsage has %s twice", id)
		case power(id):
			return fmt.Sprintf("extKeyUsage has %s, which no device may have", id)
		case want.ExtKeyUsage != nil && !has(want.ExtKeyUsage):
			return fmt.Sprintf("extKeyUsage has %s, which is not allowed", id)
		}
		seen = append(seen, id)
	}
	return ""
}

// power reports whether an extended usage is one over others, which no
// certificate of a device has: any usage; signing code, time stamps and OCSP
// answers; enrolling, logging on or recovering keys for others; being a CA.
func power(id asn1.ObjectIdentifier) bool {
	arcs := [...]string{
		"2.5.29.37.", "1.3.6.1.5.5.7.3.3.", "1.3.6.1.5.5.7.3.8.", "1.3.6.1.5.5.7.3.9.",
		"1.3.6.1.5.5.7.3.26.", "1.3.6.1.5.5.7.3.27.", "1.3.6.1.5.5.7.3.28.", // CMC: archive, CA, RA (RFC 6402)
		"1.3.6.1.5.2.3.",                                                        // Kerberos (RFC 4556)
		"1.3.6.1.4.1.311.10.3.", "1.3.6.1.4.1.311.20.2.", "1.3.6.1.4.1.311.21.", // Microsoft: trust lists, enrollment, logon, recovery
		"1.2.840.113635.100.4.", // Apple: code
	}
	dotted := id.String() + "."
	return slices.ContainsFunc(arcs[:], func(arc string) bool { return strings.HasPrefix(dotted, arc) })
}

func extendedKeyUsagePresent(t *TBS, _ Rules) string {
	if _, ok := t.extension(2, 5, 29, 37); !ok {
		return "extKeyUsage is missing: the certificate would be good for any use"
	}
	return ""
}

// altNames reads a SubjectAltName. Kinds that policy cannot decide on are not
// ok: otherName, directoryName, registeredID and the rest.
func altNames(value []byte) (n Names, ok bool) {
	in := cryptobyte.String(value)
	var list cryptobyte.String
	if !in.ReadASN1(&list, cbasn1.SEQUENCE) || !in.Empty() || list.Empty() {
		return n, false
	}
	for !list.Empty() {
		var v cryptobyte.String
		var tag cbasn1.Tag
		if !list.ReadAnyASN1(&v, &tag) {
			return n, false
		}
		switch tag {
		case cbasn1.Tag(1).ContextSpecific():
			n.Email = append(n.Email, string(v))
		case cbasn1.Tag(2).ContextSpecific():
			n.DNS = append(n.DNS, string(v))
		case cbasn1.Tag(6).ContextSpecific():
			n.URI = append(n.URI, string(v))
		case cbasn1.Tag(7).ContextSpecific():
			ip, fits := netip.AddrFromSlice(v)
			if !fits {
				return n, false
			}
			n.IP = append(n.IP, ip)
		default:
			return n, false
		}
	}
	return n, true
}

func subjectAltName(t *TBS, want Rules) string {
	e, there := t.extension(2, 5, 29, 17)
	var n Names
	if there {
		var ok bool
		if n, ok = altNames(e.Value); !ok {
			return "subjectAltName is empty, does not parse, or has a kind of name that is not decided on"
		}
	}
	if w := want.Names; w != nil && (!same(n.DNS, w.DNS) || !same(n.Email, w.Email) || !same(n.URI, w.URI) || !slices.Equal(sorted(n.IP), sorted(w.IP))) {
		return "subjectAltName has other names than were decided on"
	}
	return ""
}

func same(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

func sorted(ips []netip.Addr) []netip.Addr {
	return slices.SortedFunc(slices.Values(ips), netip.Addr.Compare)
}

// subjectAltNameCritical holds RFC 5280, section 4.2.1.6: critical where the
// subject is empty, and there at all then.
func subjectAltNameCritical(t *TBS, _ Rules) string {
	e, there := t.extension(2, 5, 29, 17)
	empty := bytes.Equal(t.Subject, []byte{0x30, 0})
	switch {
	case empty && !there:
		return "neither the subject nor subjectAltName has a name"
	case there && empty != e.Critical:
		return "subjectAltName is critical exactly where the subject is empty"
	}
	return ""
}

// dnsName holds the preferred name syntax (RFC 1034, section 3.5), with a
// wildcard as the whole first label.
func dnsName(t *TBS, _ Rules) string {
	e, there := t.extension(2, 5, 29, 17)
	if !there {
		return ""
	}
	n, _ := altNames(e.Value)
	for _, name := range n.DNS {
		if len(name) > 253 || !hostname(strings.TrimPrefix(name, "*.")) {
			return fmt.Sprintf("%q is not a host name", name)
		}
	}
	return ""
}

func hostname(name string) bool {
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
	}
	return true
}

// KeyID returns the subjectKeyIdentifier of a key: the first 160 bits of SHA-256
// over the contents of its BIT STRING (RFC 7093, section 2, method 1).
func KeyID(keyBits []byte) []byte {
	sum := sha256.Sum256(keyBits)
	return sum[:20]
}

func subjectKeyID(t *TBS, _ Rules) string {
	e, ok := t.extension(2, 5, 29, 14)
	in := cryptobyte.String(e.Value)
	var id cryptobyte.String
	if !ok || e.Critical || !in.ReadASN1(&id, cbasn1.OCTET_STRING) || !in.Empty() || !bytes.Equal(id, KeyID(t.KeyBits)) {
		return "subjectKeyIdentifier is missing, critical, or not the key's (RFC 7093, method 1)"
	}
	return ""
}

func authorityKeyID(t *TBS, want Rules) string {
	e, ok := t.extension(2, 5, 29, 35)
	in := cryptobyte.String(e.Value)
	var body, id cryptobyte.String
	if !ok || e.Critical || !in.ReadASN1(&body, cbasn1.SEQUENCE) || !in.Empty() ||
		!body.ReadASN1(&id, cbasn1.Tag(0).ContextSpecific()) || !body.Empty() || differs(id, want.AuthorityKeyID) {
		return "authorityKeyIdentifier is missing, critical, or not the CA's"
	}
	return ""
}
