package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/postern-pki/postern/test/site"
)

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func tree(t *testing.T) (string, *Table, []Test, []string) {
	t.Helper()
	root := must(site.Root())(t)
	tests, findings, err := Covers(root)
	if err != nil {
		t.Fatal(err)
	}
	return root, must(Load())(t), tests, findings
}

// TestEveryRowIsShown reads the whole tree: each row that is said to be covered has
// a test that says so, and no test speaks of a row that is not there.
func TestEveryRowIsShown(t *testing.T) {
	_, table, tests, findings := tree(t)
	for _, f := range append(findings, table.Check(tests)...) {
		t.Error(f)
	}
	if len(table.Rows) < 140 || len(table.Attacks) < 20 || len(tests) < 50 {
		t.Errorf("%d rows, %d attacks and %d tests were read", len(table.Rows), len(table.Attacks), len(tests))
	}
}

// TestTheHandbookHasTheTable compares the handbook's page with the one that would
// be made now.
func TestTheHandbookHasTheTable(t *testing.T) {
	root, table, _, _ := tree(t)
	var want bytes.Buffer
	if err := table.handbook(&want); err != nil {
		t.Fatal(err)
	}
	got := must(os.ReadFile(filepath.Join(root, "appliance", "handbook", "conformance.md")))(t)
	if !bytes.Equal(got, want.Bytes()) {
		t.Error("appliance/handbook/conformance.md is not what the table says: make conformance")
	}
}

// TestATableThatDoesNotFitIsFoundOut changes one thing in a good table at a time.
func TestATableThatDoesNotFitIsFoundOut(t *testing.T) {
	good := func() (*Table, []Test) {
		return &Table{
				Rows:    []Row{{"S-1", "MUST", "2", "x", Covered, ""}, {"S-2", "MAY", "", "x", Refused, "y"}, {"S-3", "-", "", "x", Open, "y"}},
				Attacks: []Row{{"A-2", "known", "", "x", Covered, ""}},
			}, []Test{
				{Package: "p", Name: "TestOne", Rows: []string{"S-1", "S-3"}}, {Package: "p", Name: "TestAttack02Two", Rows: []string{"A-2"}},
			}
	}
	for name, tt := range map[string]struct {
		change func(*Table, []Test)
		want   string
	}{
		"nothing":                 {func(*Table, []Test) {}, ""},
		"a row that is not shown": {func(_ *Table, tests []Test) { tests[0].Rows = nil }, "S-1 is covered, and no test covers it"},
		"an unknown row":          {func(_ *Table, tests []Test) { tests[0].Rows = []string{"S-1", "S-9"} }, "p TestOne covers S-9, which is not in the table"},
		"a row twice":             {func(t *Table, _ []Test) { t.Rows[1] = t.Rows[0] }, "S-1 stands twice"},
		"no reason":               {func(t *Table, _ []Test) { t.Rows[1].Why = "" }, "S-2 is refused without a reason"},
		"no state":                {func(t *Table, _ []Test) { t.Rows[1].State = "done" }, `S-2: no state "done"`},
		"nothing said":            {func(t *Table, _ []Test) { t.Rows[1].Says = "" }, "S-2 says nothing, or not how much it binds"},
		"no id":                   {func(t *Table, _ []Test) { t.Rows[1].ID = "X" }, `"X" is no id`},
		"another name":            {func(_ *Table, tests []Test) { tests[1].Name = "TestTwo" }, "A-2 has no test called TestAttack02..."},
	} {
		t.Run(name, func(t *testing.T) {
			table, tests := good()
			tt.change(table, tests)
			got := table.Check(tests)
			if tt.want == "" && len(got) > 0 || tt.want != "" && !slices.Equal(got, []string{tt.want}) {
				t.Errorf("found %q, want %q", got, tt.want)
			}
		})
	}
}

const source = `package x

// TestGood does.
// Covers: S-1, A-2
func TestGood(t *testing.T) {}

// FuzzGood does.
//
// Covers: S-3.
 func FuzzGood(f *testing.F) {}

// TestBad names nothing that could be a row.
// Covers: S-1 S-2
func TestBad(t *testing.T) {}

// helper is not run.
// Covers: S-4
func helper(t *testing.T) {}

// Testlower is not run either.
// Covers: S-5
func Testlower(t *testing.T) {}

// TestParameters is not run either.
// Covers: S-6
func TestParameters(t *testing.T, n int) {}
`

// TestCommentsAreReadWhereTestsRun: a line at what "go test" does not run counts
// for nothing, and is said.
func TestCommentsAreReadWhereTestsRun(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{"a/x_test.go": source, "a/y.go": "package x\n\n// Covers: S-9\nfunc y() {}\n", "testdata/z_test.go": "no Go"} {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tests, findings, err := Covers(root)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, one := range tests {
		got = append(got, one.String()+" "+strings.Join(one.Rows, " "))
	}
	if want := []string{"a FuzzGood S-3", "a TestGood S-1 A-2"}; !slices.Equal(got, want) {
		t.Errorf("read %q, want %q", got, want)
	}
	if len(findings) != 4 || !strings.Contains(findings[0], `"S-1 S-2" is no id`) || strings.Count(strings.Join(findings, "\n"), "belongs to no test") != 3 {
		t.Errorf("found %q", findings)
	}
}
