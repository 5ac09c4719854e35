package manifest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// maxSignature bounds a signature's file, with the certificate in it.
const maxSignature = 64 << 10

// ErrSignature is returned for what is no signature of that certificate on that
// manifest.
var ErrSignature = errors.New("manifest: not a signature of the audit certificate on this manifest")

var (
	oidData         = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSignedData   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidContentType  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidDigest       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidSigningTime  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 5}
	oidSigningCert2 = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 47}
	oidSHA256       = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidECDSA256     = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
)

// tagSigned is that of the signed attributes and of the certificates within their
// sequences, which have the same number.
const tagSigned = cbasn1.Tag(0xa0)

// Sign returns a detached SignedData in DER. sign gets the octets of the signed
// attributes, as RFC 5652, section 5.4, has them signed, and returns ECDSA in ASN.1
// over their SHA-256, by the key of the certificate. at is whole seconds.
func Sign(manifest []byte, cert *x509.Certificate, at time.Time, sign func(attributes []byte) ([]byte, error)) ([]byte, error) {
	if _, err := Parse(manifest); err != nil {
		return nil, err
	}
	set, err := attributes(manifest, cert, at)
	if err != nil {
		return nil, err
	}
	signature, err := sign(set)
	if err != nil {
		return nil, err
	}
	return assemble(cert, set, signature)
}

// attributes is the DER of the SET OF the signed attributes.
func attributes(manifest []byte, cert *x509.Certificate, at time.Time) ([]byte, error) {
	sum, id := sha256.Sum256(manifest), sha256.Sum256(cert.Raw)
	var all [][]byte
	for _, one := range []struct {
		oid   asn1.ObjectIdentifier
		value func(b *cryptobyte.Builder)
	}{
		{oidContentType, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidData) }},
		{oidSigningTime, func(b *cryptobyte.Builder) { addTime(b, at.UTC()) }},
		{oidDigest, func(b *cryptobyte.Builder) { b.AddASN1OctetString(sum[:]) }},
		// SigningCertificateV2 (RFC 5035, section 3): SHA-256 is the default, and left out.
		{oidSigningCert2, func(b *cryptobyte.Builder) {
			sequence(b, func(b *cryptobyte.Builder) {
				sequence(b, func(b *cryptobyte.Builder) { sequence(b, func(b *cryptobyte.Builder) { b.AddASN1OctetString(id[:]) }) })
			})
		}},
	} {
		var b cryptobyte.Builder
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(one.oid)
			b.AddASN1(cbasn1.SET, one.value)
		})
		der, err := b.Bytes()
		if err != nil {
			return nil, fmt.Errorf("manifest: %w", err)
		}
		all = append(all, der)
	}
	slices.SortFunc(all, bytes.Compare) // as DER wants a set
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
		for _, der := range all {
			b.AddBytes(der)
		}
	})
	return b.Bytes()
}

func sequence(b *cryptobyte.Builder, in func(b *cryptobyte.Builder)) { b.AddASN1(cbasn1.SEQUENCE, in) }

// addTime writes a time as RFC 5652, section 11.3, has it.
func addTime(b *cryptobyte.Builder, t time.Time) {
	if t.Year() < 2050 {
		b.AddASN1UTCTime(t)
		return
	}
	b.AddASN1GeneralizedTime(t)
}

func algorithm(b *cryptobyte.Builder, oid asn1.ObjectIdentifier) {
	sequence(b, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oid) })
}

// assemble is the ContentInfo with the SignedData (RFC 5652, section 5.1).
func assemble(cert *x509.Certificate, attributes, signature []byte) ([]byte, error) {
	inner := attributes // its tag is another one here, see RFC 5652, section 5.4
	var set cryptobyte.String
	if s := cryptobyte.String(inner); !s.ReadASN1(&set, cbasn1.SET) || !s.Empty() {
		return nil, ErrSignature
	}
	var b cryptobyte.Builder
	sequence(&b, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidSignedData)
		b.AddASN1(tagSigned, func(b *cryptobyte.Builder) {
			sequence(b, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { algorithm(b, oidSHA256) })
				sequence(b, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidData) })
				b.AddASN1(tagSigned, func(b *cryptobyte.Builder) { b.AddBytes(cert.Raw) })
				b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
					sequence(b, func(b *cryptobyte.Builder) {
						b.AddASN1Int64(1)
						sequence(b, func(b *cryptobyte.Builder) {
							b.AddBytes(cert.RawIssuer)
							b.AddASN1BigInt(cert.SerialNumber)
						})
						algorithm(b, oidSHA256)
						b.AddASN1(tagSigned, func(b *cryptobyte.Builder) { b.AddBytes(set) })
						algorithm(b, oidECDSA256)
						b.AddASN1OctetString(signature)
					})
				})
			})
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return der, nil
}

