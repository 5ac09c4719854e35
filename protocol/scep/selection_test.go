package scep_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/cms"
)

// What clients are known to do with an answer to GetCACert, as functions: each
// returns the certificate to encrypt to and the one that it expects answers from; nil
// is an error of the client's. root is what the client was told to trust.
type selection func(certs []*x509.Certificate, root *x509.Certificate) (encrypt, verify *x509.Certificate)

const (
	signs    = x509.KeyUsageDigitalSignature
	enciph   = x509.KeyUsageKeyEncipherment
	dataEnc  = x509.KeyUsageDataEncipherment
	agentOID = "1.3.6.1.4.1.311.20.2.1"
)

func find(certs []*x509.Certificate, fits func(*x509.Certificate) bool) *x509.Certificate {
	if i := slices.IndexFunc(certs, fits); i >= 0 {
		return certs[i]
	}
	return nil
}

func leafWith(use x509.KeyUsage) func(*x509.Certificate) bool {
	return func(c *x509.Certificate) bool { return !c.IsCA && c.KeyUsage&use != 0 }
}

func isSelfSigned(c *x509.Certificate) bool {
	return c.IsCA && bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(c) == nil
}

// apple takes a CA with digitalSignature for the signer, wants a split RA's usages to
// be disjoint, and fails on two roots in one answer.
func apple(certs []*x509.Certificate, _ *x509.Certificate) (encrypt, verify *x509.Certificate) {
	var roots int
	for _, c := range certs {
		if isSelfSigned(c) {
			roots++
		}
		if c.IsCA && c.KeyUsage&signs != 0 {
			verify = c
		}
	}
	if roots > 1 {
		return nil, nil
	}
	if verify == nil {
		verify = find(certs, leafWith(signs))
	}
	encrypt = find(certs, leafWith(enciph))
	if encrypt != nil && verify != nil && !encrypt.Equal(verify) && encrypt.KeyUsage&verify.KeyUsage != 0 {
		return nil, nil
	}
	return encrypt, verify
}

// windows wants the root by its SHA-1 in the answer, and RA certificates with their
// extended key usage.
func windows(certs []*x509.Certificate, root *x509.Certificate) (encrypt, verify *x509.Certificate) {
	want := sha1.Sum(root.Raw)
	if find(certs, func(c *x509.Certificate) bool { return sha1.Sum(c.Raw) == want }) == nil {
		return nil, nil
	}
	ra := func(use x509.KeyUsage) func(*x509.Certificate) bool {
		return func(c *x509.Certificate) bool {
			agent := slices.ContainsFunc(c.UnknownExtKeyUsage, func(o asn1.ObjectIdentifier) bool { return o.String() == agentOID })
			return leafWith(use)(c) && (agent || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth))
		}
	}
	return find(certs, ra(enciph)), find(certs, ra(signs))
}

// jscep takes the first end entity with keyEncipherment, else dataEncipherment, else
// the CA, and the first with digitalSignature, else the CA; the RA has to be signed
// by a CA that is there.
func jscep(certs []*x509.Certificate, _ *x509.Certificate) (encrypt, verify *x509.Certificate) {
	ca := find(certs, func(c *x509.Certificate) bool { return c.IsCA })
	first := func(uses ...x509.KeyUsage) *x509.Certificate {
		for _, use := range uses {
			if c := find(certs, leafWith(use)); c != nil {
				return c
			}
		}
		return ca
	}
	encrypt, verify = first(enciph, dataEnc), first(signs)
	for _, c := range []*x509.Certificate{encrypt, verify} {
		if find(certs, func(by *x509.Certificate) bool { return by.IsCA && c.CheckSignatureFrom(by) == nil }) == nil {
			return nil, nil
		}
	}
	return encrypt, verify
}

// sscep writes the certificates to files in their order; its user, as its manual
// says, gives it the first with each usage.
func sscep(certs []*x509.Certificate, _ *x509.Certificate) (encrypt, verify *x509.Certificate) {
	return find(certs, leafWith(enciph)), find(certs, leafWith(signs))
}

// strongswan tells the RA's certificates from CAs, wants the root to build the chain,
// and is given the two by the files that it wrote.
func strongswan(certs []*x509.Certificate, _ *x509.Certificate) (encrypt, verify *x509.Certificate) {
	if find(certs, isSelfSigned) == nil {
		return nil, nil
	}
	return find(certs, leafWith(enciph)), find(certs, leafWith(signs))
}

