package client

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

const maxChallenge = 255 // RFC 2985, appendix B.4: pkcs-9-ub-challengePassword

var (
	oidChallenge        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}
	oidExtensionRequest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}
	oidSubjectAltName   = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidSHA256WithRSA    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}
)

// A CSR says what a certificate request asks for.
type CSR struct {
	Subject    pkix.Name
	RawSubject []byte // DER of a Name; if set, Subject is not looked at
	DNSNames   []string
	Challenge  []byte // UTF-8, at most 255 octets; nil for none
}

func (r CSR) rawSubject() ([]byte, error) {
	if len(r.RawSubject) > 0 {
		return r.RawSubject, nil
	}
	der, err := asn1.Marshal(r.Subject.ToRDNSequence())
	if err != nil {
		return nil, fmt.Errorf("%w: subject: %w", ErrRequest, err)
	}
	return der, nil
}

// NewCSR makes a PKCS#10 request (RFC 2986), signed with SHA-256: by hand,
// because crypto/x509 has no challengePassword.
func NewCSR(key *rsa.PrivateKey, r CSR) ([]byte, error) {
	return newCSR(rand.Reader, key, r)
}

func newCSR(random io.Reader, key *rsa.PrivateKey, r CSR) ([]byte, error) {
	spki, err := publicKey(key)
	if err != nil {
		return nil, err
	}
	subject, err := r.rawSubject()
	if err != nil {
		return nil, err
	}
	attributes, err := r.attributes(len(subject) <= 2)
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		b.AddBytes(subject)
		b.AddBytes(spki)
		b.AddASN1(cbasn1.Tag(0).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(attributes) })
	})
	info, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	digest := sha256.Sum256(info)
	signature, err := rsa.SignPKCS1v15(random, key, crypto.SHA256, digest[:])
	if err != nil {
		return nil, fmt.Errorf("scep client: signing the CSR: %w", err)
	}
	b = cryptobyte.Builder{}
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(info)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidSHA256WithRSA)
			b.AddASN1NULL()
		})
		b.AddASN1BitString(signature)
	})
	return b.Bytes()
}

// attributes returns the members of the SET OF Attribute, in the order of their
// encodings, which is that of DER.
func (r CSR) attributes(critical bool) ([]byte, error) {
	var all [][]byte
	add := func(oid asn1.ObjectIdentifier, value func(*cryptobyte.Builder)) error {
		var b cryptobyte.Builder
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oid)
			b.AddASN1(cbasn1.SET, value)
		})
		der, err := b.Bytes()
		if err != nil {
			return fmt.Errorf("%w: attribute %v: %w", ErrRequest, oid, err)
		}
		all = append(all, der)
		return nil
	}
	if r.Challenge != nil {
		if len(r.Challenge) == 0 || len(r.Challenge) > maxChallenge || !utf8.Valid(r.Challenge) {
			return nil, fmt.Errorf("%w: a challenge has 1 to %d octets of UTF-8", ErrRequest, maxChallenge)
		}
		tag := cbasn1.UTF8String
		if printable(string(r.Challenge)) {
			tag = cbasn1.PrintableString
		}
		if err := add(oidChallenge, func(b *cryptobyte.Builder) {
			b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes(r.Challenge) })
		}); err != nil {
			return nil, err
		}
	}
	if len(r.DNSNames) > 0 {
		extension, err := subjectAltName(r.DNSNames, critical)
		if err != nil {
			return nil, err
		}
		if err := add(oidExtensionRequest, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(extension) })
		}); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(all, bytes.Compare)
	return slices.Concat(all...), nil
}

// subjectAltName is critical where it is the only name (RFC 5280, section
// 4.2.1.6).
func subjectAltName(names []string, critical bool) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidSubjectAltName)
		if critical {
			b.AddASN1Boolean(true)
		}
		b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				for _, n := range names {
					b.AddASN1(cbasn1.Tag(2).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte(n)) })
				}
			})
		})
	})
	for _, n := range names {
		if n == "" || strings.ContainsFunc(n, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return nil, fmt.Errorf("%w: %q is no DNS name in ASCII", ErrRequest, n)
		}
	}
	return b.Bytes()
}

// publicKey returns the SubjectPublicKeyInfo.
func publicKey(key *rsa.PrivateKey) ([]byte, error) {
	if key == nil {
		return nil, fmt.Errorf("%w: there is no key", ErrRequest)
	}
	return x509.MarshalPKIXPublicKey(&key.PublicKey)
}

// printable reports whether s fits a PrintableString (X.680, section 41.4).
func printable(s string) bool {
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune(" '()+,-./:=?", r):
		default:
			return false
		}
	}
	return true
}
