package client_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep/client"
)

// A poll repeats the transaction, names issuer and subject, and is signed by the
// request's own signer: PENDING goes on, and then the certificate comes.
//
// Covers: S-142
func TestPoll(t *testing.T) {
	s := newServer(t)
	s.pkiStatus = "3"
	c := s.start()
	_, err := c.Enroll(context.Background(), enrollment())
	first, ok := errors.AsType[*client.PendingError](err)
	if !ok || first.Pending == nil {
		t.Fatal(err)
	}
	signer := s.request.Signer.Raw
	_, err = c.Poll(context.Background(), first.Pending)
	if again, ok := errors.AsType[*client.PendingError](err); !ok || again.TransactionID != first.TransactionID || again.Pending == nil {
		t.Fatal(err)
	}
	var names struct{ Issuer, Subject asn1.RawValue }
	if rest, err := asn1.Unmarshal(s.content, &names); err != nil || len(rest) > 0 || s.kind != "20" ||
		!bytes.Equal(names.Issuer.FullBytes, s.ca.RawSubject) || !bytes.Equal(names.Subject.FullBytes, s.csr.RawSubject) {
		t.Errorf("a poll of type %s with %x: %v", s.kind, s.content, err)
	}
	if !bytes.Equal(s.request.Signer.Raw, signer) {
		t.Error("another signer")
	}
	s.pkiStatus = "0"
	r, err := c.Poll(context.Background(), first.Pending)
	if err != nil || !keys()[deviceKey].PublicKey.Equal(r.Certificate.PublicKey) || r.TransactionID != first.TransactionID {
		t.Error(r, err)
	}
	if _, err := c.Poll(context.Background(), &client.Pending{}); !errors.Is(err, client.ErrRequest) {
		t.Error(err)
	}
}

// A renewal that is pending is polled with the old certificate.
func TestPollOfARenewal(t *testing.T) {
	s := newServer(t)
	k := keys()
	old := issue(t, "device", &k[deviceKey].PublicKey, s.ca, k[caKey], nil)
	s.pkiStatus = "3"
	c := s.start()
	_, err := c.Renew(context.Background(), client.Renewal{OldCert: old, OldKey: k[deviceKey], NewKey: k[newKey]})
	p, ok := errors.AsType[*client.PendingError](err)
	if !ok {
		t.Fatal(err)
	}
	s.pkiStatus = "0"
	r, err := c.Poll(context.Background(), p.Pending)
	if err != nil || !k[newKey].PublicKey.Equal(r.Certificate.PublicKey) || !bytes.Equal(s.request.Signer.Raw, old.Raw) {
		t.Error(r, err)
	}
}

