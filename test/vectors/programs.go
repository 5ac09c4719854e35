package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/smallstep/pkcs7"
	library "github.com/smallstep/scep" //nolint:depguard // makes vectors for tests, and is in no binary of the product

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/certmonger"
	"github.com/postern-pki/postern/test/site"
)

// word is the challenge in all messages.
const word = "golden-Challenge_1"

var errNothing = errors.New("no message came")

func shell(ctx context.Context, dir, script string) (string, int) {
	out, errOut, code := site.Run(ctx, nil, "bash", "-c", "cd '"+dir+"'; "+script)
	return out + errOut, code
}

// version is the first line that a program says of itself.
func version(ctx context.Context, command string) string {
	out, _ := shell(ctx, "/", command)
	line, _, _ := strings.Cut(strings.TrimSpace(out), "\n")
	return line
}

// strongSwan has pki enroll by POST and by GET, with what it can be told, and renew.
func strongSwan(ctx context.Context, c *ca) (all []vector, err error) {
	dir, err := os.MkdirTemp("", "vectors-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := c.files(dir); err != nil {
		return nil, err
	}
	if out, code := shell(ctx, dir, "pki --gen --type rsa --size 2048 --outform pem > key.pem"); code != 0 {
		return nil, errors.New(out)
	}
	if err := c.certify(dir, "key.pem", "own.pem"); err != nil {
		return nil, err
	}
	from := "strongSwan pki --scep, " + version(ctx, "dpkg-query -W -f='${Version}' strongswan-pki")
	for _, one := range []struct {
		name, args string
		post       bool
	}{
		{"strongswan-pkcsreq", "--cipher aes --digest sha256 --password " + word, true},
		{"strongswan-get", "--cipher aes --digest sha256 --password " + word, false},
		{"strongswan-sha512", "--cipher aes --digest sha512 --san device-1.golden.example --password " + word, true},
		{"strongswan-des3-sha1", "--cipher des3 --digest sha1 --password " + word, true},
		{"strongswan-renewal", "--cipher aes --digest sha256 --cert own.pem --key key.pem", true},
	} {
		target, end, err := c.serve(one.post)
		if err != nil {
			return nil, err
		}
		in := "--in key.pem"
		if strings.Contains(one.args, "--cert") {
			in = "--in new.pem"
			_, _ = shell(ctx, dir, "pki --gen --type rsa --size 2048 --outform pem > new.pem")
		}
		out, _ := shell(ctx, dir, fmt.Sprintf("timeout 20 pki --scep --url %s %s --dn 'O=Example Corp, CN=device-1.golden.example' --cacert-enc enc.pem --cacert-sig sig.pem --cacert ca.pem %s", target, in, one.args))
		end()
		v, ok := c.taken()
		if !ok {
			return nil, fmt.Errorf("%w: %s: %s", errNothing, one.name, out)
		}
		v.name, v.from = one.name, from+" "+one.args
		all = append(all, v)
	}
	return all, nil
}

// certify makes a certificate for the key in a file.
func (c *ca) certify(dir, keyFile, certFile string) error {
	text, err := os.ReadFile(filepath.Join(dir, keyFile))
	if err != nil {
		return err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return fmt.Errorf("%s is no PEM", keyFile)
	}
	key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		return err
	}
	cert, err := c.issue("device-1.golden.example", &key.PublicKey, x509.KeyUsageDigitalSignature)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, certFile), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), 0o600)
}

// certmongers has certmonger enroll; it knows GET alone.
func certmongers(ctx context.Context, c *ca) ([]vector, error) {
	dir, remove, err := certmonger.Dir()
	if err != nil {
		return nil, err
	}
	defer remove()
	if err := c.files(dir); err != nil {
		return nil, err
	}
	d, end, err := certmonger.Start(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer end()
	target, stop, err := c.serve(true)
	if err != nil {
		return nil, err
	}
	defer stop()
	if err := os.WriteFile(d.File("word"), []byte(word), 0o600); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		{"add-scep-ca", "-c", "golden", "-u", target, "-r", d.File("enc.pem"), "-I", d.File("sig.pem"), "-N", d.File("ca.pem")},
		{"request", "-c", "golden", "-k", d.File("key.pem"), "-f", d.File("cert.pem"), "-g", "2048", "-N", "CN=device-2.golden.example", "-D", "device-2.golden.example", "-l", d.File("word")},
	} {
		if out, code := d.Getcert(ctx, args...); code != 0 {
			return nil, errors.New(out)
		}
	}
	var v vector
	err = d.Until(ctx, func() (ok bool) { v, ok = c.taken(); return ok })
	v.name, v.from = "certmonger-pkcsreq", "certmonger "+version(ctx, "dpkg-query -W -f='${Version}' certmonger")
	return []vector{v}, err
}

