package audit_test

import (
	"errors"
	"slices"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/postern-pki/postern/audit"
)

func somelines(t testing.TB, n int) []audit.Line {
	t.Helper()
	dir := t.TempDir()
	l := open(t, options(t, dir, nil))
	appendN(t, l, n-1)
	closeLog(t, l)
	return readAll(t, dir)
}

// TestChainRoot compares the frontier with the tree of the tlog package at every
// size, and takes the chain up again at each.
func TestChainRoot(t *testing.T) {
	var hashes []tlog.Hash
	read := tlog.HashReaderFunc(func(at []int64) (out []tlog.Hash, err error) {
		for _, i := range at {
			out = append(out, hashes[i])
		}
		return out, nil
	})
	c := &audit.Chain{}
	for i, l := range somelines(t, 70) {
		if err := c.Step(l); err != nil {
			t.Fatal(err)
		}
		more, err := tlog.StoredHashes(int64(i), l.Raw, read)
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, more...)
		want, err := tlog.TreeHash(int64(i)+1, read)
		if err != nil {
			t.Fatal(err)
		}
		h := c.Head()
		if h.Root != want || h.Size != uint64(i)+1 || h.Prev != l.Hash() {
			t.Fatalf("after line %d: head %+v, want root %v", i, h, want)
		}
		if c, err = audit.ResumeChain(h.Size, h.Prev, c.Frontier()); err != nil || c.Head() != h {
			t.Fatalf("taken up at %d: %v", i, err)
		}
	}
	if _, err := audit.ResumeChain(5, [32]byte{}, make([][32]byte, 3)); !errors.Is(err, audit.ErrFrontier) {
		t.Errorf("a frontier of another size: %v", err)
	}
}

func TestChainTampering(t *testing.T) {
	lines := somelines(t, 9)
	edited := slices.Clone(lines)
	r := edited[4].Record
	r.Object = audit.Object{"i": 99}
	var err error
	if edited[4], err = audit.Encode(r); err != nil {
		t.Fatal(err)
	}
	reordered := slices.Clone(lines)
	reordered[4], reordered[5] = reordered[5], reordered[4]
	for name, tt := range map[string]struct {
		lines []audit.Line
		at    int
		want  error
	}{
		"untouched":       {lines, -1, nil},
		"edited":          {edited, 5, audit.ErrPrevious},
		"inserted":        {slices.Insert(slices.Clone(lines), 4, lines[3]), 4, audit.ErrSequence},
		"deleted":         {slices.Delete(slices.Clone(lines), 4, 5), 4, audit.ErrSequence},
		"reordered":       {reordered, 4, audit.ErrSequence},
		"begun too late":  {lines[1:], 0, audit.ErrSequence},
		"another genesis": {append(somelines(t, 1), lines[1:]...), 1, audit.ErrPrevious},
	} {
		t.Run(name, func(t *testing.T) {
			var c audit.Chain
			at, got := -1, error(nil)
			for i, l := range tt.lines {
				before := c.Head()
				if got = c.Step(l); got != nil {
					if at = i; c.Head() != before {
						t.Error("a refused line changed the chain")
					}
					break
				}
			}
			if at != tt.at || !errors.Is(got, tt.want) {
				t.Errorf("refused line %d: %v, want %d: %v", at, got, tt.at, tt.want)
			}
		})
	}
	var c audit.Chain
	for _, l := range edited[:5] { // the edited line is the last: the root tells
		if err := c.Step(l); err != nil {
			t.Fatal(err)
		}
	}
	var d audit.Chain
	for _, l := range lines[:5] {
		if err := d.Step(l); err != nil {
			t.Fatal(err)
		}
	}
	if c.Head().Root == d.Head().Root || c.Head().Prev == d.Head().Prev {
		t.Error("an edited last line has the same head")
	}
}
