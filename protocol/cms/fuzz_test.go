package cms_test

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"slices"
	"testing"

	"github.com/postern-pki/postern/protocol/cms"
)

// seed adds the messages of all vectors, so that each target starts from
// messages of the others too, and what other programs sent as whole requests.
func seed(f *testing.F) {
	for _, v := range slices.Concat(readVectors(f), vectorsOf(f, "../scep/testdata/vectors")) {
		if m := v.files["message.hex"]; len(m) <= 4096 {
			f.Add(m)
		}
	}
}

// FuzzDER: what was made distinguished stays as it is, and the standard library
// can walk it.
func FuzzDER(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		der, err := cms.DER(in, cms.DefaultLimits())
		if err != nil {
			return
		}
		again, err := cms.DER(der, cms.DefaultLimits())
		if err != nil || !bytes.Equal(again, der) {
			t.Fatalf("%x becomes %x, and that %x (%v)", in, der, again, err)
		}
		walk(t, der)
	})
}

// walk reads all elements with encoding/asn1. It may recurse: DER bounded the
// depth.
func walk(t *testing.T, der []byte) {
	for len(der) > 0 {
		var raw asn1.RawValue
		rest, err := asn1.Unmarshal(der, &raw)
		if err != nil {
			t.Fatalf("%x: %v", der, err)
		}
		if raw.IsCompound {
			walk(t, raw.Bytes)
		}
		der = rest
	}
}

// FuzzParseSigned: what parses has one signer, and the two ways to verify agree.
func FuzzParseSigned(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		s, err := cms.ParseSigned(in)
		if err != nil {
			return
		}
		if s.Signer == nil || s.Digest == 0 || len(s.SignedAttrs) == 0 || s.SignedAttrs[0] != 0x31 {
			t.Fatalf("parsed without its parts: %+v", s)
		}
		signer, err := cms.ParseCertificate(s.Signer.Raw)
		if err != nil {
			t.Fatal(err)
		}
		one, two := s.Verify(), cms.Verify(signer, s.Digest, s.SignedAttrs, s.Signature, s.Content)
		if !errors.Is(one, two) {
			t.Errorf("verify says %v, the second look %v", one, two)
		}
		if attrs, err := cms.ParseAttributes(s.SignedAttrs); err != nil || len(attrs) != len(s.Attributes) {
			t.Errorf("attributes: %d of %d, %v", len(attrs), len(s.Attributes), err)
		}
	})
}

// FuzzParseEnvelope: what parses can be decrypted with any key of the right
// size, and fails in one way alone.
func FuzzParseEnvelope(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		e, err := cms.ParseEnvelope(in)
		if err != nil {
			return
		}
		content, err := e.Open(make([]byte, e.Cipher.KeySize()))
		if err != nil && (!errors.Is(err, cms.ErrOpen) || content != nil) || err == nil && len(content) >= len(e.Ciphertext) {
			t.Errorf("%d octets of %d, %v", len(content), len(e.Ciphertext), err)
		}
	})
}

// FuzzParseCertificate: whatever crypto/x509 makes of it, both read the same. (It
// looks at extensions only where the version allows them; some clients' own
// certificates say version 1 and have them.)
func FuzzParseCertificate(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := cms.ParseCertificate(in)
		if err != nil {
			return
		}
		if !bytes.Equal(c.Raw, in) {
			t.Fatal("not all of it was read")
		}
		if x, err := x509.ParseCertificate(in); err == nil && (!bytes.Equal(c.RawIssuer, x.RawIssuer) || !bytes.Equal(c.RawSubject, x.RawSubject) ||
			!bytes.Equal(c.RawSPKI, x.RawSubjectPublicKeyInfo) || x.Version == 3 && !bytes.Equal(c.SubjectKeyID, x.SubjectKeyId)) {
			t.Errorf("%x: crypto/x509 reads it in another way", in)
		}
	})
}
