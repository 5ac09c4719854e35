package issuer

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"math/big"
	"net/netip"
	"sync/atomic"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/lint"
)

// A Ticket is one certificate that was linted and may be signed once. It is safe
// for concurrent use, of which one caller gets the certificate.
type Ticket struct {
	issuer *Issuer
	tbs    []byte // never handed out
	intent audit.Intent
	used   atomic.Bool
}

// Intent returns what has to be durable in the log before Sign is called. The
// bytes are the caller's.
func (t *Ticket) Intent() audit.Intent {
	in := t.intent
	in.TBS = bytes.Clone(t.tbs)
	return in
}

// Sign has the certificate signed, by the number of the record of its intent, and
// returns its DER. Each call after the first fails with [ErrUsed], whatever the
// first one did. [ErrSignature] means that the signer answered with something
// that has not the form of a signature by the CA's key.
func (t *Ticket) Sign(ctx context.Context, intent uint64) (der []byte, err error) {
	if t.used.Swap(true) {
		return nil, ErrUsed
	}
	i := t.issuer
	signature, err := i.signer.SignCertificate(ctx, i.name, bytes.Clone(t.tbs), intent)
	if err != nil {
		return nil, fmt.Errorf("issuer: signing %s: %w", t.intent.Serial, err)
	}
	if !i.formed(signature) {
		return nil, fmt.Errorf("%w: %s", ErrSignature, t.intent.Serial)
	}
	return assemble(t.tbs, i.algID, signature)
}

// formed reports whether the bytes have the form of a signature by the CA's key:
// of the modulus' length, or the DER of two numbers (RFC 3279, section 2.2.3).
// Whether it verifies, the signer has checked.
func (i *Issuer) formed(signature []byte) bool {
	if pub, ok := i.ca.PublicKey.(*rsa.PublicKey); ok {
		return len(signature) == pub.Size()
	}
	in := cryptobyte.String(signature)
	var pair cryptobyte.String
	r, s := new(big.Int), new(big.Int)
	return in.ReadASN1(&pair, cbasn1.SEQUENCE) && in.Empty() && pair.ReadASN1Integer(r) && pair.ReadASN1Integer(s) && pair.Empty() &&
		r.Sign() > 0 && s.Sign() > 0
}

// assemble puts a Certificate together (RFC 5280, section 4.1) and reads back
// that it begins with the bytes that were signed.
func assemble(tbs, algID, signature []byte) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, len(tbs)+len(signature)+32))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		b.AddBytes(algID)
		b.AddASN1BitString(signature)
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("issuer: assembling: %w", err)
	}
	in := cryptobyte.String(der)
	var body, first cryptobyte.String
	if !in.ReadASN1(&body, cbasn1.SEQUENCE) || !body.ReadASN1Element(&first, cbasn1.SEQUENCE) || !bytes.Equal(first, tbs) {
		return nil, ErrMismatch
	}
	return der, nil
}

// rules are what the lint compares the bytes with: taken from the template and
// the CA's certificate, not from the bytes.
func (i *Issuer) rules(t *x509.Certificate, spki []byte) (lint.Rules, error) {
	n := &lint.Names{DNS: t.DNSNames, Email: t.EmailAddresses}
	for _, u := range t.URIs {
		n.URI = append(n.URI, u.String())
	}
	for _, ip := range t.IPAddresses {
		a, ok := netip.AddrFromSlice(ip)
		if !ok {
			return lint.Rules{}, fmt.Errorf("%w: an address of %d bytes", ErrTemplate, len(ip))
		}
		n.IP = append(n.IP, a.Unmap())
	}
	usages, err := extendedUsages(t)
	if err != nil {
		return lint.Rules{}, err
	}
	return lint.Rules{
		Issuer: i.ca.RawSubject, IssuerSPKI: i.ca.RawSubjectPublicKeyInfo, IssuerNotAfter: i.ca.NotAfter,
		AuthorityKeyID: i.ca.SubjectKeyId, SignatureAlgorithm: i.algID,
		Subject: t.RawSubject, SPKI: spki, Names: n,
		Status:   &lint.Status{CRL: t.CRLDistributionPoints, OCSP: t.OCSPServer, CAIssuers: t.IssuingCertificateURL},
		KeyUsage: t.KeyUsage, ExtKeyUsage: usages, MaxValidity: i.options.MaxValidity,
	}, nil
}
