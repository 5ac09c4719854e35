// Package envelope encrypts a bundle to one auditor, as CMS EnvelopedData (RFC 5652,
// section 6) that `openssl cms -decrypt` opens: AES-256-CBC, its key by RSA-OAEP with
// SHA-256 (RFC 4055).
//
// # What a caller may rely on
//
// Only who has the private key of the certificate reads what was encrypted. The content
// is never in memory as a whole.
//
// # What it does not protect against
//
// The envelope says nothing of who made it, and whoever changes it is found out by the
// signature in the bundle alone: verify what was decrypted.
package envelope

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// MaxContent is the largest content, in octets: openssl reads it into memory, and no
// more.
const MaxContent = 1 << 30

// Errors of an envelope.
var (
	ErrRecipient = errors.New("envelope: the certificate is not about an RSA key of 2048 to 8192 bits")
	ErrTooLarge  = errors.New("envelope: more than 1 GiB cannot be opened by openssl: export shorter ranges")
)

var (
	oidEnveloped = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3}
	oidData      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidOAEP      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
	oidMGF1      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 8}
	oidSHA256    = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidAES256    = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}
)

// Fits tells whether something can be encrypted to the certificate: nil, or
// ErrRecipient.
func Fits(to *x509.Certificate) error {
	pub, ok := to.PublicKey.(*rsa.PublicKey)
	if !ok || pub.N.BitLen() < 2048 || pub.N.BitLen() > 8192 {
		return ErrRecipient
	}
	return nil
}

// Encrypt writes size octets of r to w, in an envelope for the holder of the
// certificate's key.
func Encrypt(w io.Writer, r io.Reader, size int64, to *x509.Certificate) error {
	if err := Fits(to); err != nil {
		return err
	}
	pub, ok := to.PublicKey.(*rsa.PublicKey)
	if !ok {
		return ErrRecipient
	}
	if size < 0 || size > MaxContent {
		return ErrTooLarge
	}
	key, iv := make([]byte, 32), make([]byte, aes.BlockSize)
	_, _ = rand.Read(key) // it never fails
	_, _ = rand.Read(iv)
	defer clear(key)
	sealed, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, pub, key, nil)
	if err != nil {
		return fmt.Errorf("envelope: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return fmt.Errorf("envelope: %w", err)
	}
	padded := size + aes.BlockSize - size%aes.BlockSize
	head, err := header(to, sealed, iv, int(padded))
	if err != nil {
		return err
	}
	if _, err := w.Write(head); err != nil {
		return err
	}
	return blocks(w, io.LimitReader(r, size), padded, cipher.NewCBCEncrypter(block, iv))
}

// blocks encrypts r, and pads it as RFC 5652, section 6.3, says.
func blocks(w io.Writer, r io.Reader, padded int64, mode cipher.BlockMode) error {
	buf := make([]byte, 64<<10)
	for left := padded; left > 0; {
		n, err := io.ReadFull(r, buf[:min(left, int64(len(buf)))])
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
			return err
		}
		part := buf[:min(left, int64(len(buf)))]
		if pad := len(part) - n; pad > 0 {
			if left > int64(len(part)) || pad > aes.BlockSize {
				return fmt.Errorf("envelope: %w", io.ErrUnexpectedEOF)
			}
			for i := n; i < len(part); i++ {
				part[i] = byte(pad)
			}
		}
		mode.CryptBlocks(part, part)
		if _, err := w.Write(part); err != nil {
			return err
		}
		left -= int64(len(part))
	}
	return nil
}

// header is everything before the encrypted octets, of which there are so many.
func header(to *x509.Certificate, sealed, iv []byte, padded int) ([]byte, error) {
	recipient, err := recipientInfo(to, sealed)
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1ObjectIdentifier(oidData)
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidAES256)
		b.AddASN1OctetString(iv)
	})
	info, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	content := slices.Concat(info, length(0x80, padded))
	content = slices.Concat(length(0x30, len(content)+padded), content)
	body := slices.Concat([]byte{2, 1, 0}, length(0x31, len(recipient)), recipient, content)
	body = slices.Concat(length(0x30, len(body)+padded), body)
	var o cryptobyte.Builder
	o.AddASN1ObjectIdentifier(oidEnveloped)
	oid, err := o.Bytes()
	if err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	body = slices.Concat(oid, length(0xa0, len(body)+padded), body)
	return slices.Concat(length(0x30, len(body)+padded), body), nil
}

// length is a tag with its length in DER.
func length(tag byte, n int) []byte {
	if n < 0x80 {
		return []byte{tag, byte(n)}
	}
	var digits []byte
	for ; n > 0; n >>= 8 {
		digits = append([]byte{byte(n)}, digits...)
	}
	return append([]byte{tag, 0x80 | byte(len(digits))}, digits...)
}

func recipientInfo(to *x509.Certificate, sealed []byte) ([]byte, error) {
	sequence := func(b *cryptobyte.Builder, in func(b *cryptobyte.Builder)) { b.AddASN1(cbasn1.SEQUENCE, in) }
	hash := func(b *cryptobyte.Builder) {
		sequence(b, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidSHA256); b.AddASN1NULL() })
	}
	var b cryptobyte.Builder
	sequence(&b, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		sequence(b, func(b *cryptobyte.Builder) {
			b.AddBytes(to.RawIssuer)
			b.AddASN1BigInt(to.SerialNumber)
		})
		sequence(b, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidOAEP)
			sequence(b, func(b *cryptobyte.Builder) {
				b.AddASN1(0xa0, hash)
				b.AddASN1(0xa1, func(b *cryptobyte.Builder) {
					sequence(b, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidMGF1); hash(b) })
				})
			})
		})
		b.AddASN1OctetString(sealed)
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	return der, nil
}
