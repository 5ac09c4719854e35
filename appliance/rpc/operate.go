package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
)

// Bounds of a [Call] and an [Answer], in octets. A codec refuses more; the gate
// leaves out what does not fit and says so in [Call.Fault].
const (
	MaxBody   = 4 << 20  // holds a batch of challenges
	MaxPath   = 8 << 10  // of Path, and of Query
	MaxMethod = 64       // the longest that is known has 17
	MaxActor  = 256      // of each field of an Actor
	MaxAnswer = 16 << 20 // holds the records of a request
)

// ErrMessage is returned for octets that are no message of the expected type, and
// for a message that is beyond its bounds.
var ErrMessage = errors.New("rpc: not a message")

// An Actor is who asks, as the gate found out: Kind is operator, ID is "uid:" and
// the user's number, or "key:" and the hex SHA-256 of the SubjectPublicKeyInfo of
// the certificate that the handshake verified. Source is local, or an address.
type Actor struct{ Kind, ID, Source string }

// A Fault says why a call is not whole.
type Fault byte

// The faults of a call, which comes without its body then. TooLarge: a part is
// beyond its bound, and cut. Broken: the body did not come whole. CrossSite: another
// site sent it, through an operator's browser.
const (
	Whole Fault = iota
	TooLarge
	Broken
	CrossSite
)

// A Call is one request of an operator. Path is without escapes, Query with them.
type Call struct {
	Actor   Actor
	Allowed bool // the gate knows who this is; what they may do is not its to say
	Fault   Fault
	Method  string
	Path    string
	Query   string
	Body    []byte
}

// An Answer is a status of HTTP and a body of JSON.
type Answer struct {
	Code int // 100 to 599
	Body []byte
}

// An Operator carries out operators' calls. An error means that nobody knows
// whether the call was carried out; a refusal is an Answer.
type Operator interface {
	Operate(ctx context.Context, c Call) (Answer, error)
}

// AppendBinary appends the call's form on a link: Allowed and Fault in an octet
// each, then kind, id, source, method, path, query and body, each after its length
// in four octets, most significant first.
func (c Call) AppendBinary(b []byte) ([]byte, error) {
	allowed := byte(0)
	if c.Allowed {
		allowed = 1
	}
	if c.Fault > CrossSite {
		return nil, fmt.Errorf("%w: fault %d", ErrMessage, c.Fault)
	}
	b = append(b, allowed, byte(c.Fault))
	for i, part := range [...]string{c.Actor.Kind, c.Actor.ID, c.Actor.Source, c.Method, c.Path, c.Query} {
		if len(part) > callBounds[i] {
			return nil, fmt.Errorf("%w: part %d of a call has %d octets, more than %d", ErrMessage, i, len(part), callBounds[i])
		}
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(part))), part...)
	}
	if len(c.Body) > MaxBody {
		return nil, fmt.Errorf("%w: a body of %d octets", ErrMessage, len(c.Body))
	}
	return append(binary.BigEndian.AppendUint32(b, uint32(len(c.Body))), c.Body...), nil
}

// callBounds are those of a call's parts, in their order on the link.
var callBounds = [...]int{MaxActor, MaxActor, MaxActor, MaxMethod, MaxPath, MaxPath}

// DecodeCall reads what [Call.AppendBinary] wrote, and nothing else. The body is a
// part of data, which the caller no longer changes.
func DecodeCall(data []byte) (Call, error) {
	if len(data) < 2 || data[0] > 1 || Fault(data[1]) > CrossSite {
		return Call{}, fmt.Errorf("%w: a call's head", ErrMessage)
	}
	c := Call{Allowed: data[0] == 1, Fault: Fault(data[1])}
	rest, err := data[2:], error(nil)
	for i, to := range [...]*string{&c.Actor.Kind, &c.Actor.ID, &c.Actor.Source, &c.Method, &c.Path, &c.Query} {
		var part []byte
		if part, rest, err = cut(rest, callBounds[i]); err != nil {
			return Call{}, err
		}
		*to = string(part)
	}
	if c.Body, rest, err = cut(rest, MaxBody); err != nil {
		return Call{}, err
	}
	if len(rest) > 0 {
		return Call{}, fmt.Errorf("%w: %d octets after a call", ErrMessage, len(rest))
	}
	return c, nil
}

// AppendBinary appends the answer's form on a link: the code in two octets, then
// the body after its length in four.
func (a Answer) AppendBinary(b []byte) ([]byte, error) {
	if a.Code < 100 || a.Code > 599 || len(a.Body) > MaxAnswer {
		return nil, fmt.Errorf("%w: an answer %d of %d octets", ErrMessage, a.Code, len(a.Body))
	}
	b = binary.BigEndian.AppendUint16(b, uint16(a.Code))
	return append(binary.BigEndian.AppendUint32(b, uint32(len(a.Body))), a.Body...), nil
}

// DecodeAnswer reads what [Answer.AppendBinary] wrote, and nothing else. The body
// is a part of data, which the caller no longer changes.
func DecodeAnswer(data []byte) (Answer, error) {
	if len(data) < 2 {
		return Answer{}, fmt.Errorf("%w: an answer's head", ErrMessage)
	}
	a := Answer{Code: int(binary.BigEndian.Uint16(data))}
	body, rest, err := cut(data[2:], MaxAnswer)
	switch {
	case err != nil:
		return Answer{}, err
	case len(rest) > 0:
		return Answer{}, fmt.Errorf("%w: %d octets after an answer", ErrMessage, len(rest))
	case a.Code < 100 || a.Code > 599:
		return Answer{}, fmt.Errorf("%w: an answer %d", ErrMessage, a.Code)
	}
	a.Body = body
	return a, nil
}

// cut takes a part of at most so many octets off the front; nil if it is empty.
func cut(data []byte, most int) (part, rest []byte, err error) {
	if len(data) < 4 {
		return nil, nil, fmt.Errorf("%w: it ends in a length", ErrMessage)
	}
	n := uint64(binary.BigEndian.Uint32(data))
	data = data[4:]
	if n > uint64(most) || n > uint64(len(data)) {
		return nil, nil, fmt.Errorf("%w: a part of %d octets", ErrMessage, n)
	}
	if n == 0 {
		return nil, data, nil
	}
	return data[:n:n], data[n:], nil
}
