package hsm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"
)

// adminDeadline bounds one administrative call to the module. Initializing a
// token erases flash memory on some devices.
const adminDeadline = 60 * time.Second

// A Module is a PKCS#11 library, loaded and initialized. What C_Initialize sets
// up belongs to the process, so there is one Module for a library at a time;
// several tokens may be open on it. A token that lost the library has it finalized
// and initialized again, while no other token on it works.
type Module struct {
	path   string
	p11    *pkcs11.Ctx
	repair chan struct{} // holds one thing; who took it may repair a token

	mu     sync.Mutex
	open   map[string]*Token // by serial and label; nil while it is being opened
	inside int               // calls in the library, which must not be finalized under them
	away   bool              // it is being finalized and initialized
	closed bool
}

// A Slot is a place for a token, and what is in it. Serial and Label are empty
// until the token is initialized (some devices have a serial before).
type Slot struct {
	ID           uint // valid while the module stays loaded, and not beyond InitToken
	Serial       string
	Label        string
	Manufacturer string
	Model        string
	Firmware     string
	Initialized  bool
	UserPINSet   bool
	CountLow     bool // a wrong user PIN was given since the last right one
	FinalTry     bool
	Locked       bool
	SOCountLow   bool
	SOLocked     bool
	MaxSessions  int // 0: not said
	MaxPIN       int // bytes; 0: not said
}

// Load loads the module at an absolute path and initializes it. It gives
// ErrModule if that fails, and ErrInUse if this process has it already.
func Load(path string) (*Module, error) {
	const op = "load module"
	if !filepath.IsAbs(path) {
		return nil, &Error{Op: op, Err: fmt.Errorf("%w: %q is not an absolute path", ErrModule, path)}
	}
	if info, err := os.Stat(path); err != nil {
		return nil, &Error{Op: op, Err: fmt.Errorf("%w: %w", ErrModule, err)}
	} else if !info.Mode().IsRegular() {
		return nil, &Error{Op: op, Err: fmt.Errorf("%w: %s is not a file", ErrModule, path)}
	}
	p11 := pkcs11.New(path)
	if p11 == nil {
		return nil, &Error{Op: op, Err: fmt.Errorf("%w: %s is not a PKCS#11 library for this machine", ErrModule, path)}
	}
	if err := initialize(p11); err != nil {
		if errors.Is(err, ErrHung) {
			return nil, &Error{Op: op, Err: fmt.Errorf("%w: %s: %w", ErrModule, path, err)}
		}
		p11.Destroy()
		code, _ := CodeOf(err)
		if uint(code) == pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED {
			return nil, &Error{Op: op, Code: code, Err: ErrInUse}
		}
		return nil, &Error{Op: op, Code: code, Err: fmt.Errorf("%w: %s", ErrModule, path)}
	}
	m := &Module{path: path, p11: p11, repair: make(chan struct{}, 1), open: map[string]*Token{}}
	m.repair <- struct{}{}
	return m, nil
}

// initialize stops waiting after adminDeadline; the library is of no use then.
func initialize(p11 *pkcs11.Ctx) error {
	done := make(chan error, 1)
	go func() { done <- p11.Initialize() }()
	timer := time.NewTimer(adminDeadline)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return ErrHung
	}
}

// Close finalizes the library. Tokens that are still open on it give ErrClosed
// from then on.
// If a call is stuck inside the library it is left alone, and ErrHung returned:
// taking it away under that thread would end the process in a worse way.
func (m *Module) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	if m.inside > 0 {
		return &Error{Op: "close module", Err: ErrHung}
	}
	m.closed = true
	err := m.p11.Finalize()
	m.p11.Destroy()
	return fault("close module", "", err)
}

// Slots lists every slot that has a token, initialized or not.
func (m *Module) Slots(ctx context.Context) ([]Slot, error) {
	return bounded(ctx, m, "list slots", m.slots)
}

func (m *Module) slots() ([]Slot, error) {
	ids, err := m.p11.GetSlotList(true)
	if err != nil {
		return nil, err
	}
	slots := make([]Slot, 0, len(ids))
	for _, id := range ids {
		s, err := m.slot(id)
		if err != nil {
			return nil, err
		}
		slots = append(slots, s)
	}
	return slots, nil
}

