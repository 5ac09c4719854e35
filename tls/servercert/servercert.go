// Package servercert is where a server's certificate comes from: the appliance's
// own CA ([Internal]), files that somebody else renews ([Files]), or an ACME
// directory that somebody else asks ([ACME]).
//
// # What a caller may rely on
//
// GetCertificate never waits, neither for a CA nor for a disk: it gives what is
// there. The one exception is the handshake by which a directory validates a name. A certificate is replaced by one that was checked, to fit its key, its
// names and the time, or not at all; a failed renewal keeps the old one.
//
// # What it does not protect against
//
// A certificate that could not be renewed before its end is served on, expired:
// devices refuse it, and the log said so since two thirds of its life. The keys of
// [Files] and [ACME] are in this process's memory.
package servercert

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Errors of this package. They say why a certificate was not taken.
var (
	ErrOptions = errors.New("servercert: bad options")
	ErrKey     = errors.New("servercert: the certificate is for another key")
	ErrNames   = errors.New("servercert: the certificate is for other names")
	ErrTime    = errors.New("servercert: the certificate is not valid now")
	ErrUsage   = errors.New("servercert: the certificate is not one of a server")
	ErrMode    = errors.New("servercert: the key file is open to others")
)

// assemble checks a chain, leaf first, for what a handshake will need of it.
func assemble(chain [][]byte, key crypto.Signer, now time.Time) (*tls.Certificate, error) {
	if len(chain) == 0 {
		return nil, fmt.Errorf("%w: an empty chain", ErrUsage)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, fmt.Errorf("servercert: %w", err)
	}
	for _, der := range chain[1:] {
		if _, err := x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("servercert: chain: %w", err)
		}
	}
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(leaf.PublicKey) {
		return nil, ErrKey
	}
	if err := validNow(leaf, now); err != nil {
		return nil, err
	}
	if leaf.IsCA || !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny) {
		return nil, fmt.Errorf("%w: it is a CA's or lacks serverAuth", ErrUsage)
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}, nil
}

func validNow(leaf *x509.Certificate, now time.Time) error {
	if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return fmt.Errorf("%w: from %s to %s", ErrTime, leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// namesOf returns the names of a certificate, in one order and one case.
func namesOf(c *x509.Certificate) []string {
	names := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	return normal(names)
}

func normal(names []string) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = strings.ToLower(n)
		if ip, err := netip.ParseAddr(n); err == nil {
			out[i] = ip.Unmap().String()
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// due returns when a certificate is to be renewed: at two thirds of its life,
// less up to a twentieth of it by chance, so that many appliances of one birthday
// do not come at the same hour.
func due(leaf *x509.Certificate) time.Time {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	return leaf.NotBefore.Add(life/3*2 - upTo(life/20))
}

// upTo returns a random duration from 0 to d.
func upTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	n, err := rand.Int(rand.Reader, big.NewInt(int64(d)))
	if err != nil {
		return 0
	}
	return time.Duration(n.Int64())
}

// sleep waits for d or for the end of ctx, and reports whether d passed.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
