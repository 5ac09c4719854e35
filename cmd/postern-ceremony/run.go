package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/ceremony"
	"github.com/postern-pki/postern/hsm/ceremony/plan"
	"github.com/postern-pki/postern/hsm/ceremony/transcript"
	"github.com/postern-pki/postern/hsm/ceremony/words"
)

// The exit statuses.
const (
	exitDone    = 0
	exitFailed  = 1
	exitMisused = 2
)

// A usageError is a command line that cannot be carried out.
type usageError struct {
	err  error
	hint string
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(hint, format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...), hint}
}

// run returns the exit status. Nothing under it exits, prints to os.Stdout or
// reads os.Args, so that a test can call it.
func run(ctx context.Context, args []string, stdin io.Reader, out, errOut io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	_, _ = fmt.Fprintf(errOut, "postern-ceremony: %v\n", err)
	_, _ = fmt.Fprintf(errOut, "postern-ceremony: hint: %s\n", hintFor(err))
	if _, ok := errors.AsType[*usageError](err); ok || errors.Is(err, ceremony.ErrUnattended) {
		return exitMisused
	}
	return exitFailed
}

// hintFor says what to do about an error.
func hintFor(err error) string {
	if e, ok := errors.AsType[*usageError](err); ok {
		return e.hint
	}
	if e, ok := errors.AsType[*ceremony.Error](err); ok && e.Hint != "" {
		return e.Hint
	}
	switch _, bad := errors.AsType[*plan.Error](err); {
	case bad:
		return "mend the plan; postern-ceremony check says when it is right"
	case errors.Is(err, hsm.ErrModule):
		return "token.module in the plan names the PKCS#11 library; is it installed, and for this machine?"
	case errors.Is(err, hsm.ErrPINCount):
		return "the token counts failed logins; log in once with the right PIN by the vendor's tool"
	case errors.Is(err, hsm.ErrPIN):
		return "the PIN was tried once and is not tried again; make sure of it first"
	case errors.Is(err, hsm.ErrNoToken):
		return "is the token plugged in, and its serial the one in the plan?"
	case errors.Is(err, ceremony.ErrTranscript):
		return "compare the transcript with the digest that was kept at the ceremony; do not use the keys until it is clear what happened"
	case errors.Is(err, transcript.ErrInUse):
		return "wait for the other one to end"
	case errors.Is(err, fs.ErrNotExist):
		return "is the path right?"
	case errors.Is(err, fs.ErrPermission):
		return "who carries the ceremony out has to be allowed to read and write it"
	case errors.Is(err, context.Canceled):
		return "it was interrupted: the transcript, if there is one, says how far it came"
	default:
		return "what was said above and the transcript, if there is one, say how far it came"
	}
}

// A printer writes a command's result as text, or as one JSON value.
type printer struct {
	format string
	out    io.Writer
}

func (p *printer) json() bool { return p.format == "json" }

func (p *printer) line(format string, args ...any) {
	if !p.json() {
		_, _ = fmt.Fprintf(p.out, format+"\n", args...)
	}
}

func (p *printer) value(v any) error {
	if !p.json() {
		return nil
	}
	e := json.NewEncoder(p.out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func newRoot() *cobra.Command {
	p := &printer{}
	root := &cobra.Command{
		Use:           "postern-ceremony",
		Short:         "make an appliance's keys and first certificates, by a plan",
		SilenceErrors: true, SilenceUsage: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("the commands are check, script, rehearse, run, verify and report; postern-ceremony --help explains them", "unknown command %q", args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error {
			_, _ = io.WriteString(c.ErrOrStderr(), c.UsageString())
			return usagef("postern-ceremony --help explains them", "no command is given")
		},
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			p.out = c.OutOrStdout()
			if p.format != "text" && p.format != "json" {
				return usagef("--output text or --output json", "unknown output format %q", p.format)
			}
			return nil
		},
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.PersistentFlags().StringVar(&p.format, "output", "text", "text or json")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usagef(c.CommandPath()+" --help lists the flags; a PIN is never one", "%w", err)
	})
	root.AddCommand(checkCommand(p), scriptCommand(), rehearseCommand(p), runCommand(p), verifyCommand(p), reportCommand())
	return root
}

// one wants exactly one argument.
func one(what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usagef(c.UseLine(), "%s needs exactly one %s", c.CommandPath(), what)
		}
		return nil
	}
}

