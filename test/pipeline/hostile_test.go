package pipeline_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// rejected wants the record of a message that proves nothing: the gate found that
// out by itself, or the authority did.
func (r refusal) rejected(t *testing.T, whys ...string) {
	t.Helper()
	var got string
	for _, one := range r.records {
		switch {
		case one.Event == "message" && one.Outcome == "rejected":
			got = one.Object.Why
		case one.Event == "enroll" && one.Outcome == "refused" && len(one.Object.Reasons) == 1 && one.Object.Reasons[0].Rule == "proof":
			got = one.Object.Reasons[0].Saw
		}
	}
	if !slices.Contains(whys, got) {
		t.Errorf("the log says %q, not %q: %+v", got, whys, r.records)
	}
}

// looks is all of an answer that may not be the same in every answer left out.
func looks(t *testing.T, reply *client.Reply) string {
	t.Helper()
	rep := must(client.Inspect(reply))(t)
	var b strings.Builder
	_, _ = fmt.Fprintf(&b, "%d octets, %d of content\n", len(reply.DER), len(rep.Signed.Content))
	for _, a := range rep.Signed.Attributes {
		value := a.Value
		switch {
		case a.Type.Equal(scep.OIDSenderNonce), a.Type.Equal(scep.OIDRecipientNonce), a.Type.Equal(scep.OIDTransactionID),
			a.Type.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 5}): // signingTime
			value = bytes.Repeat([]byte("."), len(value))
		case a.Type.Equal(scep.OIDFailInfoText):
			at := bytes.Index(value, []byte(" (request "))
			value = slices.Concat(value[:at], bytes.Repeat([]byte("."), len(value)-at))
		}
		_, _ = fmt.Fprintf(&b, "%v %q\n", a.Type, value)
	}
	return b.String()
}

// forge puts another envelope into a message, and signs it as its sender would.
func forge(t *testing.T, m client.Message, r *site.Request, envelope func([]byte) []byte) {
	t.Helper()
	signed := must(cms.ParseSigned(must(cms.DER(r.DER, cms.DefaultLimits()))(t)))(t)
	attributes := slices.DeleteFunc(slices.Clone(signed.Attributes), func(a cms.Attribute) bool { return a.Type[0] != 2 }) // but for SCEP's
	r.DER = must(cms.Sign(cms.SignOptions{
		Certificate: signed.Signer, Key: m.SignerKey, Digest: crypto.SHA256, Attributes: attributes, Content: envelope(signed.Content),
	}))(t)
}

// resigned is a CSR with the signature of another key.
func resigned(t *testing.T, csr []byte, key *rsa.PrivateKey) []byte {
	t.Helper()
	var r struct {
		Info, Algorithm asn1.RawValue
		Signature       asn1.BitString
	}
	must(asn1.Unmarshal(csr, &r))(t)
	digest := crypto.SHA256.New()
	digest.Write(r.Info.FullBytes)
	r.Signature.Bytes = must(rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest.Sum(nil)))(t)
	return must(asn1.Marshal(r))(t)
}

// certificateFor is a certificate that has the issuer and serial of another, and
// so is what an envelope to that one names.
func certificateFor(t *testing.T, key *rsa.PrivateKey, c *x509.Certificate) []byte {
	t.Helper()
	template := &x509.Certificate{SerialNumber: c.SerialNumber, RawSubject: c.RawSubject, NotBefore: c.NotBefore, NotAfter: c.NotAfter}
	return must(x509.CreateCertificate(rand.Reader, template, &x509.Certificate{RawSubject: c.RawIssuer}, &key.PublicKey, key))(t)
}

// A bad changes a good message; whys are what the log may say of it.
type bad struct {
	message  func(*client.Message)
	envelope func([]byte) []byte
	octets   func([]byte) []byte
	whys     []string
}

