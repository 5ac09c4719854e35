package scep_test

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/cms"
)

// Covers: S-001, S-008, S-061, S-081, S-082, S-084, S-100, S-120, S-123, S-124, S-125, S-172
func TestSuccess(t *testing.T) {
	for _, c := range []struct {
		name   string
		cipher cms.Cipher
		digest crypto.Hash
		want   crypto.Hash
		typ    string
	}{
		{"AES-128 and SHA-256", cms.AES128CBC, crypto.SHA256, crypto.SHA256, "19"},
		{"AES-256 and SHA-512", cms.AES256CBC, crypto.SHA512, crypto.SHA512, "17"},
		{"legacy", cms.DES3CBC, crypto.SHA1, crypto.SHA1, "19"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.service.LegacySHA1, w.service.LegacyDES3 = c.name == "legacy", c.name == "legacy"
			var envelope []byte
			r := w.certRep(t, w.post(t, w.message(t, func(r *request) {
				r.cipher, r.digest, r.attrs[1] = c.cipher, c.digest, messageType(c.typ)
				r.content = func(b []byte) []byte { envelope = b; return b }
			})))
			if r.status != "0" || r.failInfo != "" || r.failText != "" || r.Digest != c.want {
				t.Errorf("status %q, failInfo %q, digest %v", r.status, r.failInfo, r.Digest)
			}
			e := must(cms.ParseEnvelope(must(cms.DER(r.Content, cms.DefaultLimits()))(t)))(t)
			if e.Cipher != c.cipher || len(e.Recipients) != 1 || !e.Recipients[0].Names(w.device.parsed(t)) {
				t.Errorf("cipher %v, %d recipients", e.Cipher, len(e.Recipients))
			}
			key := must(w.device.key.(*rsa.PrivateKey).Decrypt(rand.Reader, e.Recipients[0].EncryptedKey, nil))(t)
			certs := must(cms.ParseCertsOnly(must(cms.DER(must(e.Open(key))(t), cms.DefaultLimits()))(t)))(t)
			if len(certs) != 1 {
				t.Errorf("%d certificates, want the issued one alone", len(certs))
			}
			p := w.submitted[0].Proof
			if w.submitted[0].Protocol != "scep" || w.submitted[0].Profile != "wifi" || w.submitted[0].Source == "" || !w.submitted[0].Arrived.Equal(arrived) ||
				!bytes.Equal(p.SignerCert, w.device.cert) || !bytes.Equal(p.Envelope, envelope) || len(p.ContentKey) != c.cipher.KeySize() ||
				cms.Verify(w.device.parsed(t), p.Digest, p.SignedAttrs, p.Signature, p.Envelope) != nil {
				t.Errorf("request %+v", w.submitted[0])
			}
			if len(w.rejected) != 0 || len(w.slept) != 0 {
				t.Error("a success was recorded as rejected, or delayed")
			}
		})
	}
}

// A signer that is named as one of the CA's may have another key than the CSR.
func TestRenewalOfAnotherKey(t *testing.T) {
	w := newWorld(t)
	ours := certify(t, "device", w.device.key, &w.ca)
	r := w.certRep(t, w.post(t, w.message(t, func(r *request) { r.signer, r.csrKey = ours, w.other.key })))
	if r.status != "0" {
		t.Errorf("status %q, %s", r.status, r.failText)
	}
}

func flipLast(b []byte) []byte { b = bytes.Clone(b); b[len(b)-1] ^= 1; return b }

