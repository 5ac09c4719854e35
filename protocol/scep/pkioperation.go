package scep

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/pkcs10"
)

// grid is what the time of an answer to a message without proof is rounded up
// to, from the message's arrival.
const grid = 50 * time.Millisecond

var errKey = errors.New("scep: the RA-decrypt certificate has no RSA key")

// A refusal is the gate's own no. Why is for the log, from a closed set.
type refusal struct {
	kind protocol.Kind
	why  string
}

// Reasons that the device is told something of its own for.
const (
	whyNotRSA      = "signer's key is not RSA"
	whyNoChallenge = "signer's key is not RSA, and this message has no challenge"
	whyShort       = "signer's key is too short"
)

// say is what the device is told. For BadProof it is one text whatever the why.
func (r refusal) say() string { return say(r.kind, r.why) }

func say(k protocol.Kind, why string) string {
	switch k {
	case protocol.BadProof:
		return "the message does not prove what it says"
	case protocol.BadAlgorithm:
		switch why {
		case whyNotRSA:
			return "SCEP needs an RSA key: nothing can be encrypted to the key that signed the message"
		case whyNoChallenge:
			return "nothing can be encrypted to the key that signed the message: enroll anew, with a challenge"
		case whyShort:
			return "the key that signed the message is too short"
		}
		return "the message uses an algorithm that is not allowed"
	case protocol.Unsupported:
		return "this type of message is not supported"
	case protocol.NotFound:
		return "there is no such certificate"
	default:
		return "the request was refused"
	}
}

func unproven(why string) *refusal { return &refusal{protocol.BadProof, why} }

// pkiOperation answers a pkiMessage (RFC 8894, section 3.2). Only a message that
// no answer can be addressed to is an error of HTTP.
func (x *exchange) pkiOperation(ctx context.Context, raw []byte) (answer, error) {
	signed, no := x.address(raw)
	if no != nil && x.message.RawTransactionID == nil {
		return x.refuse(ctx, http.StatusBadRequest, no.kind, no.why)
	}
	var outcome protocol.Outcome
	var cipher cms.Cipher
	var err error
	if no == nil {
		no = x.admit(signed)
	}
	if no == nil {
		outcome, cipher, no, err = x.submit(ctx, signed)
	}
	if errors.Is(err, errBroken) {
		return x.refuse(ctx, http.StatusTooManyRequests, protocol.BadProof, "too many broken envelopes from this source")
	}
	if err != nil {
		return answer{}, err
	}
	if no != nil {
		outcome = protocol.Outcome{Status: protocol.Refused, Refusal: &protocol.Refusal{Kind: no.kind, Say: no.say()}}
		if outcome.RequestID, err = x.refused(ctx, no.kind, no.why); err != nil {
			return answer{}, err
		}
	}
	uniform := x.uniform(outcome)
	if uniform {
		// Whatever the authority found out, the device is told as we would.
		outcome.Refusal = &protocol.Refusal{Kind: outcome.Refusal.Kind, Say: say(outcome.Refusal.Kind, "")}
	}
	body, err := x.certRep(ctx, signed, cipher, outcome)
	if err != nil {
		return answer{}, err
	}
	if uniform {
		x.waitForGrid(ctx) // last of all, so that it hides the time of all the rest
	}
	return answer{status: http.StatusOK, contentType: typeMessage, body: body}, nil
}

// uniform reports whether an outcome is one that must not show at which step the
// message failed. Nothing binds what a GetCert and a GetCRL hold to their signer, so
// that anybody could have somebody else's envelope looked at in one: there, that it
// does not open and that it names no certificate of ours is the same answer.
func (x *exchange) uniform(o protocol.Outcome) bool {
	if o.Status != protocol.Refused || o.Refusal == nil {
		return false
	}
	return o.Refusal.Kind == protocol.BadProof || o.Refusal.Kind == protocol.NotFound && looksUp(x.message.Type)
}

// looksUp reports whether a message of the type asks for what there is already, by
// its name.
func looksUp(messageType int) bool { return messageType == GetCert || messageType == GetCRL }

// unopened is what a failure of the envelope becomes, see uniform.
func (x *exchange) unopened(no *refusal) *refusal {
	if no != nil && no.kind == protocol.BadProof && looksUp(x.message.Type) {
		return &refusal{protocol.NotFound, no.why}
	}
	return no
}

// waitForGrid hides at which step a message failed (RFC 3218, section 2.3 tells
// what for).
func (x *exchange) waitForGrid(ctx context.Context) {
	elapsed := max(0, x.now().Sub(x.arrived))
	x.sleep(ctx, grid-elapsed%grid)
}

