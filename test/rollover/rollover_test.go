package rollover_test

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/scep"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// From one CA to the next, and back, as operators and devices see it.
//
// Covers: S-012, S-039, S-040, S-041, S-043, S-044, S-045, S-046
func TestARolloverAndBack(t *testing.T) {
	p := settle(t)
	a := p.enroll(t, p.old, "a.demo.example")
	p.notStaged(t)
	p.stop(t)
	p.stage(t)
	p.postern(t, "config", "check")
	p.start(t)

	p.fingerprints(t)
	p.nextCA(t)
	b := p.enroll(t, p.old, "b.demo.example")
	p.account(t, "next-ca", true, 0, a, b)
	moved := p.renew(t, p.next, a)
	p.account(t, "next-ca", true, 1, b)
	c := p.enroll(t, p.next, "c.demo.example")
	p.account(t, "next-ca", true, 2, b)

	p.switchTo(t)
	d := p.enroll(t, p.old, "d.demo.example")
	p.refused(t, p.old)
	p.refused(t, p.next)
	p.account(t, "next-ca", false, 2, b, d)
	p.stop(t)
	p.rebuild(t)
	p.start(t)
	p.current(t, "next-ca", "first")
	p.renew(t, p.next, moved)
	p.renew(t, p.old, b)

	p.back(t)
	p.renew(t, p.old, c)
	p.stop(t)
	if err := p.Verify(t.Context()); err != nil {
		t.Error(err)
	}
}

// fingerprints compares what operators read aloud with what openssl says of each
// generation's certificates.
func (p *place) fingerprints(t *testing.T) {
	t.Helper()
	said := p.postern(t, "ca", "fingerprints")
	for name, ca := range map[string]*client.CA{"first": p.old, "next-ca": p.next} {
		if !strings.Contains(said, "generation "+name+" (") {
			t.Errorf("nothing is said of generation %s: %s", name, said)
		}
		for role, c := range map[string]*x509.Certificate{"ca": ca.CA, "ra-sign": ca.RASign, "ra-decrypt": ca.RADecrypt} {
			file := filepath.Join(t.TempDir(), "cert.pem")
			if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), 0o600); err != nil {
				t.Fatal(err)
			}
			for word, option := range map[string]string{"SHA-256": "-sha256", "SHA-1  ": "-sha1"} {
				_, hex, _ := strings.Cut(strings.TrimSpace(openssl(t, "x509", "-noout", "-fingerprint", option, "-in", file)), "=")
				if want := word + " " + strings.ToLower(strings.ReplaceAll(hex, ":", "")); !strings.Contains(said, "  "+role+": ") || !strings.Contains(said, want) {
					t.Errorf("%s of generation %s: no %q in\n%s", role, name, want, said)
				}
			}
		}
	}
}

// A device has a certificate.
type device struct {
	cn   string
	cert *x509.Certificate
	key  *rsa.PrivateKey
}

// enroll has a device enroll with a generation, whose RA signs the answer and whose
// CA the certificate is of: the client verifies both, and openssl the certificate.
func (p *place) enroll(t *testing.T, ca *client.CA, cn string) device {
	t.Helper()
	c := must(p.NewChallenge(t.Context(), "interop", "CN="+cn))(t)
	key := newKey(t)
	csr := must(client.NewCSR(key, client.CSR{Subject: pkix.Name{CommonName: cn}, Challenge: []byte(c.Challenge)}))(t)
	self := must(site.SelfSigned(key, pkix.Name{CommonName: cn}, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)))(t)
	return p.ask(t, ca, cn, key, client.Message{Type: scep.PKCSReq, Signer: self, SignerKey: key, CSR: csr})
}

// renew has a device renew with a generation, whichever issued what it has.
func (p *place) renew(t *testing.T, ca *client.CA, old device) device {
	t.Helper()
	key := newKey(t)
	csr := must(client.NewCSR(key, client.CSR{Subject: pkix.Name{CommonName: old.cn}}))(t)
	return p.ask(t, ca, old.cn, key, client.Message{Type: scep.RenewalReq, Signer: old.cert.Raw, SignerKey: old.key, CSR: csr})
}

