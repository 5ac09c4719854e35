package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// maxLine bounds a line of "go test -json"; a test that prints more on one line
// has it cut by "go test" itself.
const maxLine = 16 << 20

// An event is a line of "go test -json" (go doc test2json).
type event struct{ Action, Package, Test, Output string }

// A watcher reads the events of a run, and prints what "go test" prints without
// -json and -v.
type watcher struct {
	out    io.Writer
	held   map[string][]event // of a package, until it is known how it ended
	ended  map[string]string  // package and test -> how it ended
	failed map[string]bool    // package and test
}

func newWatcher(out io.Writer) *watcher {
	return &watcher{out: out, held: map[string][]event{}, ended: map[string]string{}, failed: map[string]bool{}}
}

func (w *watcher) read(in io.Reader) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 64<<10), maxLine)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil || e.Action == "" {
			_, _ = fmt.Fprintf(w.out, "%s\n", lines.Bytes()) // not of a test: go's own words
			continue
		}
		w.event(e)
	}
	return lines.Err()
}

func (w *watcher) event(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "build-output":
		_, _ = io.WriteString(w.out, e.Output)
	case "output":
		w.held[e.Package] = append(w.held[e.Package], e)
	case "pass", "fail", "skip":
		if e.Test == "" {
			w.end(e)
			return
		}
		w.ended[key] = e.Action
		w.failed[key] = e.Action == "fail"
		// What was left out below a test was not shown by it.
		if top, _, sub := strings.Cut(e.Test, "/"); sub && e.Action == "skip" {
			w.ended[e.Package+" "+top+" skipped a part"] = e.Action
		}
	}
}

// end prints what is of interest of a package: one line, and of what failed all.
func (w *watcher) end(e event) {
	for _, o := range w.held[e.Package] {
		summary := strings.HasPrefix(o.Output, "ok  \t") || strings.HasPrefix(o.Output, "?   \t")
		noise := o.Test != "" && !w.failed[e.Package+" "+o.Test] || strings.HasPrefix(o.Output, "=== ")
		if o.Test == "" && summary || e.Action == "fail" && !noise {
			_, _ = io.WriteString(w.out, o.Output)
		}
	}
	delete(w.held, e.Package)
}

// missing is an error that names each test that shows a row and did not run whole.
func (w *watcher) missing(tests []Test) error {
	var all []error
	for _, t := range tests {
		key := t.Package + " " + t.Name
		switch _, part := w.ended[key+" skipped a part"]; {
		case w.ended[key] == "":
			all = append(all, fmt.Errorf("%s shows %s, and did not run", t, strings.Join(t.Rows, ", ")))
		case w.ended[key] == "skip" || part:
			all = append(all, fmt.Errorf("%s shows %s, and was skipped", t, strings.Join(t.Rows, ", ")))
		}
	}
	return errors.Join(all...)
}