// A Signature is one that was verified.
type Signature struct {
	Certificate *x509.Certificate
	At          time.Time // as the signer's clock had it
}

// Verify checks a signature in the one form that [Sign] gives it, by whatever
// certificate is in it: whose that is, is for the caller to say. The error is
// ErrSignature, or ErrForm for a manifest that is none.
func Verify(manifest, signature []byte) (Signature, error) {
	if _, err := Parse(manifest); err != nil {
		return Signature{}, err
	}
	if len(signature) > maxSignature {
		return Signature{}, fmt.Errorf("%w: it is larger than %d octets", ErrSignature, maxSignature)
	}
	s, value, err := read(signature)
	if err != nil {
		return Signature{}, err
	}
	set, err := attributes(manifest, s.Certificate, s.At)
	if err != nil {
		return Signature{}, fmt.Errorf("%w: %w", ErrSignature, err)
	}
	same, err := assemble(s.Certificate, set, value)
	if err != nil || !bytes.Equal(same, signature) {
		return Signature{}, fmt.Errorf("%w: it is of other octets, or has another form", ErrSignature)
	}
	pub, ok := s.Certificate.PublicKey.(*ecdsa.PublicKey)
	sum := sha256.Sum256(set)
	if !ok || !ecdsa.VerifyASN1(pub, sum[:], value) {
		return Signature{}, ErrSignature
	}
	return s, nil
}

// read takes certificate, time and signature out of where they stand.
func read(der []byte) (s Signature, value []byte, err error) {
	in := cryptobyte.String(der)
	var oid asn1.ObjectIdentifier
	var cert, infos, attrs, skip cryptobyte.String
	var version int64
	bad := func(why string) (Signature, []byte, error) {
		return Signature{}, nil, fmt.Errorf("%w: %s", ErrSignature, why)
	}
	if !in.ReadASN1(&in, cbasn1.SEQUENCE) || !in.ReadASN1ObjectIdentifier(&oid) || !oid.Equal(oidSignedData) ||
		!in.ReadASN1(&in, tagSigned) || !in.ReadASN1(&in, cbasn1.SEQUENCE) || !in.ReadASN1Integer(&version) ||
		!in.ReadASN1(&skip, cbasn1.SET) || !in.ReadASN1(&skip, cbasn1.SEQUENCE) || !in.ReadASN1(&cert, tagSigned) || !in.ReadASN1(&infos, cbasn1.SET) {
		return bad("it is no SignedData with one certificate")
	}
	if !infos.ReadASN1(&infos, cbasn1.SEQUENCE) || !infos.ReadASN1Integer(&version) || !infos.ReadASN1(&skip, cbasn1.SEQUENCE) || !infos.ReadASN1(&skip, cbasn1.SEQUENCE) ||
		!infos.ReadASN1(&attrs, tagSigned) || !infos.ReadASN1(&skip, cbasn1.SEQUENCE) || !infos.ReadASN1Bytes(&value, cbasn1.OCTET_STRING) {
		return bad("it has no signer with attributes")
	}
	if s.Certificate, err = x509.ParseCertificate(cert); err != nil {
		return bad("its certificate cannot be read")
	}
	for !attrs.Empty() {
		var one, v cryptobyte.String
		if !attrs.ReadASN1(&one, cbasn1.SEQUENCE) || !one.ReadASN1ObjectIdentifier(&oid) || !one.ReadASN1(&v, cbasn1.SET) {
			return bad("its attributes cannot be read")
		}
		read := v.ReadASN1UTCTime
		if v.PeekASN1Tag(cbasn1.GeneralizedTime) {
			read = v.ReadASN1GeneralizedTime
		}
		if oid.Equal(oidSigningTime) && !read(&s.At) {
			return bad("its time cannot be read")
		}
	}
	return s, value, nil
}
