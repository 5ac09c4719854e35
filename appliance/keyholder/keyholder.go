// Package keyholder has typed verbs over the token: what may be signed is
// decided by what the log says, not by who asks.
//
// # What a caller may rely on
//
// The keyholder follows the log line by line, checks that each continues the
// chain, and remembers how far it came in a file of its own, over a restart. It
// signs a TBSCertificate only if it is, byte for byte, the one in an intent line
// that it was fed, for which it was fed no outcome, within the limits of its own,
// not faster than its own rate, and once; and a checkpoint only of the head that
// it computed itself; and a manifest of a bundle only if it names such a checkpoint, of
// no more records than it followed. A list of revoked certificates it signs only if an
// intent line has its number and its digest, once, and an OCSP answer with the OCSP key
// alone. A head is durable before a signature leaves that follows
// from it. The newest checkpoint is kept on the token, too: it does not sign for a
// log that is older. No verb of the CA, audit or OCSP key takes a digest. The RA keys and
// the listeners' key are chosen by the caller's link, and each does one thing only.
//
// # What it does not protect against
//
// Who feeds the log decides what stands in it: a line that should not be there is
// signed for, and is there for everybody to see from the next checkpoint on. The
// PIN is in this process, inside the PKCS#11 module. OCSP answers stand in no line:
// who asks for one decides what it says.
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
	"time"

	"go.uber.org/zap"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/time/rate"

	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/issuer"
)

// Bounds of the keyholder's own.
const (
	// maxAge is how old an intent may be that is signed: one that was left open
	// before a crash is not.
	maxAge = 2 * time.Minute
	// maxOpen is how many intents without an outcome are remembered.
	maxOpen = 1 << 16
	// defaultRate is how many certificates a CA signs in a second, at most.
	defaultRate = 2000
)

// Options name the keys and what is remembered where. Marks and Dir may be left
// out by tests that restart nothing.
type Options struct {
	Origin string
	Audit  *hsm.Key
	// AuditCertificate is named in what the audit key signs beside checkpoints; nil:
	// no manifest is signed.
	AuditCertificate *x509.Certificate
	CAs              map[string]CA // by the issuer's name
	RA               []*hsm.Key    // RA-sign and RA-decrypt keys
	Names            map[string]*hsm.Key
	// TLS signs a handshake with the listeners' key, in its turn; nil: the gates have
	// that key.
	TLS func(ctx context.Context, digest []byte, h crypto.Hash) ([]byte, error)
	// Wanted notes that the token is wanted for anything else, until done is called;
	// nil: nobody asks.
	Wanted    func() (done func())
	Elsewhere []rpc.KeyFact // keys that are not on the token

	Token     Token
	Dir       string        // for the head's file
	Marks     Marks         // of the token with the audit key
	MarkEvery time.Duration // 0: 10 min
	Rate      int           // certificates a second and CA; 0: 2,000
	Now       func() time.Time
	Log       *zap.Logger
}

// A Token is what the status needs to know of one.
type Token interface {
	Slot() hsm.Slot
	Stats() hsm.Stats
	Healthy() error
}

// A CA is an issuer's key, with the limits that the key has whatever anybody
// decides.
type CA struct {
	Key    *hsm.Key
	Limits issuer.Limits
	OCSP   *OCSP // nil: nobody answers for its certificates
}

// Keyholder implements [rpc.LogKeys] and [rpc.GateKeys].
type Keyholder struct {
	o        Options
	verifier note.Verifier
	ra       map[rpc.KeyID]*hsm.Key
	rates    map[string]*rate.Limiter
	file     *headFile // nil: nothing is remembered over a restart
	marks    *marker   // nil: the token has none
	refusals refusals

	mu      sync.Mutex
	chain   audit.Chain
	open    map[uint64]intent    // fed, without outcome, not signed
	lists   map[uint64]crlIntent // the same of CRLs
	numbers map[string]uint64    // of the last CRL that it was asked for, by issuer; since the start
	mark    mark                 // what the token knew at the start
	wrong   error                // the log is not the one of the mark: for good
}

type intent struct {
	audit.Intent
	at time.Time
}

// A mark is a checkpoint that the token keeps.
type mark struct {
	size uint64
	root tlog.Hash
}

