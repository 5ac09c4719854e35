package pkcs10

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/fips140"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"fmt"

	_ "crypto/sha1" //nolint:gosec // legacy clients sign their requests with it
	_ "crypto/sha256"
	_ "crypto/sha512"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/postern-pki/postern/protocol/cms"
)

// A keyType is the type of key that a signature algorithm is for.
type keyType int

const (
	rsaKey keyType = iota
	ecdsaKey
	ed25519Key
)

// A signatureAlgorithm is a row of the table of algorithms (RFC 8017, appendix
// C; RFC 5758, section 3.2; RFC 8410, section 3). One without a hash is known by
// name alone, Ed25519 aside, which has its own.
type signatureAlgorithm struct {
	name x509.SignatureAlgorithm
	key  keyType
	hash crypto.Hash
	oid  asn1.ObjectIdentifier
}

// signatureAlgorithms are those that have a name here.
var signatureAlgorithms = [...]signatureAlgorithm{
	{x509.SHA256WithRSA, rsaKey, crypto.SHA256, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}},
	{x509.SHA384WithRSA, rsaKey, crypto.SHA384, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 12}},
	{x509.SHA512WithRSA, rsaKey, crypto.SHA512, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 13}},
	{x509.SHA1WithRSA, rsaKey, crypto.SHA1, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 5}},
	{x509.ECDSAWithSHA256, ecdsaKey, crypto.SHA256, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}},
	{x509.ECDSAWithSHA384, ecdsaKey, crypto.SHA384, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}},
	{x509.ECDSAWithSHA512, ecdsaKey, crypto.SHA512, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}},
	{x509.ECDSAWithSHA1, ecdsaKey, crypto.SHA1, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}},
	{x509.PureEd25519, ed25519Key, 0, asn1.ObjectIdentifier{1, 3, 101, 112}},
	{x509.MD5WithRSA, rsaKey, 0, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 4}},
}

// readSignatureAlgorithm reads an AlgorithmIdentifier. One that is not in the
// table has no name, whatever its parameters.
func readSignatureAlgorithm(s *cryptobyte.String) (x509.SignatureAlgorithm, error) {
	var alg, params cryptobyte.String
	var oid asn1.ObjectIdentifier
	var tag cbasn1.Tag
	if !s.ReadASN1(&alg, cbasn1.SEQUENCE) || !alg.ReadASN1ObjectIdentifier(&oid) {
		return 0, malformed("signature algorithm")
	}
	present := !alg.Empty()
	if present && (!alg.ReadAnyASN1(&params, &tag) || !alg.Empty()) {
		return 0, malformed("parameters of the signature algorithm")
	}
	for _, a := range signatureAlgorithms {
		if !a.oid.Equal(oid) {
			continue
		}
		if present && (tag != cbasn1.NULL || !params.Empty() || a.key == ed25519Key) {
			return 0, malformed("parameters of the signature algorithm")
		}
		return a.name, nil
	}
	return x509.UnknownSignatureAlgorithm, nil
}

// CheckSignature verifies that the request was signed with the private key of
// the key that it holds: RSA PKCS #1 v1.5 and ECDSA, with SHA-1, SHA-256,
// SHA-384 or SHA-512, and Ed25519. The error is cms.ErrAlgorithm for another
// algorithm or one that does not fit the key, and cms.ErrSignature.
func (r *Request) CheckSignature() error {
	for _, a := range signatureAlgorithms {
		if a.name == r.SignatureAlgorithm {
			return a.check(r)
		}
	}
	return fmt.Errorf("%w: signature of the request", cms.ErrAlgorithm)
}

func (a signatureAlgorithm) check(r *Request) error {
	unfit := func() error {
		return fmt.Errorf("%w: request signed with %v by a key of type %T", cms.ErrAlgorithm, a.name, r.PublicKey)
	}
	sum := r.RawTBS
	if a.key != ed25519Key {
		// Where FIPS 140 mode is enforced, SHA-1 panics in the standard library.
		if a.hash == 0 || a.hash == crypto.SHA1 && fips140.Enforced() {
			return unfit()
		}
		h := a.hash.New()
		h.Write(r.RawTBS)
		sum = h.Sum(nil)
	}
	good := false
	switch pub := r.PublicKey.(type) {
	case *rsa.PublicKey:
		if a.key != rsaKey {
			return unfit()
		}
		good = rsa.VerifyPKCS1v15(pub, a.hash, sum, r.signature) == nil
	case *ecdsa.PublicKey:
		if a.key != ecdsaKey {
			return unfit()
		}
		good = ecdsa.VerifyASN1(pub, sum, r.signature)
	case ed25519.PublicKey:
		if a.key != ed25519Key {
			return unfit()
		}
		good = ed25519.Verify(pub, sum, r.signature)
	default:
		return unfit()
	}
	if !good {
		return fmt.Errorf("%w: request", cms.ErrSignature)
	}
	return nil
}
