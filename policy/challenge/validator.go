package challenge

import (
	"fmt"
	"io"
)

// The occasions on which a validator hears of a request.
const (
	OccasionCheck  = "check"  // may it have a certificate?
	OccasionIssued = "issued" // it has one, which was not delivered yet
	OccasionFailed = "failed" // it was vouched for, and has none
)

// A Question is what a validator is asked or told about one request. It holds a
// challenge, so it prints and marshals as a [Secret] does.
type Question struct {
	Occasion    string
	Validator   string // its name in the configuration
	Profile     string
	Transaction string // the SCEP transactionID
	Request     string // under which the request stands in the log
	// Challenge is what the device showed, UTF-8, where it is this validator's to
	// judge, and otherwise nil: nobody else's challenge is told to a validator.
	Challenge []byte
	// CSR is DER. With Bare the challenge was taken out of it, and its signature too,
	// so that it is no request that anybody could send on.
	CSR         []byte
	Bare        bool
	Certificate []byte // DER; of OccasionIssued
	Issuer      string // the CA's name, RFC 4514; of OccasionIssued
	Why         string // one sentence; of OccasionFailed
}

// A Verdict is what came of a question.
type Verdict string

// The verdicts. The last three are no answer: they are a fault, and never a word
// about the request.
const (
	Allowed     Verdict = "allowed" // of OccasionIssued and OccasionFailed: it was told
	Refused     Verdict = "refused"
	Unreachable Verdict = "unreachable" // no connection, or it was lost
	TimedOut    Verdict = "timed-out"
	Unreadable  Verdict = "unreadable" // an answer that is none: another status, another form
)

// Answered reports whether the validator said yes or no.
func (v Verdict) Answered() bool { return v == Allowed || v == Refused }

// Bounds on an [Answer], in octets.
const (
	MaxCode = 64
	MaxSay  = 200
)

// An Answer is what a validator said, for the log: no device is told any of it.
type Answer struct {
	Verdict Verdict
	Code    string // the validator's own word for it, or "": letters, digits, - _ and . alone
	Say     string // why, in our words or in its own, printable ASCII
}

// AnswerOf returns an answer within its bounds: what a peer wrote is cut, and
// what is not printable ASCII is left out.
func AnswerOf(v Verdict, code, say string) Answer {
	return Answer{v, keep(code, MaxCode, func(c byte) bool {
		return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '-' || c == '_' || c == '.'
	}), keep(say, MaxSay, func(c byte) bool { return ' ' <= c && c <= '~' })}
}

func keep(s string, most int, ok func(byte) bool) string {
	out := make([]byte, 0, min(len(s), most))
	for i := 0; i < len(s) && len(out) < most; i++ {
		if ok(s[i]) {
			out = append(out, s[i])
		}
	}
	return string(out)
}

// String implements [fmt.Stringer] without what the question holds.
func (Question) String() string { return redacted }

// GoString implements [fmt.GoStringer] without what the question holds.
func (Question) GoString() string { return redacted }

// Format implements [fmt.Formatter] without what the question holds, for every verb.
func (Question) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalText implements [encoding.TextMarshaler] without what the question holds.
func (Question) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// A Credential is what we show to a validator: a token, a password or a key. It can
// not be printed, logged or marshaled by accident; [Credential.Bytes] is the one way
// to see it.
type Credential struct{ open func() []byte }

// NewCredential returns a credential of the octets, which it keeps.
func NewCredential(b []byte) Credential { return Credential{func() []byte { return b }} }

// Bytes returns the octets, nil for the zero value; they are the credential's own.
func (c Credential) Bytes() []byte {
	if c.open == nil {
		return nil
	}
	return c.open()
}

// None reports whether there is no credential.
func (c Credential) None() bool { return len(c.Bytes()) == 0 }

// String implements [fmt.Stringer] without the credential.
func (Credential) String() string { return redacted }

// GoString implements [fmt.GoStringer] without the credential.
func (Credential) GoString() string { return redacted }

// Format implements [fmt.Formatter] without the credential, for every verb.
func (Credential) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalText implements [encoding.TextMarshaler] without the credential.
func (Credential) MarshalText() ([]byte, error) { return []byte(redacted), nil }