// Covers: S-051, S-052, S-057, S-080, S-087, S-088, S-091, S-103, S-173
func TestUniformFailure(t *testing.T) {
	w := newWorld(t)
	n := w.raDecrypt.key.(*rsa.PrivateKey).N
	replaceKey := func(value []byte) func([]byte) []byte {
		return func(b []byte) []byte {
			return bytes.Replace(b, must(cms.ParseEnvelope(b))(t).Recipients[0].EncryptedKey, value, 1)
		}
	}
	cases := map[string]struct {
		change   func(*request)
		decrypts int
	}{
		"flipped signature":   {func(r *request) { r.message = flipLast }, 0},
		"no content":          {func(r *request) { r.content = func([]byte) []byte { return nil } }, 0},
		"content not DER":     {func(r *request) { r.content = func([]byte) []byte { return []byte{0x30, 9} } }, 0},
		"content no envelope": {func(r *request) { r.content = func([]byte) []byte { return w.csr(t, w.device.key) } }, 0},
		"other recipient": {func(r *request) {
			r.content = func([]byte) []byte {
				return must(cms.Envelop(rand.Reader, w.csr(t, w.device.key), w.other.parsed(t), cms.AES128CBC))(t)
			}
		}, 0},
		"key is the modulus": {func(r *request) { r.content = replaceKey(n.Bytes()) }, 0},
		"garbled key":        {func(r *request) { r.content = replaceKey(append([]byte{0}, bytes.Repeat([]byte{7}, 255)...)) }, 1},
		"key of the wrong length": {func(r *request) {
			//lint:ignore SA1019 it is the key transport of SCEP
			long := must(rsa.EncryptPKCS1v15(rand.Reader, &w.raDecrypt.key.(*rsa.PrivateKey).PublicKey, make([]byte, 32)))(t) //nolint:staticcheck // it is the key transport of SCEP
			r.content = replaceKey(long)
		}, 1},
		"garbled content":       {func(r *request) { r.content = flipLast }, 1},
		"CSR is not DER":        {func(r *request) { r.csr = func([]byte) []byte { return []byte("hello") } }, 1},
		"CSR is something else": {func(r *request) { r.csr = func([]byte) []byte { return w.device.cert } }, 1},
		"CSR with trailing":     {func(r *request) { r.csr = func(b []byte) []byte { return append(b, 0) } }, 1},
		"CSR of another key":    {func(r *request) { r.csrKey = w.other.key }, 1},
		"CSR of an EC key":      {func(r *request) { r.csrKey = ecKey(t) }, 1},
		"authority":             {nil, 1},
		"CSR signature":         {func(r *request) { r.csr = flipLast }, 1}, // which the authority verifies
	}
	var want string
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w.decrypts, w.rejected, w.slept, w.submitted = 0, nil, nil, nil
			w.submit = func(protocol.Request) (protocol.Outcome, error) {
				return protocol.Outcome{RequestID: "req-0001", Status: protocol.Refused, Refusal: &protocol.Refusal{Kind: protocol.BadProof, Say: "something telling"}}, nil
			}
			res := w.post(t, w.message(t, c.change))
			r := w.certRep(t, res)
			res.header.Del("Date")
			got := fmt.Sprint(res.status, res.header, len(res.body), r.status, r.failInfo, r.failText, r.Content == nil, len(r.Attributes), len(r.Certificates))
			if want == "" {
				want = got
			}
			if got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			if r.status != "2" || r.failInfo != "1" || r.failText != "the message does not prove what it says (request req-0001)" {
				t.Errorf("failInfo %q, %q", r.failInfo, r.failText)
			}
			if len(w.slept) != 1 || w.slept[0] != 50*time.Millisecond {
				t.Errorf("slept %v", w.slept)
			}
			if w.decrypts != c.decrypts {
				t.Errorf("%d decryptions, want %d", w.decrypts, c.decrypts)
			}
			if name == "authority" || name == "CSR signature" {
				if len(w.rejected) != 0 {
					t.Error("recorded twice")
				}
				return
			}
			if len(w.submitted) != 0 {
				t.Error("reached the authority")
			}
			if got := w.lastRejected(t); got.Kind != protocol.BadProof || got.Why == "" || got.Transaction != "abc_1@x" || got.MessageType != "19" ||
				len(got.MessageDigest) != 64 || got.Bytes == 0 || got.Operation != "PKIOperation" || got.Source == "" || got.Served {
				t.Errorf("recorded %+v", got)
			}
		})
	}
}

func TestGrid(t *testing.T) {
	for elapsed, want := range map[time.Duration]time.Duration{
		0: 50, time.Millisecond: 49, 49 * time.Millisecond: 1, 50 * time.Millisecond: 50, 130 * time.Millisecond: 20, -time.Hour: 50,
	} {
		w := newWorld(t)
		calls := 0
		w.now = func() time.Time {
			calls++
			if calls == 1 {
				return arrived
			}
			return arrived.Add(elapsed)
		}
		w.certRep(t, w.post(t, w.message(t, func(r *request) { r.message = flipLast })))
		if len(w.slept) != 1 || w.slept[0] != want*time.Millisecond {
			t.Errorf("after %v slept %v, want %d ms", elapsed, w.slept, want)
		}
	}
}

