package lint

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"math/bits"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Bounds of a serial number: enough bits that it cannot be guessed before it is
// signed, and at most 20 octets (RFC 5280, section 4.1.2.2).
const (
	minSerialBits = 64
	maxSerialBits = 159
)

func version(t *TBS, _ Rules) string {
	if t.Version != 2 {
		return fmt.Sprintf("version is %d, wants 2 (v3)", t.Version)
	}
	return ""
}

func serial(t *TBS, _ Rules) string {
	if t.Serial[0] >= 0x80 {
		return "the serial number is negative"
	}
	digits := bytes.TrimLeft(t.Serial, "\x00")
	n := 0
	if len(digits) > 0 {
		n = 8*(len(digits)-1) + bits.Len8(digits[0])
	}
	if n < minSerialBits || n > maxSerialBits {
		return fmt.Sprintf("the serial number has %d bits, wants %d to %d", n, minSerialBits, maxSerialBits)
	}
	return ""
}

func signatureAlgorithm(t *TBS, want Rules) string {
	if differs(t.SignatureAlgorithm, want.SignatureAlgorithm) {
		return "the signature algorithm does not fit the issuer's key"
	}
	return ""
}

func issuer(t *TBS, want Rules) string {
	if differs(t.Issuer, want.Issuer) {
		return "the issuer is not the CA's subject"
	}
	return ""
}

func validityOrder(t *TBS, _ Rules) string {
	if !t.NotBefore.Before(t.NotAfter) {
		return fmt.Sprintf("ends %s, before it begins", t.NotAfter.Format(time.RFC3339))
	}
	return ""
}

func validityLength(t *TBS, want Rules) string {
	if d := t.NotAfter.Sub(t.NotBefore); want.MaxValidity > 0 && d > want.MaxValidity {
		return fmt.Sprintf("valid for %s, at most %s are allowed", d, want.MaxValidity)
	}
	return ""
}

func validityIssuer(t *TBS, want Rules) string {
	if !want.IssuerNotAfter.IsZero() && t.NotAfter.After(want.IssuerNotAfter) {
		return fmt.Sprintf("ends %s, after the CA's own certificate", t.NotAfter.Format(time.RFC3339))
	}
	return ""
}

func subject(t *TBS, want Rules) string {
	if differs(t.Subject, want.Subject) {
		return "the subject is not the one that was decided on"
	}
	return ""
}

func subjectNotIssuer(t *TBS, _ Rules) string {
	if bytes.Equal(t.Subject, t.Issuer) {
		return "the subject is the issuer's name: the certificate would pass for self-issued"
	}
	return ""
}

// An ava is one attribute type and value of a name.
type ava struct {
	id    string // dotted
	tag   cbasn1.Tag
	value []byte
}

// avas reads a Name (RFC 5280, section 4.1.2.4).
func avas(name []byte) (all []ava, ok bool) {
	in := cryptobyte.String(name)
	var rdns cryptobyte.String
	if !in.ReadASN1(&rdns, cbasn1.SEQUENCE) || !in.Empty() {
		return nil, false
	}
	for !rdns.Empty() {
		var rdn cryptobyte.String
		if !rdns.ReadASN1(&rdn, cbasn1.SET) || rdn.Empty() {
			return nil, false
		}
		for !rdn.Empty() {
			var one, value cryptobyte.String
			var a ava
			if !rdn.ReadASN1(&one, cbasn1.SEQUENCE) {
				return nil, false
			}
			if a.id, ok = readOID(&one); !ok || !one.ReadAnyASN1(&value, &a.tag) || !one.Empty() {
				return nil, false
			}
			a.value = value
			all = append(all, a)
		}
	}
	return all, true
}

func subjectString(t *TBS, _ Rules) string {
	all, ok := avas(t.Subject)
	if !ok {
		return "the subject is not a Name"
	}
	for _, a := range all {
		switch {
		case len(a.value) == 0:
			return a.id + " is empty"
		case a.tag != cbasn1.UTF8String && a.tag != cbasn1.PrintableString && a.tag != cbasn1.IA5String:
			return fmt.Sprintf("%s is a string of type %d", a.id, a.tag)
		case a.tag == cbasn1.PrintableString && !printable(a.value):
			return a.id + " has characters that a PrintableString has not"
		case a.tag == cbasn1.IA5String && bytes.ContainsFunc(a.value, func(r rune) bool { return r > unicode.MaxASCII }):
			return a.id + " has characters that an IA5String has not"
		case !utf8.Valid(a.value):
			return a.id + " is not UTF-8"
		case bytes.ContainsFunc(a.value, unicode.IsControl):
			return a.id + " has a control character"
		}
	}
	return ""
}

// printable reports whether b is a PrintableString (X.680, section 41.4).
func printable(b []byte) bool {
	return !bytes.ContainsFunc(b, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(" '()+,-./:=?", r)
	})
}

// subjectLength holds the upper bounds of RFC 5280, appendix A.1.
func subjectLength(t *TBS, _ Rules) string {
	bounds := map[string]int{
		"2.5.4.3": 64, "2.5.4.5": 64, "2.5.4.6": 2, "2.5.4.7": 128, "2.5.4.8": 128,
		"2.5.4.10": 64, "2.5.4.11": 64, "2.5.4.12": 64, "1.2.840.113549.1.9.1": 255,
	}
	all, _ := avas(t.Subject)
	for _, a := range all {
		n := utf8.RuneCount(a.value)
		if limit, ok := bounds[a.id]; ok && (n > limit || a.id == "2.5.4.6" && n != limit) {
			return fmt.Sprintf("%s has %d characters, its bound is %d", a.id, n, limit)
		}
	}
	return ""
}

func key(t *TBS, want Rules) string {
	if differs(t.SPKI, want.SPKI) {
		return "the key is not the one that was asked for"
	}
	return ""
}

// keyStrength refuses keys that no profile should let through; what a profile
// wants beyond that is policy's business.
func keyStrength(t *TBS, _ Rules) string {
	pub, err := x509.ParsePKIXPublicKey(t.SPKI)
	if err != nil {
		return "the key does not parse"
	}
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		if n := pub.N.BitLen(); n < 2048 || n > 16384 {
			return fmt.Sprintf("an RSA key of %d bits", n)
		}
		if pub.E < 65537 || pub.E%2 == 0 || pub.N.Bit(0) == 0 {
			return fmt.Sprintf("an RSA key with exponent %d, or an even modulus", pub.E)
		}
	case *ecdsa.PublicKey:
		if pub.Curve == elliptic.P224() {
			return "a key on P-224"
		}
	case ed25519.PublicKey:
	default:
		return fmt.Sprintf("a key of type %T", pub)
	}
	return ""
}

func keyNotIssuer(t *TBS, want Rules) string {
	if want.IssuerSPKI != nil && bytes.Equal(t.SPKI, want.IssuerSPKI) {
		return "the key is the CA's own"
	}
	return ""
}

func uniqueIDs(t *TBS, _ Rules) string {
	if t.IssuerUniqueID != nil || t.SubjectUniqueID != nil {
		return "has issuerUniqueID or subjectUniqueID, which RFC 5280 forbids"
	}
	return ""
}
