package scep_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
)

// issuerAndSerial is what names a certificate in a GetCert.
func (w *world) issuerAndSerial(t testing.TB, of holder) []byte {
	t.Helper()
	c := must(x509.ParseCertificate(of.cert))(t)
	return must(asn1.Marshal(struct {
		Issuer asn1.RawValue
		Serial *big.Int
	}{asn1.RawValue{FullBytes: c.RawIssuer}, c.SerialNumber}))(t)
}

// Nothing binds what a GetCert holds to its signer, so an answer of its own to an
// envelope that does not open would let anybody read other people's envelopes.
//
// Covers: S-087, S-160
func TestLookUpUniform(t *testing.T) {
	for _, typ := range []string{"21", "22"} {
		w := newWorld(t)
		name := w.issuerAndSerial(t, w.raSign)
		holds := func(b []byte) func(r *request) {
			return func(r *request) { r.csr = func([]byte) []byte { return b } }
		}
		want := ""
		for what, change := range map[string]func(*request){
			"a name that is not known": holds(name),
			"a CSR":                    func(*request) {},
			"garbage":                  holds([]byte("hello")),
			"a name and more":          holds(append(bytes.Clone(name), 0)),
			"a garbled envelope":       func(r *request) { holds(name)(r); r.content = flipLast },
			"no envelope":              func(r *request) { r.content = func([]byte) []byte { return nil } },
			"the authority finds out":  func(r *request) { holds(name)(r) },
		} {
			refusal := protocol.Refusal{Kind: protocol.NotFound, Say: "another text"}
			w.submit = func(protocol.Request) (protocol.Outcome, error) {
				return protocol.Outcome{RequestID: "req-0001", Status: protocol.Refused, Refusal: &refusal}, nil
			}
			w.slept, w.rejected = nil, nil
			r := w.certRep(t, w.post(t, w.message(t, func(r *request) { r.attrs[1] = messageType(typ); change(r) })))
			if want == "" {
				want = r.failText
			}
			if r.status != "2" || r.failInfo != "4" || r.failText != want || r.Content != nil || len(w.slept) != 1 {
				t.Errorf("type %s, %s: status %q, failInfo %q, %q, %d waits for the grid", typ, what, r.status, r.failInfo, r.failText, len(w.slept))
			}
		}
	}
}

// The answer to a poll does not depend on what its envelope holds, nor on a nonce of
// an answer before: only on who signed it.
//
// Covers: S-065, S-073, S-087, S-141, S-143
func TestPollEnvelopeStaysClosed(t *testing.T) {
	w := newWorld(t)
	w.submit = func(protocol.Request) (protocol.Outcome, error) {
		return protocol.Outcome{RequestID: "id", Status: protocol.Pending}, nil
	}
	for what, change := range map[string]func(*request){
		"garbage":            func(r *request) { r.csr = func([]byte) []byte { return []byte("hello") } },
		"another's CSR":      func(r *request) { r.csrKey = w.other.key },
		"a garbled envelope": func(r *request) { r.content = flipLast },
		"another's nonce": func(r *request) {
			r.attrs = append(r.attrs, cms.Attribute{Type: scep.OIDRecipientNonce, Value: der(asn1.TagOctetString, []byte("another's nonce."))})
		},
	} {
		r := w.certRep(t, w.post(t, w.message(t, func(r *request) { r.attrs[1] = messageType("20"); change(r) })))
		if r.status != "3" || r.Content != nil || w.decrypts != 0 || len(w.slept) != 0 {
			t.Errorf("%s: status %q, failInfo %q, %d decryptions", what, r.status, r.failInfo, w.decrypts)
		}
	}
	r := w.certRep(t, w.post(t, w.message(t, func(r *request) {
		r.attrs[1] = messageType("20")
		r.content = func([]byte) []byte {
			return must(cms.Envelop(rand.Reader, []byte("x"), w.other.parsed(t), cms.AES128CBC))(t)
		}
	})))
	if r.status != "2" || r.failInfo != "1" {
		t.Errorf("an envelope to another recipient: status %q, failInfo %q", r.status, r.failInfo)
	}
}

