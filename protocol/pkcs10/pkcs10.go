// Package pkcs10 reads certificate requests (RFC 2986) with all their
// attributes, the challenge among them, which crypto/x509 drops.
//
// # What a caller may rely on
//
// [Parse] is strict about the encoding: DER, nothing left over at any level, no
// attribute type or extension twice, every list bounded. It reads what is asked
// and decides nothing. Strings are valid UTF-8 and otherwise as they were: one
// with a NUL keeps it, so that policy can refuse it. A challenge is a
// [Password], which cannot be printed or marshaled, and a [Request] prints as
// little.
//
// Errors are those of package cms: ErrMalformed, ErrTrailing, ErrTooMany,
// ErrAlgorithm and ErrSignature.
//
// # What it does not protect against
//
// A parsed request proves nothing before [Request.CheckSignature], and then only
// that its maker had the private key. Names are not checked against any syntax,
// and SHA-1 is accepted in the request's own signature: a collision there gains
// its maker nothing. Secrets stay in memory until the garbage collector takes them.
package pkcs10

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"io"
	"net/netip"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/postern-pki/postern/protocol/cms"
)

// Bounds on what one request may hold, far above what a certificate can have.
const (
	maxNames      = 64  // attributes of the subject
	maxSANs       = 256 // names in subjectAltName
	maxAttributes = 64  // values of attributes
	maxExtensions = 64
)

// A Name is one attribute of the subject.
type Name struct {
	Type  asn1.ObjectIdentifier
	Value string // UTF-8
	Multi bool   // it stands in a relative distinguished name of several attributes
}

// A Request is a certificate request, parsed and not yet verified. Its own
// octets hold the challenge, so it prints and marshals as a [Password] does; only
// %p and a %w that is no error, which vet refuses, get around that.
type Request struct {
	Raw        []byte // the whole request, DER
	RawTBS     []byte // CertificationRequestInfo with its tag, what is signed
	RawSubject []byte // Name with its tag
	RawSPKI    []byte // SubjectPublicKeyInfo with its tag

	PublicKey          crypto.PublicKey // nil if its type is none of RSA, ECDSA and Ed25519
	Subject            []Name           // in the order of the request
	Challenge          *Password        // nil if there is none, or an empty one
	DNSNames           []string         // of subjectAltName, as are the next four
	Emails             []string
	URIs               []string
	IPs                []netip.Addr
	OtherSANs          []string                // any other name: the OID of an otherName, else its kind, such as directoryName
	Extensions         []pkix.Extension        // all that are requested, subjectAltName among them
	SignatureAlgorithm x509.SignatureAlgorithm // zero if it is none that crypto/x509 has a name for, or RSA-PSS
	Attributes         []cms.Attribute         // neither challenge nor extensions; a type of several values has an entry for each

	signature []byte
}

// Format implements [fmt.Formatter], for every verb.
func (Request) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// MarshalText implements [encoding.TextMarshaler].
func (Request) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON implements [json.Marshaler].
func (Request) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// Attributes that have a meaning here (RFC 2985, section 5.4). Microsoft and
// VeriSign gave extensionRequest an OID of their own before there was one, and
// clients still use them.
var (
	oidChallenge           = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}
	oidExtensions          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}
	oidMicrosoftExtensions = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 14}
	oidVeriSignExtensions  = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 8}
	oidSubjectAltName      = asn1.ObjectIdentifier{2, 5, 29, 17}
)

func malformed(what string) error { return fmt.Errorf("%w: request: %s", cms.ErrMalformed, what) }

func trailing(after string) error { return fmt.Errorf("%w: request: after %s", cms.ErrTrailing, after) }

func tooMany(what string) error { return fmt.Errorf("%w: request: %s", cms.ErrTooMany, what) }

const (
	tagContext   = cbasn1.Tag(0x80) // [n] IMPLICIT, primitive
	tagContext0C = cbasn1.Tag(0xa0) // [0], constructed
	tagBMP       = cbasn1.Tag(30)   // BMPString
	tagUniversal = cbasn1.Tag(28)   // UniversalString
	tagVisible   = cbasn1.Tag(26)   // VisibleString
	tagNumeric   = cbasn1.Tag(18)   // NumericString
)

// Parse reads one request. The result keeps references to der.
func Parse(der []byte) (*Request, error) {
	in := cryptobyte.String(der)
	var outer, tbs, bits cryptobyte.String
	if !in.ReadASN1(&outer, cbasn1.SEQUENCE) {
		return nil, malformed("not a SEQUENCE")
	}
	if !in.Empty() {
		return nil, trailing("the request")
	}
	if !outer.ReadASN1Element(&tbs, cbasn1.SEQUENCE) {
		return nil, malformed("CertificationRequestInfo")
	}
	r := &Request{Raw: der, RawTBS: tbs}
	var err error
	if r.SignatureAlgorithm, err = readSignatureAlgorithm(&outer); err != nil {
		return nil, err
	}
	if !outer.ReadASN1(&bits, cbasn1.BIT_STRING) || len(bits) < 2 || bits[0] != 0 {
		return nil, malformed("signature")
	}
	if !outer.Empty() {
		return nil, trailing("the signature")
	}
	r.signature = bits[1:]
	if err := r.readInfo(tbs); err != nil {
		return nil, err
	}
	return r, nil
}

