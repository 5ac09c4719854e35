package ceremony

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/ceremony/plan"
)

// A holder is a token of the ceremony.
type holder struct {
	plan  plan.Token
	slot  hsm.Slot
	pin   GivenPIN
	so    GivenPIN
	text  []byte // a generated PIN, to be written to its file
	made  []hsm.Generated
	ids   map[string][]byte // by label, what an interrupted generation had planned
	token *hsm.Token        // open once all keys are there
	left  bool              // closed for good, before the ceremony's end
}

func (h *holder) config() hsm.Config {
	return hsm.Config{Module: h.plan.Module, Serial: h.slot.Serial, Label: h.slot.Label, PIN: hsm.PINFrom(h.pin.PIN), Sessions: 2, Deadline: time.Minute}
}

// interrupted reports whether the last attempt at a step began and did not end:
// then what it was to do may be done.
func (r *run) interrupted(s plan.Step) bool {
	all := r.before.Resumptions
	if len(all) == 0 || r.plan.Steps()[r.first] != s {
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
		return audit.Object{"serial": h.slot.Serial, "label": h.slot.Label, "manufacturer": h.slot.Manufacturer, "model": h.slot.Model, "firmware": h.slot.Firmware, "found": found}, nil
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
	begin := audit.Object{"source": h.pin.Source, "new": number(h.plan.New)}
	file := h.pinFile()
	if h.text != nil {
		begin["bits"], begin["file"] = 8*generatedBytes, file
	}
	return r.step(s, "PIN from "+h.pin.Source, begin, func() (audit.Object, error) {
		if h.text != nil {
			text := append(bytes.Clone(h.text), '\n')
			defer clear(text)
			if err := r.out.write(file, true, text); err != nil {
				return nil, err
			}
			if h.plan.On == plan.Service {
				r.result.PINFile = r.out.path(file)
			}
		}
		if h.plan.New {
			if err := withModule(h.plan.Module, func(m *hsm.Module) error { return r.initPIN(ctx, m, s, h) }); err != nil {
				return nil, err
			}
		}
		var objects []hsm.Object
		err := h.withToken(ctx, func(t *hsm.Token) (err error) {
			objects, err = t.Objects(ctx)
			return err
		})
		if err == nil && len(objects) > 0 {
			err = fmt.Errorf("the token is not empty: it has %d objects", len(objects))
		}
		return audit.Object{"objects": len(objects)}, err
	})
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

// pinFile is where a rehearsal's PIN is.
func (h *holder) pinFile() string {
	if h.plan.On == plan.Root {
		return RootPINFile
	}
	return PINFile
}

func (h *holder) withToken(ctx context.Context, f func(t *hsm.Token) error) error {
	t, err := hsm.Open(ctx, h.config())
	if err != nil {
		return err
	}
	return errors.Join(f(t), t.Close())
}

// inventory lists what is on a token and closes it: two objects for each key.
func (h *holder) inventory(ctx context.Context) ([]any, error) {
	objects, err := h.token.Objects(ctx)
	if err != nil {
		return nil, err
	}
	var there []any
	for _, o := range objects {
		there = append(there, audit.Object{"class": o.Class, "label": o.Label, "id": hex.EncodeToString(o.ID)})
	}
	if want := 2 * len(h.made); len(objects) != want {
		return there, fmt.Errorf("the token has %d objects and should have %d", len(objects), want)
	}
	err = h.token.Close()
	h.token, h.left = nil, true
	return there, err
}

// leave closes a token that is not needed any more, so that it can be taken away.
func (r *run) leave(ctx context.Context, s plan.Step, h *holder) error {
	return r.step(s, "the "+string(h.plan.On)+" token is closed: take it away", audit.Object{"serial": h.slot.Serial}, func() (audit.Object, error) {
		if _, err := r.open(ctx, h.plan.On); err != nil {
			return nil, err
		}
		there, err := h.inventory(ctx)
		return audit.Object{"objects": there}, err
	})
}
