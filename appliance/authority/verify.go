package authority

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/policy/challenge"
	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/pkcs10"
	"github.com/postern-pki/postern/protocol/scep"
)

// proven is a request after its proof was verified here, from the bytes.
type proven struct {
	id      string
	profile *policy.Profile
	source  string
	client  protocol.Client // by the gate's word; see sender

	message scep.Message
	signer  *cms.Certificate
	digest  crypto.Hash
	cipher  cms.Cipher
	csr     *pkcs10.Request      // of a PKCSReq and a RenewalReq, else nil
	named   scep.IssuerAndSerial // of a GetCert and a GetCRL
	ca      *generation          // the one that the envelope is for; nil for a CertPoll

	signerDigest string          // hex SHA-256 of the signer's certificate
	signerName   string          // "cert:" or "key:" and a digest: whose transaction this is
	csrDigest    string          // hex SHA-256
	spkiDigest   string          // hex SHA-256 of the CSR's key
	ours         *store.Issuance // the signer's certificate, where this CA issued it
}

// A verdict is a refusal on its way to the log: what the device is told, and
// what the log is told beside it.
type verdict struct {
	kind     protocol.Kind
	say      string
	reasons  []policy.Reason
	security string // names a security event, or ""
	// challenge is the refusal of the challenge that was shown, or nil.
	challenge *challenge.Refusal
}

// badProof is the one answer for everything that makes a message prove nothing;
// why goes to the log alone.
func badProof(why string) *verdict {
	return &verdict{kind: protocol.BadProof, say: "the message does not prove what it says",
		reasons: []policy.Reason{{Rule: "proof", Saw: why, Say: "the message does not prove what it says"}}}
}

// verify reads everything that a decision needs from the proof's bytes. What it
// returns is filled as far as it came, for the record.
func (p *Pipeline) verify(ctx context.Context, id string, r protocol.Request, profile *policy.Profile) (*proven, *verdict, error) {
	q := &proven{id: id, profile: profile, source: r.Source, client: r.Client, digest: r.Proof.Digest}
	signer, err := cms.ParseCertificate(r.Proof.SignerCert)
	if err != nil {
		return q, badProof("signer certificate does not parse"), nil
	}
	q.signer, q.signerDigest = signer, digest(signer.Raw)
	if err := cms.Verify(signer, r.Proof.Digest, r.Proof.SignedAttrs, r.Proof.Signature, r.Proof.Envelope); err != nil {
		return q, badProof("signature over the signed attributes"), nil
	}
	attrs, err := cms.ParseAttributes(r.Proof.SignedAttrs)
	if err != nil {
		return q, badProof("signed attributes"), nil
	}
	if q.message, err = scep.ParseMessage(attrs); err != nil {
		return q, badProof("SCEP attributes"), nil
	}
	if v := q.open(r.Proof, p.issuers[profile.Issuer]); v != nil {
		return q, v, nil
	}
	if q.ours, err = p.own(ctx, signer); err != nil {
		return q, nil, err
	}
	if q.ours != nil {
		q.signerName = "cert:" + q.signerDigest
		return q, nil, nil
	}
	q.signerName = "key:" + digest(signer.RawSPKI)
	if q.csr != nil && !profile.Clients.AnySigner && !bytes.Equal(signer.RawSPKI, q.csr.RawSPKI) {
		return q, badProof("the CSR's key is not the signer's"), nil
	}
	return q, nil, nil
}

// open reads what the envelope holds, which the message's type says. The envelope
// of a poll stays closed: package scep says why.
func (q *proven) open(proof protocol.Proof, of *generations) *verdict {
	why := ""
	switch q.message.Type {
	case scep.PKCSReq, scep.RenewalReq:
		why = q.openCSR(proof, of)
	case scep.GetCert, scep.GetCRL:
		if why = q.openName(proof, of); why != "" {
			return noCertificate(why) // nothing binds the envelope to the signer: package scep says more
		}
	case scep.CertPoll:
	default:
		const say = "this type of message is not supported"
		return &verdict{kind: protocol.Unsupported, say: say,
			reasons: []policy.Reason{{Rule: "message.type", Saw: strconv.Itoa(q.message.Type), Say: say}}}
	}
	if why != "" {
		return badProof(why)
	}
	return nil
}

// content decrypts the envelope with the content key; it returns why not, in our
// words. Which generation the envelope is for it says itself.
func (q *proven) content(proof protocol.Proof, of *generations) (content []byte, why string) {
	der, err := cms.DER(proof.Envelope, cms.DefaultLimits())
	if err != nil {
		return nil, "envelope encoding"
	}
	envelope, err := cms.ParseEnvelope(der)
	if err != nil {
		return nil, "envelope structure"
	}
	q.cipher = envelope.Cipher
	if q.ca = of.of(envelope); q.ca == nil {
		return nil, "recipients"
	}
	if content, err = envelope.Open(proof.ContentKey); err != nil {
		return nil, "envelope content"
	}
	if content, err = cms.DER(content, cms.DefaultLimits()); err != nil {
		return nil, "content encoding"
	}
	return content, ""
}

// openCSR reads the CSR (RFC 8894, section 3.3.1); it returns why not.
func (q *proven) openCSR(proof protocol.Proof, of *generations) string {
	content, why := q.content(proof, of)
	if why != "" {
		return why
	}
	csr, err := pkcs10.Parse(content)
	if err != nil {
		return "CSR structure"
	}
	q.csr, q.csrDigest, q.spkiDigest = csr, digest(csr.Raw), digest(csr.RawSPKI)
	if err := csr.CheckSignature(); err != nil {
		return "CSR signature"
	}
	return ""
}

// openName reads which certificate is asked for (RFC 8894, section 3.3.4); it
// returns why not.
func (q *proven) openName(proof protocol.Proof, of *generations) string {
	content, why := q.content(proof, of)
	if why != "" {
		return why
	}
	var err error
	if q.named, err = scep.ParseIssuerAndSerial(content); err != nil {
		return "content is no issuer and serial number"
	}
	return ""
}

// own returns the issuance whose certificate this is, byte for byte, or nil.
func (p *Pipeline) own(ctx context.Context, c *cms.Certificate) (*store.Issuance, error) {
	serial := serialHex(c.RawSerial)
	if !p.subjects[string(c.RawIssuer)] || serial == "" {
		return nil, nil
	}
	i, err := p.index.Certificate(ctx, serial)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("authority: looking up the signer: %w", err)
	case i.State != store.Issued || !bytes.Equal(i.Certificate, c.Raw) || i.Profile == store.ServerProfile:
		return nil, nil
	}
	return &i, nil
}

// keyFacts describes the CSR's key.
func keyFacts(csr *pkcs10.Request) policy.KeyFacts {
	f := policy.KeyFacts{Type: "other", SPKI: base64.StdEncoding.EncodeToString(csr.RawSPKI)}
	if k, ok := csr.PublicKey.(*rsa.PublicKey); ok {
		f.Type, f.Bits, f.Exponent = "RSA", int64(k.N.BitLen()), int64(k.E)
	} else {
		f.Type, f.Bits, f.Curve = otherKey(csr.PublicKey)
	}
	return f
}
