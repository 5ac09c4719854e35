package audit_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/postern-pki/postern/audit"
)

func TestFindGivesTheLinesOfARequest(t *testing.T) {
	dir := t.TempDir()
	o := options(t, dir, nil)
	o.SegmentBytes = 1000
	l := open(t, o)
	add := func(request string, n int) {
		t.Helper()
		for range n {
			e := refusal(n)
			// What a stranger sends may look like a request's name.
			e.Request, e.Object = request, audit.Object{"req": "r2", "say": `"req":"r2"`}
			if _, err := l.Append(context.Background(), e); err != nil {
				t.Fatal(err)
			}
		}
	}
	add("r1", 2)
	add("other", 9)
	add("r2", 7) // in more segments than one
	add("other", 9)
	add("r3", 1)
	add(`a "quoted" one`, 1)
	// A line that the writer is about to finish.
	names := segmentFiles(t, dir)
	f, err := os.OpenFile(names[len(names)-1], os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"req":"r3"`); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if len(names) < 5 {
		t.Fatalf("%d segments", len(names))
	}
	for request, want := range map[string]int{"r1": 2, "r2": 7, "r3": 1, `a "quoted" one`: 1, "none": 0} {
		got, err := audit.Find(t.Context(), dir, request, 100)
		if err != nil || len(got) != want {
			t.Errorf("%s: %d lines, %v, want %d", request, len(got), err, want)
		}
		for i, line := range got {
			if line.Record.Request != request || i > 0 && line.Record.Seq <= got[i-1].Record.Seq {
				t.Errorf("%s: record %d of %s is in the wrong place", request, line.Record.Seq, line.Record.Request)
			}
		}
	}
	if got, err := audit.Find(t.Context(), dir, "r2", 3); err != nil || len(got) != 3 {
		t.Errorf("at most three: %d, %v", len(got), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := audit.Find(ctx, dir, "none", 1); !errors.Is(err, context.Canceled) {
		t.Errorf("after the asker left: %v", err)
	}
}

// TestAForeignFileIsNamed: a file that is no segment is no reason to guess.
func TestAForeignFileIsNamed(t *testing.T) {
	dir := t.TempDir()
	l := open(t, options(t, dir, nil))
	appendN(t, l, 1)
	closeLog(t, l)
	for n, name := range []string{"notes.txt", "000000000000.jsonl.bak", "1.jsonl"} {
		path := fmt.Sprintf("%s/segments/%s", dir, name)
		writeFile(t, path, []byte{byte(n)})
		_, err := audit.Open(context.Background(), options(t, dir, nil))
		if foreign, ok := errors.AsType[*audit.ForeignFileError](err); !ok || foreign.Path != path {
			t.Errorf("%s: %v", name, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}
