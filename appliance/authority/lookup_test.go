package authority_test

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/scep"
)

// nameOf is the issuer and serial number of a certificate.
func nameOf(t testing.TB, der []byte) (*x509.Certificate, []byte) {
	t.Helper()
	c := must[*x509.Certificate](t)(x509.ParseCertificate(der))
	return c, issuerAndSerial(t, c.RawIssuer, c.SerialNumber)
}

func issuerAndSerial(t testing.TB, issuer []byte, serial *big.Int) []byte {
	t.Helper()
	return must[[]byte](t)(asn1.Marshal(struct {
		Issuer asn1.RawValue
		Serial *big.Int
	}{asn1.RawValue{FullBytes: issuer}, serial}))
}

// A certificate is given to whoever names it exactly and asks its own profile;
// everything else has one answer, and stands in the log with its reason.
//
// Covers: S-160, S-161, S-164
func TestGetCert(t *testing.T) {
	w := newWorld(t)
	der, _ := w.enroll("found.corp.example")
	cert, name := nameOf(t, der)
	subject := must[[]byte](t)(asn1.Marshal(cert.Subject.ToRDNSequence()))
	stranger := deviceKeys()[1]
	for what, c := range map[string]struct {
		content []byte
		profile string
		why     string
	}{
		"it":                 {name, "wifi", ""},
		"another serial":     {issuerAndSerial(t, cert.RawIssuer, new(big.Int).Add(cert.SerialNumber, big.NewInt(1))), "wifi", "no certificate of serial"},
		"another issuer":     {issuerAndSerial(t, subject, cert.SerialNumber), "wifi", "of another issuer"},
		"another profile":    {name, "slow", "of another profile"},
		"no serial of ours":  {issuerAndSerial(t, cert.RawIssuer, new(big.Int).Lsh(big.NewInt(1), 400)), "wifi", "no certificate of ours has"},
		"something else":     {[]byte{0x30, 0}, "wifi", "no issuer and serial number"},
		"what is not DER":    {[]byte("hello"), "wifi", "content encoding"},
		"the CA certificate": {issuerAndSerial(t, cert.RawIssuer, big.NewInt(1)), "wifi", "no certificate of serial"},
	} {
		out, err := w.Submit(t.Context(), w.request(asked{profile: c.profile, transaction: "get " + what, key: stranger, kind: scep.GetCert, csr: c.content}))
		if err != nil {
			t.Fatal(what, err)
		}
		said := w.records(func(r audit.Record) bool { return r.Request == out.RequestID })
		if len(said) != 1 || said[0].Event != "lookup" || said[0].Object.String("transaction") != "get "+what {
			t.Fatalf("%s: records %+v", what, said)
		}
		if c.why == "" {
			if out.Status != protocol.Issued || len(out.Certificates) != 1 || !bytes.Equal(out.Certificates[0], der) || said[0].Outcome != "found" {
				t.Errorf("%s: %s, %s", what, describe(out, err), said[0].Outcome)
			}
			continue
		}
		reasons := said[0].Object.Objects("reasons")
		if describe(out, err) != "refused as not-found: there is no such certificate" || out.Certificates != nil ||
			said[0].Outcome != "refused" || len(reasons) != 1 || !strings.Contains(reasons[0].String("saw"), c.why) {
			t.Errorf("%s: %s, %+v", what, describe(out, err), reasons)
		}
	}
	w.sound()
}
