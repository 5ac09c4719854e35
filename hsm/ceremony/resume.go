package ceremony

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/ceremony/newlog"
	"github.com/postern-pki/postern/hsm/ceremony/pins"
	"github.com/postern-pki/postern/hsm/ceremony/plan"
	"github.com/postern-pki/postern/hsm/ceremony/transcript"
)

// ErrResume says that an interrupted ceremony cannot go on.
var ErrResume = errors.New("the interrupted ceremony cannot go on")

func refuseResume(hint, format string, args ...any) error {
	return &Error{Err: fmt.Errorf("%w: %w", ErrResume, fmt.Errorf(format, args...)), Hint: hint}
}

const startOver = "erase the tokens that the ceremony began to use by the vendor's tool, and begin with an empty folder"

// resumable reports whether the folder has a ceremony in it that may go on.
func (r *run) resumable() bool {
	if r.opts.Rehearse || r.out.dir == "" {
		return false // a rehearsal is begun again
	}
	info, err := os.Lstat(r.out.path(TranscriptFile))
	return err == nil && info.Mode().IsRegular()
}

// reopen reads what an interrupted ceremony has done. Every step that is done is
// taken up from its records, and compared with what lies in the folder.
func (r *run) reopen() (err error) {
	if !r.resumable() {
		return nil
	}
	if info, err := os.Stat(r.out.path(TranscriptFile)); err != nil || info.Size() == 0 {
		return errors.Join(err, os.Remove(r.out.path(TranscriptFile)), r.emptied()) // nothing was begun
	}
	if r.log, r.before, err = transcript.Open(r.out.path(TranscriptFile), r.opts.Now); err != nil {
		return refuseResume("compare the transcript with what people remember; it may not be used any more", "%w", err)
	}
	if r.before.Records == 0 {
		return refuseResume("remove the folder: nothing was begun", "its transcript has no whole record")
	}
	begin := r.before.First.Object
	switch {
	case begin.String("plan_sha256") != r.plan.Digest() || begin.Int("rehearsal") == 1:
		return refuseResume("name another folder with --out, or the plan that was begun", "%w: %s is the ceremony of another plan, SHA-256 %s", ErrOutput, r.out.dir, begin.String("plan_sha256"))
	case r.before.Steps != nil && r.before.Last.Event == "ceremony."+plan.StepClose && r.before.Last.Outcome == transcript.End:
		if _, err := os.Lstat(r.out.path(SignatureFile)); !errors.Is(err, fs.ErrNotExist) {
			return refuseResume("name another folder with --out; postern-ceremony verify says what was done", "%w: the ceremony in %s is complete", ErrOutput, r.out.dir)
		}
	}
	if r.start, err = time.Parse(timeFormat, begin.String("start")); err != nil {
		return refuseResume(startOver, "%w", err)
	}
	return r.takeUp()
}

// emptied wants a folder in which nothing is.
func (r *run) emptied() error {
	out, err := checkOutput(r.out.dir)
	r.out = out
	return err
}

// takeUp takes up the steps that are done, and finds the one to go on at: a draft
// does not outlive its process, so the look at it is repeated with its signature.
func (r *run) takeUp() error {
	steps, done := r.plan.Steps(), r.before.Done()
	for i, s := range done {
		if i >= len(steps) || s.String() != steps[i].String() {
			return refuseResume(startOver, "step %q is not the one that comes there", s)
		}
		if err := r.recall(steps[i], s.End.Object); err != nil {
			return refuseResume("put back what was changed, or "+startOver, "step %s: %w", s, err)
		}
	}
	r.first = len(done)
	if r.first < len(steps) && steps[r.first].Name == plan.StepCertificate {
		r.first--
	}
	for _, s := range slices.Concat(undone(r.before), r.before.Steps[len(done):]) {
		if s.Name == plan.StepKeys { // ids that were written down before keys were made under them
			h := r.holders[plan.On(s.Of)]
			h.ids = map[string][]byte{}
			for _, k := range s.Begin.Object.Objects("keys") {
				h.ids[k.String("label")], _ = hex.DecodeString(k.String("id"))
			}
		}
	}
	return nil
}

func undone(h transcript.History) (out []transcript.Step) {
	for _, again := range h.Resumptions {
		out = append(out, again.Undone...)
	}
	return out
}

