package servercert

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"
)

// ACMEProtocol is what a validation by tls-alpn-01 negotiates (RFC 8737, section
// 6.2).
const ACMEProtocol = "acme-tls/1"

const (
	acmeFetchWithin = 5 * time.Second
	challengeWithin = 2 * time.Second // a validation waits for 10 s or so
	challengesMost  = 4               // that are asked for at once
	soonest         = time.Second     // between two looks at the source
)

// Errors of [ACME].
var (
	ErrNone      = errors.New("servercert: there is no certificate yet")
	ErrChallenge = errors.New("servercert: no challenge is pending for that name")
)

// oidACMEIdentifier marks the certificate that answers a validation (RFC 8737,
// section 6.1).
var oidACMEIdentifier = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 31}

// An ACMESource has what an ACME directory issued, and what answers its
// challenges. It may be another process. Chains are DER, the leaf first; keys are
// PKCS #8 in DER. AcmeChallenge fails unless a challenge is pending for the name.
type ACMESource interface {
	Certificate(ctx context.Context) (chain [][]byte, keyPKCS8 []byte, err error)
	AcmeChallenge(ctx context.Context, serverName string) (chain [][]byte, keyPKCS8 []byte, err error)
}

// ACMEOptions are what [NewACME] needs.
type ACMEOptions struct {
	Source ACMESource
	Names  []string      // DNS names and IP addresses that a certificate has to have
	Every  time.Duration // how often the source is looked at; 0: 1 min
	Log    *zap.Logger
}

// ACME is a server certificate that somebody else has from an ACME directory. Its
// key is a software key. It is safe for concurrent use.
type ACME struct {
	options ACMEOptions
	names   map[string]bool // server names that a validation may ask for
	current atomic.Pointer[tls.Certificate]
	asking  chan struct{}  // a place for each challenge that is asked for
	seldom  rate.Sometimes // for lines that anybody can cause

	mu      sync.Mutex // guards what is below
	trouble error      // of the last look
	said    string     // the error that was logged last
}

// NewACME returns a source of certificates that has the current one, or none yet:
// a directory issues the first only when the listener answers its challenge, so
// that the listener has to be served without. Every handshake but a challenge's
// fails until then, and [ACME.Healthy] says why.
func NewACME(ctx context.Context, o ACMEOptions) (*ACME, error) {
	if o.Source == nil || len(o.Names) == 0 || o.Every < 0 {
		return nil, fmt.Errorf("%w: a source and names are needed", ErrOptions)
	}
	if o.Every == 0 {
		o.Every = time.Minute
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	s := &ACME{options: o, names: map[string]bool{}, asking: make(chan struct{}, challengesMost), seldom: rate.Sometimes{First: 1, Interval: time.Second}}
	for _, n := range o.Names {
		s.names[validationName(n)] = true
	}
	// The error was logged, and is there to be asked for.
	_ = s.Refresh(ctx)
	return s, nil
}

// GetCertificate is for [tls.Config]. It never waits, but for a validation of the
// directory, for 2 s at most: then it gives the certificate of the challenge.
func (s *ACME) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	// A validation offers this protocol alone (RFC 8737, section 3).
	if hello != nil && slices.Equal(hello.SupportedProtos, []string{ACMEProtocol}) {
		return s.challenge(hello)
	}
	c := s.current.Load()
	if c == nil {
		return nil, ErrNone
	}
	return c, nil
}

// challenge asks the source, for names of ours only and for few at once: anybody
// can begin such a handshake.
func (s *ACME) challenge(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := strings.ToLower(hello.ServerName)
	if !s.names[name] {
		return nil, ErrChallenge
	}
	ctx, cancel := context.WithTimeout(hello.Context(), challengeWithin)
	defer cancel()
	select {
	case s.asking <- struct{}{}:
		defer func() { <-s.asking }()
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrChallenge, ctx.Err())
	}
	chain, key, err := s.options.Source.AcmeChallenge(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrChallenge, err)
	}
	c, err := decode(chain, key)
	if err != nil {
		return nil, err
	}
	for _, e := range c.Leaf.Extensions {
		if e.Critical && e.Id.Equal(oidACMEIdentifier) {
			s.seldom.Do(func() { s.options.Log.Info("a challenge of the directory is answered", zap.String("name", name)) })
			return c, nil
		}
	}
	return nil, fmt.Errorf("%w: not the certificate of a challenge", ErrUsage)
}

// Leaf returns the certificate in use, nil while there is none.
func (s *ACME) Leaf() *x509.Certificate {
	if c := s.current.Load(); c != nil {
		return c.Leaf
	}
	return nil
}

// Healthy returns why the last look at the source gave nothing, or nil.
func (s *ACME) Healthy() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trouble
}

// Run looks at the source until ctx ends, and takes a new certificate into use.
func (s *ACME) Run(ctx context.Context) error {
	for sleep(ctx, s.wait()) {
		// The error was logged, and the next look may find a certificate.
		_ = s.Refresh(ctx)
	}
	return nil
}

// wait is the time to the next look: short while there is no certificate, or where
// its life is short.
func (s *ACME) wait() time.Duration {
	leaf := s.Leaf()
	if leaf == nil {
		return soonest
	}
	return min(s.options.Every, max(soonest, leaf.NotAfter.Sub(leaf.NotBefore)/50))
}

// Refresh asks the source now. What cannot be used changes nothing, and is an
// error.
func (s *ACME) Refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, acmeFetchWithin)
	defer cancel()
	err := s.refresh(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble = err
	switch {
	case err == nil:
		s.said = ""
	case err.Error() != s.said: // once, and not at every look
		s.said = err.Error()
		if s.current.Load() == nil {
			s.options.Log.Error("no server certificate: every handshake fails until there is one", zap.Error(err))
		} else {
			s.options.Log.Error("server certificate not refreshed, the old one is used", zap.Error(err))
		}
	}
	return err
}

func (s *ACME) refresh(ctx context.Context) error {
	chain, key, err := s.options.Source.Certificate(ctx)
	if err != nil {
		return fmt.Errorf("servercert: %w", err)
	}
	old := s.current.Load()
	if old != nil && slices.EqualFunc(old.Certificate, chain, slices.Equal[[]byte]) {
		return nil
	}
	c, err := decode(chain, key)
	if err != nil {
		return err
	}
	has := namesOf(c.Leaf)
	for _, n := range normal(s.options.Names) {
		if !slices.Contains(has, n) {
			return fmt.Errorf("%w: %v, wants %s too", ErrNames, has, n)
		}
	}
	s.current.Store(c)
	s.options.Log.Info("server certificate", zap.String("serial", c.Leaf.SerialNumber.Text(16)), zap.Time("not_after", c.Leaf.NotAfter), zap.String("key", "software"))
	return nil
}

// decode takes a chain and a key as a source gives them.
func decode(chain [][]byte, keyPKCS8 []byte) (*tls.Certificate, error) {
	key, err := x509.ParsePKCS8PrivateKey(keyPKCS8)
	if err != nil {
		return nil, fmt.Errorf("servercert: the key of a certificate: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%w: a key that does not sign", ErrOptions)
	}
	return assemble(chain, signer, time.Now())
}

// validationName is the server name of a validation: the name itself, or the
// reverse name of an address (RFC 8738, section 6).
func validationName(name string) string {
	ip, err := netip.ParseAddr(name)
	if err != nil {
		return strings.ToLower(name)
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
