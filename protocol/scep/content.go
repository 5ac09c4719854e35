package scep

import (
	"errors"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// ErrContent says that what an envelope holds does not fit the type of its message.
var ErrContent = errors.New("scep: content of the envelope")

// An IssuerAndSerial names one certificate (RFC 5652, section 10.2.4): what a
// GetCert and a GetCRL hold (RFC 8894, section 3.3.4).
type IssuerAndSerial struct {
	Issuer []byte // DER of the Name
	Serial []byte // the INTEGER's content octets, not empty
}

// maxSerial bounds a serial number, in octets: 20 (RFC 5280, section 4.1.2.2) and
// some for CAs that do not keep to that.
const maxSerial = 64

// ParseIssuerAndSerial reads exactly one IssuerAndSerialNumber in DER; the error is
// [ErrContent]. The result keeps references to der.
func ParseIssuerAndSerial(der []byte) (IssuerAndSerial, error) {
	in := cryptobyte.String(der)
	var body, issuer, rdns, serial cryptobyte.String
	if !in.ReadASN1(&body, cbasn1.SEQUENCE) || !in.Empty() || !body.ReadASN1Element(&issuer, cbasn1.SEQUENCE) ||
		!body.ReadASN1(&serial, cbasn1.INTEGER) || !body.Empty() || len(serial) == 0 || len(serial) > maxSerial {
		return IssuerAndSerial{}, ErrContent
	}
	name := issuer
	if !name.ReadASN1(&rdns, cbasn1.SEQUENCE) || !isName(rdns) {
		return IssuerAndSerial{}, ErrContent
	}
	return IssuerAndSerial{Issuer: issuer, Serial: serial}, nil
}

// isName reports whether these are RDNs of at least one attribute each.
func isName(rdns cryptobyte.String) bool {
	for !rdns.Empty() {
		var rdn cryptobyte.String
		if !rdns.ReadASN1(&rdn, cbasn1.SET) || rdn.Empty() {
			return false
		}
		for !rdn.Empty() {
			var attribute, value cryptobyte.String
			var tag cbasn1.Tag
			if !rdn.ReadASN1(&attribute, cbasn1.SEQUENCE) || !attribute.SkipASN1(cbasn1.OBJECT_IDENTIFIER) ||
				!attribute.ReadAnyASN1(&value, &tag) || !attribute.Empty() {
				return false
			}
		}
	}
	return true
}
