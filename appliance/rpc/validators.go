package rpc

import (
	"context"
	"fmt"
	"io"

	"github.com/postern-pki/postern/appliance/link"
)

// verbValidate is the courier's, and for the authority's link alone.
const verbValidate link.Verb = 67

// Bounds of a question to a validator, and of its answer, in octets. A challenge of
// an MDM has kilobytes.
const (
	maxValidator = 128
	maxChallenge = 32 << 10
	maxSentence  = 1 << 10
	maxVerdict   = 32
)

// A Question is what a validator is asked or told about one request. It holds what
// only the validator may see: it prints as nothing.
type Question struct {
	Occasion, Validator, Profile, Transaction, Request string

	Challenge   []byte // nil: none that is this validator's
	CSR         []byte // DER
	Bare        bool   // the CSR is without challenge and signature
	Certificate []byte // DER
	Issuer      string
	Why         string
}

// Format implements [fmt.Formatter], for every verb.
func (Question) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[redacted]") }

// A Verdict is what a validator said.
type Verdict struct{ Verdict, Code, Say string }

// Validators puts a question to the validator that it names.
type Validators interface {
	Validate(ctx context.Context, q Question) (Verdict, error)
}

// Validate implements [Validators].
func (c *Courier) Validate(ctx context.Context, q Question) (Verdict, error) {
	e := link.Sized(512 + len(q.Challenge) + len(q.CSR) + len(q.Certificate))
	encodeAsked(e, q)
	d, err := c.c.Call(ctx, verbValidate, e)
	if err != nil {
		return Verdict{}, fromFault(err)
	}
	v := decodeVerdict(d)
	return v, d.Err()
}

// validate is the handler of verbValidate.
func validate(v Validators) link.Handler {
	return link.Handler{Do: func(ctx context.Context, d *link.Decoder, out *link.Encoder) error {
		q := decodeAsked(d)
		if err := d.Err(); err != nil {
			return err
		}
		a, err := v.Validate(ctx, q)
		if err != nil {
			return toFault(err)
		}
		encodeVerdict(out, a)
		return nil
	}}
}

func encodeAsked(e *link.Encoder, q Question) {
	for _, s := range [...]string{q.Occasion, q.Validator, q.Profile, q.Transaction, q.Request} {
		e.String(s)
	}
	e.Bytes(q.Challenge)
	e.Bytes(q.CSR)
	e.Bool(q.Bare)
	e.Bytes(q.Certificate)
	e.String(q.Issuer)
	e.String(q.Why)
}

func decodeAsked(d *link.Decoder) Question {
	return Question{
		Occasion: d.String(maxValidator), Validator: d.String(maxValidator), Profile: d.String(maxValidator),
		Transaction: d.String(maxPart), Request: d.String(maxValidator),
		Challenge: d.Bytes(maxChallenge), CSR: d.Bytes(maxPart), Bare: d.Bool(), Certificate: d.Bytes(maxPart),
		Issuer: d.String(maxSentence), Why: d.String(maxSentence),
	}
}

func encodeVerdict(e *link.Encoder, v Verdict) {
	e.String(v.Verdict)
	e.String(v.Code)
	e.String(v.Say)
}

func decodeVerdict(d *link.Decoder) Verdict {
	return Verdict{Verdict: d.String(maxVerdict), Code: d.String(maxValidator), Say: d.String(maxSentence)}
}
