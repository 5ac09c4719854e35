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
// overwritten. A PIN is in no record and no message, and in a file if
// the ceremony made it. A plan of class production needs a person; what is not as it
// should be is noted in the transcript, with who accepted it.
//
// # What it does not protect against
//
// The module and the machine are believed: what the transcript says about the
// token is what the module answered. The transcript is chained, and signed by the
// audit key that it tells of itself: people have to keep its digest, which [Run]
// returns, or sign it too. A step that failed is not
// undone: keys that were made stay on the token, and it is for people to erase it,
// or to go on with the same plan and folder where the ceremony stopped.
// The operator CA's key and the key of the challenges' tags are files.
//
// Run sets the limit of core files, the process' dumpable flag and, for a
// rehearsal, SOFTHSM2_CONF, all of which belong to the whole process; one
// ceremony at a time.
package ceremony

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/ceremony/pins"
	"github.com/postern-pki/postern/hsm/ceremony/plan"
	"github.com/postern-pki/postern/hsm/ceremony/transcript"
)

// Plan is [plan.Plan].
type Plan = plan.Plan

// Role is [plan.Role].
type Role = plan.Role

// Class is [plan.Class].
type Class = plan.Class

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
	Token  string // which one, or ones, in words
	Out    string
	Found  string // of a log that is to begin anew: what was found of the old one; else ""
	Resume string // of an interrupted ceremony: what is done, and what comes next; else ""
}

// Options say how a plan is carried out.
type Options struct {
	Out      string // the folder for what comes out: absent, empty, or an interrupted ceremony's of the same plan
	Rehearse bool   // on a throw-away SoftHSM token inside Out
	SoftHSM  string // the module for a rehearsal; "" for the plan's own if that is SoftHSM, else the usual place

	// PIN is the user PIN: a new token's, or an existing one's. It is unused in a
	// rehearsal; without it a production plan makes a new token's.
	PIN   pins.Source
	SOPIN pins.Source // the security officer's PIN of a new token

	RootPIN   pins.Source // the same of the root's token, if the plan has one
	RootSOPIN pins.Source

	// Certificate is a file with the certificate of our CA key, and those above it, in
	// PEM: what an outside CA has issued, or what the kept key of a change has.
	Certificate string

	// Signatures are files with the people's signatures on the plan's file, by their names.
	Signatures map[string]string

	// KeepShare shows one share of an SO PIN to the one person who keeps it, and returns
	// when that person has entered it again. AskShares is for a ceremony that was
	// interrupted after that: it asks for as many shares as are needed.
	KeepShare func(ctx context.Context, number, of int, s pins.Share) error
	AskShares func(threshold int) pins.Source

	Accept   Acceptance                                   // asks who accepts an exception; needed for production
	Confirm  func(ctx context.Context, i Intention) error // asks a person; needed for production
	Progress func(step, say string)                       // is told of each step that is done; nil for none
	Now      func() time.Time                             // nil for time.Now
}

// A KeyResult is a key that was made.
type KeyResult struct {
	Role      string `json:"role,omitempty" yaml:"-"` // if it is another than the purpose
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
	RootSerial   string              `json:"root_token_serial,omitempty"`
	SoftHSM2Conf string              `json:"softhsm2_conf,omitempty"` // what SOFTHSM2_CONF has to name to use the token
	PINFile      string              `json:"pin_file,omitempty"`      // of a rehearsal's token
	Keys         []KeyResult         `json:"keys"`
	Certificates []CertificateResult `json:"certificates"`
	KeysFile     string              `json:"keys_file"`
	NewOrigin    string              `json:"new_origin,omitempty"` // what origin: has to be in the service's configuration
	OldLog       string              `json:"old_log,omitempty"`    // the folder where it was put
	Waiting      string              `json:"waiting,omitempty"`    // the request to be signed elsewhere before the ceremony goes on
	Transcript   string              `json:"transcript"`
	Records      uint64              `json:"records"`
	Digest       string              `json:"transcript_sha256"` // to be kept by people
}

// A run is a ceremony that goes on.
type run struct {
	plan     Plan // as it is carried out
	opts     Options
	out      output
	log      *transcript.Writer
	start    time.Time
	first    int // the step that it goes on at: 0 but for an interrupted ceremony
	facts    facts
	signed   []any // the people's signatures on the plan, as they are recorded
	holders  map[plan.On]*holder
	modules  map[string]*hsm.Module // loaded when all keys are there
	keys     map[Role]*madeKey
	certs    map[Role]*x509.Certificate
	chain    []*x509.Certificate // above a CA that was signed elsewhere
	signers  map[Role]*authority
	drafts   map[Role]draft // looked at, and not signed yet
	before   transcript.History
	result   Result
	cleanup  []func()
	old      oldLog            // of a new log
	accepted map[string]string // who accepted an exception, by its text
	stopped  func() error      // says that the ceremony is to end before its next step
}

