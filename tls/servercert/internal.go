package servercert

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

const (
	wake          = time.Hour // longest sleep: a machine that was suspended finds out
	firstRetry    = time.Minute
	issueDeadline = time.Minute
)

// An IssueFunc has a certificate for pub and the DNS names and IP addresses
// issued, and returns its chain as DER, the leaf first, the root left out.
type IssueFunc func(ctx context.Context, pub crypto.PublicKey, names []string) (chain [][]byte, err error)

// InternalOptions are what [NewInternal] needs.
type InternalOptions struct {
	Key   crypto.Signer // stays where it is, such as in the token
	Names []string      // DNS names and IP addresses
	Issue IssueFunc
	File  string // keeps the chain as PEM over a restart; "": nothing does
	Log   *zap.Logger
}

// Internal is a server certificate that the appliance's own CA issues and renews.
// It is safe for concurrent use.
type Internal struct {
	options InternalOptions
	current atomic.Pointer[tls.Certificate]
	renewAt atomic.Pointer[time.Time]
	renew   sync.Mutex // one renewal at a time; no handshake takes it
}

// NewInternal returns a source that has a certificate: the one in the file where
// it fits key and names and has more than a third of its life left, else a new
// one. A certificate that is merely due is kept where no new one can be had.
func NewInternal(ctx context.Context, o InternalOptions) (*Internal, error) {
	if o.Key == nil || o.Issue == nil || len(o.Names) == 0 {
		return nil, fmt.Errorf("%w: key, names and an issuer are needed", ErrOptions)
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	s := &Internal{options: o}
	kept, err := s.load()
	switch {
	case err == nil:
		s.use(kept)
		if left := time.Until(kept.Leaf.NotAfter); left > kept.Leaf.NotAfter.Sub(kept.Leaf.NotBefore)/3 {
			return s, nil
		}
	case !errors.Is(err, fs.ErrNotExist):
		o.Log.Info("kept server certificate not used", zap.Error(err))
	}
	if err := s.Renew(ctx); err != nil {
		if kept == nil {
			return nil, err
		}
		o.Log.Error("server certificate not renewed, the old one is used", zap.Time("not_after", kept.Leaf.NotAfter), zap.Error(err))
	}
	return s, nil
}

// GetCertificate is for [tls.Config]. It never waits.
func (s *Internal) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.current.Load(), nil
}

// Leaf returns the certificate in use.
func (s *Internal) Leaf() *x509.Certificate { return s.current.Load().Leaf }

// Renew has a new certificate issued now, checks it and takes it into use. On an
// error the old one stays in use.
func (s *Internal) Renew(ctx context.Context) error {
	s.renew.Lock()
	defer s.renew.Unlock()
	ctx, cancel := context.WithTimeout(ctx, issueDeadline)
	defer cancel()
	chain, err := s.options.Issue(ctx, s.options.Key.Public(), slices.Clone(s.options.Names))
	if err != nil {
		return fmt.Errorf("servercert: issuing: %w", err)
	}
	c, err := s.check(chain)
	if err != nil {
		return err
	}
	s.use(c)
	if err := s.save(chain); err != nil { // it is in use all the same
		s.options.Log.Warn("server certificate not kept for a restart", zap.String("file", s.options.File), zap.Error(err))
	}
	s.options.Log.Info("server certificate", zap.String("serial", c.Leaf.SerialNumber.Text(16)), zap.Time("not_after", c.Leaf.NotAfter))
	return nil
}

// Run renews the certificate when it is due, until ctx ends. A failure is tried
// again after a minute, then after twice as long, up to an hour.
func (s *Internal) Run(ctx context.Context) error {
	retry := firstRetry
	for {
		wait := min(time.Until(*s.renewAt.Load()), wake)
		if wait > 0 {
			if !sleep(ctx, wait) {
				return nil
			}
			continue
		}
		if err := s.Renew(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			s.options.Log.Error("server certificate not renewed", zap.Time("not_after", s.Leaf().NotAfter), zap.Duration("retry", retry), zap.Error(err))
			if !sleep(ctx, retry+upTo(retry/10)) {
				return nil
			}
			retry = min(2*retry, time.Hour)
			continue
		}
		retry = firstRetry
	}
}

func (s *Internal) use(c *tls.Certificate) {
	at := due(c.Leaf)
	s.renewAt.Store(&at)
	s.current.Store(c)
}

func (s *Internal) check(chain [][]byte) (*tls.Certificate, error) {
	c, err := assemble(chain, s.options.Key, time.Now())
	if err != nil {
		return nil, err
	}
	if got, want := namesOf(c.Leaf), normal(s.options.Names); !slices.Equal(got, want) {
		return nil, fmt.Errorf("%w: %v, wants %v", ErrNames, got, want)
	}
	return c, nil
}

// load returns the kept certificate where it can still be used.
func (s *Internal) load() (*tls.Certificate, error) {
	if s.options.File == "" {
		return nil, fs.ErrNotExist
	}
	b, err := os.ReadFile(s.options.File)
	if err != nil {
		return nil, err
	}
	var chain [][]byte
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type == "CERTIFICATE" {
			chain = append(chain, block.Bytes)
		}
	}
	return s.check(chain)
}

// save writes the chain beside its place, makes it durable and moves it there, so
// that a crash leaves the old one or the new one.
func (s *Internal) save(chain [][]byte) (err error) {
	if s.options.File == "" {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(s.options.File), ".servercert")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	for _, der := range chain {
		if err = pem.Encode(f, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	if err = errors.Join(f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), s.options.File)
}
