package servercert

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// FetchedOptions are what [NewFetched] needs.
type FetchedOptions struct {
	// Fetch returns the chain in use, as DER, the leaf first.
	Fetch func(ctx context.Context) ([][]byte, error)
	// Signer returns the key of a leaf, which stays where it is.
	Signer func(pub crypto.PublicKey) crypto.Signer
	Every  time.Duration // how often it is fetched; 0: a minute
	Log    *zap.Logger
}

const fetchWithin = 10 * time.Second

// Fetched is a server certificate that another process renews. It is safe for
// concurrent use.
type Fetched struct {
	options FetchedOptions
	current atomic.Pointer[tls.Certificate]
}

// NewFetched fetches the certificate for the first time.
func NewFetched(ctx context.Context, o FetchedOptions) (*Fetched, error) {
	if o.Fetch == nil || o.Signer == nil {
		return nil, fmt.Errorf("%w: where to fetch it, and its key, are needed", ErrOptions)
	}
	if o.Every <= 0 {
		o.Every = time.Minute
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	f := &Fetched{options: o}
	return f, f.fetch(ctx)
}

// GetCertificate is for [tls.Config]. It never waits.
func (f *Fetched) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return f.current.Load(), nil
}

// Leaf returns the certificate in use.
func (f *Fetched) Leaf() *x509.Certificate { return f.current.Load().Leaf }

// Run fetches again and again, until ctx ends. A failure keeps what there is.
func (f *Fetched) Run(ctx context.Context) error {
	for sleep(ctx, f.options.Every) {
		if err := f.fetch(ctx); err != nil && ctx.Err() == nil {
			f.options.Log.Warn("server certificate not fetched, the old one is used", zap.Error(err))
		}
	}
	return nil
}

func (f *Fetched) fetch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, fetchWithin)
	defer cancel()
	chain, err := f.options.Fetch(ctx)
	if err != nil {
		return fmt.Errorf("servercert: fetching: %w", err)
	}
	if now := f.current.Load(); now != nil && slices.EqualFunc(now.Certificate, chain, slices.Equal) {
		return nil
	}
	if len(chain) == 0 {
		return fmt.Errorf("%w: an empty chain", ErrUsage)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return fmt.Errorf("servercert: %w", err)
	}
	c, err := assemble(chain, f.options.Signer(leaf.PublicKey), time.Now())
	if err != nil {
		return err
	}
	f.current.Store(c)
	f.options.Log.Info("server certificate", zap.String("serial", leaf.SerialNumber.Text(16)), zap.Time("not_after", leaf.NotAfter))
	return nil
}
