package rpc

import (
	"context"
	"crypto/sha256"
	"time"

	"github.com/postern-pki/postern/appliance/link"
	"github.com/postern-pki/postern/protocol/status"
)

var _ status.Source = (*Authority)(nil)

// List implements [status.Source].
func (a *Authority) List(ctx context.Context, issuer string, have [sha256.Size]byte) (status.List, error) {
	e := link.Sized(128)
	e.String(issuer)
	e.Bytes(have[:])
	d, err := a.c.Call(ctx, verbList, e)
	if err != nil {
		return status.List{}, fromFault(err)
	}
	l := decodeList(d)
	return l, d.Err()
}

// Answer implements [status.Source].
func (a *Authority) Answer(ctx context.Context, issuer string, id status.CertID) (status.Answer, error) {
	e := link.Sized(256)
	encodeQuestion(e, question{issuer, id})
	d, err := a.c.Call(ctx, verbAnswer, e)
	if err != nil {
		return status.Answer{}, fromFault(err)
	}
	out := decodeStatusAnswer(d)
	return out, d.Err()
}

// Malformed implements [status.Source].
func (a *Authority) Malformed(ctx context.Context, issuer string) error {
	e := link.Sized(64)
	e.String(issuer)
	if _, err := a.c.Call(ctx, verbMalformed, e); err != nil {
		return fromFault(err)
	}
	return nil
}

// statusVerbs adds what the devices' gate may ask about certificates.
func (v AuthorityVerbs) statusVerbs(table map[link.Verb]link.Handler) {
	if v.Status == nil {
		return
	}
	table[verbList] = link.Handler{Do: func(ctx context.Context, d *link.Decoder, out *link.Encoder) error {
		var have [sha256.Size]byte
		name := d.String(maxName)
		d.Fixed(have[:])
		if err := d.Err(); err != nil {
			return err
		}
		l, err := v.Status.List(ctx, name, have)
		if err != nil {
			return toFault(err)
		}
		encodeList(out, l)
		return nil
	}}
	table[verbAnswer] = link.Handler{Do: func(ctx context.Context, d *link.Decoder, out *link.Encoder) error {
		q := decodeQuestion(d)
		if err := d.Err(); err != nil {
			return err
		}
		a, err := v.Status.Answer(ctx, q.Issuer, q.ID)
		if err != nil {
			return toFault(err)
		}
		encodeStatusAnswer(out, a)
		return nil
	}}
	table[verbMalformed] = link.Handler{Do: func(ctx context.Context, d *link.Decoder, _ *link.Encoder) error {
		name := d.String(maxName)
		if err := d.Err(); err != nil {
			return err
		}
		if err := v.Status.Malformed(ctx, name); err != nil {
			return toFault(err)
		}
		return nil
	}}
}

// A question is what the devices' gate asks about a certificate.
type question struct {
	Issuer string
	ID     status.CertID
}

func encodeQuestion(e *link.Encoder, q question) {
	e.String(q.Issuer)
	e.Uint(uint64(q.ID.Hash))
	e.Bytes(q.ID.NameHash)
	e.Bytes(q.ID.KeyHash)
	e.String(q.ID.Serial)
}

func decodeQuestion(d *link.Decoder) question {
	return question{d.String(maxName), status.CertID{Hash: decodeHash(d), NameHash: d.Bytes(64), KeyHash: d.Bytes(64), Serial: d.String(64)}}
}

func encodeStatusAnswer(e *link.Encoder, a status.Answer) {
	e.Bytes(a.DER)
	e.Int(a.ThisUpdate.Unix())
	e.Int(a.NextUpdate.Unix())
}

func decodeStatusAnswer(d *link.Decoder) status.Answer {
	return status.Answer{DER: d.Bytes(maxCRL), ThisUpdate: time.Unix(d.Int(), 0).UTC(), NextUpdate: time.Unix(d.Int(), 0).UTC()}
}

func encodeList(e *link.Encoder, l status.List) {
	encodeStatusAnswer(e, l.Answer)
	e.Uint(l.Number)
}

func decodeList(d *link.Decoder) status.List {
	return status.List{Answer: decodeStatusAnswer(d), Number: d.Uint()}
}
