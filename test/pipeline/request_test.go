package pipeline_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/scep"
	"github.com/postern-pki/postern/test/site"
)

// TestUglyNames: what a shell, a file system, a C string or a person would
// stumble over is refused, and is in the log, quoted where it is not printable,
// beside every other reason.
//
// Covers: S-090, S-096
func TestUglyNames(t *testing.T) {
	d := at(t, "demo")
	const good = "plain.demo.example"
	for what, cn := range map[string]string{
		"a NUL":                  "a\x00.demo.example",
		"a NUL at the end":       good + "\x00.evil.example",
		"a line":                 "a\nb.demo.example",
		"a line at the end":      good + "\n",
		"a path":                 "../../etc.demo.example",
		"an absolute path":       "/etc/passwd",
		"a Windows path":         `..\a.demo.example`,
		"a command":              "$(id).demo.example",
		"no name at all":         "",
		"an upper bound":         strings.Repeat("a", 80) + ".demo.example",
		"a name as long as ever": strings.Repeat("a", 4000),
		"a foreign name":         "www.other.example",
		"a look-alike":           "a.demo.example.evil.test",
		"a unicode twin":         "\u0430.demo.example",
		"from right to left":     "\u202e.demo.example",
		"a trailing dot":         "a.demo.example.",
		"an empty prefix":        ".demo.example",
	} {
		t.Run(what, func(t *testing.T) {
			_, err := enroll(t, d, keys[0], cn, "")
			r := refused(t, err)
			r.is(t, badRequest, "a new enrollment needs a challenge").reasons(t, "challenge")
			seen := false
			for _, reason := range r.event(t, "enroll", "refused").Object.Reasons {
				seen = seen || strings.HasPrefix(reason.Rule, "subject.CN") &&
					(cn == "" || len(cn) > 1000 || reason.Saw == cn || reason.Saw == strconv.Quote(cn))
				if len(reason.Saw) > 1200 {
					t.Errorf("%d octets of a stranger's in the log", len(reason.Saw))
				}
			}
			if !seen {
				t.Errorf("the log does not say what is wrong with the name: %+v", r.records)
			}
			if cn != "" && strings.IndexFunc(cn, func(r rune) bool { return r > 127 }) < 0 {
				uglySAN(t, d, cn)
			}
		})
	}
}

// uglySAN has the same as a dNSName, which our own client would not send.
func uglySAN(t *testing.T, d *site.Device, dns string) {
	t.Helper()
	csr := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: name("plain.demo.example"), DNSNames: []string{dns}}, keys[0]))(t)
	_, err := send(t, d, selfSigned(t, keys[0], csr))
	r := refused(t, err)
	if r.failInfo == badMessageCheck { // no dNSName at all
		r.is(t, badMessageCheck, notProven).rejected(t, "CSR structure")
		return
	}
	r.is(t, badRequest, "a new enrollment needs a challenge").reasons(t, "challenge", "san.dns.must_equal")
	if !slices.ContainsFunc(r.event(t, "enroll", "refused").Object.Reasons, func(reason struct{ Rule, Saw, Say string }) bool {
		return reason.Rule == "san.dns.pattern" || reason.Rule == "san.dns.syntax"
	}) {
		t.Errorf("the log does not say what is wrong with the dNSName: %+v", r.records)
	}
}

// TestEveryReasonIsRecorded breaks many rules at once.
//
// Covers: S-096
func TestEveryReasonIsRecorded(t *testing.T) {
	d := at(t, "demo")
	weak := must(rsa.GenerateKey(rand.Reader, 1024))(t)
	csr := ask(t, weak, "Wrong.other.example", challenge(t, "demo", "right.demo.example").Challenge, "x.other.example", "y.other.example")
	_, err := send(t, d, selfSigned(t, weak, csr))
	refused(t, err).is(t, badRequest, notValid).
		reasons(t, "challenge", "key.rsa.min", "subject.CN.pattern", "san.dns.pattern", "san.dns.max", "san.dns.must_equal")
}

func TestAWeakKey(t *testing.T) {
	const cn = "weak.demo.example"
	d := at(t, "many")
	weak := must(rsa.GenerateKey(rand.Reader, 1024))(t)
	c := challenge(t, "many", cn)
	_, err := enroll(t, d, weak, cn, c.Challenge)
	refused(t, err).is(t, badRequest, "2048 bits at least").reasons(t, "key.rsa.min")
	must(enroll(t, d, keys[0], cn, c.Challenge))(t) // one refusal does not end the challenge
}

// Covers: S-170
func TestAnECKey(t *testing.T) {
	const cn = "ec.demo.example"
	d := at(t, "many")
	ec := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	csr := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: name(cn)}, ec))(t)
	_, err := send(t, d, selfSigned(t, ec, csr))
	refused(t, err).is(t, badAlg, "SCEP needs an RSA key").rejected(t, "signer's key is not RSA")

	cert, _ := enrolled(t, d, "many", cn, keys[0])
	_, err = renew(t, d, scep.RenewalReq, cert, keys[0], csr)
	refused(t, err).is(t, badAlg, "RSA").reasons(t, "key.type")
}

// TestAKeyOfAnother: one key for two subjects is refused where the profile says
// so, and nowhere else.
//
// Covers: S-117
func TestAKeyOfAnother(t *testing.T) {
	for profile, allowed := range map[string]bool{"demo": false, "many": true} {
		key := newKey(t)
		d := at(t, profile)
		enrolled(t, d, profile, "first-"+profile+".demo.example", key)
		second := "second-" + profile + ".demo.example"
		_, err := enroll(t, d, key, second, challenge(t, profile, second).Challenge)
		if allowed && err != nil {
			t.Errorf("%s: %v", profile, err)
		}
		if !allowed {
			refused(t, err).is(t, badRequest, "another subject").reasons(t, "key.reuse")
		}
	}
}

// TestAClockThatIsWrong: the self-signed certificate proves who has the key, and
// says nothing about the time.
//
// Covers: S-104
func TestAClockThatIsWrong(t *testing.T) {
	const cn = "clock.demo.example"
	d := at(t, "many")
	for _, from := range []time.Duration{-48 * time.Hour, 24 * time.Hour, -30 * 365 * 24 * time.Hour} {
		m := selfSigned(t, keys[0], ask(t, keys[0], cn, challenge(t, "many", cn).Challenge))
		m.Signer = must(site.SelfSigned(keys[0], name(cn), time.Now().Add(from), time.Now().Add(from+24*time.Hour)))(t)
		must(send(t, d, m))(t)
	}
}

// TestWhatIsAdvertisedWorks: RFC 8894, section 3.5.2.
//
// Covers: S-021, S-023, S-024, S-028, S-029, S-110
func TestWhatIsAdvertisedWorks(t *testing.T) {
	d := at(t, "many")
	caps := must(d.Caps(t.Context()))(t)
	want := []string{"AES", "POSTPKIOperation", "Renewal", "SHA-256", "SHA-384", "SHA-512", "SCEPStandard"}
	if !slices.Equal(caps, want) {
		t.Errorf("GetCACaps: %q, want %q", caps, want)
	}
	for i, digest := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		cn := fmt.Sprintf("digest-%d.demo.example", i)
		d.Digest = digest
		if _, err := enroll(t, d, keys[i], cn, challenge(t, "many", cn).Challenge); err != nil {
			t.Errorf("%v: %v", digest, err)
		}
	}
}
