package cms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"encoding/asn1"
	"fmt"
	"slices"
	"time"

	"github.com/smallstep/pkcs7"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// SignOptions say what [Sign] makes.
type SignOptions struct {
	Certificate *Certificate  // the signer's; it stands first in the message
	Chain       [][]byte      // further certificates, DER; their order is kept
	Key         crypto.Signer // RSA or ECDSA; must be the certificate's
	Digest      crypto.Hash   // SHA-1, SHA-256, SHA-384 or SHA-512
	Attributes  []Attribute   // beside contentType, messageDigest and signingTime, which are added
	Content     []byte        // nil leaves eContent out, as RFC 8894, section 3.3.2.2 wants for FAILURE and PENDING
}

// Sign makes a SignedData with one signer (RFC 5652, section 5.1), a ContentInfo
// in DER but for the order of the certificates, which is as given: clients take
// the first for the signer's. The key signs once. With an RSA key the SignerInfo
// says rsaEncryption, the name that every client knows (RFC 3370, section 3.2). The
// error is [ErrAlgorithm] for a key or digest that does not fit, [ErrMalformed] or
// [ErrTrailing] for what is no DER and for an attribute that is there twice; else
// the key's.
func Sign(o SignOptions) ([]byte, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	h, ok := findHash(func(a hashAlgorithm) bool { return a.hash == o.Digest })
	if !ok || o.Digest == crypto.SHA224 {
		return nil, fmt.Errorf("%w: signing with %v", ErrAlgorithm, o.Digest)
	}
	attrs, err := o.signedAttributes()
	if err != nil {
		return nil, err
	}
	hash := o.Digest.New()
	hash.Write(attrs)
	signature, err := o.Key.Sign(rand.Reader, hash.Sum(nil), o.Digest)
	if err != nil {
		return nil, fmt.Errorf("cms: signing: %w", err)
	}
	size := len(attrs) + len(signature) + len(o.Content) + len(o.Certificate.Raw) + 512
	for _, der := range o.Chain {
		size += len(der)
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, size))
	addContentInfo(b, oidSignedData, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1)
		b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { addAlgorithm(b, h.digest, false) })
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidData)
			if o.Content != nil {
				b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) { b.AddASN1OctetString(o.Content) })
			}
		})
		b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) {
			b.AddBytes(o.Certificate.Raw)
			for _, der := range o.Chain {
				b.AddBytes(der)
			}
		})
		b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { o.addSignerInfo(b, h, attrs, signature) })
	})
	out, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("cms: signing: %w", err)
	}
	return out, nil
}

// addSignerInfo writes a SignerInfo of version 1 (RFC 5652, section 5.3).
func (o SignOptions) addSignerInfo(b *cryptobyte.Builder, h hashAlgorithm, attrs, signature []byte) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1)
		addIssuerAndSerial(b, o.Certificate)
		addAlgorithm(b, h.digest, false)
		b.AddBytes([]byte{byte(tagExplicit0)}) // in the place of the tag of a SET OF
		b.AddBytes(attrs[1:])
		if _, ok := o.Key.Public().(*rsa.PublicKey); ok {
			addAlgorithm(b, OIDRSAEncryption, true)
		} else {
			addAlgorithm(b, h.withECDSA, false)
		}
		b.AddASN1OctetString(signature)
	})
}

// signedAttributes returns them as they are signed, in DER: a SET OF, sorted (RFC
// 5652, section 5.4).
func (o SignOptions) signedAttributes() ([]byte, error) {
	hash := o.Digest.New()
	hash.Write(o.Content)
	list := make([][]byte, 0, len(o.Attributes)+3)
	var failed error
	add := func(kind asn1.ObjectIdentifier, value cryptobyte.BuilderContinuation) {
		var b cryptobyte.Builder
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(kind)
			b.AddASN1(cbasn1.SET, value)
		})
		der, err := b.Bytes()
		if err != nil && failed == nil {
			failed = fmt.Errorf("cms: attribute %v: %w", kind, err)
		}
		list = append(list, der)
	}
	add(oidContentType, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidData) })
	add(oidMessageDigest, func(b *cryptobyte.Builder) { b.AddASN1OctetString(hash.Sum(nil)) })
	add(oidSigningTime, func(b *cryptobyte.Builder) { addTime(b, time.Now()) })
	for _, a := range o.Attributes {
		add(a.Type, func(b *cryptobyte.Builder) { b.AddBytes(a.Value) })
	}
	if failed != nil {
		return nil, failed
	}
	slices.SortFunc(list, bytes.Compare)
	all := slices.Concat(list...)
	return append(appendHeader(make([]byte, 0, len(all)+4), byte(cbasn1.SET), len(all)), all...), nil
}

// addTime writes a Time: UTCTime until 2049, GeneralizedTime after (RFC 5652,
// section 11.3).
func addTime(b *cryptobyte.Builder, t time.Time) {
	t = t.UTC()
	if t.Year() < 2050 {
		b.AddASN1UTCTime(t)
	} else {
		b.AddASN1GeneralizedTime(t)
	}
}

