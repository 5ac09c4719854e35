package pipeline_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// asSerial is a serial number that depends on a text.
func asSerial(s string) *big.Int {
	sum := sha256.Sum256([]byte(s))
	return new(big.Int).SetBytes(sum[:8])
}

// plainly sends a request line as it stands, and returns the status.
func plainly(t *testing.T, d *site.Device, method, path string) int {
	t.Helper()
	conn := dial(t, d)
	must(fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", method, path))(t)
	resp := must(http.ReadResponse(bufio.NewReader(conn), nil))(t)
	defer func() { _ = resp.Body.Close() }()
	return resp.StatusCode
}

// TestAttack03AnotherDoorToTheCA knocks where other protocols and other servers have
// one, at the devices' listener and, with an operator's certificate, at the
// operators'. That the keyholder signs for nobody without an intent in the log is
// tried by package roles.
//
func TestAttack03AnotherDoorToTheCA(t *testing.T) {
	d := at(t, "demo")
	from := logSize(t)
	for _, path := range []string{
		"/.well-known/est/simpleenroll", "/.well-known/est/demo/simplereenroll", "/.well-known/est/serverkeygen", "/.well-known/cmp", "/cmp/demo", "/acme/directory", "/acme/demo/new-order",
		"/1.0/sign", "/sign", "/api/v1/certificates", "/api/v1/challenges", "/certsrv/mscep_admin/", "/certsrv/certfnsh.asp", "/ejbca/publicweb/apply/scep/pkiclient.exe", "/",
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			if got := plainly(t, d, method, path); got != http.StatusNotFound {
				t.Errorf("%s %s: %d", method, path, got)
			}
		}
	}
	cert := must(tls.LoadX509KeyPair(shared.Path("ceremony", "operator.pem"), shared.Path("ceremony", "operator.key")))(t)
	h := must(shared.HTTP(cert))(t)
	defer h.CloseIdleConnections()
	csr := base64.StdEncoding.EncodeToString(ask(t, keys[0], "door.demo.example", ""))
	for _, path := range []string{"/api/v1/certificates", "/api/v1/certificates/sign", "/api/v1/sign", "/api/v1/issue", "/scep/demo?operation=PKIOperation"} {
		for _, method := range []string{http.MethodPost, http.MethodPut} {
			req := must(http.NewRequestWithContext(t.Context(), method, "https://"+operators(t)+path, strings.NewReader(`{"csr":"`+csr+`"}`)))(t)
			req.Header.Set("Content-Type", "application/json")
			resp := must(h.Do(req))(t)
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusNotFound && resp.StatusCode != http.StatusMethodNotAllowed {
				t.Errorf("an operator's %s %s: %s", method, path, resp.Status)
			}
		}
	}
	issuedSince(t, from)
}

// operators is the address of the operators' listener, which the kernel chose.
func operators(t *testing.T) string {
	t.Helper()
	_, rest, ok := strings.Cut(string(must(os.ReadFile(shared.Journal()))(t)), `"operators":"`)
	addr, _, _ := strings.Cut(rest, `"`)
	if _, _, err := net.SplitHostPort(addr); !ok || err != nil {
		t.Fatalf("the service does not say where its operators' listener is: %q", addr)
	}
	return addr
}

// withRecipients changes the SET OF RecipientInfo of an envelope.
func withRecipients(t *testing.T, envelope []byte, change func(mine []byte) []byte) []byte {
	t.Helper()
	var info struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue
	}
	var data struct {
		Version             int
		Recipients, Content asn1.RawValue
	}
	must(asn1.Unmarshal(envelope, &info))(t)
	must(asn1.Unmarshal(info.Content.Bytes, &data))(t)
	data.Recipients = asn1.RawValue{Tag: 17, IsCompound: true, Bytes: change(data.Recipients.Bytes)}
	info.Content = asn1.RawValue{Class: 2, IsCompound: true, Bytes: must(asn1.Marshal(data))(t)}
	return must(asn1.Marshal(info))(t)
}

