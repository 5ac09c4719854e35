package client_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/pkcs10"
	"github.com/postern-pki/postern/protocol/scep/client"
)

const challenge = "one-time secret"

// keys are made once: root, CA, RA, device, device's new, a stranger's.
var keys = sync.OnceValue(func() []*rsa.PrivateKey {
	var out []*rsa.PrivateKey
	for range 6 {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		out = append(out, k)
	}
	return out
})

const (
	rootKey = iota
	caKey
	raKey
	deviceKey
	newKey
	otherKey
)

func oid(last int) asn1.ObjectIdentifier {
	return asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, last}
}

// A server is a SCEP server that is as wrong as its fields say.
type server struct {
	t                   *testing.T
	root, ca, ra, other *x509.Certificate // other is a second RA certificate of the same CA
	caps                string
	served              [][]byte // by GetCACert
	caType              string
	replyType           string
	status              int // HTTP
	method              string
	request             *cms.Signed
	csr                 *pkcs10.Request
	kind                string   // messageType of the request
	content             []byte   // of its envelope, if that is no CSR
	asked               []string // the raw queries
	bare                bool     // GetCACert has the CA's certificate alone
	sent                byte     // replies

	next       []byte                                // answers GetNextCACert, if there is any
	answer     func() []byte                         // what the envelope of a success holds; nil: the certificate
	attributes func([]cms.Attribute) []cms.Attribute // of the reply
	sign       func(*cms.SignOptions)
	after      func([]byte) []byte
	issue      func(key any) []byte // DER of the certificate
	pkiStatus  string
	cipher     cms.Cipher
}

// isAgent gives a certificate the extended key usage of an RA.
func isAgent(c *x509.Certificate) {
	c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 311, 20, 2, 1}}
}

func issue(t *testing.T, name string, key any, issuer *x509.Certificate, by *rsa.PrivateKey, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
	}
	if change != nil {
		change(template)
	}
	if issuer == nil {
		issuer = template
	} else { // x509 refuses to forge for another key than the issuer's
		forger := *issuer
		forger.PublicKey, issuer = &by.PublicKey, &forger
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key, by)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func isCA(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }

func newServer(t *testing.T) *server {
	k := keys()
	s := &server{t: t, caps: "POSTPKIOperation\nSHA-256\r\nAES\n", status: 200, pkiStatus: "0", cipher: cms.AES128CBC,
		caType: "application/x-x509-ca-ra-cert", replyType: "application/x-pki-message"}
	s.root = issue(t, "root", &k[rootKey].PublicKey, nil, k[rootKey], isCA)
	s.ca = issue(t, "ca", &k[caKey].PublicKey, s.root, k[rootKey], isCA)
	s.ra = issue(t, "ra", &k[raKey].PublicKey, s.ca, k[caKey], isAgent)
	s.other = issue(t, "other", &k[raKey].PublicKey, s.ca, k[caKey], nil)
	s.served = [][]byte{s.ra.Raw, s.ca.Raw, s.root.Raw}
	s.issue = func(key any) []byte { return issue(t, "device", key, s.ca, k[caKey], nil).Raw }
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.asked = append(s.asked, r.URL.RawQuery)
	switch r.URL.Query().Get("operation") {
	case "GetNextCACert":
		if s.next == nil {
			http.Error(w, "no next CA", http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/x-x509-next-ca-cert")
		_, _ = w.Write(s.next)
	case "GetCACaps":
		_, _ = io.WriteString(w, s.caps)
	case "GetCACert":
		body, err := cms.CertsOnly(s.served)
		if err != nil {
			s.t.Error(err)
		}
		kind := s.caType
		if s.bare {
			body, kind = s.ca.Raw, "application/x-x509-ca-cert"
		}
		w.Header().Set("Content-Type", kind)
		_, _ = w.Write(body)
	case "PKIOperation":
		s.method = r.Method
		body, err := io.ReadAll(r.Body)
		if r.Method == http.MethodGet {
			body, err = base64.StdEncoding.DecodeString(r.URL.Query().Get("message"))
		}
		if err != nil {
			s.t.Error(err)
		}
		reply, err := s.reply(body)
		if err != nil {
			s.t.Error(err)
		}
		if s.after != nil {
			reply = s.after(reply)
		}
		w.Header().Set("Content-Type", s.replyType)
		w.WriteHeader(s.status)
		_, _ = w.Write(reply)
	}
}

func str(s string) []byte { return append([]byte{0x13, byte(len(s))}, s...) }

// reply reads a request with everything a server reads, and answers.
func (s *server) reply(message []byte) ([]byte, error) {
	signed, err := cms.ParseSigned(message)
	if err != nil {
		return nil, err
	}
	if err := signed.Verify(); err != nil {
		return nil, err
	}
	s.request = signed
	envelope, err := cms.ParseEnvelope(signed.Content)
	if err != nil {
		return nil, err
	}
	//lint:ignore SA1019 RFC 8894 has no other key transport
	key, err := rsa.DecryptPKCS1v15(nil, keys()[raKey], envelope.Recipients[0].EncryptedKey) //nolint:staticcheck // as above
	if err != nil {
		return nil, err
	}
	content, err := envelope.Open(key)
	if err != nil {
		return nil, err
	}
	value := func(last int) []byte {
		i := slices.IndexFunc(signed.Attributes, func(a cms.Attribute) bool { return a.Type.Equal(oid(last)) })
		return signed.Attributes[i].Value
	}
	s.kind = string(value(2)[2:])
	if err := s.read(content); err != nil {
		return nil, err
	}
	s.sent++
	attributes := []cms.Attribute{
		{Type: oid(7), Value: value(7)}, {Type: oid(2), Value: str("3")}, {Type: oid(3), Value: str(s.pkiStatus)},
		{Type: oid(5), Value: append([]byte{4, 16}, bytes.Repeat([]byte{s.sent}, 16)...)}, {Type: oid(6), Value: value(5)},
	}
	if s.attributes != nil {
		attributes = s.attributes(attributes)
	}
	ra, err := cms.ParseCertificate(s.ra.Raw)
	if err != nil {
		return nil, err
	}
	o := cms.SignOptions{Certificate: ra, Key: keys()[raKey], Digest: crypto.SHA256, Attributes: attributes}
	if s.pkiStatus == "0" {
		certs := s.certificate()
		if s.answer != nil {
			certs = s.answer()
		}
		if o.Content, err = cms.Envelop(rand.Reader, certs, signed.Signer, s.cipher); err != nil {
			return nil, err
		}
	}
	if s.sign != nil {
		s.sign(&o)
	}
	return cms.Sign(o)
}

// read keeps what the envelope holds.
func (s *server) read(content []byte) (err error) {
	if s.kind != "19" && s.kind != "17" {
		s.content = content
		return nil
	}
	if s.csr, err = pkcs10.Parse(content); err != nil {
		return err
	}
	return s.csr.CheckSignature()
}

func (s *server) certificate() []byte {
	if s.csr == nil {
		return nil
	}
	certs, err := cms.CertsOnly([][]byte{s.ca.Raw, s.issue(s.csr.PublicKey)})
	if err != nil {
		s.t.Error(err)
	}
	return certs
}

func fingerprint(c *x509.Certificate) string { return fmt.Sprintf("%x", sha256.Sum256(c.Raw)) }

func (s *server) start() *client.Client {
	h := httptest.NewTLSServer(s)
	s.t.Cleanup(h.Close)
	return &client.Client{URL: h.URL + "/scep/wifi", HTTP: h.Client(), CAFingerprint: fingerprint(s.root)}
}

func enrollment() client.Enrollment {
	return client.Enrollment{
		Key: keys()[deviceKey], Subject: pkix.Name{CommonName: "device"}, DNSNames: []string{"device.corp.example"}, Challenge: []byte(challenge),
	}
}

func (s *server) enroll() (*client.Result, error) {
	return s.start().Enroll(context.Background(), enrollment())
}

func TestEnroll(t *testing.T) {
	s := newServer(t)
	r, err := s.enroll()
	if err != nil {
		t.Fatal(err)
	}
	if !keys()[deviceKey].PublicKey.Equal(r.Certificate.PublicKey) || len(r.Chain) != 2 || !r.Chain[0].Equal(s.ca) || !r.Chain[1].Equal(s.root) {
		t.Errorf("got %v, chain %d", r.Certificate.Subject, len(r.Chain))
	}
	want := fmt.Sprintf("%x", sha256.Sum256(s.csr.RawSPKI))
	if r.TransactionID != want {
		t.Errorf("transaction %s, want %s", r.TransactionID, want)
	}
	if got := string(s.csr.Challenge.Bytes()); got != challenge {
		t.Errorf("challenge %q", got)
	}
	if len(s.csr.DNSNames) != 1 || s.csr.DNSNames[0] != "device.corp.example" || s.csr.Subject[0].Value != "device" {
		t.Errorf("CSR for %v %v", s.csr.Subject, s.csr.DNSNames)
	}
	if s.method != http.MethodPost {
		t.Errorf("method %s", s.method)
	}
	if c := s.request.Signer; !bytes.Equal(c.RawIssuer, c.RawSubject) || !bytes.Equal(c.RawSPKI, s.csr.RawSPKI) {
		t.Error("the signer is not self-signed with the CSR's key")
	}
}

func TestEnrollByGET(t *testing.T) {
	s := newServer(t)
	s.caps = "AES\nSHA-256\n"
	if _, err := s.enroll(); err != nil || s.method != http.MethodGet {
		t.Fatalf("%s: %v", s.method, err)
	}
}

func TestRenew(t *testing.T) {
	k := keys()
	for name, next := range map[string]*rsa.PrivateKey{"a new key": k[newKey], "the same key": k[deviceKey]} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			old := issue(t, "device", &k[deviceKey].PublicKey, s.ca, k[caKey], func(c *x509.Certificate) { c.DNSNames = []string{"device.corp.example"} })
			r, err := s.start().Renew(context.Background(), client.Renewal{OldCert: old, OldKey: k[deviceKey], NewKey: next})
			if err != nil {
				t.Fatal(err)
			}
			if !next.PublicKey.Equal(r.Certificate.PublicKey) || !bytes.Equal(s.request.Signer.Raw, old.Raw) {
				t.Error("another key or signer")
			}
			if !bytes.Equal(s.csr.RawSubject, old.RawSubject) || len(s.csr.DNSNames) != 1 || s.csr.Challenge != nil {
				t.Errorf("CSR for %v %v", s.csr.Subject, s.csr.DNSNames)
			}
		})
	}
}

