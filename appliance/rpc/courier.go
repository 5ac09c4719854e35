package rpc

import (
	"context"

	"github.com/postern-pki/postern/appliance/link"
)

// The courier's verbs.
const (
	verbCertificate link.Verb = iota + 64
	verbChallenge
	verbState
)

// Bounds in octets, of what the courier hands out: one certificate and how many of
// them, a key, and why there is none.
const (
	maxCourierCert  = 32 << 10
	maxCourierChain = 8
	maxCourierKey   = 8 << 10
	maxServerName   = 255
	maxTrouble      = 4 << 10
)

// CourierTLS is what the courier does for the listeners. The keys that it hands out
// are software keys, PKCS #8 in DER.
type CourierTLS interface {
	Certificate(ctx context.Context) (chain [][]byte, keyPKCS8 []byte, err error)
	AcmeChallenge(ctx context.Context, serverName string) (chain [][]byte, keyPKCS8 []byte, err error)
	// State returns the certificate alone, nil where there is none, and why the last
	// order failed.
	State(ctx context.Context) (leaf []byte, trouble string, err error)
}

// Courier is another role's view of the courier's process.
type Courier struct{ c *link.Client }

var _ CourierTLS = (*Courier)(nil)

// NewCourier connects. The options' Role is set here.
func NewCourier(o link.ClientOptions) *Courier {
	o.Role = RoleCourier
	return &Courier{link.NewClient(o)}
}

// Close ends the link.
func (c *Courier) Close() error { return c.c.Close() }

// Ready waits until the courier answers.
func (c *Courier) Ready(ctx context.Context) error { return c.c.Ready(ctx) }

// Certificate implements [CourierTLS].
func (c *Courier) Certificate(ctx context.Context) (chain [][]byte, keyPKCS8 []byte, err error) {
	return c.pair(ctx, verbCertificate, link.Sized(0))
}

// AcmeChallenge implements [CourierTLS].
func (c *Courier) AcmeChallenge(ctx context.Context, serverName string) (chain [][]byte, keyPKCS8 []byte, err error) {
	e := link.Sized(maxServerName + 2)
	e.String(serverName)
	return c.pair(ctx, verbChallenge, e)
}

func (c *Courier) pair(ctx context.Context, v link.Verb, e *link.Encoder) (chain [][]byte, keyPKCS8 []byte, err error) {
	d, err := c.c.Call(ctx, v, e)
	if err != nil {
		return nil, nil, fromFault(err)
	}
	return decodePair(d)
}

func decodePair(d *link.Decoder) (chain [][]byte, keyPKCS8 []byte, err error) {
	chain, keyPKCS8 = d.List(maxCourierChain, maxCourierCert), d.Bytes(maxCourierKey)
	if err := d.Err(); err != nil {
		return nil, nil, err
	}
	return chain, keyPKCS8, nil
}

// State implements [CourierTLS].
func (c *Courier) State(ctx context.Context) (leaf []byte, trouble string, err error) {
	d, err := c.c.Call(ctx, verbState, link.Sized(0))
	if err != nil {
		return nil, "", fromFault(err)
	}
	leaf, trouble = d.Bytes(maxCourierCert), d.String(maxTrouble)
	return leaf, trouble, d.Err()
}

// CourierTable says who may ask the courier for what: the gates for the
// certificate and its key, the devices' for challenges, the authority for neither
// key, and alone for what validators say. Either of the two may be nil: the courier
// has nothing of the kind to do.
func CourierTable(c CourierTLS, v Validators) map[string]map[link.Verb]link.Handler {
	certificate := link.Handler{Do: func(ctx context.Context, d *link.Decoder, out *link.Encoder) error {
		if err := d.Err(); err != nil {
			return err
		}
		return pairOf(out)(c.Certificate(ctx))
	}}
	challenge := link.Handler{Do: func(ctx context.Context, d *link.Decoder, out *link.Encoder) error {
		name := d.String(maxServerName)
		if err := d.Err(); err != nil {
			return err
		}
		return pairOf(out)(c.AcmeChallenge(ctx, name))
	}}
	state := link.Handler{Do: func(ctx context.Context, d *link.Decoder, out *link.Encoder) error {
		if err := d.Err(); err != nil {
			return err
		}
		leaf, trouble, err := c.State(ctx)
		if err != nil {
			return toFault(err)
		}
		out.Bytes(leaf)
		out.String(trouble[:min(len(trouble), maxTrouble)])
		return nil
	}}
	table := map[string]map[link.Verb]link.Handler{RoleDevices: {}, RoleOperators: {}, RoleAuthority: {}}
	if c != nil {
		table[RoleDevices] = map[link.Verb]link.Handler{verbCertificate: certificate, verbChallenge: challenge}
		table[RoleOperators][verbCertificate] = certificate
		table[RoleAuthority][verbState] = state
	}
	if v != nil {
		table[RoleAuthority][verbValidate] = validate(v)
	}
	return table
}

// pairOf puts a certificate and its key into an answer.
func pairOf(out *link.Encoder) func(chain [][]byte, keyPKCS8 []byte, err error) error {
	return func(chain [][]byte, keyPKCS8 []byte, err error) error {
		if err != nil {
			return toFault(err)
		}
		out.List(chain)
		out.Bytes(keyPKCS8)
		return nil
	}
}
