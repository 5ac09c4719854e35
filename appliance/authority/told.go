package authority

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/policy/challenge"
)

// untoldFor is how long a certificate waits for its validator to hear of it. Then it is
// revoked: nobody has it, and nobody who should know of it does.
const untoldFor = time.Hour

// withdrawWithin bounds what is told of a request that came to nothing.
const withdrawWithin = 5 * time.Second

// listener is the validator that has to hear of certificates before they are delivered.
func listener(p *policy.Profile) (policy.Validator, bool) {
	for _, v := range p.Challenge.Validators {
		if v.Kind == policy.ModeIntune {
			return v, true
		}
	}
	return policy.Validator{}, false
}

// errUntold is around what keeps a certificate from being delivered now.
var errUntold = errors.New("authority: the certificate is not delivered before its validator has heard of it")

// tell has the validator hear of a certificate that it has not heard of, where one has to;
// only then may a byte of the answer leave. The device that is told to come again is
// answered by the same certificate, once this has succeeded.
func (p *Pipeline) tell(ctx context.Context, q *proven, serial string) error {
	n, err := p.index.Untold(context.WithoutCancel(ctx), serial) // also of who hung up: where nothing is owed nothing is in the way
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("authority: looking up what a validator has heard: %w", err)
	}
	v, ok := listener(q.profile)
	if !ok || v.Name != n.Validator || q.csr == nil {
		return fmt.Errorf("%w: %s", errUntold, n.Validator)
	}
	i, err := p.index.Certificate(ctx, serial)
	if err != nil {
		return fmt.Errorf("authority: looking up the certificate: %w", err)
	}
	// What revokes it after an hour comes before, or sees that it was told.
	unlock, err := p.locks.lock(ctx, "lineage/"+i.Lineage)
	if err != nil {
		return fmt.Errorf("authority: waiting for the certificate: %w", err)
	}
	defer unlock()
	if i, err = p.index.Certificate(ctx, serial); err != nil {
		return fmt.Errorf("authority: looking up the certificate: %w", err)
	}
	if i.RevocationDue {
		return fmt.Errorf("%w: and it is revoked", errUntold)
	}
	c, err := x509.ParseCertificate(i.Certificate)
	if err != nil {
		return fmt.Errorf("authority: certificate %s: %w", serial, err)
	}
	question := q.question(challenge.OccasionIssued, v)
	question.Certificate, question.Issuer = i.Certificate, c.Issuer.String()
	a, err := p.validators.Ask(ctx, question)
	if err != nil {
		return fmt.Errorf("authority: telling the validator %s: %w", v.Name, err)
	}
	if a.Verdict != challenge.Allowed {
		return fmt.Errorf("%w: %w", errUntold, &silence{v, a})
	}
	_, err = p.log.Append(context.WithoutCancel(ctx), audit.Entry{Event: store.EventValidator, Outcome: store.OutTold, Request: q.id, Actor: system(), Object: store.ToldObject(serial, v.Name)})
	return err
}

// withdraw tells the validator that vouched that the request came to nothing. It may not
// hear of it: then it knows of no certificate all the same.
func (p *Pipeline) withdraw(ctx context.Context, q *proven, f *policy.Facts) {
	v, ok := listener(q.profile)
	if !ok || len(f.Validators) == 0 || f.Validators[len(f.Validators)-1] != v.Fact(policy.Vouched) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawWithin)
	defer cancel()
	question := q.question(challenge.OccasionFailed, v)
	question.Why = "the request was granted by Intune and not by the CA: see its log, request " + q.id
	if a, err := p.validators.Ask(ctx, question); err != nil || a.Verdict != challenge.Allowed {
		p.zap.Warn("a validator did not hear that a request failed", zap.String("request", q.id), zap.String("validator", v.Name), zap.String("say", a.Say), zap.Error(err))
	}
}

// delivered reports whether a certificate may be given to whoever asks for it by name.
func (p *Pipeline) delivered(ctx context.Context, serial string) (bool, error) {
	_, err := p.index.Untold(ctx, serial)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("authority: looking up what a validator has heard: %w", err)
	}
	return false, nil
}

// RevokeUntold revokes the certificates of which a validator has not heard for an hour:
// none of them was delivered. It is called now and then.
func (p *Pipeline) RevokeUntold(ctx context.Context) error {
	list, err := p.index.UntoldBefore(ctx, p.now().Add(-untoldFor))
	if err != nil {
		return fmt.Errorf("authority: looking for certificates of which nobody was told: %w", err)
	}
	var errs []error
	for _, n := range list {
		errs = append(errs, p.revokeUntold(ctx, n))
	}
	return errors.Join(errs...)
}

func (p *Pipeline) revokeUntold(ctx context.Context, n store.Notice) error {
	const cessation = 5 // RFC 5280, section 5.3.1: cessationOfOperation; it never operated
	unheard := audit.Entry{Event: store.EventValidator, Outcome: "untold", Request: newID(), Actor: system(),
		Object: audit.Object{"serial": n.Serial, "validator": n.Validator, "why": "it has not heard of the certificate for an hour"}}
	_, err := p.RevokeCertificate(ctx, system(), n.Serial, cessation, unheard)
	if errors.Is(err, ErrNotRevocable) {
		return nil // it was revoked meanwhile
	}
	return err
}
