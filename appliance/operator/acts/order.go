package acts

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/postern-pki/postern/audit/jcs"
)

// Bounds of an order.
const (
	Signers       = 2 // who it takes
	MaxSignatures = 8 // that it may carry
	MaxLife       = 24 * time.Hour
	MaxOrder      = 24 << 10  // octets of its canonical form: it stands in the log whole
	maxSigned     = 128 << 10 // octets of its file, with the signatures
)

// OrderType tells an order from everything else that a person's key may sign.
const OrderType = "postern operator act 1"

// Errors of an order.
var (
	ErrForm      = errors.New("not an act that people sign")
	ErrSignature = errors.New("not this key's signature on this act")
	ErrKey       = errors.New("a key that cannot sign acts: ECDSA P-256, P-384 or P-521, Ed25519, or RSA of 2048 to 8192 bits")
)

// A ChallengeRequest asks for one challenge.
type ChallengeRequest struct {
	Profile string   `json:"profile"`
	Subject string   `json:"subject"` // RFC 4514
	DNS     []string `json:"dns,omitempty"`
	TTL     string   `json:"ttl,omitempty"` // Go's form; the profile's if empty
}

// Parameters are what an act is done with; which of them depends on the act.
type Parameters struct {
	Challenges []ChallengeRequest `json:"challenges,omitempty"` // to create
	Challenge  string             `json:"challenge,omitempty"`  // id of the one to revoke
	Pending    string             `json:"pending,omitempty"`    // id of the request that waits
	Digest     string             `json:"digest,omitempty"`     // of what it says: hex SHA-256 of its line in the log
	Reason     string             `json:"reason,omitempty"`     // for the approval, the denial or, by its name in RFC 5280, the revocation

	Certificate string    `json:"certificate,omitempty"` // serial number, lowercase hex, of the one to revoke
	Switch      *CASwitch `json:"switch,omitempty"`      // of the current CA
}

// CASwitch makes a generation of an issuer the current one. From is the one that is
// current then: after another switch it does nothing.
type CASwitch struct {
	Issuer string `json:"issuer"`
	From   string `json:"from"`
	To     string `json:"to"`
}

// fit reports whether these are the parameters of the act, and no others.
func (p Parameters) fit(act string) bool {
	waits := p.Pending != "" || p.Digest != ""
	ruling := waits || p.Reason != "" || p.Certificate != ""
	if act == SwitchCA {
		return p.Switch != nil && p.Challenge == "" && len(p.Challenges) == 0 && !ruling
	}
	if p.Switch != nil {
		return false
	}
	switch act {
	case RevokeChallenge:
		return p.Challenge != "" && len(p.Challenges) == 0 && !ruling
	case CreateChallenge:
		return p.Challenge == "" && len(p.Challenges) == 1 && !ruling
	case CreateChallenges:
		return p.Challenge == "" && len(p.Challenges) > 1 && !ruling
	case ApprovePending, DenyPending:
		return p.Challenge == "" && len(p.Challenges) == 0 && p.Certificate == "" && p.Pending != "" && hashForm.MatchString(p.Digest) && p.Reason != ""
	case RevokeCertificate:
		return p.Challenge == "" && len(p.Challenges) == 0 && !waits && p.Certificate != "" && p.Reason != ""
	default:
		return false
	}
}

// A Place is where a log was when the order was written: its number of lines, and
// the hex SHA-256 of the last one with its LF. So an order is for one log, and what
// happened to it since is in the lines behind that place.
type Place struct {
	Size uint64 `json:"size"`
	Last string `json:"last"`
}

// An Order is an act to be done once, as people sign it; in files and records it
// is called the act.
type Order struct {
	Type       string     `json:"type"`
	Act        string     `json:"name"`
	Origin     string     `json:"origin"` // of the log
	Place      Place      `json:"place"`
	ID         string     `json:"id"`
	Expires    string     `json:"expires"` // RFC 3339, UTC, whole seconds
	Parameters Parameters `json:"parameters"`
}

// NewOrder returns an order with a new id.
func NewOrder(act string, p Parameters, origin string, at Place, expires time.Time) Order {
	return Order{
		Type: OrderType, Act: act, Origin: origin, Place: at, ID: strings.ToLower(rand.Text()),
		Expires: expires.UTC().Truncate(time.Second).Format(time.RFC3339), Parameters: p,
	}
}

