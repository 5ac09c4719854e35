package pins_test

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/ceremony/pins"
)

func TestAPINCannotBePrinted(t *testing.T) {
	const userPIN = "canary-user-4711"
	path := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(path, []byte(userPIN), 0o400); err != nil {
		t.Fatal(err)
	}
	pin, err := pins.FromFile(path)(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		if s := fmt.Sprintf(verb, pin) + fmt.Sprintf(verb, &pin); strings.Contains(s, userPIN) || strings.Contains(s, hex.EncodeToString([]byte(userPIN))) {
			t.Errorf("%s: %s", verb, s)
		}
	}
	if b, err := json.Marshal(pin); err != nil || strings.Contains(string(b), userPIN) {
		t.Errorf("%s, %v", b, err)
	}
}

// What is reckoned of a PIN is the most that it can be.
func TestThePINsStrengthIsReckoned(t *testing.T) {
	for pin, want := range map[string][2]int{
		"111111111111": {0, 10}, "123456789012": {0, 10}, "47110815": {15, 27}, "elevenchars": {30, 52},
		"tr0ub4dor&3": {50, 70}, "Kx7#pQ2!vR9$mT4z": {90, 106}, "8f3a9c1e7b2d5f6a0c4e": {80, 104},
	} {
		g := pins.Given{PIN: hsm.NewPIN([]byte(pin)), Source: "terminal"}
		if bits := g.Bits(); bits < want[0] || bits > want[1] {
			t.Errorf("%s: %d bits", pin, bits)
		}
		weak := g.Strong("it", true, 0)
		if errors.Is(weak, pins.ErrWeak) != (g.Bits() < pins.MinBits) || g.Strong("it", false, 0) != nil {
			t.Errorf("%s: %v", pin, weak)
		}
	}
	if err := (pins.Given{PIN: hsm.NewPIN([]byte("aB3$xY9z")), Source: "terminal"}).Strong("it", true, 8); err != nil {
		t.Errorf("the longest that the token takes: %v", err)
	}
	if err := (pins.Given{PIN: hsm.NewPIN([]byte("11111111")), Source: "terminal"}).Strong("it", true, 8); err == nil {
		t.Error("a plain PIN passes for being the longest")
	}
}

func TestAGeneratedPINFitsItsToken(t *testing.T) {
	for longest, want := range map[int][2]int{0: {26, 128}, 255: {26, 128}, 26: {26, 128}, 14: {14, 83}, 8: {8, 47}} {
		one, text, err := pins.Generate(longest)
		if err != nil {
			t.Fatal(err)
		}
		other, _, err := pins.Generate(longest)
		if err != nil || one.Equal(other.PIN) {
			t.Errorf("twice the same, %v", err)
		}
		again := pins.Regain(text)
		if one.Len() != want[0] || one.Bits() != want[1] || again.Bits() != want[1] || !again.Equal(one.PIN) {
			t.Errorf("longest %d: %d characters, %d bits", longest, one.Len(), one.Bits())
		}
	}
}
