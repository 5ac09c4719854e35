package appliance

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/appliance/gate"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/status"
	"github.com/postern-pki/postern/tls/listen"
	"github.com/postern-pki/postern/tls/servercert"
)

// server is what the two kinds of server have in common.
type server interface {
	Serve() error
	Shutdown(ctx context.Context) error
}

// certificate is where the listeners' certificate comes from.
type certificate interface {
	GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error)
	Leaf() *x509.Certificate
	Run(ctx context.Context) error
}

// A GateAuthority is what a gate needs of the authority.
type GateAuthority interface {
	protocol.Authority
	status.Source
	rpc.Operator
	Chain(ctx context.Context) ([][]byte, error)
}

// Gate is a role that listens.
type Gate struct {
	closers
	cfg     *config.Config
	env     Env
	servers []server
	addr    net.Addr
}

// Addr is where its TLS listener is; nil without one.
func (g *Gate) Addr() net.Addr { return g.addr }

// Close stops serving: requests under way are waited for, for a while.
func (g *Gate) Close(ctx context.Context) error { return g.closers.Close(ctx) }

// Serve serves until ctx ends or a listener fails.
func (g *Gate) Serve(ctx context.Context) error {
	ended := make(chan error, len(g.servers))
	for _, s := range g.servers {
		go func() { ended <- s.Serve() }()
	}
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return nil
	}
}

// OpenDevices has the devices' listener.
func OpenDevices(ctx context.Context, cfg *config.Config, env Env, a GateAuthority, keys rpc.GateKeys) (_ *Gate, err error) {
	g := &Gate{cfg: cfg, env: env.orDefault()}
	defer g.failed(ctx, &err)
	cert, err := g.certificate(ctx, a, keys)
	if err != nil {
		return nil, err
	}
	d, inherited := cfg.Devices, g.env.Listener("devices")
	s, err := listen.New(listen.Options{
		Name: "devices", Listener: inherited, Address: unlessInherited(inherited, d.Listen), GetCertificate: cert.GetCertificate,
		Handler: gate.Devices(gate.DevicesOptions{
			Authority: a, Keys: rpc.ProfileKeys{Keys: keys, Of: raKeys(cfg)},
			DefaultProfile: d.DefaultProfile, BrokenPerMinute: d.BrokenPerMinute, Now: g.env.Now, Log: g.env.Zap.Named("scep"),
		}),
		ConnsPerSource: d.ConnsPerSource, MaxConns: d.MaxConns, HandshakesPerSource: d.Handshakes, Log: g.env.Zap.Named("devices"),
		ACMEValidation: cfg.TLS.Mode == "acme",
	})
	if err != nil {
		return nil, fmt.Errorf("the devices' listener: %w", err)
	}
	g.addr = s.Addr()
	g.serve(s)
	return g, nil
}

// OpenOperators has the operators' local socket and, if there is one, their
// listener.
func OpenOperators(ctx context.Context, cfg *config.Config, env Env, a GateAuthority, keys rpc.GateKeys) (_ *Gate, err error) {
	g := &Gate{cfg: cfg, env: env.orDefault()}
	defer g.failed(ctx, &err)
	if err := g.local(a); err != nil {
		return nil, fmt.Errorf("the operators' socket: %w", err)
	}
	inherited := g.env.Listener("operators")
	if cfg.Operators.Listen == "" && inherited == nil {
		return g, nil
	}
	if cfg.OperatorCA == nil {
		return nil, errors.New("the operators' listener: its socket was inherited, but the configuration names no operators.ca: nobody could be told from a stranger")
	}
	cert, err := g.certificate(ctx, a, keys)
	if err != nil {
		return nil, err
	}
	s, err := listen.New(listen.Options{
		Name: "operators", Listener: inherited, Address: unlessInherited(inherited, cfg.Operators.Listen), GetCertificate: cert.GetCertificate,
		ClientCAs: cfg.OperatorCA, Handler: g.api(a, gate.CertificateActor), Log: g.env.Zap.Named("operators"),
	})
	if err != nil {
		return nil, fmt.Errorf("the operators' listener: %w", err)
	}
	g.addr = s.Addr()
	g.serve(s)
	return g, nil
}

