package cms

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// A Certificate is what is read of a certificate, whatever crypto/x509 thinks of
// it. Self-signed certificates of devices often have negative serial numbers or
// strings that it refuses; they only carry a key and a name here.
type Certificate struct {
	Raw          []byte           // the whole certificate, DER
	RawIssuer    []byte           // Name, DER with its tag
	RawSubject   []byte           // Name, DER with its tag
	RawSerial    []byte           // the INTEGER's content octets, as they were
	RawSPKI      []byte           // SubjectPublicKeyInfo, DER with its tag
	SubjectKeyID []byte           // nil if there is no such extension
	PublicKey    crypto.PublicKey // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey; nil for any other type
}

var (
	oidSubjectKeyID = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidECPublicKey  = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidEd25519      = asn1.ObjectIdentifier{1, 3, 101, 112}
)

// maxExtensions bounds the extensions of one certificate.
const maxExtensions = 64

// ParseCertificate reads one certificate (RFC 5280, section 4.1): the DER
// structure strictly, the values leniently. The errors are [ErrMalformed],
// [ErrTrailing], [ErrTooMany], and [ErrAlgorithm] for a key as [ParsePublicKey]
// says. The result keeps references to der.
func ParseCertificate(der []byte) (*Certificate, error) {
	in := cryptobyte.String(der)
	var outer, tbs, signature cryptobyte.String
	if !in.ReadASN1(&outer, cbasn1.SEQUENCE) {
		return nil, malformed("Certificate")
	}
	if !in.Empty() {
		return nil, trailing("Certificate")
	}
	if !outer.ReadASN1(&tbs, cbasn1.SEQUENCE) {
		return nil, malformed("TBSCertificate")
	}
	if _, _, ok := readAlgorithm(&outer); !ok || !outer.ReadASN1(&signature, cbasn1.BIT_STRING) {
		return nil, malformed("signature of Certificate")
	}
	if !outer.Empty() {
		return nil, trailing("signature of Certificate")
	}
	c := &Certificate{Raw: der}
	if err := c.readTBS(tbs); err != nil {
		return nil, err
	}
	var err error
	if c.PublicKey, err = ParsePublicKey(c.RawSPKI); err != nil {
		return nil, err
	}
	return c, nil
}

// readTBS reads the fields of a TBSCertificate.
func (c *Certificate) readTBS(tbs cryptobyte.String) error {
	var issuer, validity, subject, spki, serial cryptobyte.String
	if !tbs.SkipOptionalASN1(tagExplicit0) || !tbs.ReadASN1(&serial, cbasn1.INTEGER) || len(serial) == 0 {
		return malformed("version or serial number")
	}
	if _, _, ok := readAlgorithm(&tbs); !ok {
		return malformed("signature algorithm")
	}
	if !tbs.ReadASN1Element(&issuer, cbasn1.SEQUENCE) || !tbs.ReadASN1(&validity, cbasn1.SEQUENCE) ||
		!tbs.ReadASN1Element(&subject, cbasn1.SEQUENCE) || !tbs.ReadASN1Element(&spki, cbasn1.SEQUENCE) {
		return malformed("names, validity or key")
	}
	c.RawSerial, c.RawIssuer, c.RawSubject, c.RawSPKI = serial, issuer, subject, spki
	const issuerUID, subjectUID, extensions = tagPrimitive0 | 1, tagPrimitive0 | 2, tagExplicit0 | 3
	var list cryptobyte.String
	var present bool
	if !tbs.SkipOptionalASN1(issuerUID) || !tbs.SkipOptionalASN1(subjectUID) || !tbs.ReadOptionalASN1(&list, &present, extensions) {
		return malformed("extensions")
	}
	if !tbs.Empty() {
		return trailing("TBSCertificate's fields")
	}
	if !present {
		return nil
	}
	return c.readExtensions(list)
}

// readExtensions looks for the subject key identifier.
func (c *Certificate) readExtensions(explicit cryptobyte.String) error {
	var list cryptobyte.String
	if !explicit.ReadASN1(&list, cbasn1.SEQUENCE) || !explicit.Empty() {
		return malformed("extensions")
	}
	for n := 0; !list.Empty(); n++ {
		var ext, value cryptobyte.String
		var oid asn1.ObjectIdentifier
		if n == maxExtensions {
			return fmt.Errorf("%w: extensions", ErrTooMany)
		}
		if !list.ReadASN1(&ext, cbasn1.SEQUENCE) || !ext.ReadASN1ObjectIdentifier(&oid) {
			return malformed("extension")
		}
		if !ext.SkipOptionalASN1(cbasn1.BOOLEAN) || !ext.ReadASN1(&value, cbasn1.OCTET_STRING) || !ext.Empty() {
			return malformed("extension's value")
		}
		if !oid.Equal(oidSubjectKeyID) {
			continue
		}
		var id cryptobyte.String
		if c.SubjectKeyID != nil || !value.ReadASN1(&id, cbasn1.OCTET_STRING) || !value.Empty() || len(id) == 0 {
			return malformed("subject key identifier")
		}
		c.SubjectKeyID = id
	}
	return nil
}

