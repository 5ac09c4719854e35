// Command conformance prints the table of what SCEP (RFC 8894) and its field ask of
// a server, what was done about each row, and the test that shows it; and it reads
// what "go test -json" prints and fails if such a test did not run.
//
// # What a caller may rely on
//
// Rows are in rows.yaml, attacks in attacks.yaml. A test says in its doc comment
// what it shows, in a line such as "Covers: S-140, S-141"; nothing else makes a row
// shown. Tests of this package fail where a row that is said to be covered has no
// test, where a comment names a row that is not there, and where such a comment
// stands at what "go test" does not run.
//
// # What it does not protect against
//
// It counts tests, and cannot see whether one would fail without the behavior.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/postern-pki/postern/test/site"
)

func main() {
	format := flag.String("format", "text", "`form` of the table: text, markdown, or handbook (the page without tests)")
	watch := flag.Bool("watch", false, "read the output of \"go test -json\" from the standard input, print it as \"go test\" would, and fail if a covering test did not run")
	flag.Parse()
	if err := run(context.Background(), *format, *watch, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func run(_ context.Context, format string, watched bool, in io.Reader, out io.Writer) error {
	root, err := site.Root()
	if err != nil {
		return err
	}
	t, err := Load()
	if err != nil {
		return err
	}
	tests, findings, err := Covers(root)
	if err != nil {
		return err
	}
	if watched {
		w := newWatcher(out)
		if err := w.read(in); err != nil {
			return err
		}
		return w.missing(tests)
	}
	for _, f := range append(findings, t.Check(tests)...) {
		fmt.Fprintln(os.Stderr, "conformance:", f)
	}
	switch format {
	case "text":
		return t.text(out, tests)
	case "markdown":
		return t.markdown(out, tests)
	case "handbook":
		return t.handbook(out)
	default:
		return fmt.Errorf("-format %s: text, markdown or handbook", format)
	}
}
