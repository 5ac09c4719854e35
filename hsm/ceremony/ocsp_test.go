package ceremony_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/postern-pki/postern/hsm/ceremony"
	"github.com/postern-pki/postern/hsm/ceremony/plan"
)

// A plan may have a key that answers about certificates; its certificate is for that
// and nothing else, and nobody has to answer for it in turn.
func TestAKeyForOCSPIsMadeWhereThePlanHasOne(t *testing.T) {
	r := rehearse(t, parsed(t, "demo.yaml"))
	data, err := os.ReadFile(filepath.Join(r.Out, "ocsp.pem"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if c.KeyUsage != x509.KeyUsageDigitalSignature || !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}) || len(c.UnknownExtKeyUsage) > 0 || c.IsCA {
		t.Errorf("usages %v %v %v", c.KeyUsage, c.ExtKeyUsage, c.UnknownExtKeyUsage)
	}
	nocheck := asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}
	if n := slices.IndexFunc(c.Extensions, func(e pkix.Extension) bool {
		return e.Id.Equal(nocheck) && !e.Critical && string(e.Value) == "\x05\x00"
	}); n < 0 {
		t.Error("id-pkix-ocsp-nocheck is missing")
	}
	keys, err := os.ReadFile(r.KeysFile)
	if err != nil || !strings.Contains(string(keys), "ocsp:") {
		t.Errorf("%v: the service's configuration is not told:\n%s", err, keys)
	}
	if _, err := ceremony.Verify(r.Transcript); err != nil {
		t.Errorf("Verify: %v", err)
	}
}

func TestAKeyForOCSPComesWithItsCertificate(t *testing.T) {
	text := script(t, "demo.yaml")
	for _, part := range []string{"keys", "certificates"} {
		head, tail, _ := strings.Cut(text, "\n"+part+":")
		at := optional.FindStringIndex(tail)
		_, err := plan.Parse([]byte(head + "\n" + part + ":" + tail[:at[0]] + tail[at[1]:]))
		if e, ok := errors.AsType[*plan.Error](err); !ok || !strings.Contains(e.Error(), part+".ocsp") {
			t.Errorf("without %s.ocsp: %v", part, err)
		}
	}
}
