package ceremony

import (
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/ceremony/plan"
	"github.com/postern-pki/postern/hsm/ceremony/transcript"
)

// ErrTranscript says that a transcript does not show what it has to.
var ErrTranscript = errors.New("the transcript does not hold")

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
	Resumed     int         `json:"resumed"` // how often it was interrupted, or failed, and went on
	TokenSerial string      `json:"token_serial"`
	Exceptions  []string    `json:"exceptions,omitempty"`
	Statements  []Statement `json:"statements"`
}

// A verifier draws the conclusions again, each from the records and the plan in them.
type verifier struct {
	report Report
	dir    string
	steps  []transcript.Step
	again  []transcript.Resumption
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
	raw, err := load(path)
	if err != nil {
		return v.report, fmt.Errorf("transcript: %w", err)
	}
	v.report.Digest = transcript.Digest(raw)
	for _, s := range []struct {
		name  string
		check func() (string, error)
		vital bool // nothing can be said without it
	}{
		{"the records form one chain", func() (string, error) { return v.chain(raw) }, true},
		{"every step was done, none failed", v.complete, true},
		{"the plan is the one whose digest was recorded", v.readPlan, true},
		{"the people of the plan signed it", v.peopleSigned, false},
		{"the steps are those of the plan, in order", v.order, true},
		{"the keys are those of the plan", v.checkKeys, true},
		{"every attribute of every key is as it must be", v.attributes, false},
		{"the negative and positive proofs hold", v.proofs, false},
		{"what is not as it should be was accepted", v.exceptions, false},
		{"the certificates are the planned ones, for these keys", v.certificates, false},
		{"the token holds these keys and nothing else", v.closing, false},
		{"a new log begins as planned, after what was found", v.newLog, false},
		{"the transcript's signatures hold", func() (string, error) { return v.signatures(raw) }, false},
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

func load(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return transcript.Load(f)
}

func (v *verifier) chain(raw []byte) (string, error) {
	if len(raw) > 0 && raw[len(raw)-1] != '\n' {
		return "", errors.New("its last line was torn off")
	}
	h, err := transcript.Read(raw)
	if err != nil {
		return "", err
	}
	v.steps, v.again = h.Steps, h.Resumptions
	v.report.Records, v.report.Resumed = h.Records, len(h.Resumptions)
	return fmt.Sprintf("%d records", v.report.Records), nil
}

func (v *verifier) complete() (string, error) {
	for _, s := range v.steps {
		switch s.End.Outcome {
		case transcript.End:
		case transcript.Exception:
			return "", fmt.Errorf("step %s failed: %s", s.Name, s.End.Object.String("error"))
		default:
			return "", fmt.Errorf("step %s began and did not end", s.Name)
		}
	}
	if len(v.steps) == 0 || v.steps[len(v.steps)-1].Name != plan.StepClose {
		return "", errors.New("it stops before the ceremony was closed")
	}
	return fmt.Sprintf("%d steps", len(v.steps)), nil
}

func (v *verifier) readPlan() (string, error) {
	first := v.steps[0]
	ob := first.Begin.Object
	text, want := ob.String("plan"), ob.String("plan_sha256")
	if first.Name != plan.StepEnvironment || transcript.Digest([]byte(text)) != want {
		return "", errors.New("the text of the plan has another digest")
	}
	p, err := plan.Parse([]byte(text))
	if err != nil {
		return "", err
	}
	start, err := time.Parse(timeFormat, ob.String("start"))
	if err != nil || start.After(first.Begin.Time) {
		return "", errors.New("the time of the start is none, or after the first record")
	}
	if ob.String("name") != p.Name || ob.String("class") != string(p.Class) || first.Begin.Actor.ID != p.Name {
		return "", errors.New("name or class are not those of the plan")
	}
	v.when = period{start, p.Backdate}
	rehearsal := ob.Int("rehearsal") == 1
	if rehearsal {
		p = p.Rehearsal(firstModule(first.End.Object))
	}
	for _, s := range v.steps {
		for _, r := range []audit.Record{s.Begin, s.End} {
			if (r.Object.String("mark") == plan.RehearsalMark) != rehearsal {
				return "", fmt.Errorf("record %d: the mark of a rehearsal is missing, or is where it must not be", r.Seq)
			}
		}
	}
	v.plan = p
	v.report.Plan, v.report.PlanSHA256, v.report.Class, v.report.Rehearsal = p.Name, want, p.Class, rehearsal
	return fmt.Sprintf("%s, class %s, %s", p.Name, p.Class, want), nil
}

// firstModule is the path of the one module of a rehearsal.
func firstModule(environment audit.Object) string {
	if all := environment.Objects("modules"); len(all) > 0 {
		return all[0].String("path")
	}
	return ""
}

// order compares the steps with those that the plan leads to.
func (v *verifier) order() (string, error) {
	want := v.plan.Steps()
	for i, s := range v.steps {
		if i >= len(want) || s.String() != want[i].String() {
			return "", fmt.Errorf("record %d: step %q is not the one that comes here", s.Begin.Seq, s)
		}
	}
	if len(v.steps) != len(want) {
		return "", fmt.Errorf("%d steps of %d", len(v.steps), len(want))
	}
	for _, a := range v.again {
		if at := a.Record.Object.Int("at"); at > 0 && at < int64(len(want)) && want[at].Name == plan.StepCertificate {
			return "", fmt.Errorf("record %d: it went on with a signature that nobody had looked at", a.Record.Seq)
		}
	}
	return v.tokens()
}

// tokens looks at which tokens were used, and that they were empty.
func (v *verifier) tokens() (string, error) {
	var serials []string
	for _, s := range v.named(plan.StepToken) {
		token, p := s.End.Object, v.plan.Token(plan.On(s.Of))
		if p.New && token.String("label") != p.Label || !p.New && token.String("serial") != p.Serial {
			return "", errors.New("the token is not the one of the plan")
		}
		if slices.Contains(serials, token.String("serial")) || token.String("serial") == v.plan.Replaces {
			return "", errors.New("two tokens have the same serial")
		}
		if serials = append(serials, token.String("serial")); p.On == plan.Service {
			v.report.TokenSerial = token.String("serial")
		}
	}
	for _, s := range v.named(plan.StepPIN) {
		if there := s.End.Object.Int("objects"); there != int64(2*len(v.plan.Keep)) {
			return "", fmt.Errorf("the token was not empty, or not as the plan says: it had %d objects", there)
		}
	}
	return "token serial " + strings.Join(serials, " and "), nil
}

// named returns the steps of one name.
func (v *verifier) named(name string) []transcript.Step {
	return slices.DeleteFunc(slices.Clone(v.steps), func(s transcript.Step) bool { return s.Name != name })
}

func publicKey(ob audit.Object) (crypto.PublicKey, error) {
	der, err := base64.StdEncoding.DecodeString(ob.String("spki"))
	if err != nil || transcript.Digest(der) != ob.String("spki_sha256") {
		return nil, errors.New("the public key has another digest")
	}
	return x509.ParsePKIXPublicKey(der)
}

func (v *verifier) checkKeys() (string, error) {
	seen := map[string]bool{}
	for _, s := range v.named(plan.StepKeys) {
		planned, keys := v.plan.KeysOn(plan.On(s.Of)), s.End.Object.Objects("keys")
		if len(keys) != len(planned) {
			return "", fmt.Errorf("%d keys and not %d", len(keys), len(planned))
		}
		for i, k := range planned {
			pub, err := publicKey(keys[i])
			if err != nil {
				return "", fmt.Errorf("key %s: %w", k.Role, err)
			}
			if keys[i].String("role") != string(k.Role) || keys[i].String("purpose") != string(k.Purpose) || keys[i].String("label") != k.Label || !isAlgorithm(pub, k.Algorithm) {
				return "", fmt.Errorf("key %s: purpose, label or algorithm are not those of the plan", k.Role)
			}
			id, sum := keys[i].String("id"), keys[i].String("spki_sha256")
			if len(id) == 0 || seen[id] || seen[sum] {
				return "", fmt.Errorf("key %s: its id or public key is that of another one too", k.Role)
			}
			seen[id], seen[sum] = true, true
			v.keys[k.Role] = pub
		}
	}
	if err := v.keptKeys(); err != nil {
		return "", err
	}
	for _, s := range v.named(plan.StepOperatorKey) {
		pub, err := publicKey(s.End.Object)
		if err != nil || seen[s.End.Object.String("spki_sha256")] {
			return "", fmt.Errorf("key %s: unusable, or that of another one too", s.Begin.Object.String("role"))
		}
		v.keys[Role(s.Begin.Object.String("role"))] = pub
	}
	return fmt.Sprintf("%d keys", len(v.keys)), nil
}

// attributes looks for every rule that a key of its purpose is held to.
func (v *verifier) attributes() (string, error) {
	told, untold := 0, 0
	for _, s := range v.named(plan.StepReadBack) {
		k := v.planned(Role(s.Of))
		got := map[string]audit.Object{}
		for _, a := range s.End.Object.Objects("attributes") {
			got[a.String("attribute")] = a
		}
		for _, rule := range hsm.Rules(k.Purpose, k.Algorithm) {
			a := got[rule.Attribute]
			if kept, _ := v.plan.Kept(Role(s.Of)); kept.Attributes[rule.Attribute] != "" {
				rule.Want = kept.Attributes[rule.Attribute]
			}
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
	for _, s := range v.named(plan.StepProofs) {
		k := v.planned(Role(s.Of))
		want, got := hsm.Proofs(k.Purpose, k.Algorithm), s.End.Object.Objects("proofs")
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
	s := v.named(plan.StepClose)[0]
	if s.End.Object.String("digest") != s.End.Prev || s.End.Object.Int("records") != int64(s.End.Seq) {
		return "", errors.New("the closing record does not name the records before it")
	}
	held := map[plan.On]transcript.Step{plan.Service: s}
	for _, s := range v.named(plan.StepLeave) {
		held[plan.On(s.Of)] = s
	}
	made := map[plan.On][]audit.Object{}
	for _, keys := range v.named(plan.StepKeys) {
		made[plan.On(keys.Of)] = keys.End.Object.Objects("keys")
	}
	n := 0
	for on, last := range held {
		want := map[string]int{}
		add := func(label, id string) {
			want["private key "+label+" "+id]++
			want["public key "+label+" "+id]++
		}
		for _, k := range made[on] {
			add(k.String("label"), k.String("id"))
		}
		if v.plan.Kind == plan.Erase {
			if e := v.named(plan.StepErase)[0].End.Object; e.Int("user_pin") != 0 || e.String("label") == "" {
				return "", errors.New("the token was not erased")
			}
			return "the token was erased", nil
		}
		for _, k := range v.plan.Keep { // of the service's token, which is alone then
			add(k.Label, hex.EncodeToString(k.ID))
		}
		for _, o := range last.End.Object.Objects("objects") {
			want[o.String("class")+" "+o.String("label")+" "+o.String("id")]--
		}
		for name, missing := range want {
			if missing != 0 {
				return "", fmt.Errorf("there is not exactly one %s", name)
			}
		}
		n += len(want)
	}
	return fmt.Sprintf("%d objects", n), nil
}
