// Package issuer turns a template that policy decided on into a certificate, in
// an order that cannot be got wrong: the bytes are built and linted first, then
// recorded by whoever holds the [Ticket], then signed once.
//
// # What a caller may rely on
//
// A [Ticket] comes from [Issuer.Prepare] alone and signs once, also where the
// first attempt failed. Its [Ticket.Intent] has every byte that will be signed.
// A certificate that [Ticket.Sign] returns holds exactly those bytes, and a
// signature that its [Signer] has verified. [Check] and [Limits.Check] are the other side: what
// the holder of the key asks before it signs.
//
// # What it does not protect against
//
// The issuer does not know whether the intent is durable: it signs when told the
// number of its record, and the holder of the key, who follows the log, is the
// one that refuses. It trusts the template's names.
//
// An Issuer is safe for concurrent use.
package issuer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/lint"
)

// Errors of this package, beside [LintError] and those of a [Signer].
var (
	ErrCA        = errors.New("issuer: not a certificate of a CA that can be used here")
	ErrTemplate  = errors.New("issuer: the template sets what only the issuer may")
	ErrException = errors.New("issuer: no lint rule of that name can be excepted")
	ErrUsed      = errors.New("issuer: the ticket was used before")
	ErrSignature = errors.New("issuer: the signer's answer is no signature")
	ErrMismatch  = errors.New("issuer: the bytes are not those of the intent")
	ErrNotSigned = errors.New("issuer: nothing was signed")
)

// LintError says that the bytes were built and not found fit to be signed.
type LintError struct{ Findings []lint.Finding }

// Error returns all findings in one line.
func (e *LintError) Error() string {
	say := make([]string, len(e.Findings))
	for i, f := range e.Findings {
		say[i] = f.String()
	}
	return "issuer: not fit to be signed: " + strings.Join(say, "; ")
}

// Signer holds the CA's key. It gets the whole TBSCertificate and the number of
// the record that committed to it, never a digest, and may refuse. It must not
// change or keep tbs. The signature is as it stands in a certificate: DER for
// ECDSA, PKCS#1 v1.5 for RSA; it was verified against the key before it is
// returned, so that a fault of the token gives nothing away. An error wraps [ErrNotSigned] where the key was
// certainly not used; after any other the serial number is burnt.
type Signer interface {
	SignCertificate(ctx context.Context, issuer string, tbs []byte, intent uint64) (signature []byte, err error)
}

// Options are what an issuer may have beside its certificate.
type Options struct {
	MaxValidity time.Duration // of any certificate; 0: as long as the CA's own lasts
}

// An Issuer is one CA: its name in the configuration, its certificate, and the
// way to its key.
type Issuer struct {
	name    string
	ca      *x509.Certificate
	key     string // hex SHA-256 of the SubjectPublicKeyInfo
	algID   []byte // DER of alg's AlgorithmIdentifier
	options Options
	signer  Signer
}

// New returns the issuer of that name. The CA's key is ECDSA on P-256 or P-384,
// or RSA of 2048 to 4096 bits; else, or where ca is no CA's certificate or has no
// subjectKeyIdentifier, the error is [ErrCA].
func New(name string, ca *x509.Certificate, signer Signer, options Options) (*Issuer, error) {
	if name == "" || ca == nil || signer == nil {
		return nil, fmt.Errorf("%w: name, certificate and signer are needed", ErrCA)
	}
	if !ca.BasicConstraintsValid || !ca.IsCA || ca.KeyUsage&x509.KeyUsageCertSign == 0 || len(ca.SubjectKeyId) == 0 {
		return nil, fmt.Errorf("%w: %s lacks basicConstraints cA, keyCertSign or a subjectKeyIdentifier", ErrCA, ca.Subject)
	}
	alg, err := algorithm(ca.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrCA, ca.Subject, err)
	}
	algID, err := algorithmID(alg)
	if err != nil {
		return nil, err
	}
	return &Issuer{
		name: name, ca: ca, key: KeyID(ca.RawSubjectPublicKeyInfo), algID: algID, options: options, signer: signer,
	}, nil
}

// KeyID returns the hex SHA-256 of a DER SubjectPublicKeyInfo: how an intent
// names its issuer's key.
func KeyID(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

// Name returns the issuer's name in the configuration.
func (i *Issuer) Name() string { return i.name }

// Certificate returns the DER of the CA's certificate. It must not be changed.
func (i *Issuer) Certificate() []byte { return i.ca.Raw }

// algorithm returns the one signature algorithm that is used with a key.
func algorithm(pub crypto.PublicKey) (x509.SignatureAlgorithm, error) {
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		if n := pub.N.BitLen(); n < 2048 || n > 4096 {
			return 0, fmt.Errorf("an RSA key of %d bits", n)
		}
		return x509.SHA256WithRSA, nil
	case *ecdsa.PublicKey:
		switch pub.Curve {
		case elliptic.P256():
			return x509.ECDSAWithSHA256, nil
		case elliptic.P384():
			return x509.ECDSAWithSHA384, nil
		}
		return 0, fmt.Errorf("a key on %s", pub.Curve.Params().Name)
	default:
		return 0, fmt.Errorf("a key of type %T", pub)
	}
}

