package interop

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-pki/postern/test/certmonger"
	"github.com/postern-pki/postern/test/site"
)

// A monger is a certmonger of a test, and the URL by which it reaches the profile.
type monger struct {
	*certmonger.Daemon
	url string
}

// startCertmonger runs one until the test ends. The file of CAs that it is given is for
// its questions about the CA; when it asks for a certificate it looks at the system's
// alone.
func startCertmonger(t *testing.T) *monger {
	t.Helper()
	dir, remove, err := certmonger.Dir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(remove)
	prefix, url, end, err := testSite.Trusting(t.Context(), dir, target(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(end)
	d, stop, err := certmonger.Start(t.Context(), dir, prefix...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return &monger{d, url}
}

func (m *monger) getcert(t *testing.T, args ...string) {
	t.Helper()
	if out, code := m.Getcert(t.Context(), args...); code != 0 {
		t.Fatalf("getcert %s: exit %d: %s", strings.Join(args, " "), code, out)
	}
}

// watched waits until certmonger has a certificate other than before, and watches it.
func (m *monger) watched(t *testing.T, cert, before string) (now string) {
	t.Helper()
	err := m.Until(t.Context(), func() bool {
		list, _ := m.Getcert(t.Context(), "list", "-f", cert)
		if !strings.Contains(list, "status: MONITORING") {
			return false
		}
		now = serial(t, cert)
		return now != before
	})
	if err != nil {
		t.Fatalf("%s: %v", filepath.Base(cert), err)
	}
	return now
}

// TestCertmonger enrolls and renews with certmonger, which finds out by itself what it
// needs to know of the CA, or is given its files. It signs renewals with its
// certificate, as PKCSReq, repeats the challenge that is spent, and sends a
// transactionID again.
// Covers: S-002, S-003, S-076, S-112, S-113, S-115
func TestCertmonger(t *testing.T) {
	m := startCertmonger(t)
	dir := filepath.Dir(m.File("x"))
	write(t, dir, "cacert.der", newLibrary(t, "interop").get("GetCACert"))
	openssl(t, dir, `openssl pkcs7 -inform DER -in cacert.der -print_certs -out all.pem; csplit -sz -f ra- -b %%d.pem all.pem '/^subject/' '{*}'`)
	for name, files := range map[string][]string{
		"by-files":     {"-r", m.File("ra-1.pem"), "-I", m.File("ra-0.pem"), "-N", m.File("ra-2.pem")},
		"by-discovery": nil,
	} {
		t.Run(name, func(t *testing.T) {
			cn, cert := name+".demo.example", m.File(name+".pem")
			m.getcert(t, append([]string{"add-scep-ca", "-c", name, "-u", m.url, "-R", testSite.CA()}, files...)...)
			write(t, dir, name+".word", []byte(challenge(t, "interop", cn)))
			m.getcert(t, "request", "-c", name, "-k", m.File(name+".key"), "-f", cert, "-g", "2048", "-N", "CN="+cn, "-l", m.File(name+".word"))
			first := m.watched(t, cert, "")
			m.getcert(t, "resubmit", "-f", cert)
			second := m.watched(t, cert, first)
			if out, errOut, code := site.Run(t.Context(), nil, "openssl", "verify", "-CAfile", testSite.CA(), cert); code != 0 {
				t.Errorf("openssl verify: %s%s", out, errOut)
			}
			out, errOut, code := testSite.Postern(t.Context(), nil, "cert", "show", strings.ToLower(strings.TrimPrefix(second, "serial=")), "--output", "json")
			if code != 0 || !strings.Contains(strings.ReplaceAll(out, " ", ""), `"renewal":1`) {
				t.Errorf("the second certificate is no renewal: %s%s", out, errOut)
			}
		})
	}
}
