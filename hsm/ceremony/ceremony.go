// Package ceremony makes the appliance's keys and first certificates, by one
// plan that people have read, and writes down what it did.
//
// # What a caller may rely on
//
// The plan is the only input beside the PINs. Everything that can be checked is
// checked before the token or the output folder is changed: the plan, the
// folder, the module, the token, that it is empty, and the PINs. A step's record of
// what it is about to do is durable before it is done, and one of what came out,
// or of the failure, before the next step begins; [Verify] draws the same
// conclusions from these records later, without the token. Keys
// are generated with every attribute said, read back, and tried for what they
// must not do. The CA's key signs no certificate that was not first built with a
// throw-away key and looked at; the signed bytes are then the same. No file is
// overwritten. A PIN is in no record, message or file but the one of a
// rehearsal's token, and a plan of class production needs a person.
//
// # What it does not protect against
//
// The module and the machine are believed: what the transcript says about the
// token is what the module answered. The transcript is chained but not signed, so
// people have to keep its digest, which [Run] returns. A step that failed is not
// undone: keys that were made stay on the token, and it is for people to erase it.
// The operator CA's key and the key of the challenges' tags are files.
//
// Run sets the limit of core files, the process' dumpable flag and, for a
// rehearsal, SOFTHSM2_CONF, all of which belong to the whole process; one
// ceremony at a time.
package ceremony

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm"
)

// ErrUnattended says that a plan of class production was to run without a person.
var ErrUnattended = errors.New("a production plan needs a person at a terminal")

// An Error is a ceremony that stopped. Step is empty if it never began; then
// nothing was changed.
type Error struct {
	Step string
	Hint string // what to do, or ""
	Err  error
}

// Error says where it stopped and why.
func (e *Error) Error() string {
	if e.Step == "" {
		return e.Err.Error()
	}
	return fmt.Sprintf("step %s: %v", e.Step, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// An Intention is what a person confirms before the token is changed.
type Intention struct {
	Plan   string
	Digest string // of the plan, hex
	Token  string // which one, in words
	Out    string
}

// Options say how a plan is carried out.
type Options struct {
	Out      string // the folder for what comes out: absent or empty
	Rehearse bool   // on a throw-away SoftHSM token inside Out
	SoftHSM  string // the module for a rehearsal; "" for the plan's own if that is SoftHSM, else the usual place

	PIN   PINSource // the user PIN: a new token's, or an existing one's; unused in a rehearsal
	SOPIN PINSource // the security officer's PIN of a new token

	Confirm  func(ctx context.Context, i Intention) error // asks a person; needed for production
	Progress func(step, say string)                       // is told of each step that is done; nil for none
	Now      func() time.Time                             // nil for time.Now
}

// A KeyResult is a key that was made.
type KeyResult struct {
	Purpose   string `json:"purpose" yaml:"purpose"`
	Label     string `json:"label" yaml:"label"`
	ID        string `json:"id" yaml:"id"`     // CKA_ID, hex
	SPKI      string `json:"spki" yaml:"spki"` // SHA-256 of the SubjectPublicKeyInfo, hex
	Algorithm string `json:"algorithm" yaml:"algorithm"`
}

// A CertificateResult is a certificate that was issued.
type CertificateResult struct {
	Role     string    `json:"role"`
	File     string    `json:"file"` // in the output folder
	Subject  string    `json:"subject"`
	Serial   string    `json:"serial"` // hex
	SHA256   string    `json:"sha256"` // of the DER, hex
	NotAfter time.Time `json:"not_after"`
}

// A Result is what came out of a ceremony.
type Result struct {
	Out          string              `json:"out"`
	Plan         string              `json:"plan"`
	PlanSHA256   string              `json:"plan_sha256"`
	Class        Class               `json:"class"`
	Rehearsal    bool                `json:"rehearsal"`
	Module       string              `json:"module"`
	TokenSerial  string              `json:"token_serial"`
	TokenLabel   string              `json:"token_label"`
	SoftHSM2Conf string              `json:"softhsm2_conf,omitempty"` // what SOFTHSM2_CONF has to name to use the token
	PINFile      string              `json:"pin_file,omitempty"`      // of a rehearsal's token
	Keys         []KeyResult         `json:"keys"`
	Certificates []CertificateResult `json:"certificates"`
	KeysFile     string              `json:"keys_file"`
	Transcript   string              `json:"transcript"`
	Records      uint64              `json:"records"`
	Digest       string              `json:"transcript_sha256"` // to be kept by people
}

// A run is a ceremony that goes on.
type run struct {
	plan    Plan // as it is carried out
	opts    Options
	out     output
	log     *transcript
	start   time.Time
	slot    hsm.Slot
	pin     GivenPIN
	so      GivenPIN
	text    []byte // a generated PIN, to be written to its file
	facts   facts
	made    []hsm.Generated
	token   *hsm.Token
	keys    map[Role]*hsm.Key
	certs   *authority // the token's CA
	result  Result
	cleanup []func()
	stopped func() error // says that the ceremony is to end before its next step
}

// Run carries a plan out. On an error the Result says what there was until then.
func Run(ctx context.Context, p Plan, o Options) (Result, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Progress == nil {
		o.Progress = func(string, string) {}
	}
	r := &run{plan: p, opts: o, keys: map[Role]*hsm.Key{}}
	defer r.close()
	if err := r.prepare(ctx); err != nil {
		return Result{}, asError(err)
	}
	return r.result, asError(r.perform(ctx))
}

func asError(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*Error](err); ok {
		return err
	}
	return &Error{Err: err}
}

// close leaves the token and forgets the PINs, whatever happened.
func (r *run) close() {
	if r.token != nil {
		_ = r.token.Close()
	}
	if r.log != nil {
		_ = r.log.close()
	}
	r.pin.Wipe()
	r.so.Wipe()
	clear(r.text)
	for _, f := range r.cleanup {
		f()
	}
}

// perform is the ceremony: its steps, in this order and no other.
func (r *run) perform(ctx context.Context) error {
	steps := []func(context.Context) error{
		r.environment, r.openToken, r.setPIN, r.generate, r.readBack, r.prove,
		r.certificates, r.operators, r.secrets, r.describe, r.finish,
	}
	r.stopped = ctx.Err
	ctx = context.WithoutCancel(ctx) // a call into the module is never left halfway; each has a deadline of its own
	for _, do := range steps {
		if err := do(ctx); err != nil {
			return r.hint(err)
		}
	}
	return nil
}

func (r *run) hint(err error) error {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = &Error{Step: "close", Err: err}
	}
	if e.Hint == "" {
		e.Hint = fmt.Sprintf("%s says what was done until then; the token may hold some of the keys: erase it before it is used again", r.out.path(TranscriptFile))
		if r.opts.Rehearse {
			e.Hint = fmt.Sprintf("%s says what was done until then; remove %s to begin again", r.out.path(TranscriptFile), r.out.dir)
		}
	}
	return e
}

