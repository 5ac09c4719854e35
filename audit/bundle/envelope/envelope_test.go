package envelope_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/postern-pki/postern/audit/bundle/envelope"
)

func certificate(t *testing.T, pub, key any) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(4711), Subject: pkix.Name{CommonName: "Auditor"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err = x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What is encrypted of any length, openssl opens, with the right key alone.
func TestOpensslOpensIt(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var to *x509.Certificate
	for _, name := range []string{"other", "mine"} {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		to = certificate(t, key.Public(), key)
		write(name+".key", pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
		write(name+".pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: to.Raw}))
	}
	for _, size := range []int{0, 1, 15, 16, 17, 100, 200, 65535, 65536, 65537, 300_000} {
		content := make([]byte, size)
		_, _ = rand.Read(content)
		var b bytes.Buffer
		if err := envelope.Encrypt(&b, bytes.NewReader(content), int64(size), to); err != nil {
			t.Fatal(err)
		}
		write("sealed", b.Bytes())
		for name, good := range map[string]bool{"mine": true, "other": false} {
			cmd := exec.CommandContext(t.Context(), "openssl", "cms", "-decrypt", "-binary", "-inform", "DER", "-in", "sealed", "-recip", name+".pem", "-inkey", name+".key", "-out", "opened")
			cmd.Dir = dir
			write("opened", nil)
			out, err := cmd.CombinedOutput()
			opened, _ := os.ReadFile(filepath.Join(dir, "opened"))
			if same := err == nil && bytes.Equal(opened, content); same != good {
				t.Errorf("%d octets, %s: %v: %s", size, name, err, out)
			}
		}
	}
}

func TestWhatCannotBeEncrypted(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := envelope.Encrypt(&b, &b, 0, certificate(t, key.Public(), key)); !errors.Is(err, envelope.ErrRecipient) {
		t.Errorf("to an EC key: %v", err)
	}
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	to := certificate(t, private.Public(), private)
	if err := envelope.Encrypt(&b, &b, envelope.MaxContent+1, to); !errors.Is(err, envelope.ErrTooLarge) {
		t.Errorf("too much: %v", err)
	}
	if err := envelope.Encrypt(&b, bytes.NewReader(make([]byte, 10)), 100, to); err == nil {
		t.Error("less than was said")
	}
}
