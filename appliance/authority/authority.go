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
	"strings"
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
