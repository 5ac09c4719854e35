package issuer_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/hsm/lint"
)

// keyholder signs as the holder of the CA's key does: what an intent has, and
// nothing else. Break changes the answer on its way out.
type keyholder struct {
	t       testing.TB
	key     crypto.Signer
	spoil   func([]byte, error) ([]byte, error)
	calls   atomic.Int32
	intents []uint64
	mu      sync.Mutex
}

func (k *keyholder) SignCertificate(ctx context.Context, name string, tbs []byte, intent uint64) ([]byte, error) {
	k.calls.Add(1)
	k.mu.Lock()
	k.intents = append(k.intents, intent)
	k.mu.Unlock()
	if name != "corp-devices" {
		k.t.Errorf("asked to sign for %q", name)
	}
	hash := crypto.SHA256
	if pub, ok := k.key.Public().(*ecdsa.PublicKey); ok && pub.Curve == elliptic.P384() {
		hash = crypto.SHA384
	}
	signature, err := crypto.SignMessage(k.key, rand.Reader, tbs, hash)
	clear(tbs) // a careless signer must not reach the ticket's own bytes
	if k.spoil != nil {
		return k.spoil(signature, err)
	}
	return signature, err
}

func caOf(t testing.TB, key crypto.Signer, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Corp CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func ecKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newIssuer(t testing.TB, key crypto.Signer) (*issuer.Issuer, *keyholder, *x509.Certificate) {
	t.Helper()
	k, ca := &keyholder{t: t, key: key}, caOf(t, key, nil)
	i, err := issuer.New("corp-devices", ca, k, issuer.Options{MaxValidity: 30 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return i, k, ca
}

func template() *x509.Certificate {
	return &x509.Certificate{
		Subject:  pkix.Name{CommonName: "a.corp.example", Organization: []string{"Example Corp"}},
		DNSNames: []string{"a.corp.example"}, IPAddresses: []net.IP{net.ParseIP("192.0.2.7"), net.ParseIP("2001:db8::7")},
		URIs: []*url.URL{{Scheme: "urn", Opaque: "dev:7"}}, EmailAddresses: []string{"a@corp.example"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
}

var _ issuer.Signer = (*keyholder)(nil)

func meta() issuer.Meta {
	return issuer.Meta{Challenge: "c1", RequestDigest: "d1", Profile: "wifi", Lineage: "l1"}
}

func TestIssuedCertificateIsWhatTheIntentSaid(t *testing.T) {
	for name, key := range map[string]crypto.Signer{"P-256": ecKey(t, elliptic.P256()), "P-384": ecKey(t, elliptic.P384()), "RSA": rsaKey(t, 2048)} {
		t.Run(name, func(t *testing.T) {
			i, k, ca := newIssuer(t, key)
			device := ecKey(t, elliptic.P256())
			ticket, err := i.Prepare(template(), device.Public(), meta())
			if err != nil {
				t.Fatal(err)
			}
			if k.calls.Load() != 0 {
				t.Error("the CA's key was used before there was an intent")
			}
			in := ticket.Intent()
			if in.Challenge != "c1" || in.RequestDigest != "d1" || in.Profile != "wifi" || in.Lineage != "l1" || in.Issuer != "corp-devices" || in.IssuerKey != issuer.KeyID(ca.RawSubjectPublicKeyInfo) {
				t.Errorf("intent %+v", in)
			}
			der, err := ticket.Sign(t.Context(), 42)
			if err != nil {
				t.Fatal(err)
			}
			c, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(c.RawTBSCertificate, in.TBS) {
				t.Error("the certificate has other bytes than the intent")
			}
			if err := c.CheckSignatureFrom(ca); err != nil {
				t.Error(err)
			}
			if serial, ok := new(big.Int).SetString(in.Serial, 16); !ok || serial.Cmp(c.SerialNumber) != 0 || serial.Sign() <= 0 {
				t.Errorf("serial %s in the intent, %x in the certificate", in.Serial, c.SerialNumber)
			}
			bits, err := lint.KeyBits(c.RawSubjectPublicKeyInfo)
			if err != nil {
				t.Fatal(err)
			}
			if sum := sha256.Sum256(bits); !bytes.Equal(c.SubjectKeyId, sum[:20]) || !bytes.Equal(c.AuthorityKeyId, ca.SubjectKeyId) {
				t.Error("key identifiers are not those of the two keys")
			}
			if c.IsCA || !c.BasicConstraintsValid || !device.PublicKey.Equal(c.PublicKey) || len(k.intents) != 1 || k.intents[0] != 42 {
				t.Errorf("CA %v, intents %v", c.IsCA, k.intents)
			}
		})
	}
}

// TestBytesAreThoseOfCreateCertificate compares with the standard library's own
// signing by the real key.
func TestBytesAreThoseOfCreateCertificate(t *testing.T) {
	for name, key := range map[string]crypto.Signer{"P-256": ecKey(t, elliptic.P256()), "P-384": ecKey(t, elliptic.P384()), "RSA": rsaKey(t, 2048)} {
		t.Run(name, func(t *testing.T) {
			i, _, ca := newIssuer(t, key)
			device := ecKey(t, elliptic.P256()).Public()
			ticket, err := i.Prepare(template(), device, meta())
			if err != nil {
				t.Fatal(err)
			}
			der, err := ticket.Sign(t.Context(), 1)
			if err != nil {
				t.Fatal(err)
			}
			got, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			same := template()
			same.SerialNumber, same.SubjectKeyId, same.NotBefore, same.NotAfter = got.SerialNumber, got.SubjectKeyId, got.NotBefore, got.NotAfter
			der, err = x509.CreateCertificate(rand.Reader, same, ca, device, key)
			if err != nil {
				t.Fatal(err)
			}
			want, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.RawTBSCertificate, want.RawTBSCertificate) {
				t.Errorf("got  %x\nwant %x", got.RawTBSCertificate, want.RawTBSCertificate)
			}
		})
	}
}

func TestTicketWorksOnce(t *testing.T) {
	i, k, _ := newIssuer(t, ecKey(t, elliptic.P256()))
	ticket, err := i.Prepare(template(), ecKey(t, elliptic.P256()).Public(), meta())
	if err != nil {
		t.Fatal(err)
	}
	var wins, losses atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			switch _, err := ticket.Sign(context.Background(), 1); {
			case err == nil:
				wins.Add(1)
			case errors.Is(err, issuer.ErrUsed):
				losses.Add(1)
			}
		})
	}
	wg.Wait()
	if wins.Load() != 1 || losses.Load() != 7 || k.calls.Load() != 1 {
		t.Errorf("%d certificates, %d refusals, %d signatures", wins.Load(), losses.Load(), k.calls.Load())
	}
}

func TestWhatIsNoSignatureNeverBecomesACertificate(t *testing.T) {
	gone := errors.New("token gone")
	other := ecKey(t, elliptic.P256())
	for name, tt := range map[string]struct {
		answer func([]byte, error) ([]byte, error)
		want   error
	}{
		"the token is gone": {func([]byte, error) ([]byte, error) { return nil, gone }, gone},
		"nothing":           {func([]byte, error) ([]byte, error) { return nil, nil }, issuer.ErrSignature},
		"trailing bytes":    {func(s []byte, err error) ([]byte, error) { return append(s, 0), err }, issuer.ErrSignature},
		"no DER":            {func(s []byte, err error) ([]byte, error) { s[0] ^= 1; return s, err }, issuer.ErrSignature},
		"a zero":            {func([]byte, error) ([]byte, error) { return []byte{0x30, 6, 2, 1, 0, 2, 1, 1}, nil }, issuer.ErrSignature},
	} {
		t.Run(name, func(t *testing.T) {
			i, k, _ := newIssuer(t, ecKey(t, elliptic.P256()))
			k.spoil = tt.answer
			ticket, err := i.Prepare(template(), other.Public(), meta())
			if err != nil {
				t.Fatal(err)
			}
			if der, err := ticket.Sign(t.Context(), 1); !errors.Is(err, tt.want) || der != nil {
				t.Errorf("Sign = %d bytes, %v; want %v", len(der), err, tt.want)
			}
			k.spoil = nil
			if _, err := ticket.Sign(t.Context(), 1); !errors.Is(err, issuer.ErrUsed) {
				t.Errorf("after a failure: %v, want ErrUsed", err)
			}
		})
	}
}

func TestTemplateMayNotSayWhatIsTheIssuers(t *testing.T) {
	for name, change := range map[string]func(*x509.Certificate){
		"a serial number":       func(c *x509.Certificate) { c.SerialNumber = big.NewInt(7) },
		"a CA":                  func(c *x509.Certificate) { c.IsCA = true },
		"a path length":         func(c *x509.Certificate) { c.MaxPathLenZero = true },
		"a key identifier":      func(c *x509.Certificate) { c.SubjectKeyId = []byte{1} },
		"an authority's":        func(c *x509.Certificate) { c.AuthorityKeyId = []byte{1} },
		"a signature algorithm": func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA1WithRSA },
		"an odd address":        func(c *x509.Certificate) { c.IPAddresses = []net.IP{{1, 2, 3}} },
		"OCSP signing":          func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning} },
	} {
		t.Run(name, func(t *testing.T) {
			i, _, _ := newIssuer(t, ecKey(t, elliptic.P256()))
			tpl := template()
			change(tpl)
			if _, err := i.Prepare(tpl, ecKey(t, elliptic.P256()).Public(), meta()); !errors.Is(err, issuer.ErrTemplate) {
				t.Errorf("Prepare: %v, want ErrTemplate", err)
			}
		})
	}
	i, _, _ := newIssuer(t, ecKey(t, elliptic.P256()))
	if _, err := i.Prepare(nil, ecKey(t, elliptic.P256()).Public(), meta()); !errors.Is(err, issuer.ErrTemplate) {
		t.Errorf("no template: %v", err)
	}
	if _, err := i.Prepare(template(), "no key", meta()); err == nil {
		t.Error("a key that is none was accepted")
	}
}