// algorithmID returns the DER of the AlgorithmIdentifier: for RSA with a NULL
// parameter (RFC 4055, section 5), for ECDSA without (RFC 5758, section 3.2).
func algorithmID(a x509.SignatureAlgorithm) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		switch a {
		case x509.SHA256WithRSA:
			b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11})
			b.AddASN1NULL()
		case x509.ECDSAWithSHA256:
			b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2})
		default:
			b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3})
		}
	})
	return b.Bytes()
}

// Meta is what the record of an intent says beside the certificate itself.
type Meta struct {
	Challenge     string   // id of the challenge that it spends, "" for none
	RequestDigest string   // hex SHA-256 of the CSR
	Profile       string   // by its name
	Lineage       string   // of the certificates that renew each other
	Except        []string // lint rules that the profile excepts
}

// Prepare builds and lints the certificate of pub by a template that has names,
// usages and times, and neither serial number, issuer, nor key. Nothing is signed
// yet. The error is a [*LintError] where the bytes are not fit to be signed.
func (i *Issuer) Prepare(template *x509.Certificate, pub crypto.PublicKey, meta Meta) (*Ticket, error) {
	for _, name := range meta.Except {
		if !lint.Excusable(name) {
			return nil, fmt.Errorf("%w: %q", ErrException, name)
		}
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("issuer: key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	own, err := fill(template, serial, spki)
	if err != nil {
		return nil, err
	}
	tbs, err := i.build(own, spki)
	if err != nil {
		return nil, err
	}
	want, err := i.rules(own, spki)
	if err != nil {
		return nil, err
	}
	want.Except = meta.Except
	if found := lint.Check(tbs, want); len(found) > 0 {
		return nil, &LintError{found}
	}
	return &Ticket{issuer: i, tbs: tbs, intent: audit.Intent{
		Serial: hex.EncodeToString(serial.Bytes()), TBS: tbs, Issuer: i.name, IssuerKey: i.key,
		Challenge: meta.Challenge, RequestDigest: meta.RequestDigest, Profile: meta.Profile, Lineage: meta.Lineage,
	}}, nil
}

// newSerial returns 128 random bits as a positive number that is not short: far
// beyond what RFC 5280 and the CA/Browser Forum ask for, and unguessable.
func newSerial() (*big.Int, error) {
	var b [16]byte
	for {
		if _, err := rand.Read(b[:]); err != nil {
			return nil, err
		}
		if n := new(big.Int).SetBytes(b[:]); n.BitLen() > 120 {
			return n, nil
		}
	}
}

// fill copies what a template may say and adds what is the issuer's to say. A
// template that says more is refused, not corrected: it was not meant for here.
func fill(t *x509.Certificate, serial *big.Int, spki []byte) (*x509.Certificate, error) {
	switch {
	case t == nil:
		return nil, fmt.Errorf("%w: there is none", ErrTemplate)
	case t.SerialNumber != nil, t.SubjectKeyId != nil, t.AuthorityKeyId != nil, t.SignatureAlgorithm != 0:
		return nil, fmt.Errorf("%w: serial number, key identifiers or signature algorithm", ErrTemplate)
	case t.IsCA, t.MaxPathLen != 0, t.MaxPathLenZero:
		return nil, fmt.Errorf("%w: a CA", ErrTemplate)
	case len(t.Policies) > 0, len(t.PolicyIdentifiers) > 0:
		return nil, fmt.Errorf("%w: certificate policies, which no profile can have yet", ErrTemplate)
	}
	bits, err := lint.KeyBits(spki)
	if err != nil {
		return nil, err
	}
	subject := t.RawSubject
	if subject == nil {
		if subject, err = asn1.Marshal(t.Subject.ToRDNSequence()); err != nil {
			return nil, fmt.Errorf("issuer: subject: %w", err)
		}
	}
	return &x509.Certificate{
		RawSubject: subject,
		DNSNames:   t.DNSNames, EmailAddresses: t.EmailAddresses, IPAddresses: t.IPAddresses, URIs: t.URIs,
		NotBefore: t.NotBefore.UTC().Truncate(time.Second), NotAfter: t.NotAfter.UTC().Truncate(time.Second),
		KeyUsage: t.KeyUsage, ExtKeyUsage: t.ExtKeyUsage, UnknownExtKeyUsage: t.UnknownExtKeyUsage,
		CRLDistributionPoints: t.CRLDistributionPoints, OCSPServer: t.OCSPServer, IssuingCertificateURL: t.IssuingCertificateURL,
		ExtraExtensions: t.ExtraExtensions,
		SerialNumber:    serial, SubjectKeyId: lint.KeyID(bits), BasicConstraintsValid: true,
	}, nil
}