// certmonger takes the first certificate that is no CA's for the RA, encrypts to it
// if its usage allows that, else to the next that does, and takes the CA's for the
// first that is one.
func certmonger(certs []*x509.Certificate, _ *x509.Certificate) (encrypt, verify *x509.Certificate) {
	ra := find(certs, func(c *x509.Certificate) bool { return !c.IsCA })
	if ra == nil || find(certs, func(c *x509.Certificate) bool { return c.IsCA }) == nil {
		return nil, nil
	}
	if ra.KeyUsage&enciph != 0 {
		encrypt = ra
	} else {
		encrypt = find(certs, leafWith(enciph))
	}
	return encrypt, find(certs, leafWith(signs))
}

// Each client's rules, over each form of the answer, as the bytes that are sent: who
// is served, and who not.
//
// Covers: S-036, S-037, S-038
func TestWhoIsServedByEachFormOfTheAnswer(t *testing.T) {
	clients := map[string]selection{"Apple": apple, "Windows": windows, "jscep": jscep, "sscep": sscep, "strongSwan": strongswan, "certmonger": certmonger}
	for _, form := range []struct {
		what            string
		single, caFirst bool
		noRoot, own     bool // own: the CA is its own root
		not             string
	}{
		{what: "as by default"},
		{what: "a CA that is its own root", own: true},
		{what: "the CA first", caFirst: true},
		{what: "without the root", noRoot: true, not: "Windows strongSwan"},
		{what: "the CA first, without the root", caFirst: true, noRoot: true, not: "Windows strongSwan"},
		{what: "without a root that is the CA", noRoot: true, own: true},
		{what: "a single RA", single: true},
		{what: "a single RA, the CA first", single: true, caFirst: true},
		{what: "a single RA without the root", single: true, noRoot: true, not: "Windows strongSwan"},
	} {
		t.Run(form.what, func(t *testing.T) {
			w := newWorld(t)
			g, root := issued(t, w, form.single, form.own)
			w.service.Generations = []protocol.Generation{g}
			w.service.CAFirst, w.service.NoRoot = form.caFirst, form.noRoot
			var certs []*x509.Certificate
			for _, der := range must(cms.ParseCertsOnly(must(cms.DER(w.do(t, "GET", "/scep/wifi?operation=GetCACert", nil).body, cms.DefaultLimits()))(t)))(t) {
				certs = append(certs, must(x509.ParseCertificate(der))(t))
			}
			for name, choose := range clients {
				encrypt, verify := choose(certs, root)
				served := encrypt != nil && verify != nil && bytes.Equal(encrypt.Raw, g.RADecrypt) && bytes.Equal(verify.Raw, g.RASign)
				if want := !slices.Contains(strings.Fields(form.not), name); served != want {
					t.Errorf("%s is served: %v, want %v", name, served, want)
				}
			}
		})
	}
}

// issued is a generation with the usages that the ceremony's plans give, and its root.
func issued(t *testing.T, w *world, single, own bool) (g protocol.Generation, root *x509.Certificate) {
	t.Helper()
	agent := []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 311, 20, 2, 1}}
	serial := int64(0)
	certificate := func(name string, pub crypto.PublicKey, by *x509.Certificate, key crypto.Signer, usage x509.KeyUsage, ca bool) *x509.Certificate {
		serial++
		c := &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			KeyUsage: usage, IsCA: ca, BasicConstraintsValid: true,
		}
		if !ca {
			c.UnknownExtKeyUsage = agent
		}
		if by == nil {
			by = c
		}
		return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, c, by, pub, key))(t)))(t)
	}
	caUse := x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	rootKey, caKey := ecKey(t), w.ca.key
	root = certificate("root", rootKey.Public(), nil, rootKey, caUse, true)
	ca := certificate("ca", caKey.Public(), root, rootKey, caUse, true)
	g.Chain = [][]byte{root.Raw}
	if own {
		ca = certificate("ca", caKey.Public(), nil, caKey, caUse, true)
		root, g.Chain = ca, nil
	}
	g.Name, g.CA = "first", ca.Raw
	if single {
		g.RASign = certificate("ra", w.raSign.key.Public(), ca, caKey, signs|enciph, false).Raw
		g.RADecrypt = g.RASign
		return g, root
	}
	g.RASign = certificate("ra sign", w.raSign.key.Public(), ca, caKey, signs, false).Raw
	g.RADecrypt = certificate("ra decrypt", w.raDecrypt.key.Public(), ca, caKey, enciph, false).Raw
	return g, root
}
