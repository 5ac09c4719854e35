package audit_test

import (
	"errors"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/postern-pki/postern/audit"
)

// Each proof that a prover gives is the one of the reference, for every size of a
// small log, and none is given before the log came by.
func TestProofsAreThoseOfTheTree(t *testing.T) {
	const lines = 40
	var leaves []tlog.Hash
	var stored []tlog.Hash
	read := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var out []tlog.Hash
		for _, i := range indexes {
			out = append(out, stored[i])
		}
		return out, nil
	})
	for i := range lines {
		leaf := tlog.RecordHash([]byte{byte(i)})
		more, err := tlog.StoredHashesForRecordHash(int64(i), leaf, read)
		if err != nil {
			t.Fatal(err)
		}
		leaves, stored = append(leaves, leaf), append(stored, more...)
	}
	for n := uint64(1); n <= lines; n++ {
		root, err := tlog.TreeHash(int64(n), read)
		if err != nil {
			t.Fatal(err)
		}
		for m := uint64(1); m < n; m++ {
			first, err := tlog.TreeHash(int64(m), read)
			if err != nil {
				t.Fatal(err)
			}
			var p audit.Prover
			ask := func() (c, in []tlog.Hash, err error) {
				c, err = p.Consistent(m, n)
				in, other := p.Included(m, n)
				return c, in, errors.Join(err, other)
			}
			if _, _, err := ask(); !errors.Is(err, audit.ErrProof) {
				t.Fatalf("a proof of nothing: %v", err)
			}
			for _, leaf := range leaves[:n] {
				p.Add(leaf)
			}
			c, in, err := ask()
			if err == nil {
				err = errors.Join(tlog.CheckTree(c, int64(n), root, int64(m), first), tlog.CheckRecord(in, int64(n), root, int64(m), leaves[m]))
			}
			if err != nil {
				t.Errorf("%d of %d: %v", m, n, err)
			}
		}
	}
}
