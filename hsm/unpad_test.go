package hsm_test

import (
	"bytes"
	"testing"

	"github.com/postern-pki/postern/hsm"
)

// FuzzUnpad compares the constant-time unpadding with RFC 8017, section 7.2.2,
// step 3, as one would write it where nobody measures.
func FuzzUnpad(f *testing.F) {
	f.Add(append(append([]byte{0, 2}, bytes.Repeat([]byte{7}, 45)...), append([]byte{0}, bytes.Repeat([]byte{9}, 16)...)...), byte(16))
	f.Add(make([]byte, 64), byte(8))
	f.Add(bytes.Repeat([]byte{0xff}, 64), byte(32))
	f.Fuzz(func(t *testing.T, em []byte, n byte) {
		size := 8 + int(n)%57
		if len(em) < size+11 {
			return
		}
		random := bytes.Repeat([]byte{0xC3}, size)
		got, want := bytes.Clone(random), random
		hsm.Unpad(em, got)
		if i := bytes.IndexByte(em[1:], 0) + 1; em[0] == 0 && em[1] == 2 && i >= 10 && len(em)-i-1 == size {
			want = em[i+1:]
		}
		if !bytes.Equal(got, want) {
			t.Errorf("Unpad(%x) gives %x, want %x", em, got, want)
		}
	})
}