// step is a step of the transcript whose end is told to the caller too. A
// ceremony that was interrupted ends here, between two steps.
func (r *run) step(name, say string, begin audit.Object, do func() (audit.Object, error)) error {
	if err := r.stopped(); err != nil {
		return &Error{Step: name, Err: errors.Join(err, r.log.write(name, outException, audit.Object{"error": "stopped before it began: " + err.Error()}))}
	}
	err := r.log.step(name, begin, do)
	if err == nil {
		r.opts.Progress(name, say)
	}
	return err
}

// describe writes what the service's configuration needs to know.
func (r *run) describe(context.Context) error {
	return r.step(stepDescribe, KeysFile+" written", audit.Object{"file": KeysFile}, func() (audit.Object, error) {
		b, err := yaml.Marshal(r.keysFile())
		if err != nil {
			return nil, err
		}
		text := append([]byte("# What the service's configuration needs, from the ceremony's transcript. Paths are relative to this file.\n"), b...)
		r.result.KeysFile = r.out.path(KeysFile)
		return audit.Object{"sha256": digest(text)}, r.out.write(KeysFile, false, text)
	})
}

// The keys file has the shape of the service's configuration where it says the same.
type (
	keysFile struct {
		Version    int         `yaml:"version"`
		Plan       planOf      `yaml:"plan"`
		Transcript string      `yaml:"transcript"`
		Token      tokenOf     `yaml:"token"`
		Keys       []keyOf     `yaml:"keys"`
		Issuers    []issuerOf  `yaml:"issuers"`
		Audit      keyCert     `yaml:"audit"`
		TLS        tlsOf       `yaml:"tls"`
		Challenges secretOf    `yaml:"challenges"`
		Operators  operatorsOf `yaml:"operators"`
	}
	planOf struct {
		Name      string `yaml:"name"`
		SHA256    string `yaml:"sha256"`
		Class     Class  `yaml:"class"`
		Rehearsal bool   `yaml:"rehearsal"`
	}
	tokenOf struct {
		Module       string  `yaml:"module"`
		Serial       string  `yaml:"serial"`
		Label        string  `yaml:"label"`
		PIN          *fileOf `yaml:"pin,omitempty"` // of a rehearsal; else people have it
		SoftHSM2Conf string  `yaml:"softhsm2_conf,omitempty"`
	}
	fileOf   struct{ File string }
	secretOf struct{ Key fileOf }
	keyOf    struct {
		Name      string `yaml:"name"`
		KeyResult `yaml:",inline"`
	}
	keyCert  struct{ Key, Certificate string }
	issuerOf struct {
		Name      string  `yaml:"name"`
		CA        keyCert `yaml:"ca"`
		RASign    keyCert `yaml:"ra_sign"`
		RADecrypt keyCert `yaml:"ra_decrypt"`
	}
	tlsOf struct {
		Names            []string
		Key, Certificate string
	}
	operatorsOf struct {
		CA, Certificate, Key string
	}
)

func (r *run) keysFile() keysFile {
	pair := func(role Role) keyCert { return keyCert{Key: string(role), Certificate: role.File()} }
	f := keysFile{
		Version: 1, Transcript: TranscriptFile,
		Plan:       planOf{Name: r.plan.Name, SHA256: r.plan.Digest(), Class: r.plan.Class, Rehearsal: r.opts.Rehearse},
		Token:      tokenOf{Module: r.plan.Token.Module, Serial: r.slot.Serial, Label: r.slot.Label, SoftHSM2Conf: r.facts.softhsmConf},
		Issuers:    []issuerOf{{Name: r.plan.Name, CA: pair(RoleCA), RASign: pair(RoleRASign), RADecrypt: pair(RoleRADecrypt)}},
		Audit:      pair(RoleAudit),
		Challenges: secretOf{fileOf{ChallengeFile}},
		Operators:  operatorsOf{CA: RoleOperatorCA.File(), Certificate: RoleOperator.File(), Key: OperatorKey},
	}
	if r.opts.Rehearse {
		f.Token.PIN, f.Token.SoftHSM2Conf = &fileOf{PINFile}, filepath.Join(tokenDir, confFile)
	}
	for _, k := range r.result.Keys {
		f.Keys = append(f.Keys, keyOf{Name: k.Purpose, KeyResult: k})
	}
	for _, c := range r.plan.Certificates {
		if c.Role == RoleTLS {
			f.TLS = tlsOf{Names: c.Names.all(), Key: string(RoleTLS), Certificate: RoleTLS.File()}
		}
	}
	return f
}