// readInfo reads a CertificationRequestInfo.
func (r *Request) readInfo(tbs cryptobyte.String) error {
	var info, subject, spki, attributes cryptobyte.String
	var version int
	if !tbs.ReadASN1(&info, cbasn1.SEQUENCE) || !info.ReadASN1Integer(&version) || version != 0 {
		return malformed("version")
	}
	if !info.ReadASN1Element(&subject, cbasn1.SEQUENCE) || !info.ReadASN1Element(&spki, cbasn1.SEQUENCE) {
		return malformed("subject or key")
	}
	// RFC 2986 has the attributes always; some clients leave out an empty set.
	if !info.ReadOptionalASN1(&attributes, nil, tagContext0C) {
		return malformed("attributes")
	}
	if !info.Empty() {
		return trailing("the attributes")
	}
	r.RawSubject, r.RawSPKI = subject, spki
	var err error
	if r.Subject, err = readName(subject); err != nil {
		return err
	}
	if r.PublicKey, err = cms.ParsePublicKey(spki); err != nil {
		return err
	}
	return r.readAttributes(attributes)
}

// readAttributes reads the SET OF Attribute: each type once, challengePassword
// and extensionRequest with exactly one value.
func (r *Request) readAttributes(set cryptobyte.String) error {
	var seen []asn1.ObjectIdentifier
	for !set.Empty() {
		var attribute, values cryptobyte.String
		var oid asn1.ObjectIdentifier
		if len(seen) == maxAttributes {
			return tooMany("attributes")
		}
		if !set.ReadASN1(&attribute, cbasn1.SEQUENCE) || !attribute.ReadASN1ObjectIdentifier(&oid) || !attribute.ReadASN1(&values, cbasn1.SET) {
			return malformed("attribute")
		}
		if !attribute.Empty() {
			return trailing("an attribute")
		}
		if slices.ContainsFunc(seen, oid.Equal) {
			return malformed("attribute twice")
		}
		seen = append(seen, oid)
		var err error
		switch {
		case oid.Equal(oidChallenge):
			r.Challenge, err = readChallenge(values)
		case oid.Equal(oidExtensions), oid.Equal(oidMicrosoftExtensions), oid.Equal(oidVeriSignExtensions):
			err = r.readExtensions(values)
		default:
			err = r.readOther(oid, values)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readOther keeps the values of an attribute that has no meaning here.
func (r *Request) readOther(oid asn1.ObjectIdentifier, values cryptobyte.String) error {
	for !values.Empty() {
		var value cryptobyte.String
		var tag cbasn1.Tag
		if len(r.Attributes) == maxAttributes {
			return tooMany("attribute values")
		}
		if !values.ReadAnyASN1Element(&value, &tag) {
			return malformed("attribute value")
		}
		r.Attributes = append(r.Attributes, cms.Attribute{Type: oid, Value: value})
	}
	return nil
}

// readChallenge reads the value of challengePassword (RFC 2985, section 5.4.1).
// Its bound of 255 characters is not kept by the field: some services issue
// challenges of kilobytes.
func readChallenge(values cryptobyte.String) (*Password, error) {
	var content cryptobyte.String
	var tag cbasn1.Tag
	if !values.ReadAnyASN1(&content, &tag) || !values.Empty() {
		return nil, malformed("challengePassword is not one value")
	}
	switch tag {
	case cbasn1.PrintableString, cbasn1.UTF8String, cbasn1.IA5String, cbasn1.T61String, tagBMP, tagUniversal, tagVisible, tagNumeric:
	default:
		return nil, malformed("string type of challengePassword")
	}
	s, err := decodeString(tag, content)
	if err != nil || s == "" { // which a renewal may have in the place of none
		return nil, err
	}
	return newPassword([]byte(s)), nil
}

// readExtensions reads the value of an extensionRequest. A request may have it
// under several OIDs; an extension is refused the second time all the same.
func (r *Request) readExtensions(values cryptobyte.String) error {
	var list cryptobyte.String
	if !values.ReadASN1(&list, cbasn1.SEQUENCE) || !values.Empty() {
		return malformed("extensionRequest is not one value")
	}
	for !list.Empty() {
		var ext, value cryptobyte.String
		var e pkix.Extension
		if len(r.Extensions) == maxExtensions {
			return tooMany("extensions")
		}
		if !list.ReadASN1(&ext, cbasn1.SEQUENCE) || !ext.ReadASN1ObjectIdentifier(&e.Id) ||
			ext.PeekASN1Tag(cbasn1.BOOLEAN) && !ext.ReadASN1Boolean(&e.Critical) || !ext.ReadASN1(&value, cbasn1.OCTET_STRING) {
			return malformed("extension")
		}
		if !ext.Empty() {
			return trailing("an extension")
		}
		if slices.ContainsFunc(r.Extensions, func(x pkix.Extension) bool { return x.Id.Equal(e.Id) }) {
			return malformed("extension twice")
		}
		e.Value = value
		r.Extensions = append(r.Extensions, e)
		if e.Id.Equal(oidSubjectAltName) {
			if err := r.readSANs(value); err != nil {
				return err
			}
		}
	}
	return nil
}