// A server that uses one nonce twice is found out at the second time.
func TestANonceThatWasSeen(t *testing.T) {
	s := newServer(t)
	s.attributes = replace(5, nonce(16))
	c := s.start()
	if _, err := c.Enroll(context.Background(), enrollment()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Enroll(context.Background(), enrollment()); !errors.Is(err, client.ErrReply) || !strings.Contains(err.Error(), "used before") {
		t.Error(err)
	}
	if all := c.Nonces().All(); len(all) != 1 || len(all[0]) != 16 {
		t.Errorf("remembers %x", all)
	}
	// Who keeps them finds it out after a restart too.
	d := s.start()
	d.Nonces().Add(bytes.Repeat([]byte{9}, 16))
	if _, err := d.Enroll(context.Background(), enrollment()); !errors.Is(err, client.ErrReply) {
		t.Error(err)
	}
}

func TestNoncesAreBounded(t *testing.T) {
	var n client.Nonces
	for i := range 4097 {
		if !n.Add([]byte{byte(i), byte(i >> 8)}) {
			t.Fatal(i)
		}
	}
	if len(n.All()) != 4096 || !n.Add([]byte{0, 0}) || n.Add([]byte{0, 16}) {
		t.Error("not the oldest was forgotten")
	}
}

// asked reads what a GetCert or GetCRL asked for.
func (s *server) askedFor() (issuer []byte, serial *big.Int) {
	var q struct {
		Issuer asn1.RawValue
		Serial *big.Int
	}
	if rest, err := asn1.Unmarshal(s.content, &q); err != nil || len(rest) > 0 {
		s.t.Fatal(err)
	}
	return q.Issuer.FullBytes, q.Serial
}

func TestCertificate(t *testing.T) {
	k := keys()
	s := newServer(t)
	has := issue(t, "device", &k[deviceKey].PublicKey, s.ca, k[caKey], nil)
	for name, tt := range map[string]struct {
		answer *x509.Certificate
		status string
		want   error
		says   string
	}{
		"the one": {has, "0", nil, ""},
		"another": {issue(t, "device", &k[deviceKey].PublicKey, s.ca, k[caKey], nil), "0", client.ErrCertificate, "that serial number"},
		"one of another CA": {issue(t, "device", &k[deviceKey].PublicKey, s.ca, k[otherKey], func(c *x509.Certificate) { c.SerialNumber = has.SerialNumber }),
			"0", client.ErrCertificate, "did not sign"},
		"one of another issuer": {issue(t, "device", &k[deviceKey].PublicKey, s.root, k[rootKey], func(c *x509.Certificate) { c.SerialNumber = has.SerialNumber }),
			"0", client.ErrCertificate, "that serial number"},
		"none yet": {has, "3", client.ErrReply, "PENDING"},
	} {
		t.Run(name, func(t *testing.T) {
			s.pkiStatus = tt.status
			s.answer = func() []byte {
				certs, err := cms.CertsOnly([][]byte{tt.answer.Raw})
				if err != nil {
					t.Error(err)
				}
				return certs
			}
			got, err := s.start().Certificate(context.Background(), client.Identity{}, has.SerialNumber)
			if !errors.Is(err, tt.want) || tt.want != nil && !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("got %v", err)
			}
			if err == nil && !got.Equal(has) {
				t.Error("another certificate")
			}
			if issuer, serial := s.askedFor(); s.kind != "21" || !bytes.Equal(issuer, s.ca.RawSubject) || serial.Cmp(has.SerialNumber) != 0 {
				t.Errorf("type %s asked for %v", s.kind, serial)
			}
		})
	}
	s.pkiStatus = "2"
	s.attributes = func(all []cms.Attribute) []cms.Attribute {
		return append(all, cms.Attribute{Type: oid(4), Value: str("4")})
	}
	_, err := s.start().Certificate(context.Background(), client.Identity{Certificate: has.Raw, Key: k[deviceKey]}, has.SerialNumber)
	if e, ok := errors.AsType[*client.FailError](err); !ok || e.Name != "badCertId" {
		t.Error(err)
	}
	if !bytes.Equal(s.request.Signer.Raw, has.Raw) {
		t.Error("the question is not signed by the one who asks")
	}
}

func revocations(t *testing.T, s *server, change func(*x509.RevocationList), key int, issuer *x509.Certificate) []byte {
	t.Helper()
	list := &x509.RevocationList{
		Number: big.NewInt(7), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(99), RevocationTime: time.Now(), ReasonCode: 1}},
	}
	if change != nil {
		change(list)
	}
	forger := *issuer
	forger.PublicKey, forger.KeyUsage = &keys()[key].PublicKey, x509.KeyUsageCRLSign
	der, err := x509.CreateRevocationList(rand.Reader, list, &forger, keys()[key])
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func tlv(tag byte, parts ...[]byte) []byte {
	content := bytes.Join(parts, nil)
	return append([]byte{tag, 0x83, byte(len(content) >> 16), byte(len(content) >> 8), byte(len(content))}, content...)
}

// crlSet is a SignedData without signers, with these certificates and CRLs.
func crlSet(certificates, crls []byte) []byte { return crlSetOf(certificates, crls, nil) }

func crlSetOf(certificates, crls, signers []byte) []byte {
	signedData := []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2}
	data := []byte{0x30, 11, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1}
	parts := [][]byte{{2, 1, 1}, {0x31, 0}, data}
	if certificates != nil {
		parts = append(parts, tlv(0xa0, certificates))
	}
	if crls != nil {
		parts = append(parts, tlv(0xa1, crls))
	}
	return tlv(0x30, signedData, tlv(0xa0, tlv(0x30, append(parts, tlv(0x31, signers))...)))
}

