// Package listen makes the servers of the appliance, and is the only place that
// does: TLS over TCP for devices and operators, and HTTP on a Unix socket for
// operators on the machine itself.
//
// # What a caller may rely on
//
// A [Server] speaks TLS 1.3, or 1.2 with AEAD and ECDHE, and HTTP/1; nothing that
// was sent before a finished handshake reaches the handler. Where clients have to
// show a certificate no request is served without one, and where they need not
// none is asked for. Every wait on a peer ends, and every count of peers is bounded.
// What a source may have is limited before it costs a signature: its connections,
// the handshakes that it begins in a second, and its signatures under way, so that a
// source that floods does not keep others waiting. A source is an IPv4 address or an
// IPv6 /64. A resumed session costs no signature.
//
// # What it does not protect against
//
// A full handshake costs an operation of the server's key: many sources together
// can ask for more than it has, so the key has to have a queue of its own, and they
// can fill [Options.MaxConns]. Who shares a source's address shares its limits. The handler has to bound the bodies it reads and to recover
// from its own panics (net/http would, and close the connection).
package listen

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/time/rate"
)

// Bounds on what a peer may make us wait for or hold.
const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 15 * time.Second // headers and body: a message has 64 KiB
	writeTimeout      = 30 * time.Second // longer than the slowest signature of a token
	idleTimeout       = 60 * time.Second
	maxHeaderBytes    = 64 << 10 // a GET message of 48 KiB stands in the request line

	acmeProtocol = "acme-tls/1" // RFC 8737, section 6.2

	defaultHandshakeTimeout = 5 * time.Second
	defaultConnsPerSource   = 128
	defaultMaxConns         = 2048

	defaultHandshakesPerSource = 50
)

// ErrOptions says that a server cannot be made of these options.
var ErrOptions = errors.New("listen: bad options")

// Options say what differs between the servers.
type Options struct {
	Name string // in log lines, such as "devices"

	Listener net.Listener // inherited, such as from systemd; plain TCP. Else:
	Address  string       // host:port to listen on

	Handler        http.Handler
	GetCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error) // waits no longer than the ClientHelloInfo's context

	// ACMEValidation has the server speak acme-tls/1 too (RFC 8737), by which a
	// directory validates a name: the handshake is all of it. Servers that ask for
	// client certificates cannot.
	ACMEValidation bool

	// ClientCAs sign the certificates of clients, who then have to show one. nil:
	// clients are not asked, which Windows and macOS devices need.
	ClientCAs *x509.CertPool
	// VerifyClient has the last word on a client, also on a resumed connection.
	// Without ClientCAs it is the only word: any certificate comes here, whose key
	// the client has proven to hold.
	VerifyClient func(tls.ConnectionState) error

	ConnsPerSource      int           // from one IPv4 address or IPv6 /64; 0: 128
	MaxConns            int           // from all together; 0: 2048
	HandshakesPerSource int           // that a source may begin in a second; 0: 50
	HandshakeTimeout    time.Duration // 0: 5 s

	Log *zap.Logger
}

// A Server serves HTTP over TLS on one listener.
type Server struct {
	options  Options
	listener net.Listener
	config   *tls.Config
	http     *http.Server
	ready    *queue
	limits   *limiter
	seldom   rate.Sometimes // for lines that a peer can cause
	refused  atomic.Uint64  // connections that no line counts yet

	handshakes sync.WaitGroup     // used by Serve alone
	stop       context.CancelFunc // ends the handshakes
	ctx        context.Context    // the life of the server
}

