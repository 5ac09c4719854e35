package rpc

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"time"

	"github.com/postern-pki/postern/appliance/link"
	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/status"
)

// The authority's verbs.
const (
	verbService link.Verb = iota + 1
	verbSubmit
	verbReject
	verbOperate
	verbChain
	verbList
	verbAnswer
	verbMalformed
)

// Bounds of what a gate sends and gets, in octets and in numbers. A message of a
// device has at most 64 KiB, so no part of it has more.
const (
	maxName  = 1 << 10
	maxPart  = 64 << 10
	maxList  = 64
	maxCerts = 16
	maxCRL   = issuer.MaxCRL + 4<<10
	// maxGenerations bounds the generations of an issuer; the configuration has fewer.
	maxGenerations = 16
)

// Authority is a gate's view of the authority's process. It implements
// [protocol.Authority]. What a profile offers changes with an operator's act alone, and
// is asked for once a second at most: so much later a gate knows of it.
type Authority struct {
	c        *link.Client
	services *cache[string, protocol.Service]
}

var _ protocol.Authority = (*Authority)(nil)

// NewAuthority connects. The options' Role, Up and Down are set here.
func NewAuthority(o link.ClientOptions) *Authority {
	a := &Authority{services: new(cache[string, protocol.Service])}
	o.Role, o.Down = RoleAuthority, func(error) { a.services.clear() }
	a.c = link.NewClient(o)
	return a
}

// Close ends the link.
func (a *Authority) Close() error { return a.c.Close() }

// Ready waits until the authority answers.
func (a *Authority) Ready(ctx context.Context) error { return a.c.Ready(ctx) }

// Service implements [protocol.Authority].
func (a *Authority) Service(ctx context.Context, profile string) (protocol.Service, error) {
	if s, ok := a.services.get(profile); ok {
		return s, nil
	}
	e := link.Sized(64)
	e.String(profile)
	d, err := a.c.Call(ctx, verbService, e)
	if err != nil {
		return protocol.Service{}, fromFault(err)
	}
	s := decodeService(d)
	if err := d.Err(); err != nil {
		return protocol.Service{}, err
	}
	if len(s.Generations) == 0 {
		return protocol.Service{}, fmt.Errorf("%w: a profile without a CA", ErrMessage)
	}
	a.services.put(profile, s)
	return s, nil
}

// Submit implements [protocol.Authority].
func (a *Authority) Submit(ctx context.Context, r protocol.Request) (protocol.Outcome, error) {
	p := &r.Proof
	e := link.Sized(256 + len(p.SignerCert) + len(p.SignedAttrs) + len(p.Signature) + len(p.Envelope))
	encodeRequest(e, r)
	d, err := a.c.Call(ctx, verbSubmit, e)
	if err != nil {
		return protocol.Outcome{}, fromFault(err)
	}
	out := decodeOutcome(d)
	return out, d.Err()
}

// Reject implements [protocol.Authority].
func (a *Authority) Reject(ctx context.Context, r protocol.Rejected) (string, error) {
	e := link.Sized(512)
	encodeRejected(e, r)
	d, err := a.c.Call(ctx, verbReject, e)
	if err != nil {
		return "", fromFault(err)
	}
	id := d.String(maxName)
	return id, d.Err()
}

// Operate implements [Operator].
func (a *Authority) Operate(ctx context.Context, c Call) (Answer, error) {
	body, err := c.AppendBinary(make([]byte, 0, 1024+len(c.Body)))
	if err != nil {
		return Answer{}, err
	}
	e := link.Sized(len(body))
	e.Raw(body)
	d, err := a.c.Call(ctx, verbOperate, e)
	if err != nil {
		return Answer{}, fromFault(err)
	}
	return DecodeAnswer(d.Rest())
}

// Chain returns the listeners' certificate, whose key the token has: DER, the leaf
// first.
func (a *Authority) Chain(ctx context.Context) ([][]byte, error) {
	d, err := a.c.Call(ctx, verbChain, new(link.Encoder))
	if err != nil {
		return nil, fromFault(err)
	}
	chain := d.List(maxCerts, maxPart)
	if err := d.Err(); err != nil {
		return nil, err
	}
	if len(chain) == 0 {
		return nil, errors.New("rpc: the authority has no certificate for the listeners")
	}
	return chain, nil
}

