package scep_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
)

// Clients that were told a server and no more ask on the paths that other servers
// have. A profile answers there only if it is the default one.
// Covers: S-007
func TestDefaultProfile(t *testing.T) {
	w := newWorld(t)
	paths := []string{"/cgi-bin/pkiclient.exe", "/scep", "/scep/", "/scep/pkiclient.exe", "/scep/mscep.dll", "/certsrv/mscep/mscep.dll", "/certsrv/mscep/mscep.dll/pkiclient.exe"}
	for _, path := range paths {
		if r := w.do(t, "GET", path+"?operation=GetCACaps", nil); r.status != 404 || w.lastRejected(t).Why != "no profile in the path, and no default one" {
			t.Errorf("%s: %d, recorded %+v", path, r.status, w.lastRejected(t))
		}
	}
	w.fallback = "wifi"
	w.restart(t)
	message := w.message(t, nil)
	for _, path := range paths {
		if c := w.certRep(t, w.do(t, "POST", path+"?operation=PKIOperation", message)); c.status != "0" || w.submitted[len(w.submitted)-1].Profile != "wifi" {
			t.Errorf("%s: status %q", path, c.status)
		}
	}
	for _, path := range []string{"/", "/pkiclient.exe", "/cgi-bin/", "/cgi-bin", "/certsrv/mscep", "/certsrv/mscep_admin", "/cgi-bin/pkiclient.exe/", "/scep/PKICLIENT.EXE", "/scep//", "/cgi-bin%2fpkiclient.exe", "/scep/other"} {
		if r := w.do(t, "GET", path+"?operation=GetCACaps", nil); r.status != 404 {
			t.Errorf("%s: %d", path, r.status)
		}
	}
}

// Nonces are echoed whatever their length, and answered by a fresh one that is as
// long: clients that send 8 octets take no other length. Shorter ones would repeat.
// Covers: S-070, S-071, S-072
func TestNonceLengths(t *testing.T) {
	w := newWorld(t)
	for sent, want := range map[int]int{1: 8, 7: 8, 8: 8, 16: 16, 20: 20, 32: 32, 64: 64} {
		mine := cms.Attribute{Type: scep.OIDSenderNonce, Value: der(asn1.TagOctetString, bytes.Repeat([]byte{byte(sent)}, sent))}
		c := w.certRepTo(t, w.post(t, w.message(t, func(r *request) { r.attrs[2] = mine })), transaction, mine)
		if c.status != "0" || len(c.senderNonce) != want || bytes.Contains(mine.Value, c.senderNonce) {
			t.Errorf("a nonce of %d: status %q, answered by %x", sent, c.status, c.senderNonce)
		}
		if odd := w.submitted[len(w.submitted)-1].Client.Traits; (odd&protocol.TraitNonceLength != 0) != (sent != 16) {
			t.Errorf("a nonce of %d: traits %v", sent, odd.Words())
		}
	}
}

// A transactionID comes back octet for octet, in the string type that it had.
// Covers: S-063, S-074, S-075
func TestTransactionIDsAreEchoed(t *testing.T) {
	w := newWorld(t)
	for _, id := range [][]byte{
		der(asn1.TagPrintableString, []byte("7XXEY-ERLPU-2JDR9")), der(asn1.TagPrintableString, []byte("abc_1@x*&")), der(asn1.TagPrintableString, []byte(" ")),
		der(asn1.TagPrintableString, []byte("A")), der(asn1.TagPrintableString, bytes.Repeat([]byte("f"), 512)), der(asn1.TagIA5String, []byte("a@b")),
		der(asn1.TagUTF8String, []byte("Gerät 7")), der(26, []byte("visible")),
	} {
		mine := cms.Attribute{Type: scep.OIDTransactionID, Value: id}
		c := w.certRepTo(t, w.post(t, w.message(t, func(r *request) { r.attrs[0] = mine })), mine, nonce)
		last := w.submitted[len(w.submitted)-1].Client.Traits
		if c.status != "0" || (last&protocol.TraitStringType != 0) != (id[0] != asn1.TagPrintableString) {
			t.Errorf("%q: status %q, traits %v", id, c.status, last.Words())
		}
	}
}