func (p *place) ask(t *testing.T, ca *client.CA, cn string, key *rsa.PrivateKey, m client.Message) device {
	t.Helper()
	result := must(p.send(t, ca, m))(t)
	dir := t.TempDir()
	top, leaf := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem")
	for file, c := range map[string]*x509.Certificate{top: ca.CA, leaf: result.Certificate} {
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	openssl(t, "verify", "-x509_strict", "-CAfile", top, leaf)
	return device{cn, result.Certificate, key}
}

// send asks the generation that ca is of, and takes an answer of that one alone.
func (p *place) send(t *testing.T, ca *client.CA, m client.Message) (*client.Result, error) {
	t.Helper()
	d := &site.Device{Client: &client.Client{URL: must(p.URL(t.Context(), "interop"))(t), HTTP: must(p.HTTP())(t)}, CA: ca}
	return d.Do(t.Context(), must(d.Request(m))(t))
}

// refused sends what is refused, and takes the answer of this generation's RA alone.
func (p *place) refused(t *testing.T, ca *client.CA) {
	t.Helper()
	key := newKey(t)
	csr := must(client.NewCSR(key, client.CSR{Subject: pkix.Name{CommonName: "x.demo.example"}, Challenge: []byte("wrong")}))(t)
	self := must(site.SelfSigned(key, pkix.Name{CommonName: "x"}, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)))(t)
	for _, kind := range []int{scep.PKCSReq, 99} { // refused by the authority, and before the envelope is opened
		_, err := p.send(t, ca, client.Message{Type: kind, Signer: self, SignerKey: key, CSR: csr})
		if failure, ok := errors.AsType[*client.FailError](err); !ok || failure.FailInfo != scep.BadRequest {
			t.Errorf("a message of type %d to %s: %v", kind, ca.CA.Subject, err)
		}
	}
}

// get asks as a device does.
func (p *place) get(t *testing.T, operation string) (status int, kind string, body []byte) {
	t.Helper()
	resp := must(must(p.HTTP())(t).Get(must(p.URL(t.Context(), "interop"))(t) + "?operation=" + operation))(t)
	defer func() { _ = resp.Body.Close() }()
	return resp.StatusCode, resp.Header.Get("Content-Type"), must(io.ReadAll(resp.Body))(t)
}

func (p *place) notStaged(t *testing.T) {
	t.Helper()
	if code, _, _ := p.get(t, "GetNextCACert"); code != http.StatusNotFound {
		t.Errorf("GetNextCACert without a next CA: %d", code)
	}
	if _, _, caps := p.get(t, "GetCACaps"); strings.Contains(string(caps), "GetNextCACert") {
		t.Errorf("capabilities without a next CA: %s", caps)
	}
}