func replace(last int, value []byte) func([]cms.Attribute) []cms.Attribute {
	return func(all []cms.Attribute) []cms.Attribute {
		for i := range all {
			if all[i].Type.Equal(oid(last)) {
				all[i].Value = value
			}
		}
		return all
	}
}

func drop(last int) func([]cms.Attribute) []cms.Attribute {
	return func(all []cms.Attribute) []cms.Attribute {
		return slices.DeleteFunc(all, func(a cms.Attribute) bool { return a.Type.Equal(oid(last)) })
	}
}

func nonce(n int) []byte { return append([]byte{4, byte(n)}, bytes.Repeat([]byte{9}, n)...) }

// Each fault has to be refused with its own words: another check must not hide
// that the one in question is gone.
func TestRefusedReplies(t *testing.T) {
	k := keys()
	for name, tt := range map[string]struct {
		fault func(*server)
		want  error
		says  string
	}{
		"another recipientNonce":   {func(s *server) { s.attributes = replace(6, nonce(16)) }, client.ErrReply, "recipientNonce"},
		"a cut recipientNonce":     {func(s *server) { s.attributes = replace(6, nonce(0)) }, client.ErrReply, "recipientNonce"},
		"no recipientNonce":        {func(s *server) { s.attributes = drop(6) }, client.ErrReply, "recipientNonce"},
		"no senderNonce":           {func(s *server) { s.attributes = drop(5) }, client.ErrReply, "no senderNonce"},
		"our own senderNonce":      {func(s *server) { s.attributes = ourNonce }, client.ErrReply, "our own"},
		"another transactionID":    {func(s *server) { s.attributes = replace(7, str("abc")) }, client.ErrReply, "transactionID"},
		"no transactionID":         {func(s *server) { s.attributes = drop(7) }, client.ErrReply, "transactionID"},
		"another messageType":      {func(s *server) { s.attributes = replace(2, str("19")) }, client.ErrReply, "messageType 19"},
		"no messageType":           {func(s *server) { s.attributes = drop(2) }, client.ErrReply, "messageType"},
		"an unknown pkiStatus":     {func(s *server) { s.attributes = replace(3, str("1")) }, client.ErrReply, "pkiStatus 1"},
		"a number with zeros":      {func(s *server) { s.attributes = replace(3, str("00")) }, client.ErrReply, "no number"},
		"a failure without reason": {func(s *server) { s.pkiStatus = "2" }, client.ErrReply, "without failInfo"},
		"tampered":                 {func(s *server) { s.after = flipLast }, client.ErrReply, "signature"},
		"cut":                      {func(s *server) { s.after = func(b []byte) []byte { return b[:len(b)-1] } }, client.ErrReply, "malformed"},
		"another signer of the CA": {func(s *server) {
			s.sign = func(o *cms.SignOptions) { o.Certificate, _ = cms.ParseCertificate(s.other.Raw) }
		}, client.ErrReply, "not the RA"},
		"SHA-1":      {func(s *server) { s.sign = func(o *cms.SignOptions) { o.Digest = crypto.SHA1 } }, client.ErrReply, "SHA-1"},
		"triple DES": {func(s *server) { s.cipher = cms.DES3CBC }, client.ErrReply, "enciphered with"},
		"another recipient": {func(s *server) {
			s.sign = func(o *cms.SignOptions) {
				to, _ := cms.ParseCertificate(s.ra.Raw)
				o.Content, _ = cms.Envelop(rand.Reader, []byte("x"), to, cms.AES128CBC)
			}
		}, client.ErrReply, "not enciphered to"},
		"several recipients": {func(s *server) { s.sign = twoRecipients }, client.ErrReply, "2 recipients"},
		"a failInfo without failure": {func(s *server) {
			s.attributes = func(all []cms.Attribute) []cms.Attribute {
				return append(all, cms.Attribute{Type: oid(4), Value: str("2")})
			}
		}, client.ErrReply, "failInfo without"},
		"an envelope while pending": {func(s *server) {
			s.pkiStatus = "3"
			s.sign = func(o *cms.SignOptions) { o.Content = []byte("x") }
		}, client.ErrReply, "envelope without success"},
		"a CA certificate": {func(s *server) {
			s.issue = func(key any) []byte { return issue(t, "device", key, s.ca, k[caKey], isCA).Raw }
		}, client.ErrCertificate, "a CA's"},
		"a certificate that is over": {func(s *server) {
			s.issue = func(key any) []byte {
				return issue(t, "device", key, s.ca, k[caKey], func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }).Raw
			}
		}, client.ErrCertificate, "expired"},
		"a certificate with a critical extension of its own": {func(s *server) {
			s.issue = func(key any) []byte {
				return issue(t, "device", key, s.ca, k[caKey], func(c *x509.Certificate) {
					c.ExtraExtensions = []pkix.Extension{{Id: oid(99), Critical: true, Value: []byte{5, 0}}}
				}).Raw
			}
		}, client.ErrCertificate, "critical"},
		"no envelope": {func(s *server) { s.sign = func(o *cms.SignOptions) { o.Content = nil } }, client.ErrReply, "envelope"},
		"a certificate for another key": {func(s *server) {
			s.issue = func(any) []byte { return issue(t, "device", &k[otherKey].PublicKey, s.ca, k[caKey], nil).Raw }
		}, client.ErrCertificate, "holds the key"},
		"a certificate of another CA": {func(s *server) {
			s.issue = func(key any) []byte { return issue(t, "device", key, s.ca, k[otherKey], nil).Raw }
		}, client.ErrCertificate, "did not sign"},
		"another content type": {func(s *server) { s.replyType = "text/html" }, client.ErrTransport, "text/html"},
		"too large":            {func(s *server) { s.after = func([]byte) []byte { return make([]byte, 256<<10+1) } }, client.ErrTransport, "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			tt.fault(s)
			r, err := s.enroll()
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, %v; want %v with %q", r, err, tt.want, tt.says)
			}
		})
	}
}

