package hsm_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/test/softhsm"
)

const clearText = "Kq7-secret"

// leaks reports the clear text in any form that fmt or a codec might give it.
func leaks(s string) bool {
	raw := []byte(clearText)
	forms := []string{clearText, fmt.Sprintf("%x", clearText), fmt.Sprintf("%X", clearText), fmt.Sprintf("% x", clearText), strings.Trim(fmt.Sprintf("%d", raw), "[]"), "S3E3LXNlY3JldA"}
	for _, f := range forms {
		if strings.Contains(s, f) {
			return true
		}
	}
	return false
}

func TestPINCannotBePrinted(t *testing.T) {
	type holder struct {
		Name string
		pin  hsm.PIN
		PIN  hsm.PIN
	}
	pin := hsm.NewPIN([]byte(clearText))
	values := map[string]any{
		"value": pin, "pointer": &pin, "slice": []hsm.PIN{pin}, "map": map[string]hsm.PIN{"k": pin},
		"field": holder{"n", pin, pin}, "pointer to struct": &holder{"n", pin, pin}, "config": hsm.Config{PIN: hsm.PINFrom(pin)},
	}
	for name, v := range values {
		for _, verb := range strings.Split("v +v #v s q x X d t T p c b o O U e f g w", " ") {
			if out := fmt.Sprintf("%"+verb, v); leaks(out) {
				t.Errorf("%s by %%%s: %s", name, verb, out)
			}
		}
		if out, err := json.Marshal(v); err == nil && leaks(string(out)) {
			t.Errorf("%s by json: %s", name, out)
		}
		var buf bytes.Buffer
		core := zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(&buf), zap.DebugLevel)
		zap.New(core).Info("m", zap.Any("a", v), zap.Reflect("r", v), zap.String("s", fmt.Sprint(v)))
		if leaks(buf.String()) {
			t.Errorf("%s by zap: %s", name, buf.String())
		}
	}
	if text, err := pin.MarshalText(); err != nil || leaks(string(text)) {
		t.Errorf("text: %s, %v", text, err)
	}
	if out := fmt.Sprint(fmt.Errorf("opening with %v", pin)); !strings.Contains(out, "[redacted]") {
		t.Errorf("%s: want it to say that something was left out", out)
	}
}

func TestPINSources(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string, mode fs.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	fd := func(content string) hsm.PINSource {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = w.WriteString(content)
			_ = w.Close()
		}()
		return hsm.PINFromFD(dup(t, r))
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	file("credential", clearText, 0o440)
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		source hsm.PINSource
		ok     bool
	}{
		"a file":                          {hsm.PINFromFile(file("a", clearText, 0o400)), true},
		"a file with a newline":           {hsm.PINFromFile(file("b", clearText+"\n", 0o600)), true},
		"a file with a DOS newline":       {hsm.PINFromFile(file("c", clearText+"\r\n", 0o600)), true},
		"a file that its group may read":  {hsm.PINFromFile(file("d", clearText, 0o440)), true},
		"a file that all may read":        {hsm.PINFromFile(file("e", clearText, 0o444)), false},
		"a file that its group may write": {hsm.PINFromFile(file("f", clearText, 0o660)), false},
		"an empty file":                   {hsm.PINFromFile(file("g", "\n", 0o600)), false},
		"two lines":                       {hsm.PINFromFile(file("h", clearText+"\nmore\n", 0o600)), false},
		"a control character":             {hsm.PINFromFile(file("j", clearText+"\t", 0o600)), false},
		"a pipe that nobody writes to":    {hsm.PINFromFile(fifo(t, dir)), false},
		"a link out of the credentials":   {hsm.PINFromCredential("link"), false},
		"a file that is too long":         {hsm.PINFromFile(file("i", strings.Repeat("x", 256), 0o600)), false},
		"a folder":                        {hsm.PINFromFile(dir), false},
		"a file that is not there":        {hsm.PINFromFile(filepath.Join(dir, "none")), false},
		"a credential":                    {hsm.PINFromCredential("credential"), true},
		"a credential outside its folder": {hsm.PINFromCredential("../etc/passwd"), false},
		"a credential without a name":     {hsm.PINFromCredential(""), false},
		"a descriptor":                    {fd(clearText + "\n"), true},
		"an empty descriptor":             {fd(""), false},
		"a descriptor that is not open":   {hsm.PINFromFD(-1), false},
	} {
		t.Run(name, func(t *testing.T) {
			pin, err := tt.source(t.Context())
			if (err == nil) != tt.ok {
				t.Fatalf("error %v, want success %v", err, tt.ok)
			}
			if tt.ok && !pin.Equal(hsm.NewPIN([]byte(clearText))) {
				t.Error("another PIN came out")
			}
			if err != nil && leaks(err.Error()) {
				t.Errorf("%v", err)
			}
		})
	}
}

