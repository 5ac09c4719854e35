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
	epoch  *epoch // it is dead when the token has another one
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

// call runs f, whose input is ours, in a session of its own.
func call[T any](ctx context.Context, t *Token, op string, f func(h pkcs11.SessionHandle) (T, error)) (T, error) {
	return run(ctx, t, ours, op, f)
}

// run runs f in a session of its own. f runs in another goroutine, because
// nothing can cancel a thread inside C: it must not touch what the caller may
// change after call returned, and gives its result back by value.
//
// A caller whose ctx ends stops waiting, and the session goes back to the pool when
// f returns. A call that outlives the deadline is given up: its place in the pool
// stays taken until it comes back, if ever, so that the number of threads stuck
// inside the module is bounded by the pool, and its session is then closed.
func run[T any](ctx context.Context, t *Token, k kind, op string, f func(h pkcs11.SessionHandle) (T, error)) (T, error) {
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
		t.judge(k, err) // before the session is back: what failed then is not held against the next epoch
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
	now := t.epoch.Load()
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
	case <-now.over:
		return nil, t.usable()
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
	if e := t.down.Load(); e != nil {
		return &Error{Op: "reach token", Code: e.Code, Err: fmt.Errorf("%w: %w", ErrDown, e)}
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
			return v, nil
		case t.usable() != nil: // lost or closed meanwhile: no time for repairs
			return v, err
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
			if _, asked := CodeOf(err); asked {
				t.drop(s, err)
			}
			return v, err
		}
		t.stats.retried.Add(1)
	}
}

func (t *Token) ensure(s *session) error {
	now := t.epoch.Load()
	if s.open && s.epoch == now {
		return nil
	}
	h, err := t.openSession()
	if err != nil {
		return err
	}
	s.handle, s.open, s.epoch = h, true, now
	return nil
}

func (t *Token) openSession() (pkcs11.SessionHandle, error) {
	h, err := t.module.p11.OpenSession(t.slot.Load().ID, pkcs11.CKF_SERIAL_SESSION)
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
	if s.open && s.epoch == t.epoch.Load() { // else its number may be another session's by now
		_ = t.module.p11.CloseSession(s.handle) // it is given up either way
	}
	s.handle, s.open = 0, false
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
	was := t.slot.Load()
	now, err := t.module.slot(was.ID)
	if err != nil {
		return err
	}
	if now.Serial != was.Serial || now.Label != was.Label {
		err = &Error{Op: "log in again", Err: ErrTokenChanged}
	} else if err = pinUsable(now); err == nil {
		err = t.logIn(s.handle)
	}
	if e, ok := errors.AsType[*Error](err); ok && lasting(e) {
		t.fail(e) // before the next one who waits for the lock
	}
	if err != nil {
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

// logIn makes one attempt with the PIN. A refusal is the last one, and so is a failure that
// does not say why, when it comes again: it may be what the token calls a wrong PIN.
// The caller holds t.login, and looked at the token's flags.
func (t *Token) logIn(h pkcs11.SessionHandle) error {
	const op = "log in again"
	select {
	case <-t.closing: // the PIN is wiped, or about to be
		return ErrClosed
	default:
	}
	t.stats.login.Add(1)
	err := t.module.p11.Login(h, pkcs11.CKU_USER, t.pin.reveal())
	code, _ := CodeOf(err)
	switch {
	case err == nil || uint(code) == pkcs11.CKR_USER_ALREADY_LOGGED_IN:
		t.vague.Store(0)
		return nil
	case code.Class() == ClassPIN:
		return sentinel(op, ErrPIN, err)
	case code.Class() == ClassSession, code.Class() == ClassModule && uint(code) != pkcs11.CKR_GENERAL_ERROR && uint(code) != pkcs11.CKR_FUNCTION_FAILED:
		return err // the token did not get as far as the PIN
	case t.vague.Add(1) >= vagueLogins:
		return sentinel(op, ErrPIN, err)
	default:
		return err
	}
}
