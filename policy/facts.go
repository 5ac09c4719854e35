package policy

import (
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// The kinds of request.
const (
	KindNew        = "new"         // a signer that is not ours
	KindRenewal    = "renewal"     // signed by the certificate that it renews
	KindNewLineage = "new-lineage" // a signer of ours, and an open challenge
)

// Authorized is the value of [Facts.Authorization] of a request that may be
// granted; any other is the reason why it may not.
const Authorized = "ok"

// Facts are everything that a decision is made from: strings and integers only,
// so that a record can hold them and a replay can read them. A stranger's long
// fields are cut by the caller, before the decision.
type Facts struct {
	Profile string   `json:"profile"`
	Kind    string   `json:"kind"`
	Now     int64    `json:"now"` // seconds since 1970, UTC
	Key     KeyFacts `json:"key"`

	Subject             []Attribute `json:"subject,omitempty"` // as requested, in the order of the DER
	DNS                 []string    `json:"dns,omitempty"`
	IP                  []string    `json:"ip,omitempty"`
	Email               []string    `json:"email,omitempty"`
	URI                 []string    `json:"uri,omitempty"`
	OtherSAN            []string    `json:"other_san,omitempty"`            // kind or OID of each other name
	RequestedExtensions []string    `json:"requested_extensions,omitempty"` // see [ExtensionFact]

	CSRSignature string `json:"csr_signature"`           // such as "SHA256-RSA"
	SignerDigest string `json:"signer_digest,omitempty"` // hex SHA-256 of the signer's certificate
	Digest       string `json:"digest"`                  // of the message, such as "SHA-256"
	Cipher       string `json:"cipher"`                  // of the message, such as "AES-128-CBC"

	Authorization string        `json:"authorization"`           // [Authorized] or the reason why not
	AuthorizedBy  string        `json:"authorized_by,omitempty"` // "challenge:<id>", "certificate:<serial>", or "approval": a person alone
	Validators    []string      `json:"validators,omitempty"`    // what each said, see [Validator.Fact]
	Renewal       *RenewalFacts `json:"renewal,omitempty"`       // of a renewal, and of nothing else

	ActiveForSubject int64 `json:"active_for_subject"` // living certificates of the subject, without the one that is renewed
	IssuedLastMinute int64 `json:"issued_last_minute"` // by this profile
	KeyOtherSubject  int64 `json:"key_other_subject"`  // 1: the key is certified for another subject
}

// KeyFacts describe the key that is to be certified.
type KeyFacts struct {
	Type     string `json:"type"` // "RSA", "ECDSA", "Ed25519" or "other"
	Bits     int64  `json:"bits"`
	Exponent int64  `json:"exponent"` // 0 unless RSA
	Curve    string `json:"curve,omitempty"`
	SPKI     string `json:"spki"` // base64 of the SubjectPublicKeyInfo's DER
}

// RenewalFacts describe the lineage and the certificate that is renewed. Times
// are seconds since 1970, UTC.
type RenewalFacts struct {
	Count        int64 `json:"count"` // renewals that the lineage has had
	LineageStart int64 `json:"lineage_start"`
	NotBefore    int64 `json:"not_before"`
	NotAfter     int64 `json:"not_after"`
	SameKey      int64 `json:"same_key"`   // 1: the request has the certificate's key
	SameNames    int64 `json:"same_names"` // 1: the request has the certificate's names
}

// caMark is what [ExtensionFact] adds for a request to become a CA.
const caMark = " CA:TRUE"

const oidBasicConstraints = "2.5.29.19"

// ExtensionFact returns how [Facts.RequestedExtensions] names an extension: its
// dotted OID, and a mark on basicConstraints with cA TRUE (RFC 5280, section
// 4.2.1.9) or with a value that can not be read.
func ExtensionFact(oid asn1.ObjectIdentifier, value []byte) string {
	id := oid.String()
	if id != oidBasicConstraints {
		return id
	}
	in, ca := cryptobyte.String(value), false
	var seq cryptobyte.String
	if !in.ReadASN1(&seq, cbasn1.SEQUENCE) || !in.Empty() ||
		!seq.ReadOptionalASN1Boolean(&ca, cbasn1.BOOLEAN, false) || ca {
		return id + caMark
	}
	return id
}

// errFacts is wrapped by every error of FactsOf.
var errFacts = errors.New("policy: facts")

// exact is the first integer that a double can not tell from its neighbor; a
// record's integers stay below it, so larger ones are kept as text.
const exact = 1 << 53

// Object returns the facts as an object of strings, int64, lists and objects, for
// a record. [FactsOf] gives them back.
func (f Facts) Object() map[string]any {
	o := map[string]any{"key": structObject(reflect.ValueOf(f.Key))}
	if f.Renewal != nil {
		o["renewal"] = structObject(reflect.ValueOf(*f.Renewal))
	}
	if len(f.Subject) > 0 {
		o["subject"] = attributesObject(f.Subject)
	}
	for k, v := range structObject(reflect.ValueOf(f)) {
		o[k] = v
	}
	return o
}

func attributesObject(attrs []Attribute) []any {
	list := make([]any, len(attrs))
	for i, a := range attrs {
		list[i] = map[string]any{"name": a.Name, "value": a.Value}
	}
	return list
}

// structObject returns the fields of a struct of ours that are strings, integers
// or lists of strings, by their JSON names; empty text and lists are left out.
func structObject(v reflect.Value) map[string]any {
	o := map[string]any{}
	for i := range v.NumField() {
		key, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		switch x := v.Field(i).Interface().(type) {
		case string:
			if x != "" {
				o[key] = x
			}
		case int64:
			if o[key] = x; x >= exact || x <= -exact {
				o[key] = strconv.FormatInt(x, 10)
			}
		case []string:
			if len(x) > 0 {
				o[key] = append([]string(nil), x...)
			}
		}
	}
	return o
}

// FactsOf reads what [Facts.Object] wrote, also after a record was parsed again.
// A key that it does not know is an error: a replay must not decide from half.
func FactsOf(o map[string]any) (Facts, error) {
	var f Facts
	rest := map[string]any{}
	for key, value := range o {
		var err error
		switch key {
		case "key":
			err = fillObject(&f.Key, value)
		case "renewal":
			f.Renewal = &RenewalFacts{}
			err = fillObject(f.Renewal, value)
		case "subject":
			f.Subject, err = attributesOf(value)
		default:
			rest[key] = value
		}
		if err != nil {
			return Facts{}, fmt.Errorf("%w: %s: %w", errFacts, key, err)
		}
	}
	if err := fill(reflect.ValueOf(&f).Elem(), rest); err != nil {
		return Facts{}, fmt.Errorf("%w: %w", errFacts, err)
	}
	return f, nil
}

func attributesOf(value any) ([]Attribute, error) {
	list := reflect.ValueOf(value)
	if list.Kind() != reflect.Slice {
		return nil, errors.New("not a list")
	}
	var out []Attribute
	for i := range list.Len() {
		var a Attribute
		if err := fillObject(&a, list.Index(i).Interface()); err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

// fillObject reads an object into the struct that to points at. Objects may be
// of any map type with string keys: a log has a name of its own for them.
func fillObject(to, value any) error {
	m := reflect.ValueOf(value)
	if m.Kind() != reflect.Map || m.Type().Key().Kind() != reflect.String {
		return errors.New("not an object")
	}
	o := make(map[string]any, m.Len())
	for it := m.MapRange(); it.Next(); {
		o[it.Key().String()] = it.Value().Interface()
	}
	return fill(reflect.ValueOf(to).Elem(), o)
}

// fill reads the values into the fields of a struct of ours, by JSON name.
func fill(v reflect.Value, o map[string]any) error {
	fields := map[string]reflect.Value{}
	for i := range v.NumField() {
		key, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		fields[key] = v.Field(i)
	}
	for key, value := range o {
		field, ok := fields[key]
		if !ok {
			return fmt.Errorf("unknown key %q", key)
		}
		if err := fillField(field, value); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

func fillField(field reflect.Value, value any) error {
	switch field.Kind() {
	case reflect.String:
		s, ok := value.(string)
		if !ok {
			return errors.New("not text")
		}
		field.SetString(s)
	case reflect.Int64:
		n, err := integerOf(value)
		if err != nil {
			return err
		}
		field.SetInt(n)
	case reflect.Slice:
		list, err := stringsOf(value)
		if err != nil {
			return err
		}
		field.Set(reflect.ValueOf(list))
	default:
		return errors.New("not a plain value")
	}
	return nil
}

func integerOf(value any) (int64, error) {
	v := reflect.ValueOf(value)
	switch {
	case value == nil:
	case v.CanInt():
		return v.Int(), nil
	case v.CanUint() && v.Uint() <= math.MaxInt64:
		return int64(v.Uint()), nil
	case v.CanFloat() && v.Float() == math.Trunc(v.Float()) && math.Abs(v.Float()) < exact:
		return int64(v.Float()), nil
	}
	switch s := value.(type) {
	case string:
		return strconv.ParseInt(s, 10, 64)
	case json.Number:
		return s.Int64()
	}
	return 0, errors.New("not an integer")
}

func stringsOf(value any) ([]string, error) {
	list := reflect.ValueOf(value)
	if list.Kind() != reflect.Slice {
		return nil, errors.New("not a list")
	}
	var out []string
	for i := range list.Len() {
		s, ok := list.Index(i).Interface().(string)
		if !ok {
			return nil, errors.New("not a list of text")
		}
		out = append(out, s)
	}
	return out, nil
}
