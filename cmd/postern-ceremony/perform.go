package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/postern-pki/postern/hsm/ceremony"
	"github.com/postern-pki/postern/hsm/ceremony/pins"
	"github.com/postern-pki/postern/hsm/ceremony/plan"
	"github.com/postern-pki/postern/hsm/ceremony/words"
)

func rehearseCommand(p *printer) *cobra.Command {
	o := ceremony.Options{Rehearse: true}
	c := &cobra.Command{
		Use: "rehearse PLAN --out DIR", Short: "carry a plan out on a throw-away SoftHSM token", Args: one("plan"),
		RunE: func(c *cobra.Command, args []string) error {
			plan, err := readPlan(args[0])
			if err != nil {
				return err
			}
			return perform(c.Context(), p, plan, o)
		},
	}
	c.Flags().StringVar(&o.Out, "out", "", "folder for what comes out: absent or empty")
	c.Flags().StringVar(&o.SoftHSM, "softhsm", "", "SoftHSM's module, if it is not in its usual place")
	return c
}

// pinFlags say where a PIN comes from, never what it is.
type pinFlags struct {
	prefix, what     string
	file, credential string
	fd               int
}

func (f *pinFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.file, f.prefix+"-file", "", "read "+f.what+" from a file of mode 0400 or 0600")
	c.Flags().IntVar(&f.fd, f.prefix+"-fd", -1, "read "+f.what+" from an inherited descriptor")
	c.Flags().StringVar(&f.credential, f.prefix+"-credential", "", "read "+f.what+" from a credential of the service manager")
}

func (f *pinFlags) named() bool { return f.file != "" || f.fd >= 0 || f.credential != "" }

// source returns the one source that was named; without one, the terminal.
func (f *pinFlags) source(twice, terminal bool) (pins.Source, error) {
	var named []pins.Source
	if f.file != "" {
		named = append(named, pins.FromFile(f.file))
	}
	if f.fd >= 0 {
		named = append(named, pins.FromFD(f.fd))
	}
	if f.credential != "" {
		named = append(named, pins.FromCredential(f.credential))
	}
	hint := fmt.Sprintf("--%[1]s-file F, --%[1]s-fd N or --%[1]s-credential NAME, or a terminal to ask at", f.prefix)
	switch {
	case len(named) > 1:
		return nil, usagef(hint, "%s is to come from more than one place", f.what)
	case len(named) == 1:
		return named[0], nil
	case !terminal:
		return func(context.Context) (pins.Given, error) {
			return pins.Given{}, usagef(hint, "there is no terminal to ask for it at")
		}, nil
	}
	return pins.FromTerminal(f.what, twice), nil
}

func runCommand(p *printer) *cobra.Command {
	var o ceremony.Options
	sources := []*pinFlags{
		{prefix: "pin", what: "the user PIN"},
		{prefix: "so-pin", what: "the security officer's PIN"},
		{prefix: "root-pin", what: "the user PIN of the root's token"},
		{prefix: "root-so-pin", what: "the security officer's PIN of the root's token"},
	}
	c := &cobra.Command{
		Use: "run PLAN --out DIR", Short: "carry a plan out, or go on with one that was interrupted", Args: one("plan"),
		RunE: func(c *cobra.Command, args []string) error {
			script, err := readPlan(args[0])
			if err != nil {
				return err
			}
			terminal := haveTerminal()
			if terminal {
				o.Confirm, o.Accept, o.KeepShare, o.AskShares = confirm, accept, keepShare, askShares
			}
			if script.Class == plan.Production && !terminal {
				return &ceremony.Error{Err: ceremony.ErrUnattended, Hint: "run it at a terminal, or rehearse it"}
			}
			if script.Class == plan.Test {
				o.Confirm = nil // the plan itself says that nothing depends on it
			}
			for i, dst := range []*pins.Source{&o.PIN, &o.SOPIN, &o.RootPIN, &o.RootSOPIN} {
				on := plan.Service
				if i >= 2 {
					on = plan.Root
				}
				t := script.Token(on)
				if made := t.New && (script.Class == plan.Production || t.Credential != ""); made && i%2 == 0 && !sources[i].named() {
					continue // the ceremony makes it
				}
				if *dst, err = sources[i].source(t.New, terminal); err != nil {
					return err
				}
			}
			return perform(c.Context(), p, script, o)
		},
	}
	c.Flags().StringVar(&o.Out, "out", "", "folder for what comes out: absent, empty, or that of the interrupted ceremony")
	c.Flags().StringVar(&o.Certificate, "certificate", "", "file with the certificate of our CA key that was made elsewhere or before, and those above it")
	c.Flags().StringToStringVar(&o.Signatures, "signature", nil, "NAME=FILE of a person's signature on the plan, by ssh-keygen -Y sign -n postern-ceremony-plan")
	for _, f := range sources {
		f.add(c)
	}
	return c
}

