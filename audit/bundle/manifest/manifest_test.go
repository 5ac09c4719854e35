package manifest_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/audit/bundle/manifest"
)

func auditor(t testing.TB) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(4711), Subject: pkix.Name{CommonName: "Audit"}, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return key, c
}

func sample() []byte {
	return manifest.Manifest{
		manifest.Of("VERIFY.txt", []byte("v")), manifest.Of(manifest.NoteName(7), []byte("note")), manifest.Of("segments/000000000000.jsonl", []byte("{}")),
	}.Bytes()
}

func sign(t testing.TB, m []byte, at time.Time) (der []byte, cert *x509.Certificate) {
	t.Helper()
	key, cert := auditor(t)
	der, err := manifest.Sign(m, cert, at, func(attributes []byte) ([]byte, error) {
		sum := sha256.Sum256(attributes)
		return ecdsa.SignASN1(rand.Reader, key, sum[:])
	})
	if err != nil {
		t.Fatal(err)
	}
	return der, cert
}

// What we sign, openssl verifies as CAdES, and sha256sum reads the manifest.
func TestOpensslVerifiesTheSignature(t *testing.T) {
	dir := t.TempDir()
	m := sample()
	der, cert := sign(t, m, time.Now().UTC().Truncate(time.Second))
	for name, data := range map[string][]byte{
		"MANIFEST": m, "p7s": der, "trust.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), "other": append(bytes.Clone(m), '\n'),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for content, good := range map[string]bool{"MANIFEST": true, "other": false} {
		cmd := exec.CommandContext(t.Context(), "openssl", "cms", "-verify", "-cades", "-binary", "-inform", "DER", "-in", "p7s", "-content", content, "-CAfile", "trust.pem", "-partial_chain", "-out", "/dev/null")
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); (err == nil) != good {
			t.Errorf("%s: %v: %s", content, err, out)
		}
	}
}

func TestOnlyTheOneFormVerifies(t *testing.T) {
	m := sample()
	for _, at := range []time.Time{time.Unix(1_800_000_000, 0).UTC(), time.Date(2051, 1, 2, 3, 4, 5, 0, time.UTC)} {
		der, cert := sign(t, m, at)
		s, err := manifest.Verify(m, der)
		if err != nil || !s.Certificate.Equal(cert) || !s.At.Equal(at) {
			t.Fatalf("%+v, %v", s, err)
		}
		for i := range der {
			other := bytes.Clone(der)
			other[i] ^= 1
			if s, err := manifest.Verify(m, other); err == nil && s.Certificate.Equal(cert) {
				t.Errorf("octet %d of the signature can be another", i)
			}
		}
		for name, other := range map[string][]byte{"another manifest": bytes.Replace(m, []byte("VERIFY"), []byte("VERIFX"), 1), "no manifest": []byte("x")} {
			if _, err := manifest.Verify(other, der); !errors.Is(err, manifest.ErrSignature) && !errors.Is(err, manifest.ErrForm) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := manifest.Verify(m, append(bytes.Clone(der), 0)); !errors.Is(err, manifest.ErrSignature) {
			t.Errorf("an octet more: %v", err)
		}
	}
}

func TestWhatIsNoManifest(t *testing.T) {
	sum := strings.Repeat("0f", 32)
	note := sum + "  checkpoints/000000000007.note\n"
	if m, err := manifest.Parse([]byte(note)); err != nil || len(m) != 1 || string(m.Bytes()) != note {
		t.Fatalf("%v, %v", m, err)
	}
	digest := sha256.Sum256([]byte("x"))
	for name, text := range map[string]string{
		"nothing": "", "a digest": string(digest[:]), "a checkpoint's text": "demo.example/log\n7\nAAAA\n", "no checkpoint": sum + "  a\n",
		"two checkpoints": note + sum + "  checkpoints/000000000008.note\n", "twice the same": note + note, "another order": sum + "  z\n" + note,
		"capitals": strings.ToUpper(sum) + "  a\n" + note, "one space": sum + " a\n" + note, "binary": sum + " *a\n" + note, "a short digest": sum[2:] + "  a\n" + note,
		"no end": note[:len(note)-1], "a name that goes up": sum + "  a/../b\n" + note, "a name from the root": sum + "  /a\n" + note, "an option": sum + "  -a\n" + note,
		"a hidden name": sum + "  .a\n" + note, "a backslash": sum + "  a\\n\n" + note, "an empty name": sum + "  \n" + note, "a long name": sum + "  " + strings.Repeat("a", 101) + "\n" + note,
		"too much": strings.Repeat(" ", manifest.MaxSize) + note,
	} {
		if _, err := manifest.Parse([]byte(text)); !errors.Is(err, manifest.ErrForm) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sample())
	f.Add([]byte(strings.Repeat("0f", 32) + "  checkpoints/000000000007.note\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := manifest.Parse(data)
		if err != nil {
			if !errors.Is(err, manifest.ErrForm) {
				t.Error(err)
			}
			return
		}
		if !bytes.Equal(m.Bytes(), data) {
			t.Errorf("%q is written as %q", data, m.Bytes())
		}
	})
}

func FuzzVerify(f *testing.F) {
	m := sample()
	der, _ := sign(f, m, time.Unix(1_800_000_000, 0))
	f.Add(der)
	f.Add(der[:len(der)/2])
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := manifest.Verify(m, data); err != nil && !errors.Is(err, manifest.ErrSignature) {
			t.Error(err)
		}
	})
}
