package cms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/subtle"
	"encoding/asn1"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Reading is ours, though smallstep/pkcs7 could: it bounds neither depth nor
// size, ignores trailing data, makes signed attributes optional, does not look
// at the contentType, takes the first of duplicate attributes, and verifies over
// an encoding of its own making. It writes what [CertsOnly] returns; what [Sign]
// returns it would write at three times the cost, by reflection.

// Signed is a SignedData with one signer (RFC 5652, section 5.1), parsed and not
// yet verified.
type Signed struct {
	Content            []byte         // the eContent's octets; nil if absent, as in a CertRep that is no success
	Certificates       []*Certificate // in the order of the message
	Signer             *Certificate   // the one of Certificates that the SignerInfo names
	Digest             crypto.Hash
	SignatureAlgorithm asn1.ObjectIdentifier
	Attributes         []Attribute // signed attributes, each type once
	SignedAttrs        []byte      // the same as DER of a SET OF, tag 0x31, in the order of the message
	Signature          []byte
}

// ParseSigned reads a ContentInfo of SignedData whose content is id-data, as
// [DER] returns it. It wants exactly one SignerInfo whose certificate, found by
// its identifier, is in the message, and signed attributes as
// [ParseAttributes] wants them. Unsigned attributes and CRLs are left out. An
// algorithm that is not supported, or that does not fit the signer's key, is
// [ErrAlgorithm], and another type of content [ErrContentType] too. The result keeps
// references to der.
func ParseSigned(der []byte) (*Signed, error) {
	d, err := readSignedData(der)
	if err != nil {
		return nil, err
	}
	s := &Signed{Content: d.content}
	for _, raw := range d.certificates {
		c, err := ParseCertificate(raw)
		if err != nil {
			return nil, err
		}
		s.Certificates = append(s.Certificates, c)
	}
	var info cryptobyte.String
	if !d.signers.ReadASN1(&info, cbasn1.SEQUENCE) {
		return nil, malformed("SignerInfo")
	}
	if !d.signers.Empty() {
		return nil, fmt.Errorf("%w: signers", ErrTooMany)
	}
	if err := s.readSignerInfo(info); err != nil {
		return nil, err
	}
	return s, nil
}

// signedData is the outer structure of a SignedData.
type signedData struct {
	content      []byte
	certificates [][]byte
	signers      cryptobyte.String
}

func readSignedData(der []byte) (signedData, error) {
	var d signedData
	body, err := readContentInfo(der, oidSignedData)
	if err != nil {
		return d, err
	}
	var version int
	var digests, content, certificates cryptobyte.String
	if !body.ReadASN1Integer(&version) || version < 1 || version > 5 {
		return d, malformed("version of SignedData")
	}
	if !body.ReadASN1(&digests, cbasn1.SET) || !body.ReadASN1(&content, cbasn1.SEQUENCE) ||
		!body.ReadOptionalASN1(&certificates, nil, tagExplicit0) || !body.SkipOptionalASN1(tagExplicit1) ||
		!body.ReadASN1(&d.signers, cbasn1.SET) {
		return d, malformed("SignedData")
	}
	if !body.Empty() {
		return d, trailing("SignedData's fields")
	}
	for n := 0; !digests.Empty(); n++ {
		if _, _, ok := readAlgorithm(&digests); !ok {
			return d, malformed("digest algorithms")
		}
		if n == maxDigests {
			return d, fmt.Errorf("%w: digest algorithms", ErrTooMany)
		}
	}
	if d.content, err = readEncapsulated(content); err != nil {
		return d, err
	}
	for !certificates.Empty() {
		var raw cryptobyte.String
		if len(d.certificates) == maxCertificates {
			return d, fmt.Errorf("%w: certificates", ErrTooMany)
		}
		if !certificates.ReadASN1Element(&raw, cbasn1.SEQUENCE) {
			return d, malformed("certificates")
		}
		d.certificates = append(d.certificates, raw)
	}
	return d, nil
}

// readEncapsulated reads an EncapsulatedContentInfo of id-data.
func readEncapsulated(s cryptobyte.String) ([]byte, error) {
	var kind asn1.ObjectIdentifier
	if !s.ReadASN1ObjectIdentifier(&kind) {
		return nil, malformed("type of the signed content")
	}
	if !kind.Equal(oidData) {
		return nil, fmt.Errorf("%w: %w: signed %v", ErrMalformed, ErrContentType, kind)
	}
	if s.Empty() {
		return nil, nil
	}
	var explicit, octets cryptobyte.String
	if !s.ReadASN1(&explicit, tagExplicit0) || !explicit.ReadASN1(&octets, cbasn1.OCTET_STRING) {
		return nil, malformed("signed content")
	}
	if !s.Empty() || !explicit.Empty() {
		return nil, trailing("signed content")
	}
	return octets, nil
}

