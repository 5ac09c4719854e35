package ceremony

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm"
)

// ErrTranscript says that a transcript does not show what it has to.
var ErrTranscript = errors.New("the transcript does not hold")

// maxTranscript is far above what a ceremony writes: some 100 KiB.
const maxTranscript = 8 << 20

// A Statement is one conclusion drawn from a transcript.
type Statement struct {
	Name string `json:"statement"`
	OK   bool   `json:"ok"`
	Say  string `json:"say"` // what was found, or what is wrong
}

// A Report is what a transcript shows.
type Report struct {
	Transcript  string      `json:"transcript"`
	Digest      string      `json:"transcript_sha256"` // to be compared with what people kept
	Records     uint64      `json:"records"`
	Plan        string      `json:"plan"`
	PlanSHA256  string      `json:"plan_sha256"`
	Class       Class       `json:"class"`
	Rehearsal   bool        `json:"rehearsal"`
	TokenSerial string      `json:"token_serial"`
	Statements  []Statement `json:"statements"`
}

// A done is a step of a transcript: its two records.
type done struct {
	name       string
	begin, end audit.Record
}

// A verifier draws the conclusions again, each from the records and the plan in them.
type verifier struct {
	report Report
	dir    string
	steps  []done
	plan   Plan // as it was carried out
	when   period
	keys   map[Role]crypto.PublicKey
	certs  map[Role]*x509.Certificate
}

// Verify reads a transcript and draws every conclusion that can be drawn without
// the token: the chain, the plan's digest, that each step was done and none
// failed, the keys' attributes and proofs, and that each certificate is the
// planned one, for the recorded key, with a signature that verifies. Files that
// lie beside the transcript are compared with it. It returns ErrTranscript, and
// the Report with what is wrong, if one of them does not hold.
//
// Whoever can write the transcript can write another one that holds: compare
// Report.Digest with what the people at the ceremony kept.
func Verify(path string) (Report, error) {
	v := &verifier{dir: filepath.Dir(path), keys: map[Role]crypto.PublicKey{}, certs: map[Role]*x509.Certificate{}}
	v.report.Transcript = path
	raw, err := readTranscript(path)
	if err != nil {
		return v.report, fmt.Errorf("transcript: %w", err)
	}
	v.report.Digest = digest(raw)
	for _, s := range []struct {
		name  string
		check func() (string, error)
		vital bool // nothing can be said without it
	}{
		{"the records form one chain", func() (string, error) { return v.chain(raw) }, true},
		{"every step was done, none failed", v.complete, true},
		{"the plan is the one whose digest was recorded", v.readPlan, true},
		{"the steps are those of the plan, in order", v.order, true},
		{"the keys are those of the plan", v.checkKeys, true},
		{"every attribute of every key is as it must be", v.attributes, false},
		{"the negative and positive proofs hold", v.proofs, false},
		{"the certificates are the planned ones, for these keys", v.certificates, false},
		{"the token holds these keys and nothing else", v.closing, false},
		{"the files beside the transcript are the recorded ones", v.files, false},
	} {
		say, err := s.check()
		if err != nil {
			say = err.Error()
		}
		v.report.Statements = append(v.report.Statements, Statement{s.name, err == nil, say})
		if err != nil && s.vital {
			break
		}
	}
	for _, s := range v.report.Statements {
		if !s.OK {
			return v.report, fmt.Errorf("%w: not so: %s: %s", ErrTranscript, s.Name, s.Say)
		}
	}
	return v.report, nil
}

func (v *verifier) chain(raw []byte) (string, error) {
	var chain audit.Chain
	var last audit.Record
	for i, text := range bytes.SplitAfter(raw, []byte("\n")) {
		if len(text) == 0 {
			break // after the last line's LF
		}
		line, err := audit.ParseLine(text)
		if err == nil {
			err = chain.Step(line)
		}
		if err != nil {
			return "", fmt.Errorf("line %d: %w", i+1, err)
		}
		r := line.Record
		if i > 0 && (r.Request != last.Request || r.Actor != last.Actor || r.Boot != last.Boot || r.Mono < last.Mono) {
			return "", fmt.Errorf("line %d: not of the same ceremony as the line before, or earlier than it", i+1)
		}
		if err := v.collect(r); err != nil {
			return "", fmt.Errorf("line %d: %w", i+1, err)
		}
		last = r
	}
	v.report.Records = chain.Head().Size
	return fmt.Sprintf("%d records", v.report.Records), nil
}

// collect pairs a step's two records.
func (v *verifier) collect(r audit.Record) error {
	name, ours := strings.CutPrefix(r.Event, eventPrefix)
	open := len(v.steps) > 0 && v.steps[len(v.steps)-1].end.Event == ""
	switch {
	case !ours || r.Actor.Kind != "ceremony":
		return fmt.Errorf("event %q is none of a ceremony", r.Event)
	case r.Outcome == outBegin && !open:
		v.steps = append(v.steps, done{name: name, begin: r})
	case r.Outcome != outBegin && open && v.steps[len(v.steps)-1].name == name:
		v.steps[len(v.steps)-1].end = r
	case r.Outcome == outException:
		v.steps = append(v.steps, done{name: name, begin: r, end: r})
	default:
		return fmt.Errorf("%s of step %q is out of order", r.Outcome, name)
	}
	return nil
}

