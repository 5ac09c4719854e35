package site

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep/client"
)

// A Device is a SCEP client of a profile, with connections of its own. What the
// client refuses to send is sent by [Device.Do] and [Device.Post].
type Device struct {
	*client.Client
	CA *client.CA
}

// Device returns a client of a profile of the running site.
func (s *Site) Device(ctx context.Context, profile string) (*Device, error) {
	url, err := s.URL(ctx, profile)
	if err != nil {
		return nil, err
	}
	fingerprint, err := s.Fingerprint(ctx)
	if err != nil {
		return nil, err
	}
	h, err := s.HTTP()
	if err != nil {
		return nil, err
	}
	d := &Device{Client: &client.Client{URL: url, HTTP: h, CAFingerprint: fingerprint}}
	d.CA, err = d.CACert(ctx)
	return d, err
}

// HTTP returns a client that trusts the site's CA.
func (s *Site) HTTP(certs ...tls.Certificate) (*http.Client, error) {
	config, err := s.TLS(certs...)
	if err != nil {
		return nil, err
	}
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: config, MaxIdleConnsPerHost: 64}}, nil
}

// TLS returns a client's configuration that trusts the site's CA.
func (s *Site) TLS(certs ...tls.Certificate) (*tls.Config, error) {
	pem, err := os.ReadFile(s.CA())
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return &tls.Config{
		RootCAs: roots, MinVersion: tls.VersionTLS12, Certificates: certs,
		DynamicRecordSizingDisabled: true, // as other libraries write: a request in one record
	}, nil
}

// A Request is a pkiMessage, and what the answer to it has to match.
type Request struct {
	DER    []byte
	Expect client.Expectations
}

// Request makes a pkiMessage. What m leaves out is an ordinary device's: to the
// RA, with a transactionID and a nonce of its own, AES-128-CBC and SHA-256.
func (d *Device) Request(m client.Message) (*Request, error) {
	random, err := client.Nonce(rand.Reader)
	if err != nil {
		return nil, err
	}
	if m.TransactionID == "" {
		m.TransactionID = hex.EncodeToString(random)
	}
	if m.SenderNonce == nil {
		if m.SenderNonce, err = client.Nonce(rand.Reader); err != nil {
			return nil, err
		}
	}
	if m.Recipient == nil {
		m.Recipient = d.CA.RADecrypt.Raw
	}
	if m.Cipher == 0 {
		m.Cipher = cms.AES128CBC
	}
	if m.Digest == 0 {
		m.Digest = crypto.SHA256
	}
	r := &Request{Expect: client.Expectations{CA: d.CA, TransactionID: m.TransactionID, SenderNonce: m.SenderNonce, Signer: m.Signer}}
	r.Expect.SignerKey, _ = m.SignerKey.(*rsa.PrivateKey) // no other can open a SUCCESS
	if csr, err := x509.ParseCertificateRequest(m.CSR); err == nil {
		r.Expect.PublicKey = csr.RawSubjectPublicKeyInfo
	}
	r.DER, err = client.BuildRequest(m)
	return r, err
}

// Do sends a request, the same bytes each time, and verifies the answer.
func (d *Device) Do(ctx context.Context, r *Request) (*client.Result, error) {
	reply, err := d.Post(ctx, r.DER)
	if err != nil {
		return nil, err
	}
	return client.Open(reply, r.Expect)
}

// Post sends any bytes as a message, and nothing else: the client asks for the
// capabilities first. A status other than 200 is a [*client.StatusError].
func (d *Device) Post(ctx context.Context, message []byte) (*client.Reply, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.URL+"?operation=PKIOperation", bytes.NewReader(message))
	if err != nil {
		return nil, err
	}
	resp, err := d.HTTP.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = &client.StatusError{Code: resp.StatusCode, Text: string(body)}
	}
	return &client.Reply{DER: body}, err
}

// SelfSigned makes the certificate that a device without one signs with.
func SelfSigned(key crypto.Signer, subject pkix.Name, from, to time.Time) ([]byte, error) {
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: subject, NotBefore: from, NotAfter: to}
	return x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
}

// Challenge is what `postern challenge create` prints.
type Challenge struct{ ID, Challenge, Profile, Subject string }

// NewChallenge creates a challenge.
func (s *Site) NewChallenge(ctx context.Context, profile, subject string, more ...string) (Challenge, error) {
	args := append([]string{"challenge", "create", "--profile", profile, "--subject", subject, "--output", "json"}, more...)
	out, errOut, code := s.Postern(ctx, nil, args...)
	var c Challenge
	if code != 0 {
		return c, fmt.Errorf("postern challenge create: %s", errOut)
	}
	return c, json.Unmarshal([]byte(out), &c)
}

// Challenges creates one challenge for each subject, in one act.
func (s *Site) Challenges(ctx context.Context, profile string, subjects ...string) ([]Challenge, error) {
	out, errOut, code := s.Postern(ctx, []byte(strings.Join(subjects, "\n")), "challenge", "create", "--profile", profile, "--batch", "-", "--output", "json")
	if code != 0 {
		return nil, fmt.Errorf("postern challenge create --batch: %s", errOut)
	}
	var all []Challenge
	for dec := json.NewDecoder(strings.NewReader(out)); dec.More(); {
		var c Challenge
		if err := dec.Decode(&c); err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}
