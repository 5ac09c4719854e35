package tokens_test

import (
	"crypto"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/appliance/tokens"
	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/test/softhsm"
)

func TestMain(m *testing.M) { os.Exit(softhsm.Main(m)) }

func named(t *testing.T, name, module string, soft softhsm.Token) config.LoadedToken {
	t.Helper()
	_, err := hsm.Generate(t.Context(), hsm.Config{Module: soft.Module, Serial: soft.Serial, PIN: hsm.PINFrom(hsm.NewPIN([]byte(soft.PIN)))},
		[]hsm.KeyPlan{{Purpose: hsm.CA, Label: "ca", Algorithm: hsm.P256}})
	if err != nil {
		t.Fatal(err)
	}
	return config.LoadedToken{Token: config.Token{Name: name, Module: module, Serial: soft.Serial}, PINPath: soft.PINFile(t), Deadline: time.Second}
}

func sign(t *testing.T, s *tokens.Set, name string) error {
	t.Helper()
	k, err := s.Token(name).Key(t.Context(), hsm.KeySpec{Purpose: hsm.CA, Label: "ca"})
	if err != nil {
		return err
	}
	_, err = k.Sign(nil, make([]byte, 32), crypto.SHA256)
	return err
}

// TestSeveralTokens has two tokens of one library.
func TestSeveralTokens(t *testing.T) {
	shim := softhsm.NewShim(t)
	one, two := named(t, "one", shim.Module, softhsm.New(t)), named(t, "two", shim.Module, softhsm.New(t))
	s, err := tokens.Open(t.Context(), []config.LoadedToken{one, two}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sign(t, s, "one"), sign(t, s, "two"), s.Healthy()); err != nil {
		t.Error(err)
	}
	if s.Slot().Serial != one.Serial || s.Stats().Sign != 2 || s.Token("three") != nil {
		t.Errorf("%+v, %+v", s.Slot(), s.Stats())
	}
	shim.Spoil(t, "Sign", "flip", 1)
	if err := sign(t, s, "two"); !errors.Is(err, hsm.ErrOwnSignature) {
		t.Errorf("a wrong signature: %v", err)
	}
	if err := s.Healthy(); !errors.Is(err, hsm.ErrOwnSignature) || !strings.HasPrefix(err.Error(), "two: ") {
		t.Errorf("Healthy: %v, want that the second one is not", err)
	}
	select {
	case <-s.Hung():
		t.Error("no call hung")
	default:
	}
	shim.Spoil(t, "Sign", "hold", 1)
	if err := sign(t, s, "two"); !errors.Is(err, hsm.ErrDeadline) {
		t.Errorf("a call that hangs: %v", err)
	}
	<-s.Hung()
	shim.Heal(t)
	for s.Healthy() != nil {
		time.Sleep(5 * time.Millisecond)
		_ = sign(t, s, "two")
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestAllOrNone: with one that cannot be opened none stays open.
func TestAllOrNone(t *testing.T) {
	one, two := named(t, "one", softhsm.Module, softhsm.New(t)), named(t, "two", softhsm.Module, softhsm.New(t))
	wrong := two
	wrong.Serial = "0123456789abcdef"
	if _, err := tokens.Open(t.Context(), []config.LoadedToken{one, wrong}, zap.NewNop()); !errors.Is(err, hsm.ErrNoToken) || !strings.Contains(err.Error(), "two") {
		t.Errorf("Open: %v", err)
	}
	s, err := tokens.Open(t.Context(), []config.LoadedToken{one, two}, zap.NewNop())
	if err != nil {
		t.Fatalf("then: %v", err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
