// Package authority decides. It verifies every proof again from the bytes, finds
// who asks, lets the policy decide, and issues in one order: decide, record the
// intent durably, sign, record the result durably, answer.
//
// # What a caller may rely on
//
// [Pipeline.Submit] answers Issued only when the certificate and its record are
// durable; it refuses with a recorded reason; an error is a fault of the
// appliance and costs the device nothing: its challenge is open again, or is
// freed at the next start. A message that is sent twice gets the same
// certificate, and a certificate is never issued twice for it.
//
// # What it does not protect against
//
// The gate reads what devices send before the authority does: an owned gate can
// use the challenges that it sees, for the names that they bind.
//
// A Pipeline is safe for concurrent use.
package authority

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/policy/challenge"
	"github.com/postern-pki/postern/protocol"
)

// The collaborators, as this package needs them.
type (
	recorder interface {
		Append(ctx context.Context, e audit.Entry) (audit.Line, error)
		AppendAll(ctx context.Context, e ...audit.Entry) ([]audit.Line, error)
	}
	index interface {
		challenge.Store
		Certificate(ctx context.Context, serial string) (store.Issuance, error)
		Transaction(ctx context.Context, issuer, profile, transaction, signer, csr string) (store.Issuance, error)
		RenewalOf(ctx context.Context, issuer, profile, signer, csr string) (store.Issuance, error)
		LineageRenewals(ctx context.Context, lineage string) (int64, error)
		InUse(ctx context.Context, u store.Use) (store.Used, error)
		OpenIntents(ctx context.Context) ([]store.Issuance, error)
		Untold(ctx context.Context, serial string) (store.Notice, error)
		UntoldBefore(ctx context.Context, then time.Time) ([]store.Notice, error)
		Challenges(ctx context.Context, f store.ChallengeFilter) ([]challenge.Record, error)
		Challenge(ctx context.Context, id string) (challenge.Record, error)
		Pending(ctx context.Context, request string) (store.Pending, error)
		PendingOf(ctx context.Context, profile, transaction, signer string) (store.Pending, error)
		DeniedBefore(ctx context.Context, profile, signer, csr string) (store.Pending, error)
		PendingCount(ctx context.Context, profile string, now time.Time) (int64, error)
		Polled(ctx context.Context, profile, transaction, signer, spki, predecessor string) (store.Issuance, error)
		CurrentCAs(ctx context.Context) (map[string]store.CurrentCA, error)
	}
)

// A CA is one generation of an issuer that profiles use. Issuer's name is the CA's
// own: records have it, and the keyholder knows its key by it.
type CA struct {
	Issuer     *issuer.Issuer
	Generation protocol.Generation
}

// Options are what New needs; every field is required, unless it says otherwise.
type Options struct {
	Log      recorder
	Index    index
	Policies *policy.Set
	Tagger   *challenge.Tagger
	Issuers  map[string][]CA // generations, by the name that profiles use, in the configuration's order
	Now      func() time.Time
	Zap      *zap.Logger
	// Revoked is called when a revocation is durable; it does not wait. nil: nobody asks.
	Revoked func(issuer, serial string)
	// CRL returns the DER of an issuer's newest list.
	CRL func(ctx context.Context, issuer string) ([]byte, error)
	// Validators asks those outside who vouch. nil: no profile names one.
	Validators validators
}

// Pipeline implements [protocol.Authority] and the operators' acts.
type Pipeline struct {
	log        recorder
	index      index
	policies   *policy.Set
	tagger     *challenge.Tagger
	holds      *challenge.Holds
	challenges *challenge.Service
	issuers    map[string]*generations
	subjects   map[string]bool // DER names of all CAs
	locks      keyedLocks
	rate       rates
	now        func() time.Time
	zap        *zap.Logger
	revoked    func(issuer, serial string)
	newestCRL  func(ctx context.Context, issuer string) ([]byte, error)
	validators validators
}

var _ protocol.Authority = (*Pipeline)(nil)

