// Package headfile is the form of the file in which the keyholder remembers how far
// it followed the log, for whoever writes it and whoever has to read it.
//
// The file has two slots of a fixed size, written in turns. A slot: magic (8 octets),
// counter, size (64 bits each), hash of the last line (32), number of frontier hashes
// (64 bits), the hashes (32 each), and the SHA-256 of all that. What is behind it in
// the slot says nothing.
//
// # What a caller may rely on
//
// A slot that was cut short is not believed, and the other one counts.
//
// # What it does not protect against
//
// The hash finds accidents: whoever can write the file can write another head.
package headfile

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/postern-pki/postern/audit"
)

// SlotSize is that of one of the two slots, in octets.
const SlotSize = 4096

// ErrDamaged says that the file cannot be believed.
var ErrDamaged = errors.New("the record of the log's head is damaged")

const (
	magic = "pstnhead"
	// fixed is the length of what stands before the hashes.
	fixed = 64
)

// Decode reads a whole file, and returns the newest chain in it and its counter.
func Decode(data []byte) (best *audit.Chain, counter uint64, err error) {
	if len(data) != 2*SlotSize {
		return nil, 0, fmt.Errorf("%w: it has %d octets", ErrDamaged, len(data))
	}
	for i := range 2 {
		chain, n, err := DecodeSlot(data[i*SlotSize : (i+1)*SlotSize])
		if err == nil && (best == nil || n > counter) {
			best, counter = chain, n
		}
	}
	if best == nil {
		return nil, 0, ErrDamaged
	}
	return best, counter, nil
}

// Slot is one slot's content, shorter than the slot.
func Slot(c *audit.Chain, counter uint64) []byte {
	head, frontier := c.Head(), c.Frontier()
	b := make([]byte, 0, fixed+32*len(frontier)+sha256.Size)
	b = append(b, magic...)
	b = binary.BigEndian.AppendUint64(b, counter)
	b = binary.BigEndian.AppendUint64(b, head.Size)
	b = append(b, head.Prev[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(len(frontier)))
	for _, f := range frontier {
		b = append(b, f[:]...)
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// DecodeSlot reads one slot, and returns its chain and counter. The error is ErrDamaged.
func DecodeSlot(body []byte) (c *audit.Chain, counter uint64, err error) {
	if len(body) < fixed || string(body[:8]) != magic {
		return nil, 0, ErrDamaged
	}
	counter = binary.BigEndian.Uint64(body[8:])
	size := binary.BigEndian.Uint64(body[16:])
	prev := [32]byte(body[24:56])
	n := binary.BigEndian.Uint64(body[56:])
	if n > 64 || len(body) < fixed+32*int(n)+sha256.Size {
		return nil, 0, ErrDamaged
	}
	end := fixed + 32*int(n)
	if own := sha256.Sum256(body[:end]); !bytes.Equal(own[:], body[end:end+sha256.Size]) {
		return nil, 0, ErrDamaged
	}
	frontier := make([][32]byte, n)
	for i := range frontier {
		frontier[i] = [32]byte(body[fixed+32*i:])
	}
	if c, err = audit.ResumeChain(size, prev, frontier); err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return c, counter, nil
}
