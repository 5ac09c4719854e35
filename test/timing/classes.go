package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

var errShape = errors.New("an answer looks unlike the others")

// A class is one thing that is wrong with a message.
type class struct {
	name     string
	requests []*site.Request

	mu    sync.Mutex
	next  int
	took  []float64 // seconds
	shape *shape
}

// A shape is what all answers have in common.
type shape struct {
	mu    sync.Mutex
	first string
}

// send sends the class's next message, and notes how long the answer took.
func (c *class) send(ctx context.Context, d *site.Device) error {
	c.mu.Lock()
	r := c.requests[c.next%len(c.requests)]
	c.next++
	c.mu.Unlock()
	began := time.Now()
	reply, err := d.Post(ctx, r.DER)
	took := time.Since(began).Seconds()
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.took = append(c.took, took)
	c.mu.Unlock()
	return c.shape.same(reply)
}

// same compares an answer with the first one, but for what has to be fresh.
func (s *shape) same(reply *client.Reply) error {
	rep, err := client.Inspect(reply)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	_, _ = fmt.Fprintf(&b, "%d octets, %d of content\n", len(reply.DER), len(rep.Signed.Content))
	for _, a := range rep.Signed.Attributes {
		value := a.Value
		switch {
		case a.Type.Equal(scep.OIDSenderNonce), a.Type.Equal(scep.OIDRecipientNonce), a.Type.Equal(scep.OIDTransactionID), a.Type.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 5}):
			value = bytes.Repeat([]byte("."), len(value))
		case a.Type.Equal(scep.OIDFailInfoText):
			if at := bytes.Index(value, []byte(" (request ")); at >= 0 {
				value = slices.Concat(value[:at], bytes.Repeat([]byte("."), len(value)-at))
			}
		}
		_, _ = fmt.Fprintf(&b, "%v %q\n", a.Type, value)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.first == "" {
		s.first = b.String()
	}
	if got := b.String(); got != s.first {
		return fmt.Errorf("%w: %s, and not %s", errShape, got, s.first)
	}
	if rep.Status != scep.StatusFailure || rep.FailInfo != scep.BadMessageCheck {
		return fmt.Errorf("%w: status %d, failInfo %d", errShape, rep.Status, rep.FailInfo)
	}
	return nil
}

// A maker has what the messages are made of.
type maker struct {
	d          *site.Device
	key, other *rsa.PrivateKey
	self, ours []byte // the signers of new requests and of renewals
}

// What can be wrong, in a message whose signature is good.
const cn = "timing-0.demo.example"

// makeClasses makes pool messages of each class.
func makeClasses(ctx context.Context, s *site.Site, pool int) ([]*class, *site.Device, error) {
	m, err := newMaker(ctx, s)
	if err != nil {
		return nil, nil, err
	}
	var all []*class
	common := new(shape)
	for _, kind := range []int{scep.PKCSReq, scep.RenewalReq} {
		what := map[int]string{scep.PKCSReq: "new", scep.RenewalReq: "renewal"}[kind]
		for _, fault := range m.faults(kind) {
			c := &class{name: what + ": " + fault.name, shape: common}
			for range pool {
				r, err := m.request(kind, fault)
				if err != nil {
					return nil, nil, fmt.Errorf("%s: %w", c.name, err)
				}
				c.requests = append(c.requests, r)
			}
			all = append(all, c)
		}
	}
	return all, m.d, nil
}

func newMaker(ctx context.Context, s *site.Site) (m *maker, err error) {
	m = new(maker)
	if m.d, err = s.Device(ctx, "interop"); err != nil {
		return nil, err
	}
	var err1, err2 error
	m.key, err1 = rsa.GenerateKey(rand.Reader, 2048)
	m.other, err2 = rsa.GenerateKey(rand.Reader, 2048)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	if m.self, err = site.SelfSigned(m.key, pkix.Name{CommonName: cn, Organization: []string{"Example Corp"}}, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)); err != nil {
		return nil, err
	}
	word, err := s.NewChallenge(ctx, "interop", "CN="+cn)
	if err != nil {
		return nil, err
	}
	got, err := m.d.Enroll(ctx, client.Enrollment{Key: m.key, Subject: pkix.Name{CommonName: cn}, Challenge: []byte(word.Challenge)})
	if err != nil {
		return nil, err
	}
	m.ours = got.Certificate.Raw
	return m, nil
}

