package pins

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/postern-pki/postern/hsm"
)

// The products are those of FIPS 197, section 4.2, and the field has inverses.
func TestTheFieldIsThatOfAES(t *testing.T) {
	for _, v := range [][3]byte{{0x57, 0x83, 0xc1}, {0x57, 0x13, 0xfe}, {0x53, 0xca, 0x01}, {0x02, 0x80, 0x1b}} {
		if got := mul(v[0], v[1]); got != v[2] || mul(v[1], v[0]) != v[2] {
			t.Errorf("%x * %x = %x, want %x", v[0], v[1], got, v[2])
		}
	}
	for a := 1; a < 256; a++ {
		if mul(byte(a), inverse(byte(a))) != 1 {
			t.Fatalf("%x has no inverse", a)
		}
	}
}

// f(x) = 42 + 7x over the field gives these points, worked out by hand: at 1 42^7,
// at 2 42^14, at 3 42^9.
func TestCombineInterpolates(t *testing.T) {
	points := map[byte]byte{1: 42 ^ 7, 2: 42 ^ 14, 3: 42 ^ 9}
	for _, pair := range [][2]byte{{1, 2}, {1, 3}, {3, 2}} {
		if got := combine(pair[:], [][]byte{{points[pair[0]]}, {points[pair[1]]}}); got[0] != 42 {
			t.Errorf("%v: %d", pair, got[0])
		}
	}
}

func typed(t *testing.T, s Share) hsm.PIN {
	t.Helper()
	var out hsm.PIN
	if err := s.Reveal(func(text []byte) error { out = hsm.NewPIN(text); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAnyThreeOfFiveGiveThePIN(t *testing.T) {
	pin, shares, err := Split(3, 5)
	if err != nil || len(shares) != 5 {
		t.Fatal(len(shares), err)
	}
	for a := range 5 {
		for b := range 5 {
			for c := range 5 {
				got, err := Combine([]hsm.PIN{typed(t, shares[a]), typed(t, shares[b]), typed(t, shares[c])})
				if distinct := a != b && b != c && a != c; distinct != (err == nil) || distinct && !got.Equal(pin.PIN) || !distinct && !errors.Is(err, ErrShare) {
					t.Errorf("%d %d %d: %v", a, b, c, err)
				}
			}
		}
	}
	if _, err := Combine([]hsm.PIN{typed(t, shares[0]), typed(t, shares[1])}); !errors.Is(err, ErrShare) {
		t.Errorf("two of three: %v", err)
	}
	if _, err := Combine(nil); !errors.Is(err, ErrShare) {
		t.Errorf("none: %v", err)
	}
	for _, bad := range [][2]int{{1, 5}, {6, 5}, {2, 17}, {0, 0}} {
		if _, _, err := Split(bad[0], bad[1]); err == nil {
			t.Errorf("%v was done", bad)
		}
	}
}

func TestAShareIsTypedAsItIsReadAndNotPrinted(t *testing.T) {
	_, shares, err := Split(2, 2)
	if err != nil {
		t.Fatal(err)
	}
	_ = shares[0].Reveal(func(text []byte) error {
		loud := bytes.ToUpper(bytes.ReplaceAll(text, []byte("-"), []byte(" ")))
		if !shares[0].Equal(hsm.NewPIN(loud)) || shares[1].Equal(hsm.NewPIN(text)) {
			t.Error("case or spaces count, or another share passes")
		}
		for i := range text {
			bad := bytes.Clone(text)
			if bad[i] == '-' {
				continue
			}
			if bad[i]++; bad[i] > 'z' || bad[i] == '8' {
				bad[i] = 'a'
			}
			if _, err := Combine([]hsm.PIN{hsm.NewPIN(bad), typed(t, shares[1])}); !errors.Is(err, ErrShare) {
				t.Errorf("letter %d wrong: %v", i, err)
			}
		}
		if s := fmt.Sprintf("%v %+v %#v", shares[0], shares[0], shares[0]); strings.Contains(s, string(text[:9])) {
			t.Errorf("printed: %s", s)
		}
		return nil
	})
}

// Each value of a share is as likely as any other, whatever the secret: with fewer
// than the threshold nothing is known.
func TestAShareAloneSaysNothing(t *testing.T) {
	for _, secret := range []byte{0, 255} {
		var seen [256]int
		for range 256 * 64 {
			y, err := split([]byte{secret}, 2, 2)
			if err != nil {
				t.Fatal(err)
			}
			seen[y[0][0]]++
		}
		for v, n := range seen {
			if n < 16 || n > 160 {
				t.Errorf("secret %d: value %d came %d times, 64 are expected", secret, v, n)
			}
		}
	}
}

func FuzzCombine(f *testing.F) {
	f.Add("aiaq-aaaa-aaaa", "aiba-aaaa")
	f.Add("", "-")
	f.Fuzz(func(t *testing.T, a, b string) {
		if pin, err := Combine([]hsm.PIN{hsm.NewPIN([]byte(a)), hsm.NewPIN([]byte(b))}); err == nil && pin.Empty() {
			t.Error("an empty PIN")
		}
	})
}
