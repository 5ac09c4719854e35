package scep

import (
	"bytes"
	"crypto/rsa"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/postern-pki/postern/protocol/cms"
)

// Context-specific tags of a SignedData and a SignerInfo (RFC 5652, sections 5.1
// and 5.3).
const (
	tag0 = cbasn1.Tag(0xa0)
	tag1 = cbasn1.Tag(0xa1)
)

// claimed returns the signed attributes of a message whose signature nobody here
// can verify, or whose content is of another type, so that its sender can be told
// what was not understood.
// Nothing of it is proven, and nothing but a FAILURE comes of it. why is for the
// log; there are no attributes if they cannot be found.
func claimed(der []byte) (attrs []cms.Attribute, why string) {
	why = "signature algorithm unknown"
	in := cryptobyte.String(der)
	var info, explicit, body, certificates, signers, signer, sid, signed cryptobyte.String
	if !in.ReadASN1(&info, cbasn1.SEQUENCE) || !info.SkipASN1(cbasn1.OBJECT_IDENTIFIER) ||
		!info.ReadASN1(&explicit, tag0) || !explicit.ReadASN1(&body, cbasn1.SEQUENCE) {
		return nil, why
	}
	// version, digestAlgorithms, encapContentInfo, certificates, crls, signerInfos
	if !body.SkipASN1(cbasn1.INTEGER) || !body.SkipASN1(cbasn1.SET) || !body.SkipASN1(cbasn1.SEQUENCE) ||
		!body.ReadOptionalASN1(&certificates, nil, tag0) || !body.SkipOptionalASN1(tag1) || !body.ReadASN1(&signers, cbasn1.SET) {
		return nil, why
	}
	if !anyRSA(certificates) {
		why = whyNotRSA
	}
	// version, sid, digestAlgorithm, signedAttrs; ParseSigned saw that there is one
	// signer, or did not get so far
	var tag cbasn1.Tag
	if !signers.ReadASN1(&signer, cbasn1.SEQUENCE) || !signers.Empty() || !signer.SkipASN1(cbasn1.INTEGER) ||
		!signer.ReadAnyASN1(&sid, &tag) || !signer.SkipASN1(cbasn1.SEQUENCE) || !signer.ReadASN1Element(&signed, tag0) {
		return nil, why
	}
	set := bytes.Clone(signed)
	set[0] = byte(cbasn1.SET)
	attrs, err := cms.ListAttributes(set)
	if err != nil {
		return nil, why
	}
	return attrs, why
}

// anyRSA reports whether some certificate has an RSA key, or one that is not
// read.
func anyRSA(certificates cryptobyte.String) bool {
	for !certificates.Empty() {
		var raw cryptobyte.String
		if !certificates.ReadASN1Element(&raw, cbasn1.SEQUENCE) {
			return true
		}
		c, err := cms.ParseCertificate(raw)
		if err != nil {
			return true
		}
		if _, ok := c.PublicKey.(*rsa.PublicKey); ok {
			return true
		}
	}
	return false
}
