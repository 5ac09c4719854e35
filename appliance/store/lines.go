package store

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/policy/challenge"
)

// The events and outcomes that change the index.
const (
	EventEnroll     = "enroll"
	EventChallenge  = "challenge"
	EventRevocation = "revocation"
	EventCRL        = "crl"
	EventCA         = "ca"
	EventMessage    = "message"

	OutIntent   = "intent"
	OutIssued   = "issued"
	OutFailed   = "failed"
	OutUnknown  = "unknown"
	OutRefused  = "refused"
	OutRepeated = "repeated"
	OutCreated  = "created"
	OutRevoked  = "revoked"
	OutDue      = "due"
	OutSwitched = "switched"
	OutServed   = "served"
)

// A Change is one effect of a line on the index: [ChallengeCreated],
// [ChallengeRevoked], [ChallengeRefused], [PendingAdded], [PendingDenied], [Intent],
// [Result], [NoticeOwed], [NoticeGiven], [RevocationDue], [CRLIntent], [CRLIssued], [CASwitched] or [NextCAFetched].
type Change interface{ change() }

type (
	// ChallengeCreated adds an open challenge.
	ChallengeCreated struct{ Record challenge.Record }
	// ChallengeRevoked closes a challenge that is open; a spent one stays spent.
	ChallengeRevoked struct{ ID string }
	// ChallengeRefused counts a refusal of a request that showed the challenge.
	ChallengeRefused struct{ ID string }
	// Intent adds a serial in state [Intended] and spends its challenge, which
	// remembers the intent and the lineage. Pending is the id of the request, which
	// has to be [Waiting], that an operator approved; "" where nobody had to.
	Intent struct {
		Issuance Issuance
		Pending  string
	}
	// Result closes an intent. [Failed] frees the challenge that the intent spent:
	// it is open again, with the expiry it had.
	Result struct {
		IntentSeq   uint64
		Seq         uint64
		State       State
		Certificate []byte
	}
	// RevocationDue marks a serial to be listed as revoked: it was revoked, or its
	// intent came to nobody knows what. The first one stands. Where its state is
	// [Unknown] this frees the challenge that its intent spent.
	RevocationDue struct{ Revocation }
	// CRLIntent is an issuer's newest list, which takes the place of the one before.
	CRLIntent struct{ CRL CRL }
	// CRLIssued says that the list of the intent was signed.
	CRLIssued struct {
		Seq    uint64 // of the intent
		SHA256 string
	}
	// CASwitched makes a generation of an issuer the one that devices are given.
	CASwitched struct {
		Issuer string
		CurrentCA
	}
	// NextCAFetched counts an answer to GetNextCACert. Who asked is known by the
	// address alone.
	NextCAFetched struct {
		Profile    string
		Generation string
		Source     string // the address, without the port
		At         time.Time
	}
)

func (ChallengeCreated) change() {}
func (ChallengeRevoked) change() {}
func (ChallengeRefused) change() {}
func (Intent) change()           {}
func (Result) change()           {}
func (RevocationDue) change()    {}
func (CRLIntent) change()        {}
func (CRLIssued) change()        {}
func (CASwitched) change()       {}
func (NextCAFetched) change()    {}

