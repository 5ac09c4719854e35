package cms_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/postern-pki/postern/protocol/cms"
)

// verdicts are the words that a vector may want.
var verdicts = map[string]error{
	"ok": nil, "malformed": cms.ErrMalformed, "too large": cms.ErrTooLarge, "too deep": cms.ErrTooDeep, "too many": cms.ErrTooMany,
	"trailing": cms.ErrTrailing, "algorithm": cms.ErrAlgorithm, "signature": cms.ErrSignature, "digest": cms.ErrDigest, "open": cms.ErrOpen,
}

// A vector is one file of testdata/vectors. Its comment has lines "name: value";
// files that end in .hex are hex with white space.
type vector struct {
	name  string
	head  map[string]string
	files map[string][]byte
}

func readVectors(t testing.TB) []vector {
	t.Helper()
	return vectorsOf(t, "testdata/vectors")
}

func vectorsOf(t testing.TB, dir string) []vector {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.txtar"))
	if err != nil || len(names) == 0 {
		t.Fatal("no vectors", err)
	}
	var all []vector
	for _, name := range names {
		a, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		v := vector{strings.TrimSuffix(filepath.Base(name), ".txtar"), map[string]string{}, map[string][]byte{}}
		for line := range strings.Lines(string(a.Comment)) {
			if key, value, ok := strings.Cut(line, ": "); ok && !strings.HasPrefix(line, "#") {
				v.head[key] = strings.TrimSpace(value)
			}
		}
		for _, f := range a.Files {
			data := f.Data
			if strings.HasSuffix(f.Name, ".hex") {
				if data, err = hex.DecodeString(strings.Join(strings.Fields(string(f.Data)), "")); err != nil {
					t.Fatalf("%s: %s: %v", name, f.Name, err)
				}
			}
			v.files[f.Name] = data
		}
		all = append(all, v)
	}
	return all
}

// TestVectors runs every file of testdata/vectors. A vector states its own
// verdict, so adding a case never means editing Go.
//
// Covers: S-054, S-083, S-101
func TestVectors(t *testing.T) {
	parse := map[string]func(*testing.T, vector) error{
		"der": runDER, "signed": runSigned, "envelope": runEnvelope, "certificate": runCertificate, "certs-only": runCertsOnly,
	}
	for _, v := range readVectors(t) {
		t.Run(v.name, func(t *testing.T) {
			want, ok := verdicts[v.head["want"]]
			run := parse[v.head["parse"]]
			if !ok || run == nil {
				t.Fatalf("vector wants %q of %q", v.head["want"], v.head["parse"])
			}
			if err := run(t, v); !errors.Is(err, want) || err != nil && want == nil {
				t.Errorf("got %v, want %q", err, v.head["want"])
			}
		})
	}
}

func (v vector) equal(t *testing.T, file string, got []byte) {
	t.Helper()
	if want, ok := v.files[file]; ok && !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

func runDER(t *testing.T, v vector) error {
	out, err := cms.DER(v.files["message.hex"], cms.Limits{})
	if err == nil {
		v.equal(t, "der.hex", out)
	}
	return err
}

func runSigned(t *testing.T, v vector) error {
	der, err := cms.DER(v.files["message.hex"], cms.DefaultLimits())
	if err != nil {
		return err
	}
	s, err := cms.ParseSigned(der)
	if err != nil {
		return err
	}
	if err := s.Verify(); err != nil {
		return err
	}
	v.equal(t, "content.hex", s.Content)
	return nil
}

func runEnvelope(t *testing.T, v vector) error {
	der, err := cms.DER(v.files["message.hex"], cms.DefaultLimits())
	if err != nil {
		return err
	}
	e, err := cms.ParseEnvelope(der)
	if err != nil {
		return err
	}
	if got := e.Cipher.String(); got != v.head["cipher"] {
		t.Errorf("cipher %s, want %s", got, v.head["cipher"])
	}
	var content []byte
	if password := v.head["password"]; password != "" {
		content, err = openByPassword(e, password)
	} else {
		content, err = openWith(e, parseKey(t, v.files["key.pem"]).(*rsa.PrivateKey))
	}
	if err == nil {
		v.equal(t, "content.hex", content)
	}
	return err
}

// openByPassword tries the password on each recipient that is by one.
func openByPassword(e *cms.Envelope, password string) ([]byte, error) {
	err := fmt.Errorf("no password")
	for _, p := range e.Passwords {
		secret, kerr := p.Key([]byte(password), e.Cipher.KeySize())
		if kerr != nil {
			err = kerr
			continue
		}
		return e.Open(secret)
	}
	return nil, err
}

// openWith tries the key on each recipient; a server must choose one instead.
func openWith(e *cms.Envelope, key *rsa.PrivateKey) ([]byte, error) {
	err := fmt.Errorf("no recipient")
	for _, r := range e.Recipients {
		secret, kerr := unwrap(key, r, e.Cipher)
		if kerr != nil {
			continue
		}
		var content []byte
		if content, err = e.Open(secret); err == nil {
			return content, nil
		}
	}
	return nil, err
}

// unwrap returns the content key.
func unwrap(key *rsa.PrivateKey, r cms.Recipient, c cms.Cipher) ([]byte, error) {
	secret := make([]byte, c.KeySize())
	if r.OAEPHash != 0 {
		return key.Decrypt(nil, r.EncryptedKey, &rsa.OAEPOptions{Hash: r.OAEPHash, MGFHash: r.OAEPMGF})
	}
	//lint:ignore SA1019 it is the key transport that clients have
	err := rsa.DecryptPKCS1v15SessionKey(nil, key, r.EncryptedKey, secret) //nolint:staticcheck // it is the key transport that clients have
	return secret, err
}

func runCertificate(t *testing.T, v vector) error {
	c, err := cms.ParseCertificate(v.files["message.hex"])
	if err == nil && keyName(c.PublicKey) != v.head["key"] {
		t.Errorf("key %T, want %s", c.PublicKey, v.head["key"])
	}
	return err
}

func keyName(pub crypto.PublicKey) string {
	switch pub.(type) {
	case *rsa.PublicKey:
		return "RSA"
	case *ecdsa.PublicKey:
		return "ECDSA"
	case ed25519.PublicKey:
		return "Ed25519"
	default:
		return ""
	}
}

func runCertsOnly(t *testing.T, v vector) error {
	der, err := cms.DER(v.files["message.hex"], cms.DefaultLimits())
	if err != nil {
		return err
	}
	certs, err := cms.ParseCertsOnly(der)
	if err == nil && fmt.Sprint(len(certs)) != v.head["certificates"] {
		t.Errorf("%d certificates, want %s", len(certs), v.head["certificates"])
	}
	return err
}

func parseKey(t testing.TB, data []byte) crypto.PrivateKey {
	t.Helper()
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatal("no PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
