package issuer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	_ "crypto/sha1" //nolint:gosec // as an identifier in CertIDs, where nothing rests on it
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/postern-pki/postern/hsm/lint"
)

// MaxResponseData bounds what is signed of an OCSP answer, in octets: it is about
// one certificate.
const MaxResponseData = 512

// An Answer is what an OCSP response says of one certificate.
type Answer struct {
	Hash       crypto.Hash // SHA-1 or SHA-256: how the question named the issuer
	Serial     string      // lowercase hex
	Revoked    *Revoked    // nil: good
	ThisUpdate time.Time   // whole seconds; the answer is produced then
	NextUpdate time.Time
}

// A Responder answers for the certificates of one issuer with a key of its own,
// whose certificate the issuer's CA issued for that (RFC 6960, section 4.2.2.2).
type Responder struct {
	issuer *Issuer
	cert   *x509.Certificate
	id     []byte // of the key: SHA-1
	signer StatusSigner
}

// NewResponder returns the issuer's responder. The error is [ErrCA] where the
// certificate is not one of a delegated responder, see [CheckResponder].
func NewResponder(i *Issuer, cert *x509.Certificate, signer StatusSigner) (*Responder, error) {
	if err := CheckResponder(cert, i.ca); err != nil {
		return nil, err
	}
	id, err := keyHash(crypto.SHA1, cert.RawSubjectPublicKeyInfo)
	return &Responder{i, cert, id, signer}, err
}

// CheckResponder reports whether a certificate is one of a delegated responder of
// the CA: issued by it, for a P-256 key, digitalSignature and OCSPSigning alone, and
// with id-pkix-ocsp-nocheck, as nobody could answer for it. The error is [ErrCA].
func CheckResponder(cert, ca *x509.Certificate) error {
	pub, ok := cert.PublicKey.(*ecdsa.PublicKey)
	nocheck := slices.ContainsFunc(cert.Extensions, func(e pkix.Extension) bool {
		return e.Id.Equal(oidNoCheck()) && !e.Critical && bytes.Equal(e.Value, asn1.NullBytes)
	})
	switch {
	case !ok || pub.Curve.Params().BitSize != 256:
		return fmt.Errorf("%w: an OCSP key is ECDSA on P-256", ErrCA)
	case cert.IsCA, cert.KeyUsage != x509.KeyUsageDigitalSignature, !nocheck,
		len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageOCSPSigning || len(cert.UnknownExtKeyUsage) > 0:
		return fmt.Errorf("%w: an OCSP certificate has digitalSignature, OCSPSigning and id-pkix-ocsp-nocheck alone", ErrCA)
	}
	if err := cert.CheckSignatureFrom(ca); err != nil {
		return fmt.Errorf("%w: the OCSP certificate was not issued by %s", ErrCA, ca.Subject)
	}
	return nil
}

func oidNoCheck() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5} }

// Certificate returns the responder's certificate. It must not be changed.
func (r *Responder) Certificate() *x509.Certificate { return r.cert }

// Respond has an answer signed and returns the DER of the OCSPResponse, with the
// responder's certificate in it.
func (r *Responder) Respond(ctx context.Context, a Answer) ([]byte, error) {
	data, err := r.ResponseData(a)
	if err != nil {
		return nil, err
	}
	signature, err := r.signer.SignOCSP(ctx, r.issuer.name, bytes.Clone(data))
	if err != nil {
		return nil, fmt.Errorf("issuer: signing an OCSP answer: %w", err)
	}
	algorithm, err := algorithmID(x509.ECDSAWithSHA256)
	if err != nil {
		return nil, err
	}
	zero := cbasn1.Tag(0).Constructed().ContextSpecific()
	b := cryptobyte.NewBuilder(make([]byte, 0, len(data)+len(signature)+len(r.cert.Raw)+128))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Enum(0) // successful
		b.AddASN1(zero, sequence(func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1}) // id-pkix-ocsp-basic
			b.AddASN1(cbasn1.OCTET_STRING, sequence(func(b *cryptobyte.Builder) {
				b.AddBytes(data)
				b.AddBytes(algorithm)
				b.AddASN1BitString(signature)
				b.AddASN1(zero, sequence(func(b *cryptobyte.Builder) { b.AddBytes(r.cert.Raw) }))
			}))
		}))
	})
	return b.Bytes()
}

