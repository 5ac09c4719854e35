package servercert_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/postern-pki/postern/tls/servercert"
)

func TestAKeyFileIsMadeOnceAndReadAgain(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "tls.key")
	made, err := servercert.KeyFile(name)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(name)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	again, err := servercert.KeyFile(name)
	if err != nil || !made.Public().(*ecdsa.PublicKey).Equal(again.Public()) {
		t.Errorf("read again: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("the folder has %v, %v", left, err)
	}
	if _, err := servercert.KeyFile(filepath.Join(dir, "gone", "tls.key")); err == nil {
		t.Error("a key in a folder that is not there")
	}
}

func TestKeyFilesOfOthers(t *testing.T) {
	dir := t.TempDir()
	for name, args := range map[string][]string{
		"p256":   {"genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"},
		"sec1":   {"ecparam", "-genkey", "-name", "prime256v1", "-noout"},
		"rsa":    {"genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"},
		"x25519": {"genpkey", "-algorithm", "X25519"},
	} {
		file := filepath.Join(dir, name)
		if out, err := exec.Command("openssl", append(args, "-out", file)...).CombinedOutput(); err != nil {
			t.Fatalf("openssl: %v: %s", err, out)
		}
		if err := os.Chmod(file, 0o600); err != nil {
			t.Fatal(err)
		}
		key, err := servercert.KeyFile(file)
		if name == "x25519" {
			if err == nil {
				t.Error("a key that does not sign is taken")
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBadKeyFiles(t *testing.T) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	good := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	for name, tt := range map[string]struct {
		text []byte
		mode os.FileMode
		want error
	}{
		"open to others": {good, 0o644, servercert.ErrMode},
		"empty":          {nil, 0o600, servercert.ErrOptions},
		"no PEM":         {der, 0o600, servercert.ErrOptions},
		"two keys":       {append(append([]byte{}, good...), good...), 0o600, servercert.ErrOptions},
		"a certificate":  {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600, servercert.ErrOptions},
		"half a key":     {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der[:20]}), 0o600, nil},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "tls.key")
			if err := os.WriteFile(file, tt.text, tt.mode); err != nil {
				t.Fatal(err)
			}
			_, err := servercert.KeyFile(file)
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("KeyFile: %v, want %v", err, tt.want)
			}
			if now, rerr := os.ReadFile(file); rerr != nil || string(now) != string(tt.text) {
				t.Errorf("the file was changed: %v", rerr)
			}
		})
	}
}