func TestLintStopsWhatThePolicyLetThrough(t *testing.T) {
	caKey := ecKey(t, elliptic.P256())
	device := ecKey(t, elliptic.P256()).Public()
	big4096 := make([]byte, lint.MaxTBS)
	for name, tt := range map[string]struct {
		change func(*x509.Certificate)
		pub    crypto.PublicKey
		rule   string
	}{
		"keyCertSign":       {func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, device, "key-usage"},
		"too long":          {func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(31 * time.Hour) }, device, "validity-length"},
		"backwards":         {func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(-time.Hour) }, device, "validity-order"},
		"the CA's name":     {func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "Corp CA"} }, device, "subject-not-issuer"},
		"the CA's key":      {func(*x509.Certificate) {}, caKey.Public(), "key-not-issuer"},
		"no extended usage": {func(c *x509.Certificate) { c.ExtKeyUsage = nil }, device, "extended-key-usage-present"},
		"a second SAN": {func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 17}, Value: []byte{0x30, 3, 0x82, 1, 'x'}}}
		}, device, "extension-repeated"},
		"an exotic extension": {func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3}, Value: []byte{5, 0}}}
		}, device, "extension-unknown"},
		"more than fits":      {func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3}, Value: big4096}} }, device, "structure"},
		"a newline in the CN": {func(c *x509.Certificate) { c.Subject.CommonName = "a\nb" }, device, "subject-string"},
		"P-224":               {func(*x509.Certificate) {}, ecKey(t, elliptic.P224()).Public(), "key-strength"},
		"an EC key enciphers": {func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyEncipherment }, device, "key-usage-fits-key"},
	} {
		t.Run(name, func(t *testing.T) {
			i, _, _ := newIssuer(t, caKey)
			tpl := template()
			tt.change(tpl)
			_, err := i.Prepare(tpl, tt.pub, meta())
			le, ok := errors.AsType[*issuer.LintError](err)
			if !ok || le.Findings[0].Rule != tt.rule {
				t.Fatalf("Prepare: %v, want %s", err, tt.rule)
			}
			m := meta()
			m.Except = []string{tt.rule}
			_, err = i.Prepare(tpl, tt.pub, m)
			if lint.Excusable(tt.rule) && err != nil || !lint.Excusable(tt.rule) && !errors.Is(err, issuer.ErrException) {
				t.Errorf("with an exception: %v", err)
			}
		})
	}
}