func readPlan(path string) (ceremony.Plan, error) {
	text, err := os.ReadFile(path) //nolint:gosec // whoever runs it names the plan
	if err != nil {
		return ceremony.Plan{}, fmt.Errorf("plan: %w", err)
	}
	p, err := plan.Parse(text)
	if err != nil {
		return p, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

// checked is what check says about a plan.
type checked struct {
	Plan         string         `json:"plan"`
	Class        ceremony.Class `json:"class"`
	Kind         plan.Kind      `json:"kind"`
	SHA256       string         `json:"sha256"`
	Words        []string       `json:"words"` // of the digest, to be read aloud
	Token        string         `json:"token"`
	RootToken    string         `json:"root_token,omitempty"`
	Keys         []checkedKey   `json:"keys"`
	Certificates []checkedCert  `json:"certificates"`
	Warnings     []string       `json:"warnings"`
}

type checkedKey struct {
	Purpose   string `json:"purpose"`
	Label     string `json:"label"`
	Algorithm string `json:"algorithm"`
}

type checkedCert struct {
	Role    string `json:"role"`
	Subject string `json:"subject"`
	Days    int    `json:"days"`
}

func checkCommand(p *printer) *cobra.Command {
	return &cobra.Command{
		Use: "check PLAN", Short: "say what is wrong with a plan, and its SHA-256", Args: one("plan"),
		RunE: func(_ *cobra.Command, args []string) error {
			plan, err := readPlan(args[0])
			if err != nil {
				return err
			}
			c := describe(plan)
			p.line("plan %s, class %s, kind %s", c.Plan, c.Class, c.Kind)
			p.line("SHA-256 %s", c.SHA256)
			for _, l := range c.Words {
				p.line("        %s", l)
			}
			p.line("token: %s", c.Token)
			if c.RootToken != "" {
				p.line("the root's token: %s", c.RootToken)
			}
			for _, k := range c.Keys {
				p.line("key %-10s  %-8s  label %s", k.Purpose, k.Algorithm, k.Label)
			}
			for _, k := range c.Certificates {
				p.line("certificate %-11s  %5d days  %s", k.Role, k.Days, k.Subject)
			}
			for _, w := range c.Warnings {
				p.line("note: %s", w)
			}
			return p.value(c)
		},
	}
}

func describe(p ceremony.Plan) checked {
	c := checked{Plan: p.Name, Class: p.Class, Kind: p.Kind, SHA256: p.Digest(), Words: words.OfHex(p.Digest()), Warnings: p.Warnings()}
	c.Token = tokenWords(p.Token(plan.Service))
	if p.HasRoot() {
		c.RootToken = tokenWords(p.Token(plan.Root))
	}
	for _, k := range p.Keys {
		c.Keys = append(c.Keys, checkedKey{string(k.Role), k.Label, string(k.Algorithm)})
	}
	for _, group := range [][]plan.Certificate{p.Certificates, p.Operators} {
		for _, x := range group {
			c.Certificates = append(c.Certificates, checkedCert{string(x.Role), x.Subject.String(), int(x.Validity.Hours() / 24)})
		}
	}
	return c
}

func tokenWords(t plan.Token) string {
	if t.New {
		return fmt.Sprintf("a new one, %q, of %s", t.Label, t.Module)
	}
	return fmt.Sprintf("serial %s of %s", t.Serial, t.Module)
}

func verifyCommand(p *printer) *cobra.Command {
	return &cobra.Command{
		Use: "verify TRANSCRIPT", Short: "draw the conclusions of a transcript again", Args: one("transcript"),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := ceremony.Verify(args[0])
			for _, s := range r.Statements {
				word := "ok "
				if !s.OK {
					word = "NOT"
				}
				p.line("%s  %s: %s", word, s.Name, s.Say)
			}
			if err != nil {
				return errors.Join(err, p.value(r))
			}
			if r.Rehearsal {
				p.line("This was a REHEARSAL.")
			}
			if r.Resumed > 0 {
				p.line("It was interrupted or failed, and went on: %d times.", r.Resumed)
			}
			p.line("plan %s, SHA-256 %s", r.Plan, r.PlanSHA256)
			p.line("transcript SHA-256 %s", r.Digest)
			for _, l := range words.OfHex(r.Digest) {
				p.line("        %s", l)
			}
			p.line("Compare both digests with those that were kept at the ceremony.")
			return p.value(r)
		},
	}
}
