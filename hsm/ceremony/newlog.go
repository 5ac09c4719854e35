package ceremony

import (
	"context"
	"crypto/ecdsa"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/ceremony/newlog"
	"github.com/postern-pki/postern/hsm/ceremony/plan"
	"github.com/postern-pki/postern/hsm/ceremony/transcript"
)

// oldLog is what a ceremony that begins a new log knows of the old one.
type oldLog struct {
	found audit.Object
	aside []string
}

// folder is where the old log itself is; "" if there was none.
func (o oldLog) folder() string {
	for _, name := range o.aside {
		if info, err := os.Stat(name); err == nil && info.IsDir() {
			return name
		}
	}
	return ""
}

func (r *run) places() newlog.Places {
	return newlog.Places{State: r.plan.Log.State, Keyholder: r.plan.Log.Keyholder}
}

// holdLog keeps the service out until the ceremony ends.
func (r *run) holdLog() error {
	if r.plan.Kind != plan.NewLog || r.log != nil && r.first == len(r.plan.Steps()) {
		return nil
	}
	release, err := newlog.Hold(r.places())
	if err != nil {
		return &Error{Err: err, Hint: "stop the service first; log.state and log.keyholder_state in the plan are the folders of its configuration"}
	}
	r.cleanup = append(r.cleanup, release)
	return nil
}

// auditKeys are the audit keys on the token: the one in use, and retired ones.
func (r *run) auditKeys(ctx context.Context) (all []*ecdsa.PublicKey, err error) {
	token, err := r.open(ctx, plan.Service)
	if err != nil {
		return nil, err
	}
	for _, k := range r.plan.Keep {
		if k.Role != plan.RoleAudit {
			continue
		}
		key, err := token.Key(ctx, hsm.KeySpec{Purpose: k.Purpose, Label: k.Label, ID: k.ID})
		if err != nil {
			return nil, err
		}
		pub, ok := key.Public().(*ecdsa.PublicKey)
		if !ok {
			return nil, fmt.Errorf("the audit key %q is a %T", k.Label, key.Public())
		}
		all = append(all, pub)
	}
	return all, nil
}

// survey looks at what is left of the log, and has people see it before anything is
// moved.
func (r *run) survey(ctx context.Context, s plan.Step) error {
	return r.step(s, "the new log will be "+r.plan.Log.NewOrigin, nil, func() (found audit.Object, err error) {
		keys, err := r.auditKeys(ctx)
		if err != nil {
			return nil, err
		}
		notes, err := r.holders[plan.Service].token.ReadData(ctx, hsm.MarkLabel)
		if err != nil && !errors.Is(err, hsm.ErrNoData) {
			return nil, err
		}
		found = audit.Object{"marks": newlog.Marks(notes, keys)}
		if found["head"], err = newlog.Head(r.places()); err != nil {
			return found, err
		}
		if found["disk"], err = newlog.Disk(ctx, r.places(), keys); err != nil {
			return found, err
		}
		for _, w := range newlog.Words(found) {
			r.opts.Progress(s.Name, w)
		}
		if newlog.Used(found, r.plan.Log.NewOrigin) {
			return found, fmt.Errorf("log.new_origin: %s is that of a log that was found: an origin never has two histories", r.plan.Log.NewOrigin)
		}
		for _, m := range found.Objects("marks") {
			if o := m.String("origin"); o != "" && o != r.plan.Log.Origin {
				return found, fmt.Errorf("log.origin: the mark on the token is of %s", o)
			}
		}
		if r.opts.Confirm != nil {
			err = r.opts.Confirm(ctx, Intention{Plan: r.plan.Name, Digest: r.plan.Digest(), Token: r.holders[plan.Service].words(), Out: r.out.dir, Found: strings.Join(newlog.Words(found), "\n")})
		}
		r.old.found = found
		return found, err
	})
}

// moveAside gives the old log another name.
func (r *run) moveAside(s plan.Step) error {
	tag := r.plan.Digest()[:8]
	return r.step(s, "the old log has another name, with .before-"+tag, audit.Object{"tag": tag}, func() (audit.Object, error) {
		var err error
		r.old.aside, err = newlog.Aside(r.places(), tag)
		return audit.Object{"aside": r.old.aside}, err
	})
}