var (
	_ rpc.LogKeys  = (*Keyholder)(nil)
	_ rpc.GateKeys = (*Keyholder)(nil)
)

// New returns a keyholder that stands where it stopped. It refuses a mark that
// another log left on the token, and a head's file that is damaged.
func New(ctx context.Context, o Options) (_ *Keyholder, err error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	pub, ok := o.Audit.Public().(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("keyholder: the audit key is a %T", o.Audit.Public())
	}
	k := &Keyholder{o: o, ra: make(map[rpc.KeyID]*hsm.Key), rates: make(map[string]*rate.Limiter), open: make(map[uint64]intent), lists: make(map[uint64]crlIntent), numbers: make(map[string]uint64)}
	if k.verifier, err = audit.ECDSANoteVerifier(o.Origin, pub); err != nil {
		return nil, fmt.Errorf("keyholder: %w", err)
	}
	for _, key := range o.RA {
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return nil, fmt.Errorf("keyholder: %w", err)
		}
		k.ra[sha256.Sum256(der)] = key
	}
	for name := range o.CAs {
		n := o.Rate
		if n <= 0 {
			n = defaultRate
		}
		k.rates[name] = rate.NewLimiter(rate.Limit(n), n)
	}
	if o.Marks != nil {
		if k.marks, k.mark, err = newMarker(ctx, o, k.verifier); err != nil {
			return nil, err
		}
	}
	if o.Dir != "" {
		var chain *audit.Chain
		if k.file, chain, err = openHead(o.Dir); err != nil {
			return nil, errors.Join(err, k.Close(ctx))
		}
		k.chain = *chain
	}
	return k, nil
}

// Close keeps the newest checkpoint on the token, and the head in its file.
func (k *Keyholder) Close(ctx context.Context) error {
	var err error
	if k.marks != nil {
		err = k.marks.close(ctx)
	}
	if k.file != nil {
		k.mu.Lock()
		size := k.chain.Head().Size
		k.mu.Unlock()
		err = errors.Join(err, k.file.ensure(size, k.clone), k.file.close())
	}
	return err
}

func (k *Keyholder) clone() *audit.Chain {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.chain.Clone()
}

// Next implements [audit.Follower].
func (k *Keyholder) Next(context.Context) (uint64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.chain.Head().Size, k.wrong
}

// Seen implements [audit.Marker].
func (k *Keyholder) Seen(context.Context) (uint64, string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if own := k.chain.Head().Size; own >= k.mark.size {
		return own, "the keyholder's own file", k.wrong
	}
	return k.mark.size, "the mark on the token", k.wrong
}

// Follow implements [audit.Follower]. Each line has to continue the chain, and the
// chain has to go through the mark.
func (k *Keyholder) Follow(_ context.Context, batch []audit.Line) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.wrong != nil {
		return k.wrong
	}
	for _, l := range batch {
		if err := k.chain.Step(l); err != nil {
			k.refusals.add("a line that does not continue the log: " + err.Error())
			return fmt.Errorf("keyholder: %w", err)
		}
		if l.Record.Seq+1 == k.mark.size && k.chain.Head().Root != k.mark.root {
			k.wrong = fmt.Errorf("%w: its first %d records are not those of the mark on the token", rpc.ErrLine, k.mark.size)
			k.refusals.add(k.wrong.Error())
			return k.wrong
		}
		if in, ok := audit.IntentOf(l); ok {
			if len(k.open) < maxOpen {
				k.open[l.Record.Seq] = intent{in, l.Record.Time}
			}
		} else if in, ok := audit.CRLIntentOf(l); ok {
			k.intendCRL(l, in)
		} else if seq, _, ok := audit.OutcomeOf(l); ok {
			delete(k.open, seq)
			delete(k.lists, seq)
		}
	}
	return nil
}

// take uses an intent up, if the bytes are its own.
func (k *Keyholder) take(name string, tbs []byte, seq uint64) (in intent, ca CA, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	in, ok := k.open[seq]
	ca, known := k.o.CAs[name]
	age := k.o.Now().Sub(in.at)
	switch {
	case k.wrong != nil:
		return in, ca, k.wrong
	case k.chain.Head().Size < k.mark.size:
		return in, ca, fmt.Errorf("%w: it was fed less of the log than the mark on the token knows of", rpc.ErrNoIntent)
	case !ok || !known || in.Issuer != name || !bytes.Equal(in.TBS, tbs):
		return in, ca, rpc.ErrNoIntent
	case age > maxAge || age < -maxAge:
		return in, ca, fmt.Errorf("%w: it is %s old", rpc.ErrNoIntent, age.Round(time.Second))
	}
	delete(k.open, seq)
	return in, ca, nil
}

