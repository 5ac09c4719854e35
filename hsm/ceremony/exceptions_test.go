package ceremony_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/ceremony"
	"github.com/postern-pki/postern/hsm/ceremony/people"
	"github.com/postern-pki/postern/hsm/ceremony/pins"
	"github.com/postern-pki/postern/hsm/ceremony/report"
	"github.com/postern-pki/postern/hsm/ceremony/transcript"
	"github.com/postern-pki/postern/test/softhsm"
)

// A crew is the people of a production plan, with their keys in a folder.
type crew string

func newCrew(t *testing.T) crew {
	t.Helper()
	c := crew(t.TempDir())
	for _, name := range []string{"alice", "bob"} {
		sshKeygen(t, "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(string(c), name))
	}
	return c
}

// production is the line of a plan's class, with the people.
func (c crew) production(t *testing.T) string {
	t.Helper()
	text := "class: production\npeople:\n"
	for _, who := range [][2]string{{"alice", "administrator"}, {"bob", "witness"}} {
		pub, err := os.ReadFile(filepath.Join(string(c), who[0]+".pub"))
		if err != nil {
			t.Fatal(err)
		}
		text += fmt.Sprintf("  - {name: %s, role: %s, key: '%s'}\n", who[0], who[1], strings.TrimSpace(string(pub)))
	}
	return text
}

// sign signs a plan by all.
func (c crew) sign(t *testing.T, p ceremony.Plan) map[string]string {
	t.Helper()
	path, out := filepath.Join(t.TempDir(), "plan.yaml"), map[string]string{}
	if err := os.WriteFile(path, []byte(p.Text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"alice", "bob"} {
		sshKeygen(t, "-q", "-Y", "sign", "-n", people.ForPlan, "-f", filepath.Join(string(c), name), path)
		out[name] = path + "." + name
		if err := os.Rename(path+".sig", out[name]); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// peopleOf is the part of a plan with its people.
func peopleOf(t *testing.T, name string) string {
	t.Helper()
	return regexp.MustCompile(`(?m)^people:.*\n(  - .*\n)+`).FindString(script(t, name))
}

func yes(context.Context, ceremony.Intention) error { return nil }

// carryOut runs a production plan on a new token, with alice for every exception.
func (c crew) carryOut(t *testing.T, p ceremony.Plan, out string, change func(o *ceremony.Options)) (ceremony.Result, []string, error) {
	t.Helper()
	var asked []string
	o := ceremony.Options{
		Out: out, SOPIN: given(t, officerPIN), Confirm: yes, Signatures: c.sign(t, p),
		Accept: func(_ context.Context, text string, _ []string) (string, error) {
			asked = append(asked, text)
			return "alice", nil
		},
	}
	if change != nil {
		change(&o)
	}
	r, err := ceremony.Run(t.Context(), p, o)
	return r, asked, err
}

// The user PIN of a production token is made, not chosen: nobody is asked, it is strong,
// and it opens the token.
func TestAProductionPINIsMade(t *testing.T) {
	softhsm.Empty(t)
	c := newCrew(t)
	p := demo(t, "class: test\n", c.production(t), "label: postern-demo", "label: made")
	r, asked, err := c.carryOut(t, p, filepath.Join(t.TempDir(), "out"), nil)
	if err != nil {
		t.Fatal(err)
	}
	checkFolder(t, r)
	token, err := hsm.Open(t.Context(), hsm.Config{Module: r.Module, Serial: r.TokenSerial, PIN: hsm.PINFromFile(r.PINFile)})
	if err == nil {
		err = token.Close()
	}
	if err != nil {
		t.Errorf("the PIN in the file: %v", err)
	}
	for _, rec := range records(t, r.Transcript) {
		if rec.Event == "ceremony.pin" && rec.Outcome == transcript.Begin && (rec.Object.Int("bits") < 80 || rec.Object.String("source") != "generated") {
			t.Errorf("recorded: %v", rec.Object)
		}
	}
	found, err := ceremony.Verify(r.Transcript)
	if err != nil || len(found.Exceptions) == 0 || len(asked) == 0 || len(asked) >= len(found.Exceptions) {
		t.Errorf("%d questions, exceptions %q, %v", len(asked), found.Exceptions, err) // the same is asked once for all keys
	}
	for _, e := range found.Exceptions {
		if !strings.Contains(e, "does not tell CKA_") || !strings.HasSuffix(e, "accepted by alice") {
			t.Errorf("exception %q", e)
		}
	}
	d, err := report.Of(r.Transcript)
	if err != nil || d.Sections[0].Title != "Exceptions" || len(d.Sections[0].Lines) != len(found.Exceptions) {
		t.Errorf("the report begins with %+v, %v", d.Sections[0], err)
	}
}

// An exception that nobody of the plan accepts ends the ceremony, and the record of it
// is gone on from once it is accepted; the interruption is an exception of its own.
func TestAnExceptionNeedsAPersonOfThePlan(t *testing.T) {
	softhsm.Empty(t)
	c := newCrew(t)
	p := demo(t, "class: test\n", c.production(t), "label: postern-demo", "label: doubted")
	out := filepath.Join(t.TempDir(), "out")
	for name, accept := range map[string]ceremony.Acceptance{
		"a stranger": func(context.Context, string, []string) (string, error) { return "mallory", nil },
		"nobody":     func(context.Context, string, []string) (string, error) { return "", nil },
	} {
		_, _, err := c.carryOut(t, p, out, func(o *ceremony.Options) { o.Accept = accept })
		if !errors.Is(err, ceremony.ErrException) {
			t.Fatalf("%s: %v", name, err)
		}
	}
	r, asked, err := c.carryOut(t, p, out, nil) // with the PIN that was made the first time
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(asked[0], "interrupted, or failed") {
		t.Errorf("asked %q", asked)
	}
	if found, err := ceremony.Verify(r.Transcript); err != nil || found.Resumed != 1 || !strings.Contains(strings.Join(found.Exceptions, "\n"), "interrupted") {
		t.Errorf("%+v, %v", found, err)
	}
}

// In a test plan nobody is asked, and what was not as it should be is marked.
func TestExceptionsOfATestPlanAreMarked(t *testing.T) {
	tok := softhsm.New(t)
	p := demo(t, "new: true\n  label: postern-demo", "serial: '"+tok.Serial+"'")
	r, err := ceremony.Run(t.Context(), p, ceremony.Options{Out: filepath.Join(t.TempDir(), "out"), PIN: pins.FromFile(changePIN(t, tok, "12345678"))})
	if err != nil {
		t.Fatal(err)
	}
	found, err := ceremony.Verify(r.Transcript)
	all := strings.Join(found.Exceptions, "\n")
	if err != nil || !strings.Contains(all, "bits at most, and not 80; accepted by nobody: it is a test") || !strings.Contains(all, "does not tell CKA_") {
		t.Errorf("%q, %v", found.Exceptions, err)
	}
}

// changePIN gives a token another user PIN, and returns a file with it.
func changePIN(t *testing.T, tok softhsm.Token, pin string) string {
	t.Helper()
	m, err := hsm.Load(tok.Module)
	if err != nil {
		t.Fatal(err)
	}
	slot, err := m.Find(t.Context(), tok.Serial, "")
	if err == nil {
		err = m.ResetPIN(t.Context(), slot, hsm.NewPIN([]byte(tok.SOPIN)), hsm.NewPIN([]byte(pin)))
	}
	if err = errors.Join(err, m.Close()); err != nil {
		t.Fatal(err)
	}
	return pinFile(t, pin)
}

// A generated PIN is encrypted for the machine where the plan asks for it and the
// machine can; the ceremony goes on with it after an interruption.
func TestAGeneratedPINIsSealed(t *testing.T) {
	softhsm.Empty(t)
	p := demo(t, "label: postern-demo", "label: sealed\n  pin_credential: hsm-pin")
	ctx, stop := context.WithCancel(t.Context())
	o := ceremony.Options{Out: filepath.Join(t.TempDir(), "out"), SOPIN: given(t, officerPIN), Progress: func(step, _ string) {
		if step == "pin" {
			stop()
		}
	}}
	if _, err := ceremony.Run(ctx, p, o); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	r, err := ceremony.Run(t.Context(), p, o)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(r.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	if tool := pins.Sealer(); tool != "" {
		if filepath.Base(r.PINFile) != "hsm-pin.cred" {
			t.Errorf("the PIN is in %s", r.PINFile)
		}
		if raw, err = exec.Command(tool, "decrypt", "--name=hsm-pin", r.PINFile, "-").Output(); err != nil {
			t.Fatal(err)
		}
		if err := exec.Command(tool, "decrypt", "--name=other", r.PINFile, "-").Run(); err == nil {
			t.Error("it opens under another name")
		}
	}
	noneHolds(t, r.Out, strings.TrimSpace(string(raw)), "hsm-pin")
	token, err := hsm.Open(t.Context(), hsm.Config{Module: r.Module, Serial: r.TokenSerial, PIN: hsm.PINFrom(hsm.NewPIN([]byte(strings.TrimSpace(string(raw)))))})
	if err != nil {
		t.Fatal(err)
	}
	if err := token.Close(); err != nil {
		t.Error(err)
	}
	if _, err := ceremony.Verify(r.Transcript); err != nil {
		t.Error(err)
	}
}
