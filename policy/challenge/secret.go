package challenge

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// ErrSecret is returned for text that is no challenge. It never quotes the text.
var ErrSecret = errors.New("challenge: not a challenge")

// ErrKey is returned for a key of the wrong length.
var ErrKey = errors.New("challenge: the key has to be 32 bytes")

const redacted = "[redacted]"

// crockford is the alphabet of the text form: no i, l, o, u, so that it survives
// being read aloud and typed.
const crockford = "0123456789abcdefghjkmnpqrstvwxyz"

// The lengths of the two text forms. Some clients take 32 characters at most.
const (
	secretBytes = 16
	base32Chars = 26
	hexChars    = 2 * secretBytes
)

// A Secret is a challenge in clear: 128 bits. It can not be printed, logged or
// marshaled by accident; [Secret.Text] is the one way to see it. Two pointers stand
// before the bytes because fmt asks no method of an unexported field, and for a
// verb that does not fit follows one pointer.
type Secret struct{ p **[secretBytes]byte }

func secretOf(b *[secretBytes]byte) Secret { return Secret{&b} }

// New returns a random secret.
func New() Secret {
	var b [secretBytes]byte
	_, _ = rand.Read(b[:]) // never fails: it ends the process instead
	return secretOf(&b)
}

// ParseSecret reads a secret: 26 characters of Crockford's base32 in either case,
// with o read as 0 and i and l as 1, or 32 hex digits. The error is [ErrSecret].
func ParseSecret(text []byte) (Secret, error) {
	var b [secretBytes]byte
	switch len(text) {
	case hexChars:
		if _, err := hex.Decode(b[:], text); err != nil {
			return Secret{}, ErrSecret
		}
		return secretOf(&b), nil
	case base32Chars:
		return parseBase32(text)
	default:
		return Secret{}, ErrSecret
	}
}

// SecretOf reads what a device sent as a challenge. What [ParseSecret] refuses
// is the zero secret, which every [Service] answers as unknown.
func SecretOf(text []byte) Secret {
	s, err := ParseSecret(text)
	if err != nil {
		return Secret{}
	}
	return s
}

// parseBase32 reads 130 bits, of which the first two are zero.
func parseBase32(text []byte) (Secret, error) {
	var b [secretBytes]byte
	var acc uint32
	bits, n := -2, 0 // the two bits that are too many come first
	for i, c := range text {
		v, ok := digit(c)
		if !ok || i == 0 && v > 7 {
			return Secret{}, ErrSecret
		}
		acc, bits = acc<<5|uint32(v), bits+5
		if bits >= 8 {
			bits -= 8
			b[n] = byte(acc >> bits)
			n++
		}
	}
	return secretOf(&b), nil
}

// digit returns the value of one character of Crockford's base32.
func digit(c byte) (byte, bool) {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	switch c {
	case 'o':
		c = '0'
	case 'i', 'l':
		c = '1'
	}
	for i := range len(crockford) {
		if crockford[i] == c {
			return byte(i), true
		}
	}
	return 0, false
}

// Text returns the secret in clear, 26 characters, to be shown once to the one
// who asked for it.
func (s Secret) Text() string {
	if s.p == nil {
		return ""
	}
	out := make([]byte, 0, base32Chars)
	acc, bits := uint32(0), 2
	for _, b := range *s.p {
		acc, bits = acc<<8|uint32(b), bits+8
		for bits >= 5 {
			bits -= 5
			out = append(out, crockford[acc>>bits&31])
		}
	}
	return string(out)
}

// Bytes returns the 16 bytes of the secret, nil for the zero value.
func (s Secret) Bytes() []byte {
	if s.p == nil {
		return nil
	}
	out := **s.p
	return out[:]
}

// Wipe overwrites the secret, in all its copies.
func (s Secret) Wipe() {
	if s.p != nil {
		clear((*s.p)[:])
	}
}

func (s Secret) zero() bool { return s.p == nil }

// String implements [fmt.Stringer] without the secret.
func (Secret) String() string { return redacted }

// GoString implements [fmt.GoStringer] without the secret.
func (Secret) GoString() string { return redacted }

// Format implements [fmt.Formatter] without the secret, for every verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalText implements [encoding.TextMarshaler] without the secret.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON implements [encoding/json.Marshaler] without the secret.
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// A Tagger turns secrets into the tags that are kept in their place. It can not
// be printed either. It is safe for concurrent use.
type Tagger struct{ key **[32]byte }

// NewTagger returns a tagger with a key of 32 bytes, which it copies.
func NewTagger(key []byte) (*Tagger, error) {
	if len(key) != 32 {
		return nil, ErrKey
	}
	k := (*[32]byte)(append([]byte(nil), key...))
	return &Tagger{&k}, nil
}

// Tag returns the HMAC-SHA-256 of the secret.
func (t *Tagger) Tag(s Secret) (tag [32]byte) {
	m := hmac.New(sha256.New, (*t.key)[:])
	_, _ = m.Write([]byte("postern challenge v1\x00"))
	_, _ = m.Write(s.Bytes())
	m.Sum(tag[:0])
	return tag
}

// String implements [fmt.Stringer] without the key.
func (*Tagger) String() string { return redacted }

// GoString implements [fmt.GoStringer] without the key.
func (*Tagger) GoString() string { return redacted }

// Format implements [fmt.Formatter] without the key, for every verb.
func (*Tagger) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalText implements [encoding.TextMarshaler] without the key.
func (*Tagger) MarshalText() ([]byte, error) { return []byte(redacted), nil }
