package issuer_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/hsm/lint"
)

// Two builders that share no code write the same octets.
func TestTheBytesAreThoseOfTheStandardLibrary(t *testing.T) {
	caKey, device := ecKey(t, elliptic.P256()), ecKey(t, elliptic.P256())
	ca := caOf(t, caKey, nil)
	i, err := issuer.New("corp-devices", ca, &keyholder{t: t, key: caKey}, issuer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var style []string
	for _, name := range lint.All() {
		if lint.Excusable(name) {
			style = append(style, name)
		}
	}
	names := func(form string) *rapid.Generator[[]string] { return rapid.SliceOfN(rapid.StringMatching(form), 0, 3) }
	rapid.Check(t, func(t *rapid.T) {
		own := &x509.Certificate{
			Subject:        pkix.Name{CommonName: rapid.StringMatching(`[a-zé€]{1,20}`).Draw(t, "CN"), Organization: names(`[A-Z a-z]{1,9}[a-z]`).Draw(t, "O")},
			NotBefore:      ca.NotBefore.Add(time.Duration(rapid.IntRange(0, 3600).Draw(t, "from")) * time.Second),
			NotAfter:       ca.NotAfter.Add(-time.Duration(rapid.IntRange(0, 3600).Draw(t, "to")) * time.Second),
			KeyUsage:       x509.KeyUsageDigitalSignature | x509.KeyUsage(rapid.SampledFrom([]int{0, 2, 16}).Draw(t, "usage")),
			ExtKeyUsage:    []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}[:rapid.IntRange(1, 2).Draw(t, "extended")],
			DNSNames:       names(`[a-z]{1,10}\.example`).Draw(t, "DNS"),
			EmailAddresses: names(`[a-z]{1,10}@example\.com`).Draw(t, "email"),
		}
		for range rapid.IntRange(0, 2).Draw(t, "IPs") {
			own.IPAddresses = append(own.IPAddresses, net.IP(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "IP")), net.ParseIP("2001:db8::1"))
		}
		for _, u := range names(`urn:[a-z]{1,8}`).Draw(t, "URI") {
			own.URIs = append(own.URIs, &url.URL{Scheme: "urn", Opaque: u[4:]})
		}
		if rapid.Bool().Draw(t, "status") {
			own.OCSPServer, own.CRLDistributionPoints = []string{"http://ocsp.example/"}, []string{"http://a.example/1.crl", "http://b.example/2.crl"}
			own.IssuingCertificateURL = []string{"http://a.example/ca.crt"}
			own.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Value: []byte{5, 0}}}
		}
		ticket, err := i.Prepare(own, device.Public(), issuer.Meta{Profile: "p", Lineage: "l", RequestDigest: "d", Except: style})
		if err != nil {
			t.Fatal(err)
		}
		got := ticket.Intent().TBS
		parsed, err := lint.Parse(got)
		if err != nil {
			t.Fatal(err)
		}
		own.SerialNumber, own.BasicConstraintsValid, own.SubjectKeyId = new(big.Int).SetBytes(parsed.Serial), true, lint.KeyID(parsed.KeyBits)
		der, err := x509.CreateCertificate(rand.Reader, own, ca, device.Public(), caKey)
		if err != nil {
			t.Fatal(err)
		}
		want, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want.RawTBSCertificate) {
			t.Fatalf("built\n%x\nthe standard library\n%x", got, want.RawTBSCertificate)
		}
	})
}
