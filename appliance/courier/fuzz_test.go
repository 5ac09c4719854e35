package courier

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

// FuzzFit has chains as a directory may send them: one that is taken is for the key
// and the name.
func FuzzFit(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	seed := func(name string, until time.Duration) []byte {
		c := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(until)}
		der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
		if err != nil {
			f.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	good := seed("a.example.test", time.Hour)
	i := &issuer{options: Options{Names: []string{"a.example.test"}}}
	if _, err := i.fit(good, key); err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(append(append([]byte{}, good...), good...))
	for _, bad := range [][]byte{nil, good[:100], seed("b.example.test", time.Hour), seed("a.example.test", -time.Minute)} {
		if _, err := i.fit(bad, key); err == nil {
			f.Fatalf("taken: %q", bad)
		}
		f.Add(bad)
	}
	f.Fuzz(func(t *testing.T, chain []byte) {
		p, err := i.fit(chain, key)
		if err != nil {
			return
		}
		if !key.PublicKey.Equal(p.leaf.PublicKey) || p.leaf.VerifyHostname("a.example.test") != nil || len(p.chain) > maxChain || len(p.key) == 0 {
			t.Errorf("taken: %d certificates for %v", len(p.chain), p.leaf.DNSNames)
		}
	})
}

// A chain that goes on and on is not served in each handshake.
func TestALongChainIsNotServed(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"a.example.test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	one := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	i := &issuer{options: Options{Names: []string{"a.example.test"}}}
	for n, ok := range map[int]bool{1: true, 8: true, 9: false, 200: false} {
		var chain []byte
		for range n {
			chain = append(chain, one...)
		}
		if _, err := i.fit(chain, key); (err == nil) != ok {
			t.Errorf("%d certificates: %v", n, err)
		}
	}
}

func TestServerNamesOfValidations(t *testing.T) {
	for identifier, want := range map[string]string{
		"SCEP.example.test": "scep.example.test",
		"192.0.2.17":        "17.2.0.192.in-addr.arpa",
		"::ffff:192.0.2.17": "17.2.0.192.in-addr.arpa",
		"2001:db8::17":      "7.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
	} {
		if got := serverName(identifier); got != want {
			t.Errorf("%s: %s, want %s", identifier, got, want)
		}
	}
}
