// Package responder is a SCEP server for tests of clients: an HTTPS listener that
// answers as RFC 8894 says, or as wrong as its fields say.
//
// # What a caller may rely on
//
// It reads messages with package cms, so a client that it answers wrote what
// Postern reads. Without faults it is right.
//
// # What it does not protect against
//
// It checks no challenge, keeps nothing, and remembers one request.
package responder

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/pkcs10"
)

// Faults are what a server gets wrong. A nil function changes nothing.
type Faults struct {
	Caps      string // the answer to GetCACaps
	CapsType  string
	CertsType string
	ReplyType string
	Cacheable bool   // no Cache-Control
	Ident     bool   // a message that is unknown is 404 to GetCACert
	Broken    string // the body of a 500 to what is no message
	NoRefusal string // the body of a 400 in place of each refusal
	HangUp    bool   // on what is no message

	Digest      crypto.Hash // of replies
	Attributes  func([]cms.Attribute) []cms.Attribute
	Sign        func(*cms.SignOptions)
	EchoNonce   bool // the client's own, as senderNonce
	SameNonce   bool
	Words       string // failInfoText
	FailInfo    string
	Oracle      bool     // each broken envelope has an answer of its own
	Takes       []string // algorithms that it should not take: DES, MD5, SHA-1, 3DES
	Grants      int      // a messageType that is answered with PENDING
	DES         bool     // replies are enciphered with single DES
	Everybody   bool     // replies are enciphered to the RA too
	NoSignature bool     // signatures are not looked at
}

// A Server answers.
type Server struct {
	*httptest.Server
	Faults
	Root, CA, RA *x509.Certificate
	Certs        [][]byte // of GetCACert
	Next         []byte   // answers GetNextCACert, if there is any
	Pending      bool     // enrollments and polls are not decided
	Denied       bool     // they are refused
	Away         bool     // all is 503
	Revoked      []*big.Int

	t      testing.TB
	mu     sync.Mutex
	csr    *pkcs10.Request
	issued *x509.Certificate
	Polls  int
}

// The keys are made once: root, CA, RA.
var keys = sync.OnceValue(func() [3]*rsa.PrivateKey {
	var out [3]*rsa.PrivateKey
	for i := range out {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		out[i] = k
	}
	return out
})

const (
	rootKey = iota
	caKey
	raKey
)

// New makes a server with a root, a CA and an RA. It listens when [Server.Start]
// or StartTLS says so.
func New(t testing.TB) *Server {
	t.Helper()
	k := keys()
	s := &Server{t: t, Faults: Faults{
		Caps: "AES\nPOSTPKIOperation\nRenewal\nSHA-256\nSHA-384\nSHA-512\nSCEPStandard\n", CapsType: "text/plain",
		CertsType: "application/x-x509-ca-ra-cert", ReplyType: "application/x-pki-message", Digest: crypto.SHA256,
	}}
	ca := func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign }
	s.Root = s.Issue("root", &k[rootKey].PublicKey, nil, rootKey, ca)
	s.CA = s.Issue("ca", &k[caKey].PublicKey, s.Root, rootKey, ca)
	s.RA = s.Issue("ra", &k[raKey].PublicKey, s.CA, caKey, func(c *x509.Certificate) {
		c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 311, 20, 2, 1}}
	})
	s.Certs = [][]byte{s.RA.Raw, s.CA.Raw, s.Root.Raw}
	s.Server = httptest.NewUnstartedServer(s)
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes that fail are what tests are after
	t.Cleanup(s.Close)
	return s
}

// Keys are those of root, CA and RA.
func (s *Server) Keys() [3]*rsa.PrivateKey { return keys() }