// ResponseData returns the octets of an answer to be signed (RFC 6960, section
// 4.2.1): version 1, the responder by its key, one certificate, no extension.
func (r *Responder) ResponseData(a Answer) ([]byte, error) {
	name, key, err := issuerHashes(a.Hash, r.issuer.ca)
	if err != nil {
		return nil, err
	}
	zero := cbasn1.Tag(0).Constructed().ContextSpecific()
	b := cryptobyte.NewBuilder(make([]byte, 0, 256))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.Tag(2).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) { b.AddASN1OctetString(r.id) })
		b.AddASN1GeneralizedTime(a.ThisUpdate.UTC())
		b.AddASN1(cbasn1.SEQUENCE, sequence(func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(hashOID(a.Hash))
					b.AddASN1NULL()
				})
				b.AddASN1OctetString(name)
				b.AddASN1OctetString(key)
				addSerial(b, a.Serial)
			})
			addStatus(b, a.Revoked)
			b.AddASN1GeneralizedTime(a.ThisUpdate.UTC())
			b.AddASN1(zero, func(b *cryptobyte.Builder) { b.AddASN1GeneralizedTime(a.NextUpdate.UTC()) })
		}))
	})
	data, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStatus, err)
	}
	return data, nil
}

func addStatus(b *cryptobyte.Builder, r *Revoked) {
	if r == nil {
		b.AddASN1(classContext, func(*cryptobyte.Builder) {}) // good [0] IMPLICIT NULL
		return
	}
	b.AddASN1(cbasn1.Tag(1).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) {
		b.AddASN1GeneralizedTime(r.At.UTC())
		if r.Reason != Unspecified {
			b.AddASN1(cbasn1.Tag(0).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) { b.AddASN1Enum(int64(r.Reason)) })
		}
	})
}

func hashOID(h crypto.Hash) asn1.ObjectIdentifier {
	if h == crypto.SHA1 {
		return asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}
	}
	return asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
}

// issuerHashes are how a CertID names an issuer.
func issuerHashes(h crypto.Hash, ca *x509.Certificate) (name, key []byte, err error) {
	if name, err = hashOf(h, ca.RawSubject); err == nil {
		key, err = keyHash(h, ca.RawSubjectPublicKeyInfo)
	}
	return name, key, err
}

// keyHash hashes the contents of a key's BIT STRING (RFC 6960, section 4.1.1).
func keyHash(h crypto.Hash, spki []byte) ([]byte, error) {
	bits, err := lint.KeyBits(spki)
	if err != nil {
		return nil, err
	}
	return hashOf(h, bits)
}

func hashOf(h crypto.Hash, data []byte) ([]byte, error) {
	if h != crypto.SHA1 && h != crypto.SHA256 {
		return nil, fmt.Errorf("%w: CertIDs are of SHA-1 and SHA-256", ErrStatus)
	}
	d := h.New()
	_, _ = d.Write(data)
	return d.Sum(nil), nil
}

// A ResponseData is what is signed of an answer, as its octets have it.
type ResponseData struct {
	Responder           []byte // hash of the responder's key
	Produced            time.Time
	NameHash, IssuerKey []byte
	Answer
}