func haveTerminal() bool {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	return tty.Close() == nil
}

// confirm shows what is about to happen and wants the end of the plan's digest typed.
func confirm(ctx context.Context, i ceremony.Intention) error {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("asking for confirmation: %w", err)
	}
	want := i.Digest[len(i.Digest)-8:]
	state := "Nothing has been changed yet."
	if i.Found != "" {
		state = "This was found:\n  " + strings.ReplaceAll(i.Found, "\n", "\n  ") + "\nNothing has been moved yet."
	}
	if i.Resume != "" {
		state = "It was interrupted: " + i.Resume + "."
	}
	_, err = fmt.Fprintf(tty, "\nThis is no rehearsal. The plan %s\n  SHA-256 %s\nwill be carried out on %s,\nand what comes out is written to %s.\n%s To go on, type the last 8 characters of the approved plan's SHA-256: ",
		i.Plan, i.Digest, i.Token, i.Out, state)
	if err != nil {
		return errors.Join(err, tty.Close())
	}
	line, err := answered(ctx, tty)
	if err == nil && line != want {
		err = &ceremony.Error{Err: errors.New("not confirmed"), Hint: "nothing was changed; compare the plan with the approved one"}
	}
	return err
}

// answered reads a line from a terminal, and closes it.
func answered(ctx context.Context, tty *os.File) (string, error) {
	typed := make(chan string, 1)
	go func() {
		defer func() { _ = tty.Close() }()
		line, _ := bufio.NewReader(io.LimitReader(tty, 256)).ReadString('\n') // what was cut short is not the answer
		typed <- strings.TrimSpace(line)
	}()
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case line := <-typed:
		return line, nil
	}
}

// accept shows an exception and asks for the name of the person who accepts it.
func accept(ctx context.Context, exception string, names []string) (string, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("asking for acceptance: %w", err)
	}
	_, err = fmt.Fprintf(tty, "\nAN EXCEPTION: %s.\nIt is noted in the transcript. Who accepts it (%s)? Type the name, or nothing to stop: ", exception, strings.Join(names, ", "))
	if err != nil {
		return "", errors.Join(err, tty.Close())
	}
	return answered(ctx, tty)
}

// perform carries a plan out and shows what came out.
func perform(ctx context.Context, p *printer, plan ceremony.Plan, o ceremony.Options) error {
	if o.Out == "" {
		return usagef("--out DIR names a folder that is absent or empty", "where the output goes is not said")
	}
	if o.Rehearse {
		p.line("REHEARSAL of plan %s, SHA-256 %s", plan.Name, plan.Digest())
	}
	o.Progress = func(step, say string) { p.line("  %-12s  %s", step, say) }
	r, err := ceremony.Run(ctx, plan, o)
	if err != nil {
		return err
	}
	if r.Waiting != "" {
		p.line("have %s signed, and compare its SHA-256 with whoever signs it", r.Waiting)
		p.line("then run the same plan again, with the same --out and --certificate FILE")
	}
	p.line("token %q, serial %s", r.TokenLabel, r.TokenSerial)
	if r.RootSerial != "" {
		p.line("the root's token, serial %s: keep it apart from the service", r.RootSerial)
	}
	for _, k := range r.Keys {
		p.line("key %-10s  %-8s  SHA-256 of the public key %s", cmp.Or(k.Role, k.Purpose), k.Algorithm, k.SPKI)
	}
	for _, c := range r.Certificates {
		p.line("%-15s  %s  until %s  SHA-256 %s", c.File, c.Subject, c.NotAfter.Format("2006-01-02"), c.SHA256)
	}
	if r.PINFile != "" {
		p.line("the PIN is in %s", r.PINFile)
	}
	if r.Rehearsal {
		p.line("SOFTHSM2_CONF=%s finds the token", r.SoftHSM2Conf)
	}
	if r.KeysFile != "" {
		p.line("keys and files for the configuration: %s", r.KeysFile)
	}
	if r.NewOrigin != "" {
		p.line("in the service's configuration set   origin: %s   and start it; the old log verifies still, by", r.NewOrigin)
		p.line("  postern audit verify --dir %s --trust AUDIT.PEM", r.OldLog)
	}
	p.line("transcript: %s, %d records", r.Transcript, r.Records)
	p.line("keep this, the transcript's SHA-256: %s", r.Digest)
	for _, l := range words.OfHex(r.Digest) {
		p.line("        %s", l)
	}
	return p.value(r)
}