// Issue makes a certificate; issuer nil means that it signs itself.
func (s *Server) Issue(name string, key any, issuer *x509.Certificate, by int, change func(*x509.Certificate)) *x509.Certificate {
	s.t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		s.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(100 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
	}
	if change != nil {
		change(template)
	}
	if issuer == nil {
		issuer = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key, keys()[by])
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// Fingerprint is that of the root.
func (s *Server) Fingerprint() string { return fmt.Sprintf("%x", sha256.Sum256(s.Root.Raw)) }

// TLSCA is a file with what TLS is trusted by.
func (s *Server) TLSCA() string {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "tls-ca.pem")
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := os.WriteFile(path, data, 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// Set changes the server between two requests.
func (s *Server) Set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// Announce has the CA announce certificates as the next ones.
func (s *Server) Announce(certs ...*x509.Certificate) {
	s.t.Helper()
	var ders [][]byte
	for _, c := range certs {
		ders = append(ders, c.Raw)
	}
	content, err := cms.CertsOnly(ders)
	if err != nil {
		s.t.Fatal(err)
	}
	if s.Next, err = s.sign(cms.SignOptions{Content: content}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *Server) sign(o cms.SignOptions) ([]byte, error) {
	ra, err := cms.ParseCertificate(s.RA.Raw)
	if err != nil {
		return nil, err
	}
	o.Certificate, o.Key, o.Digest = ra, keys()[raKey], s.Digest
	if s.Sign != nil {
		s.Sign(&o)
	}
	return cms.Sign(o)
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.Cacheable {
		w.Header().Set("Cache-Control", "no-store")
	}
	q := r.URL.Query()
	if s.Away {
		http.Error(w, "away", http.StatusServiceUnavailable)
		return
	}
	switch q.Get("operation") {
	case "GetCACaps":
		s.write(w, s.CapsType, []byte(s.Caps))
	case "GetCACert":
		if s.Ident && q.Get("message") != "" {
			http.Error(w, "no such CA", http.StatusNotFound)
			return
		}
		body, err := cms.CertsOnly(s.Certs)
		if err != nil {
			s.t.Error(err)
		}
		s.write(w, s.CertsType, body)
	case "GetNextCACert":
		if s.Next == nil {
			http.Error(w, "no next CA", http.StatusNotFound)
			return
		}
		s.write(w, "application/x-x509-next-ca-cert", s.Next)
	case "PKIOperation":
		body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		if r.Method == http.MethodGet && err == nil {
			body, err = base64.StdEncoding.DecodeString(q.Get("message"))
		}
		s.message(w, body, err)
	default:
		http.Error(w, "no such operation", http.StatusBadRequest)
	}
}

func (s *Server) write(w http.ResponseWriter, kind string, body []byte) {
	w.Header().Set("Content-Type", kind)
	_, _ = w.Write(body)
}

// message answers a pkiMessage.
func (s *Server) message(w http.ResponseWriter, body []byte, err error) {
	m, ok := readMessage(body)
	if err != nil || !ok {
		if s.HangUp {
			panic(http.ErrAbortHandler)
		}
		if s.Broken != "" {
			http.Error(w, s.Broken, http.StatusInternalServerError)
			return
		}
		http.Error(w, "no message", http.StatusBadRequest)
		return
	}
	d := s.decide(m)
	if d.failInfo != "" && s.NoRefusal != "" {
		http.Error(w, s.NoRefusal, http.StatusBadRequest)
		return
	}
	reply, err := s.reply(m, d)
	if err != nil {
		s.t.Errorf("answering a message of type %s: %v", m.kind, err)
	}
	s.write(w, s.ReplyType, reply)
}

func str(s string) []byte { return append([]byte{0x13, byte(len(s))}, s...) }

func oid(last int) asn1.ObjectIdentifier {
	return asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, last}
}

// reply makes a CertRep.
func (s *Server) reply(m *message, d decision) ([]byte, error) {
	nonce := make([]byte, 16)
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	if s.SameNonce {
		nonce = bytes.Repeat([]byte{7}, 16)
	}
	if s.EchoNonce {
		nonce = m.nonce[2:]
	}
	attributes := []cms.Attribute{
		{Type: oid(7), Value: m.transaction}, {Type: oid(2), Value: str("3")}, {Type: oid(3), Value: str(d.status)},
		{Type: oid(5), Value: append([]byte{4, byte(len(nonce))}, nonce...)}, {Type: oid(6), Value: m.nonce},
	}
	if d.failInfo != "" {
		text := append([]byte{0x0c, byte(len(d.text))}, d.text...)
		attributes = append(attributes, cms.Attribute{Type: oid(4), Value: str(d.failInfo)}, cms.Attribute{Type: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 24, 1}, Value: text})
	}
	if s.Attributes != nil {
		attributes = s.Attributes(attributes)
	}
	o := cms.SignOptions{Attributes: attributes}
	if d.content != nil {
		var err error
		if o.Content, err = s.seal(d.content, m.signed.Signer); err != nil {
			return nil, err
		}
	}
	return s.sign(o)
}

// shows reports whether a message is made with an algorithm.
func shows(body []byte, name string) bool {
	der := map[string][]byte{
		"DES": {6, 5, 0x2b, 0x0e, 3, 2, 7}, "3DES": {6, 8, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 3, 7},
		"MD5": {6, 8, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 2, 5}, "SHA-1": {6, 5, 0x2b, 0x0e, 3, 2, 0x1a},
	}[name]
	return bytes.Contains(body, der)
}

// Without takes a keyword out of the capabilities.
func (s *Server) Without(keyword string) { s.Caps = strings.Replace(s.Caps, keyword+"\n", "", 1) }
