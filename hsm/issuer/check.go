package issuer

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/lint"
)

// extendedUsages returns the identifiers of a template's extended key usages.
func extendedUsages(t *x509.Certificate) ([]asn1.ObjectIdentifier, error) {
	ids := make([]asn1.ObjectIdentifier, 0, len(t.ExtKeyUsage)+len(t.UnknownExtKeyUsage))
	for _, u := range t.ExtKeyUsage {
		// RFC 5280, section 4.2.1.12, numbers them below id-kp.
		var last int
		switch u {
		case x509.ExtKeyUsageServerAuth:
			last = 1
		case x509.ExtKeyUsageClientAuth:
			last = 2
		case x509.ExtKeyUsageEmailProtection:
			last = 4
		case x509.ExtKeyUsageIPSECEndSystem:
			last = 5
		case x509.ExtKeyUsageIPSECTunnel:
			last = 6
		case x509.ExtKeyUsageIPSECUser:
			last = 7
		default:
			return nil, fmt.Errorf("%w: extended key usage %d", ErrTemplate, u)
		}
		ids = append(ids, asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, last})
	}
	return append(ids, t.UnknownExtKeyUsage...), nil
}

// Limits are what the holder of a CA key allows by itself, whatever an intent
// says; a ceremony fixed them. A field left zero limits nothing.
type Limits struct {
	MaxValidity time.Duration // from notBefore to notAfter
	NotAfter    time.Time     // of the CA's own certificate
	Issuer      []byte        // DER of the CA's subject
	IssuerSPKI  []byte        // DER of the CA's key
	KeyUsage    x509.KeyUsage // usages that it signs for
	ExtKeyUsage []asn1.ObjectIdentifier

	Status *lint.Status // URLs that certificates may say their status is at; nil: any

	// For status alone, where a zero value allows none.
	SubjectKeyID []byte        // of the CA
	MaxStatus    time.Duration // that a CRL or an OCSP answer is good for

	algorithm []byte // DER of the AlgorithmIdentifier; nil: IssuerSPKI says
}

// Fixed returns the limits with what follows from IssuerSPKI worked out, for who
// checks with them often. The error is [ErrCA] for a key that no issuer can have.
func (l Limits) Fixed() (_ Limits, err error) {
	if l.IssuerSPKI != nil {
		l.algorithm, err = signatureFor(l.IssuerSPKI)
	}
	return l, err
}

// Check is the key holder's side without limits of its own: see [Limits.Check].
func Check(tbs []byte, in audit.Intent) error { return Limits{}.Check(tbs, in) }

// Check reports whether tbs may be signed for the intent, which the caller read
// from the log itself: the bytes are those of the intent, the intent tells the
// truth about them, and they are a device's certificate within the limits. The
// error is [ErrMismatch] or a [*LintError]. Whether the intent has an outcome
// already is the caller's to know.
func (l Limits) Check(tbs []byte, in audit.Intent) error {
	if len(tbs) == 0 || !bytes.Equal(tbs, in.TBS) {
		return ErrMismatch
	}
	t, err := lint.Parse(tbs)
	if err != nil {
		return &LintError{[]lint.Finding{{Rule: "structure", Say: err.Error()}}}
	}
	if serial := hex.EncodeToString(bytes.TrimLeft(t.Serial, "\x00")); serial != in.Serial {
		return fmt.Errorf("%w: its serial number is %s", ErrMismatch, serial)
	}
	if l.IssuerSPKI != nil && in.IssuerKey != KeyID(l.IssuerSPKI) {
		return fmt.Errorf("%w: it names another issuer's key", ErrMismatch)
	}
	rules := lint.Rules{
		Issuer: l.Issuer, IssuerSPKI: l.IssuerSPKI, IssuerNotAfter: l.NotAfter,
		KeyUsage: l.KeyUsage, ExtKeyUsage: l.ExtKeyUsage, MaxValidity: l.MaxValidity,
		AnyStatus: l.Status,
		NoStyle:   true, // style is the issuer's business; what cannot be excepted is everybody's
	}
	if l.IssuerSPKI != nil && l.algorithm == nil {
		if l, err = l.Fixed(); err != nil {
			return err
		}
	}
	rules.SignatureAlgorithm = l.algorithm
	if found := lint.CheckParsed(t, rules); len(found) > 0 {
		return &LintError{found}
	}
	return nil
}

func signatureFor(spki []byte) ([]byte, error) {
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCA, err)
	}
	a, err := algorithm(pub)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCA, err)
	}
	return algorithmID(a)
}