// addAlgorithm writes an AlgorithmIdentifier, without parameters or with NULL:
// without for digests (RFC 5754, section 2) and ECDSA (RFC 5753, section 2.1.1), with
// for rsaEncryption (RFC 3370, section 3.2).
func addAlgorithm(b *cryptobyte.Builder, kind asn1.ObjectIdentifier, null bool) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(kind)
		if null {
			b.AddASN1NULL()
		}
	})
}

// addIssuerAndSerial writes an IssuerAndSerialNumber (RFC 5652, section 10.2.4),
// octet for octet as the certificate has them.
func addIssuerAndSerial(b *cryptobyte.Builder, c *Certificate) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(c.RawIssuer)
		b.AddASN1(cbasn1.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(c.RawSerial) })
	})
}

// check looks at what is to be written as it is given. The certificate need not
// be one that crypto/x509 accepts.
func (o SignOptions) check() error {
	if o.Key == nil {
		return fmt.Errorf("%w: no key to sign with", ErrAlgorithm)
	}
	if o.Certificate == nil {
		return malformed("no certificate of the signer")
	}
	pub, ok := o.Certificate.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(o.Key.Public()) {
		return fmt.Errorf("%w: the key is not the certificate's", ErrAlgorithm)
	}
	switch o.Key.Public().(type) {
	case *rsa.PublicKey, *ecdsa.PublicKey:
	default:
		return fmt.Errorf("%w: signing with a key of type %T", ErrAlgorithm, o.Key.Public())
	}
	seen := append(make([]asn1.ObjectIdentifier, 0, 16), oidContentType, oidMessageDigest, oidSigningTime)
	for _, a := range o.Attributes {
		if slices.ContainsFunc(seen, a.Type.Equal) {
			return fmt.Errorf("%w: attribute %v twice", ErrMalformed, a.Type)
		}
		seen = append(seen, a.Type)
		if err := oneElement(a.Value); err != nil {
			return fmt.Errorf("attribute %v: %w", a.Type, err)
		}
	}
	for _, der := range o.Chain {
		if err := oneElement(der); err != nil {
			return fmt.Errorf("chain: %w", err)
		}
	}
	return nil
}

// oneElement checks that der is one element and nothing else.
func oneElement(der []byte) error {
	in := cryptobyte.String(der)
	var element cryptobyte.String
	var tag cbasn1.Tag
	if !in.ReadAnyASN1Element(&element, &tag) {
		return malformed("element")
	}
	if !in.Empty() {
		return trailing("element")
	}
	return nil
}

// CertsOnly makes a degenerate SignedData, which has only certificates (RFC 8894,
// section 3.4), in the order given: RFC 5652 makes them a SET OF, which DER would
// sort, but clients take the first for the one that was issued. The error is
// [ErrTooMany] for none or more than 16, and [ErrMalformed] or [ErrTrailing] for
// one that is no element of DER.
func CertsOnly(certs [][]byte) ([]byte, error) {
	if len(certs) == 0 || len(certs) > maxCertificates {
		return nil, fmt.Errorf("%w: %d certificates", ErrTooMany, len(certs))
	}
	for _, der := range certs {
		if err := oneElement(der); err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
	}
	out, err := pkcs7.DegenerateCertificate(slices.Concat(certs...))
	if err != nil {
		return nil, fmt.Errorf("cms: writing certificates: %w", err)
	}
	return out, nil
}

// CRLOnly makes a degenerate SignedData that has one CRL and nothing else (RFC
// 8894, section 3.3.2.1). The error is [ErrMalformed] or [ErrTrailing] for a CRL
// that is no element of DER.
func CRLOnly(crl []byte) ([]byte, error) {
	if err := oneElement(crl); err != nil {
		return nil, fmt.Errorf("CRL: %w", err)
	}
	var b cryptobyte.Builder
	addContentInfo(&b, oidSignedData, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1)
		b.AddASN1(cbasn1.SET, func(*cryptobyte.Builder) {}) // no digest algorithm, as nobody signs
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidData) })
		b.AddASN1(tagExplicit1, func(b *cryptobyte.Builder) { b.AddBytes(crl) }) // [1] IMPLICIT RevocationInfoChoices
		b.AddASN1(cbasn1.SET, func(*cryptobyte.Builder) {})
	})
	out, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("cms: writing a CRL: %w", err)
	}
	return out, nil
}

// ParseCertsOnly returns the certificates of a degenerate SignedData in their
// order, unparsed. One with a signer is refused, as [ErrMalformed]; the other
// errors are those of [ParseSigned].
func ParseCertsOnly(der []byte) ([][]byte, error) {
	d, err := readSignedData(der)
	if err != nil {
		return nil, err
	}
	if !d.signers.Empty() {
		return nil, malformed("certificates with a signer")
	}
	return d.certificates, nil
}