// isDone reports whether an interrupted ceremony has done the step.
func (r *run) isDone(s plan.Step) bool {
	return r.log != nil && plan.Index(r.plan.Steps(), s) < r.first
}

// progress says how far an interrupted ceremony came.
func (r *run) progress() string {
	steps := r.plan.Steps()
	if r.first == len(steps) {
		return "all steps are done; the transcript is not signed yet"
	}
	return fmt.Sprintf("%d of %d steps are done; it goes on with %s", r.first, len(steps), steps[r.first])
}

// goOn removes what an unfinished step has left in the folder, which no record
// names, and writes down where the ceremony goes on.
func (r *run) goOn(ctx context.Context) error {
	r.describeResult()
	if r.first == len(r.plan.Steps()) {
		return nil // the transcript is closed
	}
	leftover, err := r.leftover()
	if err != nil {
		return err
	}
	var removed []any
	for _, name := range leftover {
		ob := audit.Object{"file": name}
		if info, err := os.Stat(r.out.path(name)); err == nil {
			ob["bytes"] = info.Size()
		}
		if err := os.Remove(r.out.path(name)); err != nil {
			return err
		}
		removed = append(removed, ob)
	}
	if err := r.out.sync(); err != nil {
		return err
	}
	ob := r.facts.object()
	ob["at"], ob["removed"], ob["torn"] = r.first, removed, r.before.Torn
	if err := r.except(ctx, ob, "the ceremony was interrupted, or failed, and goes on: "+r.progress()); err != nil {
		return err
	}
	if err := r.log.Write(transcript.Resume, transcript.End, ob); err != nil {
		return err
	}
	// What was just written takes back what was open.
	raw, err := os.ReadFile(r.out.path(TranscriptFile))
	if err == nil {
		r.before, err = transcript.Read(raw)
	}
	if err != nil {
		return err
	}
	r.opts.Progress(transcript.Resume, r.progress())
	return nil
}

// leftover lists the files that no record names. Only those that the steps to
// come would write can be ours.
func (r *run) leftover() ([]string, error) {
	entries, err := os.ReadDir(r.out.dir)
	if err != nil {
		return nil, err
	}
	ours := map[string]bool{}
	for _, s := range r.plan.Steps()[r.first:] {
		name, _ := leaves(s)
		ours[name] = true
		for i := range maxCertificates * number(s.Name == plan.StepReceive) {
			ours[chainFile(i)] = true
		}
	}
	var out []string
	for _, e := range entries {
		known := e.Name() == TranscriptFile || slices.ContainsFunc(r.out.written, func(w writtenFile) bool { return w.name == e.Name() })
		switch {
		case known:
		case ours[e.Name()] && e.Type().IsRegular():
			out = append(out, e.Name())
		default:
			return nil, refuseResume("take it away", "%q in %s is not of this ceremony", e.Name(), r.out.dir)
		}
	}
	return out, nil
}

// recall takes a step that is done up from its last record.
func (r *run) recall(s plan.Step, ob audit.Object) error {
	switch s.Name {
	case plan.StepToken:
		h := r.holders[plan.On(s.Of)]
		h.slot = hsm.Slot{Serial: ob.String("serial"), Label: ob.String("label"), Manufacturer: ob.String("manufacturer"), Model: ob.String("model"), Firmware: ob.String("firmware"), MaxPIN: int(ob.Int("max_pin")), Initialized: true}
		r.nameToken(h)
	case plan.StepKeys:
		return r.recallKeys(r.holders[plan.On(s.Of)], ob.Objects("keys"))
	case plan.StepCertificate:
		return r.recallCertificate(Role(s.Of), ob)
	case plan.StepRequest:
		return r.recallFile(RequestFile, false, ob.String("sha256"))
	case plan.StepReceive:
		return r.recallReceived(Role(s.Of), ob)
	case plan.StepSurvey:
		r.old.found = ob
	case plan.StepAside:
		r.old.aside = ob.Strings("aside")
	case plan.StepQuote:
		return r.recallFile(newlog.File, false, ob.String("sha256"))
	case plan.StepLeave:
		r.holders[plan.On(s.Of)].left = true
	case plan.StepOperatorKey:
		return r.recallOperatorKey(s, ob)
	case plan.StepSecrets:
		return r.recallFile(ChallengeFile, true, "")
	case plan.StepDescribe:
		r.result.KeysFile = r.out.path(KeysFile)
		return r.recallFile(KeysFile, false, ob.String("sha256"))
	}
	return nil
}

