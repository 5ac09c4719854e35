package cms_test

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-pki/postern/protocol/cms"
)

// openssl runs the binary in a folder, and returns its standard output.
func openssl(t *testing.T, dir string, stdin []byte, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	var stderr bytes.Buffer
	cmd.Dir, cmd.Stdin, cmd.Stderr = dir, bytes.NewReader(stdin), &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return out
}

// write puts a holder's certificate and key into a folder.
func (h holder) write(t *testing.T, dir, name string) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(h.key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{".pem": {Type: "CERTIFICATE", Bytes: h.cert}, ".key": {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(filepath.Join(dir, name+file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpenSSLVerifiesWhatWeSign(t *testing.T) {
	for name, h := range map[string]holder{"RSA": rsaHolder(t), "P-256": ecHolder(t, elliptic.P256()), "P-384": ecHolder(t, elliptic.P384())} {
		dir := t.TempDir()
		h.write(t, dir, "h")
		for _, digest := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
			der := sign(t, h, cms.SignOptions{Digest: digest, Content: content, Attributes: []cms.Attribute{transaction("a_b@c")}})
			out := openssl(t, dir, der, "cms", "-verify", "-binary", "-inform", "DER", "-noverify", "-certfile", "h.pem")
			if !bytes.Equal(out, content) {
				t.Errorf("%s, %v: openssl read %q", name, digest, out)
			}
		}
	}
}

// TestOpenSSLVerifiesWithoutContent: a CertRep that is no success has no
// eContent, and its digest is that of nothing.
//
// Covers: S-125, S-130
func TestOpenSSLVerifiesWithoutContent(t *testing.T) {
	h, dir := rsaHolder(t), t.TempDir()
	h.write(t, dir, "h")
	der := sign(t, h, cms.SignOptions{})
	printed := openssl(t, dir, der, "cms", "-cmsout", "-print", "-noout", "-inform", "DER")
	if !bytes.Contains(printed, []byte("eContent: <ABSENT>")) || !bytes.Contains(printed, []byte("algorithm: rsaEncryption (1.2.840.113549.1.1.1)")) {
		t.Errorf("openssl printed %s", printed)
	}
	if err := os.WriteFile(filepath.Join(dir, "nothing"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	openssl(t, dir, der, "cms", "-verify", "-binary", "-inform", "DER", "-noverify", "-content", "nothing")
}

func TestWeVerifyWhatOpenSSLSigns(t *testing.T) {
	large := bytes.Repeat([]byte("0123456789abcdef"), 2000)
	for name, h := range map[string]holder{"RSA": rsaHolder(t), "P-256": ecHolder(t, elliptic.P256())} {
		dir := t.TempDir()
		h.write(t, dir, "h")
		for _, digest := range []string{"sha1", "sha224", "sha256", "sha384", "sha512"} {
			for _, extra := range []string{"", "-stream", "-keyid", "-nosmimecap"} {
				args := []string{"cms", "-sign", "-binary", "-nodetach", "-outform", "DER", "-signer", "h.pem", "-inkey", "h.key", "-md", digest}
				if extra != "" {
					args = append(args, extra)
				}
				s, err := parseAndVerify(openssl(t, dir, large, args...))
				if err != nil || !bytes.Equal(s.Content, large) {
					t.Errorf("%s %s %s: %v", name, digest, extra, err)
				}
			}
		}
	}
}

func TestOpenSSLOpensWhatWeEnvelop(t *testing.T) {
	h, dir := rsaHolder(t), t.TempDir()
	h.write(t, dir, "h")
	for _, c := range allCiphers {
		for _, want := range [][]byte{content, {}, bytes.Repeat([]byte{16}, 16)} {
			out := openssl(t, dir, envelop(t, h, want, c), "cms", "-decrypt", "-binary", "-inform", "DER", "-recip", "h.pem", "-inkey", "h.key")
			if !bytes.Equal(out, want) {
				t.Errorf("%v: openssl read %q, want %q", c, out, want)
			}
		}
	}
}

// Covers: S-086
func TestWeOpenWhatOpenSSLEnvelops(t *testing.T) {
	h, dir := rsaHolder(t), t.TempDir()
	h.write(t, dir, "h")
	large := bytes.Repeat([]byte("0123456789abcdef"), 2000)
	for cipher, want := range map[string]cms.Cipher{"-aes128": cms.AES128CBC, "-aes192": cms.AES192CBC, "-aes256": cms.AES256CBC, "-des3": cms.DES3CBC} {
		for _, extra := range []string{"-binary", "-stream", "-keyid"} {
			der, err := cms.DER(openssl(t, dir, large, "cms", "-encrypt", "-binary", "-outform", "DER", cipher, extra, "h.pem"), cms.DefaultLimits())
			if err != nil {
				t.Fatal(err)
			}
			e, err := cms.ParseEnvelope(der)
			if err != nil || e.Cipher != want || len(e.Recipients) != 1 || !e.Recipients[0].Names(h.parsed(t)) {
				t.Fatalf("%s %s: %v", cipher, extra, err)
			}
			if got, err := openWith(e, h.key.(*rsa.PrivateKey)); err != nil || !bytes.Equal(got, large) {
				t.Errorf("%s %s: %d octets, %v", cipher, extra, len(got), err)
			}
		}
	}
}

func TestOpenSSLReadsOurCertificatesInOrder(t *testing.T) {
	a, b := rsaHolder(t), ecHolder(t, elliptic.P256())
	for _, order := range [][]holder{{a, b}, {b, a}} {
		der, err := cms.CertsOnly([][]byte{order[0].cert, order[1].cert})
		if err != nil {
			t.Fatal(err)
		}
		out := openssl(t, t.TempDir(), der, "pkcs7", "-inform", "DER", "-print_certs")
		for _, h := range order {
			block, rest := pem.Decode(out)
			if block == nil || !bytes.Equal(block.Bytes, h.cert) {
				t.Fatal("another certificate than the one given")
			}
			out = rest
		}
	}
}
