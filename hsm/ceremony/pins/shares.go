package pins

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"

	"github.com/postern-pki/postern/hsm"
)

// The most shares that a PIN is split into.
const maxShares = 16

// ErrShare says that shares do not give a PIN: one was typed wrong, given twice, or
// is of another PIN.
var ErrShare = errors.New("not usable as a share")

// A Share is one part of a PIN: with fewer than the threshold of them nothing is
// known of it (Shamir, "How to share a secret", 1979, over GF(256)). It cannot be
// printed by accident; [Share.Reveal] is for the one person who keeps it.
type Share struct{ text hsm.PIN }

// Split makes n shares of a generated PIN, any m of which give it back. It returns the
// PIN too.
func Split(m, n int) (Given, []Share, error) {
	if m < 2 || n < m || n > maxShares {
		return Given{}, nil, fmt.Errorf("%d of %d is no way to share a PIN: 2 or more, of at most %d", m, n, maxShares)
	}
	pin, text, err := Generate(0)
	if err != nil {
		return Given{}, nil, err
	}
	defer clear(text)
	shares, err := split(text, m, n)
	if err != nil {
		return Given{}, nil, err
	}
	var out []Share
	for i, y := range shares {
		out = append(out, encode(byte(m), byte(i+1), y))
		clear(y)
	}
	pin.Source = "shares"
	return pin, out, nil
}

// split evaluates a random polynomial of degree m-1 for each byte of the secret,
// which is its value at 0, at 1 to n.
func split(secret []byte, m, n int) ([][]byte, error) {
	out := make([][]byte, n)
	for i := range out {
		out[i] = make([]byte, len(secret))
	}
	poly := make([]byte, m)
	defer clear(poly)
	for j, s := range secret {
		if _, err := rand.Read(poly); err != nil {
			return nil, err
		}
		poly[0] = s
		for i := range out {
			var y byte
			for k := m - 1; k >= 0; k-- { // Horner
				y = mul(y, byte(i+1)) ^ poly[k]
			}
			out[i][j] = y
		}
	}
	return out, nil
}

// combine is Lagrange's interpolation at 0.
func combine(x []byte, y [][]byte) []byte {
	out := make([]byte, len(y[0]))
	for i := range x {
		c := byte(1)
		for j := range x {
			if j != i {
				c = mul(c, mul(x[j], inverse(x[j]^x[i])))
			}
		}
		for k := range out {
			out[k] ^= mul(c, y[i][k])
		}
	}
	return out
}

// mul multiplies in GF(256) with the polynomial of AES (FIPS 197, section 4.2), in
// the same time for all values.
func mul(a, b byte) (p byte) {
	for range 8 {
		p ^= a & -(b & 1)
		a = a<<1 ^ 0x1b&-(a>>7)
		b >>= 1
	}
	return p
}

// inverse is a to the 254th: a to the 255th is 1 for all but 0.
func inverse(a byte) byte {
	p := byte(1)
	for range 254 {
		p = mul(p, a)
	}
	return p
}

func coding() *base32.Encoding {
	return base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
}

const checkBytes = 3 // of a share's own digest: a typing error passes once in 16 million times

// encode writes threshold, number, value and a check in groups of four letters.
func encode(m, x byte, y []byte) Share {
	raw := append([]byte{m, x}, y...)
	sum := sha256.Sum256(raw)
	raw = append(raw, sum[:checkBytes]...)
	defer clear(raw)
	text := make([]byte, coding().EncodedLen(len(raw)))
	defer clear(text)
	coding().Encode(text, raw)
	var grouped []byte
	for i, c := range text {
		if i > 0 && i%4 == 0 {
			grouped = append(grouped, '-')
		}
		grouped = append(grouped, c)
	}
	defer clear(grouped)
	return Share{hsm.NewPIN(grouped)}
}

// Reveal gives a share's text to f, for the one who keeps it, and wipes the copy.
func (s Share) Reveal(f func(text []byte) error) error {
	return s.text.Reveal(f)
}

// Equal reports whether what was typed is this share, whatever its case and spaces.
func (s Share) Equal(typed hsm.PIN) bool {
	return normal(s.text).Equal(normal(typed))
}

// normal is a share's text without what people add or leave out.
func normal(p hsm.PIN) hsm.PIN {
	var out hsm.PIN
	_ = p.Reveal(func(text []byte) error {
		out = hsm.NewPIN(bytes.ToLower(bytes.Map(func(r rune) rune {
			if strings.ContainsRune(" -", r) {
				return -1
			}
			return r
		}, text)))
		return nil
	})
	return out
}

// Combine gives the PIN back from typed shares: as many as its threshold.
func Combine(typed []hsm.PIN) (Given, error) {
	var x []byte
	var y [][]byte
	for i, t := range typed {
		raw, err := decode(t)
		if err != nil {
			return Given{}, fmt.Errorf("share %d: %w", i+1, err)
		}
		if int(raw[0]) != len(typed) || bytes.IndexByte(x, raw[1]) >= 0 || len(y) > 0 && len(y[0]) != len(raw)-2 {
			return Given{}, fmt.Errorf("share %d: %w: %d are needed, each another one of the same PIN", i+1, ErrShare, raw[0])
		}
		x, y = append(x, raw[1]), append(y, raw[2:])
	}
	if len(y) == 0 {
		return Given{}, ErrShare
	}
	secret := combine(x, y)
	defer clear(secret)
	for _, s := range y {
		clear(s)
	}
	return Given{hsm.NewPIN(secret), "shares"}, nil
}

func decode(typed hsm.PIN) (raw []byte, err error) {
	err = normal(typed).Reveal(func(text []byte) error {
		buf := make([]byte, coding().DecodedLen(len(text)))
		n, err := coding().Decode(buf, text)
		if err != nil || n < 2+1+checkBytes || buf[0] < 2 || buf[0] > maxShares || buf[1] == 0 {
			return fmt.Errorf("%w: it was typed wrong", ErrShare)
		}
		again := make([]byte, coding().EncodedLen(n))
		defer clear(again)
		if coding().Encode(again, buf[:n]); !bytes.Equal(again, text) { // the last letter has bits that say nothing
			return fmt.Errorf("%w: it was typed wrong", ErrShare)
		}
		body := buf[:n-checkBytes]
		sum := sha256.Sum256(body)
		if !bytes.Equal(sum[:checkBytes], buf[n-checkBytes:n]) {
			return fmt.Errorf("%w: it was typed wrong", ErrShare)
		}
		raw = body
		return nil
	})
	return raw, err
}
