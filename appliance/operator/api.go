// Package operator is what operators may do: one API of HTTP's methods and paths
// and JSON, for the local socket and the operators' listener, with the types that
// its clients share. It runs beside the authority; the gate sends it calls.
//
// # What a caller may rely on
//
// Every act that changes something is recorded in the log with who did it before it
// is answered, and one that was refused too; what is only read is not. An
// answer is the JSON of one type of this package, or [Problem] with a status of
// 400 and above. A challenge is shown in the one answer that creates it.
//
// # What it does not protect against
//
// Who asks is the gate's word. Whoever may connect may do everything that the
// API has: roles are not told apart yet.
package operator

import "time"

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
	State    string          `json:"state"`
	Reasons  []string        `json:"reasons"`
	Version  string          `json:"version"`
	Started  time.Time       `json:"started"`
	Policy   string          `json:"policy"`
	Profiles []StatusProfile `json:"profiles"`
	Log      StatusLog       `json:"log"`
	Token    StatusToken     `json:"token"`
	Expiries []StatusExpiry  `json:"certificates"`
}

// StatusProfile is one profile and the URL that its devices are told.
type StatusProfile struct {
	Name string `json:"name"`
	URL  string `json:"url"`
}

// StatusLog is the head of the log: lines, and the Merkle tree's root in hex.
type StatusLog struct {
	Origin string `json:"origin"`
	Size   uint64 `json:"size"`
	Root   string `json:"root"`
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

// ChallengeRequest is the body of POST /api/v1/challenges, in a list of 1 to
// 1,000: all are created, or none.
type ChallengeRequest struct {
	Profile string   `json:"profile"`
	Subject string   `json:"subject"` // RFC 4514
	DNS     []string `json:"dns,omitempty"`
	TTL     string   `json:"ttl,omitempty"` // Go's form; the profile's if empty
}

// Challenge is one created challenge.
type Challenge struct {
	ID        string    `json:"id"`
	Challenge string    `json:"challenge"`
	Expires   time.Time `json:"expires"`
	Profile   string    `json:"profile"`
	Subject   string    `json:"subject"`
}

// Certificate is one serial number of GET /api/v1/certificates.
type Certificate struct {
	Serial        string    `json:"serial"`
	State         string    `json:"state"`
	Profile       string    `json:"profile"`
	Issuer        string    `json:"issuer"`
	Subject       string    `json:"subject"`
	NotBefore     time.Time `json:"not_before"`
	NotAfter      time.Time `json:"not_after"`
	Request       string    `json:"request"`
	Lineage       string    `json:"lineage"`
	Renewal       int64     `json:"renewal"` // the n-th of its lineage; 0 for the enrollment
	Predecessor   string    `json:"predecessor,omitempty"`
	RevocationDue bool      `json:"revocation_due"`
	IntentSeq     uint64    `json:"intent_seq"`
	ResultSeq     uint64    `json:"result_seq,omitempty"`
	PEM           string    `json:"pem,omitempty"` // of one certificate, not of a list
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
