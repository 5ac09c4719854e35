package audit

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/postern-pki/postern/audit/jcs"
)

// MaxLine is the size of the largest line, with its LF, in octets.
const MaxLine = 64 << 10

// Errors of records.
var (
	ErrTooLarge = errors.New("audit: the record is larger than 64 KiB")
	ErrRecord   = errors.New("audit: not a record")
	ErrReserved = errors.New("audit: events of this name are the log's own")
)

// An Object holds a record's own fields. Values are string, int, int64, uint64,
// []string, []any, Object or map[string]any; after a record was stored or read
// integers are int64 and lists []any.
type Object map[string]any

// String returns a field, "" if it is absent or no string.
func (o Object) String(key string) string { s, _ := o[key].(string); return s }

// Int returns a field, 0 if it is absent or no integer.
func (o Object) Int(key string) int64 {
	switch v := o[key].(type) {
	case int64:
		return v
	case int:
		return int64(v)
	case uint64:
		return int64(v)
	}
	return 0
}

// Strings returns a list of strings, nil if it is absent, empty or another list.
func (o Object) Strings(key string) []string {
	var out []string
	switch list := o[key].(type) {
	case []string:
		return append(out, list...)
	case []any:
		for _, v := range list {
			s, ok := v.(string)
			if !ok {
				return nil
			}
			out = append(out, s)
		}
	}
	return out
}

// Object returns an object within the object, nil if there is none.
func (o Object) Object(key string) Object { return objectOf(o[key]) }

func objectOf(v any) Object {
	switch v := v.(type) {
	case map[string]any:
		return v
	case Object:
		return v
	}
	return nil
}

// Objects returns a list of objects, nil if it is absent or another list.
func (o Object) Objects(key string) []Object {
	list, _ := o[key].([]any)
	var out []Object
	for _, v := range list {
		one := objectOf(v)
		if one == nil {
			return nil
		}
		out = append(out, one)
	}
	return out
}

// readBack copies v as [jcs.Parse] gives it back once it was written. What cannot
// be written stays as it is, for [jcs.Append] to refuse.
func readBack(v any) any {
	switch v := v.(type) {
	case string:
		return text(v)
	case int:
		return int64(v)
	case uint64:
		if v <= math.MaxInt64 {
			return int64(v)
		}
	case Object:
		return readBack(map[string]any(v))
	case map[string]any:
		m := make(map[string]any, len(v))
		for k, e := range v {
			m[text(k)] = readBack(e)
		}
		if len(m) < len(v) { // two keys became one
			return v
		}
		return m
	case []string:
		return listOf(v, func(s string) any { return text(s) })
	case []any:
		return listOf(v, readBack)
	case []Object:
		return listOf(v, func(o Object) any { return readBack(o) })
	}
	return v
}

func listOf[T any](in []T, of func(T) any) []any {
	out := make([]any, len(in))
	for i, v := range in {
		out[i] = of(v)
	}
	return out
}

// An Actor is who acted: Kind is device, operator, system, gate or ceremony.
type Actor struct{ Kind, ID, Source string }

func (a Actor) object() map[string]any {
	m := map[string]any{"kind": a.Kind}
	if a.ID != "" {
		m["id"] = a.ID
	}
	if a.Source != "" {
		m["src"] = a.Source
	}
	return m
}

// An Entry is a record before it has a place in the log.
type Entry struct {
	Event   string // ev
	Outcome string // out
	Request string // req; "" for what belongs to no request
	Actor   Actor
	Object  Object // ob
}

// A Record is a line's content.
type Record struct {
	Version int
	Seq     uint64
	Prev    string    // hex SHA-256 of the line before, 64 zeros in line 0
	Time    time.Time // UTC, microseconds
	Boot    string    // the kernel's boot id
	Mono    int64     // microseconds since that boot
	Event   string
	Outcome string
	Request string
	Actor   Actor
	Object  Object
}

const timeForm = "2006-01-02T15:04:05.000000Z"

// Encode returns the line of a record. It is for writers of a log of their own
// form, such as a ceremony's transcript; [Log.Append] does it for the log.
func Encode(r Record) (Line, error) {
	p, err := prepare(Entry{r.Event, r.Outcome, r.Request, r.Actor, r.Object})
	if err != nil {
		return Line{}, err
	}
	line, _, err := p.place(nil, r.Seq, r.Prev, r.Time, r.Boot, r.Mono)
	return line, err
}

// prepared is an entry with everything encoded that does not depend on its
// place, so that the one writer only puts pieces together.
type prepared struct {
	entry  Entry
	object Object // as a reader would have it
	head   []byte // from { to "actor":...
	body   []byte // "ob":...,"out":...
}

