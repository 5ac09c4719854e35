package authority

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/policy/challenge"
)

// Errors of the operators' acts.
var (
	ErrNoProfile  = errors.New("no such profile")
	ErrBadRequest = errors.New("bad request")
	ErrNotOpen    = errors.New("the challenge is not open")
	// ErrNotRevocable says that a serial number cannot be revoked as it is.
	ErrNotRevocable = errors.New("the certificate cannot be revoked")
	ErrReason       = errors.New("a decision needs a reason")
	ErrNotWaiting   = errors.New("the request does not wait for a decision")
	ErrRefused      = errors.New("the request is refused now")
)

// A NewChallenge is what an operator asks for. Subject is RFC 4514; TTL 0 is the
// profile's, and a longer one than the profile's is refused.
type NewChallenge struct {
	Profile string
	Subject string
	DNS     []string
	TTL     time.Duration
}

// A Challenge is a created challenge; Secret leaves the appliance once.
type Challenge struct {
	ID      string
	Secret  challenge.Secret
	Profile string
	Subject string
	Expires time.Time
}

// MaxBatch is how many challenges one act can create.
const MaxBatch = 1000

// CreateChallenges creates all or none. Names that the profile would refuse
// are refused here, where somebody reads the answer. What is to be durable together
// with the act comes before it in the log.
func (p *Pipeline) CreateChallenges(ctx context.Context, who audit.Actor, asked []NewChallenge, before ...audit.Entry) ([]Challenge, error) {
	if len(asked) == 0 || len(asked) > MaxBatch {
		return nil, fmt.Errorf("%w: a batch has 1 to %d challenges", ErrBadRequest, MaxBatch)
	}
	made := make([]Challenge, 0, len(asked))
	entries := slices.Grow(slices.Clone(before), len(asked))
	for n, a := range asked {
		c, record, err := p.newChallenge(a)
		if err != nil {
			return nil, fmt.Errorf("challenge %d of %d: %w", n+1, len(asked), err)
		}
		made = append(made, c)
		entries = append(entries, audit.Entry{Event: store.EventChallenge, Outcome: store.OutCreated, Request: newID(), Actor: who, Object: store.ChallengeObject(record)})
	}
	if _, err := p.log.AppendAll(ctx, entries...); err != nil {
		return nil, err
	}
	return made, nil
}

// RevokeChallenge closes an open challenge. The error is [store.ErrNotFound], or
// [ErrNotOpen], also while a request that showed it is being decided: no index
// could follow a log in which a challenge is revoked and spent after that.
func (p *Pipeline) RevokeChallenge(ctx context.Context, who audit.Actor, id string, before ...audit.Entry) error {
	var request [32]byte
	_, _ = rand.Read(request[:]) // it never fails
	if err := p.holds.Hold(id, request, p.now().Add(challenge.HoldFor)); err != nil {
		return fmt.Errorf("%w now: %w", ErrNotOpen, err)
	}
	defer p.holds.Release(id, request)
	r, err := p.index.Challenge(ctx, id)
	if err != nil {
		return err
	}
	if r.State != challenge.Open {
		return fmt.Errorf("%w: it is %s", ErrNotOpen, r.State)
	}
	_, err = p.log.AppendAll(ctx, append(slices.Clone(before), audit.Entry{
		Event: store.EventChallenge, Outcome: store.OutRevoked, Request: newID(), Actor: who, Object: audit.Object{"id": id, "why": "an operator revoked it"},
	})...)
	return err
}

