package client

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
)

// An Enrollment asks for a first certificate.
type Enrollment struct {
	Key        *rsa.PrivateKey
	Subject    pkix.Name
	RawSubject []byte // DER of a Name; if set, Subject is not looked at
	DNSNames   []string
	Challenge  []byte // nil for none
}

// Enroll asks with a PKCSReq, signed by a self-signed certificate of the same
// key. The transactionID is that of the key, so that a server can recognize a
// request that is sent again.
func (c *Client) Enroll(ctx context.Context, e Enrollment) (*Result, error) {
	spki, err := publicKey(e.Key)
	if err != nil {
		return nil, err
	}
	r := CSR{e.Subject, e.RawSubject, e.DNSNames, e.Challenge}
	csr, err := newCSR(c.random(), e.Key, r)
	if err != nil {
		return nil, err
	}
	subject, err := r.rawSubject()
	if err != nil {
		return nil, err
	}
	signer, err := c.selfSigned(e.Key, subject)
	if err != nil {
		return nil, err
	}
	ca, err := c.CACert(ctx)
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256(spki)
	return c.certificate(ctx, ca, request{scep.PKCSReq, hex.EncodeToString(id[:]), signer, e.Key, csr, spki, subject})
}

// selfSignedLife is as long as somebody may take to decide: polls are signed with
// the same certificate.
const selfSignedLife = 90 * 24 * time.Hour

// selfSigned makes the certificate by which a PKCSReq is signed (RFC 8894,
// section 2.3).
func (c *Client) selfSigned(key *rsa.PrivateKey, subject []byte) ([]byte, error) {
	random, err := Nonce(c.random())
	if err != nil {
		return nil, err
	}
	random[0] = random[0]&0x7f | 0x40 // positive, of 16 octets
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(random), RawSubject: subject, SignatureAlgorithm: x509.SHA256WithRSA,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(selfSignedLife),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
	}
	der, err := x509.CreateCertificate(c.random(), template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("%w: self-signed certificate: %w", ErrRequest, err)
	}
	return der, nil
}

// A Renewal asks for the successor of a certificate. NewKey may be OldKey.
// Without a subject and without names it asks for the old certificate's.
type Renewal struct {
	OldCert    *x509.Certificate
	OldKey     *rsa.PrivateKey
	NewKey     *rsa.PrivateKey
	Subject    pkix.Name
	RawSubject []byte // DER of a Name; if set, Subject is not looked at
	DNSNames   []string
}

// Renew asks with a RenewalReq, signed by the old certificate.
func (c *Client) Renew(ctx context.Context, r Renewal) (*Result, error) {
	spki, err := publicKey(r.NewKey)
	if err != nil {
		return nil, err
	}
	if r.OldCert == nil || r.OldKey == nil || !r.OldKey.PublicKey.Equal(r.OldCert.PublicKey) {
		return nil, fmt.Errorf("%w: a renewal needs the old certificate and its key", ErrRequest)
	}
	o := CSR{Subject: r.Subject, RawSubject: r.RawSubject, DNSNames: r.DNSNames}
	if len(o.RawSubject) == 0 && len(o.Subject.ToRDNSequence()) == 0 {
		o.RawSubject = r.OldCert.RawSubject
		if len(o.DNSNames) == 0 {
			o.DNSNames = r.OldCert.DNSNames
		}
	}
	csr, err := newCSR(c.random(), r.NewKey, o)
	if err != nil {
		return nil, err
	}
	id, err := c.transaction()
	if err != nil {
		return nil, err
	}
	subject, err := o.rawSubject()
	if err != nil {
		return nil, err
	}
	ca, err := c.CACert(ctx)
	if err != nil {
		return nil, err
	}
	return c.certificate(ctx, ca, request{scep.RenewalReq, id, r.OldCert.Raw, r.OldKey, csr, spki, subject})
}

// A request is a message of a device. spki and subject are those of the
// certificate that it asks for, if it asks for one.
type request struct {
	kind          int
	id            string
	signer        []byte
	key           *rsa.PrivateKey
	content       []byte
	spki, subject []byte
}

// ask sends a request to a CA that was verified, and returns the reply and what it
// has to match.
func (c *Client) ask(ctx context.Context, ca *CA, r request) (*Reply, Expectations, error) {
	e := Expectations{
		CA: ca, TransactionID: r.id, Signer: r.signer, SignerKey: r.key, PublicKey: r.spki, Seen: &c.seen,
		LegacySHA1: c.digest() == crypto.SHA1, LegacyDES3: c.cipher() == cms.DES3CBC,
	}
	var err error
	if e.SenderNonce, err = Nonce(c.random()); err != nil {
		return nil, e, err
	}
	der, err := BuildRequest(Message{
		Type: r.kind, TransactionID: r.id, SenderNonce: e.SenderNonce, Signer: r.signer, SignerKey: r.key,
		Recipient: ca.RADecrypt.Raw, CSR: r.content, Cipher: c.cipher(), Digest: c.digest(), Rand: c.random(),
	})
	if err != nil {
		return nil, e, err
	}
	limit := maxAnswer
	if r.kind == scep.GetCRL {
		limit = maxCRL
	}
	reply, err := c.send(ctx, der, limit)
	return reply, e, err
}

// certificate asks for a certificate. What is pending can be asked for again.
func (c *Client) certificate(ctx context.Context, ca *CA, r request) (*Result, error) {
	reply, e, err := c.ask(ctx, ca, r)
	if err != nil {
		return nil, err
	}
	result, err := Open(reply, e)
	if p, ok := isPending(err); ok {
		p.Pending = &Pending{r.id, r.signer, r.key, r.spki, r.subject}
	}
	return result, err
}

func isPending(err error) (*PendingError, bool) { return errors.AsType[*PendingError](err) }
