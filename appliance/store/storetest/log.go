package storetest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/policy/challenge"
)

// Day is the time of everything that the suite does not date otherwise.
func Day() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

// A Log makes lines that continue each other from the first on, as the audit log
// would write them, and keeps them.
type Log struct {
	t     testing.TB
	at    mark
	Lines []audit.Line
	// Written are the same lines as who appended them has them: with the objects
	// that were written, not with those that were read.
	Written []audit.Line
}

// NewLog returns an empty log. What it can not write fails the test.
func NewLog(t testing.TB) *Log { return &Log{t: t} }

// Add appends a line.
func (l *Log) Add(event, outcome, request string, object audit.Object) audit.Line {
	l.t.Helper()
	seq := l.at.seq
	var b bytes.Buffer
	e := json.NewEncoder(&b) // canonical for ASCII text and integers: map keys are sorted
	e.SetEscapeHTML(false)
	err := e.Encode(map[string]any{
		"v": 1, "seq": seq, "prev": hex.EncodeToString(l.at.prev[:]), "t": "2026-03-01T12:00:00.000000Z",
		"boot": "00000000000000000000000000000000", "mono": 1000 * seq, "ev": event, "out": outcome, "req": request,
		"actor": map[string]any{"kind": "system"}, "ob": plain(object),
	})
	if err != nil {
		l.t.Fatal(err)
	}
	line, err := audit.ParseLine(b.Bytes())
	if err != nil {
		l.t.Fatalf("the suite writes a line that is none: %v\n%s", err, b.Bytes())
	}
	written := line
	written.Record.Object = object
	l.Lines, l.Written = append(l.Lines, line), append(l.Written, written)
	l.at = mark{seq + 1, line.Hash()}
	return line
}

// plain writes no list as an empty one: the log has no null.
func plain(v any) any {
	switch v := v.(type) {
	case audit.Object:
		out := map[string]any{}
		for key, value := range v {
			out[key] = plain(value)
		}
		return out
	case []any:
		out := make([]any, 0, len(v))
		for _, value := range v {
			out = append(out, plain(value))
		}
		return out
	case []string:
		return append([]string{}, v...)
	default:
		return v
	}
}

// A mark is a place in a log: the seq of the next line and the hash of the last.
type mark struct {
	seq  uint64
	prev [32]byte
}

// back takes back the lines after a mark, which were refused.
func (l *Log) back(to mark) {
	kept := uint64(len(l.Lines)) - (l.at.seq - to.seq)
	l.Lines, l.Written, l.at = l.Lines[:kept], l.Written[:kept], to
}

// Next is the seq of the next line.
func (l *Log) Next() uint64 { return l.at.seq }

// Forget keeps no line of those that were made: a long log would not fit.
func (l *Log) Forget() { l.Lines, l.Written = nil, nil }

// Other appends a line that has no effect on an index.
func (l *Log) Other() audit.Line {
	return l.Add("system.note", "ok", "", audit.Object{"what": "nothing"})
}

// Start appends the first line, which is the same in every log, as a batch.
func (l *Log) Start() []audit.Line { return []audit.Line{l.Other()} }

// Created appends the creation of a challenge.
func (l *Log) Created(r challenge.Record) audit.Line {
	return l.Add(store.EventChallenge, store.OutCreated, "", store.ChallengeObject(r))
}

// Revoked appends the revocation of a challenge.
func (l *Log) Revoked(id string) audit.Line {
	return l.Add(store.EventChallenge, store.OutRevoked, "", audit.Object{"id": id, "why": "test"})
}

// Refused appends the refusal of a request that showed a challenge.
func (l *Log) Refused(id string) audit.Line {
	return l.Add(store.EventEnroll, store.OutRefused, "refused", audit.Object{"challenge_refused": id})
}

// Intent appends an intent. Its seq is that of the line, whatever i says.
func (l *Log) Intent(i store.Issuance) audit.Line {
	return l.Add(store.EventEnroll, store.OutIntent, i.Request, store.IntentObject(intentFor(i), i))
}

func intentFor(i store.Issuance) audit.Intent {
	return audit.Intent{
		Serial: i.Serial, TBS: []byte("0\x03to-be-signed " + i.Serial), Issuer: i.Issuer, IssuerKey: Digest("issuer"),
		Challenge: i.Challenge, RequestDigest: i.CSR, Profile: i.Profile, Lineage: i.Lineage,
	}
}

// Approved appends the intent that an operator's approval of a request brought.
func (l *Log) Approved(i store.Issuance, pending string) audit.Line {
	in := audit.Intent{
		Serial: i.Serial, TBS: []byte("0\x03to-be-signed " + i.Serial), Issuer: i.Issuer, IssuerKey: Digest("issuer"),
		RequestDigest: i.CSR, Profile: i.Profile, Lineage: i.Lineage,
	}
	o := store.IntentObject(in, i)
	o["pending"] = pending
	return l.Add(store.EventEnroll, store.OutIntent, i.Request, o)
}

