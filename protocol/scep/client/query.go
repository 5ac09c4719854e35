package client

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
)

// Pending is what it takes to ask again for a certificate that the CA had not
// decided on. Who keeps it can go on after a restart; SignerKey is a secret.
type Pending struct {
	TransactionID string
	Signer        []byte // DER; the request's signer
	SignerKey     *rsa.PrivateKey
	PublicKey     []byte // SubjectPublicKeyInfo of the CSR
	Subject       []byte // DER of the CSR's Name
}

// Poll asks once what became of a request (RFC 8894, section 3.3.3). It is signed
// with the request's own key, and answered as [Client.Enroll] is: also by another
// [PendingError].
func (c *Client) Poll(ctx context.Context, p *Pending) (*Result, error) {
	if p == nil || p.TransactionID == "" || p.SignerKey == nil || len(p.Signer) == 0 {
		return nil, fmt.Errorf("%w: a poll needs the transaction and the signer of the request", ErrRequest)
	}
	ca, err := c.CACert(ctx)
	if err != nil {
		return nil, err
	}
	content, err := IssuerAndSubject(ca.CA.RawSubject, p.Subject)
	if err != nil {
		return nil, err
	}
	return c.certificate(ctx, ca, request{scep.CertPoll, p.TransactionID, p.Signer, p.SignerKey, content, p.PublicKey, p.Subject})
}

// IssuerAndSubject makes the messageData of a CertPoll (RFC 8894, section 3.3.3)
// from two Names in DER.
func IssuerAndSubject(issuer, subject []byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(issuer)
		b.AddBytes(subject)
	})
	return b.Bytes()
}

// IssuerAndSerial makes the messageData of a GetCert and a GetCRL (RFC 8894,
// section 3.3.4) from a Name in DER and a serial number.
func IssuerAndSerial(issuer []byte, serial *big.Int) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(issuer)
		b.AddASN1BigInt(serial)
	})
	return b.Bytes()
}

// An Identity signs a question, and the answer is enciphered to it. Without one
// the question is signed by a key that is made for it.
type Identity struct {
	Certificate []byte // DER
	Key         *rsa.PrivateKey
}

// identity makes sure that there is one.
func (c *Client) identity(i Identity) (Identity, error) {
	if i.Key != nil && len(i.Certificate) > 0 {
		return i, nil
	}
	key, err := rsa.GenerateKey(c.random(), 2048)
	if err != nil {
		return i, fmt.Errorf("scep client: making a key: %w", err)
	}
	name, err := asn1.Marshal(pkix.Name{CommonName: "SCEP query"}.ToRDNSequence())
	if err != nil {
		return i, err
	}
	signer, err := c.selfSigned(key, name)
	return Identity{signer, key}, err
}

// query sends a GetCert or a GetCRL, and returns what the verified answer holds.
func (c *Client) query(ctx context.Context, ca *CA, kind int, as Identity, serial *big.Int) ([]byte, error) {
	if serial == nil || serial.BitLen() > 8*32 {
		return nil, fmt.Errorf("%w: no serial number", ErrRequest)
	}
	as, err := c.identity(as)
	if err != nil {
		return nil, err
	}
	content, err := IssuerAndSerial(ca.CA.RawSubject, serial)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	id, err := c.transaction()
	if err != nil {
		return nil, err
	}
	r := request{kind: kind, id: id, signer: as.Certificate, key: as.Key, content: content}
	reply, e, err := c.ask(ctx, ca, r)
	if err != nil {
		return nil, err
	}
	got, err := OpenContent(reply, e)
	if _, pending := isPending(err); pending {
		return nil, fmt.Errorf("%w: PENDING is no answer to a question", ErrReply) // RFC 8894, section 4.5.1
	}
	return got, err
}

// Certificate asks for the certificate of a serial number (RFC 8894, section
// 4.5): one that the CA signed.
func (c *Client) Certificate(ctx context.Context, as Identity, serial *big.Int) (*x509.Certificate, error) {
	ca, err := c.CACert(ctx)
	if err != nil {
		return nil, err
	}
	content, err := c.query(ctx, ca, scep.GetCert, as, serial)
	if err != nil {
		return nil, err
	}
	certs, err := issuedCertificates(content)
	if err != nil {
		return nil, err
	}
	for _, cert := range certs {
		if cert.SerialNumber.Cmp(serial) != 0 || !bytes.Equal(cert.RawIssuer, ca.CA.RawSubject) {
			continue
		}
		if !issued(ca.CA, cert) {
			return nil, fmt.Errorf("%w: the CA did not sign it", ErrCertificate)
		}
		return cert, nil
	}
	return nil, fmt.Errorf("%w: none of %d has that serial number", ErrCertificate, len(certs))
}

