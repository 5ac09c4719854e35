// Package cms reads and writes the Cryptographic Message Syntax (RFC 5652) as
// far as enrollment needs it: bounded BER to DER, SignedData with one signer,
// EnvelopedData with RSA key transport or under a password, and certificate lists.
//
// # What a caller may rely on
//
// [DER] takes a stranger's bytes: it bounds size, depth and number of elements
// before anything else looks at them, needs time and memory in proportion to
// their length, and never recurses. All parsers take what it returns, and refuse
// anything that is left over at any level. None of them panics on input. No
// signature counts before [Signed.Verify] said so: a parsed message is only a
// parsed message.
//
// [Envelope.Open] has one error, [ErrOpen], for everything that depends on the
// content key, and removes the padding in constant time. All functions are safe
// for concurrent use; nothing is kept between calls.
//
// # What it does not protect against
//
// No certificate is checked here: not its signature, not its dates, not its
// chain. A message verifies if it was made with the key of the certificate that
// it names, whoever made that certificate. SHA-1, SHA-224 and triple DES are
// read and, if asked, written: whether they are allowed is the caller's policy.
// An EnvelopedData is not authenticated, so what it opens to proves nothing, and
// a caller that answers differently to different contents is an oracle; RSA
// decryption and its padding are the caller's too.
package cms

import (
	"crypto"
	"crypto/fips140"
	"encoding/asn1"
	"errors"
	"fmt"

	_ "crypto/sha1" //nolint:gosec // legacy clients sign with it; the caller's policy decides
	_ "crypto/sha256"
	_ "crypto/sha512"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// The errors of this package, to be told apart by [errors.Is]. Their text is for
// a log of ours, never for a client.
var (
	ErrMalformed = errors.New("cms: malformed")
	ErrTooLarge  = errors.New("cms: message too large")
	ErrTooDeep   = errors.New("cms: nested too deep")
	ErrTooMany   = errors.New("cms: too many elements")
	ErrTrailing  = errors.New("cms: trailing data")
	ErrAlgorithm = errors.New("cms: algorithm not supported")
	ErrMD5       = errors.New("cms: MD5")        // as is the next one, with ErrAlgorithm
	ErrDES       = errors.New("cms: single DES") // so that a log can say who still sends it
	ErrSignature = errors.New("cms: signature does not verify")
	ErrDigest    = errors.New("cms: message digest differs from the content's")
	ErrOpen      = errors.New("cms: envelope does not open")

	// ErrContentType comes with ErrMalformed: what is signed is not id-data.
	ErrContentType = errors.New("cms: type of the content")
)

// Bounds on what one message may hold. Each is far above what any client in the
// field sends.
const (
	maxCertificates = 16
	maxRecipients   = 16
	maxAttributes   = 64
	maxDigests      = 16
)

// Content types, attributes and algorithms: RFC 5652, section 14; RFC 3370;
// RFC 5754; RFC 8017, appendix C.
var (
	oidData          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSignedData    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidEnvelopedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3}

	oidContentType   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidMessageDigest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidSigningTime   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 5}

	oidMD5 = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 5}

	// OIDRSAEncryption is rsaEncryption, as a key's type, as the signature
	// algorithm of a SignerInfo, and as the key transport of a [Recipient].
	OIDRSAEncryption = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}

	// OIDRSAESOAEP is the other key transport that a [Recipient] may name (RFC 8017,
	// appendix A.2.1).
	OIDRSAESOAEP = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
)

// A hashAlgorithm is one digest with the OIDs that name it, alone and in a
// signature algorithm.
type hashAlgorithm struct {
	hash                       crypto.Hash
	digest, withRSA, withECDSA asn1.ObjectIdentifier
}

// hashes are the digests that are known.
var hashes = [...]hashAlgorithm{
	{crypto.SHA256, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}},
	{crypto.SHA512, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 13}, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}},
	{crypto.SHA384, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 12}, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}},
	{crypto.SHA224, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 4}, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 14}, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 1}},
	{crypto.SHA1, asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 5}, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}},
}

// findHash returns the first digest that fits, if it may be used here and now.
func findHash(fits func(hashAlgorithm) bool) (hashAlgorithm, bool) {
	for _, a := range hashes {
		if fits(a) {
			return a, usable(a.hash)
		}
	}
	return hashAlgorithm{}, false
}

// usable reports whether a digest is one of ours. Where FIPS 140 mode is
// enforced, SHA-1 panics in the standard library.
func usable(h crypto.Hash) bool {
	switch h {
	case crypto.SHA224, crypto.SHA256, crypto.SHA384, crypto.SHA512:
		return true
	case crypto.SHA1:
		return !fips140.Enforced()
	default:
		return false
	}
}

// malformed returns [ErrMalformed] with what was looked for.
func malformed(what string) error { return fmt.Errorf("%w: %s", ErrMalformed, what) }

// trailing returns [ErrTrailing] with what it trails.
func trailing(after string) error { return fmt.Errorf("%w after %s", ErrTrailing, after) }

// Attribute is an attribute with its one value (RFC 5652, section 5.3).
type Attribute struct {
	Type  asn1.ObjectIdentifier
	Value []byte // the value's DER, with its tag
}

// readContentInfo returns the body of the SEQUENCE in a ContentInfo of the given
// type (RFC 5652, section 3).
func readContentInfo(der []byte, want asn1.ObjectIdentifier) (cryptobyte.String, error) {
	in := cryptobyte.String(der)
	var info, explicit, body cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !in.ReadASN1(&info, cbasn1.SEQUENCE) {
		return nil, malformed("ContentInfo")
	}
	if !in.Empty() {
		return nil, trailing("ContentInfo")
	}
	if !info.ReadASN1ObjectIdentifier(&oid) || !oid.Equal(want) {
		return nil, malformed("content type")
	}
	if !info.ReadASN1(&explicit, tagExplicit0) || !explicit.ReadASN1(&body, cbasn1.SEQUENCE) {
		return nil, malformed("content of ContentInfo")
	}
	if !info.Empty() || !explicit.Empty() {
		return nil, trailing("content")
	}
	return body, nil
}

// readAlgorithm reads an AlgorithmIdentifier. params is the parameters' DER, nil
// if there are none.
func readAlgorithm(s *cryptobyte.String) (oid asn1.ObjectIdentifier, params cryptobyte.String, ok bool) {
	var alg cryptobyte.String
	var tag cbasn1.Tag
	if !s.ReadASN1(&alg, cbasn1.SEQUENCE) || !alg.ReadASN1ObjectIdentifier(&oid) {
		return nil, nil, false
	}
	if !alg.Empty() && !alg.ReadAnyASN1Element(&params, &tag) {
		return nil, nil, false
	}
	return oid, params, alg.Empty()
}

// noParams reports whether parameters are absent or NULL; clients send either
// where one is meant (RFC 5754, section 2).
func noParams(params cryptobyte.String) bool {
	return params == nil || len(params) == 2 && params[0] == byte(cbasn1.NULL) && params[1] == 0
}

// Context-specific tags, by number: explicit or implicit constructed, and
// implicit primitive.
const (
	tagExplicit0  = cbasn1.Tag(0xa0)
	tagExplicit1  = cbasn1.Tag(0xa1)
	tagPrimitive0 = cbasn1.Tag(0x80)
)