// SignCertificate implements [issuer.Signer]. An intent is used up by the
// attempt, whether it succeeds or not.
func (k *Keyholder) SignCertificate(ctx context.Context, name string, tbs []byte, seq uint64) ([]byte, error) {
	in, ca, err := k.take(name, tbs, seq)
	if err != nil {
		k.refusals.add(fmt.Sprintf("a certificate of %q by line %d: %v", name, seq, err))
		return nil, fmt.Errorf("%w: %w", issuer.ErrNotSigned, err)
	}
	if err := ca.Limits.Check(tbs, in.Intent); err != nil {
		k.refusals.add(fmt.Sprintf("a certificate beyond the limits of %q by line %d: %v", name, seq, err))
		return nil, fmt.Errorf("keyholder: %w: %w", issuer.ErrNotSigned, err)
	}
	if !k.rates[name].Allow() {
		k.refusals.add(fmt.Sprintf("certificates of %q faster than its rate", name))
		return nil, fmt.Errorf("keyholder: %w: more certificates in a second than the CA signs", issuer.ErrNotSigned)
	}
	if err := k.keepHead(seq + 1); err != nil {
		return nil, fmt.Errorf("%w: %w", issuer.ErrNotSigned, err)
	}
	defer k.wanted()()
	sig, err := sign(ctx, ca.Key, tbs)
	if err != nil && surelyNot(err) {
		return nil, fmt.Errorf("keyholder: %w: %w", issuer.ErrNotSigned, err)
	}
	return sig, err
}

// surelyNot tells whether the token did not sign: it was not asked, or refused. One
// that came into trouble over it may have signed before, such as one behind a network.
func surelyNot(err error) bool {
	if errors.Is(err, hsm.ErrDown) || errors.Is(err, hsm.ErrBusy) { // nobody was asked, whatever had happened before
		return true
	}
	_, answered := hsm.CodeOf(err)
	return answered && !errors.Is(err, hsm.ErrMaybeUsed)
}

func (k *Keyholder) keepHead(size uint64) error {
	if k.file == nil {
		return nil
	}
	return k.file.ensure(size, k.clone)
}

// SignCheckpoint implements [audit.CheckpointSigner].
func (k *Keyholder) SignCheckpoint(ctx context.Context, h audit.Head) ([]byte, error) {
	k.mu.Lock()
	own, known, wrong := k.chain.Head(), k.mark.size, k.wrong
	k.mu.Unlock()
	switch {
	case wrong != nil:
		return nil, wrong
	case own != h:
		k.refusals.add(fmt.Sprintf("a checkpoint of %d lines with root %x; the log that it followed has %d with root %x", h.Size, h.Root[:8], own.Size, own.Root[:8]))
		return nil, fmt.Errorf("%w: it has %d lines with root %x, and this one %d with root %x", rpc.ErrNotHead, own.Size, own.Root[:8], h.Size, h.Root[:8])
	case own.Size < known:
		k.refusals.add(fmt.Sprintf("a checkpoint of %d lines; the mark on the token knows of %d", h.Size, known))
		return nil, fmt.Errorf("%w: the mark on the token knows of %d lines, and this log has %d", rpc.ErrNotHead, known, own.Size)
	}
	if err := k.keepHead(h.Size); err != nil {
		return nil, err
	}
	text := audit.NoteText(k.o.Origin, h)
	defer k.wanted()()
	sig, err := sign(ctx, k.o.Audit, []byte(text))
	if err != nil {
		return nil, err
	}
	pub, ok := k.o.Audit.Public().(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("keyholder: the audit key is a %T", k.o.Audit.Public())
	}
	signed, err := audit.AssembleNote(k.o.Origin, pub, text, sig)
	if err == nil && k.marks != nil {
		k.marks.newest(signed)
	}
	return signed, err
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