// openSSL has openssl make key, CSR and envelope; the signature with SCEP's attributes
// around it is ours, as its commands cannot sign such.
func openSSL(ctx context.Context, c *ca) (all []vector, err error) {
	dir, err := os.MkdirTemp("", "vectors-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := c.files(dir); err != nil {
		return nil, err
	}
	config := "[req]\nprompt=no\ndistinguished_name=dn\nattributes=at\nreq_extensions=ex\n[dn]\nCN=device-3.golden.example\n[at]\nchallengePassword=" + word + "\n[ex]\nsubjectAltName=DNS:device-3.golden.example\n"
	if err := os.WriteFile(filepath.Join(dir, "req.cnf"), []byte(config), 0o600); err != nil {
		return nil, err
	}
	if out, code := shell(ctx, dir, "set -e; openssl genrsa -traditional -out key.pem 2048; openssl req -new -config req.cnf -key key.pem -outform DER -out csr.der"); code != 0 {
		return nil, errors.New(out)
	}
	if err := c.certify(dir, "key.pem", "own.pem"); err != nil {
		return nil, err
	}
	for name, args := range map[string]string{"openssl-aes128": "-aes128", "openssl-aes256-stream": "-aes256 -stream", "openssl-keyid": "-aes128 -keyid", "openssl-des3": "-des3"} {
		if out, code := shell(ctx, dir, "openssl cms -encrypt -binary -in csr.der -outform DER "+args+" -out envelope.der enc.pem"); code != 0 {
			return nil, errors.New(out)
		}
		message, err := around(dir, name)
		if err != nil {
			return nil, err
		}
		all = append(all, vector{name: name, from: "openssl cms -encrypt " + args + ", " + version(ctx, "openssl version"), message: message})
	}
	return all, nil
}

// around signs the envelope in a folder.
func around(dir, transaction string) ([]byte, error) {
	var parts [3][]byte
	for i, name := range []string{"envelope.der", "own.pem", "key.pem"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		if block, _ := pem.Decode(b); block != nil {
			b = block.Bytes
		}
		parts[i] = b
	}
	key, err := x509.ParsePKCS1PrivateKey(parts[2])
	if err != nil {
		return nil, err
	}
	nonce, err := client.Nonce(rand.Reader)
	if err != nil {
		return nil, err
	}
	// Our own client's message, for its attributes.
	whole, err := client.BuildRequest(client.Message{Type: scep.RenewalReq, TransactionID: transaction, SenderNonce: nonce, Signer: parts[1], SignerKey: key, Recipient: parts[1], CSR: []byte("x"), Cipher: cms.AES128CBC, Digest: crypto.SHA256})
	if err != nil {
		return nil, err
	}
	signed, err := cms.ParseSigned(whole)
	if err != nil {
		return nil, err
	}
	var attributes []cms.Attribute
	for _, a := range signed.Attributes {
		if a.Type[0] == 2 { // SCEP's
			attributes = append(attributes, a)
		}
	}
	return cms.Sign(cms.SignOptions{Certificate: signed.Signer, Key: key, Digest: crypto.SHA256, Attributes: attributes, Content: parts[0]})
}

// smallstep has the library of that name make a request for one recipient and one for
// every certificate that it was given.
func smallstep(_ context.Context, c *ca) (all []vector, err error) {
	pkcs7.ContentEncryptionAlgorithm = pkcs7.EncryptionAlgorithmAES128CBC
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(4), Subject: pkix.Name{CommonName: "device-4.golden.example"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	der, err1 := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	request, err2 := client.NewCSR(key, client.CSR{Subject: template.Subject, Challenge: []byte(word)})
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	self, err1 := x509.ParseCertificate(der)
	csr, err2 := x509.ParseCertificateRequest(request)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	for name, to := range map[string][]*x509.Certificate{"smallstep-pkcsreq": {c.decrypt}, "smallstep-all-recipients": {c.sign, c.decrypt, c.root}} {
		m, err := library.NewCSRRequest(csr, &library.PKIMessage{MessageType: library.PKCSReq, Recipients: to, SignerKey: key, SignerCert: self})
		if err != nil {
			return nil, err
		}
		all = append(all, vector{name: name, from: "github.com/smallstep/scep, NewCSRRequest", message: bytes.Clone(m.Raw)})
	}
	return all, nil
}