func (g *Gate) local(a GateAuthority) error {
	handler, log := g.api(a, gate.LocalActor), g.env.Zap.Named("local")
	if l := g.env.Listener("local"); l != nil {
		s, err := listen.NewLocalOn(l, handler, log)
		if err != nil {
			return err
		}
		g.serve(s)
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(g.cfg.Operators.Socket), 0o700); err != nil {
		return err
	}
	s, err := listen.NewLocal(g.cfg.Operators.Socket, 0o660, handler, log)
	if err != nil {
		return err
	}
	g.serve(s)
	return nil
}

func (g *Gate) api(a rpc.Operator, actor func(*http.Request) (rpc.Actor, bool)) http.Handler {
	return gate.Operators(a, actor, g.env.Zap.Named("operators"))
}

// certificate has the listener's certificate ready before it listens.
func (g *Gate) certificate(ctx context.Context, a GateAuthority, keys rpc.GateKeys) (cert certificate, err error) {
	log := g.env.Zap.Named("tls")
	switch c := g.cfg.TLS; c.Mode {
	case "files":
		cert, err = servercert.NewFiles(servercert.FilesOptions{Certificate: c.Certificate, Key: c.PrivateKey, Log: log})
	case "acme":
		if g.env.Courier == nil {
			return nil, errors.New("the listener's certificate: nobody asks a directory for it")
		}
		cert, err = servercert.NewACME(ctx, servercert.ACMEOptions{Source: g.env.Courier, Names: c.Names, Log: log})
	default:
		cert, err = servercert.NewFetched(ctx, servercert.FetchedOptions{
			Fetch: a.Chain, Signer: func(pub crypto.PublicKey) crypto.Signer { return rpc.TLSSigner{Keys: keys, Key: pub} }, Log: log,
		})
	}
	if err != nil {
		return nil, fmt.Errorf("the listener's certificate: %w", err)
	}
	g.background(ctx, "the listener's certificate", func(ctx context.Context) {
		if err := cert.Run(ctx); err != nil && ctx.Err() == nil {
			log.Error("renewing the listener's certificate", zap.Error(err))
		}
	})
	return cert, nil
}

// raKeys names the RA keys of all generations of a profile's issuer.
func raKeys(cfg *config.Config) func(profile string) ([]rpc.RAKey, bool) {
	of := func(c *x509.Certificate) rpc.RAKey {
		return rpc.RAKey{Certificate: c.Raw, ID: rpc.KeyIDOf(c), Public: c.PublicKey}
	}
	all := make(map[string][]rpc.RAKey)
	for _, name := range cfg.Policies.Names() {
		p, _ := cfg.Policies.Profile(name)
		for _, i := range cfg.Issuers {
			if i.Of == p.Issuer {
				all[name] = append(all[name], of(i.RASign), of(i.RADecrypt))
			}
		}
	}
	return func(profile string) ([]rpc.RAKey, bool) {
		keys, ok := all[profile]
		return keys, ok
	}
}

// unlessInherited is the address to listen on: none where the service manager has
// opened the socket, whatever the configuration says.
func unlessInherited(l net.Listener, address string) string {
	if l != nil {
		return ""
	}
	return address
}

// drainWithin bounds how long each listener waits for its requests at a stop. What
// is left of the time is the log's: a stop that it does not know of makes every
// open challenge void after the machine was started.
const drainWithin = 3 * time.Second

func (g *Gate) serve(s server) {
	g.servers = append(g.servers, s)
	g.onClose(func(ctx context.Context) error {
		within, cancel := context.WithTimeout(ctx, drainWithin)
		defer cancel()
		err := s.Shutdown(within)
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			g.env.Zap.Warn("requests were cut off by the stop", zap.Error(err))
			return nil
		}
		return err
	})
}
