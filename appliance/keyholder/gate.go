package keyholder

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"strings"
	"sync"

	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/hsm"
)

// Open implements [rpc.GateKeys].
func (k *Keyholder) Open(ctx context.Context, id rpc.KeyID, encrypted []byte, t rpc.Transport) ([]byte, error) {
	key, err := k.raKey(id, hsm.RADecrypt, "open an envelope")
	if err != nil {
		return nil, err
	}
	defer k.wanted()()
	if t.Hash != 0 || t.MGF != 0 {
		return key.With(ctx).Decrypt(nil, encrypted, &hsm.OAEPOptions{KeyLen: t.Size, Hash: t.Hash, MGF: t.MGF})
	}
	return key.With(ctx).Decrypt(nil, encrypted, &hsm.SessionKeyOptions{SessionKeyLen: t.Size})
}

// SignReply implements [rpc.GateKeys].
func (k *Keyholder) SignReply(ctx context.Context, id rpc.KeyID, digest []byte, h crypto.Hash) ([]byte, error) {
	key, err := k.raKey(id, hsm.RASign, "sign a reply")
	if err != nil {
		return nil, err
	}
	defer k.wanted()()
	return key.With(ctx).Sign(nil, digest, h)
}

func (k *Keyholder) raKey(id rpc.KeyID, p hsm.Purpose, what string) (*hsm.Key, error) {
	key, ok := k.ra[id]
	if !ok || key.Purpose() != p && key.Purpose() != hsm.RA {
		k.refusals.add(fmt.Sprintf("to %s with key %x, which is not for that", what, id[:8]))
		return nil, rpc.ErrNoKey
	}
	return key, nil
}

// SignTLS implements [rpc.GateKeys].
func (k *Keyholder) SignTLS(ctx context.Context, digest []byte, h crypto.Hash) ([]byte, error) {
	if k.o.TLS == nil {
		return nil, rpc.ErrNoKey
	}
	return k.o.TLS(ctx, digest, h)
}

// wanted notes that the token is, until done is called.
func (k *Keyholder) wanted() (done func()) {
	if k.o.Wanted == nil {
		return func() {}
	}
	return k.o.Wanted()
}

// Refuse records what a role asked for that its link does not have, or in a message
// that could not be read.
func (k *Keyholder) Refuse(role string, verb uint8, why error) {
	k.refusals.add(fmt.Sprintf("verb %d by the link of %s: %v", verb, role, why))
}

// Facts implements [rpc.LogKeys].
func (k *Keyholder) Facts(context.Context) (rpc.HolderFacts, error) {
	slot := k.o.Token.Slot()
	f := rpc.HolderFacts{Serial: slot.Serial, Label: slot.Label}
	for name, key := range k.o.Names {
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return rpc.HolderFacts{}, fmt.Errorf("keyholder: %w", err)
		}
		f.Keys = append(f.Keys, rpc.KeyFact{Name: name, Purpose: string(key.Purpose()), SPKI: der})
	}
	f.Keys = append(f.Keys, k.o.Elsewhere...)
	return f, nil
}

// Status implements [rpc.LogKeys]. What was refused is told once.
func (k *Keyholder) Status(context.Context) (rpc.HolderStatus, error) {
	stats := k.o.Token.Stats()
	s := rpc.HolderStatus{Operations: stats.Sign + stats.Decrypt, Failures: stats.Dropped + stats.Overdue + stats.OwnSignature}
	if err := k.o.Token.Healthy(); err != nil {
		s.Trouble = err.Error()
	}
	s.Refused, s.Lost = k.refusals.drain()
	return s, nil
}

// refusals are what the keyholder was asked for and did not do, until the
// authority has recorded it.
type refusals struct {
	mu   sync.Mutex
	list []string
	lost uint64
}

// Bounds of what is kept: a number, and octets of each.
const (
	maxRefusals = 256
	maxRefusal  = 512
)

func (r *refusals) add(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) == maxRefusals {
		r.lost++
		return
	}
	// Some of the words are the asker's: what is cut has to be a text still.
	r.list = append(r.list, strings.ToValidUTF8(what[:min(len(what), maxRefusal)], "\uFFFD"))
}

func (r *refusals) drain() (list []string, lost uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	list, lost = r.list, r.lost
	r.list, r.lost = nil, 0
	return list, lost
}
