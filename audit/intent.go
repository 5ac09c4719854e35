package audit

import "encoding/base64"

// maxTBS bounds a to-be-signed certificate, in octets before base64.
const maxTBS = 6 << 10

// An Intent is what a line commits to before a key is used: the whole
// to-be-signed certificate, and what it is for.
type Intent struct {
	Serial        string // lowercase hex
	TBS           []byte // DER of the TBSCertificate (RFC 5280, section 4.1)
	Issuer        string // the issuer's name in the configuration
	IssuerKey     string // hex SHA-256 of its SubjectPublicKeyInfo
	Challenge     string // id of the challenge that this spends, or ""
	RequestDigest string // hex SHA-256 of the CSR
	Profile       string
	Lineage       string
}

// Object is the value of an intent line's field "intent".
func (i Intent) Object() Object {
	return Object{
		"serial": i.Serial, "tbs": base64.StdEncoding.EncodeToString(i.TBS), "issuer": i.Issuer, "issuer_key": i.IssuerKey,
		"challenge": i.Challenge, "request_digest": i.RequestDigest, "profile": i.Profile, "lineage": i.Lineage,
	}
}

// IntentOf reads the intent of a line; false if the line is no intent.
func IntentOf(l Line) (Intent, bool) {
	if l.Record.Outcome != "intent" {
		return Intent{}, false
	}
	o := l.Record.Object.Object("intent")
	tbs, err := base64.StdEncoding.Strict().DecodeString(o.String("tbs"))
	if err != nil || len(tbs) == 0 || len(tbs) > maxTBS || o.String("serial") == "" || o.String("issuer") == "" {
		return Intent{}, false
	}
	return Intent{
		Serial: o.String("serial"), TBS: tbs, Issuer: o.String("issuer"), IssuerKey: o.String("issuer_key"),
		Challenge: o.String("challenge"), RequestDigest: o.String("request_digest"), Profile: o.String("profile"), Lineage: o.String("lineage"),
	}, true
}

// OutcomeOf reads which intent a line closes, and how: issued, failed or
// unknown; false if the line closes none.
func OutcomeOf(l Line) (intentSeq uint64, outcome string, ok bool) {
	switch l.Record.Outcome {
	case "issued", "failed", "unknown":
	default:
		return 0, "", false
	}
	switch l.Record.Object["intent_seq"].(type) {
	case int64, int, uint64:
	default:
		return 0, "", false
	}
	seq := l.Record.Object.Int("intent_seq")
	if seq < 0 || uint64(seq) >= l.Record.Seq {
		return 0, "", false
	}
	return uint64(seq), l.Record.Outcome, true
}
