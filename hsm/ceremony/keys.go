package ceremony

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/ceremony/pins"
	"github.com/postern-pki/postern/hsm/ceremony/plan"
	"github.com/postern-pki/postern/hsm/ceremony/transcript"
)

// generationDeadline is the longest that one search for primes may take on a slow token.
const generationDeadline = 10 * time.Minute

// A madeKey is a key that was generated, and the key itself once it was found.
type madeKey struct {
	hsm.Generated
	on   plan.On
	spki string            // of a key that was there before, what the plan says; hex
	past map[string]string // of one that was copied, what the plan says
	key  *hsm.Key
}

// generate makes a token's keys, with all their attributes said.
func (r *run) generate(ctx context.Context, s plan.Step, h *holder) error {
	keys := r.plan.KeysOn(h.plan.On)
	var planned []any
	for i := range keys {
		k := &keys[i]
		if k.ID = h.ids[k.Label]; k.ID == nil {
			k.ID = make([]byte, 16)
			if _, err := rand.Read(k.ID); err != nil {
				return err
			}
		}
		planned = append(planned, audit.Object{"role": string(k.Role), "purpose": string(k.Purpose), "label": k.Label, "algorithm": string(k.Algorithm), "id": hex.EncodeToString(k.ID)})
	}
	return r.step(s, fmt.Sprintf("%d keys generated", len(keys)), audit.Object{"keys": planned}, func() (audit.Object, error) {
		there, err := r.alreadyMade(ctx, s, h, keys)
		if err != nil {
			return nil, err
		}
		var plans []hsm.KeyPlan
		for _, k := range keys {
			if _, ok := there[k.Role]; !ok {
				plans = append(plans, k.KeyPlan)
			}
		}
		limited, cancel := context.WithTimeout(ctx, generationDeadline)
		defer cancel()
		made, err := hsm.Generate(limited, h.config(), plans)
		var out []any
		for _, k := range keys {
			g, found := there[k.Role]
			if i := slices.IndexFunc(made, func(g hsm.Generated) bool { return g.Label == k.Label }); i >= 0 {
				g = made[i]
			} else if !found {
				continue // it failed
			}
			ob, kerr := r.take(k.Role, h, g)
			if kerr != nil {
				return nil, errors.Join(err, kerr)
			}
			ob["found"] = number(found)
			out = append(out, ob)
		}
		return audit.Object{"keys": out}, err
	})
}

// take remembers a key that was generated, and returns what is recorded of it.
func (r *run) take(role Role, h *holder, g hsm.Generated) (audit.Object, error) {
	spki, err := x509.MarshalPKIXPublicKey(g.Public)
	if err != nil {
		return nil, err
	}
	h.made = append(h.made, g)
	r.keys[role] = &madeKey{Generated: g, on: h.plan.On}
	k := KeyResult{Purpose: string(g.Purpose), Label: g.Label, ID: hex.EncodeToString(g.ID), SPKI: transcript.Digest(spki), Algorithm: string(g.Algorithm)}
	if string(role) != k.Purpose {
		k.Role = string(role)
	}
	r.result.Keys = append(r.result.Keys, k)
	return audit.Object{"role": string(role), "purpose": k.Purpose, "label": k.Label, "algorithm": k.Algorithm, "id": k.ID, "spki_sha256": k.SPKI,
		"spki": base64.StdEncoding.EncodeToString(spki), "attributes": string(g.Tier)}, nil
}

// alreadyMade finds the keys that an interrupted attempt has made: whole pairs with
// the label and the random id that it had written down before. Anything else on the
// token is not ours.
func (r *run) alreadyMade(ctx context.Context, s plan.Step, h *holder, keys []plan.Key) (map[Role]hsm.Generated, error) {
	there := map[Role]hsm.Generated{}
	if !r.interrupted(s) {
		return there, nil
	}
	err := h.withToken(ctx, func(t *hsm.Token) error {
		objects, err := h.objects(ctx, t)
		if err != nil {
			return err
		}
		ours := 0
		for _, k := range keys {
			n := 0
			for _, o := range objects {
				if o.Label == k.Label && bytes.Equal(o.ID, k.ID) {
					n++
				}
			}
			if ours += n; n == 0 {
				continue
			}
			if n != 2 {
				return &Error{Err: fmt.Errorf("the interrupted attempt left half of the key pair %q on the token", k.Label), Hint: "erase the token by the vendor's tool, and begin with an empty folder"}
			}
			key, err := t.Key(ctx, hsm.KeySpec{Purpose: k.Purpose, Label: k.Label, ID: k.ID})
			if err != nil {
				return err
			}
			if key.Algorithm() != k.Algorithm {
				return fmt.Errorf("the key %q on the token is %s", k.Label, key.Algorithm())
			}
			there[k.Role] = hsm.Generated{KeyPlan: k.KeyPlan, Public: key.Public(), Tier: hsm.Required}
		}
		if ours += 2 * len(h.keep); ours != len(objects) {
			return &Error{Err: fmt.Errorf("the token has %d objects, %d of which are not of this ceremony", len(objects), len(objects)-ours), Hint: "find out whose they are; erase the token, and begin with an empty folder"}
		}
		return nil
	})
	return there, err
}