// ParsePublicKey reads a SubjectPublicKeyInfo. The key is nil, without an error,
// if its type is none of RSA, ECDSA on a NIST curve, and Ed25519. An RSA key
// with a modulus over 8192 bits or an exponent that is even, under 3 or over
// 2^32 is refused as [ErrAlgorithm]: checking with it would be expensive for us,
// and proves little.
func ParsePublicKey(spki []byte) (crypto.PublicKey, error) {
	in := cryptobyte.String(spki)
	var body, bits cryptobyte.String
	if !in.ReadASN1(&body, cbasn1.SEQUENCE) || !in.Empty() {
		return nil, malformed("SubjectPublicKeyInfo")
	}
	oid, params, ok := readAlgorithm(&body)
	if !ok || !body.ReadASN1(&bits, cbasn1.BIT_STRING) || !body.Empty() || len(bits) == 0 {
		return nil, malformed("SubjectPublicKeyInfo")
	}
	switch {
	case oid.Equal(OIDRSAEncryption):
		if !noParams(params) || bits[0] != 0 {
			return nil, malformed("RSA key")
		}
		return parseRSA(bits[1:])
	case oid.Equal(oidECPublicKey):
		return parseEC(spki, params)
	case oid.Equal(oidEd25519):
		if params != nil || bits[0] != 0 || len(bits) != 1+ed25519.PublicKeySize {
			return nil, malformed("Ed25519 key")
		}
		return ed25519.PublicKey(bits[1:]), nil
	default:
		return nil, nil
	}
}

// parseRSA reads an RSAPublicKey (RFC 8017, appendix A.1.1).
func parseRSA(key cryptobyte.String) (crypto.PublicKey, error) {
	const maxModulusBits, maxExponent = 8192, 1 << 32
	var body cryptobyte.String
	var modulus, exponent []byte
	// Read as octets first: the size is known before a number is made of them.
	if !key.ReadASN1(&body, cbasn1.SEQUENCE) || !key.Empty() || !readPositive(&body, &modulus) || !readPositive(&body, &exponent) || !body.Empty() {
		return nil, malformed("RSA key")
	}
	if len(modulus) > maxModulusBits/8 || len(exponent) > 5 {
		return nil, fmt.Errorf("%w: RSA key of %d octets, exponent of %d", ErrAlgorithm, len(modulus), len(exponent))
	}
	e := new(big.Int).SetBytes(exponent).Int64()
	if e < 3 || e > maxExponent || e&1 == 0 || modulus[len(modulus)-1]&1 == 0 {
		return nil, fmt.Errorf("%w: RSA exponent %d", ErrAlgorithm, e)
	}
	return &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: int(e)}, nil
}

// readPositive reads a positive INTEGER as octets without leading zeros.
func readPositive(s *cryptobyte.String, out *[]byte) bool {
	return s.ReadASN1Integer(out) && len(*out) > 0 && (*out)[0] != 0
}

// parseEC reads a key on one of the curves of crypto/x509; the point is checked
// to be on it.
func parseEC(spki []byte, params cryptobyte.String) (crypto.PublicKey, error) {
	var curve asn1.ObjectIdentifier
	if !params.ReadASN1ObjectIdentifier(&curve) || !params.Empty() {
		return nil, nil // explicit parameters: no curve that we know
	}
	known := []asn1.ObjectIdentifier{{1, 2, 840, 10045, 3, 1, 7}, {1, 3, 132, 0, 34}, {1, 3, 132, 0, 35}, {1, 3, 132, 0, 33}}
	for _, k := range known {
		if !curve.Equal(k) {
			continue
		}
		pub, err := x509.ParsePKIXPublicKey(spki)
		if key, ok := pub.(*ecdsa.PublicKey); err == nil && ok {
			return key, nil
		}
		return nil, malformed("point of an EC key")
	}
	return nil, nil
}
