package hsm_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/test/softhsm"
)

// A patient is a token behind the shim, with a key of each kind.
type patient struct {
	soft  softhsm.Token
	shim  softhsm.Shim
	token *hsm.Token
	ca    *hsm.Key
	dec   *hsm.Key
}

func newPatient(t *testing.T) *patient {
	t.Helper()
	p := &patient{soft: softhsm.New(t), shim: softhsm.NewShim(t)}
	generate(t, config(p.soft),
		hsm.KeyPlan{Purpose: hsm.CA, Label: "ca", Algorithm: hsm.P256},
		hsm.KeyPlan{Purpose: hsm.RADecrypt, Label: "dec", Algorithm: hsm.RSA2048})
	c := config(p.soft)
	c.Module = p.shim.Module
	p.token = open(t, c)
	p.ca, p.dec = key(t, p.token, hsm.CA, "ca"), key(t, p.token, hsm.RADecrypt, "dec")
	t.Cleanup(func() { p.shim.Heal(t) })
	return p
}

func (p *patient) sign() error {
	_, err := p.ca.Sign(nil, make([]byte, 32), crypto.SHA256)
	return err
}

func (p *patient) decrypt() error {
	_, err := p.dec.Decrypt(nil, append(make([]byte, 8), make([]byte, 248)...), sessionKey(16))
	return err
}

// finalize takes SoftHSM from the whole process.
func finalize(t *testing.T) {
	t.Helper()
	p := pkcs11.New(softhsm.Module)
	if p == nil {
		t.Fatal("cannot load " + softhsm.Module)
	}
	defer p.Destroy()
	if err := p.Finalize(); err != nil {
		t.Fatal(err)
	}
}

// until waits for the token to be well (nil) or to have this to say.
func (p *patient) until(t *testing.T, want error) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if err := p.token.Healthy(); errors.Is(err, want) {
			return
		} else if time.Now().After(end) {
			t.Fatalf("the token says %v, not %v", err, want)
		}
	}
}

// lost makes the token notice that it is lost.
func (p *patient) lost(t *testing.T) {
	t.Helper()
	if err := p.sign(); err == nil {
		t.Fatal("signed with a module in trouble")
	}
	p.until(t, hsm.ErrDown)
}

// TestModuleErrorsAreRecoveredFrom: each code of a module in trouble. Until it is well, callers
// are told at once, and the module is asked now and then; afterwards everything
// works without anybody's doing, by one login.
func TestModuleErrorsAreRecoveredFrom(t *testing.T) {
	for _, code := range []hsm.CKR{
		pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED,
		pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_SLOT_ID_INVALID,
	} {
		t.Run(code.String(), func(t *testing.T) {
			p := newPatient(t)
			logins, inits := p.shim.Count(t, "Login"), p.shim.Count(t, "Initialize")
			began := time.Now()
			p.shim.Spoil(t, "*", fmt.Sprintf("rv 0x%x", uint(code)), softhsm.Always)
			if err := p.sign(); hsm.ClassOf(err) != hsm.ClassModule {
				t.Errorf("the first call: %v", err)
			}
			p.until(t, hsm.ErrDown)
			before := p.token.Stats()
			for range 100 {
				if err := errors.Join(p.sign(), p.decrypt()); !errors.Is(err, hsm.ErrDown) {
					t.Fatalf("while it is away: %v", err)
				}
			}
			if after := p.token.Stats(); after.Sign != before.Sign || after.Decrypt != before.Decrypt {
				t.Error("calls went to a module that is away")
			}
			for p.shim.Count(t, "Initialize") < inits+2 {
				time.Sleep(5 * time.Millisecond)
			}
			time.Sleep(500 * time.Millisecond) // for more attempts than there should be
			if n, most := p.shim.Count(t, "Initialize")-inits, 5+int(time.Since(began).Seconds()); n > most {
				t.Errorf("initialized %d times, at most %d are fine", n, most)
			}
			p.shim.Heal(t)
			p.until(t, nil)
			if err := errors.Join(p.sign(), p.decrypt()); err != nil {
				t.Errorf("afterwards: %v", err)
			}
			if n := p.shim.Count(t, "Login") - logins; n != 1 {
				t.Errorf("%d attempts with the PIN", n)
			}
		})
	}
}

