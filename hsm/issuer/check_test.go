package issuer_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"testing"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/issuer"
)

func TestKeyHolderSignsWhatTheIntentHasAndNothingElse(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	i, _, ca := newIssuer(t, key)
	other := caOf(t, ecKey(t, elliptic.P384()), nil)
	limits := issuer.Limits{
		MaxValidity: 48 * time.Hour, NotAfter: ca.NotAfter, Issuer: ca.RawSubject, IssuerSPKI: ca.RawSubjectPublicKeyInfo,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 2}},
	}
	for name, tt := range map[string]struct {
		change func(tbs []byte, in *audit.Intent, l *issuer.Limits) []byte
		want   string // "ok", "mismatch" or the name of a lint rule
	}{
		"the same bytes":      {func(b []byte, _ *audit.Intent, _ *issuer.Limits) []byte { return b }, "ok"},
		"without limits":      {func(b []byte, _ *audit.Intent, l *issuer.Limits) []byte { *l = issuer.Limits{}; return b }, "ok"},
		"one byte differs":    {func(b []byte, _ *audit.Intent, _ *issuer.Limits) []byte { b[len(b)-1] ^= 1; return b }, "mismatch"},
		"cut short":           {func(b []byte, _ *audit.Intent, _ *issuer.Limits) []byte { return b[:len(b)-1] }, "mismatch"},
		"nothing for nothing": {func(_ []byte, in *audit.Intent, _ *issuer.Limits) []byte { in.TBS = nil; return nil }, "mismatch"},
		"not a certificate": {func(_ []byte, in *audit.Intent, _ *issuer.Limits) []byte {
			in.TBS = []byte("hello")
			return []byte("hello")
		}, "structure"},
		"another serial": {func(b []byte, in *audit.Intent, _ *issuer.Limits) []byte { in.Serial = "01" + in.Serial[2:]; return b }, "mismatch"},
		"another issuer's key": {func(b []byte, in *audit.Intent, _ *issuer.Limits) []byte {
			in.IssuerKey = issuer.KeyID(other.RawSubjectPublicKeyInfo)
			return b
		}, "mismatch"},
		"another issuer's name": {func(b []byte, _ *audit.Intent, l *issuer.Limits) []byte { l.Issuer = []byte{0x30, 0}; return b }, "issuer"},
		"longer than the limit": {func(b []byte, _ *audit.Intent, l *issuer.Limits) []byte { l.MaxValidity = time.Hour; return b }, "validity-length"},
		"outlives the CA":       {func(b []byte, _ *audit.Intent, l *issuer.Limits) []byte { l.NotAfter = time.Now(); return b }, "validity-issuer"},
		"a usage beyond the limit": {func(b []byte, _ *audit.Intent, l *issuer.Limits) []byte {
			l.KeyUsage = x509.KeyUsageKeyEncipherment
			return b
		}, "key-usage"},
		"an extended usage beyond it": {func(b []byte, _ *audit.Intent, l *issuer.Limits) []byte {
			l.ExtKeyUsage = []asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 1}}
			return b
		}, "extended-key-usage"},
		"a CA": {func(b []byte, in *audit.Intent, _ *issuer.Limits) []byte {
			// basicConstraints {} becomes {cA TRUE}: three bytes more, in it and in all that holds it.
			was := []byte{0x55, 0x1d, 0x13, 1, 1, 0xff, 4, 2, 0x30, 0}
			b = bytes.Replace(b, was, []byte{0x55, 0x1d, 0x13, 1, 1, 0xff, 4, 5, 0x30, 3, 1, 1, 0xff}, 1)
			at := bytes.Index(b, []byte{0x55, 0x1d, 0x13})
			b[at-3] += 3 // the extension
			lengthen(b, 3)
			in.TBS = bytes.Clone(b)
			return b
		}, "basic-constraints"},
	} {
		t.Run(name, func(t *testing.T) {
			ticket, err := i.Prepare(template(), ecKey(t, elliptic.P256()).Public(), meta())
			if err != nil {
				t.Fatal(err)
			}
			in, l := ticket.Intent(), limits
			tbs := tt.change(bytes.Clone(in.TBS), &in, &l)
			err = l.Check(tbs, in)
			got := "ok"
			if le, ok := errors.AsType[*issuer.LintError](err); ok && len(le.Findings) == 1 {
				got = le.Findings[0].Rule
			} else if errors.Is(err, issuer.ErrMismatch) {
				got = "mismatch"
			} else if err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("Check: %v, want %s", err, tt.want)
			}
		})
	}
}

// lengthen adds n to the lengths of the outer SEQUENCE, of [3] and of the
// SEQUENCE in it, which all have two bytes of length (or one) in this certificate.
func lengthen(b []byte, n int) {
	grow := func(at int) { // at: the first byte of a length
		switch b[at] {
		case 0x81:
			b[at+1] += byte(n)
		case 0x82:
			l := int(b[at+1])<<8 + int(b[at+2]) + n
			b[at+1], b[at+2] = byte(l>>8), byte(l)
		default:
			b[at] += byte(n)
		}
	}
	grow(1)
	at := bytes.LastIndex(b, []byte{0xa3, 0x81})
	grow(at + 1)
	grow(at + 4)
}

func TestCheckAloneComparesBytes(t *testing.T) {
	i, _, _ := newIssuer(t, ecKey(t, elliptic.P256()))
	ticket, err := i.Prepare(template(), ecKey(t, elliptic.P256()).Public(), meta())
	if err != nil {
		t.Fatal(err)
	}
	in := ticket.Intent()
	if err := issuer.Check(bytes.Clone(in.TBS), in); err != nil {
		t.Error(err)
	}
	if err := issuer.Check(append(bytes.Clone(in.TBS), 0), in); !errors.Is(err, issuer.ErrMismatch) {
		t.Errorf("a byte more: %v", err)
	}
}