// indefinite writes DER as BER: indefinite lengths, and OCTET STRINGs in segments.
func indefinite(t testing.TB, in []byte) []byte {
	t.Helper()
	var out []byte
	for len(in) > 0 {
		var raw asn1.RawValue
		rest := must(asn1.Unmarshal(in, &raw))(t)
		switch tag := in[0]; {
		case tag == asn1.TagOctetString && len(raw.Bytes) > 1:
			half := len(raw.Bytes) / 2
			out = slices.Concat(out, []byte{0x24, 0x80}, der(asn1.TagOctetString, raw.Bytes[:half]), der(asn1.TagOctetString, raw.Bytes[half:]), []byte{0, 0})
		case raw.IsCompound:
			out = slices.Concat(out, []byte{tag, 0x80}, indefinite(t, raw.Bytes), []byte{0, 0})
		default:
			out = append(out, raw.FullBytes...)
		}
		in = rest
	}
	return out
}

// Covers: S-054
func TestIndefiniteLengths(t *testing.T) {
	w := newWorld(t)
	for name, change := range map[string]func(*request){
		"outside":  func(r *request) { r.message = func(b []byte) []byte { return indefinite(t, b) } },
		"envelope": func(r *request) { r.content = func(b []byte) []byte { return indefinite(t, b) } },
		"both": func(r *request) {
			r.content = func(b []byte) []byte { return indefinite(t, b) }
			r.message = func(b []byte) []byte { return indefinite(t, b) }
		},
	} {
		message := w.message(t, change)
		if name != "envelope" && message[1] != 0x80 {
			t.Fatalf("%s: begins with %x", name, message[:4])
		}
		for way, r := range map[string]reply{
			"POST": w.post(t, message),
			"GET":  w.do(t, "GET", "/scep/wifi?operation=PKIOperation&message="+strings.ReplaceAll(base64.StdEncoding.EncodeToString(message), "=", "%3D"), nil),
		} {
			if c := w.certRep(t, r); c.status != "0" {
				t.Errorf("%s, %s: status %q, %q", name, way, c.status, c.failText)
			}
		}
		if odd := w.submitted[len(w.submitted)-1].Client.Traits; (odd&protocol.TraitBER != 0) != (name != "envelope") {
			t.Errorf("%s: traits %v", name, odd.Words())
		}
	}
}

// A signed message is one that a test takes apart and signs anew.
type signedMessage struct {
	Type    asn1.ObjectIdentifier
	Content struct {
		Version int
		Digests asn1.RawValue
		Content asn1.RawValue
		Certs   asn1.RawValue `asn1:"tag:0,optional"`
		Signers []signerInfo  `asn1:"set"`
	} `asn1:"explicit,tag:0"`
}

type signerInfo struct {
	Version   int
	SID       asn1.RawValue
	Digest    pkix.AlgorithmIdentifier
	Attrs     asn1.RawValue
	Algorithm pkix.AlgorithmIdentifier
	Signature []byte
}

// resigned changes a message, and signs its attributes as they are then.
func resigned(t testing.TB, message []byte, key crypto.Signer, change func(*signedMessage)) []byte {
	t.Helper()
	var m signedMessage
	must(asn1.Unmarshal(message, &m))(t)
	change(&m)
	one := &m.Content.Signers[0]
	one.Attrs.FullBytes = nil
	attrs := must(asn1.Marshal(one.Attrs))(t)
	attrs[0] = 0x31
	sum := crypto.SHA256.New()
	sum.Write(attrs)
	one.Signature = must(key.Sign(rand.Reader, sum.Sum(nil), crypto.SHA256))(t)
	return must(asn1.Marshal(m))(t)
}

