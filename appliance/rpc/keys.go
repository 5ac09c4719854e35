package rpc

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/postern-pki/postern/appliance/link"
	"github.com/postern-pki/postern/protocol"
)

// The keyholder's verbs for gates. None of them takes the CA's or the audit key.
const (
	verbOpen link.Verb = iota + 32
	verbSignReply
	verbSignTLS
)

// Bounds in octets: of a digest, of a signature or an encrypted key (RSA of 16,384
// bits), and of a content-encryption key.
const (
	maxDigest    = 64
	maxSignature = 2 << 10
	maxKeySize   = 64
)

// tlsWithin bounds a signature of a handshake, which has no context of its own: a
// little less than the handshake itself may take.
const tlsWithin = 4 * time.Second

// A KeyID is the SHA-256 of a key's SubjectPublicKeyInfo.
type KeyID [sha256.Size]byte

// KeyIDOf returns the id of a certificate's key.
func KeyIDOf(c *x509.Certificate) KeyID { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// Transport is how a content-encryption key was sent: its length in octets, and the
// hashes of RSAES-OAEP and its MGF1, both 0 for RSAES-PKCS1-v1_5.
type Transport struct {
	Size      int
	Hash, MGF crypto.Hash
}

// GateKeys is what the keyholder does for gates.
type GateKeys interface {
	// Open opens RSA key transport with an RA-decrypt key and returns t.Size octets:
	// those that were sent, or random ones.
	Open(ctx context.Context, key KeyID, encrypted []byte, t Transport) ([]byte, error)
	// SignReply signs a CertRep's digest with an RA-sign key.
	SignReply(ctx context.Context, key KeyID, digest []byte, h crypto.Hash) ([]byte, error)
	// SignTLS signs a handshake's digest with the listeners' key.
	SignTLS(ctx context.Context, digest []byte, h crypto.Hash) ([]byte, error)
}

// Keyholder is a gate's view of the keyholder's process.
type Keyholder struct{ c *link.Client }

var _ GateKeys = (*Keyholder)(nil)

// NewKeyholder connects. The options' Role is set here.
func NewKeyholder(o link.ClientOptions) *Keyholder {
	o.Role = RoleKeyholder
	return &Keyholder{link.NewClient(o)}
}

// Close ends the link.
func (k *Keyholder) Close() error { return k.c.Close() }

// Ready waits until the keyholder answers.
func (k *Keyholder) Ready(ctx context.Context) error { return k.c.Ready(ctx) }

// Open implements [GateKeys].
func (k *Keyholder) Open(ctx context.Context, key KeyID, encrypted []byte, t Transport) ([]byte, error) {
	e := link.Sized(64 + len(encrypted))
	e.Bytes(key[:])
	e.Bytes(encrypted)
	e.Uint(uint64(t.Size))
	e.Uint(uint64(t.Hash))
	e.Uint(uint64(t.MGF))
	return k.ask(ctx, verbOpen, e, maxKeySize)
}

// SignReply implements [GateKeys].
func (k *Keyholder) SignReply(ctx context.Context, key KeyID, digest []byte, h crypto.Hash) ([]byte, error) {
	e := link.Sized(128)
	e.Bytes(key[:])
	e.Bytes(digest)
	e.Uint(uint64(h))
	return k.ask(ctx, verbSignReply, e, maxSignature)
}

// SignTLS implements [GateKeys]. It waits for a keyholder that is away, as long as
// ctx lets it: a handshake has no answer that says to come back later.
func (k *Keyholder) SignTLS(ctx context.Context, digest []byte, h crypto.Hash) ([]byte, error) {
	for {
		e := link.Sized(128)
		e.Bytes(digest)
		e.Uint(uint64(h))
		sig, err := k.ask(ctx, verbSignTLS, e, maxSignature)
		if !errors.Is(err, link.ErrDown) && !errors.Is(err, link.ErrGone) {
			return sig, err
		}
		if err := k.Ready(ctx); err != nil {
			return nil, err
		}
	}
}

func (k *Keyholder) ask(ctx context.Context, v link.Verb, e *link.Encoder, most int) ([]byte, error) {
	d, err := k.c.Call(ctx, v, e)
	if err != nil {
		return nil, fromFault(err)
	}
	out := d.Bytes(most)
	return out, d.Err()
}

// gateTable says which gate may use which key.
func gateTable(k GateKeys) map[string]map[link.Verb]link.Handler {
	tls := link.Handler{Do: func(ctx context.Context, d *link.Decoder, out *link.Encoder) error {
		digest, h := d.Bytes(maxDigest), decodeHash(d)
		if err := d.Err(); err != nil {
			return err
		}
		return answer(out)(k.SignTLS(ctx, digest, h))
	}}
	open := link.Handler{Do: func(ctx context.Context, d *link.Decoder, out *link.Encoder) error {
		key, encrypted := decodeKeyID(d), d.Bytes(maxSignature)
		t := Transport{Size: d.Small(), Hash: decodeHash(d), MGF: decodeHash(d)}
		if err := d.Err(); err != nil {
			return err
		}
		return answer(out)(k.Open(ctx, key, encrypted, t))
	}}
	reply := link.Handler{Do: func(ctx context.Context, d *link.Decoder, out *link.Encoder) error {
		key, digest, h := decodeKeyID(d), d.Bytes(maxDigest), decodeHash(d)
		if err := d.Err(); err != nil {
			return err
		}
		return answer(out)(k.SignReply(ctx, key, digest, h))
	}}
	return map[string]map[link.Verb]link.Handler{
		RoleDevices:   {verbOpen: open, verbSignReply: reply, verbSignTLS: tls},
		RoleOperators: {verbSignTLS: tls},
	}
}

func decodeKeyID(d *link.Decoder) (id KeyID) {
	d.Fixed(id[:])
	return id
}

// answer puts the octets of a call into its answer.
func answer(out *link.Encoder) func([]byte, error) error {
	return func(p []byte, err error) error {
		if err != nil {
			return toFault(err)
		}
		out.Bytes(p)
		return nil
	}
}

// A RAKey is the key of an RA certificate.
type RAKey struct {
	Certificate []byte // DER
	ID          KeyID
	Public      crypto.PublicKey
}

// ProfileKeys gives the protocols the RA keys of a profile's issuer. It implements
// [protocol.Keys]. What each key may do is the keyholder's to say.
type ProfileKeys struct {
	Keys GateKeys
	// Of names the RA keys of all generations of a profile's issuer; false: there is
	// no such profile.
	Of func(profile string) ([]RAKey, bool)
}

var _ protocol.Keys = ProfileKeys{}

// Decrypter implements [protocol.Keys].
func (p ProfileKeys) Decrypter(ctx context.Context, profile string, ra []byte) (crypto.Decrypter, error) {
	key, err := p.find(profile, ra)
	if err != nil {
		return nil, err
	}
	return raDecrypter{p.Keys, ctx, key}, nil
}

// Signer implements [protocol.Keys].
func (p ProfileKeys) Signer(ctx context.Context, profile string, ra []byte) (crypto.Signer, error) {
	key, err := p.find(profile, ra)
	if err != nil {
		return nil, err
	}
	return raSigner{p.Keys, ctx, key}, nil
}

func (p ProfileKeys) find(profile string, ra []byte) (RAKey, error) {
	all, ok := p.Of(profile)
	if !ok {
		return RAKey{}, protocol.ErrUnknownProfile
	}
	for _, k := range all { // a handful
		if bytes.Equal(k.Certificate, ra) {
			return k, nil
		}
	}
	return RAKey{}, protocol.ErrUnknownRA
}

// sessionKeyOptions says how long the key in an envelope is. The standard library
// calls the type dangerous; SCEP knows no other key transport that all of its
// clients have, and the keyholder opens it without becoming an oracle.
//
//lint:ignore SA1019 see above
type sessionKeyOptions = rsa.PKCS1v15DecryptOptions //nolint:staticcheck // see above

type raDecrypter struct {
	keys GateKeys
	ctx  context.Context //nolint:containedctx // crypto.Decrypter has none
	key  RAKey
}

func (r raDecrypter) Public() crypto.PublicKey { return r.key.Public }

func (r raDecrypter) Decrypt(_ io.Reader, encrypted []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	var t Transport
	switch o := opts.(type) {
	case *sessionKeyOptions:
		if o != nil {
			t.Size = o.SessionKeyLen
		}
	case *protocol.OAEPOptions:
		if o != nil && o.Hash != 0 && o.MGF != 0 {
			t = Transport{o.KeyLen, o.Hash, o.MGF}
		}
	}
	if t.Size <= 0 || t.Size > maxKeySize {
		return nil, fmt.Errorf("%w: only PKCS#1 v1.5 and OAEP with the session key's length", ErrNoKey)
	}
	key, err := r.keys.Open(r.ctx, r.key.ID, encrypted, t)
	if err == nil && len(key) != t.Size {
		return nil, fmt.Errorf("%w: a key of %d octets", ErrMessage, len(key))
	}
	return key, err
}

type raSigner struct {
	keys GateKeys
	ctx  context.Context //nolint:containedctx // crypto.Signer has none
	key  RAKey
}

func (r raSigner) Public() crypto.PublicKey { return r.key.Public }

func (r raSigner) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return r.keys.SignReply(r.ctx, r.key.ID, digest, opts.HashFunc())
}

// TLSSigner is the listeners' key in the keyholder's process.
type TLSSigner struct {
	Keys GateKeys
	Key  crypto.PublicKey
}

var _ crypto.Signer = TLSSigner{}

// Public implements [crypto.Signer].
func (s TLSSigner) Public() crypto.PublicKey { return s.Key }

// Sign implements [crypto.Signer].
func (s TLSSigner) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if _, pss := opts.(*rsa.PSSOptions); pss {
		return nil, fmt.Errorf("%w: the listeners' key is ECDSA", ErrNoKey)
	}
	ctx, cancel := context.WithTimeout(context.Background(), tlsWithin)
	defer cancel()
	return s.Keys.SignTLS(ctx, digest, opts.HashFunc())
}