// TestSessionAndKeyErrorsAreRepairedOnce: each code, in each function that gives it.
func TestSessionAndKeyErrorsAreRepairedOnce(t *testing.T) {
	p := newPatient(t)
	for code, logins := range map[hsm.CKR]int{
		pkcs11.CKR_SESSION_HANDLE_INVALID: 0, pkcs11.CKR_SESSION_CLOSED: 0, pkcs11.CKR_OPERATION_ACTIVE: 0, pkcs11.CKR_OPERATION_NOT_INITIALIZED: 0,
		pkcs11.CKR_OBJECT_HANDLE_INVALID: 1, pkcs11.CKR_KEY_HANDLE_INVALID: 1, pkcs11.CKR_USER_NOT_LOGGED_IN: 1,
	} {
		for _, function := range []string{"SignInit", "Sign", "DecryptInit", "Decrypt"} {
			before, inits := p.shim.Count(t, "Login"), p.shim.Count(t, "Initialize")
			p.shim.Spoil(t, function, fmt.Sprintf("rv 0x%x", uint(code)), 1)
			if err := errors.Join(p.sign(), p.decrypt()); err != nil {
				t.Errorf("%v in %s: %v", code, function, err)
			}
			if n := p.shim.Count(t, "Login") - before; n != logins {
				t.Errorf("%v in %s: %d logins, not %d", code, function, n, logins)
			}
			if n := p.shim.Count(t, "Initialize") - inits; n != 0 {
				t.Errorf("%v in %s: initialized %d times", code, function, n)
			}
		}
	}
	if s := p.token.Stats(); s.Lost != 0 {
		t.Errorf("%+v", s)
	}
}

// TestThePINIsNotTriedAgain: not after it was refused, and not for long where a
// failure does not say why.
func TestThePINIsNotTriedAgain(t *testing.T) {
	for name, tt := range map[string]struct {
		effect   string
		attempts int
	}{
		"refused":           {"rv 0xA0", 1},
		"locked":            {"rv 0xA4", 1},
		"expired":           {"rv 0xA3", 1},
		"it does not say":   {"rv 0x5", 3},
		"an unknown answer": {"rv 0x80001234", 3},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPatient(t)
			p.shim.Spoil(t, "*", "rv 0x30", softhsm.Always)
			p.lost(t)
			before := p.shim.Count(t, "Login")
			p.shim.Spoil(t, "Login", tt.effect, softhsm.Always)
			p.until(t, hsm.ErrPIN)
			p.shim.Heal(t)
			time.Sleep(300 * time.Millisecond)
			if err := p.sign(); !errors.Is(err, hsm.ErrPIN) {
				t.Errorf("Sign: %v", err)
			}
			if _, err := p.token.Key(t.Context(), hsm.KeySpec{Purpose: hsm.CA, Label: "ca"}); !errors.Is(err, hsm.ErrPIN) {
				t.Errorf("Key: %v", err)
			}
			if n := p.shim.Count(t, "Login") - before; n != tt.attempts {
				t.Errorf("%d attempts with the PIN, not %d", n, tt.attempts)
			}
		})
	}
}

// TestADeviceThatFailsTheLoginIsNoRefusal: a server that is away answers before the PIN is looked at.
func TestADeviceThatFailsTheLoginIsNoRefusal(t *testing.T) {
	p := newPatient(t)
	p.shim.Spoil(t, "*", "rv 0x30", softhsm.Always)
	p.lost(t)
	before := p.shim.Count(t, "Login")
	p.shim.Spoil(t, "Login", "rv 0x32", 4)
	p.until(t, nil)
	if n := p.shim.Count(t, "Login") - before; n != 5 {
		t.Errorf("%d logins, want four that failed and one that did not", n)
	}
	if err := p.sign(); err != nil {
		t.Error(err)
	}
}

