// Package protocol holds what passes between the gate, which parses the bytes of
// strangers, and the authority, which decides: plain data and two interfaces.
//
// # What a caller may rely on
//
// A [Request] carries the proof itself, not a statement about it: the signer's
// certificate, the signed attributes, the signature, the envelope and the key
// that opens it. The authority verifies all of it again and reads the
// messageType, the transactionID and the CSR from there. A refusal is an
// [Outcome]; an error is a fault of the appliance, answered with 503, and it
// costs the device nothing.
//
// # What it does not protect against
//
// A gate that was taken over sees every envelope that it is given, and the open
// challenges in them.
package protocol

import (
	"context"
	"crypto"
	"errors"
	"time"
)

// Errors of an [Authority] and of [Keys].
var (
	// ErrUnknownProfile is returned where a profile's name is not configured.
	ErrUnknownProfile = errors.New("protocol: unknown profile")
	// ErrUnknownRA is returned for a certificate that is no RA's of the profile.
	ErrUnknownRA = errors.New("protocol: not an RA certificate of the profile")
)

// A Proof is what one pkiMessage proves (RFC 8894, section 3.2), in the bytes
// that were received.
type Proof struct {
	SignerCert  []byte      // DER; need not be a certificate that crypto/x509 accepts
	Digest      crypto.Hash // of the signed attributes and of the content
	SignedAttrs []byte      // DER of the SET OF Attribute, tag 0x31, in the order received
	Signature   []byte
	Envelope    []byte // the eContent octets, which the messageDigest covers: a ContentInfo of EnvelopedData
	ContentKey  []byte // the content-encryption key, as the RA-decrypt key opened it
}

// A Request asks for a certificate, or for a CRL. What it asks for stands in the
// proof. The ContentKey of a poll is empty: its envelope is not opened.
type Request struct {
	Protocol string // "scep"
	Profile  string
	Source   string    // the peer's address, host:port
	Arrived  time.Time // when the gate had the whole message
	Proof    Proof
	Client   Client
}

// Status is what became of a request.
type Status int

// The statuses of an outcome; the zero value is none of them.
const (
	Issued Status = iota + 1
	Pending
	Refused
)

// String returns the status in lower case.
func (s Status) String() string {
	switch s {
	case Issued:
		return "issued"
	case Pending:
		return "pending"
	case Refused:
		return "refused"
	default:
		return "unknown"
	}
}

// Kind classifies a refusal, so that each protocol can map it to its own codes
// in one total function. The zero kind tells a client least.
type Kind int

// The kinds of refusal.
const (
	Unclassified Kind = iota
	BadProof          // the message or its envelope does not prove what it says: one answer for all of them
	BadAlgorithm      // an algorithm that is unknown, or that the profile does not allow
	NotAllowed        // policy, challenge, renewal rules
	Unsupported       // an operation or message type that is not served
	NotFound          // no certificate or transaction of that name
	BadTime           // a signing time too far from ours
)

// String returns the kind's name as the log has it.
func (k Kind) String() string {
	names := [...]string{"unclassified", "bad-proof", "bad-algorithm", "not-allowed", "unsupported", "not-found", "bad-time"}
	if k < 0 || int(k) >= len(names) {
		return "unclassified"
	}
	return names[k]
}

// A Refusal says no. Say is one sentence for the device, free of secrets and of
// a parser's words, at most 200 characters.
type Refusal struct {
	Kind Kind
	Say  string
}

// An Outcome is the authority's answer. Certificates are DER, the issued one
// first, and CRL is DER; one of the two is set where Status is [Issued], and a
// Refusal only where it is [Refused].
type Outcome struct {
	RequestID    string
	Status       Status
	Certificates [][]byte
	CRL          []byte // the whole answer to a GetCRL
	Refusal      *Refusal
}

// A Rejected message never became a [Request]; it is recorded all the same. No
// field holds a secret, and the authority cuts and digests what is long.
type Rejected struct {
	Protocol      string
	Profile       string
	Source        string
	Operation     string // as asked, unchecked
	Kind          Kind
	Why           string // our own words, from a closed set
	Transaction   string // as claimed, unchecked
	MessageType   string // as claimed, unchecked
	MessageDigest string // hex SHA-256 of the message, "" if there was none
	Bytes         int64  // of the message
	Served        bool   // true for a plain question that was answered, such as GetCACaps
	Client        Client // of a message; zero for a plain question
	NextCA        string // the generation whose certificates were handed out; GetNextCACert alone
}

// A Generation is one CA of a profile's issuer, with the RA certificates that
// speak for it. A request belongs to the generation that it is encrypted to: that
// CA issues, and that RA signs the answer (RFC 8894, section 5.1).
type Generation struct {
	Name      string   // unique in its issuer
	RASign    []byte   // DER
	RADecrypt []byte   // DER; may equal RASign
	CA        []byte   // DER of the issuing CA
	Chain     [][]byte // DER from above the CA up to the root, which may be the CA itself: then empty
}

// Service is what a profile offers to its devices.
type Service struct {
	Profile      string
	Capabilities []string     // GetCACaps, in order
	Generations  []Generation // that requests are answered by, the current one first; at least one
	Next         string       // the generation that devices are told of as the next; "" for none
	Digests      []crypto.Hash
	Ciphers      []string // of envelopes, such as "AES-128-CBC"
	LegacySHA1   bool
	LegacyDES3   bool

	// AnySignerKey: a self-signed signer need not have the key of the CSR.
	AnySignerKey bool
	// PasswordRecipient: who cannot decrypt has the answer to a new enrollment
	// encrypted under its challenge.
	PasswordRecipient bool

	CAFirst        bool // GetCACert begins with the CA in place of the RA
	NoRoot         bool // a root above the CA is left out of every answer
	ReplyChain     bool // a CertRep has the CA's certificates after the issued one
	NoFailInfoText bool // a refusal has no words
}

// Current is the generation that devices are given.
func (s *Service) Current() *Generation { return &s.Generations[0] }

// Named returns the generation of that name; nil if there is none.
func (s *Service) Named(name string) *Generation {
	for i := range s.Generations {
		if s.Generations[i].Name == name {
			return &s.Generations[i]
		}
	}
	return nil
}

// Authority decides. It is safe for concurrent use.
type Authority interface {
	// Service returns what a profile offers, or [ErrUnknownProfile].
	Service(ctx context.Context, profile string) (Service, error)
	// Submit verifies, decides, records and issues. When it returns Issued the
	// certificate and its record are durable.
	Submit(ctx context.Context, r Request) (Outcome, error)
	// Reject records a message that never became a request, and returns the id
	// under which it stands in the log.
	Reject(ctx context.Context, r Rejected) (requestID string, err error)
}

// OAEPOptions have a content-encryption key of KeyLen octets opened that was sent
// by RSAES-OAEP (RFC 8017, section 7.1) with an empty label.
type OAEPOptions struct {
	KeyLen    int
	Hash, MGF crypto.Hash // of the label, and of the mask generation function MGF1
}

// Keys gives the gate the use of the RA keys of a profile's issuer, and of no
// other key: ra is the DER of the RA certificate whose key is wanted. The error is
// [ErrUnknownProfile] or [ErrUnknownRA]. The decrypter takes
// [crypto/rsa.PKCS1v15DecryptOptions] with a SessionKeyLen or [*OAEPOptions], and
// returns a random key of that length on any padding failure.
type Keys interface {
	Decrypter(ctx context.Context, profile string, ra []byte) (crypto.Decrypter, error)
	Signer(ctx context.Context, profile string, ra []byte) (crypto.Signer, error)
}
