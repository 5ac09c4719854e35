// Package hsm holds the appliance's keys on a PKCS#11 token and uses them as
// [crypto.Signer] and [crypto.Decrypter]. Nothing above it knows PKCS#11.
//
// # What a caller may rely on
//
// A [Key] was found once, with its public half, and the token was asked for each
// attribute that the key's [Purpose] fixes; a difference is an error and no key.
// Each operation runs in a session of its own, has a deadline, and answers its
// caller by then, also if the module never does. A session that failed is not
// used again; a lost session, login or object handle is repaired once for each
// operation, and a key that was found again must have the public key that it
// had. A signature leaves only after it was verified here. A PIN is tried once:
// never again after it was refused, nor on a token whose flags say that somebody
// gave a wrong one.
//
// A token that was lost (a dead server, a device that was pulled out, a library in trouble)
// is looked for until it is back, with growing pauses: the module is initialized anew,
// unless another token on it works, there is one login, and every key is found
// and compared again. Meanwhile callers get ErrDown at once. That a token is lost
// is not taken from one failed call, which a stranger's ciphertext can bring
// about: it takes a probe that fails too, or three failures in a row of operations
// on input of our own.
//
// Decrypt opens PKCS#1 v1.5 and OAEP key transport without becoming an oracle: raw RSA
// in the token, constant-time unpadding here, a random key for whatever does not unpad.
//
// A Token, its Keys and a Module are safe for concurrent use.
//
// # What it does not protect against
//
// A process that holds an open Token can use its keys; what may be signed is
// the caller's to decide. The PIN stays in memory, to log in again, and the Go
// runtime, the binding and the module make copies that cannot be wiped. A call that is
// stuck inside the module cannot be canceled: [Token.Hung] and [Token.Healthy] tell of
// it, and only ending the process helps. The library stays mapped: one that needs to be
// loaded again altogether needs a new process too.
package hsm

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"
	"go.uber.org/zap"
)

// defaultDeadline is the longest that one operation may take: RSA-4096 takes
// 6 ms in software and some hundred on a loaded device.
const defaultDeadline = 5 * time.Second

// A Config names a token and how it is used.
type Config struct {
	Module   string // absolute path of the PKCS#11 library
	Serial   string // of the token; preferred, as labels can repeat
	Label    string // of the token; compared too if both are given
	PIN      PINSource
	Sessions int           // 0: twice the cores; more gains nothing and moves the queue into the library
	Deadline time.Duration // of one operation; 0: 5 s
	Log      *zap.Logger   // nil: none
}

// Stats counts what was asked of the token since it was opened.
type Stats struct {
	Sign         uint64 // C_Sign calls
	Decrypt      uint64 // C_Decrypt calls
	Find         uint64 // searches for a key
	Login        uint64 // C_Login calls
	Sessions     uint64 // sessions opened
	Dropped      uint64 // sessions closed after an error
	Retried      uint64 // operations tried once more after a repair
	Overdue      uint64 // calls that outlived their deadline
	Busy         uint64 // callers that got no session in time
	OwnSignature uint64 // signatures that did not verify, and did not leave
	Lost         uint64 // times that the token was lost
	Reloads      uint64 // times that the module was initialized again for it
}

// A Token is an open, logged-in token.
type Token struct {
	module *Module
	owned  bool                 // Close closes the module too
	slot   atomic.Pointer[Slot] // another one after the token came back elsewhere
	config Config
	pin    PIN
	log    *zap.Logger

	pool    chan *session // free ones; its capacity bounds the calls inside the module
	closing chan struct{}
	once    sync.Once
	hung    atomic.Int64  // calls beyond their deadline that are still in the module
	late    chan struct{} // closed at the first call beyond its deadline
	first   sync.Once
	data    sync.Mutex // held while data objects are looked at or replaced

	login  sync.Mutex // held while logging in; guards anchor
	anchor pkcs11.SessionHandle
	logins atomic.Uint64 // grows with each login; a key handle is good for one value

	fatal   atomic.Pointer[Error] // set once: nothing is tried any more
	down    atomic.Pointer[Error] // why it is being looked for
	trouble atomic.Pointer[Error] // the module's last error, until a call succeeds
	wrong   atomic.Pointer[Error] // a signature that did not verify, until one does
	epoch   atomic.Pointer[epoch]

	strikes   atomic.Int64  // failures in a row
	forgeries atomic.Int64  // wrong signatures in a row
	vague     atomic.Int64  // logins in a row that failed and did not say why
	doubts    atomic.Uint64 // failures that ask for a probe
	checking  atomic.Bool   // somebody is probing
	level     int           // of the delay; this and the next belong to seek
	back      time.Time     // when it was found last

	keysMu sync.Mutex
	keys   map[string]*Key // that were found, to be found again

	stats counters
}