// TestSomebodyElsesWrongPIN: the token's flags tell, and nothing is tried.
func TestSomebodyElsesWrongPIN(t *testing.T) {
	p := newPatient(t)
	damage(t, softhsm.Module, p.soft.Serial, logout)
	damage(t, softhsm.Module, p.soft.Serial, func(m *pkcs11.Ctx, slot uint) error {
		h, err := m.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION)
		if err != nil {
			return err
		}
		if err := m.Login(h, pkcs11.CKU_USER, "999999"); !errors.Is(err, pkcs11.Error(pkcs11.CKR_PIN_INCORRECT)) {
			return fmt.Errorf("a wrong PIN: %w", err)
		}
		return m.CloseSession(h)
	})
	before := p.shim.Count(t, "Login")
	for range 3 {
		if err := p.sign(); !errors.Is(err, hsm.ErrPINCount) {
			t.Errorf("Sign: %v", err)
		}
	}
	if n := p.shim.Count(t, "Login") - before; n != 0 {
		t.Errorf("%d attempts with the PIN", n)
	}
}

// TestSomebodyElsesWrongPINWhileItIsAway: a token that comes back may count failed logins.
func TestSomebodyElsesWrongPINWhileItIsAway(t *testing.T) {
	p := newPatient(t)
	p.shim.Spoil(t, "*", "gone", softhsm.Always)
	p.lost(t)
	ca, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(ca)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "softhsm2-util", "--import", file, "--serial", p.soft.Serial, "--label", "x", "--id", "01", "--pin", "999999")
	cmd.Env = p.soft.Env()
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Fatalf("the wrong PIN was taken: %s", out)
	}
	before := p.shim.Count(t, "Login")
	p.shim.Heal(t)
	p.until(t, hsm.ErrPINCount)
	if n := p.shim.Count(t, "Login") - before; n != 0 {
		t.Errorf("%d attempts with the PIN", n)
	}
}

// TestATokenThatIsPulledOut, and put in again later: also one more time.
func TestATokenThatIsPulledOut(t *testing.T) {
	p := newPatient(t)
	for range 2 {
		logins := p.shim.Count(t, "Login")
		p.shim.Spoil(t, "*", "gone", softhsm.Always)
		p.lost(t)
		p.until(t, hsm.ErrNoToken) // by an attempt that failed
		if err := p.token.Healthy(); !errors.Is(err, hsm.ErrDown) {
			t.Errorf("Healthy: %v", err)
		}
		p.shim.Heal(t)
		p.until(t, nil)
		if err := errors.Join(p.sign(), p.decrypt()); err != nil {
			t.Error(err)
		}
		if n := p.shim.Count(t, "Login") - logins; n != 1 {
			t.Errorf("%d attempts with the PIN", n)
		}
	}
}

// TestATokenThatIsInitializedAnew has nothing to do with the old one, whatever it
// is called: that is an alarm, and no repair.
func TestATokenThatIsInitializedAnew(t *testing.T) {
	p := newPatient(t)
	cmd := exec.CommandContext(t.Context(), "softhsm2-util", "--init-token", "--serial", p.soft.Serial, "--label", p.soft.Label, "--pin", p.soft.PIN, "--so-pin", p.soft.SOPIN)
	cmd.Env = p.soft.Env()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if err := p.sign(); errors.Is(err, hsm.ErrKeyChanged) || errors.Is(err, hsm.ErrTokenChanged) {
			break
		} else if time.Now().After(end) {
			t.Fatalf("Sign: %v", err)
		}
	}
	logins := p.shim.Count(t, "Login")
	if err := p.sign(); !errors.Is(p.token.Healthy(), errors.Unwrap(err)) {
		t.Errorf("Sign: %v, Healthy: %v", err, p.token.Healthy())
	}
	if n := p.shim.Count(t, "Login"); n != logins || n > 3 {
		t.Errorf("%d attempts with the PIN, %d after the alarm", n, n-logins)
	}
}

