package hsm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"time"

	"github.com/miekg/pkcs11"
	"go.uber.org/zap"
)

// How a loss is found out, and how often what was lost is looked for.
const (
	strikesOut   = 3                      // failures in a row, of what no stranger has a hand in
	probeEvery   = time.Second            // at most
	firstDelay   = 100 * time.Millisecond // before the second attempt; doubled for each further one
	longestDelay = 2 * time.Second
	settled      = 10 * time.Second // a token that is lost again before that is looked for more slowly
	vagueLogins  = 3                // failed logins that do not say why, before the PIN is not tried again
	leastWatch   = 2 * time.Second
)

// An epoch is the time between two losses: its sessions are dead with it.
type epoch struct{ over chan struct{} }

// A kind of call says what its failure tells.
type kind int

const (
	ours    kind = iota // its input is ours
	foreign             // its input is a stranger's: some tokens fail on it with the code of a dead device
	probing
)

// judge draws the conclusions from how a call ended.
func (t *Token) judge(k kind, err error) {
	if err == nil {
		if k != probing {
			t.trouble.Store(nil)
			t.strikes.Store(0)
		}
		return
	}
	e, ok := errors.AsType[*Error](fault("token", "", err))
	switch {
	case !ok:
	case lasting(e):
		t.fail(e)
	case k == probing || e.Class() == ClassOther || e.Class() == ClassPIN:
	case k == foreign:
		t.suspect(e)
	default:
		if e.Class() == ClassModule {
			t.trouble.Store(e)
		}
		if t.strikes.Add(1) >= strikesOut {
			t.lose(e)
		} else {
			t.suspect(e)
		}
	}
}

func (t *Token) fail(e *Error) {
	if t.fatal.CompareAndSwap(nil, e) {
		t.log.Error("token is out of use", zap.Error(e))
	}
}

// forged counts a signature that does not verify.
func (t *Token) forged(err *Error) {
	t.stats.ownSignature.Add(1)
	t.wrong.Store(err)
	t.log.Error("signature of the token does not verify", zap.String("key", err.Key))
	if t.forgeries.Add(1) >= strikesOut {
		t.lose(err)
	}
}

// suspect has somebody find out whether the token is there, and takes it for
// lost if not. One failed call is not enough for that: a stranger may have made it fail.
func (t *Token) suspect(e *Error) {
	t.doubts.Add(1)
	if !t.checking.CompareAndSwap(false, true) {
		return
	}
	go func() {
		seen := t.doubts.Load()
		for {
			asked := t.epoch.Load()
			err := t.probe()
			code, answered := CodeOf(err)
			if class := code.Class(); class != ClassOther && class != ClassPIN {
				if t.epoch.Load() == asked { // else it was lost and found meanwhile
					t.lose(e)
				}
				break
			}
			if !t.pause(probeEvery) || t.usable() != nil {
				break
			}
			if now := t.doubts.Load(); now != seen {
				seen = now
			} else if err == nil || answered {
				t.trouble.Store(nil)
				break
			}
		}
		t.checking.Store(false)
		if t.doubts.Load() != seen && t.usable() == nil {
			t.suspect(e)
		}
	}()
}

// probe asks the token for something that it cannot do without its keys.
func (t *Token) probe() error {
	ctx, cancel := context.WithTimeout(context.Background(), t.config.Deadline)
	defer cancel()
	_, err := run(ctx, t, probing, "probe", func(h pkcs11.SessionHandle) (struct{}, error) {
		if _, err := t.module.p11.GetTokenInfo(t.slot.Load().ID); err != nil {
			return struct{}{}, err
		}
		info, err := t.module.p11.GetSessionInfo(h)
		if err != nil {
			return struct{}{}, err
		}
		if info.State != pkcs11.CKS_RO_USER_FUNCTIONS {
			return struct{}{}, pkcs11.Error(pkcs11.CKR_USER_NOT_LOGGED_IN)
		}
		for _, k := range t.known() {
			if k.spec.Purpose.opens() { // nothing is signed for a probe: a signature is an act
				return struct{}{}, k.opens(h)
			}
		}
		_, err = t.module.p11.GenerateRandom(h, 16)
		return struct{}{}, err
	})
	return err
}

func random32() []byte {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return b
}

// pause waits, and reports false if the token was closed or is beyond repair.
func (t *Token) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return t.fatal.Load() == nil
	case <-t.closing:
		return false
	}
}

// lose ends the epoch: calls are refused with ErrDown from now on, also those that
// wait for a session, and the token is looked for until it is back.
func (t *Token) lose(e *Error) {
	if t.fatal.Load() != nil || !t.down.CompareAndSwap(nil, e) {
		return
	}
	close(t.epoch.Load().over)
	t.stats.lost.Add(1)
	t.log.Error("token lost", zap.Error(e))
	go t.seek()
}

