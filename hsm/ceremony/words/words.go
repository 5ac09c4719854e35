// Package words turns digests into words that people read aloud to each other.
//
// # What a caller may rely on
//
// The words are the PGP word list of Patrick Juola and Philip Zimmermann (1995),
// which other tools have too: bytes at even places have words of two syllables,
// those at odd places of three, so that a word that was left out, said twice or
// swapped with its neighbor is heard.
//
// # What it does not protect against
//
// Nobody listens to the end of 32 words: compare the digits too, or the words
// from both ends.
package words

import (
	_ "embed"
	"encoding/hex"
	"strings"
)

//go:embed words.txt
var list string // a line for each byte: its word at an even place, and at an odd one

// Of returns the words of a digest, one for each byte.
func Of(digest []byte) []string {
	lines := strings.Split(list, "\n")
	out := make([]string, len(digest))
	for i, b := range digest {
		even, odd, _ := strings.Cut(lines[b], " ")
		if out[i] = even; i%2 == 1 {
			out[i] = odd
		}
	}
	return out
}

// OfHex returns the words of a digest in hex, eight on a line; nothing if it is none.
func OfHex(digest string) []string {
	raw, err := hex.DecodeString(digest)
	if err != nil {
		return nil
	}
	var out []string
	for all := Of(raw); len(all) > 0; all = all[min(8, len(all)):] {
		out = append(out, strings.Join(all[:min(8, len(all))], " "))
	}
	return out
}
