package ceremony

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/hsm/ceremony/plan"
)

const day = 24 * time.Hour

// The lint is all that stands between a template and the CA's key.
func TestLintFindsWhatIsNotPlanned(t *testing.T) {
	newKey := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	subject := func(s string) plan.Subject {
		out, err := plan.ParseSubject(s)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	when := period{time.Now(), time.Hour}
	a, err := newAuthority(newKey())
	if err != nil {
		t.Fatal(err)
	}
	caPlan := plan.Certificate{Role: plan.RoleCA, Subject: subject("CN=CA"), Validity: 100 * day}
	template, err := a.template(caPlan, a.signer.Public(), when)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := a.sign(template, a.signer.Public(), a.throwAway)
	if err != nil {
		t.Fatal(err)
	}
	if wrong := lint(ca, caPlan, a.signer.Public(), nil, when); len(wrong) > 0 {
		t.Errorf("a planned CA: %v", wrong)
	}
	if ca.CheckSignatureFrom(ca) == nil {
		t.Error("a draft carries the CA's own signature")
	}
	var names plan.Names
	for _, n := range []string{"a.example", "192.0.2.1"} {
		if err := names.Add(n); err != nil {
			t.Fatal(err)
		}
	}
	policy, err := x509.OIDFromInts([]uint64{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	leafPlan := plan.Certificate{Role: plan.RoleTLS, Subject: subject("CN=leaf"), Validity: day, Extended: []plan.ExtendedUsage{plan.ServerAuth}, Names: names}
	leaf := newKey().Public()
	plain, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(c *x509.Certificate)
		pub    crypto.PublicKey
		want   string
	}{
		"as planned":         {func(*x509.Certificate) {}, leaf, ""},
		"a CA":               {func(c *x509.Certificate) { c.IsCA = true }, leaf, "basicConstraints"},
		"no constraints":     {func(c *x509.Certificate) { c.BasicConstraintsValid = false }, leaf, "basicConstraints"},
		"keyCertSign":        {func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, leaf, "key usage"},
		"clientAuth too":     {func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) }, leaf, "extended"},
		"any usage":          {func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }, leaf, "extended"},
		"an unknown usage":   {func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 2, 3}} }, leaf, "extended"},
		"no extended usage":  {func(c *x509.Certificate) { c.ExtKeyUsage = nil }, leaf, "extended"},
		"another subject":    {func(c *x509.Certificate) { c.RawSubject = ca.RawSubject }, leaf, "subject"},
		"another key":        {func(*x509.Certificate) {}, newKey().Public(), "key is another"},
		"one name more":      {func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "b.example") }, leaf, "alternative names"},
		"another address":    {func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(192, 0, 2, 2)} }, leaf, "alternative names"},
		"a mail address":     {func(c *x509.Certificate) { c.EmailAddresses = []string{"a@example"} }, leaf, "alternative names"},
		"a day more":         {func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(day) }, leaf, "validity"},
		"longer than its CA": {func(c *x509.Certificate) { c.NotAfter = ca.NotAfter.Add(day) }, leaf, "outlives"},
		"from the start on":  {func(c *x509.Certificate) { c.NotBefore = c.NotBefore.Add(time.Hour) }, leaf, "validity"},
		"a short serial":     {func(c *x509.Certificate) { c.SerialNumber = big.NewInt(7) }, leaf, "serial"},
		"an extension": {func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: []byte{5, 0}}}
		}, leaf, "1.2.3"},
		"a policy":               {func(c *x509.Certificate) { c.Policies = []x509.OID{policy} }, leaf, "2.5.29.32"},
		"another key's id":       {func(c *x509.Certificate) { c.SubjectKeyId = []byte{1} }, leaf, "subjectKeyIdentifier"},
		"a key of a short curve": {func(*x509.Certificate) {}, plain.Public(), "key-strength"}, // of the service's own checks alone
		"an address to fetch a":  {func(c *x509.Certificate) { c.OCSPServer = []string{"http://a.example"} }, leaf, "1.3.6.1.5.5.7.1.1"},
	} {
		t.Run(name, func(t *testing.T) {
			below := &authority{signer: a.signer, throwAway: a.throwAway, cert: ca}
			template, err := below.template(leafPlan, leaf, when)
			if err != nil {
				t.Fatal(err)
			}
			tt.change(template)
			draft, err := below.sign(template, tt.pub, a.throwAway)
			if err != nil {
				t.Fatal(err)
			}
			wrong := strings.Join(lint(draft, leafPlan, leaf, ca, when), "; ")
			if !strings.Contains(wrong, tt.want) || tt.want == "" && wrong != "" {
				t.Errorf("lint: %q, want %q", wrong, tt.want)
			}
		})
	}
}
