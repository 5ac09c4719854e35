// Package operator is what operators may do: one API of HTTP's methods and paths
// and JSON, for the local socket and the operators' listener, with the types that
// its clients share. It runs beside the authority; the gate sends it calls.
//
// # What a caller may rely on
//
// Who does not have the role of an act, by the table in acts, does not get it done.
// An act under the two-person rule is done once, for an order that two people signed
// whose keys the configuration names; order and signatures stand in the log before
// what they bring about, durable together. Every act that changes something is
// recorded with who did it before it is answered, and one that was refused too; what
// is only read is not, unless it was refused. An answer is the JSON of one type of
// this package, or [Problem] with a status of 400 and above. A challenge is shown in
// the one answer that creates it.
//
// # What it does not protect against
//
// Who asks is the gate's word: an owned operators' gate has the roles of all
// operators, but for what needs two signatures.
package operator

import (
	"time"

	"github.com/postern-pki/postern/appliance/operator/acts"
)

// Problem is the answer to a request that was not carried out.
type Problem struct {
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"`
}

// The states of the appliance as [Status] has them.
const (
	Good     = "good"
	Degraded = "degraded"
)

// Status is the answer of GET /api/v1/status.
type Status struct {
	State     string          `json:"state"`
	Reasons   []string        `json:"reasons"`
	Weaker    []string        `json:"weaker,omitempty"` // what was chosen, and is weaker than it could be
	Version   string          `json:"version"`
	Started   time.Time       `json:"started"`
	Policy    string          `json:"policy"`
	Profiles  []StatusProfile `json:"profiles"`
	Log       StatusLog       `json:"log"`
	Token     StatusToken     `json:"token"`
	Expiries  []StatusExpiry  `json:"certificates"`
	CRLs      []StatusCRL     `json:"crls"`
	Operators StatusOperators `json:"operators"`
	Waiting   int64           `json:"waiting,omitempty"` // requests, for an operator's approval
}

// StatusProfile is one profile and the URL that its devices are told.
type StatusProfile struct {
	Name string `json:"name"`
	URL  string `json:"url"`
}

// StatusLog is the head of the log: lines, the Merkle tree's root, and the last
// line's hash, both in hex.
type StatusLog struct {
	Origin string `json:"origin"`
	Size   uint64 `json:"size"`
	Root   string `json:"root"`
	Last   string `json:"last"`
}

// StatusOperators is who may do something here. LocalDefault: the configuration
// names no local users, so root and the service's own user are administrators.
type StatusOperators struct {
	People       int      `json:"people"`
	Local        int      `json:"local"`
	LocalDefault bool     `json:"local_default"`
	TwoPerson    []string `json:"two_person"` // acts that need two people
}

// StatusToken is the token and how often it was used.
type StatusToken struct {
	Serial     string `json:"serial"`
	Label      string `json:"label"`
	Operations uint64 `json:"operations"`
	Failures   uint64 `json:"failures"`
}

// StatusExpiry is one of the appliance's own certificates.
type StatusExpiry struct {
	Name     string    `json:"name"`
	NotAfter time.Time `json:"not_after"`
	SHA256   string    `json:"sha256"`
}

// StatusCRL is the newest list of an issuer; without a NextUpdate there is none yet.
type StatusCRL struct {
	Issuer     string    `json:"issuer"`
	Number     uint64    `json:"number"`
	NextUpdate time.Time `json:"next_update"`
}

// ChallengeRequest is an element of the body of POST /api/v1/challenges, a list of
// 1 to 1,000: all are created, or none.
type ChallengeRequest = acts.ChallengeRequest

// Challenge is one created challenge.
type Challenge struct {
	ID        string    `json:"id"`
	Challenge string    `json:"challenge"`
	Expires   time.Time `json:"expires"`
	Profile   string    `json:"profile"`
	Subject   string    `json:"subject"`
}

// ChallengeState is one challenge of GET /api/v1/challenges: what is known of it
// but its secret.
type ChallengeState struct {
	ID       string    `json:"id"`
	State    string    `json:"state"` // open, spent or revoked
	Profile  string    `json:"profile"`
	Subject  string    `json:"subject"`
	DNS      []string  `json:"dns,omitempty"`
	Created  time.Time `json:"created"`
	Expires  time.Time `json:"expires"`
	Refusals int       `json:"refusals"`
}

