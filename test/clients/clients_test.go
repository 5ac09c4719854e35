package clients

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// raw sends what it is given over TLS, as it is.
func raw(t *testing.T, host, request string) (status int, contentType string, body []byte) {
	t.Helper()
	conn := must(tls.Dial("tcp", host, must(shared.TLS())(t)))(t)
	defer func() { _ = conn.Close() }()
	must(io.WriteString(conn, request))(t)
	res := must(http.ReadResponse(bufio.NewReader(conn), nil))(t)
	defer func() { _ = res.Body.Close() }()
	return res.StatusCode, res.Header.Get("Content-Type"), must(io.ReadAll(res.Body))(t)
}

// An old router: HTTP/1.0 without Host, GET with lines of base64 on the path that
// other servers have, SHA-1 and triple DES, and a renewal as PKCSReq that its old
// certificate signs. It is served by the profile that allows just that, and named by
// the report.
// Covers: S-004, S-007, S-019, S-082, S-115
func TestAnOldRouter(t *testing.T) {
	const cn = "router.demo.example"
	d := at(t, "old")
	host := must(url.Parse(d.URL))(t).Host
	send := func(m client.Message) *client.Rep {
		m.Cipher, m.Digest = cms.DES3CBC, crypto.SHA1
		message := must(d.Request(m))(t).DER
		var lines strings.Builder
		for b := base64.StdEncoding.EncodeToString(message); b != ""; b = b[min(64, len(b)):] {
			lines.WriteString(b[:min(64, len(b))] + "\n")
		}
		status, contentType, body := raw(t, host, fmt.Sprintf("GET /cgi-bin/pkiclient.exe?operation=PKIOperation&message=%s HTTP/1.0\r\nUser-Agent: Mozilla/4.0 (compatible; MSIE 5.0; Cisco PKI)\r\n\r\n",
			url.QueryEscape(lines.String())))
		if status != http.StatusOK || contentType != "application/x-pki-message" {
			t.Fatalf("%d, %s: %s", status, contentType, body)
		}
		rep := read(t, body)
		if rep.Signed.Digest != crypto.SHA1 {
			t.Errorf("answered with %v", rep.Signed.Digest)
		}
		return rep
	}
	first := toRSA(t, send(signed(t, device, request(t, device, cn, challenge(t, "old", cn)))), cms.DES3CBC)
	if got := reported(t, "old").of(cn); got != "http-1.0 no-host get base64-lines sha-1 3des" {
		t.Errorf("after the enrollment the report says %q", got)
	}
	second := toRSA(t, send(client.Message{Type: scep.PKCSReq, Signer: first.Raw, SignerKey: device, CSR: request(t, device, cn, "")}), cms.DES3CBC)
	if second.SerialNumber.Cmp(first.SerialNumber) == 0 {
		t.Error("the renewal gave the same certificate")
	}
	if got := reported(t, "old").of(cn); got != "http-1.0 no-host get base64-lines sha-1 3des renewal-by-pkcsreq" {
		t.Errorf("after the renewal the report says %q", got)
	}
	for _, c := range reported(t, "old").Clients {
		if strings.Contains(c.Subject, cn) && (c.Source != "127.0.0.1" || !strings.Contains(c.Agent, "Cisco PKI") || c.Requests != 2) {
			t.Errorf("%+v", c)
		}
	}
}

// What is old is refused where the profile does not name it, whoever asks, and the
// report says who did.
// Covers: S-024, S-030, S-082, S-185
func TestOldAlgorithmsAreRefusedByName(t *testing.T) {
	const cn = "stubborn.demo.example"
	d, secret := at(t, "curves"), challenge(t, "curves", cn)
	csr := request(t, device, cn, secret)
	for name, change := range map[string]func(*client.Message){
		"SHA-1":      func(m *client.Message) { m.Digest = crypto.SHA1 },
		"triple DES": func(m *client.Message) { m.Cipher = cms.DES3CBC },
	} {
		m := signed(t, device, csr)
		change(&m)
		if rep := send(t, d, m); rep.Status != scep.StatusFailure || rep.FailInfo != scep.BadAlg || rep.Signed.Digest == crypto.SHA1 {
			t.Errorf("%s: status %d, failInfo %d, signed with %v", name, rep.Status, rep.FailInfo, rep.Signed.Digest)
		}
	}
	traits := map[string]int{}
	for _, u := range reported(t, "curves").Traits {
		traits[u.Trait] = u.Requests
	}
	if traits["sha-1"] != 1 || traits["3des"] != 1 {
		t.Errorf("the report says %v", traits)
	}
	toRSA(t, send(t, d, signed(t, device, csr)), cms.AES128CBC) // which cost no challenge
}