// Pending appends a request that waits.
func (l *Log) Pending(p store.Pending) audit.Line {
	return l.Add(store.EventEnroll, store.OutPending, p.Request, store.PendingObject(p))
}

// Denied appends the denial of a request.
func (l *Log) Denied(request string) audit.Line {
	return l.Add(store.EventEnroll, store.OutDenied, request, store.DenialObject(request, "not of <our> fleet"))
}

// Result appends the result of an intent.
func (l *Log) Result(intent uint64, state store.State) audit.Line {
	var der []byte
	if state == store.Issued {
		der = DER(intent)
	}
	return l.Add(store.EventEnroll, string(state), "result", store.ResultObject(intent, "", der))
}

// Due appends the revocation of a serial.
func (l *Log) Due(serial string) audit.Line {
	return l.Add(store.EventRevocation, store.OutDue, "", store.RevocationObject(serial, "test"))
}

// RevokedFor appends the revocation of a serial by somebody.
func (l *Log) RevokedFor(r store.Revocation) audit.Line {
	return l.Add(store.EventRevocation, store.OutRevoked, "", store.RevokedObject(r))
}

// CRL appends the intent of a list. Its seq is that of the line, whatever c says.
func (l *Log) CRL(c store.CRL) audit.Line {
	in := audit.CRLIntent{Issuer: c.Issuer, Number: c.Number, Digest: Digest(fmt.Sprint(c.Issuer, c.Number))}
	return l.Add(store.EventCRL, store.OutIntent, "", store.CRLObject(in, c))
}

// CRLIssued appends that the list of an intent was signed.
func (l *Log) CRLIssued(seq uint64) audit.Line {
	return l.Add(store.EventCRL, store.OutIssued, "", store.CRLResultObject(seq, audit.CRLIntent{Issuer: "corp", Number: 1}, Digest(fmt.Sprint("crl", seq))))
}

// DER stands for the certificate of an intent.
func DER(intent uint64) []byte { return fmt.Appendf(nil, "certificate of intent %d", intent) }

// Digest is the hex SHA-256 of a name.
func Digest(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])
}

// Challenge is an open challenge with everything derived from its id.
func Challenge(id string) challenge.Record {
	return challenge.Record{
		ID: id, Profile: "wifi", Tag: sha256.Sum256([]byte("tag of " + id)), State: challenge.Open,
		Names: policy.Names{
			Subject: []policy.Attribute{{Name: "CN", Value: id + ".corp.example"}, {Name: "O", Value: "Example <Corp> & Sons"}},
			DNS:     []string{id + ".corp.example"},
		},
		Created: Day(), Expires: Day().Add(30 * time.Minute),
	}
}

// Issuance is an intent for a device that brings no challenge; its names, key and
// request are its own, and it is valid for a year.
func Issuance(device, serial string) store.Issuance {
	return store.Issuance{
		Serial: serial, Profile: "wifi", Issuer: "corp", Request: "req-" + serial, Subject: "CN=" + device + ",O=Example Corp",
		Names: Digest("names of " + device), SPKI: Digest("key of " + device),
		NotBefore: Day().Add(-time.Hour), NotAfter: Day().AddDate(1, 0, 0),
		Lineage: "req-" + serial, LineageFrom: Day(), Transaction: "tx-" + serial,
		Signer: "key:" + Digest("key of "+device), CSR: Digest("csr " + serial), State: store.Intended,
	}
}

// Renewal is an intent for the same names and lineage by the certificate of i.
func Renewal(i store.Issuance, serial string) store.Issuance {
	r := i
	r.Serial, r.Request, r.Transaction, r.CSR = serial, "req-"+serial, "tx-"+serial, Digest("csr "+serial)
	r.SPKI, r.Signer = Digest("key of "+serial), "cert:"+Digest(i.Serial)
	r.Generation, r.Predecessor, r.Challenge = i.Generation+1, i.Serial, ""
	return r
}

// Pending is a request that waits for a week, without a challenge, for what
// [Issuance] would be issued for.
func Pending(device, request string) store.Pending {
	i := Issuance(device, "00")
	return store.Pending{
		Request: request, Profile: i.Profile, Issuer: i.Issuer, Kind: policy.KindNew, Subject: i.Subject, Names: i.Names, SPKI: i.SPKI,
		Transaction: "tx-" + device, Signer: i.Signer, CSR: Digest("csr of " + device), Policy: "sha256:" + Digest("policy"),
		Created: Day(), Expires: Day().AddDate(0, 0, 7), State: store.Waiting,
		Facts: policy.Facts{
			Profile: i.Profile, Kind: policy.KindNew, Now: Day().Unix(), Key: policy.KeyFacts{Type: "RSA", Bits: 2048, Exponent: 65537, SPKI: "c3BraQ=="},
			Subject: []policy.Attribute{{Name: "CN", Value: device + " <corp> & sons"}}, DNS: []string{device + ".corp.example"},
			CSRSignature: "SHA256-RSA", Digest: "SHA-256", Cipher: "AES-128-CBC", Authorization: policy.Authorized,
		},
	}
}