// Covers: S-162
func TestCRLAlone(t *testing.T) {
	w := newWorld(t)
	ca := must(x509.ParseCertificate(w.ca.cert))(t)
	ca.KeyUsage, ca.SubjectKeyId = x509.KeyUsageCRLSign, []byte{1}
	crl := must(x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(7), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}, ca, w.ca.key))(t)
	w.submit = func(protocol.Request) (protocol.Outcome, error) {
		return protocol.Outcome{RequestID: "id", Status: protocol.Issued, CRL: crl}, nil
	}
	r := w.certRep(t, w.post(t, w.message(t, func(r *request) {
		r.attrs[1], r.csr = messageType("22"), func([]byte) []byte { return w.issuerAndSerial(t, w.raSign) }
	})))
	e := must(cms.ParseEnvelope(must(cms.DER(r.Content, cms.DefaultLimits()))(t)))(t)
	content := must(e.Open(must(w.device.key.(*rsa.PrivateKey).Decrypt(rand.Reader, e.Recipients[0].EncryptedKey, nil))(t)))(t)
	if certs := must(cms.ParseCertsOnly(content))(t); len(certs) != 0 || !bytes.Contains(content, crl) {
		t.Errorf("%d certificates beside the CRL", len(certs))
	}
	file := filepath.Join(t.TempDir(), "crl.p7")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	text := string(must(exec.CommandContext(t.Context(), "openssl", "pkcs7", "-inform", "DER", "-in", file, "-print_certs", "-noout").CombinedOutput())(t))
	structure := string(must(exec.CommandContext(t.Context(), "openssl", "pkcs7", "-inform", "DER", "-in", file, "-print").CombinedOutput())(t))
	if strings.Contains(text, "subject=") || !strings.Contains(structure, "issuer: CN=ca") ||
		!strings.Contains(strings.Join(strings.Fields(structure), " "), "signer_info: <EMPTY>") {
		t.Errorf("openssl: %s %s", text, structure)
	}
}

// made is a constructed element.
func made(tag int, value []byte) []byte {
	out, err := asn1.Marshal(asn1.RawValue{Tag: tag, IsCompound: true, Bytes: value})
	if err != nil {
		panic(err)
	}
	return out
}

func TestParseIssuerAndSerial(t *testing.T) {
	name := must(asn1.Marshal(pkix.Name{CommonName: "ca", Organization: []string{"Example"}}.ToRDNSequence()))(t)
	build := func(parts ...[]byte) []byte { return made(16, bytes.Join(parts, nil)) }
	good := build(name, der(2, []byte{0, 255}))
	got, err := scep.ParseIssuerAndSerial(good)
	if err != nil || !bytes.Equal(got.Issuer, name) || !bytes.Equal(got.Serial, []byte{0, 255}) {
		t.Errorf("%+v, %v", got, err)
	}
	for what, data := range map[string][]byte{
		"nothing": {}, "trailing": append(bytes.Clone(good), 0), "more in it": build(name, der(2, []byte{1}), []byte{5, 0}), "no serial": build(name),
		"an empty serial": build(name, der(2, nil)), "a long serial": build(name, der(2, bytes.Repeat([]byte{1}, 65))), "two names": build(name, name),
		"an RDN that is empty": build(made(16, made(17, nil)), der(2, []byte{1})), "garbage for a name": build(made(16, []byte{1, 2}), der(2, []byte{1})),
		"an attribute without a value": build(made(16, made(17, made(16, []byte{6, 1, 42}))), der(2, []byte{1})),
	} {
		if _, err := scep.ParseIssuerAndSerial(data); !errors.Is(err, scep.ErrContent) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// FuzzIssuerAndSerial: what is read is all that there was.
func FuzzIssuerAndSerial(f *testing.F) {
	name := must(asn1.Marshal(pkix.Name{CommonName: "ca"}.ToRDNSequence()))(f)
	f.Add(made(16, append(bytes.Clone(name), 2, 1, 7)))
	f.Add(made(16, []byte{0x30, 0, 2, 1, 0x80}))
	f.Add([]byte{0x30, 0x80, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := scep.ParseIssuerAndSerial(data)
		if err != nil {
			if !errors.Is(err, scep.ErrContent) {
				t.Error(err)
			}
			return
		}
		if again := made(16, append(bytes.Clone(got.Issuer), der(2, got.Serial)...)); !bytes.Equal(again, data) {
			t.Errorf("%x was read of %x", again, data)
		}
	})
}