// New returns a server that listens already and serves from [Server.Serve] on.
func New(o Options) (*Server, error) {
	if o.Handler == nil || o.GetCertificate == nil || (o.Listener == nil) == (o.Address == "") {
		return nil, fmt.Errorf("%w: handler, certificate, and one of listener and address are needed", ErrOptions)
	}
	if o.ACMEValidation && (o.ClientCAs != nil || o.VerifyClient != nil) {
		return nil, fmt.Errorf("%w: a directory that validates names shows no certificate", ErrOptions)
	}
	if o.ConnsPerSource < 0 || o.MaxConns < 0 || o.HandshakesPerSource < 0 || o.HandshakeTimeout < 0 {
		return nil, fmt.Errorf("%w: a limit is negative", ErrOptions)
	}
	o.ConnsPerSource = orDefault(o.ConnsPerSource, defaultConnsPerSource)
	o.MaxConns = orDefault(o.MaxConns, defaultMaxConns)
	o.HandshakesPerSource = orDefault(o.HandshakesPerSource, defaultHandshakesPerSource)
	o.HandshakeTimeout = orDefault(o.HandshakeTimeout, defaultHandshakeTimeout)
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	o.Log = o.Log.With(zap.String("listener", o.Name))
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{
		options: o, listener: o.Listener, config: tlsConfig(o), http: httpServer(o.Handler, o.Log),
		limits: newLimiter(o.ConnsPerSource, o.MaxConns, o.HandshakesPerSource), seldom: rate.Sometimes{First: 1, Interval: time.Second},
		stop: cancel, ctx: ctx,
	}
	if s.listener == nil {
		l, err := Open(ctx, o.Address)
		if err != nil {
			cancel()
			return nil, err
		}
		s.listener = l
	}
	s.ready = newQueue(s.listener.Addr())
	return s, nil
}

// Open opens a TCP socket for a server, maybe of another process, which inherits
// it. It is plain TCP, as a service manager opens it: the kernel's rules for the
// files and sockets of a process do not see Multipath TCP, which is Go's default.
func Open(ctx context.Context, address string) (net.Listener, error) {
	var plain net.ListenConfig
	plain.SetMultipathTCP(false)
	l, err := plain.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return l, nil
}

func orDefault[T int | time.Duration](v, otherwise T) T {
	if v == 0 {
		return otherwise
	}
	return v
}

// tlsConfig leaves the key exchanges to the standard library, whose first choice
// is X25519MLKEM768, and session tickets on: each resumption spares a signature.
func tlsConfig(o Options) *tls.Config {
	c := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: inTurn(o.GetCertificate),
		NextProtos:     []string{"http/1.1"},
		// An answer is a few kilobytes: in one record it is one write to the socket.
		DynamicRecordSizingDisabled: true,
		CipherSuites: []uint16{ // of TLS 1.2; those of 1.3 are all good
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
	}
	switch {
	case o.ClientCAs != nil:
		c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, o.ClientCAs
	case o.VerifyClient != nil:
		c.ClientAuth = tls.RequireAnyClientCert
	}
	c.VerifyConnection = o.VerifyClient
	if o.ACMEValidation {
		c.NextProtos = append(c.NextProtos, acmeProtocol)
	}
	return c
}

// httpServer is the one set of limits for TCP and Unix sockets. HTTP/2 is left
// out: no device needs it, and it is a second parser of strangers' bytes.
func httpServer(h http.Handler, log *zap.Logger) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	errorLog, err := zap.NewStdLogAt(log, zapcore.WarnLevel)
	if err != nil { // only for a level that does not exist
		errorLog = zap.NewStdLog(log)
	}
	return &http.Server{
		Handler:           h,
		Protocols:         protocols,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          errorLog,
	}
}

// Addr returns the address that the server listens on.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Serve serves until [Server.Shutdown] or [Server.Close], and returns nil then;
// any other end is an error.
func (s *Server) Serve() error {
	accepting := make(chan error, 1)
	go func() {
		err := s.accept()
		_ = s.ready.Close() // which ends the HTTP server's accepting
		s.handshakes.Wait()
		accepting <- err
	}()
	err := s.http.Serve(s.ready)
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	_ = s.listener.Close()
	if aerr := <-accepting; !s.stopped() {
		return fmt.Errorf("listen: %s: %w", s.options.Name, errors.Join(aerr, err))
	}
	return nil
}

func (s *Server) stopped() bool { return s.ctx.Err() != nil }

// Shutdown takes no more connections, lets the requests that run come to their
// end and closes the rest; when ctx ends first, it closes all.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	_ = s.listener.Close()
	_ = s.ready.Close()
	if err := s.http.Shutdown(ctx); err != nil {
		_ = s.http.Close()
		return fmt.Errorf("listen: %s: %w", s.options.Name, err)
	}
	return nil
}

// Close ends the server and every connection at once.
func (s *Server) Close() error {
	s.stop()
	_ = s.listener.Close()
	_ = s.ready.Close()
	return s.http.Close()
}
