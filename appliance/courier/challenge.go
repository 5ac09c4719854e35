package courier

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

// maxAnswer bounds what a directory may say at once: a chain has some kilobytes.
const maxAnswer = 1 << 20

// httpsOnly is the client for a directory. Its roots are the given ones, its proxy
// none, and every URL that the directory names has to be https too.
func httpsOnly(roots *x509.CertPool) *http.Client {
	t := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 30 * time.Second, IdleConnTimeout: 30 * time.Second,
		MaxIdleConns: 2, MaxResponseHeaderBytes: 64 << 10, ForceAttemptHTTP2: true,
	}
	return &http.Client{Transport: secured{t}, Timeout: time.Minute}
}

// secured refuses what is not https, also where it was redirected to, and bounds
// what is read.
type secured struct{ next http.RoundTripper }

// RoundTrip implements [http.RoundTripper].
func (s secured) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return nil, fmt.Errorf("%w: %s", ErrNotHTTPS, r.URL.Redacted())
	}
	resp, err := s.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = http.MaxBytesReader(nil, resp.Body, maxAnswer)
	return resp, nil
}

// solver has the certificates that answer the challenges that are pending now.
type solver struct {
	mu      sync.Mutex
	pending map[string]*tls.Certificate // by the server name of the validation
}

func newSolver() *solver { return &solver{pending: map[string]*tls.Certificate{}} }

// Present implements [acmez.Solver].
func (s *solver) Present(_ context.Context, c acme.Challenge) error {
	cert, err := acmez.TLSALPN01ChallengeCert(c)
	if err != nil {
		return fmt.Errorf("courier: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending[serverName(c.Identifier.Value)] = cert
	return nil
}

// CleanUp implements [acmez.Solver].
func (s *solver) CleanUp(_ context.Context, c acme.Challenge) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pending, serverName(c.Identifier.Value))
	return nil
}

func (s *solver) answer(name string) (chain [][]byte, keyPKCS8 []byte, err error) {
	s.mu.Lock()
	cert, ok := s.pending[strings.ToLower(name)]
	s.mu.Unlock()
	if !ok {
		return nil, nil, ErrNoChallenge
	}
	if keyPKCS8, err = pkcs8(cert.PrivateKey); err != nil {
		return nil, nil, err
	}
	return cert.Certificate, keyPKCS8, nil
}

// serverName is what a validation of an identifier asks for: the name itself, or
// the reverse name of an address (RFC 8738, section 6).
func serverName(identifier string) string {
	ip, err := netip.ParseAddr(identifier)
	if err != nil {
		return strings.ToLower(identifier)
	}
	ip = ip.Unmap()
	raw, labels := ip.AsSlice(), []string(nil)
	for _, b := range slices.Backward(raw) {
		if ip.Is4() {
			labels = append(labels, strconv.Itoa(int(b)))
			continue
		}
		labels = append(labels, strconv.FormatUint(uint64(b&0x0f), 16), strconv.FormatUint(uint64(b>>4), 16))
	}
	zone := "ip6.arpa"
	if ip.Is4() {
		zone = "in-addr.arpa"
	}
	return strings.Join(append(labels, zone), ".")
}
