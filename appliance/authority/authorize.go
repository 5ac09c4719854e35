package authority

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/policy/challenge"
	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/pkcs10"
	"github.com/postern-pki/postern/protocol/scep"
)

// The kinds of enrollment, as a record has them.
const (
	kindNew        = policy.KindNew        // an unknown signer and a challenge
	kindRenewal    = policy.KindRenewal    // a signer of ours, without an open challenge
	kindNewLineage = policy.KindNewLineage // a signer of ours, and an open challenge for the same names
)

// A grant says why a request may be decided on at all.
type grant struct {
	kind      string
	challenge challenge.Grant // its ID is empty where no challenge was held
	by        string          // "challenge:<id>", "certificate:<serial>" or byApproval
}

// authorize finds out who asks. A refusal still comes back with the kind that
// the request would have been, so that policy can give its reasons beside.
func (p *Pipeline) authorize(ctx context.Context, q *proven, names policy.Names) (grant, *verdict, error) {
	switch {
	case q.ours == nil && q.message.Type == scep.RenewalReq:
		return grant{kind: kindNew}, notAllowed("renewal.signer", "a certificate that this CA did not issue",
			"a renewal is signed by a certificate of this CA"), nil
	case q.ours == nil && q.profile.Challenge.Mode == policy.ModeNone:
		return grant{kind: kindNew, by: byApproval}, nil, nil
	case q.ours == nil:
		return p.byChallenge(ctx, q, names, kindNew)
	case q.ours.Names != names.Digest():
		// Before the challenge: whoever signs another's envelope with a
		// certificate of ours learns nothing of it, and wears no challenge out.
		v := badProof("the CSR's names are not the signer's")
		v.security = "a certificate of ours signed a request for other names"
		return grant{kind: kindRenewal}, v, nil
	case q.message.Type == scep.RenewalReq || q.csr.Challenge == nil || q.profile.Challenge.Mode == policy.ModeNone:
		g, v := p.byCertificate(q)
		return g, v, nil
	}
	g, v, err := p.byChallenge(ctx, q, names, kindNewLineage)
	if err != nil || v == nil {
		return g, v, err
	}
	if r := v.challenge; r != nil && r.Why == challenge.WhySpent && r.Lineage == q.ours.Lineage {
		g, v := p.byCertificate(q)
		return g, v, nil
	}
	v.security = "a certificate of ours was shown with a challenge that is not for it"
	return g, v, nil
}

// byChallenge holds the challenge for this request, where it is one of ours.
func (p *Pipeline) byChallenge(ctx context.Context, q *proven, names policy.Names, kind string) (grant, *verdict, error) {
	if q.profile.Challenge.Mode != policy.ModeOneTime {
		g, v := q.byValidator(kind)
		return g, v, nil
	}
	g := grant{kind: kind}
	if q.csr.Challenge == nil {
		return g, notAllowed("challenge", "none", "a new enrollment needs a challenge"), nil
	}
	got, err := p.challenges.Check(ctx, challenge.Claim{
		Profile: q.profile.Name, Secret: secretOf(q.csr.Challenge), Names: names,
		Request: requestDigest(q), Now: p.now(),
	})
	if refused, ok := errors.AsType[*challenge.Refusal](err); ok {
		v := notAllowed("challenge", string(refused.Why), challenge.Say)
		v.challenge = refused
		if refused.Why == challenge.WhySpent {
			v.security = "a spent challenge was shown again"
		}
		return g, v, nil
	}
	if err != nil {
		return g, nil, fmt.Errorf("authority: checking the challenge: %w", err)
	}
	g.challenge, g.by = got, "challenge:"+got.ID
	return g, nil, nil
}

