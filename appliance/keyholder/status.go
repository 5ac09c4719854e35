package keyholder

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/issuer"
)

// Bounds of what is signed about certificates.
const (
	maxLists    = 64   // intents of CRLs without an outcome that are remembered
	answersRate = 2000 // OCSP answers in a second and CA
)

// An OCSP is the key that answers for a CA's certificates, with its own limits.
type OCSP struct {
	Key    *hsm.Key
	Limits issuer.OCSPLimits
	rate   *rate.Limiter
}

// NewOCSP returns the key with its limits.
func NewOCSP(key *hsm.Key, limits issuer.OCSPLimits) *OCSP {
	return &OCSP{Key: key, Limits: limits, rate: rate.NewLimiter(answersRate, answersRate)}
}

type crlIntent struct {
	audit.CRLIntent
	at time.Time
}

// intendCRL remembers the intent of a line. The caller has the lock.
func (k *Keyholder) intendCRL(l audit.Line, in audit.CRLIntent) {
	if len(k.lists) < maxLists {
		k.lists[l.Record.Seq] = crlIntent{in, l.Record.Time}
		return
	}
	k.refusals.add(fmt.Sprintf("a CRL by line %d: %d others were intended and came to nothing", l.Record.Seq, maxLists))
}

// takeCRL uses an intent up, if it is one of that issuer.
func (k *Keyholder) takeCRL(name string, seq uint64) (in crlIntent, ca CA, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	in, ok := k.lists[seq]
	ca, known := k.o.CAs[name]
	age := k.o.Now().Sub(in.at)
	switch {
	case k.wrong != nil:
		return in, ca, k.wrong
	case k.chain.Head().Size < k.mark.size:
		return in, ca, fmt.Errorf("%w: it was fed less of the log than the mark on the token knows of", rpc.ErrNoIntent)
	case !ok || !known || in.Issuer != name:
		return in, ca, rpc.ErrNoIntent
	case age > maxAge || age < -maxAge:
		return in, ca, fmt.Errorf("%w: it is %s old", rpc.ErrNoIntent, age.Round(time.Second))
	}
	delete(k.lists, seq)
	if in.Number <= k.numbers[name] {
		return in, ca, fmt.Errorf("%w: number %d is not above %d, which it signed", rpc.ErrNoIntent, in.Number, k.numbers[name])
	}
	k.numbers[name] = in.Number
	return in, ca, nil
}

// SignCRL implements [issuer.StatusSigner]. An intent is used up by the attempt,
// whether it succeeds or not.
func (k *Keyholder) SignCRL(ctx context.Context, name string, tbs []byte, seq uint64) ([]byte, error) {
	in, ca, err := k.takeCRL(name, seq)
	if err == nil {
		err = ca.Limits.CheckCRL(tbs, in.CRLIntent, k.o.Now())
	}
	if err != nil {
		k.refusals.add(fmt.Sprintf("a CRL of %q by line %d: %v", name, seq, err))
		return nil, fmt.Errorf("keyholder: %w: %w", issuer.ErrNotSigned, err)
	}
	if err := k.keepHead(seq + 1); err != nil {
		return nil, fmt.Errorf("%w: %w", issuer.ErrNotSigned, err)
	}
	defer k.wanted()()
	return sign(ctx, ca.Key, tbs)
}

// SignOCSP implements [issuer.StatusSigner].
func (k *Keyholder) SignOCSP(ctx context.Context, name string, data []byte) ([]byte, error) {
	ca := k.o.CAs[name]
	if ca.OCSP == nil {
		k.refusals.add(fmt.Sprintf("an OCSP answer of %q, which has no key for that", name))
		return nil, fmt.Errorf("%w: %w", issuer.ErrNotSigned, rpc.ErrNoKey)
	}
	if err := ca.OCSP.Limits.Check(data, k.o.Now()); err != nil {
		k.refusals.add(fmt.Sprintf("an OCSP answer of %q: %v", name, err))
		return nil, fmt.Errorf("keyholder: %w: %w", issuer.ErrNotSigned, err)
	}
	if !ca.OCSP.rate.Allow() {
		k.refusals.add(fmt.Sprintf("OCSP answers of %q faster than its rate", name))
		return nil, fmt.Errorf("keyholder: %w: more OCSP answers in a second than the key signs", issuer.ErrNotSigned)
	}
	defer k.wanted()()
	return sign(ctx, ca.OCSP.Key, data)
}
