package interop

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// openssl runs a bash script in a folder, and returns what it printed.
func openssl(t testing.TB, dir, script string, args ...any) string {
	t.Helper()
	out, errOut, code := site.Run(t.Context(), nil, "bash", "-c", "set -e; cd '"+dir+"'; "+fmt.Sprintf(script, args...))
	if code != 0 {
		t.Fatalf("%s: exit %d: %s%s", script, code, out, errOut)
	}
	return out
}

func read(t testing.TB, dir, name string) []byte {
	t.Helper()
	return must[[]byte](t)(os.ReadFile(filepath.Join(dir, name)))
}

func write(t testing.TB, dir, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func readPEM(t testing.TB, dir, name string) []byte {
	t.Helper()
	block, _ := pem.Decode(read(t, dir, name))
	if block == nil {
		t.Fatalf("%s is no PEM", name)
	}
	return block.Bytes
}

// opensslDevice makes key, self-signed certificate and CSR, and the files of GetCACert,
// with openssl alone.
func opensslDevice(t testing.TB, dir, cn string, d *site.Device) {
	t.Helper()
	write(t, dir, "req.cnf", []byte("[req]\nprompt=no\ndistinguished_name=dn\nattributes=at\n[dn]\nCN="+cn+"\n[at]\nchallengePassword="+challenge(t, "interop", cn)+"\n"))
	write(t, dir, "cacert.der", newLibrary(t, "interop").get("GetCACert"))
	openssl(t, dir, `
openssl pkcs7 -inform DER -in cacert.der -print_certs -out all.pem
csplit -sz -f ra- -b %%d.pem all.pem '/^subject/' '{*}'
openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out key.pem
openssl req -new -config req.cnf -key key.pem -outform DER -out csr.der
openssl req -x509 -new -config req.cnf -key key.pem -days 1 -out self.pem`)
	if got := readPEM(t, dir, "ra-1.pem"); !bytes.Equal(got, d.CA.RADecrypt.Raw) {
		t.Fatal("the second certificate is not the one to encrypt to")
	}
}

// layered signs an envelope as a request: openssl cannot sign attributes of SCEP's.
func layered(t testing.TB, d *site.Device, m client.Message, envelope []byte) *site.Request {
	t.Helper()
	r := must[*site.Request](t)(d.Request(m))
	signed := must[*cms.Signed](t)(cms.ParseSigned(must[[]byte](t)(cms.DER(r.DER, cms.DefaultLimits()))))
	attributes := slices.DeleteFunc(slices.Clone(signed.Attributes), func(a cms.Attribute) bool { return a.Type[0] != 2 })
	r.DER = must[[]byte](t)(cms.Sign(cms.SignOptions{Certificate: signed.Signer, Key: m.SignerKey, Digest: crypto.SHA256, Attributes: attributes, Content: envelope}))
	return r
}

// TestOpenSSLMakesAndOpensEachLayer enrolls, and then renews without a challenge, with
// envelopes that openssl made, in DER and streamed, named by serial and by key; and
// takes each answer apart with openssl: SignedData, EnvelopedData, and the degenerate
// SignedData with the certificate.
// Covers: S-120, S-121, S-122, S-123, S-124, S-113, S-086
func TestOpenSSLMakesAndOpensEachLayer(t *testing.T) {
	dir := t.TempDir()
	d := must[*site.Device](t)(testSite.Device(t.Context(), "interop"))
	const cn = "openssl.demo.example"
	opensslDevice(t, dir, cn, d)
	signerFile, kind := "self.pem", scep.PKCSReq
	for i, form := range []string{"-aes128", "-aes256", "-aes128 -stream", "-aes128 -keyid"} {
		openssl(t, dir, `openssl cms -encrypt -binary -in csr.der -outform DER %s -out envelope.der ra-1.pem`, form)
		key := must[any](t)(x509.ParsePKCS8PrivateKey(readPEM(t, dir, "key.pem"))).(*rsa.PrivateKey)
		m := client.Message{Type: kind, Signer: readPEM(t, dir, signerFile), SignerKey: key, CSR: read(t, dir, "csr.der")}
		r := layered(t, d, m, read(t, dir, "envelope.der"))
		reply := must[*client.Reply](t)(d.Post(t.Context(), r.DER))
		if _, err := client.Open(reply, r.Expect); err != nil {
			t.Fatalf("%s: %v", form, err)
		}
		write(t, dir, "reply.der", reply.DER)
		openssl(t, dir, `
openssl cms -verify -inform DER -in reply.der -binary -purpose any -CAfile '%s' -certsout signers.pem -out inner.der
openssl cms -decrypt -inform DER -in inner.der -binary -recip %s -inkey key.pem -out certs.der
openssl pkcs7 -inform DER -in certs.der -print_certs -out got.pem
openssl verify -CAfile '%s' got.pem
cmp <(openssl x509 -in got.pem -noout -pubkey) <(openssl pkey -in key.pem -pubout)`, testSite.CA(), signerFile, testSite.CA())
		shape(t, dir, d)
		// The next one renews: signed by this certificate, and its CSR has no challenge.
		signerFile, kind = fmt.Sprintf("own-%d.pem", i), scep.RenewalReq
		openssl(t, dir, `mv got.pem %s; openssl req -new -subj /CN=%s -key key.pem -outform DER -out csr.der`, signerFile, cn)
	}
}

// shape looks at the structures as openssl prints them.
func shape(t *testing.T, dir string, d *site.Device) {
	t.Helper()
	degenerate := openssl(t, dir, `openssl cms -cmsout -print -noout -inform DER -in certs.der`)
	words := strings.Join(strings.Fields(degenerate), " ")
	for _, want := range []string{"digestAlgorithms: <EMPTY>", "eContent: <ABSENT>", "signerInfos: <EMPTY>"} {
		if !strings.Contains(words, want) {
			t.Errorf("the degenerate SignedData lacks %q:\n%s", want, degenerate)
		}
	}
	if n := strings.Count(degenerate, "d.certificate:"); n != 1 {
		t.Errorf("%d certificates", n)
	}
	envelope := openssl(t, dir, `openssl cms -cmsout -print -noout -inform DER -in inner.der`)
	if strings.Count(envelope, "d.ktri:") != 1 || strings.Count(envelope, "d.issuerAndSerialNumber:") != 1 || !strings.Contains(envelope, "contentType: pkcs7-data") {
		t.Errorf("the envelope is\n%s", envelope)
	}
	if !bytes.Equal(readPEM(t, dir, "signers.pem"), d.CA.RASign.Raw) {
		t.Error("the first certificate of the answer is not the RA's")
	}
}