// address reads the message as far as an answer to it needs: it sets x.message if
// there can be one. A messageType that is no number can wait: it can be answered.
func (x *exchange) address(raw []byte) (*cms.Signed, *refusal) {
	der, err := cms.DER(raw, cms.DefaultLimits())
	if err != nil {
		return nil, &refusal{protocol.Unclassified, "message encoding"}
	}
	if len(raw) == 0 || &der[0] != &raw[0] {
		x.odd(protocol.TraitBER)
	}
	signed, err := cms.ParseSigned(der)
	switch {
	case errors.Is(err, cms.ErrContentType):
		attrs, _ := claimed(der)
		x.introduce(attrs)
		return nil, &refusal{protocol.Unsupported, "content type"}
	case errors.Is(err, cms.ErrAlgorithm):
		if errors.Is(err, cms.ErrMD5) {
			x.odd(protocol.TraitMD5)
		}
		attrs, why := claimed(der)
		x.introduce(attrs)
		return nil, &refusal{protocol.BadAlgorithm, why}
	case err != nil:
		return nil, &refusal{protocol.Unclassified, "message structure"}
	}
	x.digest = signed.Digest
	x.oddSigned(signed)
	return signed, x.introduce(signed.Attributes)
}

// introduce takes from the attributes what the answer and the log have to say.
func (x *exchange) introduce(attrs []cms.Attribute) *refusal {
	m, err := ParseMessage(attrs)
	if err != nil && !errors.Is(err, ErrMessageType) {
		return &refusal{protocol.Unclassified, "SCEP attributes"}
	}
	x.message, x.record.Transaction = m, m.TransactionID
	x.oddMessage(m)
	if err == nil {
		x.record.MessageType = strconv.Itoa(m.Type)
	}
	return nil
}

// admit checks everything that needs no key of ours, the signature first of what
// costs something (RFC 8894, section 3.2).
func (x *exchange) admit(signed *cms.Signed) *refusal {
	if why := x.encryptable(signed.Signer); why != "" {
		return &refusal{protocol.BadAlgorithm, why}
	}
	if !digestAllowed(x.service, signed.Digest) {
		return &refusal{protocol.BadAlgorithm, "digest not allowed"}
	}
	if err := signed.Verify(); err != nil {
		return unproven("signature")
	}
	switch x.message.Type { // 0 if it was no number
	case PKCSReq, RenewalReq, CertPoll, GetCert, GetCRL:
		return nil
	default:
		return &refusal{protocol.Unsupported, "message type"}
	}
}

// submit opens the envelope, and asks the authority if what is in it belongs to
// the signer.
//
// The envelope of a CertPoll stays closed. What it holds is not looked at in any
// case (RFC 8894, section 3.3.3: the transactionID tells which request is meant),
// and nothing binds it to the signer: whoever has a request of their own that is
// pending could poll for it with somebody else's envelope, and learn from the
// answer whether that opens, which is how one reads an envelope octet by octet.
func (x *exchange) submit(ctx context.Context, signed *cms.Signed) (o protocol.Outcome, c cms.Cipher, no *refusal, err error) {
	envelope, no := x.envelope(signed)
	if no != nil {
		return o, 0, x.unopened(no), nil
	}
	c = envelope.Cipher
	ours, err := x.issuedByUs(signed.Signer)
	if err != nil {
		return o, c, nil, err
	}
	if !x.broken.left(x.record.Source) {
		return o, c, nil, errBroken
	}
	recipient, no, err := x.recipient(envelope)
	if no != nil || err != nil {
		return o, c, x.unopened(no), err
	}
	var key []byte
	if x.message.Type != CertPoll {
		if key, err = x.contentKey(ctx, envelope, recipient); err != nil {
			return o, c, nil, err
		}
		if no = x.checkContent(envelope, key, signed.Signer, ours); no != nil {
			x.broken.spend(x.record.Source)
			return o, c, x.unopened(no), nil
		}
	}
	x.done = true // the authority records it
	o, err = x.authority.Submit(ctx, protocol.Request{
		Protocol: "scep", Profile: x.record.Profile, Source: x.record.Source, Arrived: x.arrived,
		Proof: protocol.Proof{
			SignerCert: signed.Signer.Raw, Digest: signed.Digest, SignedAttrs: signed.SignedAttrs,
			Signature: signed.Signature, Envelope: signed.Content, ContentKey: key,
		},
		Client: x.record.Client,
	})
	if x.uniform(o) {
		x.broken.spend(x.record.Source)
	}
	return o, c, nil, err
}