// Signed attributes out of order verify as they were sent, and are passed on so.
// Covers: S-052
func TestUnsortedAttributes(t *testing.T) {
	w := newWorld(t)
	message := resigned(t, w.message(t, nil), w.device.key, func(m *signedMessage) {
		attrs := &m.Content.Signers[0].Attrs
		var first asn1.RawValue
		rest := must(asn1.Unmarshal(attrs.Bytes, &first))(t)
		attrs.Bytes = slices.Concat(rest, first.FullBytes)
	})
	if c := w.certRep(t, w.post(t, message)); c.status != "0" || w.submitted[0].Client.Traits != protocol.TraitUnsorted {
		t.Errorf("status %q, %q, traits %v", c.status, c.failText, w.submitted[0].Client.Traits.Words())
	}
}

// What is signed has to be id-data: anything else is no request, and is told so.
// Covers: S-050
func TestContentType(t *testing.T) {
	w := newWorld(t)
	for name, both := range map[string]bool{"content": false, "content and attribute": true} {
		message := resigned(t, w.message(t, nil), w.device.key, func(m *signedMessage) {
			data, other := []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01}, []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02}
			m.Content.Content.FullBytes = bytes.Replace(m.Content.Content.FullBytes, data, other, 1)
			if both {
				m.Content.Signers[0].Attrs.Bytes = bytes.Replace(m.Content.Signers[0].Attrs.Bytes, data, other, 1)
			}
		})
		if c := w.certRep(t, w.post(t, message)); c.status != "2" || c.failInfo != "2" || w.lastRejected(t).Why != "content type" || w.decrypts != 0 {
			t.Errorf("%s: status %q, failInfo %q, recorded %+v", name, c.status, c.failInfo, w.lastRejected(t))
		}
	}
}