// TestAttack08SeveralRecipientsAreTried sends envelopes that name the RA more than
// once: with a good key in the one and noise in the other, whether they open would
// tell what the noise decrypts to.
// Covers: A-8, S-086
func TestAttack08SeveralRecipientsAreTried(t *testing.T) {
	d := at(t, "many")
	const cn = "recipients.demo.example"
	c := challenge(t, "many", cn)
	m := selfSigned(t, keys[0], ask(t, keys[0], cn, c.Challenge))
	noise := func(mine []byte) []byte {
		b := bytes.Clone(mine)
		must(rand.Read(b[len(b)-200:]))(t)
		return b
	}
	foreign := func() (b []byte) {
		to := must(cms.ParseCertificate(certificateFor(t, keys[9], d.CA.RASign)))(t)
		envelope := must(cms.Envelop(rand.Reader, []byte("x"), to, cms.AES128CBC))(t)
		withRecipients(t, envelope, func(r []byte) []byte { b = bytes.Clone(r); return r })
		return b
	}()
	try := func(change func([]byte) []byte) error {
		r := must(d.Request(m))(t)
		forge(t, m, r, func(e []byte) []byte { return withRecipients(t, e, change) })
		_, err := d.Do(t.Context(), r)
		return err
	}
	for what, change := range map[string]func([]byte) []byte{
		"noise, then good": func(b []byte) []byte { return slices.Concat(noise(b), b) },
		"good, then noise": func(b []byte) []byte { return slices.Concat(b, noise(b)) },
		"good, twice":      func(b []byte) []byte { return slices.Concat(b, b) },
		"noise, twice":     func(b []byte) []byte { return slices.Concat(noise(b), noise(b)) },
	} {
		t.Run(what, func(t *testing.T) {
			refused(t, try(change)).is(t, badMessageCheck, notProven).rejected(t, "recipients")
		})
	}
	if err := try(func(b []byte) []byte { return slices.Concat(foreign, b) }); err != nil {
		t.Errorf("beside a recipient that is somebody else: %v", err)
	}
}

// TestAttack09EncodingsThatReadBeyondTheEnd sends what parsers of BER fell over.
//
func TestAttack09EncodingsThatReadBeyondTheEnd(t *testing.T) {
	d := at(t, "many")
	const cn = "ber.demo.example"
	good := must(d.Request(selfSigned(t, keys[0], ask(t, keys[0], cn, challenge(t, "many", cn).Challenge))))(t)
	half := len(good.DER) / 2
	for what, message := range map[string][]byte{
		"indefinite lengths in each other":   bytes.Repeat([]byte{0x30, 0x80}, 32<<10),
		"segments in each other":             bytes.Repeat([]byte{0x24, 0x80}, 32<<10),
		"definite lengths in each other":     nested(30000),
		"ends without a beginning":           make([]byte, 64<<10),
		"a length of 4 GiB":                  {0x30, 0x84, 0xff, 0xff, 0xff, 0xff},
		"a length beyond 64 bits":            {0x30, 0x89, 1, 0, 0, 0, 0, 0, 0, 0, 0},
		"a length that wraps around":         {0x30, 0x88, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"a length of no octets":              {0x30, 0xff},
		"a length that is cut":               {0x30, 0x82, 1},
		"a tag without an end":               bytes.Repeat([]byte{0x3f, 0xff}, 1000),
		"one octet":                          {0x30},
		"an indefinite length, and no more":  {0x30, 0x80},
		"a message and its first half again": slices.Concat(good.DER, good.DER[:half]),
		"a message from its middle on":       good.DER[half:],
		"a message in a length of its own":   append([]byte{0x30, 0x80}, good.DER...),
	} {
		_, err := d.Post(t.Context(), message)
		isStatus(t, what, err, http.StatusBadRequest)
	}
	must(d.Do(t.Context(), good))(t)
}

// nested is SEQUENCEs in each other, of definite lengths, n octets in all.
func nested(n int) []byte {
	var b []byte
	for len(b) < n {
		head := []byte{0x30, 0x82, byte(len(b) >> 8), byte(len(b))}
		b = append(b, head[3], head[2], head[1], head[0]) // turned around below
	}
	slices.Reverse(b)
	return b
}

// TestAttack12TheRAsCertificatesAreAgents: those that GetCACert gives are for the RA
// alone, there is no page with a password for all, and a profile has a budget.
// Covers: A-12, S-037
func TestAttack12TheRAsCertificatesAreAgents(t *testing.T) {
	d := at(t, "few")
	agent := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 1}
	for what, c := range map[*x509.Certificate]x509.KeyUsage{d.CA.RASign: x509.KeyUsageDigitalSignature, d.CA.RADecrypt: x509.KeyUsageKeyEncipherment} {
		if what.KeyUsage != c || what.IsCA || len(what.ExtKeyUsage) > 0 || len(what.UnknownExtKeyUsage) != 1 || !what.UnknownExtKeyUsage[0].Equal(agent) {
			t.Errorf("%v: usage %b, extended %v %v", what.Subject, what.KeyUsage, what.ExtKeyUsage, what.UnknownExtKeyUsage)
		}
	}
	for _, path := range []string{"/certsrv/mscep_admin", "/certsrv/mscep_admin/", "/scep/few/certsrv/mscep_admin/"} {
		if got := plainly(t, d, http.MethodGet, path); got != http.StatusNotFound {
			t.Errorf("%s: %d", path, got)
		}
	}
	var errs []error
	var c site.Challenge
	for i := range 4 {
		cn := fmt.Sprintf("budget-%d.demo.example", i)
		c = challenge(t, "few", cn)
		if _, err := enroll(t, d, keys[0], cn, c.Challenge); err != nil {
			errs = append(errs, err)
			refused(t, err).is(t, badRequest, "")
		}
	}
	if len(errs) < 1 || len(errs) > 2 { // the minute may end meanwhile
		t.Errorf("%d of 4 requests were refused, with a budget of 2 a minute: %v", len(errs), errs)
	}
}