type counters struct {
	sign, decrypt, find, login, sessions, dropped, retried, overdue, busy, ownSignature, lost, reloads atomic.Uint64
}

// Open loads the module, finds the token and logs in: one attempt, never a
// retry. It gives ErrModule, ErrInUse, ErrNoToken, ErrPIN, or ErrPINCount if the
// token's flags say that a wrong PIN was given before.
func Open(ctx context.Context, c Config) (*Token, error) {
	m, err := Load(c.Module)
	if err != nil {
		return nil, err
	}
	t, err := m.Open(ctx, c)
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	t.owned = true
	return t, nil
}

// Open opens a token on a loaded module, as the function [Open] does. A token
// is open once: its login belongs to the process. c.Module may be empty.
func (m *Module) Open(ctx context.Context, c Config) (*Token, error) {
	if c.Module != "" && c.Module != m.path {
		return nil, &Error{Op: "open token", Err: fmt.Errorf("%w: %s is loaded, %s is configured", ErrModule, m.path, c.Module)}
	}
	slot, err := m.Find(ctx, c.Serial, c.Label)
	if err != nil {
		return nil, err
	}
	if err := m.reserve(slot); err != nil {
		return nil, err
	}
	t, err := m.openSlot(ctx, c, slot)
	if err != nil {
		m.unreserve(slot)
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open[slot.name()] = t
	return t, nil
}

func (m *Module) openSlot(ctx context.Context, c Config, slot Slot) (*Token, error) {
	if err := pinUsable(slot); err != nil {
		return nil, err
	}
	if c.PIN == nil {
		return nil, &Error{Op: "open token", Err: errors.New("no source for the PIN is configured")}
	}
	pin, err := c.PIN(ctx)
	if err != nil {
		return nil, fmt.Errorf("hsm: open token: %w", err)
	}
	if c.Deadline <= 0 {
		c.Deadline = defaultDeadline
	}
	if c.Sessions <= 0 {
		c.Sessions = 2 * runtime.GOMAXPROCS(0)
	}
	if slot.MaxSessions > 1 {
		c.Sessions = max(1, min(c.Sessions, slot.MaxSessions-2)) // one is the anchor, one for data objects
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	t := &Token{
		module: m, config: c, pin: pin, keys: map[string]*Key{},
		log:  c.Log.With(zap.String("token", slot.Label), zap.String("serial", slot.Serial)),
		pool: make(chan *session, c.Sessions), closing: make(chan struct{}), late: make(chan struct{}),
	}
	t.slot.Store(&slot)
	t.epoch.Store(&epoch{over: make(chan struct{})})
	for range c.Sessions {
		t.pool <- &session{}
	}
	ctx, cancel := context.WithTimeout(ctx, adminDeadline)
	defer cancel()
	_, err = bounded(ctx, m, "log in", func() (struct{}, error) {
		err := t.firstLogin(ctx)
		if err != nil {
			pin.Wipe() // here, where it is known that nobody uses it any more
		}
		return struct{}{}, err
	})
	if err != nil {
		return nil, err
	}
	t.log.Info("token opened", zap.Int("sessions", c.Sessions), zap.Duration("deadline", c.Deadline))
	return t, nil
}

// examineDeadline bounds an examination; some devices take long to make an RSA key.
const examineDeadline = 5 * time.Minute

// Examine has look use the library itself, for a diagnosis: in a session that can write
// and is logged in if pin is not nil, by the rules of [Module.Open]. The session
// ends with it, and with that the login and every object of the session. look runs in another
// goroutine, and may outlive its caller.
func (m *Module) Examine(ctx context.Context, slot Slot, pin PINSource, look func(p *pkcs11.Ctx, h pkcs11.SessionHandle) error) error {
	secret := ""
	if pin != nil {
		if err := pinUsable(slot); err != nil {
			return err
		}
		p, err := pin(ctx)
		if err != nil {
			return fmt.Errorf("hsm: examine token: %w", err)
		}
		secret = p.reveal()
		p.Wipe()
	}
	if err := m.reserve(slot); err != nil {
		return err
	}
	defer m.unreserve(slot)
	_, err := boundedBy(ctx, examineDeadline, m, "examine token", func() (_ struct{}, err error) {
		h, err := m.p11.OpenSession(slot.ID, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			return struct{}{}, err
		}
		defer func() { err = errors.Join(err, m.p11.CloseSession(h)) }()
		if pin != nil {
			if err := m.p11.Login(h, pkcs11.CKU_USER, secret); err != nil {
				if ClassOf(err) == ClassPIN {
					err = sentinel("log in", ErrPIN, err)
				}
				return struct{}{}, err
			}
		}
		return struct{}{}, look(m.p11, h)
	})
	return err
}

// pinUsable refuses where one more wrong PIN could lock the token.
func pinUsable(s Slot) error {
	var why string
	switch {
	case s.Locked:
		why = "the user PIN is locked; its security officer has to set a new one"
	case s.FinalTry:
		why = "one more wrong PIN locks it; log in once with the right PIN by the vendor's tool (pkcs11-tool --login) to clear the count"
	case s.CountLow:
		why = "a wrong PIN was given since the last login; find out by whom, then log in once with the right PIN by the vendor's tool (pkcs11-tool --login) to clear the count"
	case !s.UserPINSet:
		return &Error{Op: "log in", Err: fmt.Errorf("%w: the token %q has no user PIN yet", ErrPIN, s.Label)}
	default:
		return nil
	}
	return &Error{Op: "log in", Err: fmt.Errorf("%w: %s", ErrPINCount, why)}
}

// Slot tells which token this is, as it was when it was opened or found again.
func (t *Token) Slot() Slot { return *t.slot.Load() }

// Stats returns the counters.
func (t *Token) Stats() Stats {
	s := &t.stats
	return Stats{
		Sign: s.sign.Load(), Decrypt: s.decrypt.Load(), Find: s.find.Load(), Login: s.login.Load(),
		Sessions: s.sessions.Load(), Dropped: s.dropped.Load(), Retried: s.retried.Load(),
		Overdue: s.overdue.Load(), Busy: s.busy.Load(), OwnSignature: s.ownSignature.Load(),
		Lost: s.lost.Load(), Reloads: s.reloads.Load(),
	}
}

// Healthy returns nil, or why the token cannot be relied on: ErrPIN, ErrPINCount,
// ErrKeyChanged and ErrTokenChanged last until the process ends, ErrHung until the
// call comes back, ErrDown until the token is found again; ErrOwnSignature until a
// signature verifies, and an [*Error] of ClassModule until an operation or a probe succeeds.
func (t *Token) Healthy() error {
	if e := t.fatal.Load(); e != nil {
		return e
	}
	if t.hung.Load() > 0 {
		return &Error{Op: "health", Err: ErrHung}
	}
	if err := t.usable(); err != nil && !errors.Is(err, ErrClosed) {
		return err
	}
	for _, p := range []*atomic.Pointer[Error]{&t.wrong, &t.trouble} {
		if e := p.Load(); e != nil {
			return e
		}
	}
	return nil
}

// Hung returns a channel that is closed when a call has outlived its deadline, the
// first time, and for good: also if the call comes back, as some do. A process
// that can be started again ends itself then.
func (t *Token) Hung() <-chan struct{} { return t.late }

// Close waits for running operations, at most for one deadline, logs out and,
// if [Open] loaded the module, closes that too. Operations that come later get
// ErrClosed. With a call stuck in the module it returns ErrHung and leaves the
// rest to the end of the process.
func (t *Token) Close() error {
	err := error(nil)
	t.once.Do(func() { err = t.close() })
	return err
}

func (t *Token) close() error {
	close(t.closing)
	defer t.forget()
	ctx, cancel := context.WithTimeout(context.Background(), t.config.Deadline)
	defer cancel()
	var idle []*session
	for range cap(t.pool) {
		select {
		case s := <-t.pool:
			idle = append(idle, s)
		case <-ctx.Done():
			return &Error{Op: "close token", Err: ErrHung} // closing sessions could hang too
		}
	}
	_, err := bounded(ctx, t.module, "close token", func() (struct{}, error) {
		for _, s := range idle {
			t.shut(s)
		}
		t.login.Lock()
		defer t.login.Unlock()
		if t.down.Load() == nil { // else its number may be another token's by now
			_ = t.module.p11.CloseSession(t.anchor) // the last one to close logs out; it may be gone already
		}
		return struct{}{}, nil
	})
	if err != nil {
		return err
	}
	t.module.unreserve(*t.slot.Load())
	if t.owned {
		return t.module.Close()
	}
	return nil
}

// forget wipes the PIN, unless a call is stuck that is logging in with it: one
// that comes back must not try what is left of the PIN. A later login sees that
// the token is closed before it looks at the PIN.
func (t *Token) forget() {
	if t.login.TryLock() {
		defer t.login.Unlock()
		t.pin.Wipe()
	}
}

func (m *Module) reserve(slot Slot) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, taken := m.open[slot.name()]; taken {
		return &Error{Op: "open token", Err: ErrInUse}
	}
	m.open[slot.name()] = nil
	return nil
}

func (m *Module) unreserve(slot Slot) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.open, slot.name())
}

// name is what stays the same when a token is moved to another slot.
func (s Slot) name() string { return s.Serial + "\x00" + s.Label }
