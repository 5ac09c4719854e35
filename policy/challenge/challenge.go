// Package challenge holds the one-time challenges that vouch for a new request.
//
// # What a caller may rely on
//
// A [Secret] can not be printed, logged or marshaled by accident. The appliance
// keeps an HMAC tag of it alone, so a stolen log or database redeems nothing
// without the 32-byte key. [Service.Check] grants a challenge to one request at
// a time, for exactly the names that it binds: the grant is a hold in memory, and
// what spends the challenge is a durable record that the caller writes while it
// holds. A challenge that was spent between the look-up and the hold is refused.
//
// # What it does not protect against
//
// Who knows a challenge may use it, for the names that it binds. The holds are
// those of one process; several nodes need an arbiter between them.
package challenge

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"time"

	"github.com/postern-pki/postern/policy"
)

// MaxRefusals is the number of refusals that revokes a challenge. The caller
// records each refusal that names an id, and the revocation; a record that shows
// as many is refused whatever its state.
const MaxRefusals = 5

// Say is what a device is told of a refused challenge, whatever was wrong.
const Say = "the challenge is not valid for this request"

// ErrUnknown is what a [Store] returns for a tag that it does not know.
var ErrUnknown = errors.New("challenge: unknown")

// State is where a challenge stands in its life.
type State string

// The states of a challenge.
const (
	Open    State = "open"
	Spent   State = "spent"
	Revoked State = "revoked"
)

// A Record is what the appliance keeps of a challenge.
type Record struct {
	ID       string
	Profile  string
	Names    policy.Names // that it binds, see [policy.Set.Bind]
	Tag      [32]byte
	Created  time.Time
	Expires  time.Time
	State    State
	Refusals int
	SpentBy  uint64 // the seq of the intent that spent it
	Lineage  string // that spent it
}

// A Store finds challenges. ByTag returns [ErrUnknown], or an error that wraps
// it, for a tag that no record has. It is safe for concurrent use.
// Version is another number after every change of a record.
type Store interface {
	ByTag(ctx context.Context, tag [32]byte) (Record, error)
	Version() uint64
}

// A Claim is a request that brings a challenge.
type Claim struct {
	Profile string
	Secret  Secret       // the zero value is unknown
	Names   policy.Names // of the certificate as it would be issued, see [policy.Decision.Names]
	Request [32]byte     // the digest of the request, which holds
	Now     time.Time
}

// A Grant is a hold on a challenge. Its holder either spends the challenge by a
// durable record or gives it back, and calls [Service.Release] after either.
type Grant struct {
	ID      string
	Request [32]byte
	Expires time.Time // of the hold: nothing may be spent by this grant later
}

// Why is the reason of a refusal, for the log.
type Why string

// The reasons, in the order in which they are looked at.
const (
	WhyUnknown      Why = "unknown"
	WhyRevoked      Why = "revoked"
	WhySpent        Why = "spent"
	WhyExpired      Why = "expired"
	WhyOtherProfile Why = "other-profile"
	WhyOtherNames   Why = "other-names"
	WhyHeld         Why = "held"
)

// String returns the reason as the log has it.
func (w Why) String() string { return string(w) }

// A Refusal says no to a claim. The device is told [Say], whatever Why is.
type Refusal struct {
	Why Why
	ID  string // "" if unknown
	// Lineage is the one that spent the challenge, where Why is WhySpent: some
	// clients repeat the challenge of their enrollment when they renew.
	Lineage string
}

// Error returns the reason, for the log.
func (r *Refusal) Error() string { return "challenge refused: " + string(r.Why) }

// HoldFor is how long a grant lasts at most, should nobody give it back: longer than
// a disk hangs that then writes an intent after all, since a challenge that was
// held by another request meanwhile would be spent twice.
const HoldFor = time.Hour

// A Service checks claims. It is safe for concurrent use.
type Service struct {
	store  Store
	tagger *Tagger
	holds  *Holds
}

// NewService returns a service over the records of the store.
func NewService(store Store, tagger *Tagger, holds *Holds) *Service {
	return &Service{store, tagger, holds}
}

// Check grants the challenge to the claim, or returns a [*Refusal]. Any other
// error is a fault of ours, [ErrFull] among them, and counts as no refusal.
func (s *Service) Check(ctx context.Context, c Claim) (Grant, error) {
	if c.Secret.zero() {
		return Grant{}, &Refusal{Why: WhyUnknown}
	}
	tag := s.tagger.Tag(c.Secret)
	version := s.store.Version()
	rec, err := s.find(ctx, tag, c)
	if err != nil {
		return Grant{}, err
	}
	g := Grant{ID: rec.ID, Request: c.Request, Expires: c.Now.Add(HoldFor)}
	switch err := s.holds.Hold(g.ID, g.Request, g.Expires); {
	case errors.Is(err, ErrHeld):
		return Grant{}, &Refusal{Why: WhyHeld, ID: rec.ID}
	case err != nil:
		return Grant{}, err
	}
	// The record was read before the hold was ours: its holder of then may have
	// spent it and let go. Only what is true under the hold counts.
	if s.store.Version() == version {
		return g, nil
	}
	if _, err := s.find(ctx, tag, c); err != nil {
		s.Release(g)
		return Grant{}, err
	}
	return g, nil
}

// Release ends a grant, after the challenge was spent or will not be. A grant
// that ended already, and the zero grant, are none.
func (s *Service) Release(g Grant) { s.holds.Release(g.ID, g.Request) }

// find returns the record that the claim may use, or the refusal.
func (s *Service) find(ctx context.Context, tag [32]byte, c Claim) (Record, error) {
	rec, err := s.store.ByTag(ctx, tag)
	if errors.Is(err, ErrUnknown) {
		return Record{}, &Refusal{Why: WhyUnknown}
	}
	if err != nil {
		return Record{}, fmt.Errorf("challenge: looking up: %w", err)
	}
	if why := refuse(rec, tag, c); why != "" {
		r := &Refusal{Why: why, ID: rec.ID}
		if why == WhyUnknown {
			r.ID = ""
		}
		if why == WhySpent {
			r.Lineage = rec.Lineage
		}
		return Record{}, r
	}
	return rec, nil
}

// refuse says why the claim may not use the record, or "".
func refuse(rec Record, tag [32]byte, c Claim) Why {
	switch {
	case subtle.ConstantTimeCompare(rec.Tag[:], tag[:]) != 1:
		return WhyUnknown // a store that finds by more than the tag
	case rec.State == Revoked, rec.Refusals >= MaxRefusals && rec.State != Spent:
		return WhyRevoked
	case rec.State == Spent:
		return WhySpent
	case rec.State != Open:
		return WhyRevoked // a state that nobody here knows redeems nothing
	case !c.Now.Before(rec.Expires):
		return WhyExpired
	case rec.Profile != c.Profile:
		return WhyOtherProfile
	case !rec.Names.Binds(c.Names):
		return WhyOtherNames
	default:
		return ""
	}
}
