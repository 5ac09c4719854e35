package status_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/protocol/scep/client"
)

// A revocation is in the next list and in the next answer, for openssl too; the
// certificate does not renew, and another one is as good as before.
//
// Covers: S-114, S-162, S-163, S-186
func TestARevocationIsToldToTheWorld(t *testing.T) {
	w := newWorld(t)
	bad, badKey, badFile := w.enroll("bad.demo.example")
	good, _, goodFile := w.enroll("good.demo.example")
	before, path := w.crl()
	w.openssl("verify OK", "crl", "-inform", "DER", "-in", path, "-CAfile", w.CA(), "-noout")
	for _, cert := range []string{badFile, goodFile} {
		w.ocsp("good", cert)
		w.ocsp("good", cert, "-sha256")
	}
	if bad.CRLDistributionPoints[0] != "http://pki.demo.example/crl/demo.crl" || bad.OCSPServer[0] != "http://pki.demo.example/ocsp/demo" || bad.IssuingCertificateURL[0] != "http://pki.demo.example/ca/demo.cer" {
		t.Errorf("the certificate says its status is at %v, %v, %v", bad.CRLDistributionPoints, bad.OCSPServer, bad.IssuingCertificateURL)
	}

	w.refusals(serial(bad))
	w.postern(0, "cert", "revoke", serial(bad), "--reason", "keyCompromise", "--apply")
	w.ocsp("Reason: keyCompromise", badFile) // at once
	w.ocsp("revoked", badFile, "-sha256")
	w.ocsp("good", goodFile)
	after, took := w.listed(bad)
	t.Logf("from the revocation to the list: %s", took)
	e, _ := lists(after, bad)
	if after.Number.Cmp(before.Number) <= 0 || e.ReasonCode != 1 || time.Since(e.RevocationTime) > time.Minute {
		t.Errorf("list %v after %v: %+v", after.Number, before.Number, e)
	}
	if _, also := lists(after, good); also {
		t.Error("another certificate is listed")
	}
	_, path = w.crl()
	w.openssl("verify OK", "crl", "-inform", "DER", "-in", path, "-CAfile", w.CA(), "-noout")
	pemCRL := filepath.Join(w.dir, "crl.pem")
	w.openssl("", "crl", "-inform", "DER", "-in", path, "-out", pemCRL)
	w.openssl("certificate revoked", "verify", "-CAfile", w.CA(), "-CRLfile", pemCRL, "-crl_check", badFile)
	w.openssl(goodFile+": OK", "verify", "-CAfile", w.CA(), "-CRLfile", pemCRL, "-crl_check", goodFile)

	d := must(w.Device(t.Context(), "demo"))(t)
	next := must(rsa.GenerateKey(rand.Reader, 2048))(t)
	if _, err := d.Renew(t.Context(), client.Renewal{OldCert: bad, OldKey: badKey, NewKey: next}); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("a renewal by the revoked certificate: %v", err)
	}
	list := must(d.CRL(t.Context(), client.Identity{}, good.SerialNumber))(t)
	if !bytes.Equal(list.Raw, after.Raw) {
		t.Errorf("GetCRL is answered with list %v", list.Number)
	}
	w.rebuilt()
}

// refusals are what cannot be done to a certificate.
func (w *world) refusals(serial string) {
	w.t.Helper()
	for _, reason := range []string{"", "certificateHold", "removeFromCRL", "cACompromise", "7"} {
		if _, say := w.postern(2, "cert", "revoke", serial, "--reason", reason, "--apply"); !strings.Contains(say, "keyCompromise") {
			w.t.Errorf("reason %q: %s", reason, say)
		}
	}
	if out, _ := w.postern(0, "cert", "revoke", serial, "--reason", "superseded"); !strings.Contains(out, "nothing was changed") {
		w.t.Errorf("without --apply: %s", out)
	}
	w.postern(1, "cert", "revoke", "00ff00ff", "--reason", "superseded", "--apply")
}