// AuthorityVerbs are what the authority does for its gates.
type AuthorityVerbs struct {
	Devices protocol.Authority
	Operate func(ctx context.Context, role string, c Call) (Answer, error)
	Chain   func() [][]byte
	Status  status.Source // nil: nobody is told anything about certificates
}

// Table says which gate may ask for what. An operator's call by the devices' gate
// is let through to Operate, which refuses and records it.
func (v AuthorityVerbs) Table() map[string]map[link.Verb]link.Handler {
	chain := link.Handler{Do: func(_ context.Context, d *link.Decoder, out *link.Encoder) error {
		out.List(v.Chain())
		return d.Err()
	}}
	operate := func(role string) link.Handler {
		return link.Handler{Do: func(ctx context.Context, d *link.Decoder, out *link.Encoder) error {
			c, err := DecodeCall(d.Rest())
			if err != nil {
				return err
			}
			a, err := v.Operate(ctx, role, c)
			if err != nil {
				return toFault(err)
			}
			body, err := a.AppendBinary(nil)
			out.Raw(body)
			return err
		}}
	}
	table := map[string]map[link.Verb]link.Handler{
		RoleDevices: {
			verbService: {Do: v.service}, verbSubmit: {Do: v.submit}, verbReject: {Do: v.reject}, verbChain: chain,
			verbOperate: operate(RoleDevices),
		},
		RoleOperators: {verbOperate: operate(RoleOperators), verbChain: chain},
	}
	v.statusVerbs(table[RoleDevices])
	return table
}

func (v AuthorityVerbs) service(ctx context.Context, d *link.Decoder, out *link.Encoder) error {
	profile := d.String(maxName)
	if err := d.Err(); err != nil {
		return err
	}
	s, err := v.Devices.Service(ctx, profile)
	if err != nil {
		return toFault(err)
	}
	encodeService(out, s)
	return nil
}

func (v AuthorityVerbs) submit(ctx context.Context, d *link.Decoder, out *link.Encoder) error {
	r := decodeRequest(d)
	if err := d.Err(); err != nil {
		return err
	}
	o, err := v.Devices.Submit(ctx, r)
	if err != nil {
		return toFault(err)
	}
	encodeOutcome(out, o)
	return nil
}

func (v AuthorityVerbs) reject(ctx context.Context, d *link.Decoder, out *link.Encoder) error {
	r := decodeRejected(d)
	if err := d.Err(); err != nil {
		return err
	}
	id, err := v.Devices.Reject(ctx, r)
	if err != nil {
		return toFault(err)
	}
	out.String(id)
	return nil
}

func encodeRequest(e *link.Encoder, r protocol.Request) {
	e.String(r.Protocol)
	e.String(r.Profile)
	e.String(r.Source)
	e.Int(r.Arrived.UnixNano())
	e.Bytes(r.Proof.SignerCert)
	e.Uint(uint64(r.Proof.Digest))
	e.Bytes(r.Proof.SignedAttrs)
	e.Bytes(r.Proof.Signature)
	e.Bytes(r.Proof.Envelope)
	e.Bytes(r.Proof.ContentKey)
	encodeClient(e, r.Client)
}

func decodeRequest(d *link.Decoder) protocol.Request {
	r := protocol.Request{Protocol: d.String(maxName), Profile: d.String(maxName), Source: d.String(maxName), Arrived: time.Unix(0, d.Int())}
	r.Proof = protocol.Proof{
		SignerCert: d.Bytes(maxPart), Digest: decodeHash(d), SignedAttrs: d.Bytes(maxPart), Signature: d.Bytes(maxPart),
		Envelope: d.Bytes(maxPart), ContentKey: d.Bytes(maxName),
	}
	r.Client = decodeClient(d)
	return r
}

func encodeClient(e *link.Encoder, c protocol.Client) {
	e.String(c.Agent[:min(len(c.Agent), protocol.MaxAgent)])
	e.Uint(uint64(c.Traits))
}