// byCertificate checks what a renewal must be whatever the profile says; the
// profile's window, count and age are the policy's.
func (p *Pipeline) byCertificate(q *proven) (grant, *verdict) {
	g, now := grant{kind: kindRenewal, by: "certificate:" + q.ours.Serial}, p.now()
	switch {
	case q.ours.Profile != q.profile.Name:
		return g, notAllowed("renewal.profile", q.ours.Profile, "the certificate belongs to another profile")
	case q.ours.RevocationDue:
		return g, notAllowed("renewal.revoked", q.ours.Serial, "the certificate is revoked")
	case now.After(q.ours.NotAfter):
		return g, notAllowed("renewal.expired", q.ours.NotAfter.Format(time.RFC3339), "the certificate has expired: enroll again with a new challenge")
	case now.Before(q.ours.NotBefore):
		return g, notAllowed("renewal.not-yet", q.ours.NotBefore.Format(time.RFC3339), "the certificate is not valid yet")
	}
	return g, nil
}

func notAllowed(rule, saw, say string) *verdict {
	return &verdict{kind: protocol.NotAllowed, say: say, reasons: []policy.Reason{{Rule: rule, Saw: saw, Say: say}}}
}

func secretOf(pw *pkcs10.Password) challenge.Secret { return challenge.SecretOf(pw.Bytes()) }

// requestDigest names a request for holds: its transaction, its CSR and whose
// it is.
func requestDigest(q *proven) [32]byte {
	return sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s\x00%s", q.profile.Name, q.message.TransactionID, q.signerName, q.csrDigest))
}

// encryptable refuses what could not be answered, before it is issued: nothing can be
// encrypted to a key that is not RSA, but for a new enrollment under the challenge
// that this request holds, where the profile has it so (RFC 8894, section 3.1).
func (q *proven) encryptable(g grant) *verdict {
	if _, ok := q.signer.PublicKey.(*rsa.PublicKey); ok {
		return nil
	}
	say := "nothing can be encrypted to the key that signed the message"
	if _, ok := q.signer.PublicKey.(*ecdsa.PublicKey); ok && q.profile.Clients.PasswordRecipient {
		if g.challenge.ID != "" && q.message.Type == scep.PKCSReq {
			return nil
		}
		say += ": enroll anew, with a challenge"
	}
	return &verdict{kind: protocol.BadAlgorithm, say: say,
		reasons: []policy.Reason{{Rule: "message.signer", Saw: fmt.Sprintf("%T", q.signer.PublicKey), Say: say}}}
}

// validators puts questions to those who vouch, over the network. It is safe for
// concurrent use; an error is a fault of ours.
type validators interface {
	Ask(ctx context.Context, q challenge.Question) (challenge.Answer, error)
}

// A silence is a validator that did not answer. It is a fault on our side: the device
// comes again, and its challenge is as good as before.
type silence struct {
	validator policy.Validator
	answer    challenge.Answer
}

// Error returns which and why, for the log.
func (s *silence) Error() string {
	return "validator " + s.validator.Fact(string(s.answer.Verdict)) + ": " + s.answer.Say
}

// byValidator is who asks where the challenge is none of ours: whoever shows one. The
// validators say more, once nothing else is against the request.
func (q *proven) byValidator(kind string) (grant, *verdict) {
	g := grant{kind: kind}
	if q.csr.Challenge == nil || len(q.csr.Challenge.Bytes()) == 0 {
		return g, notAllowed("challenge", "none", "a new enrollment needs a challenge")
	}
	for _, v := range q.profile.Challenge.Validators {
		if v.Kind == q.profile.Challenge.Mode {
			g.by = v.Kind + ":" + v.Name
		}
	}
	return g, nil
}