func (v *verifier) complete() (string, error) {
	for _, s := range v.steps {
		switch s.end.Outcome {
		case outEnd:
		case outException:
			return "", fmt.Errorf("step %s failed: %s", s.name, s.end.Object.String("error"))
		default:
			return "", fmt.Errorf("step %s began and did not end", s.name)
		}
	}
	if len(v.steps) == 0 || v.steps[len(v.steps)-1].name != stepClose {
		return "", errors.New("it stops before the ceremony was closed")
	}
	return fmt.Sprintf("%d steps", len(v.steps)), nil
}

func (v *verifier) readPlan() (string, error) {
	first := v.steps[0]
	ob := first.begin.Object
	text, want := ob.String("plan"), ob.String("plan_sha256")
	if first.name != stepEnvironment || digest([]byte(text)) != want {
		return "", errors.New("the text of the plan has another digest")
	}
	plan, err := ParsePlan([]byte(text))
	if err != nil {
		return "", err
	}
	start, err := time.Parse(timeFormat, ob.String("start"))
	if err != nil || start.After(first.begin.Time) {
		return "", errors.New("the time of the start is none, or after the first record")
	}
	if ob.String("name") != plan.Name || ob.String("class") != string(plan.Class) || first.begin.Actor.ID != plan.Name {
		return "", errors.New("name or class are not those of the plan")
	}
	v.when = period{start, plan.Backdate}
	rehearsal := ob.Int("rehearsal") == 1
	if rehearsal {
		plan = plan.rehearsal(first.end.Object.Object("module").String("path"))
	}
	for _, s := range v.steps {
		for _, r := range []audit.Record{s.begin, s.end} {
			if (r.Object.String("mark") == rehearsalMark) != rehearsal {
				return "", fmt.Errorf("record %d: the mark of a rehearsal is missing, or is where it must not be", r.Seq)
			}
		}
	}
	v.plan = plan
	v.report.Plan, v.report.PlanSHA256, v.report.Class, v.report.Rehearsal = plan.Name, want, plan.Class, rehearsal
	return fmt.Sprintf("%s, class %s, %s", plan.Name, plan.Class, want), nil
}

// order compares the steps with those that the plan leads to.
func (v *verifier) order() (string, error) {
	want := []string{stepEnvironment, stepToken, stepPIN, stepKeys}
	each := func(steps ...string) {
		for _, r := range roles() {
			for _, s := range steps {
				want = append(want, s+" "+string(r))
			}
		}
	}
	each(stepReadBack)
	each(stepProofs)
	each(stepLint, stepCertificate)
	for _, r := range []Role{RoleOperatorCA, RoleOperator} {
		for _, s := range []string{stepOperatorKey, stepLint, stepCertificate} {
			want = append(want, s+" "+string(r))
		}
	}
	want = append(want, stepSecrets, stepDescribe, stepClose)
	for i, s := range v.steps {
		ob := s.begin.Object
		have := strings.TrimSpace(s.name + " " + ob.String("purpose") + ob.String("role"))
		if i >= len(want) || have != want[i] {
			return "", fmt.Errorf("record %d: step %q is not the one that comes here", s.begin.Seq, have)
		}
	}
	if len(v.steps) != len(want) {
		return "", fmt.Errorf("%d steps of %d", len(v.steps), len(want))
	}
	token := v.steps[1].end.Object
	if v.plan.Token.New && token.String("label") != v.plan.Token.Label || !v.plan.Token.New && token.String("serial") != v.plan.Token.Serial {
		return "", errors.New("the token is not the one of the plan")
	}
	if v.steps[2].end.Object.Int("objects") != 0 {
		return "", errors.New("the token was not empty")
	}
	v.report.TokenSerial = token.String("serial")
	return fmt.Sprintf("token serial %s", v.report.TokenSerial), nil
}

// named returns the steps of one name.
func (v *verifier) named(name string) []done {
	return slices.DeleteFunc(slices.Clone(v.steps), func(s done) bool { return s.name != name })
}

func publicKey(ob audit.Object) (crypto.PublicKey, error) {
	der, err := base64.StdEncoding.DecodeString(ob.String("spki"))
	if err != nil || digest(der) != ob.String("spki_sha256") {
		return nil, errors.New("the public key has another digest")
	}
	return x509.ParsePKIXPublicKey(der)
}