func flipLast(b []byte) []byte { // the signature comes last
	b[len(b)-1] ^= 1
	return b
}

// twoRecipients writes the envelope's one recipient twice.
func twoRecipients(o *cms.SignOptions) {
	var outer, explicit, body asn1.RawValue
	_, _ = asn1.Unmarshal(o.Content, &outer)
	var kind asn1.ObjectIdentifier
	rest, _ := asn1.Unmarshal(outer.Bytes, &kind)
	_, _ = asn1.Unmarshal(rest, &explicit)
	_, _ = asn1.Unmarshal(explicit.Bytes, &body)
	var version, recipients asn1.RawValue
	rest, _ = asn1.Unmarshal(body.Bytes, &version)
	rest, _ = asn1.Unmarshal(rest, &recipients)
	wrap := func(tag byte, parts ...[]byte) []byte {
		content := bytes.Join(parts, nil)
		return append([]byte{tag, 0x82, byte(len(content) >> 8), byte(len(content))}, content...)
	}
	id, _ := asn1.Marshal(kind)
	o.Content = wrap(0x30, id, wrap(0xa0, wrap(0x30, version.FullBytes, wrap(0x31, recipients.Bytes, recipients.Bytes), rest)))
}

func ourNonce(all []cms.Attribute) []cms.Attribute {
	i := slices.IndexFunc(all, func(a cms.Attribute) bool { return a.Type.Equal(oid(6)) })
	return replace(5, all[i].Value)(all)
}
