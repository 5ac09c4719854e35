package scep_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
)

var arrived = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// A holder has a key and a certificate for it.
type holder struct {
	key  crypto.Signer
	cert []byte
}

func (h holder) parsed(t testing.TB) *cms.Certificate {
	t.Helper()
	return must(cms.ParseCertificate(h.cert))(t)
}

// must makes an error the test's end.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// keys are made once: device, another device, RA-sign, RA-decrypt, CA.
var keys = sync.OnceValues(func() (out [5]*rsa.PrivateKey, err error) {
	for i := range out {
		if out[i], err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			return out, err
		}
	}
	return out, nil
})

// certify issues a certificate; without an issuer a self-signed one.
func certify(t testing.TB, name string, key crypto.Signer, issuer *holder) holder {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: must(rand.Int(rand.Reader, big.NewInt(1<<62)))(t), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: name == "ca", BasicConstraintsValid: true,
	}
	parent, signer := template, key
	if issuer != nil {
		template.SubjectKeyId = []byte(name)
		parent, signer = must(x509.ParseCertificate(issuer.cert))(t), issuer.key
	}
	return holder{key, must(x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer))(t)}
}

// A world is a handler with its authority and keys, and a device before it.
type world struct {
	*httptest.Server
	device, other, raSign, raDecrypt, ca holder
	more                                 []holder // RA of other generations
	anyRA                                bool     // may sign the answers
	service                              protocol.Service
	fallback                             string

	mu         sync.Mutex
	submit     func(protocol.Request) (protocol.Outcome, error)
	rejectErr  error
	serviceErr error
	signerErr  error
	decryptErr error
	now        func() time.Time
	submitted  []protocol.Request
	rejected   []protocol.Rejected
	slept      []time.Duration
	decrypts   int
	signs      int
}

func newWorld(t testing.TB) *world {
	t.Helper()
	k := must(keys())(t)
	w := &world{now: func() time.Time { return arrived }}
	w.device, w.other = certify(t, "device", k[0], nil), certify(t, "other", k[1], nil)
	w.ca = certify(t, "ca", k[4], nil)
	w.raSign, w.raDecrypt = certify(t, "ra sign", k[2], &w.ca), certify(t, "ra decrypt", k[3], &w.ca)
	w.service = protocol.Service{
		Profile: "wifi", Capabilities: []string{"AES", "POSTPKIOperation", "SHA-256", "SCEPStandard"},
		Generations: []protocol.Generation{{Name: "first", RASign: w.raSign.cert, RADecrypt: w.raDecrypt.cert, CA: w.ca.cert, Chain: [][]byte{w.other.cert}}},
		Digests:     []crypto.Hash{crypto.SHA256, crypto.SHA512}, Ciphers: []string{"AES-128-CBC", "AES-256-CBC"},
	}
	issued := certify(t, "issued", k[0], &w.ca)
	w.submit = func(protocol.Request) (protocol.Outcome, error) {
		return protocol.Outcome{RequestID: "req-9999", Status: protocol.Issued, Certificates: [][]byte{issued.cert, w.ca.cert}}, nil
	}
	w.Server = httptest.NewTLSServer(w.handler())
	t.Cleanup(w.Close)
	return w
}

func (w *world) handler() http.Handler {
	return scep.NewHandler(scep.Options{
		Authority: w, Keys: w, DefaultProfile: w.fallback, Now: func() time.Time { return w.now() }, BrokenPerMinute: 1 << 20, // other tests break more than one may
		Sleep: func(_ context.Context, d time.Duration) { w.mu.Lock(); w.slept = append(w.slept, d); w.mu.Unlock() },
	})
}

// restart has the server use a handler of what the world is now.
func (w *world) restart(t testing.TB) {
	t.Helper()
	w.Close()
	w.Server = httptest.NewTLSServer(w.handler())
	t.Cleanup(w.Close)
}

func (w *world) Service(_ context.Context, profile string) (protocol.Service, error) {
	if profile != w.service.Profile {
		return protocol.Service{}, fmt.Errorf("fake: %w", protocol.ErrUnknownProfile)
	}
	return w.service, w.serviceErr
}