// RevokeCertificate revokes a certificate for one of the reasons of package issuer,
// from now on and for good. When it returns, that is durable: the certificate does not
// renew, an OCSP answer says it, and a new list is on its way. The error is
// [store.ErrNotFound], [ErrBadRequest] or [ErrNotRevocable].
func (p *Pipeline) RevokeCertificate(ctx context.Context, who audit.Actor, serial string, reason int, before ...audit.Entry) (store.Revocation, error) {
	if issuer.Reason(reason) == "" {
		return store.Revocation{}, fmt.Errorf("%w: no certificate is revoked for reason %d", ErrBadRequest, reason)
	}
	i, err := p.index.Certificate(ctx, serial)
	if err != nil {
		return store.Revocation{}, err
	}
	// A renewal that is being decided comes first, or sees it.
	unlock, err := p.locks.lock(ctx, "lineage/"+i.Lineage)
	if err != nil {
		return store.Revocation{}, err
	}
	defer unlock()
	if i, err = p.index.Certificate(ctx, serial); err != nil {
		return store.Revocation{}, err
	}
	switch {
	case i.RevocationDue:
		return store.Revocation{}, fmt.Errorf("%w: it is revoked since %s", ErrNotRevocable, i.RevokedAt.Format(time.RFC3339))
	case i.State != store.Issued:
		return store.Revocation{}, fmt.Errorf("%w: it is %s", ErrNotRevocable, i.State)
	}
	r := store.Revocation{Serial: serial, Reason: reason, At: p.now().UTC().Truncate(time.Second)}
	o := store.RevokedObject(r)
	o["issuer"], o["profile"], o["subject"] = i.Issuer, i.Profile, i.Subject
	_, err = p.log.AppendAll(ctx, append(slices.Clone(before), audit.Entry{
		Event: store.EventRevocation, Outcome: store.OutRevoked, Request: newID(), Actor: who, Object: o,
	})...)
	if err != nil {
		return store.Revocation{}, err
	}
	p.revoked(i.Issuer, serial)
	return r, nil
}

func (p *Pipeline) newChallenge(a NewChallenge) (Challenge, challenge.Record, error) {
	profile, ok := p.policies.Profile(a.Profile)
	if !ok {
		return Challenge{}, challenge.Record{}, fmt.Errorf("%w: %q", ErrNoProfile, a.Profile)
	}
	if profile.Challenge.Mode != policy.ModeOneTime {
		return Challenge{}, challenge.Record{}, fmt.Errorf("%w: the profile's challenges are those of its %s, and none of ours", ErrBadRequest, profile.Challenge.Mode)
	}
	subject, err := policy.ParseSubject(a.Subject)
	if err != nil {
		return Challenge{}, challenge.Record{}, fmt.Errorf("%w: subject: %w", ErrBadRequest, err)
	}
	ttl := profile.Challenge.TTL
	switch {
	case profile.Challenge.Mode == policy.ModeNone:
		return Challenge{}, challenge.Record{}, fmt.Errorf("%w: the profile takes no challenges: an operator approves each request", ErrBadRequest)
	case a.TTL < 0 || a.TTL > ttl:
		return Challenge{}, challenge.Record{}, fmt.Errorf("%w: the profile allows at most %s", ErrBadRequest, ttl)
	case a.TTL > 0:
		ttl = a.TTL
	}
	names, reasons := p.policies.Bind(a.Profile, policy.Names{Subject: subject, DNS: a.DNS})
	if len(reasons) > 0 {
		return Challenge{}, challenge.Record{}, fmt.Errorf("%w: the profile would refuse these names: %s (%s)", ErrBadRequest, reasons[0].Say, reasons[0].Rule)
	}
	secret := challenge.New()
	now := p.now().UTC().Truncate(time.Second)
	r := challenge.Record{ID: newID(), Profile: a.Profile, Names: names, Tag: p.tagger.Tag(secret), Created: now, Expires: now.Add(ttl), State: challenge.Open}
	return Challenge{ID: r.ID, Secret: secret, Profile: r.Profile, Subject: policy.FormatSubject(subject), Expires: r.Expires}, r, nil
}

// A Begin says how the log was found at the start.
type Begin struct {
	Clean     bool // the last record says that the service stopped
	SameBoot  bool // the machine has not been started since the service ran
	Version   string
	Config    string // digest of the configuration
	Recovered string // words on a tail that was cut, or ""
}

