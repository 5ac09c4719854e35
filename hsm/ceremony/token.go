package ceremony

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/ceremony/pins"
	"github.com/postern-pki/postern/hsm/ceremony/plan"
)

// A holder is a token of the ceremony.
type holder struct {
	plan     plan.Token
	slot     hsm.Slot
	pin      pins.Given
	so       pins.Given
	text     []byte      // a generated PIN, to be written to its file
	generate bool        // its user PIN is made by the ceremony
	keep     []plan.Kept // what has to be on it already
	made     []hsm.Generated
	ids      map[string][]byte // by label, what an interrupted generation had planned
	token    *hsm.Token        // open once all keys are there
	left     bool              // closed for good, before the ceremony's end
}

func (h *holder) config() hsm.Config {
	return hsm.Config{Module: h.plan.Module, Serial: h.slot.Serial, Label: h.slot.Label, PIN: hsm.PINFrom(h.pin.PIN), Sessions: 2, Deadline: time.Minute}
}

// interrupted reports whether the last attempt at a step began and did not end:
// then what it was to do may be done.
func (r *run) interrupted(s plan.Step) bool {
	all := r.before.Resumptions
	if len(all) == 0 || r.first == len(r.plan.Steps()) || r.plan.Steps()[r.first] != s {
		return false
	}
	for _, again := range all {
		if u := again.Undone; len(u) > 0 && u[0].String() == s.String() {
			return true
		}
	}
	return false
}

// openToken initializes a new token, or names the one that was looked at.
func (r *run) openToken(ctx context.Context, s plan.Step, h *holder) error {
	begin := audit.Object{"new": number(h.plan.New), "label": h.plan.Label, "serial": h.plan.Serial}
	err := r.step(s, "token ready", begin, func() (audit.Object, error) {
		found := 0
		if h.plan.New {
			err := withModule(h.plan.Module, func(m *hsm.Module) (err error) {
				there, err := m.Find(ctx, "", h.plan.Label)
				if err == nil && r.interrupted(s) && !there.UserPINSet {
					h.slot, found = there, 1 // we did it, and were stopped before we said so
					return nil
				}
				if h.slot, err = emptySlot(ctx, m, h.plan.Label); err != nil {
					return err
				}
				slot, err := m.InitToken(ctx, h.slot, h.plan.Label, h.so.PIN)
				if err == nil {
					h.slot = slot
				}
				return err
			})
			if err != nil {
				return nil, err
			}
		}
		if h.slot.Serial == r.plan.Replaces {
			return nil, fmt.Errorf("the token is the one that is to be replaced, serial %s", h.slot.Serial)
		}
		return audit.Object{"serial": h.slot.Serial, "label": h.slot.Label, "manufacturer": h.slot.Manufacturer, "model": h.slot.Model, "firmware": h.slot.Firmware, "max_pin": h.slot.MaxPIN, "found": found}, nil
	})
	r.nameToken(h)
	return err
}

// nameToken tells the caller which token it is.
func (r *run) nameToken(h *holder) {
	if h.plan.On == plan.Root {
		r.result.RootSerial = h.slot.Serial
		return
	}
	r.result.TokenSerial, r.result.TokenLabel = h.slot.Serial, h.slot.Label
}

// emptySlot finds the one slot whose token is not initialized.
func emptySlot(ctx context.Context, m *hsm.Module, label string) (hsm.Slot, error) {
	slots, err := m.Slots(ctx)
	if err != nil {
		return hsm.Slot{}, err
	}
	var empty []hsm.Slot
	for _, s := range slots {
		switch {
		case !s.Initialized:
			empty = append(empty, s)
		case s.Label == label:
			return hsm.Slot{}, &Error{Err: fmt.Errorf("a token with the label %q is there already, serial %s", s.Label, s.Serial), Hint: "choose another token.label, or name the token by its serial"}
		}
	}
	if len(empty) != 1 {
		return hsm.Slot{}, &Error{
			Err:  fmt.Errorf("%w: %d slots have a token that is not initialized, and one is needed", hsm.ErrNoToken, len(empty)),
			Hint: "leave exactly one such token in, or initialize one by the vendor's tool and name its serial in the plan",
		}
	}
	return empty[0], nil
}

func withModule(path string, f func(m *hsm.Module) error) error {
	m, err := hsm.Load(path)
	if err != nil {
		return err
	}
	return errors.Join(f(m), m.Close())
}

