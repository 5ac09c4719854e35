package keyholder_test

import (
	"errors"
	"testing"
	"time"

	"github.com/postern-pki/postern/appliance/keyholder"
	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/test/softhsm"
)

// A token that fails with an answer of trouble may have signed: only of one that
// refused, or was not asked, it is said that nothing was signed.
func TestATokenInTroubleMayHaveSigned(t *testing.T) {
	w := newWorld(t)
	if err := w.token.Close(); err != nil {
		t.Fatal(err)
	}
	shim := softhsm.NewShim(t)
	token := must[*hsm.Token](t)(hsm.Open(t.Context(), hsm.Config{
		Module: shim.Module, Serial: w.soft.Serial, Label: w.soft.Label, PIN: hsm.PINFrom(hsm.NewPIN([]byte(w.soft.PIN))), Sessions: 4, Deadline: 10 * time.Second,
	}))
	t.Cleanup(func() { _ = token.Close() })
	w.o.Token = token
	w.o.Audit = must[*hsm.Key](t)(token.Key(t.Context(), hsm.KeySpec{Purpose: hsm.Audit, Label: "audit"}))
	ca := w.o.CAs["corp"]
	ca.Key = must[*hsm.Key](t)(token.Key(t.Context(), hsm.KeySpec{Purpose: hsm.CA, Label: "ca"}))
	w.o.CAs["corp"] = ca
	w.holder = must[*keyholder.Keyholder](t)(keyholder.New(t.Context(), w.o))
	w.issuer = must[*issuer.Issuer](t)(issuer.New("corp", w.ca, w.holder, issuer.Options{}))
	if err := w.holder.Follow(t.Context(), w.lines); err != nil {
		t.Fatal(err)
	}
	sign := func() error {
		ticket, o := w.ticket()
		seq := w.chain.Head().Size
		w.feed(w.line("enroll", "intent", o))
		_, err := ticket.Sign(t.Context(), seq)
		return err
	}
	if err := sign(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		call, effect string
		not          bool // surely not signed
	}{
		{"SignInit:ca", "rv 0x30", true}, // CKR_DEVICE_ERROR
		{"Sign:ca", "rv 0x54", true},     // CKR_FUNCTION_NOT_SUPPORTED
		{"Sign:ca", "rv 0x30", false},
		{"Sign:ca", "rv 0x05", false}, // CKR_GENERAL_ERROR
	} {
		shim.Spoil(t, tt.call, tt.effect, 1)
		err := sign()
		if err == nil || shim.Spoiled(t) == 0 || errors.Is(err, issuer.ErrNotSigned) != tt.not {
			t.Errorf("%s, %s: %v, want surely not signed: %v", tt.call, tt.effect, err, tt.not)
		}
		shim.Heal(t)
	}
}