func (r *run) recallKeys(h *holder, recorded []audit.Object) error {
	planned := r.plan.KeysOn(h.plan.On)
	if len(recorded) != len(planned) {
		return fmt.Errorf("%d keys and not %d", len(recorded), len(planned))
	}
	for i, k := range planned {
		pub, err := publicKey(recorded[i])
		if err != nil {
			return err
		}
		if k.ID, err = hex.DecodeString(recorded[i].String("id")); err != nil {
			return err
		}
		g := hsm.Generated{KeyPlan: k.KeyPlan, Public: pub, Tier: hsm.Tier(recorded[i].String("attributes"))}
		if _, err := r.take(k.Role, h, g); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) recallCertificate(role Role, ob audit.Object) error {
	der, err := base64.StdEncoding.DecodeString(ob.String("certificate"))
	if err != nil {
		return err
	}
	if r.certs[role], err = x509.ParseCertificate(der); err != nil {
		return err
	}
	r.tell(role, r.certs[role])
	return r.recallFile(role.File(), false, transcript.Digest(certificatePEM(der)))
}

func (r *run) recallReceived(role Role, ob audit.Object) error {
	var all []*x509.Certificate
	for _, text := range ob.Strings("chain") {
		der, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return err
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return errors.New("there is no certificate in its record")
	}
	r.adopt(role, all)
	err := r.recallFile(role.File(), false, transcript.Digest(certificatePEM(all[0].Raw)))
	for i, c := range r.chain {
		err = errors.Join(err, r.recallFile(chainFile(i), false, transcript.Digest(certificatePEM(c.Raw))))
	}
	return err
}

// recallFile compares a file with what was recorded of it; of a secret one,
// nothing was but that it is there.
func (r *run) recallFile(name string, secret bool, want string) error {
	raw, err := os.ReadFile(r.out.path(name))
	if err != nil {
		return err
	}
	defer clear(raw)
	if !secret && transcript.Digest(raw) != want {
		return fmt.Errorf("%s was changed", name)
	}
	r.out.written = append(r.out.written, writtenFile{name: name, secret: secret, sha256: want})
	return nil
}

func (r *run) recallOperatorKey(s plan.Step, ob audit.Object) error {
	name, _ := leaves(s)
	if err := r.recallFile(name, true, ""); err != nil {
		return err
	}
	raw, err := os.ReadFile(r.out.path(name))
	if err != nil {
		return err
	}
	defer clear(raw)
	block, _ := pem.Decode(raw)
	if block == nil {
		return fmt.Errorf("%s: %w", name, fs.ErrInvalid)
	}
	defer clear(block.Bytes)
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	key, ok := any.(*ecdsa.PrivateKey)
	if !ok {
		return fmt.Errorf("%s has another kind of key", name)
	}
	want, err := publicKey(ob)
	if err != nil {
		return err
	}
	if !key.PublicKey.Equal(want) {
		return fmt.Errorf("%s has another key than was recorded", name)
	}
	r.signers[Role(s.Of)], err = newAuthority(key)
	return err
}

// share makes a new token's SO PIN and has its shares kept, one at a time. Nobody
// sees the PIN itself; a rehearsal's shares are forgotten.
func (r *run) share(ctx context.Context, s plan.Step, h *holder) error {
	begin := audit.Object{"shares": h.plan.Shares, "threshold": h.plan.Threshold}
	return r.step(s, fmt.Sprintf("%d shares are kept, any %d give the SO PIN", h.plan.Shares, h.plan.Threshold), begin, func() (audit.Object, error) {
		pin, shares, err := pins.Split(h.plan.Threshold, h.plan.Shares)
		if err != nil {
			return nil, err
		}
		h.so.Wipe()
		h.so = pin
		if r.opts.Rehearse {
			return audit.Object{"kept": 0}, nil
		}
		for i, one := range shares {
			if err := r.opts.KeepShare(ctx, i+1, len(shares), one); err != nil {
				return audit.Object{"kept": i}, err
			}
		}
		return audit.Object{"kept": len(shares)}, nil
	})
}