// rebuilt wants a rebuild to give the index that there is, and the next start to serve
// the list that there is.
func (w *world) rebuilt() {
	w.t.Helper()
	before, _ := w.crl()
	no(w.t, w.Stop())
	out, _ := w.postern(0, "rebuild", "--output", "json", "--apply")
	var r struct{ Same bool }
	if err := json.Unmarshal([]byte(out), &r); err != nil || !r.Same {
		w.t.Errorf("the rebuilt index is another one: %s", out)
	}
	w.start()
	if l, _ := w.crl(); !bytes.Equal(l.Raw, before.Raw) {
		w.t.Errorf("after a restart list %v in place of %v", l.Number, before.Number)
	}
	// A list that is not the newest is replaced, and numbers go on.
	no(w.t, w.Stop())
	no(w.t, os.Remove(w.Path("state", "crl", "demo.crl")))
	w.start()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if resp, _ := w.fetch(http.MethodGet, "/crl/demo.crl", nil); resp.StatusCode == http.StatusOK || time.Now().After(deadline) {
			break
		}
	}
	if l, _ := w.crl(); l.Number.Cmp(before.Number) <= 0 || len(l.RevokedCertificateEntries) != len(before.RevokedCertificateEntries) {
		w.t.Errorf("list %v with %d entries after %v with %d", l.Number, len(l.RevokedCertificateEntries), before.Number, len(before.RevokedCertificateEntries))
	}
	no(w.t, w.Verify(w.t.Context()))
}

// Revocations of one second share a list: who revokes a hundred phones makes a few.
func TestListsAreApart(t *testing.T) {
	w := newWorld(t)
	var certs []*x509.Certificate
	for _, cn := range []string{"a.demo.example", "b.demo.example", "c.demo.example", "d.demo.example", "e.demo.example", "f.demo.example"} {
		c, _, _ := w.enroll(cn)
		certs = append(certs, c)
	}
	before := len(w.records("crl", "issued"))
	begin := time.Now()
	var group sync.WaitGroup
	for _, c := range certs {
		group.Go(func() { w.postern(0, "cert", "revoke", serial(c), "--reason", "cessationOfOperation", "--apply") })
	}
	group.Wait()
	for _, c := range certs {
		w.listed(c)
	}
	lists, seconds := len(w.records("crl", "issued"))-before, int(time.Since(begin)/time.Second)
	if lists > seconds+2 {
		t.Errorf("%d lists in %d seconds", lists, seconds)
	}
	intents := w.records("crl", "intent")
	for i, r := range intents {
		if i > 0 && r.Object.Object("crl").Int("number") != intents[i-1].Object.Object("crl").Int("number")+1 {
			t.Errorf("list %d comes after %d", r.Object.Object("crl").Int("number"), intents[i-1].Object.Object("crl").Int("number"))
		}
	}
	w.postern(1, "cert", "revoke", serial(certs[0]), "--reason", "superseded", "--apply") // it is revoked
	if out, _ := w.postern(0, "cert", "show", serial(certs[0])); !strings.Contains(out, "for cessationOfOperation") {
		t.Errorf("cert show: %s", out)
	}
}