func (m *Module) slot(id uint) (Slot, error) {
	info, err := m.p11.GetTokenInfo(id)
	if err != nil {
		return Slot{}, err
	}
	has := func(flag uint) bool { return info.Flags&flag != 0 }
	text := func(s string) string { return strings.TrimRight(s, " \x00") }
	s := Slot{
		ID: id, Serial: text(info.SerialNumber), Label: text(info.Label),
		Manufacturer: text(info.ManufacturerID), Model: text(info.Model),
		Firmware:    fmt.Sprintf("%d.%d", info.FirmwareVersion.Major, info.FirmwareVersion.Minor),
		Initialized: has(pkcs11.CKF_TOKEN_INITIALIZED), UserPINSet: has(pkcs11.CKF_USER_PIN_INITIALIZED),
		CountLow: has(pkcs11.CKF_USER_PIN_COUNT_LOW), FinalTry: has(pkcs11.CKF_USER_PIN_FINAL_TRY), Locked: has(pkcs11.CKF_USER_PIN_LOCKED),
		SOCountLow: has(pkcs11.CKF_SO_PIN_COUNT_LOW), SOLocked: has(pkcs11.CKF_SO_PIN_LOCKED) || has(pkcs11.CKF_SO_PIN_FINAL_TRY),
	}
	if n := info.MaxSessionCount; n != pkcs11.CK_EFFECTIVELY_INFINITE && n != pkcs11.CK_UNAVAILABLE_INFORMATION && n < 1<<20 {
		s.MaxSessions = int(n)
	}
	if n := info.MaxPinLen; n < 1<<10 { // more is as good as no limit, or not said
		s.MaxPIN = int(n)
	}
	return s, nil
}

// Find returns the one initialized token with this serial and label; an empty
// one of the two is not compared. ErrNoToken names what there is instead.
func (m *Module) Find(ctx context.Context, serial, label string) (Slot, error) {
	slots, err := m.Slots(ctx)
	if err != nil {
		return Slot{}, err
	}
	return choose(slots, serial, label)
}

func choose(slots []Slot, serial, label string) (Slot, error) {
	const op = "find token"
	if serial == "" && label == "" {
		return Slot{}, &Error{Op: op, Err: fmt.Errorf("%w: neither serial nor label is given", ErrNoToken)}
	}
	var found []Slot
	var there []string
	for _, s := range slots {
		if !s.Initialized {
			continue
		}
		there = append(there, fmt.Sprintf("serial %s label %q", s.Serial, s.Label))
		if (serial == "" || s.Serial == serial) && (label == "" || s.Label == label) {
			found = append(found, s)
		}
	}
	want := fmt.Sprintf("serial %q label %q", serial, label)
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return Slot{}, &Error{Op: op, Err: fmt.Errorf("%w: %s; there is: %s", ErrNoToken, want, strings.Join(there, ", "))}
	default:
		return Slot{}, &Error{Op: op, Err: fmt.Errorf("%w: %d tokens match %s; name the serial", ErrNoToken, len(found), want)}
	}
}

// look finds the token by a module of our own, closed again, because crypto11
// looks at neither the flags nor for two tokens of one name: it takes a serial or a label,
// and the first token that has it. Some makers give all tokens one serial.
func look(ctx context.Context, c Config) (*crypto11.Config, error) {
	m, err := Load(c.Module)
	if err != nil {
		return nil, err
	}
	slots, err := m.Slots(ctx)
	if cerr := m.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, err
	}
	slot, err := choose(slots, c.Serial, c.Label)
	if err == nil {
		err = pinUsable(slot)
	}
	if err != nil {
		return nil, err
	}
	serials, labels := 0, 0
	for _, s := range slots {
		serials += count(s.Serial == slot.Serial)
		labels += count(s.Label == slot.Label)
	}
	out := &crypto11.Config{Path: c.Module, MaxSessions: 2}
	switch number := int(slot.ID); {
	case serials == 1 && slot.Serial != "":
		out.TokenSerial = slot.Serial
	case labels == 1 && slot.Label != "":
		out.TokenLabel = slot.Label
	default:
		out.SlotNumber = &number
	}
	return out, nil
}

