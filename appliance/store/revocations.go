package store

import (
	"fmt"

	"github.com/postern-pki/postern/audit"
)

// RevocationObject is the object of the line that makes a revocation due, at the
// time of the line and for no reason that a list could name.
func RevocationObject(serial, why string) audit.Object {
	return audit.Object{"serial": serial, "why": why}
}

// RevokedObject is the object of the line by which somebody revokes.
func RevokedObject(r Revocation) audit.Object {
	return audit.Object{"serial": r.Serial, "reason": r.Reason, "at": r.At.Unix()}
}

func revocationOf(l audit.Line) (Change, error) {
	o := l.Record.Object
	r := Revocation{Serial: o.String("serial"), At: unix(l.Record.Time.Unix())}
	if l.Record.Outcome == OutRevoked {
		r.Reason, r.At = int(o.Int("reason")), unix(o.Int("at"))
		if o.Int("at") <= 0 || r.Reason < 0 || r.Reason > 10 {
			return nil, fmt.Errorf("a revocation without its time, or for a reason that there is not")
		}
	}
	return RevocationDue{r}, nil
}

// CRLObject is the object of the line that intends a list.
func CRLObject(in audit.CRLIntent, c CRL) audit.Object {
	return audit.Object{
		"crl": in.Object(), "this_update": c.ThisUpdate.Unix(), "next_update": c.NextUpdate.Unix(), "entries": c.Entries,
	}
}

func crlOf(l audit.Line) (Change, error) {
	in, ok := audit.CRLIntentOf(l)
	o := l.Record.Object
	if !ok || o.Int("this_update") <= 0 || o.Int("next_update") <= o.Int("this_update") {
		return nil, fmt.Errorf("an intended CRL without its number, digest or times")
	}
	return CRLIntent{CRL{
		Issuer: in.Issuer, Number: in.Number, Seq: l.Record.Seq,
		ThisUpdate: unix(o.Int("this_update")), NextUpdate: unix(o.Int("next_update")), Entries: o.Int("entries"),
	}}, nil
}

// CRLResultObject is the object of the line that closes the intent of a list. sum is
// the hex SHA-256 of what was signed, or "" where nothing was.
func CRLResultObject(seq uint64, in audit.CRLIntent, sum string) audit.Object {
	o := audit.Object{"intent_seq": seq, "issuer": in.Issuer, "number": in.Number}
	if sum != "" {
		o["sha256"] = sum
	}
	return o
}

func crlIssuedOf(l audit.Line) (Change, error) {
	seq, _, ok := audit.OutcomeOf(l)
	sum := l.Record.Object.String("sha256")
	if !ok || len(sum) != 64 {
		return nil, fmt.Errorf("a signed CRL without its intent or its digest")
	}
	return CRLIssued{Seq: seq, SHA256: sum}, nil
}
