package store

import (
	"encoding/hex"
	"fmt"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/policy"
)

// The outcomes of requests that wait for an operator.
const (
	OutPending  = "pending"
	OutApproved = "approved" // stands before the intent, durable together with it
	OutDenied   = "denied"
)

// PendingState is what became of a request that waits for an operator.
type PendingState string

// The states of such a request. An approval whose certificate was not signed leaves
// it waiting. That it expired is no state: time tells.
const (
	Waiting  PendingState = "waiting"
	Approved PendingState = "approved" // the intent has no outcome yet
	Granted  PendingState = "issued"
	Denied   PendingState = "denied"
)

// A Pending is a request that passed authorization and policy and waits for an
// operator, as its line has it. The line spends its challenge. The CSR is not kept:
// it holds the challenge. What a certificate is made from are the facts.
type Pending struct {
	Seq         uint64 // of the line
	Digest      string // hex SHA-256 of the line with its LF: what an operator approves
	Request     string // request id, and the lineage of a new enrollment
	Profile     string
	Issuer      string // the CA's own name, as in [Issuance]: of the generation that the request is for
	Kind        string // see policy.Facts
	Subject     string // RFC 4514
	Names       string // digest of all names, see policy.Names
	SPKI        string // hex SHA-256 of the SubjectPublicKeyInfo
	Transaction string
	Signer      string // as in [Issuance]
	CSR         string // hex SHA-256
	Challenge   string // id that the line spent, or ""
	Predecessor string // serial that a renewal was signed by, or ""
	Source      string // the peer's address
	Policy      string // digest of the policy that let it wait
	Created     time.Time
	Expires     time.Time
	Facts       policy.Facts

	State     PendingState
	Serial    string // of the newest approval, whatever came of it, or ""
	DeniedSeq uint64 // 0 unless denied
	Why       string // of a denial
}

// Open reports whether an operator can decide on it at the time now.
func (p *Pending) Open(now time.Time) bool { return p.State == Waiting && now.Before(p.Expires) }

// PendingFilter selects requests that wait or did, newest first.
type PendingFilter struct {
	Profile string
	State   PendingState
	Before  uint64    // seq to continue before; 0: from the newest
	After   time.Time // those that expire after it; zero: all
	Limit   int       // at most 1,000; 0 means 100
}

// Changes of requests that wait.
type (
	// PendingAdded adds a request in state [Waiting] and spends its challenge, which
	// remembers the line and the lineage.
	PendingAdded struct{ Pending Pending }
	// PendingDenied closes a request that is [Waiting].
	PendingDenied struct {
		Request string
		Seq     uint64
		Why     string
	}
)

func (PendingAdded) change()  {}
func (PendingDenied) change() {}

// PendingObject is the object of the line that makes a request wait. The caller may
// add what else is to be known under keys of their own.
func PendingObject(p Pending) audit.Object {
	return audit.Object{
		"profile": p.Profile, "issuer": p.Issuer, "kind": p.Kind, "subject": p.Subject, "names": p.Names, "spki": p.SPKI,
		"transaction": p.Transaction, "signer": p.Signer, "csr": p.CSR, "challenge": p.Challenge, "predecessor": p.Predecessor,
		"policy": p.Policy, "created": p.Created.Unix(), "expires": p.Expires.Unix(), "facts": audit.Object(p.Facts.Object()),
	}
}

func pendingOf(l audit.Line) (Change, error) {
	o, hash := l.Record.Object, l.Hash()
	facts, err := policy.FactsOf(o.Object("facts"))
	if err != nil || l.Record.Request == "" || o.String("profile") == "" || o.Int("expires") == 0 {
		return nil, fmt.Errorf("a request that waits without id, profile, expiry or facts")
	}
	return PendingAdded{Pending{
		Seq: l.Record.Seq, Digest: hex.EncodeToString(hash[:]), Request: l.Record.Request,
		Profile: o.String("profile"), Issuer: o.String("issuer"), Kind: o.String("kind"), Subject: o.String("subject"), Names: o.String("names"), SPKI: o.String("spki"),
		Transaction: o.String("transaction"), Signer: o.String("signer"), CSR: o.String("csr"),
		Challenge: o.String("challenge"), Predecessor: o.String("predecessor"), Source: l.Record.Actor.Source, Policy: o.String("policy"),
		Created: unix(o.Int("created")), Expires: unix(o.Int("expires")), Facts: facts, State: Waiting,
	}}, nil
}

// DenialObject is the object of the line that denies a request.
func DenialObject(request, why string) audit.Object {
	return audit.Object{"pending": request, "why": why}
}

func denialOf(l audit.Line) (Change, error) {
	request := l.Record.Object.String("pending")
	if request == "" {
		return nil, fmt.Errorf("a denial of nothing")
	}
	return PendingDenied{Request: request, Seq: l.Record.Seq, Why: l.Record.Object.String("why")}, nil
}
