package words_test

import (
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"github.com/postern-pki/postern/hsm/ceremony/words"
)

// The example is the one that the list is known by: a PGP fingerprint of 20 bytes.
func TestTheWordsAreThoseOfPGP(t *testing.T) {
	raw, err := hex.DecodeString("e58294f2e9a227486e8b061b31cc528fd7fa3f19")
	if err != nil {
		t.Fatal(err)
	}
	const want = "topmost istanbul pluto vagabond treadmill pacific brackish dictator goldfish medusa afflict bravado chatter revolver dupont midsummer stopwatch whimsical cowbell bottomless"
	if got := strings.Join(words.Of(raw), " "); strings.ToLower(got) != want {
		t.Errorf("words %s", got)
	}
	lines := words.OfHex("e58294f2e9a227486e8b061b31cc528fd7fa3f19")
	if len(lines) != 3 || !strings.HasPrefix(lines[1], "goldfish ") || words.OfHex("xyz") != nil {
		t.Errorf("lines %q", lines)
	}
}

// Every byte has two words that no other byte, and no other place, has.
func TestNoTwoBytesSoundTheSame(t *testing.T) {
	var all []string
	for b := range 256 {
		all = append(all, words.Of([]byte{byte(b), byte(b)})...)
	}
	slices.Sort(all)
	if n := len(slices.Compact(all)); n != 512 || all[0] == "" {
		t.Errorf("%d words", n)
	}
}