func prepare(e Entry) (*prepared, error) {
	if e.Event == "" || e.Outcome == "" || e.Actor.Kind == "" {
		return nil, fmt.Errorf("%w: event, outcome and actor are needed", ErrRecord)
	}
	ob := e.Object
	if ob == nil {
		ob = Object{}
	}
	e.Event, e.Outcome, e.Request = text(e.Event), text(e.Outcome), text(e.Request)
	e.Actor = Actor{text(e.Actor.Kind), text(e.Actor.ID), text(e.Actor.Source)}
	p := &prepared{entry: e}
	var err error
	if p.head, err = jcs.Append([]byte(`{"actor":`), e.Actor.object()); err != nil {
		return nil, fmt.Errorf("audit: actor: %w", err)
	}
	p.object = objectOf(readBack(ob))
	// As a field of the line, so that it is as deep here as where it is read.
	enc, err := jcs.Append(make([]byte, 0, objectSize), map[string]any{"ob": map[string]any(p.object)})
	if err != nil {
		return nil, fmt.Errorf("audit: object of %s: %w", e.Event, err)
	}
	if len(enc) > MaxLine {
		return nil, ErrTooLarge
	}
	p.body = jcs.AppendString(append(enc[1:len(enc)-1], `,"out":`...), e.Outcome)
	// The rest of a line is shorter than this.
	if most := 512 + len(p.head) + len(p.body) + 6*(len(e.Event)+len(e.Request)); most > MaxLine {
		return nil, ErrTooLarge
	}
	return p, nil
}

// text is s as it is read back: octets that are no UTF-8 became U+FFFD.
func text(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return string([]rune(s))
}

// objectSize holds the object of most records without growing, in octets.
const objectSize = 2 << 10

// most is more than the octets of the line, where boot and request are short.
func (p *prepared) most() int { return len(p.head) + len(p.body) + 512 }

// place puts the pieces together behind what is in dst, and returns the line, and
// all of what it is a part of; the keys are in canonical order.
func (p *prepared) place(dst []byte, seq uint64, prev string, t time.Time, boot string, mono int64) (Line, []byte, error) {
	t = t.UTC().Truncate(time.Microsecond)
	start := len(dst)
	b := append(slices.Grow(dst, p.most()), p.head...)
	b = jcs.AppendString(append(b, `,"boot":`...), boot)
	b = jcs.AppendString(append(b, `,"ev":`...), p.entry.Event)
	b = strconv.AppendInt(append(b, `,"mono":`...), mono, 10)
	b = append(append(b, ','), p.body...)
	b = jcs.AppendString(append(b, `,"prev":`...), prev)
	b = jcs.AppendString(append(b, `,"req":`...), p.entry.Request)
	b = strconv.AppendUint(append(b, `,"seq":`...), seq, 10)
	b = jcs.AppendString(append(b, `,"t":`...), t.Format(timeForm))
	b = append(b, `,"v":1}`...)
	b = append(b, '\n')
	if len(b)-start > MaxLine {
		return Line{}, dst, ErrTooLarge
	}
	return Line{Raw: b[start:len(b):len(b)], Record: Record{
		Version: 1, Seq: seq, Prev: prev, Time: t, Boot: boot, Mono: mono,
		Event: p.entry.Event, Outcome: p.entry.Outcome, Request: p.entry.Request, Actor: p.entry.Actor, Object: p.object,
	}}, b, nil
}

// ParseLine reads a line with its LF. It accepts the canonical form alone, with
// exactly the fields of a record.
func ParseLine(raw []byte) (Line, error) {
	if len(raw) > MaxLine {
		return Line{}, ErrTooLarge
	}
	text, ok := bytes.CutSuffix(raw, []byte("\n"))
	if !ok {
		return Line{}, fmt.Errorf("%w: it does not end in LF", ErrRecord)
	}
	v, err := jcs.Parse(text)
	if err != nil {
		return Line{}, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	o := objectOf(v)
	if len(o) != 11 {
		return Line{}, fmt.Errorf("%w: its fields are not those of a record", ErrRecord)
	}
	actor := o.Object("actor")
	r := Record{
		Version: int(o.Int("v")), Seq: uint64(o.Int("seq")), Prev: o.String("prev"), Boot: o.String("boot"), Mono: o.Int("mono"),
		Event: o.String("ev"), Outcome: o.String("out"), Request: o.String("req"), Object: o.Object("ob"),
		Actor: Actor{actor.String("kind"), actor.String("id"), actor.String("src")},
	}
	if len(actor) != len(r.Actor.object()) {
		return Line{}, fmt.Errorf("%w: the actor has a field that is empty or unknown", ErrRecord)
	}
	if err := r.check(o); err != nil {
		return Line{}, err
	}
	r.Time, _ = time.Parse(timeForm, o.String("t"))
	return Line{Raw: bytes.Clone(raw), Record: r}, nil
}

// check refuses a record in which a field is missing or has another type.
func (r *Record) check(o Object) error {
	_, req := o["req"].(string)
	_, boot := o["boot"].(string)
	_, mono := o["mono"].(int64)
	_, seq := o["seq"].(int64)
	t, err := time.Parse(timeForm, o.String("t"))
	prev, hexErr := hex.DecodeString(r.Prev)
	switch {
	case r.Version != 1:
		return fmt.Errorf("%w: its version is not 1", ErrRecord)
	case !seq || int64(r.Seq) < 0 || !req || !boot || !mono || r.Object == nil || r.Event == "" || r.Outcome == "" || r.Actor.Kind == "":
		return fmt.Errorf("%w: a field is missing or of another type", ErrRecord)
	case err != nil || t.Format(timeForm) != o.String("t"):
		return fmt.Errorf("%w: its time has another form", ErrRecord)
	case hexErr != nil || len(prev) != 32 || hex.EncodeToString(prev) != r.Prev:
		return fmt.Errorf("%w: its prev is no SHA-256", ErrRecord)
	}
	return nil
}

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
