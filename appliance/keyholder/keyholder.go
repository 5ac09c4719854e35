// Package keyholder has typed verbs over the token: what may be signed is
// decided by what the log says, not by who asks.
//
// # What a caller may rely on
//
// The keyholder follows the log. It signs a TBSCertificate only if it is, byte
// for byte, the one in an intent line that it was fed, for which it was fed no
// outcome, and once; and a checkpoint only of the head that it computed itself.
// No verb of the CA or audit key takes a digest.
//
// # What it does not protect against
//
// Here it lives in the same process as its callers. A process that was taken
// over has the PIN in its reach.
//
// A Keyholder is safe for concurrent use.
package keyholder

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/issuer"
)

// Errors of the keyholder: it was asked for what the log does not commit to.
var (
	ErrNoIntent = errors.New("keyholder: no open intent for this certificate in the log")
	ErrNotHead  = errors.New("keyholder: not the head of the log that was followed")
	ErrUnknown  = errors.New("keyholder: no such key")
)

// Options name the keys. CAs is by issuer name.
type Options struct {
	Origin string
	Audit  *hsm.Key
	CAs    map[string]CA
}

// A CA is an issuer's key, with the limits that the key has whatever anybody
// decides.
type CA struct {
	Key    *hsm.Key
	Limits issuer.Limits
}

// Keyholder implements [audit.Follower], [audit.CheckpointSigner] and
// [issuer.Signer].
type Keyholder struct {
	origin string
	audit  *hsm.Key
	cas    map[string]CA

	mu    sync.Mutex
	chain audit.Chain
	open  map[uint64]audit.Intent // fed, without outcome, not signed
}

var (
	_ audit.Resumer          = (*Keyholder)(nil)
	_ audit.CheckpointSigner = (*Keyholder)(nil)
	_ issuer.Signer          = (*Keyholder)(nil)
)

// New returns a keyholder that has seen nothing.
func New(o Options) *Keyholder {
	return &Keyholder{origin: o.Origin, audit: o.Audit, cas: o.CAs, open: make(map[uint64]audit.Intent)}
}

// Resume implements [audit.Resumer]: intents that are older than the last
// segment are closed at the start of the service, not signed.
func (k *Keyholder) Resume(c *audit.Chain) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.chain.Head().Size > 0 {
		return errors.New("keyholder: it follows a log already")
	}
	k.chain = *c
	return nil
}

// Next implements [audit.Follower].
func (k *Keyholder) Next(context.Context) (uint64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.chain.Head().Size, nil
}

// Follow implements [audit.Follower]. Each line has to continue the chain.
func (k *Keyholder) Follow(_ context.Context, batch []audit.Line) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, l := range batch {
		if err := k.chain.Step(l); err != nil {
			return fmt.Errorf("keyholder: %w", err)
		}
		if in, ok := audit.IntentOf(l); ok {
			k.open[l.Record.Seq] = in
		} else if seq, _, ok := audit.OutcomeOf(l); ok {
			delete(k.open, seq)
		}
	}
	return nil
}

// SignCertificate implements [issuer.Signer]. An intent is used up by the
// attempt, whether it succeeds or not.
func (k *Keyholder) SignCertificate(ctx context.Context, name string, tbs []byte, intent uint64) ([]byte, error) {
	k.mu.Lock()
	in, ok := k.open[intent]
	ca, known := k.cas[name]
	if ok && known && in.Issuer == name && bytes.Equal(in.TBS, tbs) {
		delete(k.open, intent)
	} else {
		ok = false
	}
	k.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("%w: %w", issuer.ErrNotSigned, ErrNoIntent)
	}
	if err := ca.Limits.Check(tbs, in); err != nil {
		return nil, fmt.Errorf("keyholder: %w: %w", issuer.ErrNotSigned, err)
	}
	sig, err := sign(ctx, ca.Key, tbs)
	if _, answered := hsm.CodeOf(err); answered {
		return nil, fmt.Errorf("keyholder: %w: %w", issuer.ErrNotSigned, err)
	}
	return sig, err
}

// SignCheckpoint implements [audit.CheckpointSigner].
func (k *Keyholder) SignCheckpoint(ctx context.Context, h audit.Head) ([]byte, error) {
	k.mu.Lock()
	own := k.chain.Head()
	k.mu.Unlock()
	if own != h {
		return nil, ErrNotHead
	}
	pub, ok := k.audit.Public().(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("keyholder: the audit key is a %T", k.audit.Public())
	}
	text := audit.NoteText(k.origin, h)
	sig, err := sign(ctx, k.audit, []byte(text))
	if err != nil {
		return nil, err
	}
	return audit.AssembleNote(k.origin, pub, text, sig)
}

// sign hashes here, so that no caller can have a digest of its choice signed.
func sign(ctx context.Context, key *hsm.Key, message []byte) ([]byte, error) {
	hash := crypto.SHA256
	if pub, ok := key.Public().(*ecdsa.PublicKey); ok && pub.Curve.Params().BitSize > 256 {
		hash = crypto.SHA384
	}
	h := hash.New()
	h.Write(message)
	sig, err := key.With(ctx).Sign(nil, h.Sum(nil), hash)
	if err != nil {
		return nil, fmt.Errorf("keyholder: %w", err)
	}
	return sig, nil
}

// MatchesCertificate reports whether the key on the token is the one that the
// certificate is about.
func MatchesCertificate(key *hsm.Key, c *x509.Certificate) bool {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	return err == nil && sha256.Sum256(der) == sha256.Sum256(c.RawSubjectPublicKeyInfo)
}
