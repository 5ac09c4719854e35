package hsm

import (
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"
)

// What can go wrong, for errors.Is. An error of the token itself is an [*Error]
// with its return value in Code.
var (
	ErrModule       = errors.New("the PKCS#11 module cannot be used")
	ErrInUse        = errors.New("the module or token is already open in this process")
	ErrNoToken      = errors.New("no such token")
	ErrPIN          = errors.New("the token did not take the PIN; it is not tried again")
	ErrPINCount     = errors.New("the token counts failed logins; not trying the PIN")
	ErrNoKey        = errors.New("no such key pair")
	ErrNoData       = errors.New("no such data object")
	ErrData         = errors.New("a data object that cannot be kept")
	ErrKeyExists    = errors.New("the label is taken on the token")
	ErrKeyChanged   = errors.New("the token now holds another key under this name")
	ErrTokenChanged = errors.New("the slot now holds another token")
	ErrDeadline     = errors.New("the token did not answer in time")
	ErrBusy         = errors.New("no session became free in time")
	ErrHung         = errors.New("a call is stuck inside the PKCS#11 module; end this process")
	ErrDown         = errors.New("the token is away; it is being looked for")
	ErrClosed       = errors.New("the token is closed")
	ErrPurpose      = errors.New("the key is not for this use")
	ErrAlgorithm    = errors.New("algorithm not supported for this key")
	ErrDigest       = errors.New("digest length does not fit the hash")
	ErrCiphertext   = errors.New("ciphertext does not fit the key")
	ErrMaybeUsed    = errors.New("the token failed with the key in use: it may have signed")
	ErrOwnSignature = errors.New("the token's signature does not verify")
	ErrProof        = errors.New("a proof does not hold")
)

// A CKR is a return value of PKCS#11 (PKCS #11 v2.40, section 5.1); zero is none.
type CKR uint

// String returns the name in the standard, or the number if it has none.
func (c CKR) String() string {
	switch uint(c) {
	case pkcs11.CKR_OK:
		return "CKR_OK"
	case pkcs11.CKR_ACTION_PROHIBITED: // the binding has no name for it
		return "CKR_ACTION_PROHIBITED"
	}
	text := pkcs11.Error(c).Error() // "pkcs11: 0xA0: CKR_PIN_INCORRECT"
	if i := strings.LastIndex(text, "CKR_"); i >= 0 {
		return text[i:]
	}
	return fmt.Sprintf("CKR 0x%X", uint(c))
}

// A Class says what a return value asks the caller to do.
type Class int

// The classes. The zero class needs nothing: the call itself was refused.
const (
	ClassOther   Class = iota // a refusal that says nothing about session, login or module
	ClassSession              // open another session and try once more
	ClassKey                  // log in again, find the key again and try once more
	ClassModule               // the module or the device is in trouble: load it again, with back-off
	ClassPIN                  // never try again
)

// String returns the class in lower case.
func (c Class) String() string {
	switch c {
	case ClassSession:
		return "session"
	case ClassKey:
		return "key"
	case ClassModule:
		return "module"
	case ClassPIN:
		return "pin"
	default:
		return "other"
	}
}

// Class returns the class of a return value.
func (c CKR) Class() Class {
	switch uint(c) {
	case pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED,
		pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_OPERATION_NOT_INITIALIZED:
		return ClassSession
	case pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_USER_NOT_LOGGED_IN:
		return ClassKey
	case pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT,
		pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED,
		pkcs11.CKR_SLOT_ID_INVALID:
		return ClassModule
	case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE,
		pkcs11.CKR_PIN_EXPIRED, pkcs11.CKR_PIN_LOCKED:
		return ClassPIN
	default:
		return ClassOther
	}
}

// An Error is a failed operation. Code is the token's own answer, zero if the
// token was not asked or did not answer; then Err is one of the sentinels above
// or a context's error.
type Error struct {
	Op   string // "sign", "login", ...
	Key  string // the key's label, if one was meant
	Code CKR
	Err  error
}

// Error says what failed and why.
func (e *Error) Error() string {
	s := "hsm: " + e.Op
	if e.Key != "" {
		s += fmt.Sprintf(" %q", e.Key)
	}
	switch {
	case e.Err != nil && e.Code != 0:
		return fmt.Sprintf("%s: %v (%v)", s, e.Err, e.Code)
	case e.Err != nil:
		return fmt.Sprintf("%s: %v", s, e.Err)
	default:
		return fmt.Sprintf("%s: %v", s, e.Code)
	}
}

// Unwrap returns the sentinel or the cause.
func (e *Error) Unwrap() error { return e.Err }

// Class returns the class of the token's answer.
func (e *Error) Class() Class { return e.Code.Class() }

// CodeOf returns the token's return value in err's chain.
func CodeOf(err error) (CKR, bool) {
	if e, ok := errors.AsType[pkcs11.Error](err); ok {
		return CKR(e), true
	}
	if e, ok := errors.AsType[*Error](err); ok && e.Code != 0 {
		return e.Code, true
	}
	return 0, false
}

// ClassOf returns the class of the token's return value in err's chain.
func ClassOf(err error) Class {
	code, _ := CodeOf(err)
	return code.Class()
}

// fault wraps err, which may be nil, as a failure of op. What is a [*Error]
// already stays as it is, and a bare return value of the token becomes a Code.
func fault(op, key string, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		if e.Key != "" || key == "" {
			return err
		}
		return &Error{Op: e.Op, Key: key, Code: e.Code, Err: e.Err}
	}
	var bare pkcs11.Error
	if errors.As(err, &bare) {
		return &Error{Op: op, Key: key, Code: CKR(bare)}
	}
	return &Error{Op: op, Key: key, Err: err}
}

// sentinel wraps a failure that has both a name of ours and a code of the token's.
func sentinel(op string, name, cause error) error {
	code, _ := CodeOf(cause)
	return &Error{Op: op, Code: code, Err: name}
}

// lasting reports whether err is beyond repair.
func lasting(err error) bool {
	return errors.Is(err, ErrKeyChanged) || errors.Is(err, ErrTokenChanged) || errors.Is(err, ErrPIN) || errors.Is(err, ErrPINCount)
}

// An attempted is a call that must be refused, and the refusals that prove it;
// another error, such as a mechanism that the token does not have, proves nothing.
type attempted struct {
	name, call string
	refusals   []uint
	try        try
}

func (a attempted) judge(err error) Proof {
	p := Proof{Name: a.name, Tried: a.call}
	p.Code, _ = CodeOf(err)
	for _, r := range a.refusals {
		if uint(p.Code) == r {
			p.Holds = true
		}
	}
	switch {
	case err == nil:
		p.Say = "the token did it"
	case p.Holds:
		p.Say = "refused with " + p.Code.String()
	case errors.Is(err, errNoWrapper):
		p.Say = "could not be tried: the token makes no AES key to wrap with: " + p.Code.String()
	default:
		p.Say = "failed with " + p.Code.String() + ", which is no refusal of this"
	}
	return p
}

var errNoWrapper = errors.New("no wrapping key")
