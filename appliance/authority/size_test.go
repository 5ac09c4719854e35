package authority_test

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"strings"
	"testing"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/scep"
)

// long returns n names of size octets each, which the profile allows.
func long(n, size int) []string {
	out := make([]string, n)
	for i := range out {
		label := fmt.Sprintf("h%d.", i)
		out[i] = label + strings.Repeat("a.", (size-len(label)-len("a.corp.example"))/2) + "a.corp.example"
	}
	return out
}

// A certificate that fits the profile and not the record of its intent is
// refused: as an intent that cannot be read back it would end the log.
func TestACertificateThatNoRecordHoldsIsRefused(t *testing.T) {
	w := newWorld(t)
	const cn = "a.corp.example"
	for n := 20; n <= 60; n += 5 {
		dns := long(n, 150)
		r := w.request(asked{profile: "wifi", transaction: fmt.Sprint(n), cn: cn, dns: dns, challenge: w.challenge("wifi", cn, dns...), key: deviceKeys()[0]})
		if out, err := w.Submit(t.Context(), r); err != nil || out.Status == protocol.Refused != (n > 35) {
			t.Errorf("%d names of 150 octets: %s", n, describe(out, err))
		}
	}
	w.restart()
	w.sound()
}

// Extensions are ignored, but recorded: a request with more of them than a record
// holds is refused, and is no fault of the appliance.
func TestAnIntentThatNoRecordHoldsIsRefused(t *testing.T) {
	w := newWorld(t)
	first, key := w.enroll("a.corp.example")
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "a.corp.example"}}
	for n := range 64 {
		oid := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, n}
		for range 400 {
			oid = append(oid, 99)
		}
		template.ExtraExtensions = append(template.ExtraExtensions, pkix.Extension{Id: oid, Value: []byte{5, 0}})
	}
	csr := must[[]byte](t)(x509.CreateCertificateRequest(rand.Reader, template, deviceKeys()[1]))
	out, err := w.Submit(t.Context(), w.request(asked{profile: "wifi", transaction: "2", kind: scep.RenewalReq, csr: csr, signer: first, signerKey: key}))
	if err != nil || out.Status != protocol.Refused {
		t.Error(describe(out, err))
	}
	if out, err = w.Submit(t.Context(), w.renewal("3", first, key, deviceKeys()[2])); err != nil || out.Status != protocol.Issued {
		t.Errorf("the one renewal that the profile allows was taken: %s", describe(out, err))
	}
	w.sound()
}

// Whatever a stranger fills a message with, its refusal is recorded.
func TestARefusalIsRecordedHoweverMuchWasAsked(t *testing.T) {
	for name, value := range map[string]string{
		"long names":                 strings.Repeat("x", 700),
		"names that are cut":         strings.Repeat("y", 3000),
		"names with quotation marks": strings.Repeat(`"`, 700),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			dns := make([]string, 45_000/len(value))
			for i := range dns {
				dns[i] = fmt.Sprint(i) + value
			}
			out, err := w.Submit(t.Context(), w.request(asked{profile: "wifi", transaction: "1", cn: "a.corp.example", dns: dns, key: deviceKeys()[0]}))
			if err != nil || out.Status != protocol.Refused {
				t.Fatal(describe(out, err))
			}
			got := w.records(func(r audit.Record) bool { return r.Request == out.RequestID })
			if len(got) != 1 || len(got[0].Object.Objects("reasons")) == 0 || got[0].Object.String("profile") != "wifi" {
				t.Errorf("records: %+v", got)
			}
			w.sound()
		})
	}
}
