package cms

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/des" //nolint:gosec // legacy clients encrypt with triple DES; the caller's policy decides
	"encoding/asn1"
	"fmt"
)

// A Cipher is a content encryption algorithm.
type Cipher int

// The ciphers; the zero value is none of them.
const (
	AES128CBC Cipher = iota + 1
	AES192CBC
	AES256CBC
	DES3CBC // for legacy clients, if the caller's policy allows it
	DESCBC  // known by name alone: neither read nor written
)

// cipherInfo is a row of the table of ciphers (RFC 3565, section 4.1; RFC 3370,
// section 5.1). A cipher with a key size of 0 is never used.
type cipherInfo struct {
	cipher    Cipher
	name      string
	key, size int // octets of key and block
	oid       asn1.ObjectIdentifier
}

func (c Cipher) info() cipherInfo {
	switch c {
	case AES128CBC:
		return cipherInfo{c, "AES-128-CBC", 16, aes.BlockSize, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 2}}
	case AES192CBC:
		return cipherInfo{c, "AES-192-CBC", 24, aes.BlockSize, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 22}}
	case AES256CBC:
		return cipherInfo{c, "AES-256-CBC", 32, aes.BlockSize, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}}
	case DES3CBC:
		return cipherInfo{c, "DES-EDE3-CBC", 24, des.BlockSize, asn1.ObjectIdentifier{1, 2, 840, 113549, 3, 7}}
	case DESCBC:
		return cipherInfo{c, "DES-CBC", 0, des.BlockSize, asn1.ObjectIdentifier{1, 3, 14, 3, 2, 7}}
	default:
		return cipherInfo{name: fmt.Sprintf("unknown (%d)", int(c))}
	}
}

// String returns the name that profiles and records use, such as AES-128-CBC.
func (c Cipher) String() string { return c.info().name }

// KeySize returns the length of the content key in octets; 0 for a cipher that
// is not supported.
func (c Cipher) KeySize() int { return c.info().key }

// OID returns the cipher's object identifier; nil for an unknown one.
func (c Cipher) OID() asn1.ObjectIdentifier { return c.info().oid }

// cipherOf returns the supported cipher of an object identifier.
func cipherOf(oid asn1.ObjectIdentifier) (cipherInfo, error) {
	for c := AES128CBC; c <= DESCBC; c++ {
		i := c.info()
		if !oid.Equal(i.oid) {
			continue
		}
		if i.key == 0 {
			return cipherInfo{}, fmt.Errorf("%w: %w", ErrAlgorithm, ErrDES)
		}
		return i, nil
	}
	return cipherInfo{}, fmt.Errorf("%w: content encryption %v", ErrAlgorithm, oid)
}

// block returns the block cipher for a key of the right size.
func (i cipherInfo) block(key []byte) (cipher.Block, error) {
	switch {
	case i.key == 0 || len(key) != i.key:
		return nil, fmt.Errorf("%w: %s with a key of %d octets", ErrAlgorithm, i.name, len(key))
	case i.cipher == DES3CBC:
		return des.NewTripleDESCipher(key) //nolint:gosec // see the import
	default:
		return aes.NewCipher(key)
	}
}