// TestAnotherKeyCameBack: the token is the same, and the key is not.
func TestAnotherKeyCameBack(t *testing.T) {
	p := newPatient(t)
	id := keyID(t, p, "ca")
	damage(t, softhsm.Module, p.soft.Serial, logout)
	generateBehind(t, p.soft, func() (pub, private []*pkcs11.Attribute) {
		pub, private, err := hsm.Template(hsm.CA, "ca", id, hsm.P256)
		if err != nil {
			t.Fatal(err)
		}
		return pub, private
	})
	p.shim.Spoil(t, "*", "gone", softhsm.Always)
	p.lost(t)
	p.shim.Heal(t)
	p.until(t, hsm.ErrKeyChanged)
	if err := p.decrypt(); !errors.Is(err, hsm.ErrKeyChanged) {
		t.Errorf("another key of that token: %v", err)
	}
}

func keyID(t *testing.T, p *patient, label string) []byte {
	t.Helper()
	all, err := p.token.Objects(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range all {
		if o.Label == label {
			return o.ID
		}
	}
	t.Fatalf("no object %q", label)
	return nil
}

// TestAStrangerCannotTakeTheTokenAway: a ciphertext that the token answers with the code of
// a dead device hurts nobody but its sender.
func TestAStrangerCannotTakeTheTokenAway(t *testing.T) {
	p := newPatient(t)
	inits := p.shim.Count(t, "Initialize")
	p.shim.Spoil(t, "Decrypt", "picky 0x5", softhsm.Always)
	for end := time.Now().Add(2500 * time.Millisecond); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err := p.decrypt(); hsm.ClassOf(err) != hsm.ClassModule {
			t.Fatalf("the hostile one: %v", err)
		}
		if err := p.sign(); err != nil {
			t.Fatalf("somebody else: %v", err)
		}
		if err := p.token.Healthy(); err != nil {
			t.Fatalf("Healthy: %v", err)
		}
	}
	if n := p.shim.Count(t, "Initialize") - inits; n != 0 || p.token.Stats().Lost != 0 {
		t.Errorf("initialized %d times", n)
	}
}

// TestADecryptKeyThatIsDead is found out although only strangers' input fails.
func TestADecryptKeyThatIsDead(t *testing.T) {
	p := newPatient(t)
	p.shim.Spoil(t, "Decrypt", "rv 0x5", softhsm.Always)
	if err := p.decrypt(); err == nil {
		t.Fatal("decrypted")
	}
	p.until(t, hsm.ErrDown) // and stays so, though the login works
	p.shim.Heal(t)
	p.until(t, nil)
	if err := p.decrypt(); err != nil {
		t.Error(err)
	}
}

// TestATokenThatComesAndGoes does not get its PIN as fast as it fails.
func TestATokenThatComesAndGoes(t *testing.T) {
	p := newPatient(t)
	logins, inits := p.shim.Count(t, "Login"), p.shim.Count(t, "Initialize")
	p.shim.Spoil(t, "SignInit", "rv 0x30", softhsm.Always)
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		if err := p.sign(); err == nil {
			t.Fatal("signed")
		}
	}
	if s := p.token.Stats(); s.Lost < 2 {
		t.Errorf("lost %d times: it never came back", s.Lost)
	}
	if l, i := p.shim.Count(t, "Login")-logins, p.shim.Count(t, "Initialize")-inits; l > 6 || i > 6 {
		t.Errorf("%d logins and %d initializations in 3 s", l, i)
	}
	p.shim.Heal(t)
	p.until(t, nil)
	if err := p.sign(); err != nil {
		t.Error(err)
	}
}

// TestFailuresApartAreNoLoss: what works in between is there.
func TestFailuresApartAreNoLoss(t *testing.T) {
	p := newPatient(t)
	for range 8 {
		p.shim.Spoil(t, "SignInit", "rv 0x30", 1)
		if err := p.sign(); hsm.ClassOf(err) != hsm.ClassModule || errors.Is(err, hsm.ErrDown) {
			t.Fatalf("Sign: %v", err)
		}
		if err := p.sign(); err != nil || p.token.Healthy() != nil {
			t.Fatalf("and then: %v, %v", err, p.token.Healthy())
		}
	}
	if s := p.token.Stats(); s.Lost != 0 {
		t.Errorf("%+v", s)
	}
}

