package ceremony_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/ceremony"
	"github.com/postern-pki/postern/hsm/ceremony/pins"
	"github.com/postern-pki/postern/hsm/ceremony/plan"
	"github.com/postern-pki/postern/test/softhsm"
)

// onToken carries the demonstration's plan out on a token that is there.
func onToken(t *testing.T) (softhsm.Token, ceremony.Result) {
	t.Helper()
	tok := softhsm.New(t)
	r, err := ceremony.Run(t.Context(), demo(t, "new: true\n  label: postern-demo", "serial: '"+tok.Serial+"'"),
		ceremony.Options{Out: filepath.Join(t.TempDir(), "out"), PIN: pins.FromFile(tok.PINFile(t))})
	if err != nil {
		t.Fatal(err)
	}
	return tok, r
}

// withoutOCSP matches what a plan says of the optional key for OCSP.
var withoutOCSP = regexp.MustCompile("(?m)^  (- {role: )?ocsp[:,].*\n")

// filled is one of the project's plans for a token with keys, with what is marked
// to be changed taken from the ceremonies before it.
func filled(t *testing.T, name string, tok softhsm.Token, r ceremony.Result, more ...ceremony.KeyResult) plan.Plan {
	t.Helper()
	text := strings.ReplaceAll(withoutOCSP.ReplaceAllString(script(t, name), ""), "0123456789abcdef", tok.Serial)
	for i, k := range r.Keys {
		text = strings.ReplaceAll(text, fmt.Sprintf("id: %032d, spki: %064d", i+1, i+1), "id: "+k.ID+", spki: "+k.SPKI)
	}
	for _, k := range more {
		line := fmt.Sprintf("  - {role: %s, retired: true, label: %s, algorithm: %s, id: %s, spki: %s}\n", k.Purpose, k.Label, k.Algorithm, k.ID, k.SPKI)
		text = regexp.MustCompile(`(?m)^keep:.*\n`).ReplaceAllStringFunc(text, func(head string) string { return head + line })
	}
	text = strings.Replace(text, fmt.Sprintf(": %064d", 0), ": "+r.Certificates[0].SHA256, 1)
	p, err := plan.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Keys are renewed, rotated and followed by others on the token that has them, one
// ceremony after the other, each by the project's own plan.
func TestTheKeysOfATokenAreRenewedAndRotated(t *testing.T) {
	tok, first := onToken(t)
	var retired []ceremony.KeyResult // those that the plans before have added
	for _, tt := range []struct {
		plan  string
		made  int
		files []string
	}{
		{"renew-certificates.yaml", 0, []string{"ra-sign.pem", "ra-decrypt.pem", "tls.pem", "audit.pem"}},
		{"rotate-ra-sign.yaml", 1, []string{"ra-sign.pem"}},
		{"rotate-ra-decrypt.yaml", 1, []string{"ra-decrypt.pem"}},
		{"rotate-tls.yaml", 1, []string{"tls.pem"}},
		{"rotate-audit.yaml", 1, []string{"audit.pem"}},
		{"next-ca.yaml", 3, []string{"ca.pem", "ra-sign.pem", "ra-decrypt.pem"}},
	} {
		t.Run(tt.plan, func(t *testing.T) {
			p := filled(t, tt.plan, tok, first, retired...)
			for i := range p.Keys { // labels of a token are used once
				old := p.Keys[i].Label
				p = reparsed(t, p.Text, "label: "+old+",", fmt.Sprintf("label: %s-of-%d,", strings.TrimSuffix(old, "-2"), len(retired)))
			}
			o := ceremony.Options{Out: filepath.Join(t.TempDir(), "out"), PIN: pins.FromFile(tok.PINFile(t)), Certificate: filepath.Join(first.Out, "ca.pem")}
			r, err := ceremony.Run(t.Context(), p, o)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Keys) != tt.made {
				t.Errorf("%d keys were made", len(r.Keys))
			}
			issuer := certificate(t, filepath.Join(first.Out, "ca.pem"))
			if tt.files[0] == "ca.pem" {
				issuer = certificate(t, filepath.Join(r.Out, "ca.pem"))
			}
			for _, f := range tt.files {
				c := certificate(t, filepath.Join(r.Out, f))
				if err := c.CheckSignatureFrom(issuer); err != nil {
					t.Errorf("%s: %v", f, err)
				}
				if before := certificate(t, filepath.Join(first.Out, f)); (tt.made == 0) != (string(before.RawSubjectPublicKeyInfo) == string(c.RawSubjectPublicKeyInfo)) {
					t.Errorf("%s: the key is the same, or another, where it should not be", f)
				}
			}
			if _, err := ceremony.Verify(r.Transcript); err != nil {
				t.Error(err)
			}
			retired = append(retired, r.Keys...)
		})
	}
}