// A fault changes the CSR or the envelope.
type fault struct {
	name     string
	key      *rsa.PrivateKey // of the CSR
	subject  string
	csr      func([]byte) []byte
	envelope func([]byte) ([]byte, error)
}

// faults are those of new requests, or of renewals: in the one the CSR has another key
// than the signer's, in the other it has other names.
func (m *maker) faults(kind int) []fault {
	wrapped := func(secret func() ([]byte, error)) func([]byte) ([]byte, error) {
		return func(b []byte) ([]byte, error) {
			e, err := cms.ParseEnvelope(b)
			if err != nil {
				return nil, err
			}
			value, err := secret()
			return bytes.Replace(b, e.Recipients[0].EncryptedKey, value, 1), err
		}
	}
	ra, _ := m.d.CA.RADecrypt.PublicKey.(*rsa.PublicKey)
	binding := fault{name: "another key in the CSR", key: m.other}
	if kind == scep.RenewalReq {
		binding = fault{name: "other names in the CSR", key: m.key, subject: "timing-1.demo.example"}
	}
	return []fault{
		binding,
		{name: "RSA padding", envelope: wrapped(func() ([]byte, error) {
			b := make([]byte, ra.Size())
			_, err := rand.Read(b[1:]) // below the modulus
			return b, err
		})},
		{name: "length of the key", envelope: wrapped(func() ([]byte, error) {
			//lint:ignore SA1019 it is the key transport of SCEP
			return rsa.EncryptPKCS1v15(rand.Reader, ra, make([]byte, 32)) //nolint:staticcheck // it is the key transport of SCEP
		})},
		// The last octet but a block changes the last octet of the padding.
		{name: "CBC padding", envelope: func(b []byte) ([]byte, error) { b[len(b)-17] ^= 0x80; return b, nil }},
		{name: "ASN.1 inside", csr: func(b []byte) []byte { b[1] = 0x85; return b }},
		{name: "signature of the CSR", csr: func(b []byte) []byte { b[len(b)-1] ^= 1; return b }},
	}
}

func (m *maker) request(kind int, f fault) (*site.Request, error) {
	if f.key == nil {
		f.key = m.key
	}
	if f.subject == "" {
		f.subject = cn
	}
	csr, err := client.NewCSR(f.key, client.CSR{Subject: pkix.Name{CommonName: f.subject}})
	if err != nil {
		return nil, err
	}
	if f.csr != nil {
		csr = f.csr(csr)
	}
	signer := m.self
	if kind == scep.RenewalReq {
		signer = m.ours
	}
	r, err := m.d.Request(client.Message{Type: kind, Signer: signer, SignerKey: m.key, CSR: csr})
	if err != nil || f.envelope == nil {
		return r, err
	}
	return r, m.forge(r, f.envelope)
}

// forge puts a changed envelope into a message, and signs it as its sender would.
func (m *maker) forge(r *site.Request, change func([]byte) ([]byte, error)) error {
	der, err := cms.DER(r.DER, cms.DefaultLimits())
	if err != nil {
		return err
	}
	signed, err := cms.ParseSigned(der)
	if err != nil {
		return err
	}
	envelope, err := change(bytes.Clone(signed.Content))
	if err != nil {
		return err
	}
	attributes := slices.DeleteFunc(slices.Clone(signed.Attributes), func(a cms.Attribute) bool { return a.Type[0] != 2 }) // but for SCEP's
	r.DER, err = cms.Sign(cms.SignOptions{Certificate: signed.Signer, Key: m.key, Digest: crypto.SHA256, Attributes: attributes, Content: envelope})
	return err
}