func count(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

// InitToken initializes the token in an empty slot, and returns it as it is now.
// It refuses a token that is initialized, as what is on it would be erased, and a
// label of another token; ErrNoToken says that the slot is gone. The user PIN has
// to be set after it, by [Module.InitPIN].
func (m *Module) InitToken(ctx context.Context, slot Slot, label string, so PIN) (Slot, error) {
	const op = "initialize token"
	if label == "" || len(label) > 32 {
		return Slot{}, &Error{Op: op, Err: errors.New("a token's label has 1 to 32 bytes")}
	}
	before, err := m.Slots(ctx)
	if err != nil {
		return Slot{}, err
	}
	i := slices.IndexFunc(before, func(s Slot) bool { return s.ID == slot.ID })
	switch {
	case i < 0:
		return Slot{}, &Error{Op: op, Err: fmt.Errorf("%w: slot %d", ErrNoToken, slot.ID)}
	case before[i].Initialized:
		return Slot{}, &Error{Op: op, Err: fmt.Errorf("the token in slot %d is initialized (serial %s, label %q); nothing was changed", slot.ID, before[i].Serial, before[i].Label)}
	case slices.ContainsFunc(before, func(s Slot) bool { return s.Initialized && s.Label == label }):
		return Slot{}, &Error{Op: op, Err: fmt.Errorf("a token labeled %q is there already", label)}
	}
	officer := so.reveal() // now, as in InitPIN
	return bounded(ctx, m, op, func() (Slot, error) {
		if err := m.p11.InitToken(slot.ID, officer, label); err != nil {
			return Slot{}, err
		}
		after, err := m.slots() // a module may number its slots anew now
		if err != nil {
			return Slot{}, err
		}
		return choose(after, "", label)
	})
}

// InitPIN sets the user PIN of a fresh token, as its security officer. It
// refuses a token that has one, and makes one attempt with the officer's PIN: none
// (ErrPINCount) where the token counts failed ones, and ErrPIN if it was refused.
func (m *Module) InitPIN(ctx context.Context, slot Slot, so, user PIN) error {
	return m.officerSets(ctx, slot, so, user, false)
}

// ResetPIN sets a new user PIN on a token that has one, which may be locked, as
// its security officer; else it is as InitPIN.
func (m *Module) ResetPIN(ctx context.Context, slot Slot, so, user PIN) error {
	return m.officerSets(ctx, slot, so, user, true)
}

func (m *Module) officerSets(ctx context.Context, slot Slot, so, user PIN, again bool) error {
	// Read now: by the time that the module answers, a caller who stopped waiting
	// may have wiped them, and what is left would be tried, and set.
	officer, pin := so.reveal(), user.reveal()
	_, err := bounded(ctx, m, "set user PIN", func() (struct{}, error) { return struct{}{}, m.initPIN(slot.ID, officer, pin, again) })
	return err
}

func (m *Module) initPIN(id uint, officer, pin string, again bool) (err error) {
	s, err := m.slot(id)
	if err != nil {
		return err
	}
	if s.UserPINSet != again {
		return fmt.Errorf("whether the token has a user PIN is %t; nothing was changed", s.UserPINSet)
	}
	if s.SOCountLow || s.SOLocked {
		return ErrPINCount
	}
	h, err := m.p11.OpenSession(id, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.p11.CloseSession(h)) }()
	if err := m.p11.Login(h, pkcs11.CKU_SO, officer); err != nil {
		if ClassOf(err) == ClassPIN {
			return sentinel("log in as security officer", ErrPIN, err)
		}
		return err
	}
	defer func() { err = errors.Join(err, m.p11.Logout(h)) }()
	return m.p11.InitPIN(h, pin)
}

// bounded runs an administrative call, which no Go code can cancel, and stops
// waiting for it with ctx or after adminDeadline.
func bounded[T any](ctx context.Context, m *Module, op string, f func() (T, error)) (T, error) {
	return boundedBy(ctx, adminDeadline, m, op, f)
}

func boundedBy[T any](ctx context.Context, most time.Duration, m *Module, op string, f func() (T, error)) (T, error) {
	var zero T
	if err := m.hold(); err != nil {
		return zero, &Error{Op: op, Err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	done := make(chan answer[T], 1)
	go func() {
		v, err := f()
		m.release()
		done <- answer[T]{v, err}
	}()
	select {
	case a := <-done:
		return a.v, fault(op, "", a.err)
	case <-ctx.Done():
		return zero, &Error{Op: op, Err: late(ctx.Err())}
	}
}

// hold keeps the library from being finalized until release, if it is still there.
func (m *Module) hold() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return ErrClosed
	case m.away:
		return ErrDown
	}
	m.inside++
	return nil
}

func (m *Module) release() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inside--
}

// late gives the error for a caller who stopped waiting.
func late(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", ErrDeadline, err)
	}
	return err
}
