// Package status keeps what the world is told of certificates: the lists of what is
// revoked, and the OCSP answers.
//
// # What a caller may rely on
//
// A list is signed at the start if the one on disk is not good for long enough or does
// not say what the index says, at each revocation, of which those of one second share
// one, and on a schedule. Its number and digest are durable in the log before it is
// signed, and the result before it is served; the number comes from the log and only
// grows. An answer is good only for a certificate that was issued here and is not
// revoked, at the time at which it was asked for: what was kept is forgotten when its
// certificate is revoked. What is asked is counted in one record a minute.
//
// # What it does not protect against
//
// Whoever has an older list or answer can show it until it ends. Answers stand in no
// record: the key holder signs them for whoever has the authority.
//
// A Service is safe for concurrent use.
package status

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/protocol/status"
)

// The collaborators, as this package needs them.
type (
	recorder interface {
		Append(ctx context.Context, e audit.Entry) (audit.Line, error)
	}
	index interface {
		Certificate(ctx context.Context, serial string) (store.Issuance, error)
		Revocations(ctx context.Context, issuer string, ends time.Time) ([]store.Revocation, error)
		CRL(ctx context.Context, issuer string) (store.CRL, error)
		Serials(ctx context.Context, issuer, after string, ends time.Time, limit int) ([]string, error)
	}
)

// An Issuer is one CA, and what is said about its certificates.
type Issuer struct {
	Issuer    *issuer.Issuer
	Every     time.Duration // from one list to the next, at most
	Validity  time.Duration // of a list
	Responder *issuer.Responder
	Answers   time.Duration // how long an answer is good
}

// Options are what [New] needs; every field is required.
type Options struct {
	Log     recorder
	Index   index
	Signer  issuer.StatusSigner
	Issuers []Issuer
	Dir     string // of the lists
	Now     func() time.Time
	Zap     *zap.Logger
}

// A Service has the lists and the answers. It implements [status.Source].
type Service struct {
	o       Options
	issuers map[string]*one
}

var _ status.Source = (*Service)(nil)

// one is what is kept of one issuer.
type one struct {
	Issuer
	ca   *x509.Certificate
	ids  map[crypto.Hash][2][]byte // how a CertID names the CA
	wake chan struct{}
	sign chan struct{} // held while an answer is signed: so many at a time

	mu      sync.Mutex
	list    status.List
	digest  [sha256.Size]byte // of the list
	last    time.Time         // when one was tried
	trouble string            // why there is no newer one, or ""
	answers map[key]keptAnswer
	changes uint64 // revocations: an answer that was made meanwhile is not kept
	counts  counts
}

// New reads the lists that were signed before.
func New(o Options) (*Service, error) {
	s := &Service{o: o, issuers: make(map[string]*one)}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	for _, i := range o.Issuers {
		ca, err := x509.ParseCertificate(i.Issuer.Certificate())
		if err != nil {
			return nil, fmt.Errorf("status: the CA of %s: %w", i.Issuer.Name(), err)
		}
		n := &one{Issuer: i, ca: ca, wake: make(chan struct{}, 1), sign: make(chan struct{}, 4), answers: make(map[key]keptAnswer)}
		if n.ids, err = issuer.CertIDs(ca); err != nil {
			return nil, fmt.Errorf("status: the CA of %s: %w", i.Issuer.Name(), err)
		}
		s.issuers[i.Issuer.Name()] = n
		s.read(n)
	}
	return s, nil
}

// Revoked is to be called when a revocation is durable: its answer is forgotten, and a
// new list is on its way.
func (s *Service) Revoked(issuerName, serial string) {
	n, ok := s.issuers[issuerName]
	if !ok {
		return
	}
	n.mu.Lock()
	n.changes++
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		delete(n.answers, key{h, serial})
	}
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// List implements [status.Source].
func (s *Service) List(_ context.Context, name string, have [sha256.Size]byte) (status.List, error) {
	n, ok := s.issuers[name]
	if !ok {
		return status.List{}, status.ErrUnknownIssuer
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.list.DER == nil {
		return status.List{}, errors.New("status: no list was signed yet")
	}
	n.counts.lists++
	l := n.list
	if have == n.digest {
		l.DER = nil
	}
	return l, nil
}

// Malformed implements [status.Source].
func (s *Service) Malformed(_ context.Context, name string) error {
	n, ok := s.issuers[name]
	if !ok || n.Responder == nil {
		return status.ErrUnknownIssuer
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.counts.malformed++
	return nil
}

// An Overview is how an issuer's list is.
type Overview struct {
	Issuer     string
	Number     uint64
	NextUpdate time.Time // zero: there is no list
	Trouble    string
}

// Overview returns how the lists are, in the order of the configuration.
func (s *Service) Overview() (all []Overview) {
	for _, i := range s.o.Issuers {
		n := s.issuers[i.Issuer.Name()]
		n.mu.Lock()
		o := Overview{Issuer: i.Issuer.Name(), Number: n.list.Number, NextUpdate: n.list.NextUpdate, Trouble: n.trouble}
		n.mu.Unlock()
		if o.Trouble == "" && !o.NextUpdate.IsZero() && s.o.Now().After(o.NextUpdate) {
			o.Trouble = "it has ended"
		}
		all = append(all, o)
	}
	return all
}

// matches reports whether a question names this CA.
func (n *one) matches(id status.CertID) bool {
	want := n.ids[id.Hash]
	return want[0] != nil && bytes.Equal(id.NameHash, want[0]) && bytes.Equal(id.KeyHash, want[1])
}
