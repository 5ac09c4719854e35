package rpc

import (
	"context"
	"fmt"

	"github.com/postern-pki/postern/appliance/link"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/issuer"
)

// The keyholder's verbs for the authority.
const (
	verbSeen link.Verb = iota + 64
	verbFollow
	verbSignCertificate
	verbSignCheckpoint
	verbFacts
	verbStatus
	verbSignCRL
	verbSignOCSP
)

// Bounds in octets: a to-be-signed certificate, a checkpoint, and what one message
// of lines has at most, beside one line more.
const (
	maxTBS   = 16 << 10
	maxNote  = 8 << 10
	maxLines = 1 << 20
	maxLine  = 64 << 10
)

// A KeyFact is one key of the keyholder, as far as anybody may know it.
type KeyFact struct {
	Name    string // as the configuration has it
	Purpose string
	SPKI    []byte // DER
}

// HolderFacts are what does not change while the keyholder runs.
type HolderFacts struct {
	Serial string // of the token
	Label  string
	Keys   []KeyFact
}

// HolderStatus is how the keyholder is. Refused are what it was asked for and did
// not do since it was asked last, and Lost how many of them it did not keep.
type HolderStatus struct {
	Operations uint64
	Failures   uint64
	Trouble    string // why the token does not work, or ""
	Refused    []string
	Lost       uint64
}

// LogKeys is what the keyholder does for the authority.
type LogKeys interface {
	audit.Marker
	audit.CheckpointSigner
	issuer.Signer
	issuer.StatusSigner
	ManifestSigner
	Facts(ctx context.Context) (HolderFacts, error)
	Status(ctx context.Context) (HolderStatus, error)
}

// KeyholderTable says what each role may ask of the keyholder.
func KeyholderTable(gates GateKeys, k LogKeys) map[string]map[link.Verb]link.Handler {
	table := gateTable(gates)
	table[RoleAuthority] = map[link.Verb]link.Handler{
		verbSignManifest: signManifest(k),
		verbSeen: {Do: func(ctx context.Context, d *link.Decoder, out *link.Encoder) error {
			next, err := k.Next(ctx)
			if err != nil {
				return toFault(err)
			}
			seen, what, err := k.Seen(ctx)
			if err != nil {
				return toFault(err)
			}
			out.Uint(next)
			out.Uint(seen)
			out.String(what)
			return d.Err()
		}},
		verbFollow: {Ordered: true, Do: func(ctx context.Context, d *link.Decoder, _ *link.Encoder) error {
			return follow(ctx, k, d)
		}},
		verbSignCertificate: {Do: func(ctx context.Context, d *link.Decoder, out *link.Encoder) error {
			name, tbs, intent := d.String(maxName), d.Bytes(maxTBS), d.Uint()
			if err := d.Err(); err != nil {
				return err
			}
			return answer(out)(k.SignCertificate(ctx, name, tbs, intent))
		}},
		verbSignCheckpoint: {Do: func(ctx context.Context, d *link.Decoder, out *link.Encoder) error {
			h := decodeHead(d)
			if err := d.Err(); err != nil {
				return err
			}
			return answer(out)(k.SignCheckpoint(ctx, h))
		}},
		verbSignCRL:  {Do: signCRL(k)},
		verbSignOCSP: {Do: signOCSP(k)},
		verbFacts: {Do: func(ctx context.Context, d *link.Decoder, out *link.Encoder) error {
			f, err := k.Facts(ctx)
			if err != nil {
				return toFault(err)
			}
			encodeFacts(out, f)
			return d.Err()
		}},
		verbStatus: {Do: func(ctx context.Context, d *link.Decoder, out *link.Encoder) error {
			s, err := k.Status(ctx)
			if err != nil {
				return toFault(err)
			}
			encodeStatus(out, s)
			return d.Err()
		}},
	}
	return table
}

func follow(ctx context.Context, k LogKeys, d *link.Decoder) error {
	lines, err := decodeLines(d)
	if err != nil {
		f := toFault(fmt.Errorf("%w: %w", ErrLine, err))
		f.Code |= link.CodeMessage
		return f
	}
	if err := k.Follow(ctx, lines); err != nil {
		return toFault(fmt.Errorf("%w: %w", ErrLine, err))
	}
	return nil
}

func encodeLines(lines []audit.Line) *link.Encoder {
	size := 0
	for _, l := range lines {
		size += len(l.Raw)
	}
	e := link.Sized(size + 8*len(lines) + 8)
	e.Uint(uint64(len(lines)))
	for _, l := range lines {
		e.Bytes(l.Raw)
	}
	return e
}

func decodeLines(d *link.Decoder) ([]audit.Line, error) {
	var lines []audit.Line
	for _, raw := range d.List(maxLines, maxLine) {
		l, err := audit.ParseLine(raw)
		if err != nil {
			return nil, err
		}
		lines = append(lines, l)
	}
	return lines, d.Err()
}

func encodeHead(e *link.Encoder, h audit.Head) {
	e.Uint(h.Size)
	e.Bytes(h.Prev[:])
	e.Bytes(h.Root[:])
}

func decodeHead(d *link.Decoder) (h audit.Head) {
	h.Size = d.Uint()
	d.Fixed(h.Prev[:])
	d.Fixed(h.Root[:])
	return h
}

func encodeFacts(e *link.Encoder, f HolderFacts) {
	e.String(f.Serial)
	e.String(f.Label)
	e.Uint(uint64(len(f.Keys)))
	for _, k := range f.Keys {
		e.String(k.Name)
		e.String(k.Purpose)
		e.Bytes(k.SPKI)
	}
}

func decodeFacts(d *link.Decoder) HolderFacts {
	f := HolderFacts{Serial: d.String(maxName), Label: d.String(maxName)}
	for range d.Count(maxList) {
		f.Keys = append(f.Keys, KeyFact{Name: d.String(maxName), Purpose: d.String(maxName), SPKI: d.Bytes(maxPart)})
	}
	return f
}

func encodeStatus(e *link.Encoder, s HolderStatus) {
	e.Uint(s.Operations)
	e.Uint(s.Failures)
	e.String(s.Trouble)
	e.Strings(s.Refused)
	e.Uint(s.Lost)
}

func decodeStatus(d *link.Decoder) HolderStatus {
	return HolderStatus{Operations: d.Uint(), Failures: d.Uint(), Trouble: d.String(maxPart), Refused: d.Strings(maxPart, maxName), Lost: d.Uint()}
}