// Covers: S-024, S-030, S-082, S-083, S-170, S-185
func TestAlgorithms(t *testing.T) {
	w := newWorld(t)
	ec := certify(t, "ec", ecKey(t), nil)
	for name, change := range map[string]func(*request){
		"SHA-1":     func(r *request) { r.digest = crypto.SHA1 },
		"SHA-384":   func(r *request) { r.digest = crypto.SHA384 },
		"3DES":      func(r *request) { r.cipher = cms.DES3CBC },
		"AES-192":   func(r *request) { r.cipher = cms.AES192CBC },
		"EC signer": func(r *request) { r.signer = ec },
		"MD5":       func(r *request) { r.message = md5 },
		"unknown digest": func(r *request) {
			r.message = func(b []byte) []byte {
				return bytes.ReplaceAll(b, sha256OID, append(bytes.Clone(sha256OID[:10]), 0x7f))
			}
		},
		"Ed25519 signer": func(r *request) {
			r.message = func(b []byte) []byte { return withCertificate(t, b, ed25519Cert(t, w.device)) }
		},
		"single DES": func(r *request) { r.content = singleDES },
		"unknown key transport": func(r *request) {
			r.content = func(b []byte) []byte {
				return recipients(t, b, func(mine []byte) []byte {
					return bytes.Replace(mine, rsaOID, append(bytes.Clone(rsaOID[:10]), 0x0a), 1)
				})
			}
		},
		"unknown cipher": func(r *request) {
			r.content = func(b []byte) []byte { return bytes.Replace(b, aesOID, append(bytes.Clone(aesOID[:10]), 0x7e), 1) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := w.certRep(t, w.post(t, w.message(t, change)))
			if r.status != "2" || r.failInfo != "0" || w.lastRejected(t).Kind != protocol.BadAlgorithm {
				t.Errorf("status %q, failInfo %q, %q", r.status, r.failInfo, r.failText)
			}
			if strings.Contains(r.failText, "RSA") != strings.HasSuffix(name, "signer") {
				t.Errorf("the device is told %q", r.failText)
			}
			if r.Digest == crypto.SHA1 {
				t.Error("answered with SHA-1")
			}
		})
	}
	if w.decrypts != 0 {
		t.Error("the key was used")
	}
}

// sha256OID names SHA-256.
var sha256OID = []byte{0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01}

// md5 names MD5 (1.2.840.113549.2.5) where a message names SHA-256, with a length
// that takes one octet more than it needs.
func md5(b []byte) []byte {
	return bytes.ReplaceAll(b, sha256OID, []byte{0x06, 0x81, 0x08, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x05})
}

// withCertificate puts a certificate in the place of all those in a SignedData.
func withCertificate(t testing.TB, message, cert []byte) []byte {
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
	data.Certificates = asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: cert}
	info.Content = asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: must(asn1.Marshal(data))(t)}
	return must(asn1.Marshal(info))(t)
}

// ed25519Cert has h's name and serial number, and another type of key.
func ed25519Cert(t testing.TB, h holder) []byte {
	t.Helper()
	c := must(x509.ParseCertificate(h.cert))(t)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: c.SerialNumber, RawSubject: c.RawSubject, NotBefore: c.NotBefore, NotAfter: c.NotAfter}
	return must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t)
}

// rsaOID names rsaEncryption.
var rsaOID = []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01}

// aesOID names AES-128-CBC.
var aesOID = []byte{0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x02}

// singleDES names DES-CBC (1.3.14.3.2.7) where an envelope names AES-128-CBC.
func singleDES(b []byte) []byte {
	des := []byte{0x06, 0x05, 0x2b, 0x0e, 0x03, 0x02, 0x07}
	at := bytes.Index(b, aesOID)
	iv := b[at+len(aesOID)+2:]
	out := append(bytes.Clone(b[:at]), des...)
	return append(append(out, 0x04, 0x14, 0, 0, 0, 0), iv...) // the IV fills the place
}

// Covers: S-027, S-060, S-064, S-160
func TestMessageTypes(t *testing.T) {
	w := newWorld(t)
	name := w.issuerAndSerial(t, w.raSign)
	types := []string{"", "019", "19 ", "+19", "-1", "99999999999999999999", "x"}
	for i := range 256 {
		types = append(types, strconv.Itoa(i))
	}
	// What is submitted, and with how many uses of the RA-decrypt key.
	served := map[string]int{"17": 1, "19": 1, "20": 0, "21": 1, "22": 1}
	for _, typ := range types {
		w.decrypts, w.submitted = 0, nil
		r := w.certRep(t, w.post(t, w.message(t, func(r *request) {
			if r.attrs[1] = messageType(typ); typ == "21" || typ == "22" {
				r.csr = func([]byte) []byte { return name }
			}
		})))
		if decrypts, ok := served[typ]; ok {
			if r.status != "0" || w.decrypts != decrypts || len(w.submitted) != 1 || (len(w.submitted[0].Proof.ContentKey) > 0) != (decrypts > 0) {
				t.Errorf("type %s: status %q, %d decryptions", typ, r.status, w.decrypts)
			}
		} else if r.status != "2" || r.failInfo != "2" || w.decrypts != 0 || w.lastRejected(t).Kind != protocol.Unsupported || w.submitted != nil {
			t.Errorf("type %s: status %q, failInfo %q, %d decryptions", typ, r.status, r.failInfo, w.decrypts)
		}
	}
	r := w.certRep(t, w.post(t, w.message(t, func(r *request) { r.attrs = []cms.Attribute{transaction, nonce} })))
	if r.failInfo != "2" {
		t.Errorf("no type: failInfo %q", r.failInfo)
	}
}