// TestAttack14AnAnswerThatOthersCanRead sends further certificates along, and sends a
// message again.
// Covers: A-14, S-123
func TestAttack14AnAnswerThatOthersCanRead(t *testing.T) {
	d := at(t, "many")
	const cn = "readers.demo.example"
	m := selfSigned(t, keys[0], ask(t, keys[0], cn, challenge(t, "many", cn).Challenge))
	other := must(site.SelfSigned(keys[1], name("other"), time.Now(), time.Now().Add(time.Hour)))(t)
	m.Chain = [][]byte{other, d.CA.CA.Raw}
	r := must(d.Request(m))(t)
	var certificate []byte
	nonces := map[string]bool{string(r.Expect.SenderNonce): true}
	for i := range 5 {
		reply := must(d.Post(t.Context(), r.DER))(t)
		rep := must(client.Inspect(reply))(t)
		e := must(cms.ParseEnvelope(must(cms.DER(rep.Signed.Content, cms.DefaultLimits()))(t)))(t)
		if len(e.Recipients) != 1 || !e.Recipients[0].Names(must(cms.ParseCertificate(m.Signer))(t)) {
			t.Errorf("answer %d can be read by %d recipients", i, len(e.Recipients))
		}
		if nonces[string(rep.SenderNonce)] {
			t.Errorf("answer %d has a nonce that was there before", i)
		}
		nonces[string(rep.SenderNonce)] = true
		got := must(client.Open(reply, r.Expect))(t).Certificate.Raw
		if certificate == nil {
			certificate = got
		}
		if !bytes.Equal(got, certificate) {
			t.Errorf("answer %d has another certificate", i)
		}
	}
	if n := listed(t, cn); n != 1 {
		t.Errorf("%d certificates", n)
	}
}

// TestAttack16PathsThatAreReadTwice asks for profiles in ways that a second decoding,
// or a file system, would understand.
//
func TestAttack16PathsThatAreReadTwice(t *testing.T) {
	d := at(t, "demo")
	for _, path := range []string{
		"/scep/%2564emo", "/scep/%25%36%34emo", "/scep/interop%2f..%2fdemo", "/scep/interop/../demo", "/scep/./demo", "/scep/demo%00", "/scep/demo%00.pem", "/scep/../../etc/passwd", "/scep/..%2f..%2fetc%2fpasswd",
		"/scep/%2e%2e/demo", `/scep/..\demo`, "/scep/demo%5c", "/scep/DEMO", "/scep/demo;interop", "/scep/demo%20", "/scep/demo/pkiclient.exe/..", "/scep//demo", "//scep/demo", "/scep/demo%2fpkiclient.exe", "/scep/profiles.yaml", "/scep/demo.yaml",
	} {
		if got := plainly(t, d, http.MethodGet, path+"?operation=GetCACaps"); got != http.StatusNotFound && got != http.StatusBadRequest {
			t.Errorf("%s: %d", path, got)
		}
	}
	if got := plainly(t, d, http.MethodGet, "/scep/%64emo?operation=GetCACaps"); got != http.StatusOK {
		t.Errorf("a path that was escaped once: %d", got)
	}
}