func TestUnfitCAsAreRefused(t *testing.T) {
	ec := ecKey(t, elliptic.P256())
	for name, ca := range map[string]*x509.Certificate{
		"none":            nil,
		"no CA":           caOf(t, ec, func(c *x509.Certificate) { c.IsCA = false }),
		"it may not sign": caOf(t, ec, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }),
		"P-521":           caOf(t, ecKey(t, elliptic.P521()), nil),
		"RSA-1024":        caOf(t, rsaKey(t, 1024), nil),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := issuer.New("x", ca, &keyholder{}, issuer.Options{}); !errors.Is(err, issuer.ErrCA) {
				t.Errorf("New: %v, want ErrCA", err)
			}
		})
	}
}

func TestSerialsDoNotRepeat(t *testing.T) {
	i, _, _ := newIssuer(t, ecKey(t, elliptic.P256()))
	device, seen := ecKey(t, elliptic.P256()).Public(), map[string]bool{}
	for range 64 {
		ticket, err := i.Prepare(template(), device, meta())
		if err != nil {
			t.Fatal(err)
		}
		seen[ticket.Intent().Serial] = true
	}
	if len(seen) != 64 {
		t.Errorf("%d different serials of 64", len(seen))
	}
}

func BenchmarkPrepareAndSign(b *testing.B) {
	i, _, _ := newIssuer(b, ecKey(b, elliptic.P256()))
	device, tpl := rsaKey(b, 2048).Public(), template()
	b.ReportAllocs()
	for b.Loop() {
		ticket, err := i.Prepare(tpl, device, meta())
		if err != nil {
			b.Fatal(err)
		}
		if _, err := ticket.Sign(b.Context(), 1); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPrepare(b *testing.B) {
	i, _, _ := newIssuer(b, ecKey(b, elliptic.P256()))
	device, tpl := rsaKey(b, 2048).Public(), template()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := i.Prepare(tpl, device, meta()); err != nil {
			b.Fatal(err)
		}
	}
}