// badMessages are all the ways in which a message proves nothing.
func badMessages(t *testing.T, d *site.Device, key *rsa.PrivateKey) map[string]bad {
	t.Helper()
	csr := func(change func([]byte) []byte) func(*client.Message) {
		return func(m *client.Message) { m.CSR = change(bytes.Clone(m.CSR)) }
	}
	flipLast := func(b []byte) []byte { b[len(b)-1] ^= 1; return b }
	ra := d.CA.RADecrypt.PublicKey.(*rsa.PublicKey)
	encryptedKey := func(value []byte) func([]byte) []byte {
		return func(b []byte) []byte {
			return bytes.Replace(b, must(cms.ParseEnvelope(b))(t).Recipients[0].EncryptedKey, value, 1)
		}
	}
	//lint:ignore SA1019 it is the key transport of SCEP
	long := must(rsa.EncryptPKCS1v15(rand.Reader, ra, make([]byte, 32)))(t)  //nolint:staticcheck // it is the key transport of SCEP
	content := slices.Clip([]string{"envelope content", "content encoding"}) // noise has good padding now and then
	return map[string]bad{
		"a broken signature":           {octets: flipLast, whys: []string{"signature"}},
		"an envelope to somebody else": {message: func(m *client.Message) { m.Recipient = certificateFor(t, keys[9], d.CA.RASign) }, whys: []string{"recipients"}},
		"an envelope by another's key": {message: func(m *client.Message) { m.Recipient = certificateFor(t, keys[9], d.CA.RADecrypt) }, whys: append(content, "length of the encrypted key")},
		"a key that is the modulus":    {envelope: encryptedKey(ra.N.Bytes()), whys: []string{"length of the encrypted key"}},
		"a key that is noise":          {envelope: encryptedKey(append([]byte{0}, bytes.Repeat([]byte{7}, ra.Size()-1)...)), whys: content},
		"a key that is too long":       {envelope: encryptedKey(long), whys: content},
		// The last octet but a block changes the last octet of the padding.
		"bad padding":               {envelope: func(b []byte) []byte { b = bytes.Clone(b); b[len(b)-17] ^= 0x80; return b }, whys: content[:1]},
		"content that is noise":     {envelope: func(b []byte) []byte { b = bytes.Clone(b); clear(b[len(b)-64:]); return b }, whys: append(content, "CSR structure", "CSR signature")},
		"text for an envelope":      {envelope: func([]byte) []byte { return []byte("hello") }, whys: []string{"envelope encoding"}},
		"a CSR for an envelope":     {envelope: func([]byte) []byte { return ask(t, key, "x.demo.example", "") }, whys: []string{"envelope structure"}},
		"text for a CSR":            {message: csr(func([]byte) []byte { return []byte("hello") }), whys: []string{"content encoding"}},
		"half a CSR":                {message: csr(func(b []byte) []byte { return b[:len(b)/2] }), whys: []string{"content encoding"}},
		"a certificate for a CSR":   {message: func(m *client.Message) { m.CSR = m.Signer }, whys: []string{"CSR structure"}},
		"a CSR and an octet":        {message: csr(func(b []byte) []byte { return append(b, 0) }), whys: []string{"content encoding", "CSR structure"}},
		"a CSR's broken signature":  {message: csr(flipLast), whys: []string{"CSR signature"}},
		"a CSR signed by another":   {message: csr(func(b []byte) []byte { return resigned(t, b, keys[8]) }), whys: []string{"CSR signature"}},
		"a CSR that another signed": {message: func(m *client.Message) { m.CSR = ask(t, keys[8], "x.demo.example", "") }, whys: []string{"the CSR's key is not the signer's"}},
	}
}