var (
	idForm   = regexp.MustCompile(`^[a-z2-7]{26}$`)
	hashForm = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// Object is the order as a log's record has it.
func (o Order) Object() map[string]any {
	p := map[string]any{}
	for key, value := range map[string]string{
		"challenge": o.Parameters.Challenge, "pending": o.Parameters.Pending, "digest": o.Parameters.Digest, "reason": o.Parameters.Reason,
		"certificate": o.Parameters.Certificate,
	} {
		if value != "" {
			p[key] = value
		}
	}
	if s := o.Parameters.Switch; s != nil {
		p["switch"] = map[string]any{"issuer": s.Issuer, "from": s.From, "to": s.To}
	}
	if len(o.Parameters.Challenges) > 0 {
		list := make([]any, len(o.Parameters.Challenges))
		for i, c := range o.Parameters.Challenges {
			one := map[string]any{"profile": c.Profile, "subject": c.Subject}
			if len(c.DNS) > 0 {
				one["dns"] = c.DNS
			}
			if c.TTL != "" {
				one["ttl"] = c.TTL
			}
			list[i] = one
		}
		p["challenges"] = list
	}
	return map[string]any{
		"type": o.Type, "name": o.Act, "origin": o.Origin, "place": map[string]any{"size": o.Place.Size, "last": o.Place.Last},
		"id": o.ID, "expires": o.Expires, "parameters": p,
	}
}

// Canonical is what is signed: the order as canonical JSON (RFC 8785). The error
// is ErrForm for an order of another form.
func (o Order) Canonical() ([]byte, error) {
	if _, err := o.Until(); err != nil {
		return nil, err
	}
	switch act, _ := Named(o.Act); {
	case o.Type != OrderType:
		return nil, fmt.Errorf("%w: its type is %.40q", ErrForm, o.Type)
	case !act.Changes:
		return nil, fmt.Errorf("%w: %.40q is no act that people sign", ErrForm, o.Act)
	case !idForm.MatchString(o.ID), o.Place.Size == 0, !hashForm.MatchString(o.Place.Last), o.Origin == "":
		return nil, fmt.Errorf("%w: id, origin or place is missing or has another form", ErrForm)
	case !o.Parameters.fit(o.Act):
		return nil, fmt.Errorf("%w: these are not the parameters of %s", ErrForm, o.Act)
	}
	b, err := jcs.Append(nil, o.Object())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrForm, err)
	}
	if len(b) > MaxOrder {
		return nil, fmt.Errorf("%w: it has %d octets, and the log takes %d: make several of it", ErrForm, len(b), MaxOrder)
	}
	return b, nil
}

// Until is when the order ends.
func (o Order) Until() (time.Time, error) {
	t, err := time.Parse(time.RFC3339, o.Expires)
	if err != nil || t.UTC().Format(time.RFC3339) != o.Expires {
		return time.Time{}, fmt.Errorf("%w: it does not say in UTC when it ends", ErrForm)
	}
	return t, nil
}

// A Signature is one person's on the canonical order. SPKI is the DER of the
// key's SubjectPublicKeyInfo, Value the signature: ECDSA in ASN.1 over the hash of
// the curve's size (SHA-256, SHA-384, SHA-512), Ed25519, or RSA-PSS with SHA-256
// and a salt of 32 octets.
type Signature struct {
	SPKI  []byte `json:"spki"`
	Value []byte `json:"signature"`
}

// ID is who signed, as the gate would name them.
func (s Signature) ID() string {
	sum := sha256.Sum256(s.SPKI)
	return "key:" + hex.EncodeToString(sum[:])
}

// Verify checks the signature. The error is ErrKey or ErrSignature.
func (s Signature) Verify(canonical []byte) error {
	pub, err := x509.ParsePKIXPublicKey(s.SPKI)
	if err != nil {
		return ErrKey
	}
	hash, err := hashOf(pub)
	if err != nil {
		return err
	}
	digest, good := digestOf(hash, canonical), false
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		good = ecdsa.VerifyASN1(pub, digest, s.Value)
	case ed25519.PublicKey:
		good = ed25519.Verify(pub, canonical, s.Value)
	case *rsa.PublicKey:
		good = rsa.VerifyPSS(pub, hash, digest, s.Value, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
	}
	if !good {
		return ErrSignature
	}
	return nil
}

// Sign signs the canonical order.
func Sign(key crypto.Signer, canonical []byte) (Signature, error) {
	hash, err := hashOf(key.Public())
	if err != nil {
		return Signature{}, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return Signature{}, ErrKey
	}
	var opts crypto.SignerOpts = hash
	if _, ok := key.Public().(*rsa.PublicKey); ok {
		opts = &rsa.PSSOptions{Hash: hash, SaltLength: rsa.PSSSaltLengthEqualsHash}
	}
	value, err := key.Sign(rand.Reader, digestOf(hash, canonical), opts)
	return Signature{spki, value}, err
}

// hashOf is the hash that a key signs over; 0 where it takes the message itself.
func hashOf(pub crypto.PublicKey) (crypto.Hash, error) {
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		switch pub.Curve.Params().BitSize {
		case 256:
			return crypto.SHA256, nil
		case 384:
			return crypto.SHA384, nil
		case 521:
			return crypto.SHA512, nil
		}
	case ed25519.PublicKey:
		return 0, nil
	case *rsa.PublicKey:
		if n := pub.N.BitLen(); n >= 2048 && n <= 8192 {
			return crypto.SHA256, nil
		}
	}
	return 0, ErrKey
}

func digestOf(h crypto.Hash, message []byte) []byte {
	if h == 0 {
		return message
	}
	d := h.New()
	_, _ = d.Write(message)
	return d.Sum(nil)
}

// Signed is an order with its signatures, as it lies in a file and is sent.
type Signed struct {
	Order      Order       `json:"act"`
	Signatures []Signature `json:"signatures"`
}

// ParseSigned reads a file, and checks its form and no signature. The error is
// ErrForm.
func ParseSigned(data []byte) (Signed, error) {
	if len(data) > maxSigned {
		return Signed{}, fmt.Errorf("%w: it is larger than %d octets", ErrForm, maxSigned)
	}
	var s Signed
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return Signed{}, fmt.Errorf("%w: %w", ErrForm, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Signed{}, fmt.Errorf("%w: something follows it", ErrForm)
	}
	if len(s.Signatures) > MaxSignatures {
		return Signed{}, fmt.Errorf("%w: it has more than %d signatures", ErrForm, MaxSignatures)
	}
	_, err := s.Order.Canonical()
	return s, err
}
