package cms

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"

	"github.com/smallstep/pkcs7"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// SignOptions say what [Sign] makes.
type SignOptions struct {
	Certificate []byte        // the signer's, DER; it stands first in the message
	Chain       [][]byte      // further certificates, DER; their order is kept
	Key         crypto.Signer // RSA or ECDSA; must be the certificate's
	Digest      crypto.Hash   // SHA-1, SHA-256, SHA-384 or SHA-512
	Attributes  []Attribute   // beside contentType, messageDigest and signingTime, which are added
	Content     []byte        // nil leaves eContent out, as RFC 8894, section 3.3.2.2 wants for FAILURE and PENDING
}

// Sign makes a SignedData with one signer, a ContentInfo in DER but for the order
// of the certificates, which is as given: clients take the first for the
// signer's. The key signs once. With an RSA key the SignerInfo says
// rsaEncryption, the name that every client knows (RFC 3370, section 3.2).
func Sign(o SignOptions) ([]byte, error) {
	cert, err := o.check()
	if err != nil {
		return nil, err
	}
	h, ok := findHash(func(a hashAlgorithm) bool { return a.hash == o.Digest })
	if !ok || o.Digest == crypto.SHA224 {
		return nil, fmt.Errorf("%w: signing with %v", ErrAlgorithm, o.Digest)
	}
	data, err := pkcs7.NewSignedData(o.Content)
	if err != nil {
		return nil, fmt.Errorf("cms: signing: %w", err)
	}
	data.SetDigestAlgorithm(h.digest)
	var config pkcs7.SignerInfoConfig
	for _, a := range o.Attributes {
		config.ExtraSignedAttributes = append(config.ExtraSignedAttributes, pkcs7.Attribute{Type: a.Type, Value: asn1.RawValue{FullBytes: a.Value}})
	}
	if err := data.AddSigner(cert, o.Key, config); err != nil {
		return nil, fmt.Errorf("cms: signing: %w", err)
	}
	if _, ok := o.Key.Public().(*rsa.PublicKey); ok {
		// AddSigner pays no heed to SetEncryptionAlgorithm: it names the digest too.
		data.GetSignedData().SignerInfos[0].DigestEncryptionAlgorithm = pkix.AlgorithmIdentifier{Algorithm: OIDRSAEncryption, Parameters: asn1.NullRawValue}
	}
	for _, der := range o.Chain {
		data.AddCertificate(&x509.Certificate{Raw: der})
	}
	if o.Content == nil {
		data.Detach()
	}
	out, err := data.Finish()
	if err != nil {
		return nil, fmt.Errorf("cms: signing: %w", err)
	}
	return out, nil
}

// check returns the signer's certificate with the fields that AddSigner reads.
// It need not be one that crypto/x509 accepts.
func (o SignOptions) check() (*x509.Certificate, error) {
	if o.Key == nil {
		return nil, fmt.Errorf("%w: no key to sign with", ErrAlgorithm)
	}
	c, err := ParseCertificate(o.Certificate)
	if err != nil {
		return nil, fmt.Errorf("signer's certificate: %w", err)
	}
	pub, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(o.Key.Public()) {
		return nil, fmt.Errorf("%w: the key is not the certificate's", ErrAlgorithm)
	}
	serial, err := serialOf(c)
	if err != nil {
		return nil, err
	}
	seen := []asn1.ObjectIdentifier{oidContentType, oidMessageDigest, oidSigningTime}
	for _, a := range o.Attributes {
		if slices.ContainsFunc(seen, a.Type.Equal) {
			return nil, fmt.Errorf("%w: attribute %v twice", ErrMalformed, a.Type)
		}
		seen = append(seen, a.Type)
		if err := oneElement(a.Value); err != nil {
			return nil, fmt.Errorf("attribute %v: %w", a.Type, err)
		}
	}
	for _, der := range o.Chain {
		if err := oneElement(der); err != nil {
			return nil, fmt.Errorf("chain: %w", err)
		}
	}
	return &x509.Certificate{Raw: c.Raw, RawIssuer: c.RawIssuer, SerialNumber: serial}, nil
}

func serialOf(c *Certificate) (*big.Int, error) {
	serial := new(big.Int)
	element := cryptobyte.String(appendHeader(nil, byte(cbasn1.INTEGER), len(c.RawSerial)))
	element = append(element, c.RawSerial...)
	if !element.ReadASN1Integer(serial) {
		return nil, malformed("serial number of the signer")
	}
	return serial, nil
}

// oneElement checks that der is one element and nothing else.
func oneElement(der []byte) error {
	in := cryptobyte.String(der)
	var element cryptobyte.String
	var tag cbasn1.Tag
	if !in.ReadAnyASN1Element(&element, &tag) {
		return malformed("element")
	}
	if !in.Empty() {
		return trailing("element")
	}
	return nil
}

// CertsOnly makes a degenerate SignedData, which has only certificates (RFC 8894,
// section 3.4), in the order given: RFC 5652 makes them a SET OF, which DER would
// sort, but clients take the first for the one that was issued.
func CertsOnly(certs [][]byte) ([]byte, error) {
	if len(certs) == 0 || len(certs) > maxCertificates {
		return nil, fmt.Errorf("%w: %d certificates", ErrTooMany, len(certs))
	}
	for _, der := range certs {
		if err := oneElement(der); err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
	}
	out, err := pkcs7.DegenerateCertificate(slices.Concat(certs...))
	if err != nil {
		return nil, fmt.Errorf("cms: writing certificates: %w", err)
	}
	return out, nil
}

// ParseCertsOnly returns the certificates of a degenerate SignedData in their
// order, unparsed. One with a signer is refused.
func ParseCertsOnly(der []byte) ([][]byte, error) {
	d, err := readSignedData(der)
	if err != nil {
		return nil, err
	}
	if !d.signers.Empty() {
		return nil, malformed("certificates with a signer")
	}
	return d.certificates, nil
}