func fifo(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(path, 0o400); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWhatAPINTellsOfItself(t *testing.T) {
	for text, want := range map[string][2]int{"": {0, 0}, "1111": {4, 1}, "1212x": {5, 3}, clearText: {10, 9}} {
		if p := hsm.NewPIN([]byte(text)); p.Len() != want[0] || p.Distinct() != want[1] {
			t.Errorf("%q: %d bytes, %d different ones, want %v", text, p.Len(), p.Distinct(), want)
		}
	}
	var none hsm.PIN
	if none.Len() != 0 || none.Distinct() != 0 || !none.Empty() {
		t.Error("the zero PIN has something in it")
	}
}

func TestPINSourceEndsWithItsContext(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := hsm.PINFromFD(dup(t, r))(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
}

func TestPINWipe(t *testing.T) {
	pin := hsm.NewPIN([]byte(clearText))
	other := pin
	other.Wipe()
	if !pin.Empty() || pin.Equal(hsm.NewPIN([]byte(clearText))) {
		t.Error("a copy of a wiped PIN still opens the token")
	}
	hsm.PIN{}.Wipe()
}

// dup gives a descriptor that the source may close without f knowing.
func dup(t *testing.T, f *os.File) int {
	t.Helper()
	fd, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	return fd
}

func TestPINRefusedInServiceEndsTheToken(t *testing.T) {
	tok, shim := softhsm.New(t), softhsm.NewShim(t)
	generate(t, config(tok), hsm.KeyPlan{Purpose: hsm.CA, Label: "ca", Algorithm: hsm.P256})
	c := config(tok)
	c.Module = shim.Module
	token := open(t, c)
	k := key(t, token, hsm.CA, "ca")
	damage(t, shim.Module, tok.Serial, logout)
	shim.Spoil(t, "Login", "rv 0xA0", 1)
	before := token.Stats().Login
	for range 3 {
		if _, err := k.Sign(nil, make([]byte, 32), crypto.SHA256); !errors.Is(err, hsm.ErrPIN) {
			t.Errorf("Sign: %v, want ErrPIN", err)
		}
	}
	if n := token.Stats().Login - before; n != 1 || !errors.Is(token.Healthy(), hsm.ErrPIN) {
		t.Errorf("%d attempts, healthy: %v; want one attempt and ErrPIN for good", n, token.Healthy())
	}
}

// A caller who stops waiting takes the PIN along. The module, when it comes back,
// must not be given what is left of it: the token would count a wrong PIN.
func TestAWipedPINIsNeverTried(t *testing.T) {
	tok, shim := softhsm.New(t), softhsm.NewShim(t)
	generate(t, config(tok), hsm.KeyPlan{Purpose: hsm.CA, Label: "ca", Algorithm: hsm.P256})
	c := config(tok)
	c.Module, c.Sessions, c.Deadline = shim.Module, 1, 200*time.Millisecond
	load := func() *hsm.Module {
		m, err := hsm.Load(shim.Module)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}

	m := load()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	shim.Spoil(t, "OpenSession", "delay 300", 1)
	if _, err := m.Open(ctx, c); !errors.Is(err, hsm.ErrDeadline) {
		t.Fatalf("Open of a token that does not answer: %v, want ErrDeadline", err)
	}
	closeWhenBack(t, m)

	m = load()
	token, err := m.Open(t.Context(), c)
	if err != nil {
		t.Fatalf("Open, after one that was given up: %v", err)
	}
	k := key(t, token, hsm.CA, "ca")
	damage(t, shim.Module, tok.Serial, logout)
	shim.Spoil(t, "GetTokenInfo", "delay 900", 1)
	if _, err := k.Sign(nil, make([]byte, 32), crypto.SHA256); !errors.Is(err, hsm.ErrDeadline) {
		t.Fatalf("Sign while the login is repaired: %v, want ErrDeadline", err)
	}
	if err := token.Close(); !errors.Is(err, hsm.ErrHung) {
		t.Errorf("Close: %v, want ErrHung", err)
	}
	closeWhenBack(t, m)
	if n := token.Stats().Login; n != 1 {
		t.Errorf("%d logins, want the first alone", n)
	}

	m = load()
	defer func() { _ = m.Close() }()
	slot, err := m.Find(t.Context(), tok.Serial, "")
	if err != nil || slot.CountLow || slot.FinalTry || slot.Locked {
		t.Errorf("%+v, %v: the token counted a wrong PIN", slot, err)
	}
}

// The same for a PIN that is set: what is set is the PIN, also if the caller went.
func TestAWipedPINIsNeverSet(t *testing.T) {
	store, shim := softhsm.Empty(t), softhsm.NewShim(t)
	so, user := []byte("so-secret"), []byte("user-secret")
	m, err := hsm.Load(shim.Module)
	if err != nil {
		t.Fatal(err)
	}
	slots, err := m.Slots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(slots, func(s hsm.Slot) bool { return !s.Initialized })
	slot, err := m.InitToken(t.Context(), slots[i], "set-"+rand.Text()[:8], hsm.NewPIN(so))
	if err != nil {
		t.Fatal(err)
	}
	shim.Spoil(t, "Login", "rv 0x30", 1)
	if err := m.InitPIN(t.Context(), slot, hsm.NewPIN(so), hsm.NewPIN(user)); err == nil || errors.Is(err, hsm.ErrPIN) || hsm.ClassOf(err) != hsm.ClassModule {
		t.Errorf("a device in trouble: %v, want that and nothing about the PIN", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	officer, pin := hsm.NewPIN(so), hsm.NewPIN(user)
	shim.Spoil(t, "OpenSession", "delay 300", 1)
	if err := m.InitPIN(ctx, slot, officer, pin); !errors.Is(err, hsm.ErrDeadline) {
		t.Errorf("InitPIN: %v, want ErrDeadline", err)
	}
	officer.Wipe()
	pin.Wipe()
	closeWhenBack(t, m)
	open(t, hsm.Config{Module: store.Module, Serial: slot.Serial, PIN: hsm.PINFrom(hsm.NewPIN(user))})
}

// closeWhenBack closes the module as soon as no call is inside it.
func closeWhenBack(t *testing.T, m *hsm.Module) {
	t.Helper()
	for err := m.Close(); err != nil; err = m.Close() {
		if !errors.Is(err, hsm.ErrHung) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
