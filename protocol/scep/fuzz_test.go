package scep_test

import (
	"bytes"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
)

// FuzzMessage has attributes of any values.
func FuzzMessage(f *testing.F) {
	f.Add(transaction.Value, messageType("19").Value, nonce.Value)
	f.Add(der(12, []byte("é")), der(12, []byte("17")), der(4, []byte{1}))
	f.Add([]byte{}, []byte{0x13}, []byte{4, 0x80})
	for _, g := range goldens(f) {
		var values [3][]byte
		for _, a := range must(cms.ParseSigned(must(cms.DER(g.message, cms.DefaultLimits()))(f)))(f).Attributes {
			if i := slices.IndexFunc([]asn1.ObjectIdentifier{scep.OIDTransactionID, scep.OIDMessageType, scep.OIDSenderNonce}, a.Type.Equal); i >= 0 {
				values[i] = a.Value
			}
		}
		f.Add(values[0], values[1], values[2])
	}
	f.Fuzz(func(t *testing.T, id, typ, n []byte) {
		m, err := scep.ParseMessage([]cms.Attribute{
			{Type: scep.OIDTransactionID, Value: id}, {Type: scep.OIDMessageType, Value: typ}, {Type: scep.OIDSenderNonce, Value: n},
		})
		switch {
		case errors.Is(err, scep.ErrAttributes):
			return
		case err != nil && !errors.Is(err, scep.ErrMessageType):
			t.Fatalf("error %v", err)
		}
		if !bytes.Equal(m.RawTransactionID, id) || m.TransactionID == "" || len(m.TransactionID) > 512 ||
			len(m.SenderNonce) < 1 || len(m.SenderNonce) > 64 || m.Type < 0 || (err != nil && m.Type != 0) {
			t.Errorf("%+v, %v", m, err)
		}
	})
}

// FuzzQuery has what stands behind message= in a GET, and messages that are
// encoded in each way.
//
// Covers: S-003
func FuzzQuery(f *testing.F) {
	for _, s := range []string{"MIAG", "A%2BA%3D", "+/==", "%0A%0d", "%", "%zz", "-_", "A=A", "\xff", "MIAG%252B%250A", "%2525"} {
		f.Add(s, []byte(s))
	}
	for _, g := range goldens(f) {
		if _, raw, ok := strings.Cut(g.query, "message="); ok {
			f.Add(raw, g.message)
		}
	}
	f.Fuzz(func(t *testing.T, raw string, message []byte) {
		if out, _, ok := scep.DecodeMessage(raw); ok && (len(out) == 0 || len(out) > len(raw)) {
			t.Errorf("%d octets of %d", len(out), len(raw))
		}
		if len(message) == 0 {
			return
		}
		std := base64.StdEncoding.EncodeToString(message)
		for _, s := range []string{std, url.QueryEscape(std), url.QueryEscape(url.QueryEscape(std)), url.QueryEscape(std[:len(std)/2] + "\n" + std[len(std)/2:] + "\n"), base64.RawURLEncoding.EncodeToString(message)} {
			if out, _, ok := scep.DecodeMessage(s); !ok || !bytes.Equal(out, message) {
				t.Errorf("%q: %x, want %x", s, out, message)
			}
		}
	})
}

// FuzzPKIOperation posts anything, or puts anything into the layers of a message
// that is whole otherwise: the keys are another worker's in each worker, so that
// no message of the corpus proves anything. The answer is one of few, and nobody
// is asked for a certificate that the message does not prove.
func FuzzPKIOperation(f *testing.F) {
	w := newWorld(f)
	h := w.handler()
	replace := func(data []byte) func([]byte) []byte {
		return func([]byte) []byte { return data }
	}
	whole := w.message(f, nil)
	f.Add(uint8(0), uint16(0), []byte{0x30, 0x80, 0, 0})
	f.Add(uint8(0), uint16(0), whole)
	f.Add(uint8(1), uint16(0), []byte{0x30, 0x80, 0, 0})
	f.Add(uint8(2), uint16(0), w.csr(f, w.device.key))
	f.Add(uint8(3), uint16(0), []byte("20"))
	f.Add(uint8(4), uint16(100), []byte{1})
	f.Add(uint8(5), uint16(100), []byte{1})
	f.Add(uint8(6), uint16(100), []byte{1})
	f.Fuzz(func(t *testing.T, layer uint8, at uint16, data []byte) {
		if len(data) > 40<<10 {
			return
		}
		overlay := func(b []byte) []byte {
			b = bytes.Clone(b)
			copy(b[int(at)%len(b):], data)
			return b
		}
		message := data
		switch layer % 7 {
		case 1:
			message = w.message(t, func(r *request) { r.content = replace(data) })
		case 2:
			message = w.message(t, func(r *request) { r.csr = replace(data) })
		case 3:
			message = w.message(t, func(r *request) { r.attrs[1].Value = der(int(at)%31, data) })
		case 4:
			message = overlay(whole)
		case 5:
			message = w.message(t, func(r *request) { r.content = overlay })
		case 6:
			message = w.message(t, func(r *request) { r.csr = overlay })
		}
		w.rejected, w.submitted, w.slept = nil, nil, nil
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/scep/wifi", bytes.NewReader(message)))
		switch rec.Code {
		case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
			if len(w.rejected) != 1 {
				t.Error("not recorded")
			}
		case http.StatusOK:
			if len(w.rejected)+len(w.submitted) != 1 {
				t.Error("neither recorded nor submitted, or both")
			}
			if len(w.rejected) == 1 && w.rejected[0].Kind == protocol.BadProof && len(w.slept) != 1 {
				t.Error("not on the grid")
			}
		default:
			t.Errorf("status %d", rec.Code)
		}
		for _, r := range w.submitted {
			signer := must(cms.ParseCertificate(r.Proof.SignerCert))(t)
			if err := cms.Verify(signer, r.Proof.Digest, r.Proof.SignedAttrs, r.Proof.Signature, r.Proof.Envelope); err != nil {
				t.Error(err)
			}
		}
	})
}