// enveloped has OpenSSL encrypt the CSR of a request to the RA.
func enveloped(t *testing.T, w *world, ra holder, options ...string) func(*request) {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("csr", w.csr(t, w.device.key))
	write("ra.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ra.cert}))
	args := append([]string{"cms", "-encrypt", "-binary", "-in", "csr", "-outform", "DER", "-out", "e", "-aes128", "-recip", "ra.pem"}, options...)
	openssl(t, dir, args...)
	envelope := must(os.ReadFile(filepath.Join(dir, "e")))(t)
	return func(r *request) { r.content = func([]byte) []byte { return envelope } }
}

// Covers: S-085, S-086
func TestOpenSSLEnvelopes(t *testing.T) {
	w := newWorld(t)
	for name, options := range map[string][]string{
		"PKCS #1 v1.5": nil, "OAEP": {"-keyopt", "rsa_padding_mode:oaep"}, "by key identifier": {"-keyid"}, "in segments": {"-stream"},
		"OAEP with SHA-256":                {"-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256"},
		"OAEP with SHA-256, MGF1 of SHA-1": {"-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256", "-keyopt", "rsa_mgf1_md:sha1"},
	} {
		w.submitted = nil
		if c := w.certRep(t, w.post(t, w.message(t, enveloped(t, w, w.raDecrypt, options...)))); c.status != "0" {
			t.Errorf("%s: status %q, %q", name, c.status, c.failText)
			continue
		}
		if odd := w.submitted[0].Client.Traits; (odd&protocol.TraitOAEP != 0) != strings.HasPrefix(name, "OAEP") {
			t.Errorf("%s: traits %v", name, odd.Words())
		}
	}
	// What OAEP gets wrong is as uniform as the rest.
	oaep := enveloped(t, w, w.raDecrypt, "-keyopt", "rsa_padding_mode:oaep")
	w.submitted, w.slept = nil, nil
	c := w.certRep(t, w.post(t, w.message(t, func(r *request) {
		oaep(r)
		made := r.content
		r.content = func(b []byte) []byte {
			b = bytes.Clone(made(b))
			key := must(cms.ParseEnvelope(must(cms.DER(b, cms.DefaultLimits()))(t)))(t).Recipients[0].EncryptedKey
			return bytes.Replace(b, key, append([]byte{0}, bytes.Repeat([]byte{7}, len(key)-1)...), 1)
		}
	})))
	if c.status != "2" || c.failInfo != "1" || c.failText != "the message does not prove what it says (request req-0001)" || len(w.slept) != 1 || len(w.submitted) != 0 {
		t.Errorf("garbled OAEP: %q, %q, slept %v", c.failInfo, c.failText, w.slept)
	}
}

// A long GET is a message too.
// Covers: S-002, S-015
func TestLongGet(t *testing.T) {
	w := newWorld(t)
	for name, size := range map[string]int{"16 KiB": 16 << 10, "40 KiB": 40 << 10} {
		filler := cms.Attribute{Type: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: der(asn1.TagOctetString, make([]byte, size*3/4-4000))}
		message := w.message(t, func(r *request) { r.attrs = append(r.attrs, filler) })
		encoded := strings.NewReplacer("+", "%2B", "/", "%2F", "=", "%3D").Replace(base64.StdEncoding.EncodeToString(message))
		if c := w.certRep(t, w.do(t, "GET", "/scep/wifi?operation=PKIOperation&message="+encoded, nil)); c.status != "0" || len(encoded) < size-4<<10 {
			t.Errorf("%s: status %q for a message of %d octets", name, c.status, len(encoded))
		}
	}
}

// What a message shows of its sender goes to the log, with the request or without.
// Covers: S-001, S-002, S-016, S-183
func TestTraits(t *testing.T) {
	w := newWorld(t)
	w.service.LegacySHA1, w.service.LegacyDES3 = true, true
	std := base64.StdEncoding.EncodeToString
	message := w.message(t, func(r *request) { r.digest, r.cipher = crypto.SHA1, cms.DES3CBC })
	for agent, want := range map[string][]string{"": {"sha-1", "3des"}, "Mozilla/4.0 (compatible; Win32; NDES client 10.0)": {"sha-1", "3des"}, strings.Repeat("x", 300): {"sha-1", "3des"}} {
		w.do(t, "POST", "/scep/wifi?operation=PKIOperation", message, "User-Agent", agent)
		got := w.submitted[len(w.submitted)-1].Client
		if got.Agent != agent[:min(len(agent), 128)] || !slices.Equal(got.Traits.Words(), want) {
			t.Errorf("%q: %+v", agent, got.Traits.Words())
		}
	}
	old := fmt.Sprintf("GET /scep/wifi?operation=PKIOperation&message=%s HTTP/1.0\r\n\r\n", strings.ReplaceAll(std(w.message(t, func(r *request) { r.digest = crypto.SHA1 })), "=", "%3d"))
	if res := w.raw(t, old); res.StatusCode != http.StatusOK {
		t.Fatal(res.Status)
	}
	if got := w.submitted[len(w.submitted)-1].Client.Traits; got&^protocol.TraitRawPlus != protocol.TraitHTTP10|protocol.TraitNoHost|protocol.TraitGet|protocol.TraitSHA1 {
		t.Errorf("an old client: %v", got.Words())
	}
	for what, c := range map[string]struct {
		change func(*request)
		want   protocol.Traits
	}{"MD5": {func(r *request) { r.message = md5 }, protocol.TraitMD5 | protocol.TraitBER}, "DES": {func(r *request) { r.content = singleDES }, protocol.TraitDES}} {
		if rep := w.certRep(t, w.post(t, w.message(t, c.change))); rep.failInfo != "0" || w.lastRejected(t).Client.Traits != c.want {
			t.Errorf("%s: failInfo %q, traits %v", what, rep.failInfo, w.lastRejected(t).Client.Traits.Words())
		}
	}
	w.do(t, "GET", "/scep/wifi?operation=GetCACaps", nil, "User-Agent", "x")
	if got := w.lastRejected(t).Client; got != (protocol.Client{}) {
		t.Errorf("of a plain question: %+v", got)
	}
}
