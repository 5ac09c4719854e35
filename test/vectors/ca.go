package main

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/pkcs10"
	"github.com/postern-pki/postern/protocol/scep"
)

// A vector is a message, and what is to be read in it.
type vector struct {
	name, from string
	message    []byte
	query      string // the raw query of a GET; "" for a POST
}

// A ca has software keys, and takes messages without answering them.
type ca struct {
	root, sign, decrypt *x509.Certificate
	rootKey, decryptKey *rsa.PrivateKey

	mu  sync.Mutex
	got []vector
}

func newCA() (*ca, error) {
	c := new(ca)
	keys := make([]*rsa.PrivateKey, 3)
	for i := range keys {
		var err error
		if keys[i], err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			return nil, err
		}
	}
	c.rootKey, c.decryptKey = keys[0], keys[2]
	var err1, err2, err3 error
	c.root, err1 = c.issue("Golden CA", &keys[0].PublicKey, x509.KeyUsageCertSign|x509.KeyUsageCRLSign)
	c.sign, err2 = c.issue("Golden RA Signing", &keys[1].PublicKey, x509.KeyUsageDigitalSignature)
	c.decrypt, err3 = c.issue("Golden RA Encryption", &keys[2].PublicKey, x509.KeyUsageKeyEncipherment)
	return c, errors.Join(err1, err2, err3)
}

// issue makes a certificate that is good for ten years, so that no reader of a vector
// has to know the time.
func (c *ca) issue(cn string, key *rsa.PublicKey, usage x509.KeyUsage) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 64))
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256(key.N.Bytes())
	template := &x509.Certificate{
		SerialNumber: serial, SubjectKeyId: id[:20], Subject: pkix.Name{Organization: []string{"Example Corp"}, CommonName: cn}, KeyUsage: usage, BasicConstraintsValid: true,
		IsCA: usage&x509.KeyUsageCertSign != 0, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
	}
	parent := c.root
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, c.rootKey)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// serve answers what a client asks before it sends a message, and keeps that message.
// Without post a client has to send it by GET.
func (c *ca) serve(post bool) (target string, end func(), err error) {
	certs, err := cms.CertsOnly([][]byte{c.sign.Raw, c.decrypt.Raw, c.root.Raw})
	if err != nil {
		return "", nil, err
	}
	caps := "AES\nDES3\nRenewal\nSHA-1\nSHA-256\nSHA-384\nSHA-512\n"
	if post {
		caps += "POSTPKIOperation\nSCEPStandard\n"
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Query().Get("operation") {
		case "GetCACaps":
			w.Header().Set("Content-Type", "text/plain")
			_, _ = w.Write([]byte(caps))
		case "GetCACert":
			w.Header().Set("Content-Type", "application/x-x509-ca-ra-cert")
			_, _ = w.Write(certs)
		default:
			c.take(r)
			http.Error(w, "no", http.StatusServiceUnavailable)
		}
	}))
	return s.URL + "/scep/golden", s.Close, nil
}

// take keeps a message.
func (c *ca) take(r *http.Request) {
	v := vector{}
	if r.Method == http.MethodGet {
		v.query = r.URL.RawQuery
		text, err := url.QueryUnescape(r.URL.Query().Get("message"))
		if err != nil {
			text = r.URL.Query().Get("message")
		}
		v.message, _ = base64.StdEncoding.DecodeString(strings.ReplaceAll(text, " ", "+"))
	} else {
		var b bytes.Buffer
		_, _ = b.ReadFrom(http.MaxBytesReader(nil, r.Body, 64<<10))
		v.message = b.Bytes()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.got = append(c.got, v)
}

// taken returns the first message since the last time, and false if there is none.
func (c *ca) taken() (vector, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.got) == 0 {
		return vector{}, false
	}
	v := c.got[0]
	c.got = nil
	return v, true
}

// files writes what clients want to be given into a folder.
func (c *ca) files(dir string) error {
	var errs []error
	for name, cert := range map[string]*x509.Certificate{"ca.pem": c.root, "sig.pem": c.sign, "enc.pem": c.decrypt} {
		errs = append(errs, os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), 0o600))
	}
	return errors.Join(errs...)
}

// write reads a message with our own parsers, for what the vector says of it, and
// writes the file. What is said is for a person to look at before it is committed.
func (c *ca) write(dir string, v vector) error {
	der, err := cms.DER(v.message, cms.DefaultLimits())
	if err != nil {
		return err
	}
	signed, err := cms.ParseSigned(der)
	if err != nil {
		return err
	}
	m, err := scep.ParseMessage(signed.Attributes)
	if err != nil {
		return err
	}
	inner, err := cms.DER(signed.Content, cms.DefaultLimits())
	if err != nil {
		return err
	}
	e, err := cms.ParseEnvelope(inner)
	if err != nil {
		return err
	}
	csr, err := c.open(e)
	if err != nil {
		return err
	}
	request, err := pkcs10.Parse(csr)
	if err != nil {
		return err
	}
	word := ""
	if request.Challenge != nil {
		word = string(request.Challenge.Bytes())
	}
	key, err := x509.MarshalPKCS8PrivateKey(c.decryptKey)
	if err != nil {
		return err
	}
	head := fmt.Sprintf("# %s\nwant: ok\ntype: %d\ntransaction: %s\nnonce: %x\ndigest: %v\ncipher: %v\nchallenge: %s\nnames: %s\nself-signed: %v\n",
		v.from, m.Type, m.TransactionID, m.SenderNonce, signed.Digest, e.Cipher, word, strings.Join(request.DNSNames, " "), bytes.Equal(signed.Signer.RawIssuer, signed.Signer.RawSubject))
	a := &txtar.Archive{Comment: []byte(head), Files: []txtar.File{
		{Name: "message.hex", Data: lines(v.message)}, {Name: "csr.hex", Data: lines(csr)}, {Name: "key.pem", Data: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})},
	}}
	if v.query != "" {
		a.Files = append(a.Files, txtar.File{Name: "query", Data: []byte(v.query + "\n")})
	}
	return os.WriteFile(filepath.Join(dir, v.name+".txtar"), txtar.Format(a), 0o644)
}

// open opens the envelope with the key that is for it.
func (c *ca) open(e *cms.Envelope) ([]byte, error) {
	to, err := cms.ParseCertificate(c.decrypt.Raw)
	if err != nil {
		return nil, err
	}
	for _, r := range e.Recipients {
		if !r.Names(to) {
			continue
		}
		key, err := c.decryptKey.Decrypt(rand.Reader, r.EncryptedKey, nil)
		if err != nil {
			return nil, err
		}
		return e.Open(key)
	}
	return nil, errors.New("the envelope is for somebody else")
}

func lines(b []byte) []byte {
	var out bytes.Buffer
	for text := hex.EncodeToString(b); text != ""; {
		n := min(len(text), 96)
		out.WriteString(text[:n] + "\n")
		text = text[n:]
	}
	return out.Bytes()
}
