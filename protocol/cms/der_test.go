package cms_test

import (
	"bytes"
	"crypto"
	"errors"
	"io"
	"runtime"
	"testing"

	"github.com/postern-pki/postern/protocol/cms"
)

// Covers: S-182
func TestDERLimits(t *testing.T) {
	in := []byte{0x30, 0x04, 0x30, 0x02, 0x05, 0x00}
	for name, tt := range map[string]struct {
		lim  cms.Limits
		want error
	}{
		"each as large as it must be": {cms.Limits{Bytes: 6, Depth: 3, Elements: 3}, nil},
		"the defaults":                {cms.Limits{}, nil},
		"one octet too few":           {cms.Limits{Bytes: 5}, cms.ErrTooLarge},
		"one level too few":           {cms.Limits{Depth: 2}, cms.ErrTooDeep},
		"one element too few":         {cms.Limits{Elements: 2}, cms.ErrTooMany},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := cms.DER(in, tt.lim); !errors.Is(err, tt.want) || err != nil && tt.want == nil {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
	full := make([]byte, 64<<10-4)
	if _, err := cms.DER(element(4, full), cms.DefaultLimits()); err != nil {
		t.Errorf("64 KiB: %v", err)
	}
	if _, err := cms.DER(element(4, append(full, 0)), cms.DefaultLimits()); !errors.Is(err, cms.ErrTooLarge) {
		t.Errorf("one octet over 64 KiB: %v", err)
	}
}

// TestDERMemory: whatever the input, what is allocated stays in proportion.
func TestDERMemory(t *testing.T) {
	const size = 64 << 10
	lim := cms.Limits{Depth: size, Elements: size}
	for name, in := range map[string][]byte{
		"indefinite lengths in each other": bytes.Repeat([]byte{0x30, 0x80}, size/2),
		"segments in each other":           bytes.Repeat([]byte{0x24, 0x80}, size/4),
		"closed indefinite lengths":        append(bytes.Repeat([]byte{0x30, 0x80}, size/4), make([]byte, size/2)...),
		"empty segments":                   append(append([]byte{0x24, 0x80}, bytes.Repeat([]byte{4, 0}, size/2-2)...), 0, 0),
		"closed segments in each other":    append(bytes.Repeat([]byte{0x24, 0x80}, size/4), make([]byte, size/2)...),
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := cms.DER(in, lim)
			runtime.ReadMemStats(&after)
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 256*size {
				t.Errorf("%d octets for %d (%v)", grown, len(in), err)
			}
		})
	}
}

// TestBERIsReadLikeDER: the same message in indefinite lengths and segments
// verifies, and gives the same content.
//
// Covers: S-054
func TestBERIsReadLikeDER(t *testing.T) {
	m := signed(t, rsaHolder(t))
	der, err := cms.DER(m.indefinite(), cms.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(der, m.der()) {
		t.Error("BER does not become the DER that it was")
	}
	if s, err := parseAndVerify(m.indefinite()); err != nil || !bytes.Equal(s.Content, content) {
		t.Errorf("got %v", err)
	}
}

// TestEveryTruncation: no prefix of a message is a message.
func TestEveryTruncation(t *testing.T) {
	m := signed(t, rsaHolder(t))
	for _, in := range [][]byte{m.der(), m.indefinite()} {
		for i := range in {
			if _, err := parseAndVerify(in[:i]); err == nil {
				t.Fatalf("the first %d of %d octets verify", i, len(in))
			}
			_, _ = cms.ParseSigned(in[:i])
			_, _ = cms.ParseEnvelope(in[:i])
		}
	}
}

func BenchmarkDER(b *testing.B) {
	m := signed(b, rsaHolder(b))
	for name, in := range map[string][]byte{"DER": m.der(), "BER": m.indefinite()} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := cms.DER(in, cms.Limits{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkParseAndVerify(b *testing.B) {
	in := signed(b, rsaHolder(b)).der()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := parseAndVerify(in); err != nil {
			b.Fatal(err)
		}
	}
}

// A canned key signs at once, and always the same.
type canned struct{ crypto.Signer }

func (canned) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return make([]byte, 256), nil
}

// BenchmarkSign is what signing costs beside the token's work.
func BenchmarkSign(b *testing.B) {
	h := rsaHolder(b)
	h.key = canned{h.key}
	b.ReportAllocs()
	for b.Loop() {
		sign(b, h, cms.SignOptions{Content: content, Attributes: []cms.Attribute{transaction("x")}})
	}
}