// TestAttack17LogsTellSecretsOrLies looks for challenges and requests, good and bad
// ones, in every file that the service wrote, in the forms that a log would have them
// in; and has a stranger write lines of a log into a name and a transactionID.
// Covers: A-17, S-108, S-183
func TestAttack17LogsTellSecretsOrLies(t *testing.T) {
	d := at(t, "many")
	const cn, other = "secret.demo.example", "secret-2.demo.example"
	from := logSize(t)
	_, c := enrolled(t, d, "many", cn, keys[0])
	open := challenge(t, "many", other)
	guess := "hunter2-" + hex.EncodeToString(must(client.Nonce(rand.Reader))(t))
	bad := must(d.Request(selfSigned(t, keys[1], ask(t, keys[1], other, guess))))(t)
	_, err := d.Do(t.Context(), bad)
	refused(t, err).is(t, badRequest, notValid)
	csr := ask(t, keys[2], other, "")
	_, err = send(t, d, selfSigned(t, keys[2], csr))
	refused(t, err)
	const forged = "x\"}\n{\"ev\":\"forged\",\"out\":\"issued\"}\r\n\x1b[2J"
	m := selfSigned(t, keys[3], ask(t, keys[3], forged, ""))
	m.TransactionID = forged
	_, err = send(t, d, m)
	refused(t, err)
	for what, s := range map[string]string{
		"a challenge that was spent": c.Challenge, "one that is open": open.Challenge, "one that was guessed": guess, "it in capitals": strings.ToUpper(c.Challenge),
		"it in base64": base64.StdEncoding.EncodeToString([]byte(c.Challenge)), "it in hex": hex.EncodeToString([]byte(c.Challenge)), "a CSR": string(csr[:64]),
		"a CSR in base64": base64.StdEncoding.EncodeToString(csr)[:64], "a CSR in hex": hex.EncodeToString(csr[:40]), "a message": base64.StdEncoding.EncodeToString(bad.DER)[:64],
	} {
		for _, place := range []string{shared.Path("state"), shared.Path("keyholder"), shared.Journal()} {
			if holds(t, place, s) {
				t.Errorf("%s is in %s", what, place)
			}
		}
	}
	if !holds(t, shared.Path("state"), cn) {
		t.Error("the name is not in the log either: nothing would be found")
	}
	seen := false
	for _, l := range must(shared.Lines(from))(t) {
		r := parse(t, string(l.Raw))
		seen = seen || r.Event == "enroll" && l.Record.Object.String("transaction") == forged
		if r.Event == "forged" || bytes.IndexByte(l.Raw, 0x1b) >= 0 {
			t.Errorf("a stranger's line: %q", l.Raw)
		}
	}
	if !seen {
		t.Error("the transaction is not in the log as it was sent")
	}
	if journal := string(must(os.ReadFile(shared.Journal()))(t)); strings.Contains(journal, "\n{\"ev\":\"forged\"") || strings.Contains(journal, "\x1b") {
		t.Error("a stranger's line is in the journal")
	}
}

// holds reports whether a file, or one below a folder, has these octets.
func holds(t *testing.T, place, s string) bool {
	t.Helper()
	found := false
	err := filepath.WalkDir(place, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		b, err := io.ReadAll(io.LimitReader(f, 256<<20))
		found = found || bytes.Contains(b, []byte(s))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestAttack18WorkThatCostsAStrangerNothing sends what is large, or dear to verify:
// it is refused before the token is asked, and others are served.
// Covers: A-18, S-180
func TestAttack18WorkThatCostsAStrangerNothing(t *testing.T) {
	d := at(t, "many")
	const cn = "cheap.demo.example"
	good := selfSigned(t, keys[0], ask(t, keys[0], cn, challenge(t, "many", cn).Challenge))
	_, err := d.Post(t.Context(), make([]byte, 2<<20))
	isStatus(t, "2 MiB", err, http.StatusRequestEntityTooLarge)
	crowd := good
	for range 16 {
		crowd.Chain = append(crowd.Chain, d.CA.CA.Raw)
	}
	_, err = d.Post(t.Context(), must(d.Request(crowd))(t).DER)
	isStatus(t, "17 certificates", err, http.StatusBadRequest)

	// A modulus that takes a second to reckon with, in the place of the signer's.
	request := must(d.Request(good))(t)
	huge := &rsa.PublicKey{N: new(big.Int).SetBit(new(big.Int).Lsh(keys[0].N, 14336), 0, 1), E: 65537}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: name("device"), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	cert := must(x509.CreateCertificate(rand.Reader, template, template, huge, keys[0]))(t)
	request.DER = withCertificates(t, request.DER, cert)
	from := logSize(t)
	if _, err = d.Do(t.Context(), request); err == nil {
		t.Error("a key of 16,384 bits was taken")
	}
	issuedSince(t, from)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	must(d.Do(ctx, must(d.Request(good))(t)))(t)
}

// withCertificates puts others in the place of a message's certificates.
func withCertificates(t *testing.T, message, certs []byte) []byte {
	t.Helper()
	var info struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue
	}
	var data struct {
		Version                                int
		Digests, Content, Certificates, Signer asn1.RawValue
	}
	must(asn1.Unmarshal(message, &info))(t)
	must(asn1.Unmarshal(info.Content.Bytes, &data))(t)
	data.Certificates = asn1.RawValue{Class: 2, IsCompound: true, Bytes: certs}
	info.Content = asn1.RawValue{Class: 2, IsCompound: true, Bytes: must(asn1.Marshal(data))(t)}
	return must(asn1.Marshal(info))(t)
}
