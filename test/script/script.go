// Package script runs the tests of the commands that are written as scripts
// (testdata/script/*.txtar), with a few commands more than testscript has.
//
// # What a caller may rely on
//
//   - status N CMD...: runs a command without a controlling terminal, and wants this
//     exit status; an error, status 1 or 2, has to say something on standard
//     error and to end with a hint, unless it is "quiet N".
//   - fields FILE NAME...: a JSON object has these members and no other.
//   - value FILE PATH TEXT: what jq would print of .a.0.b, as text.
//   - take VARIABLE FILE PATH: the same, into the environment.
//   - flip FILE TEXT: changes one bit of the last octet of the first place with this text.
//   - poll FILE TEXT: waits until a file has this text, at most 30 s.
//
// FILE may be stdout or stderr.
//
// # What it does not protect against
//
// Scripts that ask for too little.
package script

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// Run runs the scripts of a package, each with these variables beside the usual.
func Run(t *testing.T, vars map[string]string) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			for name, value := range vars {
				e.Setenv(name, strings.ReplaceAll(value, "$PATH", e.Getenv("PATH")))
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": status, "quiet": quiet, "fields": fields, "value": value, "take": take, "flip": flip, "poll": poll,
		},
	})
}

func status(ts *testscript.TestScript, neg bool, args []string) {
	exit(ts, neg, args)
	said := strings.TrimRight(ts.ReadFile("stderr"), "\n")
	last := said[strings.LastIndexByte(said, '\n')+1:]
	if failed := args[0] != "0"; failed != strings.Contains(last, ": hint: ") {
		ts.Fatalf("exit status %s, and the last of standard error is %q", args[0], last)
	}
}

func quiet(ts *testscript.TestScript, neg bool, args []string) {
	exit(ts, neg, args)
	if said := ts.ReadFile("stderr"); said != "" {
		ts.Fatalf("standard error has %q", said)
	}
}

func exit(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) > 1, "status N command...")
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec("setsid", append([]string{"-w"}, args[1:]...)...); err != nil {
		e, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = e.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

func usage(ts *testscript.TestScript, neg, ok bool, text string) {
	if neg || !ok {
		ts.Fatalf("usage: %s", text)
	}
}

func decode(ts *testscript.TestScript, file string) any {
	d := json.NewDecoder(strings.NewReader(ts.ReadFile(file)))
	d.UseNumber()
	var v any
	ts.Check(d.Decode(&v))
	if d.More() {
		ts.Fatalf("%s has more than one JSON value", file)
	}
	return v
}

func fields(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) > 1, "fields file name...")
	object, ok := decode(ts, args[0]).(map[string]any)
	if !ok {
		ts.Fatalf("%s is no JSON object", args[0])
	}
	var names []string
	for name := range object {
		names = append(names, name)
	}
	slices.Sort(names)
	if want := slices.Sorted(slices.Values(args[1:])); !slices.Equal(names, want) {
		ts.Fatalf("%s has the members %q, want %q", args[0], names, want)
	}
}

func find(ts *testscript.TestScript, file, path string) string {
	v := decode(ts, file)
	for step := range strings.SplitSeq(path, ".") {
		switch in := v.(type) {
		case map[string]any:
			next, ok := in[step]
			if !ok {
				ts.Fatalf("%s has no %s", file, path)
			}
			v = next
		case []any:
			i, err := strconv.Atoi(step)
			if err != nil || i < 0 || i >= len(in) {
				ts.Fatalf("%s has no %s", file, path)
			}
			v = in[i]
		default:
			ts.Fatalf("%s has no %s", file, path)
		}
	}
	if s, ok := v.(string); ok {
		return s
	}
	b, err := json.Marshal(v)
	ts.Check(err)
	return string(b)
}

func value(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 3, "value file path text")
	if got := find(ts, args[0], args[1]); got != args[2] {
		ts.Fatalf("%s is %q, want %q", args[1], got, args[2])
	}
}

func take(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 3, "take variable file path")
	ts.Setenv(args[0], find(ts, args[1], args[2]))
}

func flip(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 2, "flip file text")
	path := ts.MkAbs(args[0])
	b, err := os.ReadFile(path)
	ts.Check(err)
	at := bytes.Index(b, []byte(args[1]))
	if at < 0 {
		ts.Fatalf("%s has no %q", args[0], args[1])
	}
	b[at+len(args[1])-1] ^= 1
	ts.Check(os.WriteFile(path, b, 0o600))
}

func poll(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 2, "poll file text")
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if b, _ := os.ReadFile(ts.MkAbs(args[0])); bytes.Contains(b, []byte(args[1])) {
			return
		}
	}
	ts.Fatalf("%s", fmt.Sprintf("%s does not come to have %q", args[0], args[1]))
}
