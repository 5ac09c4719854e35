package scep_test

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-pki/postern/protocol"
)

// contentInfo, envelopedData and what follows are encoding/asn1's view of a
// message, to change one or to look at one without our own parsers.
type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content asn1.RawValue
}

type envelopedData struct {
	Version             int
	Recipients, Content asn1.RawValue
}

func unmarshal(der []byte, v any) (rest []byte, err error) { return asn1.Unmarshal(der, v) }

func tagged(class, tag int, b []byte) asn1.RawValue {
	return asn1.RawValue{Class: class, Tag: tag, IsCompound: true, Bytes: b}
}

func marshal(v any) []byte {
	out, err := asn1.Marshal(v)
	if err != nil {
		panic(err)
	}
	return out
}

func openssl(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	cmd.Dir = dir
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("openssl %s: %v: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String()
}

func files(t *testing.T, w *world, reply []byte) (dir string) {
	t.Helper()
	dir = t.TempDir()
	key := must(x509.MarshalPKCS8PrivateKey(w.device.key))(t)
	for name, b := range map[string][]byte{
		"reply.der": reply, "empty": nil,
		"ra.pem":     pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.raSign.cert}),
		"device.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.device.cert}),
		"device.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// OpenSSL takes a FAILURE for a message whose content is absent and was signed as
// empty (RFC 8894, section 3.3.2.2).
//
// Covers: S-062, S-130
func TestFailureByOpenSSL(t *testing.T) {
	w := newWorld(t)
	w.submit = func(protocol.Request) (protocol.Outcome, error) {
		return protocol.Outcome{RequestID: "id", Status: protocol.Refused, Refusal: &protocol.Refusal{Kind: protocol.NotAllowed, Say: "no"}}, nil
	}
	dir := files(t, w, w.post(t, w.message(t, nil)).body)
	openssl(t, dir, "cms", "-verify", "-inform", "DER", "-in", "reply.der", "-binary", "-content", "empty", "-noverify", "-certfile", "ra.pem", "-nointern", "-out", "out")
	parsed := openssl(t, dir, "asn1parse", "-inform", "DER", "-in", "reply.der")
	i := strings.Index(parsed, "pkcs7-data")
	if i < 0 || !strings.Contains(strings.SplitN(parsed[i:], "\n", 3)[1], "cont [ 0 ]") || !strings.Contains(parsed, "UTF8STRING        :no (request id)") {
		t.Errorf("asn1parse: %s", parsed)
	}
	// What follows id-data is on the level above it: the certificates.
	lines := strings.Split(parsed, "\n")
	for n, line := range lines {
		if strings.Contains(line, ":pkcs7-data") && strings.Contains(line, "d=4") && strings.Contains(lines[n+1], "d=4") {
			t.Errorf("there is an eContent: %s", lines[n+1])
		}
	}
}

// OpenSSL verifies and opens a SUCCESS, and finds the issued certificate alone.
//
// Covers: S-120, S-122
func TestSuccessByOpenSSL(t *testing.T) {
	w := newWorld(t)
	dir := files(t, w, w.post(t, w.message(t, nil)).body)
	openssl(t, dir, "cms", "-verify", "-inform", "DER", "-in", "reply.der", "-binary", "-noverify", "-certfile", "ra.pem", "-nointern", "-out", "envelope.der")
	openssl(t, dir, "cms", "-decrypt", "-inform", "DER", "-in", "envelope.der", "-binary", "-recip", "device.pem", "-inkey", "device.key", "-out", "certs.der")
	if out := openssl(t, dir, "pkcs7", "-inform", "DER", "-in", "certs.der", "-print_certs", "-noout"); strings.Count(out, "subject=") != 1 || !strings.Contains(out, "CN = issued") {
		t.Errorf("certificates: %s", out)
	}
}