func TestCRL(t *testing.T) {
	s := newServer(t)
	// crypto/x509 wants cRLSign of whoever verifies a CRL.
	s.ca = issue(t, "ca", &keys()[caKey].PublicKey, s.root, keys()[rootKey], func(c *x509.Certificate) { isCA(c); c.KeyUsage |= x509.KeyUsageCRLSign })
	s.ra = issue(t, "ra", &keys()[raKey].PublicKey, s.ca, keys()[caKey], isAgent)
	s.served = [][]byte{s.ra.Raw, s.ca.Raw, s.root.Raw}
	good := revocations(t, s, nil, caKey, s.ca)
	crl := func(change func(*x509.RevocationList)) []byte {
		return crlSet(nil, revocations(t, s, change, caKey, s.ca))
	}
	for name, tt := range map[string]struct {
		answer []byte
		says   string
	}{
		"a good one":              {crlSet(nil, good), ""},
		"none":                    {crlSet(nil, nil), "there is none"},
		"two":                     {crlSet(nil, append(bytes.Clone(good), good...)), "several"},
		"a certificate beside it": {crlSet(s.ca.Raw, good), "a certificate"},
		"a signer beside it":      {crlSetOf(nil, good, []byte{0x30, 0}), "a signer"},
		"of another key":          {crlSet(nil, revocations(t, s, nil, otherKey, s.ca)), "verification"},
		"of another issuer":       {crlSet(nil, revocations(t, s, nil, rootKey, s.root)), "another issuer"},
		"an old one": {crl(func(l *x509.RevocationList) {
			l.ThisUpdate, l.NextUpdate = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}), "ended"},
		"one of tomorrow": {crl(func(l *x509.RevocationList) {
			l.ThisUpdate, l.NextUpdate = time.Now().Add(24*time.Hour), time.Now().Add(48*time.Hour)
		}), "begins"},
		"a delta": {crl(func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}}
		}), "critical extension"},
		"no CRL":        {[]byte{0x30, 0}, "no SignedData"},
		"a broken one":  {crlSet(nil, []byte{0x30, 0}), "malformed"},
		"not even that": {nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s.answer = func() []byte { return tt.answer }
			got, err := s.start().CRL(context.Background(), client.Identity{}, big.NewInt(99))
			if tt.says == "" && tt.answer != nil {
				if err != nil || len(got.RevokedCertificateEntries) != 1 || got.Number.Int64() != 7 {
					t.Errorf("%v, %v", got, err)
				}
				if _, serial := s.askedFor(); s.kind != "22" || serial.Int64() != 99 {
					t.Errorf("type %s asked for %v", s.kind, serial)
				}
				return
			}
			if !errors.Is(err, client.ErrCRL) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, err := s.start().CRL(context.Background(), client.Identity{}, nil); !errors.Is(err, client.ErrRequest) {
		t.Error(err)
	}
}

// A long CRL is longer than any other answer may be.
func TestALongCRL(t *testing.T) {
	s := newServer(t)
	s.ca = issue(t, "ca", &keys()[caKey].PublicKey, s.root, keys()[rootKey], func(c *x509.Certificate) { isCA(c); c.KeyUsage |= x509.KeyUsageCRLSign })
	s.ra = issue(t, "ra", &keys()[raKey].PublicKey, s.ca, keys()[caKey], isAgent)
	s.served = [][]byte{s.ra.Raw, s.ca.Raw, s.root.Raw}
	long := crlSet(nil, revocations(t, s, func(l *x509.RevocationList) {
		for i := range 20_000 {
			l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(int64(1e9 + i)), RevocationTime: time.Now(), ReasonCode: 1})
		}
	}, caKey, s.ca))
	s.answer = func() []byte { return long }
	if got, err := s.start().CRL(context.Background(), client.Identity{}, big.NewInt(99)); err != nil || len(got.RevokedCertificateEntries) != 20_001 {
		t.Error(err)
	}
	s.after = func([]byte) []byte { return make([]byte, 4<<20+1) }
	if _, err := s.start().CRL(context.Background(), client.Identity{}, big.NewInt(99)); !errors.Is(err, client.ErrTransport) {
		t.Error(err)
	}
}

func TestHowItAsks(t *testing.T) {
	s := newServer(t)
	c := s.start()
	c.CAIdentifier, c.Method = "device CA", http.MethodGet
	c.URL += "?tenant=1"
	if _, err := c.Enroll(context.Background(), enrollment()); err != nil || s.method != http.MethodGet {
		t.Fatal(s.method, err)
	}
	if s.asked[0] != "operation=GetCACert&message=device+CA&tenant=1" || !strings.HasPrefix(s.asked[1], "operation=PKIOperation&message=MI") || len(s.asked) != 2 {
		t.Errorf("asked %.60q", s.asked)
	}
	c.Method = "PUT"
	if _, err := c.Enroll(context.Background(), enrollment()); !errors.Is(err, client.ErrRequest) {
		t.Error(err)
	}
	s.asked, c.Method, s.caps = nil, http.MethodPost, ""
	if _, err := c.Enroll(context.Background(), enrollment()); err != nil || s.method != http.MethodPost || len(s.asked) != 2 {
		t.Error(s.method, s.asked, err)
	}
}
