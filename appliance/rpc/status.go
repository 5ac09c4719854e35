package rpc

import (
	"context"

	"github.com/postern-pki/postern/appliance/link"
	"github.com/postern-pki/postern/hsm/issuer"
)

// SignCRL implements [issuer.StatusSigner].
func (h *Holder) SignCRL(ctx context.Context, name string, tbs []byte, intent uint64) ([]byte, error) {
	e := link.Sized(64 + len(tbs))
	encodeSignCRL(e, signCRLCall{name, tbs, intent})
	d, err := h.call(ctx, verbSignCRL, e)
	if err != nil {
		return nil, err
	}
	sig := d.Bytes(maxSignature)
	return sig, d.Err()
}

// SignOCSP implements [issuer.StatusSigner].
func (h *Holder) SignOCSP(ctx context.Context, name string, data []byte) ([]byte, error) {
	e := link.Sized(64 + len(data))
	e.String(name)
	e.Bytes(data)
	d, err := h.call(ctx, verbSignOCSP, e)
	if err != nil {
		return nil, err
	}
	sig := d.Bytes(maxSignature)
	return sig, d.Err()
}

type signCRLCall struct {
	Name   string
	TBS    []byte
	Intent uint64
}

func encodeSignCRL(e *link.Encoder, c signCRLCall) {
	e.String(c.Name)
	e.Bytes(c.TBS)
	e.Uint(c.Intent)
}

func decodeSignCRL(d *link.Decoder) signCRLCall {
	return signCRLCall{Name: d.String(maxName), TBS: d.Bytes(issuer.MaxCRL), Intent: d.Uint()}
}

type handle = func(ctx context.Context, d *link.Decoder, out *link.Encoder) error

func signCRL(k LogKeys) handle {
	return func(ctx context.Context, d *link.Decoder, out *link.Encoder) error {
		c := decodeSignCRL(d)
		if err := d.Err(); err != nil {
			return err
		}
		return answer(out)(k.SignCRL(ctx, c.Name, c.TBS, c.Intent))
	}
}

func signOCSP(k LogKeys) handle {
	return func(ctx context.Context, d *link.Decoder, out *link.Encoder) error {
		name, data := d.String(maxName), d.Bytes(issuer.MaxResponseData)
		if err := d.Err(); err != nil {
			return err
		}
		return answer(out)(k.SignOCSP(ctx, name, data))
	}
}
