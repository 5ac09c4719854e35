package hsm_test

import (
	"context"
	"crypto"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/test/softhsm"
)

func TestMain(m *testing.M) { os.Exit(softhsm.Main(m)) }

func config(tok softhsm.Token) hsm.Config {
	return hsm.Config{Module: tok.Module, Serial: tok.Serial, PIN: hsm.PINFrom(hsm.NewPIN([]byte(tok.PIN)))}
}

// open opens a token for one test.
func open(t *testing.T, c hsm.Config) *hsm.Token {
	t.Helper()
	tok, err := hsm.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tok.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return tok
}

func generate(t *testing.T, c hsm.Config, plans ...hsm.KeyPlan) []hsm.Generated {
	t.Helper()
	out, err := hsm.Generate(t.Context(), c, plans)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func key(t *testing.T, tok *hsm.Token, p hsm.Purpose, label string) *hsm.Key {
	t.Helper()
	k, err := tok.Key(t.Context(), hsm.KeySpec{Purpose: p, Label: label})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestOpenRefuses(t *testing.T) {
	tok := softhsm.New(t)
	text := filepath.Join(t.TempDir(), "text.so")
	if err := os.WriteFile(text, []byte("no library"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*hsm.Config)
		want   error
	}{
		"a module that is not there":      {func(c *hsm.Config) { c.Module = "/nonexistent/module.so" }, hsm.ErrModule},
		"a module by a relative name":     {func(c *hsm.Config) { c.Module = "libsofthsm2.so" }, hsm.ErrModule},
		"a module that is no library":     {func(c *hsm.Config) { c.Module = text }, hsm.ErrModule},
		"a serial that is not there":      {func(c *hsm.Config) { c.Serial = "0123456789abcdef" }, hsm.ErrNoToken},
		"a label that is not there":       {func(c *hsm.Config) { c.Serial, c.Label = "", "nobody" }, hsm.ErrNoToken},
		"a label that another serial has": {func(c *hsm.Config) { c.Label = "nobody" }, hsm.ErrNoToken},
		"neither serial nor label":        {func(c *hsm.Config) { c.Serial = "" }, hsm.ErrNoToken},
	} {
		t.Run(name, func(t *testing.T) {
			c := config(tok)
			tt.change(&c)
			if _, err := hsm.Open(t.Context(), c); !errors.Is(err, tt.want) {
				t.Errorf("Open: %v, want %v", err, tt.want)
			}
		})
	}
	t.Run("then the right one opens", func(t *testing.T) {
		c := config(tok)
		c.Serial, c.Label = "", tok.Label
		if got := open(t, c).Slot().Serial; got != tok.Serial {
			t.Errorf("serial %q, want %q", got, tok.Serial)
		}
	})
}

func TestWrongPINIsTriedOnce(t *testing.T) {
	tok := softhsm.New(t)
	wrong, asked := config(tok), 0
	wrong.PIN = func(context.Context) (hsm.PIN, error) { asked++; return hsm.NewPIN([]byte("9999")), nil }
	_, err := hsm.Open(t.Context(), wrong)
	if code, _ := hsm.CodeOf(err); !errors.Is(err, hsm.ErrPIN) || code != pkcs11.CKR_PIN_INCORRECT || hsm.ClassOf(err) != hsm.ClassPIN {
		t.Fatalf("first Open: %v, want ErrPIN with CKR_PIN_INCORRECT", err)
	}
	if _, err := hsm.Open(t.Context(), wrong); !errors.Is(err, hsm.ErrPINCount) || asked != 1 {
		t.Errorf("second Open: %v after asking %d times for a PIN, want ErrPINCount after 1", err, asked)
	}
	if _, err := hsm.Open(t.Context(), config(tok)); !errors.Is(err, hsm.ErrPINCount) {
		t.Errorf("Open with the right PIN: %v, want ErrPINCount until an operator clears the count", err)
	}
	if _, err := hsm.Generate(t.Context(), config(tok), nil); !errors.Is(err, hsm.ErrPINCount) {
		t.Errorf("Generate: %v, want ErrPINCount", err)
	}
}

func TestATokenIsOpenOnce(t *testing.T) {
	first, second := softhsm.New(t), softhsm.New(t)
	m, err := hsm.Load(first.Module)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	if _, err := hsm.Open(t.Context(), config(second)); !errors.Is(err, hsm.ErrInUse) {
		t.Errorf("Open beside a loaded module: %v, want ErrInUse", err)
	}
	a, err := m.Open(t.Context(), config(first))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Open(t.Context(), config(first)); !errors.Is(err, hsm.ErrInUse) {
		t.Errorf("the same token again: %v, want ErrInUse", err)
	}
	b, err := m.Open(t.Context(), config(second))
	if err != nil {
		t.Fatalf("another token on the same module: %v", err)
	}
	if err := errors.Join(a.Close(), b.Close()); err != nil {
		t.Error(err)
	}
	if a, err = m.Open(t.Context(), config(first)); err != nil {
		t.Errorf("the first again, after Close: %v", err)
	} else if err := a.Close(); err != nil {
		t.Error(err)
	}
}

func TestClosedTokenRefuses(t *testing.T) {
	tok := softhsm.New(t)
	generate(t, config(tok), hsm.KeyPlan{Purpose: hsm.Audit, Label: "audit", Algorithm: hsm.P256})
	token := open(t, config(tok))
	k := key(t, token, hsm.Audit, "audit")
	if err := token.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Sign(nil, make([]byte, 32), crypto.SHA256); !errors.Is(err, hsm.ErrClosed) {
		t.Errorf("Sign: %v, want ErrClosed", err)
	}
	if _, err := token.Key(t.Context(), hsm.KeySpec{Purpose: hsm.Audit, Label: "audit"}); !errors.Is(err, hsm.ErrClosed) {
		t.Errorf("Key: %v, want ErrClosed", err)
	}
}

// A token must not reach into a library that was taken away: that would end the
// process, and not in an error.
func TestATokenOutlivesItsModule(t *testing.T) {
	tok := softhsm.New(t)
	generate(t, config(tok), hsm.KeyPlan{Purpose: hsm.CA, Label: "ca", Algorithm: hsm.P256})
	m, err := hsm.Load(tok.Module)
	if err != nil {
		t.Fatal(err)
	}
	token, err := m.Open(t.Context(), config(tok))
	if err != nil {
		t.Fatal(err)
	}
	k := key(t, token, hsm.CA, "ca")
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Sign(nil, make([]byte, 32), crypto.SHA256); !errors.Is(err, hsm.ErrClosed) {
		t.Errorf("Sign: %v, want ErrClosed", err)
	}
	if _, err := m.Open(t.Context(), config(tok)); !errors.Is(err, hsm.ErrClosed) {
		t.Errorf("Open: %v, want ErrClosed", err)
	}
	if err := token.Close(); !errors.Is(err, hsm.ErrClosed) {
		t.Errorf("Close: %v, want ErrClosed", err)
	}
}

// damage reaches into the process' module behind the Token's back.
func damage(t *testing.T, module, serial string, do func(p *pkcs11.Ctx, slot uint) error) {
	t.Helper()
	p := pkcs11.New(module)
	if p == nil {
		t.Fatal("cannot load " + module)
	}
	defer p.Destroy()
	slots, err := p.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range slots {
		info, err := p.GetTokenInfo(s)
		if err != nil {
			t.Fatal(err)
		}
		if info.SerialNumber == serial {
			if err := do(p, s); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func logout(p *pkcs11.Ctx, slot uint) error {
	h, err := p.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return err
	}
	return errors.Join(p.Logout(h), p.CloseSession(h))
}

func TestLossesAreRepaired(t *testing.T) {
	tok := softhsm.New(t)
	generate(t, config(tok),
		hsm.KeyPlan{Purpose: hsm.CA, Label: "ca", Algorithm: hsm.P256},
		hsm.KeyPlan{Purpose: hsm.RADecrypt, Label: "dec", Algorithm: hsm.RSA2048})
	token := open(t, config(tok))
	ca, dec := key(t, token, hsm.CA, "ca"), key(t, token, hsm.RADecrypt, "dec")
	use := func() error {
		_, err := ca.Sign(nil, make([]byte, 32), crypto.SHA256)
		_, err2 := dec.Decrypt(nil, make([]byte, 256), sessionKey(16))
		return errors.Join(err, err2)
	}
	if err := use(); err != nil {
		t.Fatal(err)
	}
	for name, do := range map[string]func(p *pkcs11.Ctx, slot uint) error{
		"all sessions are closed": (*pkcs11.Ctx).CloseAllSessions,
		"somebody logs out":       logout,
	} {
		t.Run(name, func(t *testing.T) {
			before := token.Stats()
			damage(t, tok.Module, tok.Serial, do)
			var wg sync.WaitGroup
			errs := make([]error, 16)
			for i := range errs {
				wg.Go(func() { errs[i] = use() })
			}
			wg.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Fatalf("after the loss: %v", err)
			}
			after := token.Stats()
			if after.Login != before.Login+1 {
				t.Errorf("%d logins, want exactly one", after.Login-before.Login)
			}
			if err := token.Healthy(); err != nil {
				t.Errorf("Healthy: %v", err)
			}
			if err := use(); err != nil || token.Stats().Retried != after.Retried {
				t.Errorf("the repair did not last: %v", err)
			}
		})
	}
}

func TestAKeyThatIsNotTheSameAnyMoreIsNotUsed(t *testing.T) {
	tok := softhsm.New(t)
	made := generate(t, config(tok),
		hsm.KeyPlan{Purpose: hsm.CA, Label: "ca", Algorithm: hsm.P256},
		hsm.KeyPlan{Purpose: hsm.TLS, Label: "tls", Algorithm: hsm.P256})
	token := open(t, config(tok))
	ca, tls := key(t, token, hsm.CA, "ca"), key(t, token, hsm.TLS, "tls")
	damage(t, tok.Module, tok.Serial, logout)
	generateBehind(t, tok, func() (pub, private []*pkcs11.Attribute) {
		pub, private, err := hsm.Template(hsm.CA, "ca", made[0].ID, hsm.P256)
		if err != nil {
			t.Fatal(err)
		}
		return pub, private
	})
	damage(t, tok.Module, tok.Serial, logout)
	if _, err := ca.Sign(nil, make([]byte, 32), crypto.SHA256); !errors.Is(err, hsm.ErrKeyChanged) {
		t.Errorf("Sign: %v, want ErrKeyChanged", err)
	}
	if _, err := tls.Sign(nil, make([]byte, 32), crypto.SHA256); !errors.Is(err, hsm.ErrKeyChanged) || !errors.Is(token.Healthy(), hsm.ErrKeyChanged) {
		t.Errorf("another key of that token: %v (healthy: %v), want ErrKeyChanged for all of it", err, token.Healthy())
	}
}

func TestStuckCallIsAbandoned(t *testing.T) {
	tok, shim := softhsm.New(t), softhsm.NewShim(t)
	generate(t, config(tok), hsm.KeyPlan{Purpose: hsm.CA, Label: "ca", Algorithm: hsm.P256})
	c := config(tok)
	c.Module, c.Deadline, c.Sessions = shim.Module, 300*time.Millisecond, 1
	token := open(t, c)
	k := key(t, token, hsm.CA, "ca")
	sign := func(ctx context.Context) error {
		_, err := k.With(ctx).Sign(nil, make([]byte, 32), crypto.SHA256)
		return err
	}
	shim.Spoil(t, "Sign", "delay 1500", 1)
	if err := sign(t.Context()); !errors.Is(err, hsm.ErrDeadline) || errors.Is(err, hsm.ErrBusy) {
		t.Fatalf("a call that hangs: %v, want ErrDeadline", err)
	}
	if err := token.Healthy(); !errors.Is(err, hsm.ErrHung) {
		t.Errorf("Healthy: %v, want ErrHung", err)
	}
	if err := sign(t.Context()); !errors.Is(err, hsm.ErrBusy) || !errors.Is(err, hsm.ErrDeadline) {
		t.Errorf("the next caller, with the only session stuck: %v, want ErrBusy", err)
	}
	for token.Healthy() != nil {
		time.Sleep(10 * time.Millisecond)
	}
	if err := sign(t.Context()); err != nil {
		t.Errorf("after the call came back: %v", err)
	}
	if s := token.Stats(); s.Overdue != 1 || s.Busy != 1 {
		t.Errorf("%+v, want one overdue call and one busy caller", s)
	}
}

func TestACallerWhoLeavesDoesNotHurtTheToken(t *testing.T) {
	tok, shim := softhsm.New(t), softhsm.NewShim(t)
	generate(t, config(tok), hsm.KeyPlan{Purpose: hsm.CA, Label: "ca", Algorithm: hsm.P256})
	c := config(tok)
	c.Module, c.Sessions = shim.Module, 1
	token := open(t, c)
	k := key(t, token, hsm.CA, "ca")
	dropped := token.Stats().Dropped
	shim.Spoil(t, "Sign", "delay 200", 1)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := k.With(ctx).Sign(nil, make([]byte, 32), crypto.SHA256); !errors.Is(err, context.Canceled) {
		t.Errorf("Sign: %v, want context.Canceled", err)
	}
	short, cancel2 := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel2()
	if _, err := k.With(short).Sign(nil, make([]byte, 32), crypto.SHA256); !errors.Is(err, hsm.ErrDeadline) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Sign beyond the context's deadline: %v, want ErrDeadline", err)
	}
	if _, err := k.Sign(nil, make([]byte, 32), crypto.SHA256); err != nil {
		t.Errorf("the next caller: %v", err)
	}
	if s := token.Stats(); s.Dropped != dropped || s.Overdue != 0 || token.Healthy() != nil {
		t.Errorf("%+v, %v: a caller who left must not cost a session", s, token.Healthy())
	}
}

func TestOwnSignatureIsVerified(t *testing.T) {
	tok, shim := softhsm.New(t), softhsm.NewShim(t)
	generate(t, config(tok),
		hsm.KeyPlan{Purpose: hsm.CA, Label: "ec", Algorithm: hsm.P256},
		hsm.KeyPlan{Purpose: hsm.RASign, Label: "rsa", Algorithm: hsm.RSA2048})
	c := config(tok)
	c.Module = shim.Module
	token := open(t, c)
	for label, purpose := range map[string]hsm.Purpose{"ec": hsm.CA, "rsa": hsm.RASign} {
		k := key(t, token, purpose, label)
		shim.Spoil(t, "Sign", "flip", 1)
		if sig, err := k.Sign(nil, make([]byte, 32), crypto.SHA256); !errors.Is(err, hsm.ErrOwnSignature) || sig != nil {
			t.Errorf("%s: %x, %v; want ErrOwnSignature and nothing", label, sig, err)
		}
	}
	if n := token.Stats().OwnSignature; n != 2 {
		t.Errorf("counted %d, want 2", n)
	}
}

func TestReturnValuesAreClassed(t *testing.T) {
	tok, shim := softhsm.New(t), softhsm.NewShim(t)
	generate(t, config(tok), hsm.KeyPlan{Purpose: hsm.CA, Label: "ca", Algorithm: hsm.P256})
	c := config(tok)
	c.Module = shim.Module
	token := open(t, c)
	k := key(t, token, hsm.CA, "ca")
	for name, tt := range map[string]struct {
		function, effect string
		count            int
		class            hsm.Class // of the error, if one is wanted
		fails            bool
		logins           uint64
	}{
		"a lost session, once":            {"SignInit", "rv 0xB3", 1, 0, false, 0},
		"an operation left open, once":    {"SignInit", "rv 0x90", 1, 0, false, 0},
		"a lost session that stays lost":  {"SignInit", "rv 0xB3", 2, hsm.ClassSession, true, 0},
		"a lost handle, once":             {"SignInit", "rv 0x82", 1, 0, false, 1},
		"a lost handle that stays lost":   {"Sign", "rv 0x60", 2, hsm.ClassKey, true, 1},
		"a device in trouble: no retry":   {"Sign", "rv 0x30", 1, hsm.ClassModule, true, 0},
		"a general error: no retry":       {"Sign", "rv 0x5", 1, hsm.ClassModule, true, 0},
		"a refusal: no retry":             {"SignInit", "rv 0x68", 1, hsm.ClassOther, true, 0},
		"a code that no standard defines": {"SignInit", "rv 0x80001234", 1, hsm.ClassOther, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			before := token.Stats()
			shim.Spoil(t, tt.function, tt.effect, tt.count)
			_, err := k.Sign(nil, make([]byte, 32), crypto.SHA256)
			if (err != nil) != tt.fails || hsm.ClassOf(err) != tt.class {
				t.Errorf("Sign: %v (class %v), want failure %v with class %v", err, hsm.ClassOf(err), tt.fails, tt.class)
			}
			if got := token.Stats().Login - before.Login; got != tt.logins {
				t.Errorf("%d logins, want %d", got, tt.logins)
			}
			if unhealthy := token.Healthy() != nil; unhealthy != (tt.class == hsm.ClassModule) {
				t.Errorf("Healthy: %v", token.Healthy())
			}
			if _, err := k.Sign(nil, make([]byte, 32), crypto.SHA256); err != nil || token.Healthy() != nil {
				t.Errorf("the next call: %v, %v", err, token.Healthy())
			}
		})
	}
}