// Changes reads a line's effects on the index; most lines have none. It is the
// only reader of these fields, as the functions beside it are the only writers.
// An error means a line of ours that lacks what it must have.
func Changes(l audit.Line) ([]Change, error) {
	r := l.Record
	var c Change
	var err error
	switch r.Event + "/" + r.Outcome {
	case EventChallenge + "/" + OutCreated:
		c, err = challengeOf(r.Object)
	case EventChallenge + "/" + OutRevoked:
		c = ChallengeRevoked{ID: r.Object.String("id")}
	case EventRevocation + "/" + OutDue, EventRevocation + "/" + OutRevoked:
		c, err = revocationOf(l)
	case EventCRL + "/" + OutIntent:
		c, err = crlOf(l)
	case EventCRL + "/" + OutIssued:
		c, err = crlIssuedOf(l)
	case EventEnroll + "/" + OutIntent:
		c, err = intentOf(l)
	case EventEnroll + "/" + OutIssued, EventEnroll + "/" + OutFailed, EventEnroll + "/" + OutUnknown:
		c, err = resultOf(l)
	case EventEnroll + "/" + OutPending:
		c, err = pendingOf(l)
	case EventValidator + "/" + OutTold:
		c, err = toldOf(r.Object)
	case EventEnroll + "/" + OutDenied:
		c, err = denialOf(l)
	case EventCA + "/" + OutSwitched:
		c, err = switchedOf(r)
	case EventMessage + "/" + OutServed:
		if next := r.Object.String("next_ca"); next != "" {
			c = NextCAFetched{Profile: r.Object.String("profile"), Generation: next, Source: hostOf(r.Actor.Source), At: r.Time.UTC().Truncate(time.Second)}
		}
	case EventEnroll + "/" + OutRefused:
		if id := r.Object.String("challenge_refused"); id != "" {
			c = ChallengeRefused{ID: id}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("store: line %d: %w", r.Seq, err)
	}
	if c == nil {
		return nil, nil
	}
	if i, ok := c.(Intent); ok {
		if owed := owedOf(l, i.Issuance); owed != nil {
			return []Change{c, owed}, nil
		}
	}
	return []Change{c}, nil
}

// ChallengeObject is the object of the line that creates a challenge.
func ChallengeObject(r challenge.Record) audit.Object {
	return audit.Object{
		"id": r.ID, "profile": r.Profile, "tag": hex.EncodeToString(r.Tag[:]),
		"created": r.Created.Unix(), "expires": r.Expires.Unix(), "names": namesObject(r.Names),
	}
}

func challengeOf(o audit.Object) (Change, error) {
	tag, err := hex.DecodeString(o.String("tag"))
	if err != nil || len(tag) != 32 || o.String("id") == "" {
		return nil, fmt.Errorf("a challenge without id or tag")
	}
	return ChallengeCreated{challenge.Record{
		ID: o.String("id"), Profile: o.String("profile"), Tag: [32]byte(tag), Names: namesOf(o.Object("names")),
		Created: unix(o.Int("created")), Expires: unix(o.Int("expires")), State: challenge.Open,
	}}, nil
}

func namesObject(n policy.Names) audit.Object {
	subject := make([]any, 0, len(n.Subject))
	for _, a := range n.Subject {
		subject = append(subject, audit.Object{"name": a.Name, "value": a.Value})
	}
	return audit.Object{"subject": subject, "dns": n.DNS, "ip": n.IP, "email": n.Email, "uri": n.URI}
}

func namesOf(o audit.Object) policy.Names {
	n := policy.Names{DNS: o.Strings("dns"), IP: o.Strings("ip"), Email: o.Strings("email"), URI: o.Strings("uri")}
	for _, a := range o.Objects("subject") {
		n.Subject = append(n.Subject, policy.Attribute{Name: a.String("name"), Value: a.String("value")})
	}
	return n
}

// IntentObject is the object of an intent line. The caller may add facts and
// reasons under keys of their own, and under "pending" the id of the request that
// was approved.
func IntentObject(in audit.Intent, i Issuance) audit.Object {
	return audit.Object{
		"intent":  in.Object(),
		"subject": i.Subject, "names": i.Names, "spki": i.SPKI,
		"not_before": i.NotBefore.Unix(), "not_after": i.NotAfter.Unix(),
		"generation": i.Generation, "lineage_from": i.LineageFrom.Unix(), "predecessor": i.Predecessor,
		"transaction": i.Transaction, "signer": i.Signer, "csr": i.CSR,
	}
}

func intentOf(l audit.Line) (Change, error) {
	in, ok := audit.IntentOf(l)
	if !ok {
		return nil, fmt.Errorf("an intent without its to-be-signed certificate")
	}
	o := l.Record.Object
	return Intent{Pending: o.String("pending"), Issuance: Issuance{
		IntentSeq: l.Record.Seq, Serial: in.Serial, Profile: in.Profile, Issuer: in.Issuer, Request: l.Record.Request,
		Subject: o.String("subject"), Names: o.String("names"), SPKI: o.String("spki"),
		NotBefore: unix(o.Int("not_before")), NotAfter: unix(o.Int("not_after")),
		Lineage: in.Lineage, Generation: o.Int("generation"), LineageFrom: unix(o.Int("lineage_from")),
		Predecessor: o.String("predecessor"), Challenge: in.Challenge,
		Transaction: o.String("transaction"), Signer: o.String("signer"), CSR: o.String("csr"), State: Intended,
		Source: sourceOf(l.Record),
	}}, nil
}

// sourceOf is the address of the device that asked: where an operator approved, the
// line has it beside.
func sourceOf(r audit.Record) string {
	if r.Actor.Kind == "device" {
		return hostOf(r.Actor.Source)
	}
	return hostOf(r.Object.String("source"))
}

// hostOf is the address of a peer without its port.
func hostOf(source string) string {
	host, _, err := net.SplitHostPort(source)
	if err != nil {
		return source
	}
	return host
}

// ResultObject is the object of the line that closes an intent. The certificate
// is DER and set only where it was issued.
func ResultObject(intentSeq uint64, serial string, certificate []byte) audit.Object {
	o := audit.Object{"intent_seq": intentSeq, "serial": serial}
	if certificate != nil {
		o["certificate"] = base64.StdEncoding.EncodeToString(certificate)
	}
	return o
}

func resultOf(l audit.Line) (Change, error) {
	seq, outcome, ok := audit.OutcomeOf(l)
	if !ok {
		return nil, fmt.Errorf("a result that names no intent")
	}
	r := Result{IntentSeq: seq, Seq: l.Record.Seq, State: State(outcome)}
	if r.State == Issued {
		der, err := base64.StdEncoding.DecodeString(l.Record.Object.String("certificate"))
		if err != nil || len(der) == 0 {
			return nil, fmt.Errorf("an issued certificate that is not in its line")
		}
		r.Certificate = der
	}
	return r, nil
}

func unix(s int64) time.Time { return time.Unix(s, 0).UTC() }

// SwitchedObject is the object of the line that makes a generation the current one
// in the place of another.
func SwitchedObject(issuer, from, to string) audit.Object {
	return audit.Object{"issuer": issuer, "from": from, "to": to}
}

func switchedOf(r audit.Record) (Change, error) {
	o := r.Object
	c := CASwitched{Issuer: o.String("issuer"), CurrentCA: CurrentCA{Generation: o.String("to"), Before: o.String("from"), Since: r.Time.UTC().Truncate(time.Second)}}
	if c.Issuer == "" || c.Generation == "" {
		return nil, fmt.Errorf("a switch that names no issuer or no generation")
	}
	return c, nil
}