// New wires a pipeline. It refuses a profile whose issuer is not there.
func New(o Options) (*Pipeline, error) {
	var faults []error
	for _, name := range o.Policies.Names() {
		p, _ := o.Policies.Profile(name)
		if _, ok := o.Issuers[p.Issuer]; !ok {
			faults = append(faults, errors.New("authority: profile "+name+" names issuer "+p.Issuer+", which is not configured"))
		}
		if len(p.Challenge.Validators) > 0 && o.Validators == nil {
			faults = append(faults, errors.New("authority: profile "+name+" has validators, and nobody asks them"))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	issuers, subjects := make(map[string]*generations), make(map[string]bool)
	for name, cas := range o.Issuers {
		g, err := newGenerations(name, cas)
		if err != nil {
			return nil, err
		}
		issuers[name] = g
		for _, c := range g.all {
			subjects[string(c.cert.RawSubject)] = true
		}
	}
	if o.Revoked == nil {
		o.Revoked = func(string, string) {}
	}
	holds := challenge.NewHolds(o.Now)
	return &Pipeline{
		log: o.Log, index: o.Index, policies: o.Policies, tagger: o.Tagger, holds: holds,
		challenges: challenge.NewService(o.Index, o.Tagger, holds),
		issuers:    issuers, subjects: subjects, now: o.Now, zap: o.Zap, revoked: o.Revoked, newestCRL: o.CRL, validators: o.Validators,
	}, nil
}

// newID returns a request id: 128 random bits in 26 characters. It is not a
// secret; being unpredictable keeps one device from asking about another's.
func newID() string { return strings.ToLower(rand.Text()) }

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Service implements [protocol.Authority].
func (p *Pipeline) Service(_ context.Context, profile string) (protocol.Service, error) {
	pr, ok := p.policies.Profile(profile)
	if !ok {
		return protocol.Service{}, protocol.ErrUnknownProfile
	}
	return serviceOf(p.issuers[pr.Issuer].service(p.now()), pr), nil
}

// keyedLocks gives exclusive use of several named things at once: a transaction,
// a lineage, a subject. Two requests that share a name run one after the other,
// so that each sees in the index what the other did.
type keyedLocks struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when the holder is done
}

// lock waits for all names, in sorted order so that no two callers can wait for
// each other, until ctx ends.
func (k *keyedLocks) lock(ctx context.Context, names ...string) (unlock func(), err error) {
	slices.Sort(names)
	names = slices.Compact(names)
	got := 0
	unlock = func() { k.release(names[:got]) }
	for _, n := range names {
		if err := k.one(ctx, n); err != nil {
			unlock()
			return nil, err
		}
		got++
	}
	return unlock, nil
}

func (k *keyedLocks) one(ctx context.Context, name string) error {
	for {
		k.mu.Lock()
		if k.held == nil {
			k.held = make(map[string]chan struct{})
		}
		busy, ok := k.held[name]
		if !ok {
			k.held[name] = make(chan struct{})
			k.mu.Unlock()
			return nil
		}
		k.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (k *keyedLocks) release(names []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, n := range names {
		close(k.held[n])
		delete(k.held, n)
	}
}

// rates counts what each profile issued in the last minute, and reserves at the
// time of asking, so that two requests cannot both take the last place.
type rates struct {
	mu sync.Mutex
	at map[string][]time.Time
}

// last returns how many were issued or reserved in the minute before now.
func (r *rates) last(profile string, now time.Time) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	from := now.Add(-time.Minute)
	i, _ := slices.BinarySearchFunc(r.at[profile], from, time.Time.Compare)
	if i > 0 {
		r.at[profile] = slices.Clone(r.at[profile][i:])
	}
	return int64(len(r.at[profile]))
}

// take reserves one place for the profile if fewer than limit are taken; limit 0
// is none.
func (r *rates) take(profile string, limit int64, now time.Time) bool {
	if limit == 0 {
		return true
	}
	if r.last(profile, now) >= limit {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.at == nil {
		r.at = make(map[string][]time.Time)
	}
	if int64(len(r.at[profile])) >= limit {
		return false
	}
	r.at[profile] = append(r.at[profile], now)
	return true
}
