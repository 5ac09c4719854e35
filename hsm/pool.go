package hsm

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"
	"go.uber.org/zap"
)

// A session is a slot of the pool. Whoever took it from the pool owns it.
type session struct {
	handle pkcs11.SessionHandle
	open   bool
}

// The states of a call: it ends by exactly one step out of running.
const (
	running int32 = iota
	finished
	overdue
)

type answer[T any] struct {
	v   T
	err error
}

// call runs f in a session of its own. f runs in another goroutine, because
// nothing can cancel a thread inside C: it must not touch what the caller may
// change after call returned, and gives its result back by value.
//
// A caller whose ctx ends stops waiting, and the session goes back to the pool when
// f returns. A call that outlives the deadline is given up: its place in the pool
// stays taken until it comes back, if ever, so that the number of threads stuck
// inside the module is bounded by the pool, and its session is then closed.
func call[T any](ctx context.Context, t *Token, op string, f func(h pkcs11.SessionHandle) (T, error)) (T, error) {
	var zero T
	s, err := t.take(ctx)
	if err != nil {
		return zero, fault(op, "", err)
	}
	if err := t.module.hold(); err != nil {
		t.pool <- s
		return zero, fault(op, "", err)
	}
	var state atomic.Int32
	gone := make(chan struct{})
	done := make(chan answer[T], 1)
	watch := time.AfterFunc(t.config.Deadline, func() {
		if state.CompareAndSwap(running, overdue) {
			t.giveUp(op)
			close(gone)
		}
	})
	go func() {
		v, err := attempt(t, s, f)
		watch.Stop()
		if !state.CompareAndSwap(running, finished) {
			t.shut(s)
			t.hung.Add(-1)
		}
		t.module.release()
		t.pool <- s
		done <- answer[T]{v, err}
	}()
	select {
	case a := <-done:
		return a.v, fault(op, "", a.err)
	case <-gone:
		return zero, &Error{Op: op, Err: ErrDeadline}
	case <-ctx.Done():
		return zero, &Error{Op: op, Err: late(ctx.Err())}
	}
}

func (t *Token) giveUp(op string) {
	t.hung.Add(1)
	t.stats.overdue.Add(1)
	t.first.Do(func() { close(t.late) })
	t.log.Error("token call beyond its deadline", zap.String("op", op), zap.Duration("deadline", t.config.Deadline))
}

// take gets a session from the pool; it need not be open yet.
func (t *Token) take(ctx context.Context) (*session, error) {
	if err := t.usable(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, late(err)
	}
	select {
	case s := <-t.pool:
		return t.unlessClosing(s)
	default:
	}
	timer := time.NewTimer(t.config.Deadline)
	defer timer.Stop()
	select {
	case s := <-t.pool:
		return t.unlessClosing(s)
	case <-t.closing:
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, late(ctx.Err())
	case <-timer.C:
		t.stats.busy.Add(1)
		return nil, fmt.Errorf("%w: %w", ErrDeadline, ErrBusy)
	}
}

func (t *Token) unlessClosing(s *session) (*session, error) {
	if err := t.usable(); err != nil {
		t.pool <- s
		return nil, err
	}
	return s, nil
}

func (t *Token) usable() error {
	select {
	case <-t.closing:
		return ErrClosed
	default:
	}
	if e := t.fatal.Load(); e != nil {
		return e
	}
	return nil
}

// attempt runs f and repairs what it can, each kind of damage once: a lost
// session by another, a lost login or handle by logging in again (f finds its
// key again when it sees that the login is a new one). Whatever else the token
// answers, the session is not used again: an operation may be left open in it.
func attempt[T any](t *Token, s *session, f func(h pkcs11.SessionHandle) (T, error)) (v T, err error) {
	var reopened, relogged bool
	for {
		seen := t.logins.Load()
		if err = t.ensure(s); err == nil {
			v, err = f(s.handle)
		}
		class := ClassOf(err)
		switch {
		case err == nil:
			t.trouble.Store(nil)
			return v, nil
		case class == ClassSession && !reopened:
			reopened = true
			t.drop(s, err)
		case class == ClassKey && !relogged:
			relogged = true
			if e := t.relogin(s, seen, err); e != nil {
				t.drop(s, e)
				return v, e
			}
		default:
			t.note(err)
			if _, asked := CodeOf(err); asked {
				t.drop(s, err)
			}
			return v, err
		}
		t.stats.retried.Add(1)
	}
}

