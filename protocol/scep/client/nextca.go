package client

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/postern-pki/postern/protocol/cms"
)

// A NextCA is what the current CA vouches for as its successor (RFC 8894, section
// 4.7). Certificates are all of it, in the order sent. CA is what a device needs of
// it, as [Client.CACert] would select it; it is nil if Certificates are not enough
// for that. It may be valid from a later time on.
type NextCA struct {
	Certificates []*x509.Certificate
	CA           *CA
}

// NextCACert asks for the CA's successor. A [StatusError] of 404 says that none is
// announced.
func (c *Client) NextCACert(ctx context.Context) (*NextCA, error) {
	ca, err := c.CACert(ctx)
	if err != nil {
		return nil, err
	}
	body, kind, err := c.do(ctx, question{operation: "GetNextCACert", ident: c.CAIdentifier})
	if err != nil {
		return nil, err
	}
	if kind != typeNext {
		return nil, fmt.Errorf("%w: GetNextCACert has the content type %q", ErrTransport, clean(kind))
	}
	return OpenNextCA(body, ca, time.Now())
}

// OpenNextCA verifies an answer to GetNextCACert: the current RA's signing
// certificate or the current CA signed it, with no digest older than SHA-256. The
// certificates are those of the signed content. Some clients read those beside it,
// which nothing vouches for: each has to be one of the content or of the current
// CA. Nothing of it is over at now, and there is a CA. Errors are [ErrNextCA], or
// [ErrCA] for certificates that cannot be read.
func OpenNextCA(ber []byte, current *CA, now time.Time) (*NextCA, error) {
	signed, certs, err := inspectNextCA(ber)
	if err != nil {
		return nil, err
	}
	signer := func(c *x509.Certificate) bool { return c != nil && bytes.Equal(c.Raw, signed.Signer.Raw) }
	if !signer(current.RASign) && !signer(current.CA) {
		return nil, fmt.Errorf("%w: the signer is neither the RA nor the CA", ErrNextCA)
	}
	if !strong(signed.Digest) {
		return nil, fmt.Errorf("%w: it is signed with %v", ErrNextCA, signed.Digest)
	}
	if err := signed.Verify(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNextCA, err)
	}
	known := append(current.Certificates(), certs...)
	for _, outer := range signed.Certificates {
		if !slices.ContainsFunc(known, func(c *x509.Certificate) bool { return bytes.Equal(c.Raw, outer.Raw) }) {
			return nil, fmt.Errorf("%w: a certificate stands beside what is signed", ErrNextCA)
		}
	}
	return newNextCA(certs, now)
}

// inspectNextCA parses. What it returns proves nothing.
func inspectNextCA(ber []byte) (*cms.Signed, []*x509.Certificate, error) {
	der, err := cms.DER(ber, cms.Limits{Bytes: maxAnswer})
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrNextCA, err)
	}
	signed, err := cms.ParseSigned(der)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrNextCA, err)
	}
	certs, err := certsOnly(signed.Content)
	return signed, certs, err
}

// newNextCA looks at what the current CA vouched for.
func newNextCA(certs []*x509.Certificate, now time.Time) (*NextCA, error) {
	if !slices.ContainsFunc(certs, func(c *x509.Certificate) bool { return c.IsCA }) {
		return nil, fmt.Errorf("%w: there is no CA in it", ErrNextCA)
	}
	at := now
	for _, c := range certs {
		if now.After(c.NotAfter) {
			return nil, fmt.Errorf("%w: %q is over", ErrNextCA, clean(c.Subject.String()))
		}
		if c.NotBefore.After(at) {
			at = c.NotBefore
		}
	}
	next := &NextCA{Certificates: certs}
	if ca, err := selectCA(certs, at); err == nil {
		next.CA = ca
	}
	return next, nil
}