func (w *world) Submit(_ context.Context, r protocol.Request) (protocol.Outcome, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.submitted = append(w.submitted, r)
	return w.submit(r)
}

func (w *world) Reject(ctx context.Context, r protocol.Rejected) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return "", err
	}
	w.rejected = append(w.rejected, r)
	return fmt.Sprintf("req-%04d", len(w.rejected)), w.rejectErr
}

func (w *world) Signer(_ context.Context, _ string, ra []byte) (crypto.Signer, error) {
	w.mu.Lock()
	w.signs++
	w.mu.Unlock()
	for _, h := range w.held() {
		if bytes.Equal(h.cert, ra) {
			return h.key, w.signerErr
		}
	}
	return nil, protocol.ErrUnknownRA
}

func (w *world) Decrypter(_ context.Context, _ string, ra []byte) (crypto.Decrypter, error) {
	for _, h := range w.held() {
		if bytes.Equal(h.cert, ra) {
			return decrypter{w, h.key}, nil
		}
	}
	return nil, protocol.ErrUnknownRA
}

// held are the RA certificates whose keys the handler may use.
func (w *world) held() []holder { return append([]holder{w.raSign, w.raDecrypt}, w.more...) }

// decrypter is an RA-decrypt key as the token has it.
type decrypter struct {
	w   *world
	key crypto.Signer
}

func (d decrypter) Public() crypto.PublicKey { return d.key.Public() }

func (d decrypter) Decrypt(_ io.Reader, ciphertext []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	d.w.decrypts++
	if o, ok := opts.(*protocol.OAEPOptions); ok {
		return d.w.openOAEP(ciphertext, o)
	}
	//lint:ignore SA1019 as protocol.Keys says
	o, ok := opts.(*rsa.PKCS1v15DecryptOptions) //nolint:staticcheck // as protocol.Keys says
	if !ok || o.SessionKeyLen == 0 {
		return nil, errors.New("fake: options")
	}
	if d.w.decryptErr != nil {
		return nil, d.w.decryptErr
	}
	key := make([]byte, o.SessionKeyLen)
	_, _ = rand.Read(key)
	//lint:ignore SA1019 as the token does
	err := rsa.DecryptPKCS1v15SessionKey(nil, d.key.(*rsa.PrivateKey), ciphertext, key) //nolint:staticcheck // as the token does
	return key, err
}

// openOAEP is [decrypter.Decrypt] for the other key transport.
func (w *world) openOAEP(ciphertext []byte, o *protocol.OAEPOptions) ([]byte, error) {
	key, err := w.raDecrypt.key.(*rsa.PrivateKey).Decrypt(nil, ciphertext, &rsa.OAEPOptions{Hash: o.Hash, MGFHash: o.MGF})
	if err != nil || len(key) != o.KeyLen {
		key = make([]byte, o.KeyLen)
		_, _ = rand.Read(key)
	}
	return key, w.decryptErr
}

func (w *world) lastRejected(t testing.TB) protocol.Rejected {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.rejected) == 0 {
		t.Fatal("nothing was recorded")
	}
	return w.rejected[len(w.rejected)-1]
}

// der is an element; all of the tests' values are short of 64 KiB.
func der(tag int, value []byte) []byte {
	out, err := asn1.Marshal(asn1.RawValue{Tag: tag, Bytes: value})
	if err != nil {
		panic(err)
	}
	return out
}

var (
	transaction = cms.Attribute{Type: scep.OIDTransactionID, Value: der(asn1.TagPrintableString, []byte("abc_1@x"))}
	nonce       = cms.Attribute{Type: scep.OIDSenderNonce, Value: der(asn1.TagOctetString, []byte("0123456789abcdef"))}
)

func messageType(s string) cms.Attribute {
	return cms.Attribute{Type: scep.OIDMessageType, Value: der(asn1.TagPrintableString, []byte(s))}
}

// A request is what a test changes of a good message.
type request struct {
	signer  holder
	csrKey  crypto.Signer
	cipher  cms.Cipher
	digest  crypto.Hash
	attrs   []cms.Attribute
	csr     func([]byte) []byte // changes the CSR
	content func([]byte) []byte // changes the envelope
	message func([]byte) []byte // changes the whole
}

func (w *world) csr(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	return must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "device"}}, key))(t)
}