// note remembers trouble of the module, and what is beyond repair.
func (t *Token) note(err error) {
	e, ok := errors.AsType[*Error](fault("token", "", err))
	if !ok {
		return
	}
	if errors.Is(e, ErrKeyChanged) || errors.Is(e, ErrTokenChanged) || errors.Is(e, ErrPIN) || errors.Is(e, ErrPINCount) {
		if t.fatal.CompareAndSwap(nil, e) {
			t.log.Error("token is out of use", zap.Error(e))
		}
		return
	}
	if e.Class() == ClassModule {
		t.trouble.Store(e)
	}
}

func (t *Token) ensure(s *session) error {
	if s.open {
		return nil
	}
	h, err := t.openSession()
	if err != nil {
		return err
	}
	s.handle, s.open = h, true
	return nil
}

func (t *Token) openSession() (pkcs11.SessionHandle, error) {
	h, err := t.module.p11.OpenSession(t.slot.ID, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return 0, err
	}
	t.stats.sessions.Add(1)
	return h, nil
}

// drop closes a session after an error.
func (t *Token) drop(s *session, why error) {
	if !s.open {
		return
	}
	t.stats.dropped.Add(1)
	code, _ := CodeOf(why)
	t.log.Warn("session dropped", zap.Stringer("code", code))
	t.shut(s)
}

func (t *Token) shut(s *session) {
	if s.open {
		_ = t.module.p11.CloseSession(s.handle) // it is given up either way
		s.handle, s.open = 0, false
	}
}

// firstLogin opens the session that keeps the login alive, and logs in. For a
// caller who has gone it leaves the token as it was.
func (t *Token) firstLogin(ctx context.Context) error {
	t.login.Lock()
	defer t.login.Unlock()
	h, err := t.openSession()
	if err != nil {
		return err
	}
	if err = ctx.Err(); err == nil {
		t.stats.login.Add(1)
		if err = t.module.p11.Login(h, pkcs11.CKU_USER, t.pin.reveal()); err == nil {
			err = ctx.Err()
		}
	}
	if err != nil {
		_ = t.module.p11.CloseSession(h) // the only one: this logs out too
		if ClassOf(err) == ClassPIN {
			return sentinel("log in", ErrPIN, err)
		}
		if code, _ := CodeOf(err); uint(code) == pkcs11.CKR_USER_ALREADY_LOGGED_IN {
			return sentinel("log in", ErrInUse, err) // the PIN was not looked at, so nothing is known about it
		}
		return err
	}
	t.anchor = h
	t.logins.Add(1)
	return nil
}

// relogin logs in again, unless somebody else did since the caller looked. It
// first makes sure that this is the token that was opened, and that its PIN is
// not one that somebody got wrong meanwhile.
func (t *Token) relogin(s *session, seen uint64, cause error) error {
	t.login.Lock()
	defer t.login.Unlock()
	if t.logins.Load() != seen {
		return nil
	}
	if err := t.usable(); err != nil {
		return err
	}
	now, err := t.module.slot(t.slot.ID)
	if err != nil {
		t.note(err)
		return err
	}
	if now.Serial != t.slot.Serial || now.Label != t.slot.Label {
		err := &Error{Op: "log in again", Err: ErrTokenChanged}
		t.note(err)
		return err
	}
	if err := pinUsable(now); err != nil {
		t.note(err)
		return err
	}
	if err := t.usable(); err != nil { // it may have been closed while the module was asked
		return err
	}
	t.stats.login.Add(1)
	err = t.module.p11.Login(s.handle, pkcs11.CKU_USER, t.pin.reveal())
	if code, _ := CodeOf(err); err != nil && uint(code) != pkcs11.CKR_USER_ALREADY_LOGGED_IN {
		if code.Class() == ClassPIN {
			err = sentinel("log in again", ErrPIN, err)
		}
		t.note(err)
		return err
	}
	if _, err := t.module.p11.GetSessionInfo(t.anchor); err != nil {
		h, err := t.openSession()
		if err != nil {
			return err
		}
		t.anchor = h
	}
	t.logins.Add(1)
	code, _ := CodeOf(cause)
	t.log.Warn("logged in again", zap.Stringer("code", code))
	return nil
}
