package listen_test

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-pki/postern/tls/listen"
)

// pki is a CA, its pool, and what it issued.
type pki struct {
	key  *ecdsa.PrivateKey
	ca   *x509.Certificate
	pool *x509.CertPool
}

func newPKI(t *testing.T) *pki {
	t.Helper()
	p := &pki{key: newKey(t), pool: x509.NewCertPool()}
	p.ca = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, p.ca, p.ca, p.key.Public(), p.key)
	if err != nil {
		t.Fatal(err)
	}
	if p.ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	p.pool.AddCert(p.ca)
	return p
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (p *pki) issue(t *testing.T, usage x509.ExtKeyUsage) *tls.Certificate {
	t.Helper()
	var key crypto.Signer = newKey(t)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "x"}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{usage}, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, p.ca, key.Public(), p.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// hello answers every request and counts them.
type hello struct{ served atomic.Int64 }

func (h *hello) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.served.Add(1)
	n, _ := io.Copy(io.Discard, r.Body)
	_, _ = io.WriteString(w, "hello "+r.Proto+" "+big.NewInt(n).String())
}

// serve starts a server on a port of its own and stops it with the test.
func serve(t *testing.T, p *pki, change func(*listen.Options)) (*listen.Server, *hello) {
	t.Helper()
	h, cert := &hello{}, p.issue(t, x509.ExtKeyUsageServerAuth)
	o := listen.Options{
		Name: "test", Address: "127.0.0.1:0", Handler: h,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, nil },
	}
	if change != nil {
		change(&o)
	}
	s, err := listen.New(o)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error("Serve:", err)
		}
	})
	return s, h
}

func (p *pki) client() *tls.Config { return &tls.Config{RootCAs: p.pool, ServerName: "localhost"} }

func get(t *testing.T, s *listen.Server, c *tls.Config) (*http.Response, error) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: true, DisableKeepAlives: true}}
	resp, err := client.Get("https://" + s.Addr().String() + "/")
	if err == nil {
		t.Cleanup(func() { _ = resp.Body.Close() })
	}
	return resp, err
}

func TestOnlyModernTLSIsSpoken(t *testing.T) {
	p := newPKI(t)
	s, h := serve(t, p, nil)
	for name, tt := range map[string]struct {
		change func(*tls.Config)
		ok     bool
	}{
		"TLS 1.3": {func(c *tls.Config) { c.MinVersion = tls.VersionTLS13 }, true},
		"TLS 1.2": {func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, true},
		"TLS 1.1": {func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }, false},
		"TLS 1.0": {func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS10 }, false},
		"TLS 1.2 with CBC": {func(c *tls.Config) {
			c.MaxVersion = tls.VersionTLS12
			c.CipherSuites = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
		}, false},
		"TLS 1.2 without ECDHE": {func(c *tls.Config) {
			c.MaxVersion = tls.VersionTLS12
			c.CipherSuites = []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			before := h.served.Load()
			c := p.client()
			tt.change(c)
			resp, err := get(t, s, c)
			if (err == nil) != tt.ok {
				t.Fatalf("GET: %v, want success %v", err, tt.ok)
			}
			if !tt.ok && h.served.Load() != before {
				t.Error("the handler saw a request")
			}
			if tt.ok && (resp.StatusCode != http.StatusOK || resp.ProtoMajor != 1) {
				t.Errorf("%s over HTTP/%d", resp.Status, resp.ProtoMajor)
			}
		})
	}
}

func TestKeyExchangeIsPostQuantumAndSessionsResume(t *testing.T) {
	p := newPKI(t)
	s, _ := serve(t, p, nil)
	c := p.client()
	c.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	for _, resumed := range []bool{false, true} {
		conn, err := tls.Dial("tcp", s.Addr().String(), c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(conn); err != nil { // the ticket comes with the answer
			t.Fatal(err)
		}
		st := conn.ConnectionState()
		if st.CurveID != tls.X25519MLKEM768 || st.Version != tls.VersionTLS13 || st.DidResume != resumed {
			t.Errorf("curve %v, version %x, resumed %v, want %v", st.CurveID, st.Version, st.DidResume, resumed)
		}
		_ = conn.Close()
	}
}

// Covers: S-018
func TestDevicesAreNotAskedForACertificate(t *testing.T) {
	p := newPKI(t)
	s, _ := serve(t, p, nil)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		c := p.client()
		c.MaxVersion = version
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			t.Errorf("TLS %x: the server sent a CertificateRequest", version)
			return &tls.Certificate{}, nil
		}
		if _, err := get(t, s, c); err != nil {
			t.Error(err)
		}
	}
}