// ParseResponseData reads exactly what [Responder.ResponseData] makes, and no other
// form of that type. The error is [ErrStatus].
func ParseResponseData(der []byte) (*ResponseData, error) {
	in, r := cryptobyte.String(der), &ResponseData{}
	zero := cbasn1.Tag(0).Constructed().ContextSpecific()
	var body, by, id, list, one, cert, alg, next cryptobyte.String
	var oid asn1.ObjectIdentifier
	if len(der) > MaxResponseData || !in.ReadASN1(&body, cbasn1.SEQUENCE) || !in.Empty() ||
		!body.ReadASN1(&by, cbasn1.Tag(2).Constructed().ContextSpecific()) || !by.ReadASN1(&id, cbasn1.OCTET_STRING) || !by.Empty() ||
		!readGeneralized(&body, &r.Produced) || !body.ReadASN1(&list, cbasn1.SEQUENCE) || !body.Empty() ||
		!list.ReadASN1(&one, cbasn1.SEQUENCE) || !list.Empty() {
		return nil, fmt.Errorf("%w: no ResponseData about one certificate", ErrStatus)
	}
	var name, key cryptobyte.String
	if !one.ReadASN1(&cert, cbasn1.SEQUENCE) || !cert.ReadASN1(&alg, cbasn1.SEQUENCE) || !alg.ReadASN1ObjectIdentifier(&oid) ||
		!bytes.Equal(alg, asn1.NullBytes) || !cert.ReadASN1(&name, cbasn1.OCTET_STRING) || !cert.ReadASN1(&key, cbasn1.OCTET_STRING) {
		return nil, fmt.Errorf("%w: the CertID", ErrStatus)
	}
	r.Responder, r.NameHash, r.IssuerKey, r.Hash = id, name, key, crypto.SHA256
	if oid.Equal(hashOID(crypto.SHA1)) {
		r.Hash = crypto.SHA1
	}
	var ok bool
	if r.Serial, ok = readSerial(&cert); !ok || !cert.Empty() || !oid.Equal(hashOID(r.Hash)) {
		return nil, fmt.Errorf("%w: the CertID's serial number or hash", ErrStatus)
	}
	if !r.readStatus(&one) || !readGeneralized(&one, &r.ThisUpdate) ||
		!one.ReadASN1(&next, zero) || !one.Empty() || !readGeneralized(&next, &r.NextUpdate) || !next.Empty() {
		return nil, fmt.Errorf("%w: the status or its times", ErrStatus)
	}
	return r, nil
}

func (r *ResponseData) readStatus(in *cryptobyte.String) bool {
	var status cryptobyte.String
	if in.PeekASN1Tag(classContext) {
		return in.ReadASN1(&status, classContext) && status.Empty()
	}
	r.Revoked = &Revoked{Serial: r.Serial}
	if !in.ReadASN1(&status, cbasn1.Tag(1).Constructed().ContextSpecific()) || !readGeneralized(&status, &r.Revoked.At) {
		return false
	}
	if status.Empty() {
		return true
	}
	var reason cryptobyte.String
	return status.ReadASN1(&reason, cbasn1.Tag(0).Constructed().ContextSpecific()) && status.Empty() && reason.ReadASN1Enum(&r.Revoked.Reason) &&
		reason.Empty() && r.Revoked.Reason != Unspecified && Reason(r.Revoked.Reason) != ""
}

// OCSPLimits are what the holder of an OCSP key allows by itself.
type OCSPLimits struct {
	id        []byte
	issuer    map[crypto.Hash][2][]byte
	maxStatus time.Duration
}

// NewOCSPLimits returns the limits of the key of a responder's certificate, which
// answers for the CA and for no longer than maxStatus.
func NewOCSPLimits(cert, ca *x509.Certificate, maxStatus time.Duration) (l OCSPLimits, err error) {
	l = OCSPLimits{maxStatus: maxStatus}
	if err := CheckResponder(cert, ca); err != nil {
		return l, err
	}
	if l.id, err = keyHash(crypto.SHA1, cert.RawSubjectPublicKeyInfo); err != nil {
		return l, err
	}
	l.issuer, err = CertIDs(ca)
	return l, err
}

// CertIDs returns how questions and answers name a CA: by hash, those of its name and
// of its key.
func CertIDs(ca *x509.Certificate) (map[crypto.Hash][2][]byte, error) {
	ids := make(map[crypto.Hash][2][]byte)
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		name, key, err := issuerHashes(h, ca)
		if err != nil {
			return nil, err
		}
		ids[h] = [2][]byte{name, key}
	}
	return ids, nil
}

// Check reports whether the octets may be signed: exactly a ResponseData by this
// responder about a certificate of its CA, produced at about now. The error is
// [ErrStatus].
func (l OCSPLimits) Check(data []byte, now time.Time) error {
	r, err := ParseResponseData(data)
	if err != nil {
		return err
	}
	if of := l.issuer[r.Hash]; !bytes.Equal(r.Responder, l.id) || !bytes.Equal(r.NameHash, of[0]) || !bytes.Equal(r.IssuerKey, of[1]) {
		return fmt.Errorf("%w: an answer of another responder, or about another CA's certificate", ErrStatus)
	}
	if !r.Produced.Equal(r.ThisUpdate) {
		return fmt.Errorf("%w: it is not of the time at which it was produced", ErrStatus)
	}
	return Limits{MaxStatus: l.maxStatus}.checkTimes(r.ThisUpdate, r.NextUpdate, now)
}
