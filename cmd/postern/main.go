// Command postern is the operator's tool: it talks to a running service through
// the operators' API, checks files, verifies the log, and enrolls as a device
// would.
//
// # What a caller may rely on
//
// It exits 0 when it did what it was asked, 1 when that failed and 2 when it was
// misused; `status` exits 0 good, 1 unreachable, 2 degraded, and what asks for a
// certificate exits 3 while the CA has not decided. Data goes to
// standard output, words to standard error, an error comes with a hint.
//
// # What it does not protect against
//
// A challenge that it prints is as secret as the terminal that it is printed on.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/postern-pki/postern/cmd/postern/cli"
	"github.com/postern-pki/postern/cmd/postern/device"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // what cannot be interrupted in order is, the second time
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// hinted is an error with what to do about it.
type hinted = cli.Error

func failed(hint, format string, args ...any) error  { return cli.Failed(hint, format, args...) }
func misused(hint, format string, args ...any) error { return cli.Misused(hint, format, args...) }

// quiet ends with a status and without a word: the words are on standard output.
func quiet(code int) error { return cli.Quiet(code) }

// run returns the exit status. Nothing under it exits or reads os.Args.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	root := newRoot(&app{in: in, out: out, errOut: errOut})
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	h, ok := errors.AsType[*hinted](err)
	if !ok { // cobra's own: unknown commands, flags and arguments
		h = &hinted{Err: err, Hint: cmd.CommandPath() + " --help", Code: 2}
	}
	if h.Err != nil {
		_, _ = fmt.Fprintf(errOut, "postern: %v\n", h.Err)
	}
	if h.Hint == "" && h.Err != nil {
		h.Hint = fallbackHint(cmd, h.Err)
	}
	if h.Hint != "" {
		_, _ = fmt.Fprintf(errOut, "postern: hint: %s\n", h.Hint)
	}
	return max(h.Code, 1)
}

// fallbackHint is for an error that came without one.
func fallbackHint(cmd *cobra.Command, err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "is the path right?"
	case errors.Is(err, fs.ErrPermission):
		return "root and the service's own user may read it"
	case errors.Is(err, context.Canceled):
		return "it was interrupted"
	}
	return cmd.CommandPath() + " --help"
}

// app is what all commands share.
type app struct {
	in          io.Reader
	out, errOut io.Writer
	config      string
	socket      string
	output      string
}

func (a *app) json() bool { return a.output == "json" }

// env is what the commands in folders of their own have of it.
func (a *app) env() cli.Env {
	return cli.Env{In: a.in, Out: a.out, ErrOut: a.errOut, Output: &a.output}
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use: "postern", Short: "Operate a Postern enrollment appliance", SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output != "text" && a.output != "json" {
				return misused("--output text or --output json", "no output format %q", a.output)
			}
			return nil
		},
	}
	f := root.PersistentFlags()
	f.StringVar(&a.config, "config", "/etc/postern/postern.yaml", "configuration `file`")
	f.StringVar(&a.socket, "socket", "", "operators' `socket` (default: the configuration's)")
	f.StringVar(&a.output, "output", "text", "`format`: text or json")
	root.AddCommand(a.statusCmd(), a.configCmd(), a.challengeCmd(), a.pendingCmd(), a.actCmd(), a.certCmd(), a.caCmd(), a.crlCmd(), a.auditCmd(), a.reportCmd(), a.policyCmd(), a.rebuildCmd(), device.Command(a.env()), a.doctorCmd())
	group(root)
	for _, c := range root.Commands() {
		group(c)
	}
	return root
}

// group makes a command that only has others misused without one of them.
func group(c *cobra.Command) {
	if !c.HasSubCommands() {
		return
	}
	c.Args, c.SuggestionsMinimumDistance = cobra.ArbitraryArgs, 2
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			hint := c.CommandPath() + " --help"
			if near := c.SuggestionsFor(args[0]); len(near) > 0 {
				hint = c.CommandPath() + " " + near[0]
			}
			return misused(hint, "%s has no command %q", c.CommandPath(), args[0])
		}
		return misused(c.CommandPath()+" --help", "%s needs a command", c.CommandPath())
	}
}