func reparsed(t *testing.T, text, old, repl string) plan.Plan {
	t.Helper()
	p, err := plan.Parse([]byte(strings.Replace(text, old, repl, 1)))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAChangeKnowsWhatIsOnTheToken(t *testing.T) {
	tok, first := onToken(t)
	good := filled(t, "rotate-tls.yaml", tok, first).Text
	line := regexp.MustCompile(`(?m)^  - \{role: audit,.*\n`)
	for name, tt := range map[string]struct{ text, ca, want string }{
		"a key that the plan does not name": {line.ReplaceAllString(good, ""), "ca.pem", "not expected"},
		"another public key":                {strings.Replace(good, first.Keys[1].SPKI, strings.Repeat("ab", 32), 1), "ca.pem", "not the one that the plan names"},
		"another id":                        {strings.Replace(good, first.Keys[1].ID, strings.Repeat("ab", 16), 1), "ca.pem", "not expected"},
		"another CA certificate":            {good, "operator-ca.pem", "another key"},
		"no CA certificate":                 {good, "", "not given"},
	} {
		t.Run(name, func(t *testing.T) {
			o := ceremony.Options{Out: filepath.Join(t.TempDir(), "out"), PIN: pins.FromFile(tok.PINFile(t))}
			if tt.ca != "" {
				o.Certificate = filepath.Join(first.Out, tt.ca)
			}
			// By a plan that makes no key: it would be on the token of the next one.
			renew := "certificates:\n  ra-sign: {subject: 'CN=x', validity: 30d, extended: [serverAuth]}\n"
			p, err := plan.Parse([]byte(regexp.MustCompile(`(?s)keys:\n.*`).ReplaceAllString(tt.text, renew)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ceremony.Run(t.Context(), p, o); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Run: %v, want %s", err, tt.want)
			}
		})
	}
}

// The security officer sets a new PIN on a token that is locked, or whose PIN is lost.
func TestALostPINIsReplaced(t *testing.T) {
	tok, first := onToken(t)
	p := filled(t, "unlock-pin.yaml", tok, first)
	o := ceremony.Options{Out: filepath.Join(t.TempDir(), "out"), PIN: given(t, "canary-new-one-4711"), SOPIN: given(t, tok.SOPIN)}
	r, err := ceremony.Run(t.Context(), p, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ceremony.Verify(r.Transcript); err != nil {
		t.Error(err)
	}
	noneHolds(t, r.Out, "canary-new-one-4711", "")
	token, err := hsm.Open(t.Context(), hsm.Config{Module: tok.Module, Serial: tok.Serial, PIN: hsm.PINFromFile(pinFile(t, "canary-new-one-4711"))})
	if err != nil {
		t.Fatal(err)
	}
	if err := token.Close(); err != nil {
		t.Error(err)
	}
	if _, err := hsm.Open(t.Context(), hsm.Config{Module: tok.Module, Serial: tok.Serial, PIN: hsm.PINFromFile(tok.PINFile(t))}); !errors.Is(err, hsm.ErrPIN) {
		t.Errorf("the old PIN: %v", err)
	}
	o.Out, o.SOPIN = filepath.Join(t.TempDir(), "out"), given(t, "canary-no-officer")
	if _, err := ceremony.Run(t.Context(), p, o); !errors.Is(err, hsm.ErrPIN) {
		t.Errorf("a wrong officer's PIN: %v", err)
	}
}

// A token that is not needed any more is erased, and another one takes its place.
func TestATokenIsErasedAndReplaced(t *testing.T) {
	tok, first := onToken(t)
	next := softhsm.New(t)
	for _, name := range []string{"replace-token.yaml", "disaster-drill.yaml"} {
		on := regexp.MustCompile(`new: true\n  label: \S+`)
		serial := next.Serial
		if name == "disaster-drill.yaml" {
			serial = softhsm.New(t).Serial
		}
		text := strings.ReplaceAll(script(t, name), "0123456789abcdef", tok.Serial)
		o := ceremony.Options{Out: filepath.Join(t.TempDir(), "out"), PIN: pins.FromFile(tok.PINFile(t))}
		r, err := ceremony.Run(t.Context(), reparsed(t, on.ReplaceAllString(text, "serial: '"+serial+"'"), "", ""), o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ceremony.Verify(r.Transcript); err != nil {
			t.Error(err)
		}
		if _, err := plan.Parse([]byte(on.ReplaceAllString(text, "serial: '"+tok.Serial+"'"))); err == nil {
			t.Error("a token is replaced by itself")
		}
	}
	p := filled(t, "destroy-keys.yaml", tok, first)
	o := ceremony.Options{Out: filepath.Join(t.TempDir(), "out"), PIN: pins.FromFile(tok.PINFile(t)), SOPIN: given(t, tok.SOPIN)}
	r, err := ceremony.Run(t.Context(), p, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ceremony.Verify(r.Transcript); err != nil {
		t.Error(err)
	}
	if _, err := hsm.Open(t.Context(), hsm.Config{Module: tok.Module, Label: tok.Label, PIN: hsm.PINFromFile(tok.PINFile(t))}); err == nil {
		t.Error("the token is there as it was")
	}
}

// An outside CA is a root and a CA below it, which signs what it is given.
type outsideCA struct {
	root, between *x509.Certificate
	key           *ecdsa.PrivateKey
}

func newOutsideCA(t *testing.T) outsideCA {
	t.Helper()
	var o outsideCA
	parent, parentKey := (*x509.Certificate)(nil), (*ecdsa.PrivateKey)(nil)
	for i, name := range []string{"Company Root", "Company Device Root"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(30-i, 0, 0),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
		if parent == nil {
			parent, parentKey = template, key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			o.root = c
		}
		parent, parentKey, o.between, o.key = c, key, c, key
	}
	return o
}

// sign signs a request, with what change makes of it, and returns the file with all.
func (o outsideCA) sign(t *testing.T, csrFile string, change func(*x509.Certificate)) string {
	t.Helper()
	raw, err := os.ReadFile(csrFile)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(raw)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(3), RawSubject: csr.RawSubject, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(12, 0, 0),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	change(template)
	pub := csr.PublicKey
	if template.PublicKey != nil {
		pub = template.PublicKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, o.between, pub, o.key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ca-and-above.pem")
	var text []byte
	for _, b := range [][]byte{der, o.between.Raw, o.root.Raw} {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b})...)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// An outside CA signs our request between two sessions; what it may not send is refused.
func TestAnOutsideCASignsOurRequest(t *testing.T) {
	tok, outside := softhsm.New(t), newOutsideCA(t)
	p := parsed(t, "outside-ca.yaml", peopleOf(t, "outside-ca.yaml"), "", "class: production", "class: test", "new: true  ", "serial: '"+tok.Serial+"'  ", "label: postern\n", "label: "+tok.Label+"\n", "algorithm: RSA-3072", "algorithm: RSA-2048")
	o := ceremony.Options{Out: filepath.Join(t.TempDir(), "out"), PIN: pins.FromFile(tok.PINFile(t))}
	for range 2 { // it waits as long as it takes
		r, err := ceremony.Run(t.Context(), p, o)
		if err != nil || filepath.Base(r.Waiting) != "ca.csr" {
			t.Fatalf("the first session: %+v, %v", r, err)
		}
		if _, err := ceremony.Verify(r.Transcript); !errors.Is(err, ceremony.ErrTranscript) {
			t.Errorf("half a ceremony verifies: %v", err)
		}
	}
	csr := filepath.Join(o.Out, "ca.csr")
	for name, tt := range map[string]struct {
		change func(*x509.Certificate)
		want   string
	}{
		"no CA":             {func(c *x509.Certificate) { c.IsCA, c.MaxPathLenZero = false, false }, "no CA"},
		"a CA above others": {func(c *x509.Certificate) { c.MaxPathLenZero, c.MaxPathLen = false, 1 }, "pathLenConstraint"},
		"one more usage":    {func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageDigitalSignature }, "key usage"},
		"another name":      {func(c *x509.Certificate) { c.RawSubject = nil; c.Subject.CommonName = "x" }, "subject"},
		"another key":       {func(c *x509.Certificate) { c.PublicKey = outside.key.Public() }, "another key"},
		"a short life":      {func(c *x509.Certificate) { c.NotAfter = time.Now().AddDate(5, 0, 0) }, "audit would outlive"},
		"a life to come":    {func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }, "not valid now"},
	} {
		o.Certificate = outside.sign(t, csr, tt.change)
		if _, err := ceremony.Run(t.Context(), p, o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %s", name, err, tt.want)
		}
	}
	o.Certificate = outside.sign(t, csr, func(*x509.Certificate) {})
	r, err := ceremony.Run(t.Context(), p, o)
	if err != nil {
		t.Fatal(err)
	}
	if report, err := ceremony.Verify(r.Transcript); err != nil || report.Resumed != 9 {
		t.Errorf("Verify: %+v, %v", report, err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(outside.root)
	between.AddCert(certificate(t, filepath.Join(r.Out, "ca.pem")))
	between.AddCert(certificate(t, filepath.Join(r.Out, "chain-1.pem")))
	if _, err := certificate(t, filepath.Join(r.Out, "tls.pem")).Verify(x509.VerifyOptions{Roots: roots, Intermediates: between}); err != nil {
		t.Error(err)
	}
	keys, err := os.ReadFile(r.KeysFile)
	if err != nil || !strings.Contains(string(keys), "chain:\n        - chain-1.pem\n        - chain-2.pem") {
		t.Errorf("keys.yaml, %v:\n%s", err, keys)
	}
	if sum := r.Certificates[0].SHA256; len(sum) != hex.EncodedLen(32) {
		t.Errorf("certificate %+v", r.Certificates[0])
	}
}

// What a token tells of the past of a copied key is looked at, recorded and handed to the
// service. SoftHSM's copy of its files tells what the original does.
func TestACopiedKeyHasTheRecordedPast(t *testing.T) {
	tok, first := onToken(t)
	text := filled(t, "renew-certificates.yaml", tok, first).Text
	id := "id: " + first.Keys[0].ID + ", "
	for _, local := range []string{"true", "false"} {
		p := reparsed(t, text, id, id+"attributes: {CKA_LOCAL: '"+local+"'}, ")
		o := ceremony.Options{Out: filepath.Join(t.TempDir(), "out"), PIN: pins.FromFile(tok.PINFile(t)), Certificate: filepath.Join(first.Out, "ca.pem")}
		r, err := ceremony.Run(t.Context(), p, o)
		if local == "false" {
			if e, ok := errors.AsType[*hsm.AttributeError](err); !ok || len(e.Differences) != 1 || e.Differences[0].Want != "false" {
				t.Errorf("another past: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		found, err := ceremony.Verify(r.Transcript)
		if err != nil || !strings.Contains(strings.Join(found.Exceptions, "\n"), "the key ca was copied to its token: CKA_LOCAL is true") {
			t.Errorf("%q, %v", found.Exceptions, err)
		}
		if raw, err := os.ReadFile(r.KeysFile); err != nil || !strings.Contains(string(raw), "CKA_LOCAL: \"true\"") {
			t.Errorf("keys.yaml: %s, %v", raw, err)
		}
	}
	bad := strings.Replace(text, id, id+"attributes: {CKA_EXTRACTABLE: 'true'}, ", 1)
	if _, err := plan.Parse([]byte(bad)); err == nil {
		t.Error("an attribute that is not of the past may differ")
	}
}
