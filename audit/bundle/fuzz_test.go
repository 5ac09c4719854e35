package bundle_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/audit/bundle"
)

func FuzzParseProof(f *testing.F) {
	s, dir := newSigner(f), f.TempDir()
	newLog(f, s, dir, 20, 100_000, 10)
	p := must[*bundle.Proof](f)(bundle.Prove(f.Context(), dir, s.verifier(f), 3, 7))
	f.Add(must[[]byte](f)(p.Encode()))
	f.Add([]byte("{}\n"))
	v := s.verifier(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := bundle.ParseProof(data)
		if err != nil {
			if !errors.Is(err, bundle.ErrForm) {
				t.Error(err)
			}
			return
		}
		again, err := p.Encode()
		if err != nil || !bytes.Equal(again, data) {
			t.Errorf("%q is written as %q: %v", data, again, err)
		}
		_, _, _ = p.Verify(v)
	})
}

// FuzzVerify has whole tars: whatever they hold, one that verifies is the one that was
// signed.
func FuzzVerify(f *testing.F) {
	s, dir := newSigner(f), f.TempDir()
	newLog(f, s, dir, 20, 100_000, 10)
	data, _ := export(f, s.options(f, dir))
	f.Add(data)
	f.Add(data[:1024])
	f.Fuzz(func(t *testing.T, other []byte) {
		if _, err := bundle.Verify(t.Context(), bytes.NewReader(other), bundle.VerifyOptions{Trust: s.cert}); err == nil && !bytes.Equal(other, data) {
			_, a := files(t, data)
			_, b := files(t, other)
			for name := range b {
				if !bytes.Equal(a[name], b[name]) {
					t.Errorf("%s is another, and it verifies", name)
				}
			}
		}
	})
}

func FuzzField(f *testing.F) {
	f.Add([]byte(`{"a":1,"certificate":"AA==","z":{"certificate":"no"}}`), "certificate")
	f.Add([]byte(`{`), "")
	f.Fuzz(func(t *testing.T, ob []byte, key string) {
		if v := audit.Field(ob, key); v != nil && !bytes.Contains(ob, v) {
			t.Errorf("%q has no %q", ob, v)
		}
	})
}
