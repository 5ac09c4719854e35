package authority

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

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

// byChallenge holds the challenge for this request.
func (p *Pipeline) byChallenge(ctx context.Context, q *proven, names policy.Names, kind string) (grant, *verdict, error) {
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