// Challenges is a list, newest first.
type Challenges struct {
	Challenges []ChallengeState `json:"challenges"`
}

// Revoked is the answer of DELETE /api/v1/challenges/ID.
type Revoked struct {
	ID string `json:"id"`
}

// Pending is one request that waits for an operator, or did: an element of GET
// /api/v1/pending. State is waiting, expired, approved (being signed), issued or
// denied.
type Pending struct {
	ID       string    `json:"id"`
	State    string    `json:"state"`
	Profile  string    `json:"profile"`
	Kind     string    `json:"kind"` // new, new-lineage or renewal
	Subject  string    `json:"subject"`
	DNS      []string  `json:"dns,omitempty"`
	Source   string    `json:"source"`
	Created  time.Time `json:"created"`
	Expires  time.Time `json:"expires"`
	Digest   string    `json:"digest"`           // of its record: what an approval is of
	Serial   string    `json:"serial,omitempty"` // of the newest approval, whatever came of it
	Why      string    `json:"why,omitempty"`    // of a denial
	Record   uint64    `json:"record"`           // its seq
	Decision uint64    `json:"decision,omitempty"`
}

// PendingDetail is the answer of GET /api/v1/pending/ID: all that a decision is made
// from.
type PendingDetail struct {
	Pending
	Transaction string         `json:"transaction"`
	Signer      string         `json:"signer"`     // who asks: key: or cert: and a SHA-256
	VouchedBy   string         `json:"vouched_by"` // challenge:ID, certificate:SERIAL, or approval: nobody but you
	Key         string         `json:"key"`        // such as RSA 2048
	KeySHA256   string         `json:"key_sha256"` // of the SubjectPublicKeyInfo
	Policy      string         `json:"policy"`     // digest of the profiles that let it wait
	Facts       map[string]any `json:"facts"`
}

// PendingList is a list, newest first. Before continues it; 0 is its end.
type PendingList struct {
	Pending []Pending `json:"pending"`
	Before  uint64    `json:"before"`
}

// Ruling is the body of POST /api/v1/approvals/ID and /api/v1/denials/ID. Digest is
// that of the request as it was seen; it may be left out.
type Ruling struct {
	Reason string `json:"reason"`
	Digest string `json:"digest,omitempty"`
}

// Ruled is the answer to it. Serial is of the certificate that was issued.
type Ruled struct {
	ID     string `json:"id"`
	State  string `json:"state"` // issued or denied
	Serial string `json:"serial,omitempty"`
}

// Certificate is one serial number of GET /api/v1/certificates.
type Certificate struct {
	Serial        string     `json:"serial"`
	State         string     `json:"state"`
	Profile       string     `json:"profile"`
	Issuer        string     `json:"issuer"`
	Subject       string     `json:"subject"`
	NotBefore     time.Time  `json:"not_before"`
	NotAfter      time.Time  `json:"not_after"`
	Request       string     `json:"request"`
	Lineage       string     `json:"lineage"`
	Renewal       int64      `json:"renewal"` // the n-th of its lineage; 0 for the enrollment
	Predecessor   string     `json:"predecessor,omitempty"`
	RevocationDue bool       `json:"revocation_due"` // it is revoked: the next list names it
	RevokedAt     *time.Time `json:"revoked_at,omitempty"`
	Reason        string     `json:"reason,omitempty"` // of the revocation
	IntentSeq     uint64     `json:"intent_seq"`
	ResultSeq     uint64     `json:"result_seq,omitempty"`
	PEM           string     `json:"pem,omitempty"` // of one certificate, not of a list
}

// Certificates is a list, newest first. Before continues it; 0 is its end.
type Certificates struct {
	Certificates []Certificate `json:"certificates"`
	Before       uint64        `json:"before"`
}

// Records is the answer of GET /api/v1/records: lines of the log, as stored.
type Records struct {
	Records []string `json:"records"`
}