// setPIN sets a new token's user PIN; a generated one is in its file before it
// is on the token. It ends with a login and a look that nothing is there.
func (r *run) setPIN(ctx context.Context, s plan.Step, h *holder) error {
	if h.generate && h.pin.Empty() {
		var err error
		if h.pin, h.text, err = pins.Generate(h.slot.MaxPIN); err != nil {
			return &Error{Step: s.Name, Err: err}
		}
	}
	begin := audit.Object{"source": h.pin.Source, "new": number(h.plan.New), "bits": h.pin.Bits()}
	if h.generate {
		begin["file"], begin["sealed"] = h.pinFile(), number(h.sealed())
	}
	if h.plan.New {
		begin["so_source"], begin["so_bits"] = h.so.Source, h.so.Bits()
	}
	return r.step(s, "PIN from "+h.pin.Source, begin, func() (audit.Object, error) {
		ob := audit.Object{}
		if bits := h.pin.Bits(); bits < pins.MinBits {
			if err := r.except(ctx, ob, fmt.Sprintf("the user PIN of the %s token has %d bits at most, and not %d", h.plan.On, bits, pins.MinBits)); err != nil {
				return ob, err
			}
		}
		if err := r.keepPIN(ctx, h); err != nil {
			return ob, err
		}
		if h.plan.New {
			if err := withModule(h.plan.Module, func(m *hsm.Module) error { return r.initPIN(ctx, m, s, h) }); err != nil {
				return ob, err
			}
		}
		var objects []hsm.Object
		err := h.withToken(ctx, func(t *hsm.Token) (err error) {
			objects, err = h.objects(ctx, t)
			return err
		})
		if err == nil {
			err = h.expected(objects)
		}
		ob["objects"] = len(objects)
		return ob, err
	})
}

// keepPIN writes a generated PIN to its file, encrypted if the plan asks for that and
// the machine can.
func (r *run) keepPIN(ctx context.Context, h *holder) error {
	if !h.generate {
		return nil
	}
	if h.text == nil {
		return nil // it is there, from before an interruption
	}
	r.tellPIN(h)
	text := append(bytes.Clone(h.text), '\n')
	defer clear(text)
	if h.sealed() {
		sealed, err := pins.Seal(ctx, h.plan.Credential, h.text)
		if err != nil {
			return err
		}
		return r.out.write(h.pinFile(), true, sealed)
	}
	return r.out.write(h.pinFile(), true, text)
}

func (r *run) tellPIN(h *holder) {
	if h.plan.On == plan.Service {
		r.result.PINFile = r.out.path(h.pinFile())
	}
}

// sealed reports whether a generated PIN is encrypted for this machine.
func (h *holder) sealed() bool { return h.plan.Credential != "" && pins.Sealer() != "" }

// regainPIN takes a generated PIN from its file, in which it was before it was on the
// token. What was not written whole was used nowhere.
func (r *run) regainPIN(ctx context.Context, h *holder) error {
	path := r.out.path(h.pinFile())
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !r.isDone(plan.Step{Name: plan.StepPIN, Of: string(h.plan.On)}) {
		return nil // it is made by its step
	}
	if err == nil && h.sealed() {
		text, err = pins.Unseal(ctx, h.plan.Credential, text)
	} else if err == nil && !bytes.HasSuffix(text, []byte("\n")) {
		clear(text)
		return os.Remove(path)
	}
	if err != nil {
		return refuseResume("put back the file with the PIN, or "+startOver, "%w", err)
	}
	defer clear(text)
	h.pin = pins.Regain(bytes.TrimSuffix(text, []byte("\n")))
	r.out.written = append(r.out.written, writtenFile{name: h.pinFile(), secret: true})
	r.tellPIN(h)
	return nil
}

func (r *run) initPIN(ctx context.Context, m *hsm.Module, s plan.Step, h *holder) error {
	slot, err := m.Find(ctx, h.slot.Serial, h.slot.Label) // slots may have other numbers in a module that was loaded again
	if err != nil {
		return err
	}
	if slot.UserPINSet && r.interrupted(s) {
		return nil // we did it; the login that follows shows whether the PIN is the same
	}
	return m.InitPIN(ctx, slot, h.so.PIN, h.pin.PIN)
}

// pinFile is where a generated PIN is.
func (h *holder) pinFile() string {
	name := PINFile
	if h.plan.On == plan.Root {
		name = RootPINFile
	}
	if h.sealed() {
		name += SealedSuffix
	}
	return name
}