// seek brings the token back, by itself and for as long as it takes. It begins
// when the last call has left the module: one that is stuck there has to be
// ended with the process.
func (t *Token) seek() {
	held := 0
	defer func() {
		for range held {
			t.pool <- &session{}
		}
	}()
	for held < cap(t.pool) {
		select {
		case <-t.pool:
			held++
		case <-t.closing:
			return
		}
	}
	if time.Since(t.back) > settled {
		t.level = 0
	}
	for tries := 1; t.pause(delay(t.level)); tries++ {
		err := t.repair(t.level > 0)
		t.level++
		if err == nil {
			t.found(tries)
			return
		}
		e, ok := errors.AsType[*Error](fault("look for token", "", err))
		switch {
		case !ok || errors.Is(e, ErrClosed):
			return
		case lasting(e):
			t.fail(e)
			return
		}
		t.down.Store(e)
		if tries <= 3 || tries%30 == 0 {
			t.log.Warn("token still away", zap.Int("tries", tries), zap.Error(e))
		}
	}
}

func (t *Token) found(tries int) {
	t.back = time.Now()
	t.epoch.Store(&epoch{over: make(chan struct{})})
	t.trouble.Store(nil)
	t.wrong.Store(nil)
	t.strikes.Store(0)
	t.forgeries.Store(0)
	t.vague.Store(0)
	t.down.Store(nil)
	t.log.Warn("token is back", zap.Int("tries", tries), zap.Uint("slot", t.slot.Load().ID))
}

// delay is the pause before an attempt. The level outlives the loss, so that a token
// that comes and goes is not looked for, and given its PIN, as fast as it fails.
func delay(level int) time.Duration {
	if level == 0 {
		return 0
	}
	return min(longestDelay, firstDelay<<min(level-1, 10))
}

// repair makes one attempt: as the module is, and if that does not help with the
// module initialized anew, which all its tokens feel: not while another one works.
func (t *Token) repair(anew bool) error {
	select {
	case <-t.module.repair:
		defer func() { t.module.repair <- struct{}{} }()
	case <-t.closing:
		return ErrClosed
	}
	alone := !t.module.works(t)
	if !anew || !alone {
		err := t.watched("look for token", t.reconnect)
		if err == nil || lasting(err) || !alone {
			return err
		}
	}
	t.stats.reloads.Add(1)
	if err := t.watched("initialize module again", func() error { return t.module.restart(t.config.Deadline) }); err != nil {
		return err
	}
	return t.watched("look for token", t.reconnect)
}

// watched runs a step of a repair, which may get stuck in the module as any call.
func (t *Token) watched(op string, f func() error) error {
	over := make(chan struct{})
	watch := time.AfterFunc(max(2*t.config.Deadline, leastWatch), func() {
		t.giveUp(op)
		close(over)
	})
	err := f()
	if !watch.Stop() {
		<-over
		t.hung.Add(-1)
	}
	return fault(op, "", err)
}

// works reports whether a token of the module other than t works, as far as it
// is known; if it does not, that is then found out.
func (m *Module) works(t *Token) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	one := false
	for _, o := range m.open {
		switch {
		case o == t:
		case o == nil: // it is being opened
			one = true
		case o.usable() == nil:
			one = true
			o.suspect(&Error{Op: "probe", Err: ErrDown})
		}
	}
	return one
}

// restart finalizes and initializes the library. It stays loaded: to unmap code in which
// the library may have threads of its own would end the process.
func (m *Module) restart(within time.Duration) error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return ErrClosed
	}
	m.away = true // nobody comes in
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.away = false
	}()
	for end := time.Now().Add(within); ; time.Sleep(5 * time.Millisecond) {
		m.mu.Lock()
		n := m.inside
		m.mu.Unlock()
		if n == 0 {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("%w: %d calls of another token are in the module", ErrHung, n)
		}
	}
	_ = m.p11.Finalize() // a library that lost its device answers anything
	err := m.p11.Initialize()
	if code, _ := CodeOf(err); uint(code) == pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED {
		return nil // it was not there any more to be finalized
	}
	return err
}

// reconnect finds the token again, logs in, and finds every key again: the same
// public keys with the same attributes, or no service.
func (t *Token) reconnect() error {
	if err := t.module.hold(); err != nil {
		return err
	}
	defer t.module.release()
	now, err := t.again()
	if err != nil {
		return err
	}
	if err := pinUsable(now); err != nil {
		return err
	}
	t.login.Lock()
	defer t.login.Unlock()
	p11 := t.module.p11
	_ = p11.CloseAllSessions(now.ID) // what is left of ours, and the old login with it
	h, err := p11.OpenSession(now.ID, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return err
	}
	t.stats.sessions.Add(1)
	t.slot.Store(&now)
	t.anchor = h
	if err := t.logIn(h); err != nil {
		return err
	}
	t.logins.Add(1)
	for _, k := range t.known() {
		_, err := k.object(h)
		if err == nil && k.spec.Purpose.opens() {
			err = k.opens(h)
		}
		if err != nil {
			return fault("find key again", k.spec.Label, err)
		}
	}
	return nil
}

// again is the token's slot, which may be another one by now.
func (t *Token) again() (Slot, error) {
	slots, err := t.module.slots()
	if err != nil {
		return Slot{}, err
	}
	was := t.slot.Load()
	for _, s := range slots {
		if s.Initialized && s.name() == was.name() {
			return s, nil
		}
	}
	for _, s := range slots { // a serial alone says little: some makers give all tokens the same
		if s.ID == was.ID && s.Serial == was.Serial {
			return Slot{}, &Error{Op: "look for token", Err: fmt.Errorf("%w: it was initialized anew", ErrTokenChanged)}
		}
	}
	return Slot{}, ErrNoToken
}
