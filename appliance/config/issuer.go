package config

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"time"
)

// issuer reads an issuer's certificates and checks that they belong together.
func (l *loader) issuer(n int) {
	in, at := l.c.File.Issuers[n], fmt.Sprintf("issuers[%d]", n)
	l.need(at+".name", in.Name)
	for _, other := range l.c.File.Issuers[:n] {
		if other.Name == in.Name {
			l.fault(at+".name", "is given twice", "")
		}
	}
	l.use(at+".ca.key", in.CA.Key, "ca")
	sign, decrypt := "ra-sign", "ra-decrypt"
	if in.SingleRA() {
		sign, decrypt = "ra", "ra"
	}
	l.use(at+".ra_sign.key", in.RASign.Key, sign)
	l.use(at+".ra_decrypt.key", in.RADecrypt.Key, decrypt)
	out := LoadedIssuer{
		Issuer:      in,
		CA:          l.certificate(at+".ca.certificate", in.CA.Certificate),
		RASign:      l.certificate(at+".ra_sign.certificate", in.RASign.Certificate),
		RADecrypt:   l.certificate(at+".ra_decrypt.certificate", in.RADecrypt.Certificate),
		MaxValidity: l.duration(at+".max_validity", in.MaxValidity, 3660*24*time.Hour, time.Hour, 3660*24*time.Hour),
	}
	for i, file := range in.Chain {
		if c := l.certificate(fmt.Sprintf("%s.chain[%d]", at, i), file); c != nil {
			out.Chain = append(out.Chain, c)
		}
	}
	if out.CA != nil && out.RASign != nil && out.RADecrypt != nil {
		l.generation(at, out)
	}
	out.Status = l.status(at, out)
	l.c.Issuers = append(l.c.Issuers, out)
}

// generation checks one CA, its RA certificates and what stands above it.
func (l *loader) generation(at string, i LoadedIssuer) {
	if !i.CA.IsCA || i.CA.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
		l.fault(at+".ca.certificate", "a CA's key usage is keyCertSign and cRLSign alone", "")
	}
	signs, opens := x509.KeyUsageDigitalSignature, x509.KeyUsageKeyEncipherment
	signWord, openWord := "digitalSignature alone", "keyEncipherment alone"
	if i.SingleRA() {
		signs |= opens
		opens = signs
		signWord, openWord = "digitalSignature and keyEncipherment", "digitalSignature and keyEncipherment"
		if !i.RASign.Equal(i.RADecrypt) {
			l.fault(at+".ra_decrypt.certificate", "has to be that of ra_sign: one key has one certificate", "")
		}
	}
	for path, ra := range map[string]struct {
		cert  *x509.Certificate
		usage x509.KeyUsage
		name  string
	}{
		at + ".ra_sign.certificate":    {i.RASign, signs, signWord},
		at + ".ra_decrypt.certificate": {i.RADecrypt, opens, openWord},
	} {
		if ra.cert.KeyUsage != ra.usage {
			l.fault(path, "its key usage has to be "+ra.name, "")
		}
		if !isRA(ra.cert) {
			l.fault(path, "its extended key usage has to be Certificate Request Agent (1.3.6.1.4.1.311.20.2.1) or serverAuth: devices tell an RA by it", "")
		}
		if err := ra.cert.CheckSignatureFrom(i.CA); err != nil {
			l.fault(path, "was not issued by the issuer's CA", "")
		}
	}
	below := i.CA
	for n, above := range i.Chain {
		if err := below.CheckSignatureFrom(above); err != nil {
			l.fault(fmt.Sprintf("%s.chain[%d]", at, n), "did not issue the certificate before it", "")
		}
		below = above
	}
	if err := below.CheckSignatureFrom(below); err != nil {
		l.fault(at+".chain", "does not end in a root: devices are given the whole chain", "")
	}
}

// isRA reports whether a certificate has the extended key usages of an RA, and no
// other.
func isRA(c *x509.Certificate) bool {
	agent := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 1}
	for _, u := range c.ExtKeyUsage {
		if u != x509.ExtKeyUsageServerAuth {
			return false
		}
	}
	for _, u := range c.UnknownExtKeyUsage {
		if !u.Equal(agent) {
			return false
		}
	}
	return len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0
}

// vouchedFor reports whether who trusts root would believe the issuer's devices:
// root has the key of the CA or of one above it, whatever its certificate says, or
// it signed one of them.
func (i LoadedIssuer) vouchedFor(root *x509.Certificate) bool {
	for _, c := range append([]*x509.Certificate{i.CA}, i.Chain...) {
		if c == nil {
			continue // a fault of its own
		}
		if bytes.Equal(c.RawSubjectPublicKeyInfo, root.RawSubjectPublicKeyInfo) || c.CheckSignatureFrom(root) == nil {
			return true
		}
	}
	return false
}