// open opens the token of a key, on a module that is loaded once for all of them.
func (r *run) open(ctx context.Context, on plan.On) (*hsm.Token, error) {
	h := r.holders[on]
	if h.token != nil {
		return h.token, nil
	}
	if h.left {
		return nil, fmt.Errorf("the %s token was taken away", on)
	}
	m, err := r.modules[h.plan.Module], error(nil)
	if m == nil {
		if m, err = hsm.Load(h.plan.Module); err != nil {
			return nil, err
		}
		r.modules[h.plan.Module] = m
	}
	h.token, err = m.Open(ctx, h.config())
	return h.token, err
}

// key finds a key on its token; its attributes are read, and its public half
// compared with what was generated.
func (r *run) key(ctx context.Context, role Role) (*hsm.Key, error) {
	k := r.keys[role]
	if k.key != nil {
		return k.key, nil
	}
	token, err := r.open(ctx, k.on)
	if err != nil {
		return nil, err
	}
	key, err := token.Key(ctx, hsm.KeySpec{Purpose: k.Purpose, Label: k.Label, ID: k.ID, Recorded: k.past})
	if err != nil {
		return nil, err
	}
	if k.spki != "" {
		spki, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return nil, err
		}
		if transcript.Digest(spki) != k.spki || key.Algorithm() != k.Algorithm {
			return nil, fmt.Errorf("the token's key %q is not the one that the plan names", k.Label)
		}
		k.Public = key.Public()
	}
	if e, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !e.Equal(k.Public) {
		return nil, errors.New("the token has another public key under this name than it generated")
	}
	k.key = key
	return key, nil
}

// readBack asks the token for every attribute of a key.
func (r *run) readBack(ctx context.Context, s plan.Step, role Role) error {
	g := r.keys[role].Generated
	return r.step(s, "attributes of "+g.Label+" as they must be", audit.Object{"purpose": string(g.Purpose), "label": g.Label}, func() (audit.Object, error) {
		key, err := r.key(ctx, role)
		if err != nil {
			if e, ok := errors.AsType[*hsm.AttributeError](err); ok {
				return audit.Object{"attributes": findings(e.Differences)}, err
			}
			return nil, err
		}
		spki, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return nil, err
		}
		ob := audit.Object{"attributes": findings(key.Findings()), "spki_sha256": transcript.Digest(spki), "spki": base64.StdEncoding.EncodeToString(spki)}
		if untold := untold(ob); untold != "" {
			err = r.except(ctx, ob, fmt.Sprintf("the %s token does not tell %s of a key", r.keys[role].on, untold))
		}
		if err == nil && len(r.keys[role].past) > 0 {
			err = r.except(ctx, ob, fmt.Sprintf("the key %s was copied to its token: %s", g.Label, pastWords(r.keys[role].past)))
		}
		return ob, err
	})
}

// pastWords are what a token tells of a copied key.
func pastWords(past map[string]string) string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(past)) {
		words = append(words, name+" is "+past[name])
	}
	return strings.Join(words, ", ")
}

func findings(all []hsm.Finding) []any {
	var out []any
	for _, f := range all {
		state := "as wanted"
		switch {
		case !f.Supported:
			state = "not told"
		case !f.OK:
			state = "different"
		}
		out = append(out, audit.Object{"attribute": f.Attribute, "tier": string(f.Tier), "want": f.Want, "got": f.Got, "state": state})
	}
	return out
}

// untold lists the attributes that a token did not tell.
func untold(ob audit.Object) string {
	var names []string
	for _, a := range ob.Objects("attributes") {
		if a.String("state") == "not told" {
			names = append(names, a.String("attribute"))
		}
	}
	return strings.Join(names, ", ")
}

// prove tries what a key must not do.
func (r *run) prove(ctx context.Context, s plan.Step, role Role) error {
	g := r.keys[role].Generated
	return r.step(s, "proofs of "+g.Label+" hold", audit.Object{"purpose": string(g.Purpose), "label": g.Label}, func() (audit.Object, error) {
		key, err := r.key(ctx, role)
		if err != nil {
			return nil, err
		}
		proofs, err := r.holders[r.keys[role].on].token.Prove(ctx, key)
		var out []any
		for _, p := range proofs {
			state := "holds"
			if !p.Holds {
				state = "does not hold"
			}
			out = append(out, audit.Object{"proof": p.Name, "tried": p.Tried, "answer": p.Code.String(), "say": p.Say, "state": state})
		}
		return audit.Object{"proofs": out}, err
	})
}