// Covers: S-008, S-061, S-062, S-065, S-066, S-070, S-131, S-141
func TestOutcomes(t *testing.T) {
	w := newWorld(t)
	refused := func(k protocol.Kind, say string) protocol.Outcome {
		return protocol.Outcome{RequestID: "id", Status: protocol.Refused, Refusal: &protocol.Refusal{Kind: k, Say: say}}
	}
	for _, c := range []struct {
		outcome          protocol.Outcome
		status, failInfo string
	}{
		{protocol.Outcome{RequestID: "id", Status: protocol.Pending}, "3", ""},
		{protocol.Outcome{RequestID: "id", Status: protocol.Refused}, "2", "2"},
		{refused(protocol.Unclassified, "no"), "2", "2"},
		{refused(protocol.BadAlgorithm, "no"), "2", "0"},
		{refused(protocol.NotAllowed, "no"), "2", "2"},
		{refused(protocol.Unsupported, "no"), "2", "2"},
		{refused(protocol.BadTime, "no"), "2", "3"},
		{refused(protocol.NotFound, "no"), "2", "4"},
		{refused(protocol.Kind(99), "no"), "2", "2"},
		{refused(protocol.NotAllowed, strings.Repeat("é", 500)), "2", "2"},
		{refused(protocol.NotAllowed, "\xff\xfe"), "2", "2"},
	} {
		w.submit = func(protocol.Request) (protocol.Outcome, error) { return c.outcome, nil }
		r := w.certRep(t, w.post(t, w.message(t, nil)))
		if r.status != c.status || r.failInfo != c.failInfo || r.Content != nil {
			t.Errorf("%+v: status %q, failInfo %q", c.outcome, r.status, r.failInfo)
		}
		if n := utf8.RuneCountInString(r.failText); n > 200 || !utf8.ValidString(r.failText) {
			t.Errorf("failInfoText of %d characters", n)
		}
		if c.status == "2" && !strings.HasSuffix(r.failText, " (request id)") {
			t.Errorf("failInfoText %q", r.failText)
		}
	}
}

// Covers: S-013
func TestFaults(t *testing.T) {
	boom := errors.New("secret detail")
	issued := func(o protocol.Outcome) func(*world) {
		return func(w *world) { w.submit = func(protocol.Request) (protocol.Outcome, error) { return o, nil } }
	}
	for name, set := range map[string]func(*world){
		"service":   func(w *world) { w.serviceErr = boom },
		"signer":    func(w *world) { w.signerErr = boom },
		"decrypter": func(w *world) { w.decryptErr = boom },
		"submit": func(w *world) {
			w.submit = func(protocol.Request) (protocol.Outcome, error) { return protocol.Outcome{}, boom }
		},
		"panic":          func(w *world) { w.submit = func(protocol.Request) (protocol.Outcome, error) { panic(boom) } },
		"no certificate": issued(protocol.Outcome{Status: protocol.Issued}),
		"no status":      issued(protocol.Outcome{}),
		"record":         func(w *world) { w.rejectErr = boom; w.service.Ciphers = nil },
		"RA certificate": func(w *world) { w.service.Current().RADecrypt = []byte{0x30, 0} },
		"CA certificate": func(w *world) { w.service.Current().CA = nil },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			message := w.message(t, nil)
			set(w)
			r := w.post(t, message)
			after, err := strconv.Atoi(r.header.Get("Retry-After"))
			if r.status != http.StatusServiceUnavailable || string(r.body) != "service unavailable\n" || err != nil || after < 5 || after > 15 {
				t.Errorf("status %d, %q, Retry-After %d, %v", r.status, r.body, after, err)
			}
			// What reached the authority is recorded there; the rest here, once.
			if len(w.submitted) == 0 && (len(w.rejected) != 1 || w.rejected[0].Why == "") || len(w.submitted) > 0 && len(w.rejected) > 0 {
				t.Errorf("%d submitted, recorded %+v", len(w.submitted), w.rejected)
			}
		})
	}
}

func TestNoncesAreFresh(t *testing.T) {
	w := newWorld(t)
	message := w.message(t, func(r *request) { r.message = flipLast })
	seen := map[string]bool{}
	for range 2000 {
		seen[string(w.certRep(t, w.post(t, message)).senderNonce)] = true
	}
	if len(seen) != 2000 {
		t.Errorf("%d different nonces of 2000", len(seen))
	}
}
