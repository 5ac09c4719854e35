package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/postern-pki/postern/protocol/cms"
)

const maxChain = 8

// oidRequestAgent is Microsoft's Certificate Request Agent.
var oidRequestAgent = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 1}

// A CA is what [Client.CACert] verified: the two RA certificates, which may be
// one, the CA that signed both, and Chain from above the CA up to its root,
// which is empty if the CA is its own root.
type CA struct {
	RASign, RADecrypt, CA *x509.Certificate
	Chain                 []*x509.Certificate
}

// Certificates are all of them, each once, the RA's first.
func (ca *CA) Certificates() []*x509.Certificate {
	out := []*x509.Certificate{ca.RASign}
	if !ca.RADecrypt.Equal(ca.RASign) {
		out = append(out, ca.RADecrypt)
	}
	return append(append(out, ca.CA), ca.Chain...)
}

// CACert asks for the CA's certificates. The signer is the first that is no CA's
// and may sign, the recipient the first that is no CA's and may encipher keys;
// both have the extended key usages of an RA and no other, one CA signed both, all
// are valid now, and the fingerprint is that of the CA or of the root above
// it.
func (c *Client) CACert(ctx context.Context) (*CA, error) {
	want, err := parseFingerprint(c.CAFingerprint)
	if err != nil {
		return nil, err
	}
	certs, err := c.caCertificates(ctx)
	if err != nil {
		return nil, err
	}
	ca, err := selectCA(certs, time.Now())
	if err != nil {
		return nil, err
	}
	top := ca.CA
	if len(ca.Chain) > 0 {
		top = ca.Chain[len(ca.Chain)-1]
	}
	if sha256.Sum256(ca.CA.Raw) != want && (!selfSigned(top) || sha256.Sum256(top.Raw) != want) {
		return nil, fmt.Errorf("%w: the CA %q has %x, the top of its chain %q has %x", ErrFingerprint,
			clean(ca.CA.Subject.String()), sha256.Sum256(ca.CA.Raw), clean(top.Subject.String()), sha256.Sum256(top.Raw))
	}
	return ca, nil
}

func parseFingerprint(s string) (want [sha256.Size]byte, err error) {
	if s == "" {
		return want, fmt.Errorf("%w: a fingerprint of the CA or its root is required", ErrFingerprint)
	}
	b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(s), ":", ""))
	if err != nil || len(b) != len(want) {
		return want, fmt.Errorf("%w: a fingerprint is 64 hexadecimal digits, the SHA-256 of a certificate", ErrFingerprint)
	}
	copy(want[:], b)
	return want, nil
}

// caCertificates returns what GetCACert says, unverified.
func (c *Client) caCertificates(ctx context.Context) ([]*x509.Certificate, error) {
	body, kind, err := c.do(ctx, "GetCACert", nil, false)
	if err != nil {
		return nil, err
	}
	raw := [][]byte{body}
	switch kind {
	case typeCA:
	case typeRA:
		der, err := cms.DER(body, cms.Limits{Bytes: maxAnswer})
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCA, err)
		}
		if raw, err = cms.ParseCertsOnly(der); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCA, err)
		}
	default:
		return nil, fmt.Errorf("%w: GetCACert has the content type %q", ErrTransport, clean(kind))
	}
	certs := make([]*x509.Certificate, 0, len(raw))
	for _, r := range raw {
		cert, err := x509.ParseCertificate(r)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCA, err)
		}
		certs = append(certs, cert)
	}
	return certs, nil
}

func selectCA(certs []*x509.Certificate, now time.Time) (*CA, error) {
	first := func(what string, fits func(*x509.Certificate) bool) (*x509.Certificate, error) {
		i := slices.IndexFunc(certs, fits)
		if i < 0 {
			return nil, fmt.Errorf("%w: %s is missing", ErrCA, what)
		}
		return certs[i], nil
	}
	usable := func(use x509.KeyUsage) func(*x509.Certificate) bool {
		return func(c *x509.Certificate) bool { return !c.IsCA && c.KeyUsage&use != 0 && isRA(c) }
	}
	var ca CA
	var err error
	if ca.RASign, err = first("an RA certificate with digitalSignature", usable(x509.KeyUsageDigitalSignature)); err != nil {
		return nil, err
	}
	if ca.RADecrypt, err = first("an RA certificate with keyEncipherment", usable(x509.KeyUsageKeyEncipherment)); err != nil {
		return nil, err
	}
	if ca.CA, err = first("a CA that signed both RA certificates", func(c *x509.Certificate) bool {
		return issued(c, ca.RASign) && issued(c, ca.RADecrypt)
	}); err != nil {
		return nil, err
	}
	for top := ca.CA; !selfSigned(top); {
		i := slices.IndexFunc(certs, func(c *x509.Certificate) bool { return issued(c, top) })
		if i < 0 {
			break // the CA's own fingerprint may be the one that is wanted
		}
		top = certs[i]
		if ca.Chain = append(ca.Chain, top); len(ca.Chain) > maxChain {
			return nil, fmt.Errorf("%w: the chain has more than %d certificates", ErrCA, maxChain)
		}
	}
	return &ca, ca.verify(now)
}

// isRA reports whether a certificate's extended key usages are those that an RA
// has, a Certificate Request Agent's or a TLS server's, and no other. Else each
// device of the CA could pass for the RA: its certificate has the same signature
// and often the same key usages, and is for TLS clients, or for anything.
func isRA(c *x509.Certificate) bool {
	return len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0 &&
		!slices.ContainsFunc(c.ExtKeyUsage, func(u x509.ExtKeyUsage) bool { return u != x509.ExtKeyUsageServerAuth }) &&
		!slices.ContainsFunc(c.UnknownExtKeyUsage, func(u asn1.ObjectIdentifier) bool { return !u.Equal(oidRequestAgent) })
}

// verify lets crypto/x509 judge what signatures alone do not say: dates, path
// lengths, name constraints, critical extensions.
func (ca *CA) verify(now time.Time) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	above := append([]*x509.Certificate{ca.CA}, ca.Chain...)
	roots.AddCert(above[len(above)-1])
	for _, c := range above[:len(above)-1] {
		between.AddCert(c)
	}
	for _, c := range []*x509.Certificate{ca.RASign, ca.RADecrypt} {
		if _, err := c.Verify(x509.VerifyOptions{
			Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		}); err != nil {
			return fmt.Errorf("%w: %q: %w", ErrCA, clean(c.Subject.String()), err)
		}
	}
	return nil
}

// issued reports whether ca is a CA that signed c.
func issued(ca, c *x509.Certificate) bool {
	return ca.IsCA && bytes.Equal(ca.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(ca) == nil
}

func selfSigned(c *x509.Certificate) bool { return issued(c, c) }
