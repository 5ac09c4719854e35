package ceremony_test

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestAPINCannotBePrinted(t *testing.T) {
	pin, err := given(t, userPIN)(t.Context())
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
