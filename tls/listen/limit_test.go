package listen_test

import (
	"crypto"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/postern-pki/postern/tls/listen"
)

// slowKey signs one at a time, first come first served, when it is let to, and
// notes how many wait.
type slowKey struct {
	crypto.Signer
	let    chan struct{} // one signature each; closed: any
	one    chan struct{}
	asked  atomic.Int64
	signed atomic.Int64
}

func (k *slowKey) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k.asked.Add(1)
	k.one <- struct{}{}
	defer func() { <-k.one }()
	<-k.let
	k.signed.Add(1)
	return k.Signer.Sign(rand, digest, opts)
}

func slowServer(t *testing.T, change func(*listen.Options)) (*listen.Server, *slowKey, *pki) {
	t.Helper()
	p := newPKI(t)
	cert := *p.issue(t, 1) // serverAuth
	key := &slowKey{Signer: cert.PrivateKey.(crypto.Signer), let: make(chan struct{}), one: make(chan struct{}, 1)}
	cert.PrivateKey = key
	s, _ := serve(t, p, func(o *listen.Options) {
		o.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }
		o.HandshakeTimeout = time.Minute
		change(o)
	})
	return s, key, p
}

// dialFrom connects from another of this machine's addresses.
func dialFrom(t *testing.T, s *listen.Server, ip string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	c, err := d.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestASourceThatFloodsDoesNotKeepAnotherOut(t *testing.T) {
	s, key, p := slowServer(t, func(*listen.Options) {})
	for range 60 {
		c := tls.Client(dialFrom(t, s, "127.0.0.2"), p.client())
		go func() { _ = c.Handshake() }()
	}
	for key.asked.Load() < 4 { // as many as one source may have
		time.Sleep(time.Millisecond)
	}
	done := make(chan error, 1)
	c := tls.Client(dialFrom(t, s, "127.0.0.3"), p.client())
	go func() { done <- c.Handshake() }()
	for key.asked.Load() < 5 {
		time.Sleep(time.Millisecond)
	}
	// Before it come those that the flood has under way, and no more.
	for range 5 {
		key.let <- struct{}{}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := key.signed.Load(); n > 6 {
		t.Errorf("%d signatures before its own", n-1)
	}
	close(key.let)
}

// Covers: S-181
func TestNewConnectionsAreLimitedBySource(t *testing.T) {
	core, logged := observer.New(zap.WarnLevel)
	s, key, p := slowServer(t, func(o *listen.Options) {
		o.HandshakesPerSource, o.ConnsPerSource, o.Log = 1, 5, zap.New(core)
	})
	close(key.let)
	// No more than five at once, each closed before the next: it is their rate that
	// is too high.
	var ok, cut int
	began := time.Now()
	for range 40 {
		c := tls.Client(dialFrom(t, s, "127.0.0.2"), p.client())
		if err := c.Handshake(); err == nil {
			ok++
		} else {
			cut++
		}
		_ = c.Close()
	}
	if most := 5 + int(time.Since(began).Seconds()) + 1; ok > most || ok < 5 || cut == 0 {
		t.Errorf("%d handshakes in %v and %d cut, want 5 and 1 a second", ok, time.Since(began), cut)
	}
	if n := key.asked.Load(); n != int64(ok) {
		t.Errorf("%d signatures for %d handshakes", n, ok)
	}
	if err := tls.Client(dialFrom(t, s, "127.0.0.3"), p.client()).Handshake(); err != nil {
		t.Error("another source:", err)
	}
	if lines := logged.FilterMessage("connections refused"); lines.Len() == 0 || lines.All()[0].ContextMap()["count"].(uint64) == 0 {
		t.Errorf("the log has %v", logged.All())
	}
}

func TestAResumedSessionTakesNoSignature(t *testing.T) {
	s, key, p := slowServer(t, func(*listen.Options) {})
	close(key.let)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		c := p.client()
		c.ClientSessionCache, c.MaxVersion = tls.NewLRUClientSessionCache(4), version
		before := key.asked.Load()
		for range 10 {
			if _, err := get(t, s, c); err != nil {
				t.Fatal(err)
			}
		}
		if n := key.asked.Load() - before; n != 1 {
			t.Errorf("TLS %x: %d signatures for one session that was resumed nine times", version, n)
		}
	}
}

func TestAValidationEndsWithItsHandshake(t *testing.T) {
	p := newPKI(t)
	s, h := serve(t, p, func(o *listen.Options) { o.ACMEValidation = true })
	plain, _ := serve(t, p, nil)
	c := p.client()
	c.NextProtos = []string{"acme-tls/1"}
	if conn, err := tls.Dial("tcp", plain.Addr().String(), c); err == nil {
		t.Error("a server of another mode speaks acme-tls/1")
		_ = conn.Close()
	}
	conn, err := tls.Dial("tcp", s.Addr().String(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	closed(t, conn)
	if conn.ConnectionState().NegotiatedProtocol != "acme-tls/1" || h.served.Load() != 0 {
		t.Errorf("protocol %q, %d requests served", conn.ConnectionState().NegotiatedProtocol, h.served.Load())
	}
	if resp, err := get(t, s, p.client()); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("HTTP beside it: %v", err)
	}
	_, err = listen.New(listen.Options{Address: "127.0.0.1:0", Handler: h, ACMEValidation: true, ClientCAs: p.pool,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }})
	if !errors.Is(err, listen.ErrOptions) {
		t.Errorf("with client certificates: %v, want ErrOptions", err)
	}
}
