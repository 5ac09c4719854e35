package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// A Line is a record and its bytes as they are stored, with the LF. All hashes
// are over these bytes and nothing is ever encoded again to check them.
type Line struct {
	Raw    []byte
	Record Record
	sums   *sums // of Raw, if the log wrote it: each follower asks for them
}

type sums struct {
	hash [32]byte
	leaf tlog.Hash
}

// Hash is what the next line's prev says.
func (l Line) Hash() [32]byte {
	if l.sums != nil {
		return l.sums.hash
	}
	return sha256.Sum256(l.Raw)
}

// Leaf is the line's leaf in the Merkle tree (RFC 9162, section 2.1.1).
func (l Line) Leaf() tlog.Hash {
	if l.sums != nil {
		return l.sums.leaf
	}
	return tlog.RecordHash(l.Raw)
}

// summed computes both once for all who follow.
func (l Line) summed() Line {
	l.sums = &sums{hash: l.Hash(), leaf: l.Leaf()}
	return l
}

// Errors of a chain: in which way a line does not continue it.
var (
	ErrSequence = errors.New("audit: the line has another sequence number")
	ErrPrevious = errors.New("audit: the line names another line before it")
	ErrFrontier = errors.New("audit: not the frontier of a tree of this size")
)

// A Head is the state of a log of Size lines: the hash of the last one, and the
// root of the Merkle tree over all (RFC 9162, section 2.1.1).
type Head struct {
	Size uint64
	Prev [32]byte
	Root tlog.Hash
}

// A Chain follows a log line by line and computes its head. It needs memory for
// the logarithm of the size. The zero value stands before line 0. It is not safe
// for concurrent use.
type Chain struct {
	size     uint64
	prev     [32]byte
	frontier []tlog.Hash // roots of the complete subtrees, largest first
}

// ResumeChain returns a chain that stands after size lines.
func ResumeChain(size uint64, prev [32]byte, frontier [][32]byte) (*Chain, error) {
	if bits.OnesCount64(size) != len(frontier) {
		return nil, ErrFrontier
	}
	c := &Chain{size: size, prev: prev}
	for _, h := range frontier {
		c.frontier = append(c.frontier, tlog.Hash(h))
	}
	return c, nil
}

// Step takes the next line. An error leaves the chain as it was.
func (c *Chain) Step(l Line) error {
	if l.Record.Seq != c.size {
		return fmt.Errorf("%w: %d instead of %d", ErrSequence, l.Record.Seq, c.size)
	}
	if l.Record.Prev != hex.EncodeToString(c.prev[:]) {
		return fmt.Errorf("%w: line %d", ErrPrevious, c.size)
	}
	c.add(l.Leaf(), l.Hash())
	return nil
}

// add takes the leaf and the hash of a line that was found to be the next.
func (c *Chain) add(h tlog.Hash, prev [32]byte) {
	for n := c.size; n&1 == 1; n >>= 1 {
		last := len(c.frontier) - 1
		h = tlog.NodeHash(c.frontier[last], h)
		c.frontier = c.frontier[:last]
	}
	c.frontier = append(c.frontier, h)
	c.prev = prev
	c.size++
}

// Head returns the state after the lines so far.
func (c *Chain) Head() Head {
	h := Head{Size: c.size, Prev: c.prev}
	if c.size == 0 {
		h.Root = emptyRoot()
		return h
	}
	h.Root = c.frontier[len(c.frontier)-1]
	for i := len(c.frontier) - 2; i >= 0; i-- {
		h.Root = tlog.NodeHash(c.frontier[i], h.Root)
	}
	return h
}

// emptyRoot is the hash of no line at all.
func emptyRoot() tlog.Hash {
	h, err := tlog.TreeHash(0, nil)
	if err != nil {
		return tlog.Hash{}
	}
	return h
}

// Frontier returns the roots of the complete subtrees, largest first: with size
// and prev all that [ResumeChain] needs.
func (c *Chain) Frontier() [][32]byte {
	out := make([][32]byte, len(c.frontier))
	for i, h := range c.frontier {
		out[i] = h
	}
	return out
}

// Clone returns an independent copy.
func (c *Chain) Clone() *Chain {
	return &Chain{size: c.size, prev: c.prev, frontier: slices.Clone(c.frontier)}
}

// ErrProof is returned where a hash that a proof needs did not come by, and for a
// proof that proves something else.
var ErrProof = errors.New("audit: no proof of that")

// A Prover picks the hashes out of a log that a proof of RFC 9162 needs, while the
// log's leaves come by: in one pass, and in memory for the proof alone. First ask for
// the proofs, which fails, then [Prover.Add] each leaf from line 0, then ask again.
// The zero value is ready. It is not safe for concurrent use.
type Prover struct {
	want map[int64]tlog.Hash
	size int64
	edge []tlog.Hash
}

// Consistent proves that the log of size n begins with that of size m (RFC 9162,
// section 2.1.4).
func (p *Prover) Consistent(m, n uint64) ([]tlog.Hash, error) {
	return tlog.ProveTree(int64(n), int64(m), tlog.HashReaderFunc(p.read))
}

// Included proves that the record is in the log of size n (RFC 9162, section 2.1.3).
func (p *Prover) Included(seq, n uint64) ([]tlog.Hash, error) {
	return tlog.ProveRecord(int64(n), int64(seq), tlog.HashReaderFunc(p.read))
}

func (p *Prover) read(indexes []int64) ([]tlog.Hash, error) {
	if p.want == nil {
		p.want = make(map[int64]tlog.Hash)
	}
	var out []tlog.Hash
	for _, i := range indexes {
		h, ok := p.want[i]
		if !ok || h == (tlog.Hash{}) {
			p.want[i] = tlog.Hash{}
			continue
		}
		out = append(out, h)
	}
	if len(out) < len(indexes) {
		return nil, ErrProof
	}
	return out, nil
}

// Add takes the next leaf.
func (p *Prover) Add(leaf tlog.Hash) {
	if len(p.want) == 0 {
		return
	}
	h := leaf
	p.keep(0, p.size, h)
	for level, n := 1, p.size; n&1 == 1; level, n = level+1, n>>1 {
		last := len(p.edge) - 1
		h = tlog.NodeHash(p.edge[last], h)
		p.edge = p.edge[:last]
		p.keep(level, n>>1, h)
	}
	p.edge = append(p.edge, h)
	p.size++
}

func (p *Prover) keep(level int, n int64, h tlog.Hash) {
	i := tlog.StoredHashIndex(level, n)
	if _, ok := p.want[i]; ok {
		p.want[i] = h
	}
}