// envelope reads the pkcsPKIEnvelope (RFC 8894, section 3.2.2). Algorithms are
// there for everyone to see, so that they may have an answer of their own.
func (x *exchange) envelope(signed *cms.Signed) (*cms.Envelope, *refusal) {
	der, err := cms.DER(signed.Content, cms.DefaultLimits())
	if err != nil {
		return nil, unproven("envelope encoding")
	}
	envelope, err := cms.ParseEnvelope(der)
	switch {
	case errors.Is(err, cms.ErrAlgorithm):
		if errors.Is(err, cms.ErrDES) {
			x.odd(protocol.TraitDES)
		}
		return nil, &refusal{protocol.BadAlgorithm, "cipher unknown"}
	case err != nil:
		return nil, unproven("envelope structure")
	case envelope.Cipher == cms.DES3CBC:
		x.odd(protocol.TraitDES3)
	}
	if !cipherAllowed(x.service, envelope.Cipher) {
		return nil, &refusal{protocol.BadAlgorithm, "cipher not allowed"}
	}
	return envelope, nil
}

// recipient returns the one recipient that names an RA-decrypt certificate of the
// profile's. What a stranger can get wrong without the key is looked at here: an
// error of the key's is a fault of the token.
func (x *exchange) recipient(e *cms.Envelope) (r cms.Recipient, no *refusal, err error) {
	to, ra, err := x.addressee(e)
	if err != nil {
		return r, nil, err
	}
	if to == nil {
		return r, unproven("recipients"), nil
	}
	pub, ok := ra.PublicKey.(*rsa.PublicKey)
	if !ok {
		return r, nil, errKey
	}
	if _, ok := transport(*to, e.Cipher.KeySize()); !ok {
		return r, &refusal{protocol.BadAlgorithm, "key transport unknown"}, nil
	}
	if to.OAEPHash != 0 {
		x.odd(protocol.TraitOAEP)
	}
	encrypted := to.EncryptedKey
	if len(encrypted) != pub.Size() || new(big.Int).SetBytes(encrypted).Cmp(pub.N) >= 0 {
		return r, unproven("length of the encrypted key"), nil
	}
	return *to, nil, nil
}

// contentKey has the RA-decrypt key open what is encrypted to it.
func (x *exchange) contentKey(ctx context.Context, e *cms.Envelope, r cms.Recipient) ([]byte, error) {
	decrypter, err := x.keys.Decrypter(ctx, x.record.Profile, x.generation.RADecrypt)
	if err != nil {
		return nil, fmt.Errorf("scep: RA-decrypt key: %w", err)
	}
	options, ok := transport(r, e.Cipher.KeySize())
	if !ok {
		return nil, errKey // unreachable: recipient looked at it
	}
	key, err := decrypter.Decrypt(rand.Reader, r.EncryptedKey, options)
	if err != nil {
		return nil, fmt.Errorf("scep: RA-decrypt key: %w", err)
	}
	return key, nil
}

// checkContent opens the envelope with a key that may be a random one. A signer
// that is not named as one of the CA's must have the key of the CSR (RFC 8894,
// section 2.3), unless the profile has it otherwise: else whoever sees an envelope
// could sign it as their own, and get the answer. The signature of the CSR is the authority's to verify.
// Should a parser panic here, that is the same answer: another one would tell
// what the envelope holds.
func (x *exchange) checkContent(e *cms.Envelope, key []byte, signer *cms.Certificate, ours bool) (no *refusal) {
	defer func() {
		if v := recover(); v != nil {
			x.log.Error("scep: panic", zap.String("type", fmt.Sprintf("%T", v)), zap.ByteString("stack", debug.Stack()))
			no = unproven("envelope content")
		}
	}()
	content, err := e.Open(key)
	if err != nil {
		return unproven("envelope content")
	}
	if content, err = cms.DER(content, cms.DefaultLimits()); err != nil {
		return unproven("content encoding")
	}
	if looksUp(x.message.Type) {
		if _, err := ParseIssuerAndSerial(content); err != nil {
			return unproven("content is no issuer and serial number")
		}
		return nil
	}
	csr, err := pkcs10.Parse(content)
	if err != nil {
		return unproven("CSR structure")
	}
	x.challenge = csr.Challenge
	if !x.service.AnySignerKey && !ours && !bytes.Equal(csr.RawSPKI, signer.RawSPKI) {
		return unproven("the CSR's key is not the signer's")
	}
	return nil
}