// nextCA has openssl verify who signed the next CA's certificates, and read them.
func (p *place) nextCA(t *testing.T) {
	t.Helper()
	if _, _, caps := p.get(t, "GetCACaps"); !slices.Contains(strings.Fields(string(caps)), "GetNextCACert") {
		t.Errorf("capabilities with a next CA: %s", caps)
	}
	code, kind, body := p.get(t, "GetNextCACert")
	if code != http.StatusOK || kind != "application/x-x509-next-ca-cert" {
		t.Fatalf("GetNextCACert: %d %s %s", code, kind, body)
	}
	if _, _, again := p.get(t, "GetNextCACert"); !bytes.Equal(body, again) {
		t.Error("the token signed for each who asked")
	}
	dir := t.TempDir()
	outer, inner, bad := filepath.Join(dir, "outer"), filepath.Join(dir, "inner"), filepath.Join(dir, "bad")
	if err := os.WriteFile(outer, body, 0o600); err != nil {
		t.Fatal(err)
	}
	openssl(t, "cms", "-verify", "-inform", "DER", "-in", outer, "-CAfile", p.CA(), "-purpose", "any", "-binary", "-out", inner)
	want := []string{"Postern Demo RA Signing 2", "Postern Demo RA Encryption 2", "Postern Demo Device CA 2"}
	if got := subjects(t, inner); !slices.Equal(got, want) {
		t.Errorf("the certificates inside: %q", got)
	}
	if got := subjects(t, outer); !slices.Equal(got, append([]string{"Postern Demo RA Signing"}, want...)) {
		t.Errorf("the certificates outside: %q", got)
	}
	body[bytes.Index(body, []byte("Postern Demo Device CA 2"))] ^= 1
	if err := os.WriteFile(bad, body, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, code := site.Run(t.Context(), nil, "openssl", "cms", "-verify", "-inform", "DER", "-in", bad, "-CAfile", p.CA(), "-purpose", "any", "-binary", "-out", inner); code == 0 {
		t.Error("openssl verifies an answer that was changed")
	}
}

// account checks what the operator is told of who has moved to a CA.
func (p *place) account(t *testing.T, to string, staged bool, moved int64, waiting ...device) {
	t.Helper()
	r := told[struct {
		To             string
		Staged         bool
		Moved, Waiting int64
		Profiles       []struct {
			Profile   string
			Addresses int64
			Fetches   []struct{ Address string }
		}
		Certificates []struct{ Serial, Subject, Address, Fetched string }
	}](t, p, "ca", "rollover", "status")
	if r.To != to || r.Staged != staged || r.Moved != moved || int(r.Waiting) != len(waiting) || len(r.Certificates) != len(waiting) {
		t.Errorf("%+v", r)
	}
	for _, w := range waiting {
		if !slices.ContainsFunc(r.Certificates, func(c struct{ Serial, Subject, Address, Fetched string }) bool {
			return strings.HasSuffix(c.Subject, "CN="+w.cn) && c.Address == "127.0.0.1" && c.Fetched != ""
		}) {
			t.Errorf("%s does not wait, or somebody at its address did not fetch: %+v", w.cn, r.Certificates)
		}
	}
	for _, pr := range r.Profiles {
		if pr.Profile == "interop" && (pr.Addresses != 1 || len(pr.Fetches) != 1 || pr.Fetches[0].Address != "127.0.0.1") {
			t.Errorf("%+v", pr)
		}
	}
	for _, w := range []string{"moved ", "waiting "} {
		if out := p.postern(t, "ca", "rollover", "status"); !strings.Contains(out, w) {
			t.Errorf("%q is not in %s", w, out)
		}
	}
}

// current checks which generation is current, and which was before.
func (p *place) current(t *testing.T, generation, before string) {
	t.Helper()
	l := told[struct {
		CAs []struct{ Generation, State, Before string }
	}](t, p, "ca", "list")
	for _, c := range l.CAs {
		if (c.State == "current") != (c.Generation == generation) || c.State == "current" && c.Before != before {
			t.Errorf("%s is not the current one, in the place of %q: %+v", generation, before, l.CAs)
		}
	}
}

// gives waits until devices are given a CA.
func (p *place) gives(t *testing.T, ca *client.CA) {
	t.Helper()
	eventually(t, "GetCACert has "+ca.CA.Subject.CommonName, func(context.Context) bool {
		_, kind, body := p.get(t, "GetCACert")
		return kind == "application/x-x509-ca-ra-cert" && bytes.Contains(body, ca.CA.Raw) && bytes.Contains(body, ca.RASign.Raw) && bytes.Contains(body, ca.RADecrypt.Raw)
	})
}

func (p *place) switchTo(t *testing.T) {
	t.Helper()
	if out := p.postern(t, "ca", "rollover", "switch", "--to", "next-ca"); !strings.Contains(out, "would make next-ca the current generation") || !strings.Contains(out, "say --apply") {
		t.Errorf("without --apply: %s", out)
	}
	p.current(t, "first", "")
	if _, errOut, code := p.Postern(t.Context(), nil, "ca", "rollover", "back", "--apply"); code != 1 || !strings.Contains(errOut, "no switch to go back from") {
		t.Errorf("back from nothing: %d %s", code, errOut)
	}
	p.postern(t, "ca", "rollover", "switch", "--to", "next-ca", "--apply")
	p.current(t, "next-ca", "first")
	p.gives(t, p.next)
	p.notStaged(t)
	if _, errOut, code := p.Postern(t.Context(), nil, "ca", "rollover", "switch", "--to", "next-ca", "--apply"); code != 1 || !strings.Contains(errOut, "already") {
		t.Errorf("once more: %d %s", code, errOut)
	}
}

func (p *place) back(t *testing.T) {
	t.Helper()
	p.postern(t, "ca", "rollover", "back", "--apply")
	p.current(t, "first", "next-ca")
	p.gives(t, p.old)
	if code, _, _ := p.get(t, "GetNextCACert"); code != http.StatusOK {
		t.Errorf("GetNextCACert after the way back: %d", code)
	}
}

// rebuild makes the index anew from the log: it says the same.
func (p *place) rebuild(t *testing.T) {
	t.Helper()
	if r := told[struct{ Same bool }](t, p, "rebuild", "--apply"); !r.Same {
		t.Error("the index that was made anew is another one")
	}
}