// readSignerInfo reads a SignerInfo (RFC 5652, section 5.3).
func (s *Signed) readSignerInfo(info cryptobyte.String) error {
	var version int
	if !info.ReadASN1Integer(&version) || version < 1 || version > 3 {
		return malformed("version of SignerInfo")
	}
	id, ok := readIdentifier(&info)
	if !ok {
		return malformed("signer identifier")
	}
	digest, params, ok := readAlgorithm(&info)
	if !ok || !noParams(params) {
		return malformed("digest algorithm")
	}
	var attrs, signature cryptobyte.String
	if !info.ReadASN1Element(&attrs, tagExplicit0) {
		return malformed("no signed attributes")
	}
	if s.SignatureAlgorithm, params, ok = readAlgorithm(&info); !ok || !info.ReadASN1(&signature, cbasn1.OCTET_STRING) ||
		!info.SkipOptionalASN1(tagExplicit1) {
		return malformed("signature")
	}
	if !info.Empty() {
		return trailing("SignerInfo's fields")
	}
	s.Signature = signature
	s.SignedAttrs = bytes.Clone(attrs)
	s.SignedAttrs[0] = byte(cbasn1.SET) // RFC 5652, section 5.4: signed with the tag of a SET OF
	var err error
	if s.Attributes, err = ParseAttributes(s.SignedAttrs); err != nil {
		return err
	}
	if err := s.findSigner(id); err != nil {
		return err
	}
	return s.setAlgorithms(digest, params)
}

// findSigner looks the signer's certificate up by its identifier, never by its
// place. Two different certificates of one identifier are refused, lest somebody
// else picks the other one.
func (s *Signed) findSigner(id identifier) error {
	for _, c := range s.Certificates {
		switch {
		case !id.names(c):
		case s.Signer == nil:
			s.Signer = c
		case !bytes.Equal(s.Signer.Raw, c.Raw):
			return malformed("two certificates of the signer")
		}
	}
	if s.Signer == nil {
		return malformed("no certificate of the signer")
	}
	return nil
}

// setAlgorithms checks that digest, signature algorithm and key fit each other.
func (s *Signed) setAlgorithms(digest asn1.ObjectIdentifier, params cryptobyte.String) error {
	a, ok := findHash(func(a hashAlgorithm) bool { return a.digest.Equal(digest) })
	if !ok {
		if digest.Equal(oidMD5) {
			return fmt.Errorf("%w: %w", ErrAlgorithm, ErrMD5)
		}
		return fmt.Errorf("%w: digest %v", ErrAlgorithm, digest)
	}
	s.Digest = a.hash
	fits := false
	switch s.Signer.PublicKey.(type) {
	case *rsa.PublicKey:
		fits = (s.SignatureAlgorithm.Equal(OIDRSAEncryption) || s.SignatureAlgorithm.Equal(a.withRSA)) && noParams(params)
	case *ecdsa.PublicKey:
		fits = s.SignatureAlgorithm.Equal(a.withECDSA) && noParams(params)
	}
	if !fits {
		return fmt.Errorf("%w: signature %v with %v and a key of type %T", ErrAlgorithm, s.SignatureAlgorithm, a.hash, s.Signer.PublicKey)
	}
	return nil
}

// Unsorted reports whether the signed attributes are not in the order of DER.
func (s *Signed) Unsorted() bool {
	a, err := readAttributes(s.SignedAttrs)
	return err == nil && a.sorted() != nil
}

// Verify is [Verify] of the message's own fields.
func (s *Signed) Verify() error {
	return Verify(s.Signer, s.Digest, s.SignedAttrs, s.Signature, s.Content)
}

// Verify checks a signature from its parts, so that whoever is handed them need
// not trust who took them out of the message: the attributes are as
// [ParseAttributes] wants them, the messageDigest is that of content
// ([ErrDigest]), and the signature, RSA PKCS #1 v1.5 or ECDSA, is over the
// attributes as received, or else over their distinguished encoding: RFC 5652,
// section 5.4 demands the latter, and some clients sign what they send unsorted
// ([ErrSignature]).
func Verify(signer *Certificate, digest crypto.Hash, signedAttrs, signature, content []byte) error {
	if signer == nil {
		return malformed("no certificate of the signer")
	}
	if !usable(digest) {
		return fmt.Errorf("%w: digest %v", ErrAlgorithm, digest)
	}
	attrs, err := readAttributes(signedAttrs)
	if err != nil {
		return err
	}
	h := digest.New()
	h.Write(content)
	if subtle.ConstantTimeCompare(h.Sum(nil), attrs.messageDigest) != 1 {
		return ErrDigest
	}
	var check func(sum []byte) bool
	switch pub := signer.PublicKey.(type) {
	case *rsa.PublicKey:
		check = func(sum []byte) bool { return rsa.VerifyPKCS1v15(pub, digest, sum, signature) == nil }
	case *ecdsa.PublicKey:
		check = func(sum []byte) bool { return ecdsa.VerifyASN1(pub, sum, signature) }
	default:
		return fmt.Errorf("%w: signer's key of type %T", ErrAlgorithm, signer.PublicKey)
	}
	over := func(b []byte) bool {
		h.Reset()
		h.Write(b)
		return check(h.Sum(nil))
	}
	if over(signedAttrs) {
		return nil
	}
	if sorted := attrs.sorted(); sorted != nil && over(sorted) {
		return nil
	}
	return ErrSignature
}
