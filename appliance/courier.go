package appliance

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"runtime"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/appliance/courier"
	"github.com/postern-pki/postern/appliance/keyholder"
	"github.com/postern-pki/postern/appliance/link"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/appliance/sandbox"
	"github.com/postern-pki/postern/tls/servercert"
)

// HasCourier reports whether the configuration gives the courier anything to do.
func HasCourier(cfg *config.Config) bool {
	return cfg.TLS.Mode == "acme" || len(cfg.Validators) > 0
}

// courier runs the role that asks the ACME directory and the validators. Where it has
// nothing to do it waits: as a service of its own it is started with the others.
func (r *running) courier(ctx context.Context) error {
	if err := folder(r.cfg.CourierState); err != nil {
		return err
	}
	validators, err := openValidators(r.cfg, r.env.Zap.Named("validators")) // before the sandbox: it reads credentials
	if err != nil {
		return err
	}
	if err := r.bind(sandbox.Courier(r.cfg.CourierState, nil, r.dial)); err != nil {
		return err
	}
	if !HasCourier(r.cfg) {
		r.ready()
		<-ctx.Done()
		return nil
	}
	var directory rpc.CourierTLS
	run := func(ctx context.Context) error { <-ctx.Done(); return nil }
	if c := r.cfg.TLS; c.Mode == "acme" {
		own, err := courier.New(courier.Options{
			Directory: c.Directory, Roots: r.cfg.ACMERoots, Email: c.Email, Names: c.Names, Dir: r.cfg.CourierState, Log: r.env.Zap.Named("courier"),
		})
		if err != nil {
			return err
		}
		directory, run = own, own.Run
	}
	s := link.NewServer(link.ServerOptions{Self: r.hello(), Verbs: rpc.CourierTable(directory, validators), Log: r.env.Zap.Named("link")})
	stop := r.accept(ctx, s)
	defer stop()
	r.ready()
	return run(ctx)
}

// tlsKey says how the keyholder signs handshakes: with the token, in their share of
// its time, or with a software key.
func (k *Keyholder) tlsKey(env Env, o *keyholder.Options) error {
	c, log := k.cfg.TLS, env.Zap.Named("tls")
	switch {
	case c.Mode != "internal":
		return nil
	case c.KeyFile != "":
		key, err := servercert.KeyFile(c.KeyFile)
		if err != nil {
			return err
		}
		if _, ok := key.Public().(*ecdsa.PublicKey); !ok {
			return fmt.Errorf("tls.key_file: %s holds a %T, wants an ECDSA key, which the service makes itself where there is no file", c.KeyFile, key.Public())
		}
		log.Info("the listeners' key is a software key, in a file", zap.String("file", c.KeyFile))
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return fmt.Errorf("tls.key_file: %w", err)
		}
		o.Elsewhere = []rpc.KeyFact{{Purpose: purposeFile, SPKI: der}}
		o.TLS = func(_ context.Context, digest []byte, h crypto.Hash) ([]byte, error) {
			return key.Sign(rand.Reader, digest, h)
		}
		return nil
	}
	key, others := k.keys[c.Key], &servercert.Gauge{}
	sessions := k.cfg.TokenOf(c.Key).Sessions
	if sessions == 0 {
		sessions = 2 * runtime.GOMAXPROCS(0)
	}
	paced, err := servercert.NewPaced(key, servercert.PacedOptions{
		Sessions: max(1, sessions/2), // the pool has two for each thing that is done at once
		Busy:     others.Busy, Log: log,
		Queue: tlsQueue,
	})
	if err != nil {
		return err
	}
	o.Wanted = others.Begin
	o.TLS = func(ctx context.Context, digest []byte, h crypto.Hash) (sig []byte, err error) {
		err = paced.Do(ctx, func() error {
			sig, err = key.With(ctx).Sign(nil, digest, h)
			return err
		})
		return sig, err
	}
	return nil
}

// tlsQueue is how many handshakes wait for a signature: no more than half of the
// calls that a gate's link has under way, so that its enrollments have the rest.
const tlsQueue = 128

// purposeFile is what the keyholder calls a key that is in a file.
const purposeFile = "tls-file"

// listenersKey is the public key of the listeners, which the keyholder told.
func (a *Authority) listenersKey() (crypto.PublicKey, error) {
	if a.cfg.TLS.KeyFile == "" {
		return a.publicKey(a.cfg.TLS.Key)
	}
	for _, k := range a.facts.Keys {
		if k.Purpose == purposeFile {
			return x509.ParsePKIXPublicKey(k.SPKI)
		}
	}
	return nil, errors.New("the keyholder has no tls.key_file")
}

// acmeState asks the courier for the listeners' certificate, for the status. Why
// is "" where there is one.
func (a *Authority) acmeState(ctx context.Context) (leaf *x509.Certificate, why string) {
	if a.env.Courier == nil {
		return nil, "nobody asks a directory"
	}
	ask, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	der, trouble, err := a.env.Courier.State(ask)
	switch {
	case err != nil:
		return nil, "the courier does not answer: " + err.Error()
	case der == nil && trouble == "":
		return nil, "the directory is being asked"
	case der == nil:
		return nil, trouble
	}
	if leaf, err = x509.ParseCertificate(der); err != nil {
		return nil, err.Error()
	}
	return leaf, ""
}

// soon is when a certificate's end is near. One of a directory may live for a day:
// its end is near when its renewal is overdue.
func (a *Authority) soon(name string, c *x509.Certificate) time.Duration {
	const soon = 14 * 24 * time.Hour
	if name == "tls" && a.cfg.TLS.Mode == "acme" {
		return min(soon, c.NotAfter.Sub(c.NotBefore)/4)
	}
	return soon
}
