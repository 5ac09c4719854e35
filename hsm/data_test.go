package hsm_test

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/test/softhsm"
)

func read(t *testing.T, tok *hsm.Token, label string) [][]byte {
	t.Helper()
	got, err := tok.ReadData(t.Context(), label)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func isOne(got [][]byte, want []byte) bool { return len(got) == 1 && bytes.Equal(got[0], want) }

func TestDataOutlivesTheProcess(t *testing.T) {
	soft := softhsm.New(t)
	token := open(t, config(soft))
	if got, err := token.ReadData(t.Context(), "mark"); !errors.Is(err, hsm.ErrNoData) {
		t.Fatalf("ReadData of nothing: %x, %v", got, err)
	}
	long := bytes.Repeat([]byte{0, 1, 0xff, '\n'}, 4<<10)
	for _, v := range [][]byte{[]byte("first"), []byte("second"), {0}, long} {
		if err := token.ReplaceData(t.Context(), "mark", v); err != nil {
			t.Fatal(err)
		}
		if got := read(t, token, "mark"); !isOne(got, v) {
			t.Errorf("read %d values, want the last one", len(got))
		}
	}
	if err := token.ReplaceData(t.Context(), "other", []byte("else")); err != nil {
		t.Fatal(err)
	}
	if err := token.Close(); err != nil {
		t.Fatal(err)
	}
	again := open(t, config(soft))
	if got := read(t, again, "mark"); !isOne(got, long) {
		t.Errorf("after a restart: %d values", len(got))
	}
	if got := read(t, again, "other"); !isOne(got, []byte("else")) {
		t.Errorf("another label: %x", got)
	}
	if s := again.Stats(); s.Dropped != 0 || s.Login != 1 {
		t.Errorf("%+v", s)
	}
}

func TestDataThatCannotBeKeptIsRefused(t *testing.T) {
	token := open(t, config(softhsm.New(t)))
	for name, tt := range map[string]struct {
		label string
		value []byte
	}{
		"nothing":         {"mark", nil},
		"over 16 KiB":     {"mark", make([]byte, 16<<10+1)},
		"no label":        {"", []byte("x")},
		"a label too big": {string(make([]byte, 65)), []byte("x")},
	} {
		if err := token.ReplaceData(t.Context(), tt.label, tt.value); !errors.Is(err, hsm.ErrData) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := token.ReadData(t.Context(), "mark"); !errors.Is(err, hsm.ErrNoData) {
		t.Errorf("something was stored: %v", err)
	}
}

// raw has the token's user do something behind the Token's back.
func raw(t *testing.T, soft softhsm.Token, user bool, do func(p *pkcs11.Ctx, h pkcs11.SessionHandle) error) {
	t.Helper()
	p := pkcs11.New(soft.Module)
	defer p.Destroy()
	if err := p.Initialize(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Finalize() }()
	damage(t, soft.Module, soft.Serial, func(p *pkcs11.Ctx, slot uint) error {
		h, err := p.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err == nil && user {
			err = p.Login(h, pkcs11.CKU_USER, soft.PIN)
		}
		if err != nil {
			return err
		}
		return do(p, h)
	})
}

func dataObject(label string, private bool, value string) []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_DATA), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, private), pkcs11.NewAttribute(pkcs11.CKA_APPLICATION, "postern"),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label), pkcs11.NewAttribute(pkcs11.CKA_VALUE, value),
	}
}

// TestDataFromWhoHasNoPIN: anybody who reaches the module can store what is not private.
func TestDataFromWhoHasNoPIN(t *testing.T) {
	soft := softhsm.New(t)
	raw(t, soft, false, func(p *pkcs11.Ctx, h pkcs11.SessionHandle) error {
		_, err := p.CreateObject(h, dataObject("mark", false, "forged"))
		return err
	})
	token := open(t, config(soft))
	if got, err := token.ReadData(t.Context(), "mark"); !errors.Is(err, hsm.ErrNoData) {
		t.Errorf("ReadData: %q, %v; want ErrNoData", got, err)
	}
}

// TestDataAfterACrash leaves what a crash between the two halves of a replacement leaves.
func TestDataAfterACrash(t *testing.T) {
	soft := softhsm.New(t)
	raw(t, soft, true, func(p *pkcs11.Ctx, h pkcs11.SessionHandle) error {
		_, err := p.CreateObject(h, dataObject("mark", true, "old"))
		_, err2 := p.CreateObject(h, dataObject("mark", true, "new"))
		return errors.Join(err, err2)
	})
	token := open(t, config(soft))
	got := read(t, token, "mark")
	slices.SortFunc(got, bytes.Compare)
	if len(got) != 2 || string(got[0]) != "new" || string(got[1]) != "old" {
		t.Errorf("read %q, want both", got)
	}
	if err := token.ReplaceData(t.Context(), "mark", []byte("newer")); err != nil {
		t.Fatal(err)
	}
	if got := read(t, token, "mark"); !isOne(got, []byte("newer")) {
		t.Errorf("read %q, want the newest alone", got)
	}
}

func TestDataUnderLosses(t *testing.T) {
	soft := softhsm.New(t)
	token := open(t, config(soft))
	if err := token.ReplaceData(t.Context(), "mark", []byte("0")); err != nil {
		t.Fatal(err)
	}
	for name, do := range map[string]func(p *pkcs11.Ctx, slot uint) error{
		"all sessions are closed": (*pkcs11.Ctx).CloseAllSessions,
		"somebody logs out":       logout,
	} {
		damage(t, soft.Module, soft.Serial, do)
		if err := token.ReplaceData(t.Context(), "mark", []byte(name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		damage(t, soft.Module, soft.Serial, do)
		if got := read(t, token, "mark"); !isOne(got, []byte(name)) {
			t.Errorf("%s: read %q", name, got)
		}
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if err := token.ReplaceData(t.Context(), "mark", []byte{byte('a' + i)}); err != nil {
				t.Error(err)
			}
			if got, err := token.ReadData(t.Context(), "mark"); err != nil || len(got) != 1 {
				t.Errorf("beside a replacement: %q, %v", got, err)
			}
		})
	}
	wg.Wait()
}

// TestHungIsToldOnce: the channel closes at the first call beyond its deadline, also
// if that comes back.
func TestHungIsToldOnce(t *testing.T) {
	soft, shim := softhsm.New(t), softhsm.NewShim(t)
	c := config(soft)
	c.Module, c.Deadline = shim.Module, 300*time.Millisecond
	token := open(t, c)
	select {
	case <-token.Hung():
		t.Fatal("closed with nothing wrong")
	default:
	}
	for range 2 {
		shim.Spoil(t, "OpenSession", "delay 900", 1)
		if err := token.ReplaceData(t.Context(), "mark", []byte("x")); !errors.Is(err, hsm.ErrDeadline) {
			t.Fatalf("a call that hangs: %v", err)
		}
		<-token.Hung()
		for token.Healthy() != nil {
			time.Sleep(10 * time.Millisecond)
		}
	}
}