// A device with an ECDSA key has its first certificate under its challenge, which
// OpenSSL opens; sent again, the same one. Its renewal could not be answered and is
// refused before anything is issued.
// Covers: S-170, S-171, S-172
func TestCurves(t *testing.T) {
	d := at(t, "curves")
	for cn, curve := range map[string]elliptic.Curve{"p256.demo.example": elliptic.P256(), "p384.demo.example": elliptic.P384()} {
		key := must(ecdsa.GenerateKey(curve, rand.Reader))(t)
		secret := challenge(t, "curves", cn)
		r := must(d.Request(signed(t, key, request(t, key, cn, secret))))(t)
		var serials []string
		for range 2 {
			rep := read(t, must(d.Post(t.Context(), r.DER))(t).DER)
			if rep.Status != scep.StatusSuccess {
				t.Fatalf("%s: failInfo %d, %q", cn, rep.FailInfo, rep.FailInfoText)
			}
			cert := certificateOf(t, openssl(t, rep.Signed.Content, "cms", "-decrypt", "-binary", "-inform", "DER", "-pwri_password", secret))
			if !sameKey(cert, key) || cert.KeyUsage != x509.KeyUsageDigitalSignature || cert.Subject.CommonName != cn {
				t.Errorf("%s: %s, usage %v", cn, cert.Subject, cert.KeyUsage)
			}
			if serials = append(serials, cert.SerialNumber.String()); serials[0] != cert.SerialNumber.String() {
				t.Errorf("%s: another certificate the second time", cn)
			}
			renewals(t, d, cert, key, cn)
		}
	}
	// At a profile that does not have it so, the device is told.
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	rep := send(t, at(t, "demo"), signed(t, key, request(t, key, "p256.demo.example", "x")))
	if rep.FailInfo != scep.BadAlg || !strings.Contains(rep.FailInfoText, "SCEP needs an RSA key") {
		t.Errorf("failInfo %d, %q", rep.FailInfo, rep.FailInfoText)
	}
}

// renewals wants both forms of a renewal by an ECDSA certificate refused.
func renewals(t *testing.T, d *site.Device, cert *x509.Certificate, key *ecdsa.PrivateKey, cn string) {
	t.Helper()
	csr := request(t, key, cn, "")
	for _, typ := range []int{scep.PKCSReq, scep.RenewalReq} {
		rep := send(t, d, client.Message{Type: typ, Signer: cert.Raw, SignerKey: key, CSR: csr})
		if rep.FailInfo != scep.BadAlg || !strings.Contains(rep.FailInfoText, "enroll anew, with a challenge") {
			t.Errorf("%s, type %d: status %d, failInfo %d, %q", cn, typ, rep.Status, rep.FailInfo, rep.FailInfoText)
		}
	}
}

// Somebody else's envelope, signed anew by an ECDSA key, is the one answer of all
// that proves nothing, also where the signer says to be of the CA: an answer under a
// challenge is no way to find out what an envelope holds.
// Covers: S-087, S-103
func TestAnEnvelopeOfSomebodyElse(t *testing.T) {
	const cn = "victim.demo.example"
	d := at(t, "curves")
	secret := challenge(t, "curves", cn)
	m := signed(t, device, request(t, device, cn, secret))
	envelope := must(cms.ParseSigned(must(d.Request(m))(t).DER))(t).Content
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	self := must(site.SelfSigned(key, pkix.Name{CommonName: "device"}, time.Now(), time.Now().Add(time.Hour)))(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: cn}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	forged := must(x509.CreateCertificate(rand.Reader, template, &x509.Certificate{RawSubject: d.CA.CA.RawSubject}, key.Public(), key))(t)
	for who, cert := range map[string][]byte{"a stranger": self, "one in the CA's name": forged} {
		for what, content := range map[string][]byte{"as it was": envelope, "garbled": append(bytes.Clone(envelope[:len(envelope)-1]), envelope[len(envelope)-1]^1)} {
			rep := read(t, must(d.Post(t.Context(), signedBy(t, cert, key, content)))(t).DER)
			if rep.FailInfo != scep.BadMessageCheck || !strings.HasPrefix(rep.FailInfoText, "the message does not prove what it says (request ") || rep.Signed.Content != nil {
				t.Errorf("%s, %s: status %d, failInfo %d, %q", who, what, rep.Status, rep.FailInfo, rep.FailInfoText)
			}
		}
	}
	toRSA(t, send(t, d, m), cms.AES128CBC) // the challenge is as good as before
}

