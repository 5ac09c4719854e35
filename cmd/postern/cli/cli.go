// Package cli is what the commands of postern have in common: how they fail, and
// how they print.
//
// # What a caller may rely on
//
// An error of [Failed], [Misused] or [Quiet] says with which status the command
// exits. What [Env.Print] writes is one JSON value or a table.
//
// # What it does not protect against
//
// A text of a stranger reaches the terminal as it is, unless [Shown] escaped it.
package cli

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
)

// An Error comes with what to do about it. Code is the exit status, 0 means 1.
type Error struct {
	Err  error // nil: the words are on standard output
	Hint string
	Code int
}

// Error implements error.
func (e *Error) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit status %d", e.Code)
	}
	return e.Err.Error()
}

// Unwrap implements what errors.Is looks for.
func (e *Error) Unwrap() error { return e.Err }

// Failed is for what did not succeed.
func Failed(hint, format string, args ...any) error {
	return &Error{Err: fmt.Errorf(format, args...), Hint: hint, Code: 1}
}

// Misused is for what cannot be asked in this way.
func Misused(hint, format string, args ...any) error {
	return &Error{Err: fmt.Errorf(format, args...), Hint: hint, Code: 2}
}

// Quiet ends with a status and without a word.
func Quiet(code int) error { return &Error{Code: code} }

// Env is where a command reads and writes. Output is text or json, once the flags
// were read.
type Env struct {
	In          io.Reader
	Out, ErrOut io.Writer
	Output      *string
}

// JSON reports whether the answer is to be JSON.
func (e Env) JSON() bool { return *e.Output == "json" }

// Print writes v as JSON, or lets text write it as a table, with tabs between the
// columns.
func (e Env) Print(v any, text func(w io.Writer)) error {
	if e.JSON() {
		enc := json.NewEncoder(e.Out)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	w := tabwriter.NewWriter(e.Out, 0, 8, 2, ' ', 0)
	text(w)
	return w.Flush()
}

// Shown is a text of somebody else's as a terminal may have it: what would move
// its cursor or rename its window is escaped.
func Shown(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !strconv.IsPrint(r) || r == '\uFFFD' }) < 0 {
		return s
	}
	return strconv.QuoteToASCII(s)
}

// DNSNames reads names of the form dns:host.
func DNSNames(san []string) ([]string, error) {
	var out []string
	for _, s := range san {
		name, ok := strings.CutPrefix(s, "dns:")
		if !ok || name == "" {
			return nil, Misused("--san dns:host.example", "no subject alternative name: %q", s)
		}
		out = append(out, name)
	}
	return out, nil
}

// ReadPEM returns the first block of a file.
func ReadPEM(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, Failed("", "%w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, Failed("openssl x509 and openssl pkey write PEM", "%s is not PEM", path)
	}
	return block.Bytes, nil
}