func (v *verifier) checkKeys() (string, error) {
	keys := v.named(stepKeys)[0].end.Object.Objects("keys")
	if len(keys) != len(v.plan.Keys) {
		return "", fmt.Errorf("%d keys and not %d", len(keys), len(v.plan.Keys))
	}
	seen := map[string]bool{}
	for i, k := range v.plan.Keys {
		pub, err := publicKey(keys[i])
		if err != nil {
			return "", fmt.Errorf("key %s: %w", k.Purpose, err)
		}
		if keys[i].String("purpose") != string(k.Purpose) || keys[i].String("label") != k.Label || !isAlgorithm(pub, k.Algorithm) {
			return "", fmt.Errorf("key %s: purpose, label or algorithm are not those of the plan", k.Purpose)
		}
		if id, sum := keys[i].String("id"), keys[i].String("spki_sha256"); len(id) == 0 || seen[id] || seen[sum] {
			return "", fmt.Errorf("key %s: its id or public key is that of another one too", k.Purpose)
		} else {
			seen[id], seen[sum] = true, true
		}
		v.keys[Role(k.Purpose)] = pub
	}
	for _, s := range v.named(stepOperatorKey) {
		pub, err := publicKey(s.end.Object)
		if err != nil || seen[s.end.Object.String("spki_sha256")] {
			return "", fmt.Errorf("key %s: unusable, or that of another one too", s.begin.Object.String("role"))
		}
		v.keys[Role(s.begin.Object.String("role"))] = pub
	}
	return fmt.Sprintf("%d keys", len(v.keys)), nil
}

// attributes looks for every rule that a key of its purpose is held to.
func (v *verifier) attributes() (string, error) {
	told, untold := 0, 0
	for i, s := range v.named(stepReadBack) {
		k := v.plan.Keys[i]
		got := map[string]audit.Object{}
		for _, a := range s.end.Object.Objects("attributes") {
			got[a.String("attribute")] = a
		}
		for _, rule := range hsm.Rules(k.Purpose, k.Algorithm) {
			a := got[rule.Attribute]
			switch {
			case a.String("state") == "as wanted" && a.String("got") == rule.Want && a.String("want") == rule.Want:
				told++
			case a.String("state") == "not told" && rule.Tier == hsm.IfSupported:
				untold++
			default:
				return "", fmt.Errorf("key %s: %s was %q and must be %q", k.Purpose, rule.Attribute, a.String("got"), rule.Want)
			}
		}
	}
	return fmt.Sprintf("%d as wanted, %d not told by this token", told, untold), nil
}

// proofs looks for everything that has to be tried with a key of its purpose, and
// for nothing else: each attempt refused, and the last one, which is that the key
// works, done.
func (v *verifier) proofs() (string, error) {
	refused := 0
	for i, s := range v.named(stepProofs) {
		k := v.plan.Keys[i]
		want, got := hsm.Proofs(k.Purpose, k.Algorithm), s.end.Object.Objects("proofs")
		if len(got) != len(want) {
			return "", fmt.Errorf("key %s: %d proofs and not %d", k.Purpose, len(got), len(want))
		}
		for j, p := range got {
			if p.String("proof") != want[j].Name || p.String("tried") != want[j].Tried {
				return "", fmt.Errorf("key %s: %q stands in the place of the proof that %s", k.Purpose, p.String("proof"), want[j].Name)
			}
			works := j == len(want)-1
			if p.String("state") != "holds" || (p.String("answer") == hsm.CKR(0).String()) != works {
				return "", fmt.Errorf("key %s: %s: %s", k.Purpose, p.String("proof"), p.String("say"))
			}
		}
		refused += len(got) - 1
	}
	return fmt.Sprintf("%d attempts were refused", refused), nil
}

func (v *verifier) closing() (string, error) {
	s := v.named(stepClose)[0]
	if s.end.Object.String("digest") != s.end.Prev || s.end.Object.Int("records") != int64(s.end.Seq) {
		return "", errors.New("the closing record does not name the records before it")
	}
	want := map[string]int{}
	for _, k := range v.named(stepKeys)[0].end.Object.Objects("keys") {
		want["private key "+k.String("label")+" "+k.String("id")]++
		want["public key "+k.String("label")+" "+k.String("id")]++
	}
	for _, o := range s.end.Object.Objects("objects") {
		want[o.String("class")+" "+o.String("label")+" "+o.String("id")]--
	}
	for name, n := range want {
		if n != 0 {
			return "", fmt.Errorf("there is not exactly one %s", name)
		}
	}
	return fmt.Sprintf("%d objects", len(want)), nil
}

// files compares what lies beside the transcript; it may have been moved alone.
func (v *verifier) files() (string, error) {
	same, absent := 0, 0
	for _, f := range v.named(stepClose)[0].end.Object.Objects("files") {
		name := f.String("file")
		if name == "" || name != filepath.Base(name) {
			return "", fmt.Errorf("%q is no file's name", name)
		}
		if f.Int("secret") == 1 {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(v.dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			absent++
			continue
		}
		if err != nil {
			return "", err
		}
		if digest(raw) != f.String("sha256") {
			return "", fmt.Errorf("%s was changed", name)
		}
		same++
	}
	return fmt.Sprintf("%d files are unchanged, %d are not here", same, absent), nil
}