// What is not a question about a certificate of ours gets an answer that nobody signed.
func TestStrangersQuestions(t *testing.T) {
	w := newWorld(t)
	_, _, file := w.enroll("a.demo.example")
	resp, _ := w.fetch(http.MethodGet, "/crl/demo.crl", nil)
	tag, cache := resp.Header.Get("ETag"), resp.Header.Get("Cache-Control")
	if resp, body := w.fetch(http.MethodGet, "/crl/demo.crl", nil, "If-None-Match", tag); resp.StatusCode != http.StatusNotModified || len(body) > 0 || !strings.Contains(cache, "max-age=") {
		t.Errorf("%s again: %s, Cache-Control %q", tag, resp.Status, cache)
	}
	for path, code := range map[string]int{"/crl/other.crl": 404, "/crl/demo": 404, "/crl/../demo.crl": 404, "/crl/demo.crl/x": 404, "/ocsp/other": 404, "/ocsp/": 404} {
		if resp, _ := w.fetch(map[bool]string{true: http.MethodPost, false: http.MethodGet}[strings.HasPrefix(path, "/ocsp")], path, nil); resp.StatusCode != code {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	unknown := filepath.Join(w.dir, "unknown.der")
	w.openssl("", "ocsp", "-issuer", w.CA(), "-serial", "0x00112233445566778899aabbccddeeff", "-reqout", unknown)
	another := filepath.Join(w.dir, "another.der")
	w.openssl("", "ocsp", "-issuer", w.Path("ceremony", "operator-ca.pem"), "-cert", file, "-reqout", another)
	for what, c := range map[string]struct {
		body []byte
		want byte
	}{
		"a serial that nobody knows": {must(os.ReadFile(unknown))(t), 6}, "another issuer": {must(os.ReadFile(another))(t), 6},
		"no octets": {nil, 1}, "no question": {[]byte("hello"), 1}, "too much": {make([]byte, 2000), 1},
	} {
		resp, body := w.fetch(http.MethodPost, "/ocsp/demo", c.body)
		if resp.StatusCode != http.StatusOK || !bytes.Equal(body, []byte{0x30, 3, 0x0a, 1, c.want}) || resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %s, %x", what, resp.Status, body)
		}
	}
	w.getIsPost(file)
	no(t, w.Stop())
	served := w.records("status", "served")
	if len(served) != 1 {
		t.Fatalf("%d records of what was asked", len(served))
	}
	c := served[0].Object.Object("issuers").Object("demo")
	if c.Int("crl") == 0 || c.Int("good") == 0 || c.Int("unauthorized") != 2 || c.Int("malformed") != 3 {
		t.Errorf("%v", c)
	}
}

// getIsPost asks by GET, in each way that base64 is escaped.
func (w *world) getIsPost(file string) {
	w.t.Helper()
	want := w.ocsp("good", file, "-no_nonce")
	ask := base64.StdEncoding.EncodeToString(must(os.ReadFile(filepath.Join(w.dir, "ask.der")))(w.t))
	for _, path := range []string{ask, url.PathEscape(ask), url.QueryEscape(ask)} {
		resp, body := w.fetch(http.MethodGet, "/ocsp/demo/"+path, nil)
		if resp.StatusCode != http.StatusOK || !bytes.Equal(body, want) || resp.Header.Get("ETag") == "" {
			w.t.Errorf("GET %s: %s, %v", path, resp.Status, resp.Header)
		}
	}
}

func (w *world) records(event, outcome string) []audit.Record {
	w.t.Helper()
	var all []audit.Record
	for _, l := range must(w.Lines(0))(w.t) {
		if l.Record.Event == event && l.Record.Outcome == outcome {
			all = append(all, l.Record)
		}
	}
	return all
}

// ended is an answer of last year.
func ended(t *testing.T) []byte {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	c := &x509.Certificate{RawSubject: []byte{0x30, 0}, RawSubjectPublicKeyInfo: must(x509.MarshalPKIXPublicKey(key.Public()))(t)}
	then := time.Now().AddDate(-1, 0, 0)
	return must(ocsp.CreateResponse(c, c, ocsp.Response{SerialNumber: big.NewInt(1), ThisUpdate: then, NextUpdate: then.Add(time.Hour)}, key))(t)
}

// What is published is what is served, for a web server that knows nothing of it.
func TestPublishedFilesAreWhatIsServed(t *testing.T) {
	w := newWorld(t)
	_, _, file := w.enroll("a.demo.example")
	bad, _, badFile := w.enroll("b.demo.example")
	w.postern(0, "cert", "revoke", serial(bad), "--reason", "superseded", "--apply")
	w.listed(bad)
	dir := filepath.Join(t.TempDir(), "www")
	w.postern(0, "crl", "publish", "--dir", dir)
	_, path := w.crl()
	if !bytes.Equal(must(os.ReadFile(path))(t), must(os.ReadFile(filepath.Join(dir, "crl", "demo.crl")))(t)) {
		t.Error("another list is published")
	}
	w.openssl("Postern Demo Device CA", "x509", "-inform", "DER", "-in", filepath.Join(dir, "ca", "demo.cer"), "-noout", "-subject")
	for cert, say := range map[string]string{file: "good", badFile: "revoked"} {
		for _, hash := range []string{"-sha1", "-sha256"} {
			ask := filepath.Join(w.dir, "ask.der")
			w.openssl("", "ocsp", hash, "-issuer", w.CA(), "-cert", cert, "-no_nonce", "-reqout", ask)
			answer := filepath.Join(dir, "ocsp", "demo", filepath.FromSlash(base64.StdEncoding.EncodeToString(must(os.ReadFile(ask))(t))))
			w.openssl(say, "ocsp", hash, "-issuer", w.CA(), "-cert", cert, "-respin", answer, "-CAfile", w.CA(), "-no_nonce")
		}
	}
	// What has ended goes, and what is somebody else's stays.
	old, other := filepath.Join(dir, "ocsp", "demo", "old"), filepath.Join(dir, "ocsp", "demo", "README")
	no(t, os.WriteFile(other, []byte("hello"), 0o600))
	no(t, os.WriteFile(old, ended(t), 0o600))
	w.postern(0, "crl", "publish", "--dir", dir)
	_, errOld := os.Stat(old)
	if _, err := os.Stat(other); err != nil || !os.IsNotExist(errOld) {
		t.Errorf("a file that is no answer: %v; an answer that has ended: %v", err, errOld)
	}
	var files []string
	no(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, filepath.Base(path))
		}
		return err
	}))
	if slices.ContainsFunc(files, func(f string) bool { return strings.HasPrefix(f, ".new-") }) {
		t.Errorf("parts of files are left: %v", files)
	}
}
