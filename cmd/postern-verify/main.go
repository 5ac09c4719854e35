// Command postern-verify checks what an auditor was handed: bundles of a log, one by
// one or as a chain, records with their proofs, or a log's folder. It needs nothing
// but the file and the certificate of the audit key.
//
// # What a caller may rely on
//
// It exits 0 when all is good, 1 when something is bad, 2 when it was misused, and 3
// when nothing is wrong but something is missing that a whole verification needs. What
// is bad is named with its place. It uses no network, writes nothing but the report it
// is asked for, and needs the same memory for any log.
//
// # What it does not protect against
//
// It says what was recorded, and not whether it is true. Another log that the same key
// signed is found only by comparing with an earlier bundle or checkpoint.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// The exit statuses.
const (
	good = iota
	bad
	misused
	incomplete
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// command is what was asked for.
type command struct {
	trust, previous, output, report string
	files                           []string
}

const usage = `usage: postern-verify FILE... --trust audit.pem [--previous BUNDLE] [--report FILE] [--output json]

FILE is a bundle (several: a chain, oldest first), the proof that postern audit show
--proof wrote, or the folder of a log.
`

// parse reads flags and files in any order.
func parse(args []string, errOut io.Writer) (command, error) {
	var c command
	f := flag.NewFlagSet("postern-verify", flag.ContinueOnError)
	f.SetOutput(errOut)
	f.Usage = func() { _, _ = fmt.Fprint(errOut, usage); f.PrintDefaults() }
	f.StringVar(&c.trust, "trust", "", "certificate `file` of the audit key, from elsewhere than the bundle")
	f.StringVar(&c.previous, "previous", "", "the bundle before, a `file`: it is verified too")
	f.StringVar(&c.output, "output", "text", "`format`: text or json")
	f.StringVar(&c.report, "report", "", "write a report for people to this `file`: HTML if it ends in .html, else text")
	for len(args) > 0 {
		if err := f.Parse(args); err != nil {
			return c, err
		}
		if args = f.Args(); len(args) > 0 {
			c.files, args = append(c.files, args[0]), args[1:]
		}
	}
	switch {
	case len(c.files) == 0:
		return c, errors.New("no file to verify is named")
	case c.trust == "":
		return c, errors.New("--trust is missing: a certificate that came with the bundle proves nothing")
	case c.output != "text" && c.output != "json":
		return c, fmt.Errorf("no output format %q", c.output)
	}
	return c, nil
}

// run returns the exit status. Nothing under it exits or reads os.Args.
func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	c, err := parse(args, errOut)
	if errors.Is(err, flag.ErrHelp) {
		return good
	}
	if err != nil {
		_, _ = fmt.Fprintf(errOut, "postern-verify: %v\npostern-verify: hint: postern-verify --help\n", err)
		return misused
	}
	v := &verification{command: c}
	err = v.do(ctx)
	if u, ok := errors.AsType[*usageError](err); ok {
		_, _ = fmt.Fprintf(errOut, "postern-verify: %v\npostern-verify: hint: %s\n", u.err, u.hint)
		return misused
	}
	if err := v.answer(out, errOut, err); err != nil {
		_, _ = fmt.Fprintf(errOut, "postern-verify: %v\npostern-verify: hint: is there room, and may the file be written?\n", err)
		return misused
	}
	return v.code
}

// A usageError is a file that is not there, or is not what it should be.
type usageError struct {
	err  error
	hint string
}

func (e *usageError) Error() string { return e.err.Error() }

func cannot(hint, format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...), hint}
}