// vouch asks the validators of a new request that everything else lets through, in
// their order and up to the first that refuses. What they said is added to the facts.
func (p *Pipeline) vouch(ctx context.Context, q *proven, f *policy.Facts, g grant) (*verdict, error) {
	c := q.profile.Challenge
	if g.kind == kindRenewal || len(c.Validators) == 0 {
		return nil, nil
	}
	would := *f
	would.Validators = c.AllVouched()
	if !p.policies.Decide(would).Issue {
		return nil, nil // so nobody is asked, and no challenge is shown to them in vain
	}
	for _, v := range c.Validators {
		a, err := p.validators.Ask(ctx, q.question(challenge.OccasionCheck, v))
		if err != nil {
			return nil, fmt.Errorf("authority: asking the validator %s: %w", v.Name, err)
		}
		switch a.Verdict {
		case challenge.Allowed:
			f.Validators = append(f.Validators, v.Fact(policy.Vouched))
		case challenge.Refused:
			f.Validators = append(f.Validators, v.Fact(said(a)))
			f.Authorization = "challenge." + v.Kind + ": " + string(a.Verdict)
			no := &verdict{kind: protocol.NotAllowed, say: challenge.Say} // policy has the reason
			if g.challenge.ID != "" {
				no.challenge = &challenge.Refusal{ID: g.challenge.ID, Why: whyValidator}
			}
			if g.kind == kindNewLineage {
				no.security = "a certificate of ours was shown with a challenge that nobody vouches for"
			}
			return no, nil
		default:
			return nil, &silence{v, a}
		}
	}
	return nil, nil
}

// whyValidator says that a challenge was good and somebody else refused.
const whyValidator challenge.Why = "validator"

// said is a verdict with the words that came with it.
func said(a challenge.Answer) string {
	s := string(a.Verdict)
	if a.Code != "" {
		s += " (" + a.Code + ")"
	}
	if a.Say != "" {
		s += ": " + a.Say
	}
	return s
}

// question is what a validator is asked. The challenge is told to the one whose it
// is; the others get the request without it.
func (q *proven) question(occasion string, v policy.Validator) challenge.Question {
	out := challenge.Question{
		Occasion: occasion, Validator: v.Name, Profile: q.profile.Name, Transaction: q.message.TransactionID, Request: q.id,
	}
	if v.Kind == q.profile.Challenge.Mode && q.csr.Challenge != nil {
		out.Challenge, out.CSR = q.csr.Challenge.Bytes(), q.csr.Raw
		return out
	}
	out.CSR, out.Bare = bare(q.csr), true
	return out
}

// bare returns the request (RFC 2986, section 4) with its subject, key and requested
// extensions, and nothing else of it: no challenge, and no signature.
func bare(csr *pkcs10.Request) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1Int64(0)
			b.AddBytes(csr.RawSubject)
			b.AddBytes(csr.RawSPKI)
			b.AddASN1(cbasn1.Tag(0).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) { bareExtensions(b, csr) })
		})
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier([]int{1, 2, 840, 113549, 1, 1, 11}) // sha256WithRSAEncryption
			b.AddASN1NULL()
		})
		b.AddASN1BitString(nil)
	})
	der, err := b.Bytes()
	if err != nil {
		return nil // which no validator can read, and none vouches for
	}
	return der
}

func bareExtensions(b *cryptobyte.Builder, csr *pkcs10.Request) {
	if len(csr.Extensions) == 0 {
		return
	}
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier([]int{1, 2, 840, 113549, 1, 9, 14})
		b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				for _, e := range csr.Extensions {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier(e.Id)
						if e.Critical {
							b.AddASN1Boolean(true)
						}
						b.AddASN1OctetString(e.Value)
					})
				}
			})
		})
	})
}

// unservedWhy is the log's word for a request that came to no decision.
func unservedWhy(ctx context.Context, err error) string {
	if s, ok := errors.AsType[*silence](err); ok && errors.Is(err, errUntold) {
		return "not delivered: validator " + s.validator.Fact(string(s.answer.Verdict))
	}
	if s, ok := errors.AsType[*silence](err); ok {
		return "validator " + s.validator.Fact(string(s.answer.Verdict))
	}
	switch {
	case errors.Is(err, protocol.ErrUnknownProfile): // a gate that is its own asks for the profile first
		return "unknown profile"
	case ctx.Err() != nil:
		return "not decided in time"
	}
	return "fault of the appliance"
}