// quote writes what the service's next first record will say.
func (r *run) quote(s plan.Step) error {
	return r.step(s, newlog.File+" written", audit.Object{"file": newlog.File}, func() (audit.Object, error) {
		head := r.log.Head()
		text, err := newlog.Encode(newlog.After(r.plan, r.old.found, r.old.aside, head.Size, hex.EncodeToString(head.Prev[:])))
		if err == nil {
			err = errors.Join(r.out.write(newlog.File, false, text), newlog.Write(r.places(), text))
		}
		return audit.Object{"sha256": transcript.Digest(text)}, err
	})
}

// mark has the audit key sign that the new log has no line. The service can begin it
// when this is on the token, and not before: it may have done so if the ceremony was
// interrupted.
func (r *run) mark(ctx context.Context, s plan.Step) error {
	origin := r.plan.Log.NewOrigin
	err := r.step(s, "now set in the service's configuration  origin: "+origin, audit.Object{"origin": origin}, func() (audit.Object, error) {
		keys, err := r.auditKeys(ctx)
		if err != nil {
			return nil, err
		}
		key, err := r.key(ctx, plan.RoleAudit)
		if err != nil {
			return nil, err
		}
		token := r.holders[plan.Service].token
		if notes, err := token.ReadData(ctx, hsm.MarkLabel); err == nil && len(notes) == 1 && r.interrupted(s) && newlog.Used(audit.Object{"marks": newlog.Marks(notes, keys)}, origin) {
			return audit.Object{"note": string(notes[0]), "found": 1}, nil
		}
		if err := newlog.Cleared(r.places()); err != nil {
			return nil, err
		}
		note, err := newlog.Mark(origin, key.With(ctx))
		if err != nil {
			return nil, err
		}
		return audit.Object{"note": string(note), "found": 0}, token.ReplaceData(ctx, hsm.MarkLabel, note)
	})
	r.result.NewOrigin, r.result.OldLog = origin, r.old.folder()
	return err
}

// newLog compares what the new log's first record quotes with what was found, and
// looks at the mark.
func (v *verifier) newLog() (string, error) {
	if v.plan.Kind != plan.NewLog {
		return "the plan begins none", nil
	}
	found, quote, mark := v.named(plan.StepSurvey)[0].End, v.named(plan.StepQuote)[0].End, v.named(plan.StepMark)[0].End
	after := newlog.After(v.plan, found.Object, v.named(plan.StepAside)[0].End.Object.Strings("aside"), quote.Seq, quote.Prev)
	text, err := newlog.Encode(after)
	if err != nil {
		return "", err
	}
	if transcript.Digest(text) != quote.Object.String("sha256") {
		return "", errors.New("what the new log quotes is not what was found, planned and done")
	}
	if newlog.Used(found.Object, v.plan.Log.NewOrigin) {
		return "", errors.New("the new origin is that of a log that was found")
	}
	pub, ok := v.keys[plan.RoleAudit].(*ecdsa.PublicKey)
	if !ok {
		return "", errors.New("the audit key is not ECDSA")
	}
	by, err := audit.ECDSANoteVerifier(v.plan.Log.NewOrigin, pub)
	if err != nil {
		return "", err
	}
	size, _, err := audit.OpenCheckpoint([]byte(mark.Object.String("note")), by)
	if err != nil || size > 0 && mark.Object.Int("found") == 0 {
		return "", fmt.Errorf("the mark is not one of no line of the new log: %w", err)
	}
	return strings.Join(append(newlog.Words(found.Object), "the new log is "+v.plan.Log.NewOrigin), "; "), nil
}

// objects lists what is on a token. That a service has left its mark on one that has
// keys already says nothing against it.
func (h *holder) objects(ctx context.Context, t *hsm.Token) ([]hsm.Object, error) {
	all, err := t.Objects(ctx)
	return slices.DeleteFunc(all, func(o hsm.Object) bool {
		return len(h.keep) > 0 && o.Class == "data" && o.Label == hsm.MarkLabel
	}), err
}
