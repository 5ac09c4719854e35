// Package link carries calls between two roles of the appliance over a Unix
// socket: frames, a hello that compares versions, deadlines, and who is at the
// other end.
//
// # What a caller may rely on
//
// A [Client] sends a call with its deadline and gets the answer, a [*Fault] of the
// server, or [ErrDown] when there is nobody: it never waits longer than its
// context. Calls are concurrent; what is sent by [Client.Tell] is handled in the
// order in which it was sent, and before any call that was sent after it. A server
// handles only the verbs that it was given for that peer, bounds their number,
// and turns a panic into a fault. A frame that is too long, a message with too
// much or too little in it, and a hello of another version end the connection
// with an error that says so; nothing is allocated for what was only announced
// beyond [MaxFrame].
//
// # What it does not protect against
//
// A link has no encryption: its two ends are processes of one machine, joined by
// the kernel. Which user a peer has is the kernel's word; what the peer then says
// is its own.
package link

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A Verb names what a call asks for. The table of verbs is the messages' own.
type Verb uint8

// Bounds of a link.
const (
	MaxFrame    = 20 << 20         // octets of one message: an auditor's answer is the longest
	maxText     = 1 << 10          // of a fault or of a word in a hello
	maxRunning  = 256              // calls that one connection has under way
	maxConns    = 16               // of one role at one server: one counts, the others come or go
	longestCall = time.Minute      // whatever a caller allows
	writeWithin = 10 * time.Second // a peer that reads nothing for so long is gone
	helloWithin = 5 * time.Second  // of a caller, which has nothing to do before
	// servesWithin is for the hello of a server, which opens its log or its token
	// first: its end of the link is there before it looks at it.
	servesWithin = time.Minute
)

// version is of the frames and of all messages together: the roles are one
// program, and two versions of it do not talk to each other.
const version = 1

// Errors of a link.
var (
	ErrDown     = errors.New("link: the other role is not there")
	ErrGone     = errors.New("link: the other role went away before it answered")
	ErrProtocol = errors.New("link: not what a link says")
	ErrHello    = errors.New("link: the other role does not fit this one")
	ErrTooLong  = errors.New("link: the message is too long")
)

// A Code classifies a fault, so that it can be told from others at the other end.
type Code uint32

// The codes that a link itself uses; the messages have theirs from FirstCode on, as
// bits beside which one of the link's may stand.
const (
	CodeOther    Code = iota // see the text
	CodeRefused              // this verb is not for this link
	CodeBusy                 // too many calls are under way
	CodeDeadline             // the time was over
	CodeCanceled             // the caller gave up
	CodeMessage              // the message could not be read
	FirstCode    Code = 64
)

// A Fault is a call that the other role could not carry out. Text is for the
// journal: it never goes to a device.
type Fault struct {
	Code Code
	Text string
}

// Error implements error.
func (f *Fault) Error() string {
	return fmt.Sprintf("%s (the other role's word, code %d)", f.Text, f.Code)
}

// Is has a fault of the other role's clock count as one of ours.
func (f *Fault) Is(target error) bool {
	return f.Code == CodeDeadline && target == context.DeadlineExceeded || f.Code == CodeCanceled && target == context.Canceled
}

// A Hello is the first message of both ends.
type Hello struct {
	Role   string // who speaks
	Build  string // version of the program
	Config string // digest of the configuration that it was started with
}

func (h Hello) encode(e *Encoder) {
	e.String("postern")
	e.Uint(version)
	e.String(h.Role)
	e.String(h.Build)
	e.String(h.Config)
}

func decodeHello(d *Decoder) (Hello, error) {
	magic, v := d.String(maxText), d.Uint()
	if magic != "postern" || d.bad {
		return Hello{}, fmt.Errorf("%w: no hello", ErrProtocol)
	}
	if v != version {
		return Hello{}, fmt.Errorf("%w: its messages have version %d, ours %d: start all roles from one build", ErrHello, v, version)
	}
	h := Hello{Role: d.String(maxText), Build: d.String(maxText), Config: d.String(maxText)}
	return h, d.Err()
}

// fits compares two ends that have to be of one build and one configuration.
func (h Hello) fits(other Hello) error {
	switch {
	case h.Build != other.Build:
		return fmt.Errorf("%w: %s is of version %q, %s of %q: start all roles from one build", ErrHello, other.Role, other.Build, h.Role, h.Build)
	case h.Config != other.Config:
		return fmt.Errorf("%w: %s was started with another configuration than %s: restart both", ErrHello, other.Role, h.Role)
	}
	return nil
}
