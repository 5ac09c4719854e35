package scep_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/pkcs10"
	"github.com/postern-pki/postern/protocol/scep"
)

// A golden message is one that another program sent: test/vectors has them made.
type golden struct {
	name         string
	head         map[string]string
	message, csr []byte
	key          *rsa.PrivateKey // opens the envelope
	query        string          // the raw query, of a GET
}

func goldens(t testing.TB) (all []golden) {
	t.Helper()
	names, err := filepath.Glob("testdata/vectors/*.txtar")
	if err != nil || len(names) == 0 {
		t.Fatal("no vectors", err)
	}
	for _, name := range names {
		a := must(txtar.ParseFile(name))(t)
		g := golden{name: strings.TrimSuffix(filepath.Base(name), ".txtar"), head: map[string]string{}}
		for line := range strings.Lines(string(a.Comment)) {
			if key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ": "); ok && !strings.HasPrefix(line, "#") {
				g.head[key] = value
			}
		}
		for _, f := range a.Files {
			switch f.Name {
			case "message.hex":
				g.message = must(hex.DecodeString(strings.Join(strings.Fields(string(f.Data)), "")))(t)
			case "csr.hex":
				g.csr = must(hex.DecodeString(strings.Join(strings.Fields(string(f.Data)), "")))(t)
			case "key.pem":
				block, _ := pem.Decode(f.Data)
				g.key = must(x509.ParsePKCS8PrivateKey(block.Bytes))(t).(*rsa.PrivateKey)
			case "query":
				g.query = strings.TrimSpace(string(f.Data))
			}
		}
		all = append(all, g)
	}
	return all
}

// layers reads all layers of a message, and returns what a vector's head says of them.
func (g golden) layers(t *testing.T) map[string]string {
	t.Helper()
	signed := must(cms.ParseSigned(must(cms.DER(g.message, cms.DefaultLimits()))(t)))(t)
	if err := signed.Verify(); err != nil {
		t.Error(err)
	}
	m := must(scep.ParseMessage(signed.Attributes))(t)
	e := must(cms.ParseEnvelope(must(cms.DER(signed.Content, cms.DefaultLimits()))(t)))(t)
	csr := g.open(t, e)
	r := must(pkcs10.Parse(csr))(t)
	if err := r.CheckSignature(); err != nil || !bytes.Equal(csr, g.csr) {
		t.Errorf("the CSR is %x, %v", csr, err)
	}
	challenge := ""
	if r.Challenge != nil {
		challenge = string(r.Challenge.Bytes())
	}
	return map[string]string{
		"want": "ok", "type": strconv.Itoa(m.Type), "transaction": m.TransactionID, "nonce": hex.EncodeToString(m.SenderNonce), "digest": signed.Digest.String(), "cipher": e.Cipher.String(),
		"challenge": challenge, "names": strings.Join(r.DNSNames, " "), "self-signed": fmt.Sprint(bytes.Equal(signed.Signer.RawIssuer, signed.Signer.RawSubject)),
	}
}

// open opens the envelope for the recipient whose key the vector has.
func (g golden) open(t *testing.T, e *cms.Envelope) []byte {
	t.Helper()
	for _, r := range e.Recipients {
		if key, err := g.key.Decrypt(rand.Reader, r.EncryptedKey, nil); err == nil {
			return must(e.Open(key))(t)
		}
	}
	t.Fatal("nobody can open the envelope")
	return nil
}

// TestGoldenMessages reads what strongSwan, certmonger, OpenSSL and smallstep/scep
// sent, layer by layer: each file says what is in it.
// Covers: S-052, S-055, S-084, S-086, S-092, S-101
func TestGoldenMessages(t *testing.T) {
	for _, g := range goldens(t) {
		t.Run(g.name, func(t *testing.T) {
			got := g.layers(t)
			for key, want := range got {
				if g.head[key] != want {
					t.Errorf("%s is %q, and the vector says %q", key, want, g.head[key])
				}
			}
			if len(g.head) != len(got) {
				t.Errorf("the vector says %v", g.head)
			}
			if g.query == "" {
				return
			}
			_, raw, _ := strings.Cut(g.query, "message=")
			if message, _, ok := scep.DecodeMessage(raw); !ok || !bytes.Equal(message, g.message) {
				t.Errorf("the query has another message: %x", message)
			}
		})
	}
}

// TestGoldenMessagesOfWeakAlgorithms: a profile that does not allow them by name takes
// none, whoever signs it; the RA is another one than the messages are for.
// Covers: S-030, S-083, S-185
func TestGoldenMessagesOfWeakAlgorithms(t *testing.T) {
	w := newWorld(t)
	seen := 0
	for _, g := range goldens(t) {
		weak := g.head["digest"] == crypto.SHA1.String() || g.head["cipher"] == cms.DES3CBC.String()
		if weak {
			seen++
		}
		rec := w.serve(g.message)
		s := must(cms.ParseSigned(rec.Body.Bytes()))(t)
		want := "1" // nobody here can open it
		if weak {
			want = "0"
		}
		for _, a := range s.Attributes {
			if a.Type.Equal(scep.OIDFailInfo) && string(a.Value[2:]) != want {
				t.Errorf("%s: failInfo %s, want %s", g.name, a.Value[2:], want)
			}
		}
	}
	if seen == 0 {
		t.Error("no vector has a weak algorithm")
	}
}
