package softhsm_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/postern-pki/postern/test/softhsm"
)

func TestMain(m *testing.M) { os.Exit(softhsm.Main(m)) }

func TestTokensOfOneProcess(t *testing.T) {
	first, second := softhsm.New(t), softhsm.New(t)
	if first.Conf != second.Conf || first.Serial == second.Serial || first.Label == second.Label {
		t.Fatalf("two tokens in one directory wanted: %+v, %+v", first, second)
	}
	seen := labels(t, first.Module)
	if !seen[first.Label] || !seen[second.Label] {
		t.Errorf("the module sees %v, want both tokens", seen)
	}
	if env := strings.Join(first.Env(), "\n"); !strings.Contains(env, "SOFTHSM2_CONF="+first.Conf) {
		t.Error("a child process would not find the token")
	}
}

func TestTokenIsGoneAfterItsTest(t *testing.T) {
	var gone softhsm.Token
	t.Run("owner", func(t *testing.T) { gone = softhsm.New(t) })
	softhsm.Empty(t)
	if labels(t, softhsm.Module)[gone.Label] {
		t.Errorf("token %q is still there", gone.Label)
	}
}

func TestShimPassesCallsOn(t *testing.T) {
	tok, shim := softhsm.New(t), softhsm.NewShim(t)
	if !labels(t, shim.Module)[tok.Label] {
		t.Error("the shim does not show SoftHSM's token")
	}
}

// TestShimSpoilsOneKey spoils the signatures of one of two keys.
func TestShimSpoilsOneKey(t *testing.T) {
	tok, shim := softhsm.New(t), softhsm.NewShim(t)
	p := pkcs11.New(shim.Module)
	if p == nil {
		t.Fatal("cannot load " + shim.Module)
	}
	defer p.Destroy()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(p.Initialize())
	defer func() { _ = p.Finalize() }()
	slots, err := p.GetSlotList(true)
	check(err)
	slot := slices.IndexFunc(slots, func(s uint) bool { info, err := p.GetTokenInfo(s); return err == nil && info.Label == tok.Label })
	open := func() pkcs11.SessionHandle { // one for each, as a call that was spoiled leaves its operation begun
		t.Helper()
		session, err := p.OpenSession(slots[slot], pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		check(err)
		return session
	}
	check(p.Login(open(), pkcs11.CKU_USER, tok.PIN))
	sign := func(label string) error {
		t.Helper()
		session := open()
		_, key, err := p.GenerateKeyPair(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil)},
			[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7})},
			[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, label), pkcs11.NewAttribute(pkcs11.CKA_SIGN, true)})
		check(err)
		check(p.SignInit(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)}, key))
		_, err = p.Sign(session, make([]byte, 32))
		return err
	}
	shim.Spoil(t, "Sign:one", "rv 0x30", 1)
	if err := sign("another"); err != nil || shim.Spoiled(t) != 0 {
		t.Errorf("another key: %v, %d spoiled", err, shim.Spoiled(t))
	}
	if err := sign("one"); !errors.Is(err, pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)) || shim.Spoiled(t) != 1 {
		t.Errorf("the key: %v, %d spoiled", err, shim.Spoiled(t))
	}
	if err := sign("one"); err != nil || shim.Spoiled(t) != 1 {
		t.Errorf("after the count: %v, %d spoiled", err, shim.Spoiled(t))
	}
}

func labels(t *testing.T, module string) map[string]bool {
	t.Helper()
	p := pkcs11.New(module)
	if p == nil {
		t.Fatal("cannot load " + module)
	}
	defer p.Destroy()
	if err := p.Initialize(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Finalize() }()
	slots, err := p.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for _, s := range slots {
		info, err := p.GetTokenInfo(s)
		if err != nil {
			t.Fatal(err)
		}
		all[info.Label] = true
	}
	return all
}