// CRL asks for the CRL that would name a serial number (RFC 8894, section 4.6):
// a current one, that the CA signed.
func (c *Client) CRL(ctx context.Context, as Identity, serial *big.Int) (*x509.RevocationList, error) {
	ca, err := c.CACert(ctx)
	if err != nil {
		return nil, err
	}
	content, err := c.query(ctx, ca, scep.GetCRL, as, serial)
	if err != nil {
		return nil, err
	}
	return OpenCRL(content, ca.CA, time.Now())
}

// OpenCRL reads the degenerate SignedData of a GetCRL's answer, which holds
// exactly one CRL and no certificate (RFC 8894, section 3.3.2.1), and verifies the
// CRL: the CA signed it, it is complete, and it is current at now. Any error is
// [ErrCRL].
func OpenCRL(ber []byte, ca *x509.Certificate, now time.Time) (*x509.RevocationList, error) {
	raw, err := parseCRL(ber)
	if err != nil {
		return nil, err
	}
	crl, err := x509.ParseRevocationList(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCRL, err)
	}
	if !bytes.Equal(crl.RawIssuer, ca.RawSubject) {
		return nil, fmt.Errorf("%w: it is of another issuer", ErrCRL)
	}
	if err := crl.CheckSignatureFrom(ca); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCRL, err)
	}
	for _, e := range crl.Extensions {
		if e.Critical { // of a delta, or of a part: it does not say who is not revoked
			return nil, fmt.Errorf("%w: it has the critical extension %v", ErrCRL, e.Id)
		}
	}
	switch {
	case crl.ThisUpdate.After(now.Add(clockSkew)):
		return nil, fmt.Errorf("%w: it begins at %s", ErrCRL, crl.ThisUpdate.Format(time.RFC3339))
	case crl.NextUpdate.IsZero():
		return nil, fmt.Errorf("%w: it does not say when the next one comes", ErrCRL)
	case now.After(crl.NextUpdate):
		return nil, fmt.Errorf("%w: it ended at %s", ErrCRL, crl.NextUpdate.Format(time.RFC3339))
	}
	return crl, nil
}

// maxCRLElements is as many as a CRL of maxCRL octets has.
const maxCRLElements = 1 << 18

// parseCRL returns the one CRL of a degenerate SignedData, unparsed (RFC 5652,
// section 5.1).
func parseCRL(ber []byte) ([]byte, error) {
	no := func(what string) ([]byte, error) { return nil, fmt.Errorf("%w: %s", ErrCRL, what) }
	der, err := cms.DER(ber, cms.Limits{Bytes: maxCRL, Elements: maxCRLElements})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCRL, err)
	}
	const tag0, tag1 = cbasn1.Tag(0xa0), cbasn1.Tag(0xa1)
	in := cryptobyte.String(der)
	var info, explicit, body, digests, content, crls, crl, signers cryptobyte.String
	var kind asn1.ObjectIdentifier
	var version int
	if !in.ReadASN1(&info, cbasn1.SEQUENCE) || !info.ReadASN1ObjectIdentifier(&kind) || !kind.Equal(oidSignedData) ||
		!info.ReadASN1(&explicit, tag0) || !info.Empty() || !explicit.ReadASN1(&body, cbasn1.SEQUENCE) || !explicit.Empty() ||
		!body.ReadASN1Integer(&version) || !body.ReadASN1(&digests, cbasn1.SET) || !body.ReadASN1(&content, cbasn1.SEQUENCE) {
		return no("no SignedData")
	}
	if !content.ReadASN1ObjectIdentifier(&kind) || !content.Empty() {
		return no("it has a content")
	}
	var certificates cryptobyte.String
	if body.ReadOptionalASN1(&certificates, nil, tag0); !certificates.Empty() {
		return no("a certificate is beside it")
	}
	if !body.ReadASN1(&crls, tag1) || !crls.ReadASN1Element(&crl, cbasn1.SEQUENCE) {
		return no("there is none")
	}
	if !crls.Empty() {
		return no("there are several")
	}
	if !body.ReadASN1(&signers, cbasn1.SET) || !signers.Empty() || !body.Empty() {
		return no("it has a signer of its own")
	}
	return crl, nil
}

var oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}

// transaction makes an id of its own.
func (c *Client) transaction() (string, error) {
	id, err := Nonce(c.random())
	return fmt.Sprintf("%x", id), err
}