// Run carries a plan out. In the folder of a ceremony by the same plan that was
// interrupted, or that failed, it goes on where that one stopped. On an error the Result says what there was until then.
func Run(ctx context.Context, p Plan, o Options) (Result, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Progress == nil {
		o.Progress = func(string, string) {}
	}
	r := &run{
		plan: p, opts: o, holders: map[plan.On]*holder{}, modules: map[string]*hsm.Module{}, keys: map[Role]*madeKey{},
		certs: map[Role]*x509.Certificate{}, signers: map[Role]*authority{}, drafts: map[Role]draft{}, accepted: map[string]string{},
	}
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

// close leaves the tokens and forgets the PINs, whatever happened.
func (r *run) close() {
	for _, h := range r.holders {
		if h.token != nil {
			_ = h.token.Close()
		}
		h.pin.Wipe()
		h.so.Wipe()
		clear(h.text)
	}
	for _, m := range r.modules {
		_ = m.Close()
	}
	if r.log != nil {
		_ = r.log.Close()
	}
	for _, f := range r.cleanup {
		f()
	}
}

// perform is the ceremony: the plan's steps, in their order.
func (r *run) perform(ctx context.Context) error {
	r.stopped = ctx.Err
	ctx = context.WithoutCancel(ctx) // a call into the module is never left halfway; each has a deadline of its own
	for _, s := range r.plan.Steps()[r.first:] {
		if s.Name == plan.StepReceive && r.opts.Certificate == "" && r.plan.Kind == plan.OutsideCA {
			r.result.Waiting = r.out.path(RequestFile)
			break
		}
		if err := r.do(ctx, s); err != nil {
			return r.hint(s, err)
		}
	}
	r.result.Records = r.log.Head().Size
	var err error
	if r.result.Digest, err = fileDigest(r.out.path(TranscriptFile)); err != nil || r.result.Waiting != "" {
		return err
	}
	return r.signTranscript(ctx)
}

// do carries one step out.
func (r *run) do(ctx context.Context, s plan.Step) error {
	on, role := plan.On(s.Of), Role(s.Of)
	switch s.Name {
	case plan.StepEnvironment:
		return r.environment(s)
	case plan.StepShares:
		return r.share(ctx, s, r.holders[on])
	case plan.StepToken:
		return r.openToken(ctx, s, r.holders[on])
	case plan.StepPIN:
		return r.setPIN(ctx, s, r.holders[on])
	case plan.StepKeys:
		return r.generate(ctx, s, r.holders[on])
	case plan.StepReadBack:
		return r.readBack(ctx, s, role)
	case plan.StepProofs:
		return r.prove(ctx, s, role)
	case plan.StepLint:
		return r.look(ctx, s, role)
	case plan.StepCertificate:
		return r.issue(ctx, s, role)
	case plan.StepUnlock:
		return r.unlock(ctx, s, r.holders[on])
	case plan.StepErase:
		return r.erase(ctx, s, r.holders[on])
	case plan.StepRequest:
		return r.request(ctx, s, role)
	case plan.StepReceive:
		return r.receive(ctx, s, role)
	case plan.StepLeave:
		return r.leave(ctx, s, r.holders[on])
	case plan.StepOperatorKey:
		return r.operatorKey(s, role)
	case plan.StepSecrets:
		return r.secrets(s)
	case plan.StepDescribe:
		return r.describe(s)
	case plan.StepSurvey:
		return r.survey(ctx, s)
	case plan.StepAside:
		return r.moveAside(s)
	case plan.StepQuote:
		return r.quote(s)
	case plan.StepMark:
		return r.mark(ctx, s)
	case plan.StepClose:
		return r.finish(ctx, s)
	default:
		return fmt.Errorf("nobody knows how to do %q", s)
	}
}

// hint adds where the ceremony stopped, and what to do.
func (r *run) hint(s plan.Step, err error) error {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = &Error{Step: s.Name, Err: err}
	}
	if e.Hint == "" {
		e.Hint = fmt.Sprintf("%s says what was done until then; run the same plan again with the same --out to go on there, or erase the tokens that it began to use", r.out.path(TranscriptFile))
		if r.opts.Rehearse {
			e.Hint = fmt.Sprintf("%s says what was done until then; remove %s to begin again", r.out.path(TranscriptFile), r.out.dir)
		}
	}
	return e
}

// step is a step of the transcript whose end is told to the caller too. A
// ceremony that was interrupted ends here, between two steps.
func (r *run) step(s plan.Step, say string, begin audit.Object, do func() (audit.Object, error)) error {
	if begin == nil {
		begin = audit.Object{}
	}
	if s.Of != "" {
		begin["of"] = s.Of
	}
	if err := r.stopped(); err != nil {
		return &Error{Step: s.Name, Err: errors.Join(err, r.log.Fail(s.Name, begin, fmt.Errorf("stopped before it began: %w", err)))}
	}
	if err := r.log.Step(s.Name, begin, do); err != nil {
		return &Error{Step: s.Name, Err: err}
	}
	r.opts.Progress(s.Name, say)
	return nil
}