func (h *holder) withToken(ctx context.Context, f func(t *hsm.Token) error) error {
	t, err := hsm.Open(ctx, h.config())
	if err != nil {
		return err
	}
	return errors.Join(f(t), t.Close())
}

// expected wants the pairs of the keys that were there and of those that were made
// on the token, each once, and nothing else.
func (h *holder) expected(objects []hsm.Object) error {
	want := map[string]int{}
	add := func(k hsm.KeyPlan) {
		for _, class := range []string{"private key", "public key"} {
			want[class+" "+k.Label+" "+hex.EncodeToString(k.ID)]++
		}
	}
	for _, k := range h.keep {
		add(k.KeyPlan)
	}
	for _, g := range h.made {
		add(g.KeyPlan)
	}
	if len(want) == 0 && len(objects) > 0 {
		return fmt.Errorf("the token is not empty: it has %d objects, such as %s %q", len(objects), objects[0].Class, objects[0].Label)
	}
	for _, o := range objects {
		name := o.Class + " " + o.Label + " " + hex.EncodeToString(o.ID)
		if want[name]--; want[name] < 0 {
			return fmt.Errorf("the token has a %s %q, id %x, that is not expected there", o.Class, o.Label, o.ID)
		}
	}
	for name, n := range want {
		if n > 0 {
			return fmt.Errorf("the token has no %s", name)
		}
	}
	return nil
}

// unlock has the security officer set a new user PIN on a token that has one.
func (r *run) unlock(ctx context.Context, s plan.Step, h *holder) error {
	return r.step(s, "new user PIN set", audit.Object{"source": h.pin.Source, "so_source": h.so.Source}, func() (audit.Object, error) {
		err := withModule(h.plan.Module, func(m *hsm.Module) error {
			slot, err := m.Find(ctx, h.slot.Serial, h.slot.Label)
			if err != nil {
				return err
			}
			return m.ResetPIN(ctx, slot, h.so.PIN, h.pin.PIN)
		})
		return audit.Object{"locked": number(h.slot.Locked), "count_low": number(h.slot.CountLow)}, err
	})
}

// erase destroys everything on a token, and sees that nobody can log in to it as a
// user any more. A token that was erased before this was written down has no PIN.
func (r *run) erase(ctx context.Context, s plan.Step, h *holder) error {
	return r.step(s, "everything on the token is destroyed", audit.Object{"serial": h.slot.Serial, "so_source": h.so.Source}, func() (audit.Object, error) {
		if h.token != nil {
			if err := h.token.Close(); err != nil {
				return nil, err
			}
			h.token, h.left = nil, true
		}
		for path, m := range r.modules {
			if err := m.Close(); err != nil {
				return nil, err
			}
			delete(r.modules, path)
		}
		var after hsm.Slot
		err := withModule(h.plan.Module, func(m *hsm.Module) error {
			before, err := m.Find(ctx, "", h.slot.Label)
			if err == nil && (before.UserPINSet || !r.interrupted(s)) {
				err = m.EraseToken(ctx, h.slot, h.so.PIN)
			}
			return err
		})
		if err == nil {
			err = withModule(h.plan.Module, func(m *hsm.Module) (err error) { // as whoever comes next sees it
				after, err = m.Find(ctx, "", h.slot.Label)
				return err
			})
		}
		if err == nil && after.UserPINSet {
			err = errors.New("the token has a user PIN still: it was not erased")
		}
		return audit.Object{"serial": after.Serial, "label": after.Label, "user_pin": number(after.UserPINSet)}, err
	})
}

// inventory lists what is on a token: two objects for each key.
func (h *holder) inventory(ctx context.Context) ([]any, error) {
	objects, err := h.objects(ctx, h.token)
	if err != nil {
		return nil, err
	}
	var there []any
	for _, o := range objects {
		there = append(there, audit.Object{"class": o.Class, "label": o.Label, "id": hex.EncodeToString(o.ID)})
	}
	return there, h.expected(objects)
}

// leave closes a token that is not needed any more, so that it can be taken away.
func (r *run) leave(ctx context.Context, s plan.Step, h *holder) error {
	return r.step(s, "the "+string(h.plan.On)+" token is closed: take it away", audit.Object{"serial": h.slot.Serial}, func() (audit.Object, error) {
		if _, err := r.open(ctx, h.plan.On); err != nil {
			return nil, err
		}
		there, err := h.inventory(ctx)
		if err == nil {
			err = h.token.Close()
			h.token, h.left = nil, true
		}
		return audit.Object{"objects": there}, err
	})
}