// TestWrongSignatures do not leave, are told of, and have the keys looked at again.
func TestWrongSignatures(t *testing.T) {
	p := newPatient(t)
	p.shim.Spoil(t, "Sign", "flip", softhsm.Always)
	if err := p.sign(); !errors.Is(err, hsm.ErrOwnSignature) || !errors.Is(p.token.Healthy(), hsm.ErrOwnSignature) {
		t.Errorf("Sign: %v, Healthy: %v", err, p.token.Healthy())
	}
	if err := p.decrypt(); err != nil || !errors.Is(p.token.Healthy(), hsm.ErrOwnSignature) {
		t.Errorf("Decrypt: %v, Healthy: %v; a decryption says nothing about signatures", err, p.token.Healthy())
	}
	for range 2 {
		if err := p.sign(); !errors.Is(err, hsm.ErrOwnSignature) {
			t.Errorf("Sign: %v", err)
		}
	}
	if n := p.token.Stats().Lost; n != 1 {
		t.Errorf("after three in a row lost %d times", n)
	}
	p.shim.Heal(t)
	p.until(t, nil)
	if err := p.sign(); err != nil {
		t.Error(err)
	}
}

// TestSlowAnswersAreNoLoss.
func TestSlowAnswersAreNoLoss(t *testing.T) {
	p := newPatient(t)
	p.shim.Spoil(t, "*", "delay 30", softhsm.Always)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := errors.Join(p.sign(), p.decrypt()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if s := p.token.Stats(); s.Lost+s.Dropped+s.Overdue != 0 || p.token.Healthy() != nil {
		t.Errorf("%+v, %v", s, p.token.Healthy())
	}
}

// TestARepairThatHangs is told as any call that hangs.
func TestARepairThatHangs(t *testing.T) {
	soft, shim := softhsm.New(t), softhsm.NewShim(t)
	generate(t, config(soft), hsm.KeyPlan{Purpose: hsm.CA, Label: "ca", Algorithm: hsm.P256})
	c := config(soft)
	c.Module, c.Deadline = shim.Module, 300*time.Millisecond
	p := &patient{soft: soft, shim: shim, token: open(t, c)}
	p.ca = key(t, p.token, hsm.CA, "ca")
	shim.Spoil(t, "*", "rv 0x30", softhsm.Always)
	p.lost(t)
	shim.Spoil(t, "Initialize", "hold", 1)
	<-p.token.Hung()
	p.until(t, hsm.ErrHung)
	if err := p.sign(); !errors.Is(err, hsm.ErrDown) {
		t.Errorf("Sign: %v", err)
	}
	shim.Heal(t)
	p.until(t, nil)
	if err := p.sign(); err != nil {
		t.Error(err)
	}
}

// TestWaitersAreToldOfTheLoss: who waits for a session is told when the token is
// lost, with a call still in the module that holds the only one.
func TestWaitersAreToldOfTheLoss(t *testing.T) {
	soft, shim := softhsm.New(t), softhsm.NewShim(t)
	generate(t, config(soft), hsm.KeyPlan{Purpose: hsm.CA, Label: "ca", Algorithm: hsm.P256})
	c := config(soft)
	c.Module, c.Sessions, c.Deadline = shim.Module, 2, 20*time.Second
	token := open(t, c)
	k := key(t, token, hsm.CA, "ca")
	sign := func() error {
		_, err := k.Sign(nil, make([]byte, 32), crypto.SHA256)
		return err
	}
	shim.Spoil(t, "Sign", "delay 5000", 1)
	var back atomic.Bool
	var first, waiters sync.WaitGroup
	first.Go(func() {
		if err := sign(); err != nil {
			t.Errorf("the slow one: %v", err)
		}
		back.Store(true)
	})
	for shim.Spoiled(t) == 0 {
		time.Sleep(time.Millisecond)
	}
	shim.Spoil(t, "*", "rv 0x30", softhsm.Always)
	for range 8 {
		waiters.Go(func() {
			err := sign()
			for hsm.ClassOf(err) == hsm.ClassModule && !errors.Is(err, hsm.ErrDown) {
				err = sign()
			}
			if !errors.Is(err, hsm.ErrDown) || back.Load() {
				t.Errorf("%v, with the slow one back: %v", err, back.Load())
			}
		})
	}
	waiters.Wait()
	shim.Heal(t)
	first.Wait()
	(&patient{token: token}).until(t, nil)
	if err := sign(); err != nil {
		t.Error(err)
	}
}

// TestLossesUnderLoad has sixteen callers at work while the token goes and comes.
func TestLossesUnderLoad(t *testing.T) {
	p := newPatient(t)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var good atomic.Int64
	for range 16 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if errors.Join(p.sign(), p.decrypt()) == nil {
					good.Add(1)
				} else {
					time.Sleep(2 * time.Millisecond)
				}
			}
		})
	}
	const rounds = 4
	for i := range rounds {
		p.shim.Spoil(t, "*", "gone", softhsm.Always)
		p.until(t, hsm.ErrDown)
		p.shim.Heal(t)
		p.until(t, nil)
		for was := good.Load(); good.Load() == was; {
			time.Sleep(time.Millisecond)
		}
		if n := p.shim.Count(t, "Login"); n > 2*(i+1)+1 {
			t.Errorf("%d logins after %d losses", n, i+1)
		}
	}
	stop()
	wg.Wait()
	if s := p.token.Stats(); s.Lost != rounds || s.Reloads > 4*rounds {
		t.Errorf("%+v, want %d losses", s, rounds)
	}
}

