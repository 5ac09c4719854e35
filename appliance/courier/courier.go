// Package courier does what goes out of the appliance: it has the listeners'
// certificate from a private ACME directory, by certmagic.
//
// # What a caller may rely on
//
// Nothing but the directory that was named is asked, over HTTPS, by the roots that
// were given; no public CA, no proxy, no OCSP responder. The courier opens no
// listening socket: it hands out what answers a tls-alpn-01 challenge, and only
// while that challenge is pending. A certificate is kept over a restart, renewed at
// two thirds of its life, and replaced only by one that was checked; a failed
// renewal keeps the old one. Every wait has a deadline, every answer a bound.
//
// # What it does not protect against
//
// The key of the certificate is a software key: it is in a file of mode 0600, in
// this process, and in every process that it is handed to. Who owns the directory,
// or the names' DNS as the directory sees it, has certificates for the names. A
// power cut between the writes of a new key and its certificate leaves a pair that
// does not fit; then a new one is asked for at the start.
package courier

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Errors of this package.
var (
	ErrOptions     = errors.New("courier: bad options")
	ErrNone        = errors.New("courier: there is no certificate yet")
	ErrNoChallenge = errors.New("courier: no challenge is pending for that name")
	ErrNotHTTPS    = errors.New("courier: the directory is spoken to by https alone")
	ErrUnfit       = errors.New("courier: the certificate does not fit")
)

const (
	obtainWithin = 5 * time.Minute // all of one order: a directory may take its time
	firstRetry   = 5 * time.Second
	lastRetry    = time.Hour
	maxTrouble   = 900       // octets of why: it goes into the status and over a link
	wake         = time.Hour // longest sleep: a machine that was suspended finds out
)

// Options are what [New] needs.
type Options struct {
	Directory string         // its URL, https
	Roots     *x509.CertPool // who may be the directory; the system's roots are not asked
	Email     string         // of the account; "" for none
	Names     []string       // DNS names and IP addresses, all in one certificate
	Dir       string         // account key, certificate and key; made with mode 0700
	Log       *zap.Logger
}

// A Courier is safe for concurrent use.
type Courier struct {
	options Options
	issuer  *issuer
	current atomic.Pointer[pair]
	trouble atomic.Pointer[string] // why the last order failed
}

// pair is a certificate and its key.
type pair struct {
	chain [][]byte // DER, the leaf first
	key   []byte   // PKCS #8
	leaf  *x509.Certificate
}

// New returns a courier that has read what it kept. It asks nobody: [Courier.Run]
// does.
func New(o Options) (*Courier, error) {
	if o.Roots == nil || len(o.Names) == 0 || o.Dir == "" {
		return nil, fmt.Errorf("%w: roots, names and a folder are needed", ErrOptions)
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	is, err := newIssuer(o)
	if err != nil {
		return nil, err
	}
	c := &Courier{options: o, issuer: is}
	o.Log.Info("the key of the listeners' certificate is a software key, in this folder", zap.String("folder", o.Dir))
	kept, err := is.kept()
	switch {
	case err == nil:
		c.current.Store(kept)
	case !errors.Is(err, fs.ErrNotExist):
		o.Log.Warn("kept certificate not used", zap.Error(err))
	}
	return c, nil
}

// Certificate returns the chain, DER with the leaf first, and its key, PKCS #8 in
// DER. The error is [ErrNone] until there is one. It does not wait.
func (c *Courier) Certificate(context.Context) (chain [][]byte, keyPKCS8 []byte, err error) {
	p := c.current.Load()
	if p == nil {
		if why := c.trouble.Load(); why != nil {
			return nil, nil, fmt.Errorf("%w: %s", ErrNone, *why)
		}
		return nil, nil, ErrNone
	}
	return p.chain, p.key, nil
}

// AcmeChallenge returns the certificate and key, as [Courier.Certificate] does,
// that answer a tls-alpn-01 validation (RFC 8737, section 3) of a server name. For
// an IP address that is its name below in-addr.arpa or ip6.arpa (RFC 8738, section
// 6). The error is [ErrNoChallenge] unless one is pending. It does not wait.
func (c *Courier) AcmeChallenge(_ context.Context, serverName string) (chain [][]byte, keyPKCS8 []byte, err error) {
	return c.issuer.solver.answer(serverName)
}

// State returns the certificate in use, DER, nil where there is none, and why the
// last order failed, "" where it did not. It is for those who need no key.
func (c *Courier) State(context.Context) (leaf []byte, trouble string, err error) {
	if p := c.current.Load(); p != nil {
		leaf = p.chain[0]
	}
	if why := c.trouble.Load(); why != nil {
		trouble = *why
	}
	return leaf, trouble, nil
}

// Run has a certificate where there is none, and renews it when it is due, until
// ctx ends. What fails is tried again after 5 s, then after twice as long, up to an
// hour.
func (c *Courier) Run(ctx context.Context) error {
	defer c.issuer.close()
	retry := firstRetry
	for {
		p := c.current.Load()
		if p != nil {
			if wait := min(time.Until(due(p.leaf)), wake); wait > 0 {
				if !sleep(ctx, wait) {
					return nil
				}
				continue
			}
		}
		if err := c.obtain(ctx, p != nil); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			c.say(p, err, retry)
			if !sleep(ctx, retry+upTo(retry/10)) {
				return nil
			}
			retry = min(2*retry, lastRetry)
			continue
		}
		retry = firstRetry
	}
}

// say notes why there is no new certificate.
func (c *Courier) say(old *pair, err error, retry time.Duration) {
	why := err.Error() // which may quote what the directory answered
	why = strings.ToValidUTF8(why[:min(len(why), maxTrouble)], "")
	c.trouble.Store(&why)
	fields := []zap.Field{zap.String("directory", c.options.Directory), zap.Duration("retry", retry), zap.String("error", why)}
	if old == nil {
		c.options.Log.Error("no server certificate from the directory, and none was kept", fields...)
		return
	}
	c.options.Log.Error("server certificate not renewed, the old one is used", append(fields, zap.Time("not_after", old.leaf.NotAfter))...)
}

// obtain has a certificate issued, in place of the kept one where there is one.
func (c *Courier) obtain(ctx context.Context, renew bool) error {
	ctx, cancel := context.WithTimeout(ctx, obtainWithin)
	defer cancel()
	if err := c.issuer.obtain(ctx, renew); err != nil {
		return fmt.Errorf("courier: %w", err)
	}
	p, err := c.issuer.kept()
	if err != nil {
		return err
	}
	c.trouble.Store(nil)
	c.current.Store(p)
	c.options.Log.Info("server certificate", zap.String("serial", p.leaf.SerialNumber.Text(16)), zap.Time("not_after", p.leaf.NotAfter))
	return nil
}

// due is when a certificate is renewed: at two thirds of its life.
func due(leaf *x509.Certificate) time.Time {
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 3 * 2)
}

// upTo returns a random duration from 0 to d.
func upTo(d time.Duration) time.Duration {
	n, err := rand.Int(rand.Reader, big.NewInt(int64(max(d, 1))))
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

// pkcs8 is a private key as [Courier.Certificate] gives it.
func pkcs8(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("courier: %w", err)
	}
	return der, nil
}