// Start closes what a crash left open and records the start. It runs once, before
// the first request. Its last record is system.start: a start that is cut short
// before that is made again by the next one, with the same Begin.
func (p *Pipeline) Start(ctx context.Context, b Begin) error {
	if err := p.currentCAs(ctx); err != nil {
		return err
	}
	record := func(event, out string, o audit.Object) audit.Entry {
		return audit.Entry{Event: event, Outcome: out, Request: newID(), Actor: system(), Object: o}
	}
	if !b.Clean {
		if _, err := p.log.Append(ctx, record("system.unclean", "found", audit.Object{"recovered": b.Recovered})); err != nil {
			return err
		}
	}
	open, err := p.index.OpenIntents(ctx)
	if err != nil {
		return fmt.Errorf("authority: reading open intents: %w", err)
	}
	for _, i := range open {
		if _, err := p.log.AppendAll(ctx, burnt(i.Request, i.IntentSeq, i.Serial, "the service stopped before the outcome was recorded")...); err != nil {
			return err
		}
	}
	if !b.Clean && !b.SameBoot { // after the intents, which free challenges
		if err := p.void(ctx); err != nil {
			return err
		}
	}
	_, err = p.log.Append(ctx, record("system.start", "ok", audit.Object{"version": b.Version, "config": b.Config, "policy": p.policies.Digest()}))
	return err
}

// void closes every open challenge: the machine may have lost records of their use.
func (p *Pipeline) void(ctx context.Context) error {
	for {
		// Each pass closes what it lists, so the list gets shorter.
		list, err := p.index.Challenges(ctx, store.ChallengeFilter{State: challenge.Open, Limit: MaxBatch})
		if err != nil {
			return fmt.Errorf("authority: reading open challenges: %w", err)
		}
		if len(list) == 0 {
			return nil
		}
		var entries []audit.Entry
		for _, c := range list {
			entries = append(entries, audit.Entry{Event: store.EventChallenge, Outcome: store.OutRevoked, Request: newID(), Actor: system(),
				Object: audit.Object{"id": c.ID, "why": "the machine stopped without warning"}})
		}
		if _, err := p.log.AppendAll(ctx, entries...); err != nil {
			return err
		}
	}
}

// IssueServer issues the certificate of our own listeners. It goes the same way
// as every other certificate: linted, its intent durable, its result durable. The
// CA is the issuer's current one.
func (p *Pipeline) IssueServer(ctx context.Context, issuerName string, pub crypto.PublicKey, names []string, validity time.Duration) ([]byte, error) {
	of, ok := p.issuers[issuerName]
	if !ok {
		return nil, fmt.Errorf("authority: no issuer %q", issuerName)
	}
	is := of.now()
	now := p.now().UTC().Truncate(time.Second)
	t := &x509.Certificate{
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(validity),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	t.Subject.CommonName = names[0]
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("authority: encoding the TLS key: %w", err)
	}
	id := newID()
	ticket, err := is.Issuer.Prepare(t, pub, issuer.Meta{Profile: store.ServerProfile, Lineage: id, RequestDigest: digest(spki)})
	if err != nil {
		return nil, fmt.Errorf("authority: preparing the server certificate: %w", err)
	}
	o := store.IntentObject(ticket.Intent(), store.Issuance{
		Profile: store.ServerProfile, Issuer: is.Issuer.Name(), Subject: "CN=" + names[0], SPKI: digest(spki), Names: digest(fmt.Append(nil, names)),
		NotBefore: t.NotBefore, NotAfter: t.NotAfter, LineageFrom: now, Signer: "system", CSR: digest(spki),
	})
	o["kind"] = "server"
	return p.issue(ctx, id, system(), ticket, o)
}

// Stop records that the service ends in order; it is the log's last record.
func (p *Pipeline) Stop(ctx context.Context) error {
	_, err := p.log.Append(ctx, audit.Entry{Event: "system.stop", Outcome: "ok", Request: newID(), Actor: system(), Object: audit.Object{}})
	return err
}