// TestOneOfTwoTokensOnAModule is repaired without taking the module from the other.
func TestOneOfTwoTokensOnAModule(t *testing.T) {
	one, two, shim := softhsm.New(t), softhsm.New(t), softhsm.NewShim(t)
	for label, soft := range map[string]softhsm.Token{"one": one, "two": two} {
		generate(t, config(soft), hsm.KeyPlan{Purpose: hsm.CA, Label: label, Algorithm: hsm.P256})
	}
	m, err := hsm.Load(shim.Module)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	opened := func(soft softhsm.Token, label string) *patient {
		c := config(soft)
		c.Module = shim.Module
		token, err := m.Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = token.Close() })
		return &patient{token: token, ca: key(t, token, hsm.CA, label), shim: shim}
	}
	a, b := opened(one, "one"), opened(two, "two")
	inits := shim.Count(t, "Initialize")
	shim.Spoil(t, "Sign:one", "rv 0x30", 3)
	for range 3 {
		if err := a.sign(); err == nil {
			t.Fatal("signed")
		}
		if err := b.sign(); err != nil {
			t.Errorf("the other token: %v", err)
		}
	}
	a.until(t, nil)
	if err := errors.Join(a.sign(), b.sign()); err != nil {
		t.Error(err)
	}
	if n := shim.Count(t, "Initialize") - inits; n != 0 || a.token.Stats().Lost != 1 || b.token.Stats().Lost != 0 {
		t.Errorf("initialized %d times; lost %d and %d times", n, a.token.Stats().Lost, b.token.Stats().Lost)
	}
	// Now the module itself: both have to come back, though the second was idle.
	finalize(t)
	for end := time.Now().Add(20 * time.Second); a.sign() != nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(a.token.Healthy())
		}
	}
	b.until(t, nil)
	if err := errors.Join(a.sign(), b.sign()); err != nil {
		t.Error(err)
	}
}

// TestATokenThatIsAwayCanBeClosed.
func TestATokenThatIsAwayCanBeClosed(t *testing.T) {
	p := newPatient(t)
	p.shim.Spoil(t, "*", "gone", softhsm.Always)
	p.lost(t)
	if err := p.token.ReplaceData(t.Context(), "mark", []byte("x")); !errors.Is(err, hsm.ErrDown) {
		t.Errorf("ReplaceData: %v", err)
	}
	logins := p.shim.Count(t, "Login")
	if err := p.token.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	p.shim.Heal(t)
	time.Sleep(300 * time.Millisecond)
	if err := p.sign(); !errors.Is(err, hsm.ErrClosed) {
		t.Errorf("Sign: %v", err)
	}
	if n := p.shim.Count(t, "Login"); n != logins {
		t.Errorf("%d attempts with the PIN after Close", n-logins)
	}
}
