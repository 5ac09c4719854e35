package status

import (
	"bytes"
	"crypto"
	"encoding/asn1"
	"encoding/hex"
	"errors"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// MaxRequest bounds a question, in octets. One about one certificate, with a nonce and
// a signature's worth of anything else, has less.
const MaxRequest = 1 << 10

// ErrMalformed says that the octets are no question about one certificate.
var ErrMalformed = errors.New("status: no OCSP request about one certificate")

// ErrHash says that a question names its issuer by a hash that is not known.
var ErrHash = errors.New("status: a CertID of another hash than SHA-1 and SHA-256")

// ParseRequest reads an OCSPRequest (RFC 6960, section 4.1.1) about one certificate. A
// requestor's name, a signature and extensions are passed over: nothing here depends
// on who asks.
func ParseRequest(der []byte) (CertID, error) {
	in := cryptobyte.String(der)
	var outer, tbs, list, one, id cryptobyte.String
	if len(der) > MaxRequest || !in.ReadASN1(&outer, cbasn1.SEQUENCE) || !in.Empty() || !outer.ReadASN1(&tbs, cbasn1.SEQUENCE) {
		return CertID{}, ErrMalformed
	}
	if !outer.SkipOptionalASN1(tag(0)) || !outer.Empty() { // the signature
		return CertID{}, ErrMalformed
	}
	var version cryptobyte.String
	var there bool
	if !tbs.ReadOptionalASN1(&version, &there, tag(0)) || there && !v1(version) || !tbs.SkipOptionalASN1(tag(1)) ||
		!tbs.ReadASN1(&list, cbasn1.SEQUENCE) || !tbs.SkipOptionalASN1(tag(2)) || !tbs.Empty() {
		return CertID{}, ErrMalformed
	}
	if !list.ReadASN1(&one, cbasn1.SEQUENCE) || !list.Empty() || !one.ReadASN1(&id, cbasn1.SEQUENCE) || !one.SkipOptionalASN1(tag(0)) || !one.Empty() {
		return CertID{}, ErrMalformed
	}
	return certID(id)
}

func tag(n uint8) cbasn1.Tag { return cbasn1.Tag(n).Constructed().ContextSpecific() }

// v1 reads a version that is written out although it is the default, as some do.
func v1(in cryptobyte.String) bool {
	var v int
	return in.ReadASN1Integer(&v) && in.Empty() && v == 0
}

func certID(in cryptobyte.String) (CertID, error) {
	var alg, name, key, serial cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !in.ReadASN1(&alg, cbasn1.SEQUENCE) || !alg.ReadASN1ObjectIdentifier(&oid) || !in.ReadASN1(&name, cbasn1.OCTET_STRING) ||
		!in.ReadASN1(&key, cbasn1.OCTET_STRING) || !in.ReadASN1(&serial, cbasn1.INTEGER) || !in.Empty() {
		return CertID{}, ErrMalformed
	}
	if !alg.Empty() && !bytes.Equal(alg, asn1.NullBytes) {
		return CertID{}, ErrMalformed
	}
	digits := bytes.TrimLeft(serial, "\x00")
	if len(serial) == 0 || len(serial) > 21 || len(digits) > 20 || len(digits) == 0 || serial[0] >= 0x80 || len(serial) > 1 && serial[0] == 0 && serial[1] < 0x80 {
		return CertID{}, ErrMalformed
	}
	out := CertID{NameHash: name, KeyHash: key, Serial: hex.EncodeToString(digits)}
	switch {
	case oid.Equal(asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}):
		out.Hash = crypto.SHA1
	case oid.Equal(asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}):
		out.Hash = crypto.SHA256
	default:
		return CertID{}, ErrHash
	}
	if n := map[crypto.Hash]int{crypto.SHA1: 20, crypto.SHA256: 32}[out.Hash]; len(name) != n || len(key) != n {
		return CertID{}, ErrMalformed
	}
	return out, nil
}

// Request returns the DER of the question about a certificate in the one form that RFC
// 5019, section 2.1.1, has for it: what a client that follows it sends by GET.
func (id CertID) Request() ([]byte, error) {
	serial, err := hex.DecodeString(id.Serial)
	serial = bytes.TrimLeft(serial, "\x00")
	if err != nil || len(serial) == 0 || len(serial) > 20 {
		return nil, ErrMalformed
	}
	oid := asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	if id.Hash == crypto.SHA1 {
		oid = asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}
	}
	nested := func(add cryptobyte.BuilderContinuation) cryptobyte.BuilderContinuation {
		return func(b *cryptobyte.Builder) { b.AddASN1(cbasn1.SEQUENCE, add) }
	}
	var b cryptobyte.Builder
	nested(nested(nested(nested(nested(func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oid)
			b.AddASN1NULL()
		})
		b.AddASN1OctetString(id.NameHash)
		b.AddASN1OctetString(id.KeyHash)
		b.AddASN1(cbasn1.INTEGER, func(b *cryptobyte.Builder) {
			if serial[0] >= 0x80 {
				b.AddUint8(0)
			}
			b.AddBytes(serial)
		})
	})))))(&b)
	return b.Bytes()
}
