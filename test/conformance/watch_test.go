package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const small = `package small

import "testing"

func TestPasses(t *testing.T) { t.Log("quiet") }

func TestSkipped(t *testing.T) { t.Skip("no") }

func TestHalf(t *testing.T) { t.Run("part", func(t *testing.T) { t.SkipNow() }) }

func TestFails(t *testing.T) { t.Error("loud") }

 func FuzzSeeds(f *testing.F) { f.Add(1); f.Fuzz(func(t *testing.T, n int) {}) }
`

// watch runs "go test -json" on a package of its own, and reads what it prints.
func watch(t *testing.T, pattern string) (*watcher, string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module small\n", "small_test.go": small} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-json", "-run", pattern, "./...")
	cmd.Dir = dir
	events, _ := cmd.Output() // that tests fail is no error here
	var out bytes.Buffer
	w := newWatcher(&out)
	if err := w.read(bytes.NewReader(events)); err != nil {
		t.Fatal(err)
	}
	return w, out.String()
}

func namedTests(names ...string) (tests []Test) {
	for _, n := range names {
		tests = append(tests, Test{Package: "small", Name: n, Rows: []string{"S-1"}})
	}
	return tests
}

// TestATestThatDidNotRunIsFoundOut: one that was skipped, also in part, or that
// is not there, shows nothing.
func TestATestThatDidNotRunIsFoundOut(t *testing.T) {
	w, _ := watch(t, "Passes|Skipped|Half|Seeds")
	if err := w.missing(namedTests("TestPasses", "FuzzSeeds")); err != nil {
		t.Error(err)
	}
	err := w.missing(namedTests("TestSkipped", "TestHalf", "TestGone", "TestPasses"))
	want := "small TestSkipped shows S-1, and was skipped\nsmall TestHalf shows S-1, and was skipped\nsmall TestGone shows S-1, and did not run"
	if err == nil || err.Error() != want {
		t.Errorf("it says\n%v\nand not\n%s", err, want)
	}
}

// TestTheOutputIsThatOfGoTest: a line for a package that is well, and what a test
// that fails says.
func TestTheOutputIsThatOfGoTest(t *testing.T) {
	if _, out := watch(t, "Passes"); !strings.HasPrefix(out, "ok  \tsmall\t") || strings.Count(out, "\n") != 1 {
		t.Errorf("of a test that passes: %q", out)
	}
	_, out := watch(t, "")
	for _, want := range []string{"--- FAIL: TestFails", "loud", "FAIL\tsmall\t"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in %q", want, out)
		}
	}
	if strings.Contains(out, "quiet") || strings.Contains(out, "=== ") {
		t.Errorf("it says too much: %q", out)
	}
	var b bytes.Buffer
	line, _ := json.Marshal(event{Action: "build-output", Output: "x.go:1: wrong\n"})
	if err := newWatcher(&b).read(strings.NewReader("plain words\n" + string(line) + "\n")); err != nil || b.String() != "plain words\nx.go:1: wrong\n" {
		t.Errorf("of a build: %q, %v", b.String(), err)
	}
}
