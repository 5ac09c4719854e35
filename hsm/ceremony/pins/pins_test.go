package pins_test

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