// keptKeys takes the keys that were on the token from what was read of them.
func (v *verifier) keptKeys() error {
	for _, s := range v.named(plan.StepReadBack) {
		k, kept := v.plan.Kept(Role(s.Of))
		if !kept {
			continue
		}
		pub, err := publicKey(s.End.Object)
		if err != nil {
			return err
		}
		if s.End.Object.String("spki_sha256") != k.SPKI || !isAlgorithm(pub, k.Algorithm) {
			return fmt.Errorf("key %s: it is not the one that the plan names", k.Role)
		}
		v.keys[k.Role] = pub
	}
	return nil
}

// planned returns what is planned for the key of a role, made or kept.
func (v *verifier) planned(role Role) hsm.KeyPlan {
	for _, k := range v.plan.Keys {
		if k.Role == role {
			return k.KeyPlan
		}
	}
	k, _ := v.plan.Kept(role)
	return k.KeyPlan
}

// An Acceptance asks at the terminal for the person who accepts an exception, and
// returns that person's name, which has to be among those of the plan.
type Acceptance func(ctx context.Context, exception string, names []string) (string, error)

// ErrException says that nobody accepted what is not as it should be.
var ErrException = errors.New("an exception was not accepted")

// except notes in a record what is not as it should be, and who accepts it. Of a test
// plan, and in a rehearsal, nobody is asked, and the record says so.
func (r *run) except(ctx context.Context, ob audit.Object, text string) error {
	e := audit.Object{"text": text, "automatic": number(!r.asks())}
	if r.asks() {
		name, known := r.accepted[text]
		if !known {
			var names []string
			for _, who := range r.plan.People {
				names = append(names, who.Name)
			}
			if r.opts.Accept == nil {
				return fmt.Errorf("%w: %s: %w", ErrException, text, ErrUnattended)
			}
			var err error
			if name, err = r.opts.Accept(ctx, text, names); err != nil {
				return fmt.Errorf("%w: %s: %w", ErrException, text, err)
			}
			if !slices.Contains(names, name) {
				return fmt.Errorf("%w: %s: %q is none of the plan's people", ErrException, text, name)
			}
			r.accepted[text] = name // once for all keys of which the same is said
		}
		e["accepted_by"] = name
	}
	all, _ := ob["exceptions"].([]any)
	ob["exceptions"] = append(all, e)
	return nil
}

// asks reports whether people accept exceptions.
func (r *run) asks() bool { return r.plan.Class == plan.Production && !r.opts.Rehearse }

// exceptions gathers what was not as it should be, and looks that all of it was noted
// and, for production, accepted by one of the plan's people.
func (v *verifier) exceptions() (string, error) {
	asks := v.plan.Class == plan.Production && !v.report.Rehearsal
	for _, a := range v.again {
		if err := v.accepted(a.Record, true, asks); err != nil {
			return "", err
		}
	}
	for _, s := range v.steps {
		kept, _ := v.plan.Kept(Role(s.Of))
		weak := s.Name == plan.StepPIN && s.Begin.Object.Int("bits") < pins.MinBits || s.Name == plan.StepReadBack && len(kept.Attributes) > 0
		if err := v.accepted(s.End, weak || s.Name == plan.StepReadBack && untold(s.End.Object) != "", asks); err != nil {
			return "", err
		}
	}
	if len(v.report.Exceptions) == 0 {
		return "there are none", nil
	}
	return fmt.Sprintf("%d", len(v.report.Exceptions)), nil
}

func (v *verifier) accepted(r audit.Record, needed, asks bool) error {
	all := r.Object.Objects("exceptions")
	if needed && len(all) == 0 {
		return fmt.Errorf("record %d: something was not as it should be, and is not noted as an exception", r.Seq)
	}
	for _, e := range all {
		by := e.String("accepted_by")
		if asks && !slices.ContainsFunc(v.plan.People, func(p plan.Person) bool { return p.Name == by }) {
			return fmt.Errorf("record %d: nobody of the plan accepted that %s", r.Seq, e.String("text"))
		}
		if by == "" {
			by = "nobody: it is a test"
		}
		v.report.Exceptions = append(v.report.Exceptions, fmt.Sprintf("record %d: %s; accepted by %s", r.Seq, e.String("text"), by))
	}
	return nil
}