// A device may sign with an RSA key that can have the answer, where its profile has
// it so, and have its other key certified.
// Covers: S-173
func TestHelpedBySomebodysRSAKey(t *testing.T) {
	const cn = "helped.demo.example"
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	d := at(t, "helped")
	cert := toRSA(t, send(t, d, signed(t, device, request(t, key, cn, challenge(t, "helped", cn)))), cms.AES128CBC)
	if !sameKey(cert, key) {
		t.Errorf("the certificate is for %T", cert.PublicKey)
	}
	if rep := send(t, at(t, "curves"), signed(t, device, request(t, key, cn, challenge(t, "curves", cn)))); rep.FailInfo != scep.BadMessageCheck {
		t.Errorf("elsewhere: status %d, failInfo %d", rep.Status, rep.FailInfo)
	}
}

// The token opens OAEP as it opens PKCS #1 v1.5.
// Covers: S-085
func TestOAEP(t *testing.T) {
	d := at(t, "old")
	ra := filepath.Join(t.TempDir(), "ra.pem")
	if err := os.WriteFile(ra, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d.CA.RADecrypt.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, options := range map[string][]string{"sha1": nil, "sha256": {"-keyopt", "rsa_oaep_md:sha256"}, "mixed": {"-keyopt", "rsa_oaep_md:sha256", "-keyopt", "rsa_mgf1_md:sha1"}} {
		cn := "oaep-" + name + ".demo.example"
		args := append([]string{"cms", "-encrypt", "-binary", "-outform", "DER", "-aes128", "-recip", ra, "-keyopt", "rsa_padding_mode:oaep"}, options...)
		envelope := openssl(t, request(t, device, cn, challenge(t, "old", cn)), args...)
		rep := read(t, must(d.Post(t.Context(), resigned(t, must(d.Request(signed(t, device, nil)))(t).DER, envelope)))(t).DER)
		if got := toRSA(t, rep, cms.AES128CBC).Subject.CommonName; got != cn {
			t.Errorf("%s: %s", name, got)
		}
		if got := reported(t, "old").of(cn); got != "oaep" {
			t.Errorf("%s: the report says %q", name, got)
		}
	}
}

// resigned puts another envelope into a message of the device.
func resigned(t *testing.T, message, envelope []byte) []byte {
	t.Helper()
	s := must(cms.ParseSigned(message))(t)
	return signedBy(t, s.Signer.Raw, device, envelope)
}

// signedBy is a PKCSReq with any envelope.
func signedBy(t *testing.T, cert []byte, key crypto.Signer, envelope []byte) []byte {
	t.Helper()
	printable := func(s string) []byte { return append([]byte{0x13, byte(len(s))}, s...) }
	return must(cms.Sign(cms.SignOptions{
		Certificate: must(cms.ParseCertificate(cert))(t), Key: key, Digest: crypto.SHA256, Content: envelope,
		Attributes: []cms.Attribute{
			{Type: scep.OIDTransactionID, Value: printable(rand.Text())}, {Type: scep.OIDMessageType, Value: printable("19")},
			{Type: scep.OIDSenderNonce, Value: append([]byte{4, 16}, "0123456789abcdef"...)},
		},
	}))(t)
}

// A challenge of kilobytes is read, and no one-time challenge: it is refused in the
// words for any other, and stands nowhere.
// Covers: S-093, S-183
func TestKilobytesForAChallenge(t *testing.T) {
	const cn = "long.demo.example"
	long := strings.Repeat("0123456789abcdef", 512)
	rep := send(t, at(t, "demo"), signed(t, device, request(t, device, cn, long)))
	if rep.FailInfo != scep.BadRequest || !strings.Contains(rep.FailInfoText, "the challenge is not valid for this request") {
		t.Errorf("failInfo %d, %q", rep.FailInfo, rep.FailInfoText)
	}
	for _, l := range must(shared.Lines(0))(t) {
		if bytes.Contains(l.Raw, []byte(long[:64])) {
			t.Error("the log has it")
		}
	}
}

// What profiles allow that is weaker than need be is said.
func TestStatusNamesWeakerProfiles(t *testing.T) {
	status := must(shared.Status(t.Context()))(t)
	all := fmt.Sprint(status["weaker"])
	for _, want := range []string{"profile old takes messages that are signed with SHA-1", "profile old takes messages that are encrypted with triple DES", "profile helped takes requests that another key signed"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not in %s", want, all)
		}
	}
	if strings.Contains(all, "profile demo") || strings.Contains(all, "profile curves") {
		t.Errorf("too much is called weak: %s", all)
	}
}
