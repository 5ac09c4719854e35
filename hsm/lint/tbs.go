package lint

import (
	"encoding/asn1"
	"errors"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// MaxTBS is the size in bytes above which a TBSCertificate is not looked at. The
// record of an intent holds no more: 8 KiB in base64.
const MaxTBS = 6 << 10

// maxExtensions is far above what a profile can ask for.
const maxExtensions = 32

// Errors of [Parse]: the bytes are not one TBSCertificate in DER.
var (
	ErrTooLarge   = errors.New("lint: the bytes to be signed are too many")
	ErrStructure  = errors.New("lint: not a TBSCertificate")
	ErrSerial     = errors.New("lint: bad serialNumber")
	ErrValidity   = errors.New("lint: bad validity")
	ErrExtensions = errors.New("lint: bad extensions")
)

// TBS is a TBSCertificate (RFC 5280, section 4.1). The byte fields are slices of
// the input, complete with tag and length unless they say otherwise.
type TBS struct {
	Version             int    // 2 means v3
	Serial              []byte // contents of the INTEGER
	SignatureAlgorithm  []byte
	Issuer, Subject     []byte
	NotBefore, NotAfter time.Time
	SPKI                []byte
	KeyBits             []byte // contents of the SPKI's BIT STRING, without the count of unused bits
	Extensions          []Extension

	IssuerUniqueID, SubjectUniqueID []byte // contents, nil where absent
}

// An Extension is one of a certificate's.
type Extension struct {
	ID       asn1.ObjectIdentifier
	Critical bool
	Value    []byte // contents of the OCTET STRING
}

// Parse reads one TBSCertificate, strictly: DER only, nothing after it, no
// element that the structure does not name.
func Parse(der []byte) (*TBS, error) {
	if len(der) > MaxTBS {
		return nil, ErrTooLarge
	}
	in, t := cryptobyte.String(der), &TBS{}
	var body, validity cryptobyte.String
	if !in.ReadASN1(&body, cbasn1.SEQUENCE) || !in.Empty() || !t.readVersion(&body) {
		return nil, ErrStructure
	}
	if !t.readSerial(&body) {
		return nil, ErrSerial
	}
	if !readElement(&body, &t.SignatureAlgorithm) || !readElement(&body, &t.Issuer) || !body.ReadASN1(&validity, cbasn1.SEQUENCE) {
		return nil, ErrStructure
	}
	if !readTime(&validity, &t.NotBefore) || !readTime(&validity, &t.NotAfter) || !validity.Empty() {
		return nil, ErrValidity
	}
	if !readElement(&body, &t.Subject) || !t.readKey(&body) || !t.readUniqueIDs(&body) {
		return nil, ErrStructure
	}
	if !t.readExtensions(&body) {
		return nil, ErrExtensions
	}
	if !body.Empty() {
		return nil, ErrStructure
	}
	return t, nil
}

// readElement reads one SEQUENCE with its tag and length.
func readElement(in *cryptobyte.String, out *[]byte) bool {
	var s cryptobyte.String
	ok := in.ReadASN1Element(&s, cbasn1.SEQUENCE)
	*out = s
	return ok
}

func (t *TBS) readVersion(in *cryptobyte.String) bool {
	var v cryptobyte.String
	var there bool
	if !in.ReadOptionalASN1(&v, &there, cbasn1.Tag(0).Constructed().ContextSpecific()) {
		return false
	}
	if !there {
		return true
	}
	// 0, the default, must be left out in DER.
	return v.ReadASN1Integer(&t.Version) && v.Empty() && t.Version > 0
}

// readSerial takes any INTEGER in its shortest form; the rule for serials says
// which of them will do.
func (t *TBS) readSerial(in *cryptobyte.String) bool {
	var s cryptobyte.String
	if !in.ReadASN1(&s, cbasn1.INTEGER) || len(s) == 0 {
		return false
	}
	if len(s) > 1 && (s[0] == 0 && s[1] < 0x80 || s[0] == 0xff && s[1] >= 0x80) {
		return false
	}
	t.Serial = s
	return true
}

// readTime reads a Time in the only two forms that RFC 5280, section 4.1.2.5,
// allows: UTCTime until 2049 and GeneralizedTime from 2050, in whole seconds, Z.
func readTime(in *cryptobyte.String, out *time.Time) bool {
	if in.PeekASN1Tag(cbasn1.UTCTime) {
		var raw cryptobyte.String
		if peek := *in; !peek.ReadASN1(&raw, cbasn1.UTCTime) || len(raw) != len("060102150405Z") {
			return false
		}
		return in.ReadASN1UTCTime(out)
	}
	var raw cryptobyte.String
	if peek := *in; !peek.ReadASN1(&raw, cbasn1.GeneralizedTime) || len(raw) != len("20060102150405Z") {
		return false
	}
	return in.ReadASN1GeneralizedTime(out) && out.Year() >= 2050
}

func (t *TBS) readKey(in *cryptobyte.String) (ok bool) {
	if !readElement(in, &t.SPKI) {
		return false
	}
	t.KeyBits, ok = keyBits(t.SPKI)
	return ok
}

func keyBits(spki []byte) (bits []byte, ok bool) {
	in := cryptobyte.String(spki)
	var body, algorithm cryptobyte.String
	ok = in.ReadASN1(&body, cbasn1.SEQUENCE) && in.Empty() && body.ReadASN1(&algorithm, cbasn1.SEQUENCE) &&
		body.ReadASN1BitStringAsBytes(&bits) && body.Empty()
	return bits, ok
}

// KeyBits returns the contents of the BIT STRING of a DER SubjectPublicKeyInfo,
// which [KeyID] takes.
func KeyBits(spki []byte) ([]byte, error) {
	bits, ok := keyBits(spki)
	if !ok {
		return nil, ErrStructure
	}
	return bits, nil
}

func (t *TBS) readUniqueIDs(in *cryptobyte.String) bool {
	for n, out := range []*[]byte{&t.IssuerUniqueID, &t.SubjectUniqueID} {
		var id cryptobyte.String
		var there bool
		if !in.ReadOptionalASN1(&id, &there, cbasn1.Tag(n+1).ContextSpecific()) {
			return false
		}
		if there {
			*out = append([]byte{}, id...)
		}
	}
	return true
}

func (t *TBS) readExtensions(in *cryptobyte.String) bool {
	var outer, list cryptobyte.String
	var there bool
	if !in.ReadOptionalASN1(&outer, &there, cbasn1.Tag(3).Constructed().ContextSpecific()) {
		return false
	}
	if !there {
		return true
	}
	if !outer.ReadASN1(&list, cbasn1.SEQUENCE) || !outer.Empty() || list.Empty() {
		return false
	}
	for !list.Empty() {
		var one cryptobyte.String
		var e Extension
		if len(t.Extensions) == maxExtensions || !list.ReadASN1(&one, cbasn1.SEQUENCE) || !one.ReadASN1ObjectIdentifier(&e.ID) {
			return false
		}
		if one.PeekASN1Tag(cbasn1.BOOLEAN) && (!one.ReadASN1Boolean(&e.Critical) || !e.Critical) {
			return false // FALSE, the default, must be left out in DER
		}
		if !one.ReadASN1((*cryptobyte.String)(&e.Value), cbasn1.OCTET_STRING) || !one.Empty() {
			return false
		}
		t.Extensions = append(t.Extensions, e)
	}
	return true
}

// extension returns the first extension of that identifier.
func (t *TBS) extension(id ...int) (Extension, bool) {
	i := slices.IndexFunc(t.Extensions, func(e Extension) bool { return e.ID.Equal(id) })
	if i < 0 {
		return Extension{}, false
	}
	return t.Extensions[i], true
}
