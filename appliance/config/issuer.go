package config

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"time"
)

// maxGenerations bounds the generations of an issuer: each is looked at for every
// request.
const maxGenerations = 8

// firstGeneration is what the generation in the issuer itself is called by default.
const firstGeneration = "first"

var generationForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// issuer reads an issuer's generations, and checks that each fits together and that
// they can be told apart.
func (l *loader) issuer(n int) {
	in, at := l.c.File.Issuers[n], fmt.Sprintf("issuers[%d]", n)
	l.need(at+".name", in.Name)
	for _, other := range l.c.File.Issuers[:n] {
		if other.Name == in.Name {
			l.fault(at+".name", "is given twice", "")
		}
	}
	validity := l.duration(at+".max_validity", in.MaxValidity, 3660*24*time.Hour, time.Hour, 3660*24*time.Hour)
	first := len(l.c.Issuers)
	inline := !reflect.ValueOf(in.Certified).IsZero()
	if inline || len(in.Generations) == 0 {
		name := in.Generation
		if name == "" {
			name = firstGeneration
		}
		l.ca(at, in, in.Certified, LoadedIssuer{Name: in.Name, Of: in.Name, Generation: name, MaxValidity: validity})
	} else if in.Generation != "" {
		l.fault(at+".generation", "names the generation in the issuer itself, and there is none", "")
	}
	for i, g := range in.Generations {
		path := fmt.Sprintf("%s.generations[%d]", at, i)
		l.need(path+".name", g.Name)
		l.ca(path, in, g.Certified, LoadedIssuer{Name: in.Name + "." + g.Name, Of: in.Name, Generation: g.Name, MaxValidity: validity})
	}
	all := l.c.Issuers[first:]
	for _, c := range all {
		if slices.ContainsFunc(l.c.Issuers[:first], func(other LoadedIssuer) bool { return c.Name == other.Name }) {
			l.fault(at+".generations", fmt.Sprintf("the CA's name would be %q, which another issuer has", c.Name), "")
		}
	}
	if len(all) > maxGenerations {
		l.fault(at+".generations", fmt.Sprintf("are more than %d: take out those whose last certificate has ended", maxGenerations), "")
	}
	l.apart(at, all)
}

// apart checks that a name, a recipient and a certificate's issuer each say which
// generation is meant.
func (l *loader) apart(at string, all []LoadedIssuer) {
	for i, g := range all {
		if !generationForm.MatchString(g.Generation) {
			l.fault(at+".generations", fmt.Sprintf("%q is no name of a generation: lower-case letters, digits, dots, dashes and _", g.Generation), "")
		}
		for _, other := range all[:i] {
			if o := g.Keys.OCSP.Key; o != "" && o == other.Keys.OCSP.Key {
				l.fault(at+".generations", fmt.Sprintf("%s and %s have one OCSP key: a CA has a key of its own", other.Generation, g.Generation), "")
			}
			if g.Generation == other.Generation {
				l.fault(at+".generations", fmt.Sprintf("%q is given twice", g.Generation), "")
			}
			if g.Keys.CA.Key != "" && g.Keys.CA.Key == other.Keys.CA.Key {
				l.fault(at+".generations", fmt.Sprintf("%s and %s have one CA key: a next CA has a key of its own", other.Generation, g.Generation), "")
			}
			if g.Keys.RADecrypt.Key != "" && g.Keys.RADecrypt.Key == other.Keys.RADecrypt.Key {
				l.fault(at+".generations", fmt.Sprintf("%s and %s have one RA key: a request would be for both", other.Generation, g.Generation), "")
			}
		}
	}
}

// ca reads one CA and checks that its certificates belong together.
func (l *loader) ca(at string, of Issuer, in Certified, out LoadedIssuer) {
	l.use(at+".ca.key", in.CA.Key, "ca")
	sign, decrypt := "ra-sign", "ra-decrypt"
	if in.SingleRA() {
		sign, decrypt = "ra", "ra"
	}
	l.use(at+".ra_sign.key", in.RASign.Key, sign)
	l.use(at+".ra_decrypt.key", in.RADecrypt.Key, decrypt)
	out.Keys = in
	out.CA = l.certificate(at+".ca.certificate", in.CA.Certificate)
	out.RASign = l.certificate(at+".ra_sign.certificate", in.RASign.Certificate)
	out.RADecrypt = l.certificate(at+".ra_decrypt.certificate", in.RADecrypt.Certificate)
	for i, file := range in.Chain {
		if c := l.certificate(fmt.Sprintf("%s.chain[%d]", at, i), file); c != nil {
			out.Chain = append(out.Chain, c)
		}
	}
	if out.CA != nil && out.RASign != nil && out.RADecrypt != nil {
		l.generation(at, out)
	}
	out.Status = l.status(at, out, of.CRL)
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
