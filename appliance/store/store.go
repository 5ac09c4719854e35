// Package store is the state index: what the authority has to know to decide,
// found by key instead of by reading the log.
//
// # What a caller may rely on
//
// The index changes only by [Changes] of log lines, applied in order and once,
// by the same code in service and in a rebuild; it says up to which line it is
// true. It can be deleted at any time: the log gives it back.
//
// # What it does not protect against
//
// It is not evidence. Who can write to the database can make the appliance
// misjudge until the next rebuild, which is why a rebuild's result is compared.
package store

import (
	"errors"
	"time"

	"github.com/postern-pki/postern/policy/challenge"
)

// Errors of a store. Anything else is a fault of the database.
var (
	ErrNotFound = errors.New("store: not found")
	ErrGap      = errors.New("store: the line is not the next one")
	ErrAhead    = errors.New("store: the index knows lines that the log does not have")
)

// State is what is known of a serial number.
type State string

// The states of a serial. Intended becomes Issued, Failed or Unknown, and never
// anything else.
const (
	Intended State = "intended" // an intent is durable and no outcome is
	Issued   State = "issued"
	Failed   State = "failed"  // the signature was never made
	Unknown  State = "unknown" // a crash hid whether it was made: the serial is burnt
)

// ServerProfile is the profile's name on certificates of our own listeners. No
// configured profile can have it.
const ServerProfile = "@server"

// An Issuance is one serial number: what an intent line says of it, and what
// became of it.
type Issuance struct {
	IntentSeq   uint64
	Serial      string // lowercase hex
	Profile     string
	Issuer      string // the CA's own name: of one generation of the profile's issuer
	Request     string // request id
	Subject     string // RFC 4514
	Names       string // digest of all names, see policy.Names
	SPKI        string // hex SHA-256 of the SubjectPublicKeyInfo
	NotBefore   time.Time
	NotAfter    time.Time
	Lineage     string // request id of the enrollment that began it
	Generation  int64  // 0 for the enrollment, n for the n-th renewal
	LineageFrom time.Time
	Predecessor string // serial that a renewal was signed by, or ""
	Challenge   string // id that the intent spent, or ""
	Transaction string // transactionID as received
	Signer      string // "cert:" or "key:" and hex SHA-256: who signed the request
	CSR         string // hex SHA-256 of the CSR
	Source      string // the address that asked, without its port

	State         State
	ResultSeq     uint64 // 0 while intended
	Certificate   []byte // DER, only where issued
	RevocationDue bool   // to be listed as revoked: by whom or what ever, there is one notion of it
	Reason        int    // of the revocation (RFC 5280, section 5.3.1); 0: none is told
	RevokedAt     time.Time
}

// A Revocation is a serial number that a list of revoked certificates names.
type Revocation struct {
	Serial string
	Reason int
	At     time.Time
}

// A CRL is the newest list of an issuer, as far as the log has it.
type CRL struct {
	Issuer     string
	Number     uint64
	Seq        uint64 // of the intent
	ThisUpdate time.Time
	NextUpdate time.Time
	Entries    int64
	Issued     bool   // it was signed, and that is recorded
	SHA256     string // hex, of the signed list; "" while it is not issued
}

// CertificateFilter selects issuances, newest intent first.
type CertificateFilter struct {
	Profile string
	Subject string // a part of the RFC 4514 text, "" for all
	State   State
	Issuers []string  // of one of these CAs; none: of any
	Living  time.Time // that count as in use then, see [CACount]; zero: all
	Before  uint64    // intent seq to continue before; 0: from the newest
	Limit   int       // at most 1,000; 0 means 100
}

// ChallengeFilter selects challenges, newest first.
type ChallengeFilter struct {
	Profile string
	State   challenge.State
	Limit   int // at most 1,000; 0 means 100
}

// A Use is what a request would use: names and a key.
type Use struct {
	Profile string
	Names   string // a digest of [policy.Names]
	SPKI    string // the digest of the key
	Except  string // a serial that does not count, or ""
	Now     time.Time
}

// Used is what is in use already.
type Used struct {
	Active     int64 // certificates of the names in the profile
	KeyByOther bool  // the key is certified for other names
}

// A CurrentCA is the generation of an issuer that an operator switched to.
type CurrentCA struct {
	Generation string
	Before     string // the one in whose place
	Since      time.Time
}

// A Fetch says that somebody at an address was given the certificates of a
// generation as those of the next CA.
type Fetch struct {
	Profile    string
	Generation string
	Source     string
	First      time.Time
	Last       time.Time
	Count      int64
}

// A CACount is how many certificates of a CA live: issued, not expired, not due to
// be revoked, not renewed.
type CACount struct {
	Issuer  string // as [Issuance] has it
	Profile string
	Live    int64
}
