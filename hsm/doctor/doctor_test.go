package doctor_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/doctor"
	"github.com/postern-pki/postern/test/softhsm"
)

func TestMain(m *testing.M) { os.Exit(softhsm.Main(m)) }

func options(module string, soft softhsm.Token) doctor.Options {
	return doctor.Options{Module: module, Serial: soft.Serial, PIN: hsm.PINFrom(hsm.NewPIN([]byte(soft.PIN)))}
}

func examine(t *testing.T, o doctor.Options) *doctor.Report {
	t.Helper()
	r, err := doctor.Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// written is the report in both forms.
func written(t *testing.T, r *doctor.Report) string {
	t.Helper()
	var b bytes.Buffer
	if err := errors.Join(r.Text(&b), json.NewEncoder(&b).Encode(r)); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestAWellToken(t *testing.T) {
	soft, shim := softhsm.New(t), softhsm.NewShim(t)
	r := examine(t, options(shim.Module, soft))
	if n := shim.Count(t, "Login"); n != 1 {
		t.Errorf("%d attempts with the PIN", n)
	}
	if r.Examined != soft.Serial || !r.LoggedIn || r.Decrypt.Mode != "raw" || len(r.Quirks) != 0 || r.Sessions.Opened != r.Sessions.Tried || len(r.Keys) != 5 {
		t.Errorf("%+v", r)
	}
	for _, k := range r.Keys {
		if !k.Made || k.Micros <= 0 || len(k.Attributes) != 0 {
			t.Errorf("%+v", k)
		}
	}
	if !slices.ContainsFunc(r.Mechanisms, func(m doctor.Mechanism) bool {
		return m.Name == "CKM_ECDSA" && m.Max >= 384 && slices.Contains(m.Flags, "sign")
	}) {
		t.Errorf("%+v", r.Mechanisms)
	}
	if text := written(t, r); strings.Contains(text, soft.PIN) || !strings.Contains(text, "CKM_RSA_X_509") || !strings.Contains(text, soft.Label) {
		t.Error(text)
	}
	token, err := hsm.Open(t.Context(), hsm.Config{Module: soft.Module, Serial: soft.Serial, PIN: hsm.PINFrom(hsm.NewPIN([]byte(soft.PIN)))})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = token.Close() }()
	if left, err := token.Objects(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("left on the token: %v, %v", left, err)
	}
}

func TestWithoutAPIN(t *testing.T) {
	soft, shim := softhsm.New(t), softhsm.NewShim(t)
	o := options(shim.Module, soft)
	o.PIN = nil
	r := examine(t, o)
	if r.LoggedIn || len(r.Keys) != 0 || len(r.Mechanisms) == 0 || shim.Count(t, "Login") != 0 {
		t.Errorf("%+v, %d logins", r, shim.Count(t, "Login"))
	}
	if len(r.Expect) != 1 || !strings.Contains(r.Expect[0], "--pin-file") {
		t.Errorf("expect %q", r.Expect)
	}
}

func TestWhatATokenCannot(t *testing.T) {
	soft, shim := softhsm.New(t), softhsm.NewShim(t)
	shim.Spoil(t, "DecryptInit", "rv 0x70", softhsm.Always) // CKR_MECHANISM_INVALID
	r := examine(t, options(shim.Module, soft))
	if r.Decrypt.Mode != "pkcs1-mapped" || len(r.Quirks) != 1 || !strings.Contains(r.Quirks[0], "CKR_MECHANISM_INVALID") ||
		!slices.ContainsFunc(r.Expect, func(s string) bool { return strings.Contains(s, "cannot hold the RA-decrypt key") }) {
		t.Errorf("%+v, %q, %q", r.Decrypt, r.Quirks, r.Expect)
	}
	shim.Spoil(t, "Decrypt", "flip", softhsm.Always)
	if r = examine(t, options(shim.Module, soft)); r.Decrypt.Mode == "raw" || len(r.Quirks) != 1 {
		t.Errorf("a wrong answer: %+v, %q", r.Decrypt, r.Quirks)
	}
	shim.Spoil(t, "SignInit", "rv 0x68", softhsm.Always) // CKR_KEY_FUNCTION_NOT_PERMITTED
	for _, k := range examine(t, options(shim.Module, soft)).Keys {
		if k.Purpose != hsm.RADecrypt && (k.Micros != 0 || !strings.Contains(k.Why, "CKR_KEY_FUNCTION_NOT_PERMITTED")) {
			t.Errorf("%+v", k)
		}
	}
	shim.Spoil(t, "OpenSession", "rv 0x30", softhsm.Always)
	if r, err := doctor.Run(t.Context(), options(shim.Module, soft)); hsm.ClassOf(err) != hsm.ClassModule || r == nil || r.Module.SHA256 == "" {
		t.Errorf("a module in trouble: %+v, %v", r, err)
	}
	shim.Heal(t)
}

func TestAWrongPINIsTriedOnce(t *testing.T) {
	soft, shim := softhsm.New(t), softhsm.NewShim(t)
	o := options(shim.Module, soft)
	o.PIN = hsm.PINFrom(hsm.NewPIN([]byte("999999")))
	if _, err := doctor.Run(t.Context(), o); !errors.Is(err, hsm.ErrPIN) {
		t.Errorf("Run: %v", err)
	}
	if _, err := doctor.Run(t.Context(), options(shim.Module, soft)); !errors.Is(err, hsm.ErrPINCount) {
		t.Errorf("Run again, with the right one: %v", err)
	}
	if n := shim.Count(t, "Login"); n != 1 {
		t.Errorf("%d attempts", n)
	}
}

func TestSeveralTokensAreListed(t *testing.T) {
	one, two := softhsm.New(t), softhsm.New(t)
	r := examine(t, doctor.Options{Module: one.Module})
	text := written(t, r)
	if r.Examined != "" || !strings.Contains(text, one.Serial) || !strings.Contains(text, two.Serial) || len(r.Expect) != 1 {
		t.Error(text)
	}
	if _, err := doctor.Run(t.Context(), doctor.Options{Module: one.Module, Serial: "none"}); !errors.Is(err, hsm.ErrNoToken) {
		t.Errorf("a serial that is not there: %v", err)
	}
}