func TestOperatorsNeedACertificateOfTheirCA(t *testing.T) {
	p, operators := newPKI(t), newPKI(t)
	s, h := serve(t, p, func(o *listen.Options) { o.ClientCAs = operators.pool })
	for name, tt := range map[string]struct {
		cert *tls.Certificate
		ok   bool
	}{
		"an operator":         {operators.issue(t, x509.ExtKeyUsageClientAuth), true},
		"nobody":              {nil, false},
		"a device":            {p.issue(t, x509.ExtKeyUsageClientAuth), false},
		"a server of that CA": {operators.issue(t, x509.ExtKeyUsageServerAuth), false},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(name, func(t *testing.T) {
				before := h.served.Load()
				c := p.client()
				c.MaxVersion = version
				c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					if tt.cert == nil {
						return &tls.Certificate{}, nil
					}
					return tt.cert, nil
				}
				if _, err := get(t, s, c); (err == nil) != tt.ok || !tt.ok && h.served.Load() != before {
					t.Errorf("TLS %x: GET: %v, want success %v", version, err, tt.ok)
				}
			})
		}
	}
}

func TestAListOfKeysCanTakeTheCAsPlace(t *testing.T) {
	p := newPKI(t)
	known, other := p.issue(t, x509.ExtKeyUsageClientAuth), p.issue(t, x509.ExtKeyUsageClientAuth)
	s, _ := serve(t, p, func(o *listen.Options) {
		o.VerifyClient = func(st tls.ConnectionState) error {
			if !known.PrivateKey.(*ecdsa.PrivateKey).PublicKey.Equal(st.PeerCertificates[0].PublicKey) {
				return errors.New("not on the list")
			}
			return nil
		}
	})
	for name, tt := range map[string]struct {
		certs []tls.Certificate
		ok    bool
	}{"on the list": {[]tls.Certificate{*known}, true}, "not on it": {[]tls.Certificate{*other}, false}, "nobody": {nil, false}} {
		c := p.client()
		c.Certificates = tt.certs
		if _, err := get(t, s, c); (err == nil) != tt.ok {
			t.Errorf("%s: GET: %v", name, err)
		}
	}
}

// Covers: S-017
func TestPlainHTTPIsNotServed(t *testing.T) {
	p := newPKI(t)
	s, h := serve(t, p, nil)
	resp, err := http.Get("http://" + s.Addr().String() + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusBadRequest || h.served.Load() != 0 {
		t.Errorf("%s, %d requests served", resp.Status, h.served.Load())
	}
	conn, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "\x00\x00\x00\x00\x00garbage"); err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(conn); strings.Contains(string(b), "HTTP") {
		t.Errorf("garbage was answered with %q", b)
	}
}

// closed waits for the server to hang up on a connection that says nothing.
func closed(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err := io.Copy(io.Discard, conn)
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		t.Error("the server did not hang up")
	}
}

func dial(t *testing.T, s *listen.Server) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestSlowHandshakeIsCut(t *testing.T) {
	p := newPKI(t)
	s, h := serve(t, p, func(o *listen.Options) { o.HandshakeTimeout = 50 * time.Millisecond })
	silent, started := dial(t, s), dial(t, s)
	if _, err := started.Write([]byte{22, 3, 1, 2, 0, 1}); err != nil { // the beginning of a ClientHello
		t.Fatal(err)
	}
	closed(t, silent)
	closed(t, started)
	if h.served.Load() != 0 {
		t.Error("something was served")
	}
}

func TestConnectionsAreLimitedBeforeTheHandshake(t *testing.T) {
	for name, change := range map[string]func(*listen.Options){
		"of one source": func(o *listen.Options) { o.ConnsPerSource = 2 },
		"of all":        func(o *listen.Options) { o.MaxConns = 2 },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPKI(t)
			s, _ := serve(t, p, change)
			first, second := dial(t, s), dial(t, s)
			closed(t, dial(t, s)) // the third, which sent nothing yet
			for _, c := range []net.Conn{first, second} {
				if err := tls.Client(c, p.client()).Handshake(); err != nil {
					t.Error("one of the first two:", err)
				}
			}
			_ = first.Close()
			for { // the place comes back as soon as the server has seen the end
				if _, err := get(t, s, p.client()); err == nil {
					break
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
}

// Covers: S-015
func TestLongGETPassesAndLongerHeadersDoNot(t *testing.T) {
	p := newPKI(t)
	s, h := serve(t, p, nil)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: p.client()}}
	defer client.CloseIdleConnections()
	for length, want := range map[int]int{48 << 10: http.StatusOK, 80 << 10: http.StatusRequestHeaderFieldsTooLarge} {
		resp, err := client.Get("https://" + s.Addr().String() + "/?message=" + strings.Repeat("A", length))
		if err != nil {
			t.Fatal(err)
		}
		if _ = resp.Body.Close(); resp.StatusCode != want {
			t.Errorf("%d bytes: %s, want %d", length, resp.Status, want)
		}
	}
	if h.served.Load() != 1 {
		t.Errorf("%d requests served, want 1", h.served.Load())
	}
}

// Covers: S-019
func TestHTTP10IsServed(t *testing.T) {
	p := newPKI(t)
	s, _ := serve(t, p, nil)
	conn, err := tls.Dial("tcp", s.Addr().String(), p.client())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "hello HTTP/1.0 0" {
		t.Errorf("answer %q, %v", b, err)
	}
}

// TestShutdownLetsRequestsEnd has one request under way, one connection that has
// not finished its handshake, and one that is idle.
func TestShutdownLetsRequestsEnd(t *testing.T) {
	p := newPKI(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	s, _ := serve(t, p, func(o *listen.Options) {
		o.HandshakeTimeout = time.Hour
		o.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			close(entered)
			<-leave
			_, _ = io.WriteString(w, "done")
		})
	})
	silent := dial(t, s)
	answer := make(chan string, 1)
	go func() {
		resp, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: p.client()}}).Get("https://" + s.Addr().String())
		if err != nil {
			answer <- err.Error()
			return
		}
		defer func() { _ = resp.Body.Close() }()
		b, _ := io.ReadAll(resp.Body)
		answer <- string(b)
	}()
	<-entered
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(context.Background()) }()
	closed(t, silent)
	if conn, err := net.Dial("tcp", s.Addr().String()); err == nil {
		closed(t, conn)
		_ = conn.Close()
	}
	close(leave)
	if got := <-answer; got != "done" {
		t.Errorf("the request under way got %q", got)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
}

func TestBadOptionsAreRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	cert := func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errors.New("none") }
	for name, o := range map[string]listen.Options{
		"nothing":        {},
		"no certificate": {Address: "127.0.0.1:0", Handler: &hello{}},
		"no handler":     {Address: "127.0.0.1:0", GetCertificate: cert},
		"no place":       {Handler: &hello{}, GetCertificate: cert},
		"two places":     {Address: "127.0.0.1:0", Listener: l, Handler: &hello{}, GetCertificate: cert},
		"a negative cap": {Address: "127.0.0.1:0", Handler: &hello{}, GetCertificate: cert, MaxConns: -1},
	} {
		if _, err := listen.New(o); !errors.Is(err, listen.ErrOptions) {
			t.Errorf("%s: New: %v, want ErrOptions", name, err)
		}
	}
}

// TestConnectionsArePlainTCP keeps the sandbox of a gate whole, whose rules for TCP do
// not see Multipath TCP.
func TestConnectionsArePlainTCP(t *testing.T) {
	s, _ := serve(t, newPKI(t), nil)
	var d net.Dialer
	d.SetMultipathTCP(true)
	c, err := d.DialContext(t.Context(), "tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if multipath, err := c.(*net.TCPConn).MultipathTCP(); multipath || err != nil {
		t.Errorf("multipath %v, %v", multipath, err)
	}
}

func TestInheritedListenerIsServed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := newPKI(t)
	s, _ := serve(t, p, func(o *listen.Options) { o.Address, o.Listener = "", l })
	if _, err := get(t, s, p.client()); err != nil {
		t.Error(err)
	}
}

// TestALostListenerIsAnError has the socket go away under the server.
func TestALostListenerIsAnError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := listen.New(listen.Options{Listener: l, Handler: &hello{}, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }})
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if err := s.Serve(); err == nil {
		t.Error("Serve returned nil")
	}
}