func (w *world) message(t testing.TB, change func(*request)) []byte {
	t.Helper()
	same := func(b []byte) []byte { return b }
	r := &request{
		signer: w.device, csrKey: w.device.key, cipher: cms.AES128CBC, digest: crypto.SHA256,
		attrs: []cms.Attribute{transaction, messageType("19"), nonce}, csr: same, content: same, message: same,
	}
	if change != nil {
		change(r)
	}
	csr := r.csr(w.csr(t, r.csrKey))
	envelope := must(cms.Envelop(rand.Reader, csr, w.raDecrypt.parsed(t), r.cipher))(t)
	return r.message(must(cms.Sign(cms.SignOptions{
		Certificate: r.signer.parsed(t), Key: r.signer.key, Digest: r.digest, Attributes: r.attrs, Content: r.content(envelope),
	}))(t))
}

type reply struct {
	status int
	header http.Header
	body   []byte
}

func (w *world) do(t testing.TB, method, path string, body []byte, header ...string) reply {
	t.Helper()
	req := must(http.NewRequest(method, w.URL+path, bytes.NewReader(body)))(t)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res := must(w.Client().Do(req))(t)
	defer func() { _ = res.Body.Close() }()
	return reply{res.StatusCode, res.Header, must(io.ReadAll(res.Body))(t)}
}

func (w *world) post(t testing.TB, message []byte) reply {
	t.Helper()
	return w.do(t, http.MethodPost, "/scep/wifi?operation=PKIOperation", message)
}

// certRep is a reply that was verified and taken apart.
type certRep struct {
	*cms.Signed
	status, failInfo, failText string
	senderNonce                []byte
}

func (w *world) certRep(t testing.TB, r reply) certRep {
	t.Helper()
	c := w.certRepTo(t, r, transaction, nonce)
	if len(c.senderNonce) != 16 {
		t.Errorf("senderNonce %x", c.senderNonce)
	}
	return c
}

// certRepTo is certRep of a request with other attributes, which are echoed.
func (w *world) certRepTo(t testing.TB, r reply, transaction, nonce cms.Attribute) certRep {
	t.Helper()
	if r.status != http.StatusOK || r.header.Get("Content-Type") != "application/x-pki-message" {
		t.Fatalf("status %d, type %q, body %q", r.status, r.header.Get("Content-Type"), r.body)
	}
	s := must(cms.ParseSigned(must(cms.DER(r.body, cms.DefaultLimits()))(t)))(t)
	if err := s.Verify(); err != nil {
		t.Fatal(err)
	}
	if !w.anyRA && !bytes.Equal(s.Signer.Raw, w.raSign.cert) {
		t.Error("the reply's signer is not RA-sign")
	}
	value := func(oid asn1.ObjectIdentifier) []byte {
		i := slices.IndexFunc(s.Attributes, func(a cms.Attribute) bool { return a.Type.Equal(oid) })
		if i < 0 {
			return nil
		}
		return s.Attributes[i].Value
	}
	plain := func(oid asn1.ObjectIdentifier, tag byte) string {
		v := value(oid)
		if v == nil {
			return ""
		}
		var raw asn1.RawValue
		if _, err := asn1.Unmarshal(v, &raw); err != nil || v[0] != tag {
			t.Fatalf("attribute %v: %x", oid, v)
		}
		return string(raw.Bytes)
	}
	if !bytes.Equal(value(scep.OIDTransactionID), transaction.Value) || !bytes.Equal(value(scep.OIDRecipientNonce), nonce.Value) {
		t.Error("transactionID or nonce was not echoed")
	}
	if got := plain(scep.OIDMessageType, asn1.TagPrintableString); got != "3" {
		t.Errorf("messageType %q", got)
	}
	return certRep{Signed: s, status: plain(scep.OIDPKIStatus, asn1.TagPrintableString), failInfo: plain(scep.OIDFailInfo, asn1.TagPrintableString),
		failText: plain(scep.OIDFailInfoText, asn1.TagUTF8String), senderNonce: []byte(plain(scep.OIDSenderNonce, asn1.TagOctetString))}
}

func ecKey(t testing.TB) crypto.Signer {
	t.Helper()
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
}
