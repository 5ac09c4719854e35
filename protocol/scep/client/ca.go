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
// one, or the CA's own, the CA that signed both, and Chain from above the CA up to its root,
// which is empty if the CA is its own root.
type CA struct {
	RASign, RADecrypt, CA *x509.Certificate
	Chain                 []*x509.Certificate
}

// Certificates are all of them, each once, the RA's first.
func (ca *CA) Certificates() []*x509.Certificate {
	var out []*x509.Certificate
	for _, c := range append([]*x509.Certificate{ca.RASign, ca.RADecrypt, ca.CA}, ca.Chain...) {
		if !slices.ContainsFunc(out, c.Equal) {
			out = append(out, c)
		}
	}
	return out
}

// CACert asks for the CA's certificates. The signer is the first that is no CA's
// and may sign, the recipient the first that is no CA's and may encipher keys;
// both have the extended key usages of an RA and no other, one CA signed both, all
// are valid now, and the fingerprint is that of the CA or of the root above
// it. A CA without an RA (RFC 8894, section 2.2) is its own, if its certificate says
// that it signs messages and deciphers keys.
func (c *Client) CACert(ctx context.Context) (*CA, error) {
	want, err := parseFingerprint(c.CAFingerprint)
	if err != nil {
		return nil, err
	}
	certs := c.CACerts
	if len(certs) == 0 {
		if certs, err = c.caCertificates(ctx); err != nil {
			return nil, err
		}
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
	body, kind, err := c.do(ctx, question{operation: "GetCACert", ident: c.CAIdentifier})
	if err != nil {
		return nil, err
	}
	switch kind {
	case typeCA:
		return parseCertificates([][]byte{body})
	case typeRA:
		return certsOnly(body)
	default:
		return nil, fmt.Errorf("%w: GetCACert has the content type %q", ErrTransport, clean(kind))
	}
}

// certsOnly reads a degenerate SignedData (RFC 8894, section 3.4).
func certsOnly(ber []byte) ([]*x509.Certificate, error) {
	der, err := cms.DER(ber, cms.Limits{Bytes: maxAnswer})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCA, err)
	}
	raw, err := cms.ParseCertsOnly(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCA, err)
	}
	return parseCertificates(raw)
}

func parseCertificates(raw [][]byte) ([]*x509.Certificate, error) {
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
	if ca := alone(certs); ca != nil {
		return ca.upTo(certs, now)
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
	return ca.upTo(certs, now)
}

// alone returns the CA that is its own RA, if no RA is among the certificates: the
// first CA that says so and that signed no other of them.
func alone(certs []*x509.Certificate) *CA {
	const both = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	if slices.ContainsFunc(certs, func(c *x509.Certificate) bool { return !c.IsCA }) {
		return nil
	}
	i := slices.IndexFunc(certs, func(c *x509.Certificate) bool {
		return c.IsCA && c.KeyUsage&both == both && !slices.ContainsFunc(certs, func(o *x509.Certificate) bool {
			return !o.Equal(c) && issued(c, o)
		})
	})
	if i < 0 {
		return nil
	}
	return &CA{RASign: certs[i], RADecrypt: certs[i], CA: certs[i]}
}

// upTo adds the chain above the CA, and has all of it verified.
func (ca *CA) upTo(certs []*x509.Certificate, now time.Time) (*CA, error) {
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
	if err := ca.verify(now); err != nil {
		return nil, err
	}
	return ca, nil
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
	for _, c := range []*x509.Certificate{ca.RASign, ca.RADecrypt} {
		if err := ca.chains(c, now); err != nil {
			return fmt.Errorf("%w: %q: %w", ErrCA, clean(c.Subject.String()), err)
		}
	}
	return nil
}

// chains reports whether a certificate leads to the top of the CA's chain.
func (ca *CA) chains(c *x509.Certificate, now time.Time) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	above := append([]*x509.Certificate{ca.CA}, ca.Chain...)
	roots.AddCert(above[len(above)-1])
	for _, c := range above[:len(above)-1] {
		between.AddCert(c)
	}
	_, err := c.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err
}

// clockSkew is how far ahead the CA's clock may be.
const clockSkew = 5 * time.Minute

// vouches says that the CA itself signed the certificate that it issued, and that
// this is worth something now.
func (ca *CA) vouches(c *x509.Certificate, now time.Time) error {
	if !issued(ca.CA, c) {
		return fmt.Errorf("%w: the CA did not sign it", ErrCertificate)
	}
	if c.NotBefore.After(now) && c.NotBefore.Before(now.Add(clockSkew)) {
		now = c.NotBefore
	}
	if err := ca.chains(c, now); err != nil {
		return fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	return nil
}

// issued reports whether ca is a CA that signed c.
func issued(ca, c *x509.Certificate) bool {
	return ca.IsCA && bytes.Equal(ca.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(ca) == nil
}

func selfSigned(c *x509.Certificate) bool { return issued(c, c) }
