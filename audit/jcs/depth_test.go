package jcs_test

import (
	"errors"
	"testing"

	"github.com/postern-pki/postern/audit/jcs"
)

// What Append writes Parse reads, at every depth and for every key.
func TestWhatAppendWritesParseReads(t *testing.T) {
	for _, leaf := range []any{"s", []string{"s"}, []string{}, []any{1}} {
		v := leaf
		for n := range 20 {
			enc, err := jcs.Append(nil, v)
			if err == nil {
				if _, err := jcs.Parse(enc); err != nil {
					t.Errorf("%T at depth %d: %v", leaf, n, err)
				}
			}
			if n < 15 && err != nil || n > 16 && !errors.Is(err, jcs.ErrDepth) {
				t.Errorf("%T at depth %d: %v", leaf, n, err)
			}
			v = []any{v}
		}
	}
	if enc, err := jcs.Append(nil, map[string]any{"\xff": 1, "\xfe": 2}); !errors.Is(err, jcs.ErrCanonical) {
		t.Errorf("%q, %v", enc, err)
	}
}