// decodeClient reads traits of any number: who records them leaves out unknown ones.
func decodeClient(d *link.Decoder) protocol.Client {
	return protocol.Client{Agent: d.String(protocol.MaxAgent), Traits: protocol.Traits(d.Uint())}
}

// decodeHash reads the number of a hash; who uses it checks that it is one of its own.
func decodeHash(d *link.Decoder) crypto.Hash { return crypto.Hash(d.Small()) }

func encodeOutcome(e *link.Encoder, o protocol.Outcome) {
	e.String(o.RequestID)
	e.Uint(uint64(o.Status))
	e.List(o.Certificates)
	e.Bytes(o.CRL)
	e.Bool(o.Refusal != nil)
	if o.Refusal != nil {
		e.Uint(uint64(o.Refusal.Kind))
		e.String(o.Refusal.Say)
	}
}

func decodeOutcome(d *link.Decoder) protocol.Outcome {
	o := protocol.Outcome{RequestID: d.String(maxName), Status: protocol.Status(d.Small()), Certificates: d.List(maxCerts, maxPart), CRL: d.Bytes(maxCRL)}
	if d.Bool() {
		o.Refusal = &protocol.Refusal{Kind: protocol.Kind(d.Small()), Say: d.String(maxName)}
	}
	return o
}

func encodeRejected(e *link.Encoder, r protocol.Rejected) {
	for _, s := range [...]string{r.Protocol, r.Profile, r.Source, r.Operation, r.Why, r.Transaction, r.MessageType, r.MessageDigest, r.NextCA} {
		e.String(s[:min(len(s), maxPart)]) // the authority cuts it shorter
	}
	e.Uint(uint64(r.Kind))
	e.Int(r.Bytes)
	e.Bool(r.Served)
	encodeClient(e, r.Client)
}

func decodeRejected(d *link.Decoder) (r protocol.Rejected) {
	for _, s := range [...]*string{&r.Protocol, &r.Profile, &r.Source, &r.Operation, &r.Why, &r.Transaction, &r.MessageType, &r.MessageDigest, &r.NextCA} {
		*s = d.String(maxPart)
	}
	r.Kind, r.Bytes, r.Served = protocol.Kind(d.Small()), d.Int(), d.Bool()
	r.Client = decodeClient(d)
	return r
}

func encodeService(e *link.Encoder, s protocol.Service) {
	e.String(s.Profile)
	e.Strings(s.Capabilities)
	e.Uint(uint64(len(s.Generations)))
	for _, g := range s.Generations {
		e.String(g.Name)
		e.Bytes(g.RASign)
		e.Bytes(g.RADecrypt)
		e.Bytes(g.CA)
		e.List(g.Chain)
	}
	e.String(s.Next)
	e.Uint(uint64(len(s.Digests)))
	for _, h := range s.Digests {
		e.Uint(uint64(h))
	}
	e.Strings(s.Ciphers)
	for _, b := range [...]bool{s.LegacySHA1, s.LegacyDES3, s.AnySignerKey, s.PasswordRecipient, s.CAFirst, s.NoRoot, s.ReplyChain, s.NoFailInfoText} {
		e.Bool(b)
	}
}

func decodeService(d *link.Decoder) protocol.Service {
	s := protocol.Service{Profile: d.String(maxName), Capabilities: d.Strings(maxList, maxName)}
	for range d.Count(maxGenerations) {
		s.Generations = append(s.Generations, protocol.Generation{
			Name: d.String(maxName), RASign: d.Bytes(maxPart), RADecrypt: d.Bytes(maxPart), CA: d.Bytes(maxPart), Chain: d.List(maxCerts, maxPart),
		})
	}
	s.Next = d.String(maxName)
	for range d.Count(maxList) {
		s.Digests = append(s.Digests, decodeHash(d))
	}
	s.Ciphers = d.Strings(maxList, maxName)
	for _, b := range [...]*bool{&s.LegacySHA1, &s.LegacyDES3, &s.AnySignerKey, &s.PasswordRecipient, &s.CAFirst, &s.NoRoot, &s.ReplyChain, &s.NoFailInfoText} {
		*b = d.Bool()
	}
	return s
}
