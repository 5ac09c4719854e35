package pipeline_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// A cell is one stimulus of the table of failInfo values (RFC 8894, section
// 3.2.1.4), and the value that is for it.
type cell struct {
	what     string
	failInfo int
	message  func(*client.Message)
	envelope func([]byte) []byte
	octets   func([]byte) []byte
}

func named(oid ...byte) []byte { return append([]byte{6, byte(len(oid))}, oid...) }

// cells are one stimulus, or more, for each place in which a code is chosen.
func cells(t *testing.T, d *site.Device) []cell {
	t.Helper()
	aes := named(0x60, 0x86, 0x48, 1, 0x65, 3, 4, 1, 2)
	replace := func(from, to []byte) func([]byte) []byte {
		return func(b []byte) []byte { return bytes.ReplaceAll(b, from, to) }
	}
	weak, ec := must(rsa.GenerateKey(rand.Reader, 1024))(t), must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	own, spent := enrolled(t, d, "many", "cells.demo.example", keys[1])
	ours := func(csr []byte) func(*client.Message) {
		return func(m *client.Message) {
			m.Type, m.Signer, m.SignerKey, m.CSR = scep.RenewalReq, own.Raw, keys[1], csr
		}
	}
	as := func(key crypto.Signer, csr []byte, kind int) func(*client.Message) {
		return func(m *client.Message) {
			m.Type = kind
			m.SignerKey, m.CSR = key, csr
			m.Signer = must(site.SelfSigned(key, name("device"), time.Now(), time.Now().Add(time.Hour)))(t)
		}
	}
	request := func(word, cn string) func(*client.Message) {
		return func(m *client.Message) { m.CSR = ask(t, keys[0], cn, word) }
	}
	return []cell{
		{what: "SHA-1", failInfo: scep.BadAlg, message: func(m *client.Message) { m.Digest = crypto.SHA1 }},
		{what: "MD5", failInfo: scep.BadAlg, octets: replace(named(0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1), []byte{6, 0x81, 8, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 2, 5})},
		{what: "a digest that nobody knows", failInfo: scep.BadAlg, octets: replace(named(0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1), named(0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 0x7f))},
		{what: "triple DES", failInfo: scep.BadAlg, message: func(m *client.Message) { m.Cipher = cms.DES3CBC }},
		{what: "a cipher that nobody knows", failInfo: scep.BadAlg, envelope: replace(aes, named(0x60, 0x86, 0x48, 1, 0x65, 3, 4, 1, 0x7e))},
		{what: "a signer that cannot decrypt", failInfo: scep.BadAlg, message: as(ec, must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: name("x.demo.example")}, ec))(t), scep.PKCSReq)},
		{what: "a renewal to a key that the profile has not", failInfo: scep.BadAlg, message: ours(must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: name("cells.demo.example")}, ec))(t))},

		{what: "a signature that is broken", failInfo: scep.BadMessageCheck, octets: func(b []byte) []byte { b[len(b)-1] ^= 1; return b }},
		{what: "an envelope that is none", failInfo: scep.BadMessageCheck, envelope: func([]byte) []byte { return []byte("hello") }},
		{what: "a CSR whose signature is broken", failInfo: scep.BadMessageCheck, message: func(m *client.Message) { m.CSR = resigned(t, m.CSR, keys[8]) }},
		{what: "a CSR of another key", failInfo: scep.BadMessageCheck, message: func(m *client.Message) { m.CSR = ask(t, keys[8], "x.demo.example", "") }},

		{what: "no challenge", failInfo: scep.BadRequest, message: request("", "x.demo.example")},
		{what: "an unknown challenge", failInfo: scep.BadRequest, message: request("unknown", "x.demo.example")},
		{what: "a spent challenge", failInfo: scep.BadRequest, message: request(spent.Challenge, "cells.demo.example")},
		{what: "a name that the policy refuses", failInfo: scep.BadRequest, message: request(challenge(t, "many", "x.demo.example").Challenge, "x.other.example")},
		{what: "a short key", failInfo: scep.BadRequest, message: as(weak, ask(t, weak, "x.demo.example", ""), scep.PKCSReq)},
		{what: "a type that is not served", failInfo: scep.BadRequest, message: func(m *client.Message) { m.Type = 18 }},
		{what: "a poll for what nobody asked for", failInfo: scep.BadCertID, message: as(keys[0], must(asn1.Marshal(struct{ Issuer, Subject asn1.RawValue }{asn1.RawValue{FullBytes: own.RawIssuer}, asn1.RawValue{FullBytes: own.RawSubject}}))(t), scep.CertPoll)},
		{what: "a certificate that was never issued", failInfo: scep.BadCertID, message: as(keys[0], must(asn1.Marshal(struct {
			Issuer asn1.RawValue
			Serial *big.Int
		}{asn1.RawValue{FullBytes: own.RawIssuer}, asSerial("never issued")}))(t), scep.GetCert)},
		{what: "a renewal by a stranger", failInfo: scep.BadRequest, message: func(m *client.Message) { m.Type = scep.RenewalReq }},
	}
}

// TestFailInfoTable has one stimulus, at least, for each place in which a failInfo is
// chosen. What the answer says is that value and no other, in a FAILURE without
// content; and what may be sent at all are the five values of the RFC.
// Covers: F-0, F-1, F-2, F-4, F-5, S-065, S-130, S-014
func TestFailInfoTable(t *testing.T) {
	d := at(t, "many")
	for _, c := range cells(t, d) {
		t.Run(c.what, func(t *testing.T) {
			m := selfSigned(t, keys[0], ask(t, keys[0], "x.demo.example", ""))
			if c.message != nil {
				c.message(&m)
			}
			r := must(d.Request(m))(t)
			if c.envelope != nil {
				forge(t, m, r, c.envelope)
			}
			if c.octets != nil {
				r.DER = c.octets(bytes.Clone(r.DER))
			}
			rep := must(client.Inspect(must(d.Post(t.Context(), r.DER))(t)))(t)
			if rep.Status != scep.StatusFailure || rep.FailInfo != c.failInfo || rep.Signed.Content != nil {
				t.Errorf("status %d, failInfo %d (%s), %d octets of content; want failInfo %d", rep.Status, rep.FailInfo, rep.FailInfoText, len(rep.Signed.Content), c.failInfo)
			}
			if !slices.Contains([]int{scep.BadAlg, scep.BadMessageCheck, scep.BadRequest, scep.BadTime, scep.BadCertID}, rep.FailInfo) {
				t.Errorf("failInfo %d is none of the RFC's", rep.FailInfo)
			}
		})
	}
}
