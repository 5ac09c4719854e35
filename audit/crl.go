package audit

import "encoding/hex"

// A CRLIntent is what a line commits to before a CA's key signs a list of revoked
// certificates: which list of which CA, and every octet of it by its digest. The
// list itself can be too long for a line; the revocations in it have lines of their own.
type CRLIntent struct {
	Issuer string // the issuer's name in the configuration
	Number uint64 // the CRL number (RFC 5280, section 5.2.3)
	Digest string // hex SHA-256 of the TBSCertList
}

// Object is the value of an intent line's field "crl".
func (i CRLIntent) Object() Object {
	return Object{"issuer": i.Issuer, "number": i.Number, "digest": i.Digest}
}

// CRLIntentOf reads the intent of a line; false if the line intends no CRL.
func CRLIntentOf(l Line) (CRLIntent, bool) {
	if l.Record.Outcome != "intent" {
		return CRLIntent{}, false
	}
	o := l.Record.Object.Object("crl")
	number := o.Int("number")
	sum, err := hex.DecodeString(o.String("digest"))
	if err != nil || len(sum) != 32 || number <= 0 || o.String("issuer") == "" {
		return CRLIntent{}, false
	}
	return CRLIntent{Issuer: o.String("issuer"), Number: uint64(number), Digest: hex.EncodeToString(sum)}, true
}