// TestWhatIsWrongWithAnEnvelopeDoesNotShow: every answer to a message that proves
// nothing is the same, octet for octet, but for nonces, times and the request's
// id. The log has the reason, and the challenge is not touched.
//
// Covers: S-087, S-091, S-103
func TestWhatIsWrongWithAnEnvelopeDoesNotShow(t *testing.T) {
	d := at(t, "many")
	const cn = "envelope.demo.example"
	key, c := keys[0], challenge(t, "many", cn)
	var first string
	for what, tt := range badMessages(t, d, key) {
		t.Run(what, func(t *testing.T) {
			m := selfSigned(t, key, ask(t, key, cn, c.Challenge))
			if tt.message != nil {
				tt.message(&m)
			}
			r := must(d.Request(m))(t)
			if tt.envelope != nil {
				forge(t, m, r, tt.envelope)
			}
			if tt.octets != nil {
				r.DER = tt.octets(bytes.Clone(r.DER))
			}
			reply := must(d.Post(t.Context(), r.DER))(t)
			_, err := client.Open(reply, r.Expect)
			no := refused(t, err).is(t, badMessageCheck, notProven)
			no.rejected(t, tt.whys...)
			if got := looks(t, reply); first == "" {
				first = got
			} else if got != first {
				t.Errorf("it looks like\n%s\nand not like\n%s", got, first)
			}
		})
	}
	// What only the authority finds out looks like that too.
	m := client.Message{Type: scep.RenewalReq, Signer: certificateOfTheCA(t, d), SignerKey: keys[3], CSR: ask(t, key, cn, "")}
	r := must(d.Request(m))(t)
	reply := must(d.Post(t.Context(), r.DER))(t)
	if got := looks(t, reply); got != first {
		t.Errorf("from the authority it looks like\n%s\nand not like\n%s", got, first)
	}
	must(enroll(t, d, key, cn, c.Challenge))(t)
}

// certificateOfTheCA says so, and keys[3] signed it.
func certificateOfTheCA(t *testing.T, d *site.Device) []byte {
	t.Helper()
	return certificateFor(t, keys[3], d.CA.RASign)
}

// TestMessageTypes sends every type that there could be. A poll for what nobody
// asked for and a look-up with a CSR for a name find nothing.
//
// Covers: S-027, S-064
func TestMessageTypes(t *testing.T) {
	d := at(t, "many")
	m := selfSigned(t, keys[0], ask(t, keys[0], "types.demo.example", ""))
	from := logSize(t)
	known := map[int]string{
		scep.RenewalReq: badRequest, scep.PKCSReq: badRequest, scep.CertPoll: badCertID, scep.GetCert: badCertID, scep.GetCRL: badCertID,
	}
	for i := range 256 {
		m.Type = i
		_, err := send(t, d, m)
		no, ok := errors.AsType[*client.FailError](err)
		want, known := known[i]
		if !known {
			want = badRequest
		}
		if !ok || no.Name != want {
			t.Fatalf("type %d: %v", i, err)
		}
		if strings.HasPrefix(no.Text, "this type of message is not supported (request ") == known {
			t.Errorf("type %d: %v", i, err)
		}
	}
	seen := map[string]int{}
	for _, r := range records(t, from) {
		if r.Event == "message" && r.Outcome == "rejected" && r.Object.Why == "message type" {
			seen[r.Object.MessageType]++
		}
	}
	for i := range 256 {
		if _, known := known[i]; seen[fmt.Sprint(i)] == 0 != known {
			t.Errorf("type %d is in the log %d times", i, seen[fmt.Sprint(i)])
		}
	}
}

// TestTruncatedMessages cuts a message that would have been good. Nothing of it
// can be answered as a message; the log has each.
func TestTruncatedMessages(t *testing.T) {
	d := at(t, "many")
	const cn = "cut.demo.example"
	r := must(d.Request(selfSigned(t, keys[0], ask(t, keys[0], cn, challenge(t, "many", cn).Challenge))))(t)
	from, sent := logSize(t), 0
	for n := 0; n < len(r.DER); n++ {
		if n > 64 && n%29 != 0 && n < len(r.DER)-16 {
			continue
		}
		sent++
		_, err := d.Post(t.Context(), r.DER[:n])
		if e, ok := errors.AsType[*client.StatusError](err); !ok || e.Code != http.StatusBadRequest || e.Text != "bad request\n" {
			t.Errorf("%d of %d octets: %v", n, len(r.DER), err)
		}
	}
	all := records(t, from)
	for _, got := range all {
		if got.Event != "message" || got.Outcome != "rejected" || !slices.Contains([]string{"message encoding", "message structure"}, got.Object.Why) {
			t.Errorf("the log says %+v", got)
		}
	}
	if len(all) != sent {
		t.Errorf("%d messages, %d records", sent, len(all))
	}
	must(d.Do(t.Context(), r))(t) // whole, it is good still
}
