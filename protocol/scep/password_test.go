package scep_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/cms"
)

const secret = "0123456789abcdefghjkmnpqrs"

// byEC is a request by an ECDSA key of its own.
func byEC(t testing.TB, c elliptic.Curve, challenge []byte) func(*request) {
	t.Helper()
	key := must(ecdsa.GenerateKey(c, rand.Reader))(t)
	signer := certify(t, "ec", key, nil)
	return func(r *request) {
		r.signer = signer
		if challenge == nil {
			r.csrKey = key
			return
		}
		csr := withChallenge(t, key, challenge)
		r.csr = func([]byte) []byte { return csr }
	}
}

// Nothing can be encrypted to a key that is not RSA: that is said at once, and
// nothing is opened.
// Covers: S-170
func TestWhoCannotDecryptIsTold(t *testing.T) {
	w := newWorld(t)
	for _, c := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
		r := w.certRep(t, w.post(t, w.message(t, byEC(t, c, []byte(secret)))))
		if r.status != "2" || r.failInfo != "0" || !strings.HasPrefix(r.failText, "SCEP needs an RSA key: nothing can be encrypted to the key") {
			t.Errorf("%s: %q, %q, %q", c.Params().Name, r.status, r.failInfo, r.failText)
		}
	}
	if w.decrypts != 0 || len(w.submitted) != 0 {
		t.Errorf("%d decryptions, %d submitted", w.decrypts, len(w.submitted))
	}
}

// Where the profile has it so, the answer to a new enrollment is encrypted under its
// challenge, and never not at all.
// Covers: S-171, S-172
func TestPasswordRecipient(t *testing.T) {
	w := newWorld(t)
	w.service.PasswordRecipient = true
	for _, c := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
		r := w.certRep(t, w.post(t, w.message(t, byEC(t, c, []byte(secret)))))
		if r.status != "0" {
			t.Fatalf("%s: %q, %q", c.Params().Name, r.status, r.failText)
		}
		e := must(cms.ParseEnvelope(r.Content))(t)
		if len(e.Recipients) != 0 || len(e.Passwords) != 1 || e.Cipher != cms.AES128CBC {
			t.Fatalf("%s: %d recipients, %d passwords, %v", c.Params().Name, len(e.Recipients), len(e.Passwords), e.Cipher)
		}
		key := must(e.Passwords[0].Key([]byte(secret), e.Cipher.KeySize()))(t)
		certs := must(cms.ParseCertsOnly(must(cms.DER(must(e.Open(key))(t), cms.DefaultLimits()))(t)))(t)
		if len(certs) != 1 {
			t.Errorf("%d certificates", len(certs))
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "e"), r.Content, 0o600); err != nil {
			t.Fatal(err)
		}
		if out := openssl(t, dir, "cms", "-decrypt", "-binary", "-inform", "DER", "-in", "e", "-pwri_password", secret); !bytes.Contains([]byte(out), certs[0]) {
			t.Errorf("openssl read %x", out)
		}
	}
	// An RSA key is encrypted to as ever.
	r := w.certRep(t, w.post(t, w.message(t, nil)))
	if e := must(cms.ParseEnvelope(r.Content))(t); r.status != "0" || len(e.Recipients) != 1 || len(e.Passwords) != 0 {
		t.Errorf("RSA: %q, %d recipients, %d passwords", r.status, len(e.Recipients), len(e.Passwords))
	}
}

// What has no challenge cannot be answered under one: what a message's type says
// before the envelope is opened is told, what the envelope holds is the authority's.
// Covers: S-170, S-171
func TestPasswordRecipientNeedsAChallenge(t *testing.T) {
	w := newWorld(t)
	w.service.PasswordRecipient = true
	for _, typ := range []string{"17", "20", "21", "22"} {
		ec := byEC(t, elliptic.P256(), []byte(secret))
		r := w.certRep(t, w.post(t, w.message(t, func(r *request) { ec(r); r.attrs[1] = messageType(typ) })))
		if r.failInfo != "0" || !strings.HasPrefix(r.failText, "nothing can be encrypted to the key that signed the message: enroll anew") {
			t.Errorf("type %s: %q, %q", typ, r.failInfo, r.failText)
		}
	}
	r := w.certRep(t, w.post(t, w.message(t, func(r *request) {
		r.message = func(b []byte) []byte { return withCertificate(t, b, ed25519Cert(t, w.device)) }
	})))
	if r.failInfo != "0" || w.decrypts != 0 || len(w.submitted) != 0 {
		t.Errorf("Ed25519: %q, %d decryptions", r.failInfo, w.decrypts)
	}
	w.submit = func(protocol.Request) (protocol.Outcome, error) {
		return protocol.Outcome{RequestID: "id", Status: protocol.Refused, Refusal: &protocol.Refusal{Kind: protocol.BadAlgorithm, Say: "no"}}, nil
	}
	if r := w.certRep(t, w.post(t, w.message(t, byEC(t, elliptic.P256(), nil)))); r.failInfo != "0" || len(w.submitted) != 1 {
		t.Errorf("no challenge: %q, %d submitted", r.failInfo, len(w.submitted))
	}
	// Should the authority issue all the same, nothing leaves unencrypted.
	issued := certify(t, "issued", w.device.key, &w.ca)
	w.submit = func(protocol.Request) (protocol.Outcome, error) {
		return protocol.Outcome{RequestID: "id", Status: protocol.Issued, Certificates: [][]byte{issued.cert}}, nil
	}
	if r := w.post(t, w.message(t, byEC(t, elliptic.P256(), nil))); r.status != 503 || bytes.Contains(r.body, issued.cert) {
		t.Errorf("issued without a challenge: %d", r.status)
	}
}

// The CSR's key is the signer's, but where the profile has it otherwise.
// Covers: S-103, S-173
func TestSignerOfAnotherKey(t *testing.T) {
	w := newWorld(t)
	for name, key := range map[string]crypto.Signer{"EC": ecKey(t), "RSA": w.other.key} {
		for anyKey, want := range map[bool]string{false: "2", true: "0"} {
			w.service.AnySignerKey = anyKey
			r := w.certRep(t, w.post(t, w.message(t, func(r *request) { r.csrKey = key })))
			if r.status != want || want == "2" && r.failInfo != "1" {
				t.Errorf("%s, any %v: status %q, failInfo %q", name, anyKey, r.status, r.failInfo)
			}
			if want == "0" {
				if e := must(cms.ParseEnvelope(r.Content))(t); len(e.Recipients) != 1 || !e.Recipients[0].Names(w.device.parsed(t)) {
					t.Errorf("%s: the answer is not to the signer", name)
				}
			}
		}
	}
}
