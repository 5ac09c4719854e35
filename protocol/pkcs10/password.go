package pkcs10

import (
	"encoding"
	"encoding/json"
	"fmt"
	"io"
)

const redacted = "[redacted]"

var (
	_ fmt.Formatter          = Password{}
	_ fmt.Stringer           = Password{}
	_ fmt.GoStringer         = Password{}
	_ encoding.TextMarshaler = Password{}
	_ json.Marshaler         = Password{}
)

// A Password is a challengePassword in clear. No verb of package fmt prints it
// and no encoder writes it. The octets are in a closure because fmt does not ask
// the methods of a struct's unexported fields, nor any methods for a verb used
// wrongly: it follows pointers then, but prints of a function the address.
type Password struct{ open func() []byte }

func newPassword(b []byte) *Password { return &Password{func() []byte { return b }} }

// Bytes returns the password as UTF-8, whatever string type it had. The slice is
// the password's own.
func (p Password) Bytes() []byte {
	if p.open == nil {
		return nil
	}
	return p.open()
}

// String implements [fmt.Stringer].
func (Password) String() string { return redacted }

// GoString implements [fmt.GoStringer].
func (Password) GoString() string { return redacted }

// Format implements [fmt.Formatter], for every verb.
func (Password) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// MarshalText implements [encoding.TextMarshaler].
func (Password) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON implements [json.Marshaler].
func (Password) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }
