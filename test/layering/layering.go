// Package layering checks the shape of the tree: which folder may import which,
// what may stand at the top, and the habits that a reviewer would otherwise have
// to look for by eye.
//
// # What a caller may rely on
//
// The files themselves are read and parsed here, on each run. A child process
// such as "go list" would read them unseen by the test cache, and a forbidden
// import would stay green. A folder that does not exist breaks no rule.
//
// # What it does not protect against
//
// It sees imports and names, not behavior: a value that is passed across a
// boundary by an interface is not noticed.
package layering

import (
	"bytes"
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const (
	maxFileLines    = 400 // a file has fewer
	maxFuncLines    = 70  // lines of a body, comments not counted
	maxPackageFiles = 12
)

// A Finding is one place that breaks a rule.
type Finding struct {
	Path string // slash-separated, from the root of the tree
	Line int    // 0 where the rule is about the whole entry
	Rule string
	Say  string
}

// String returns the finding as compilers print theirs.
func (f Finding) String() string {
	return fmt.Sprintf("%s:%d: %s: %s", f.Path, f.Line, f.Rule, f.Say)
}

// A tree is what was read of a module.
type tree struct {
	root     string
	fset     *token.FileSet
	files    []*file
	findings []Finding
}

// A file is one Go file.
type file struct {
	path    string // slash-separated, from the root
	dir     string // "." for the root
	test    bool   // its name ends in _test.go
	ast     *ast.File
	lines   int
	imports map[string]string // name in this file -> import path
}

// Check reads the module at root and returns what breaks a rule, by path. An
// error means that the tree could not be read.
func Check(root string) ([]Finding, error) {
	t := &tree{root: root, fset: token.NewFileSet()}
	skip, err := ignored(root)
	if err != nil {
		return nil, err
	}
	if err := t.topLevel(skip); err != nil {
		return nil, err
	}
	if err := t.walk(skip); err != nil {
		return nil, err
	}
	for _, f := range t.files {
		t.fileRules(f)
	}
	t.packageRules()
	slices.SortFunc(t.findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Rule, b.Rule))
	})
	return t.findings, nil
}

func (t *tree) find(path string, line int, rule, say string, args ...any) {
	t.findings = append(t.findings, Finding{path, line, rule, fmt.Sprintf(say, args...)})
}

// ignored returns the names at the top that are not part of the repository: git's
// own folder, and what .gitignore names there.
func ignored(root string) ([]string, error) {
	names := []string{".git", "bin", "demo"}
	b, err := os.ReadFile(filepath.Join(root, ".gitignore"))
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		name := strings.Trim(strings.TrimSpace(line), "/")
		if name != "" && !strings.ContainsAny(name, "#*?[!/") {
			names = append(names, name)
		}
	}
	return names, nil
}

// topLevel checks the entries of the root against the list of those that belong
// there.
func (t *tree) topLevel(skip []string) error {
	allowed := []string{
		"cmd", "hsm", "protocol", "policy", "audit", "tls", "appliance", "systemd", "test", "tools",
		"go.mod", "go.sum", "Makefile", "README.md", "SECURITY.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "NOTICE",
		".ci", ".gitignore", ".golangci.yml", "staticcheck.conf",
	}
	entries, err := os.ReadDir(t.root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !slices.Contains(allowed, e.Name()) && !slices.Contains(skip, e.Name()) {
			t.find(e.Name(), 0, "top-level", "does not belong at the top of the tree")
		}
	}
	return nil
}

// walk reads every file that git would track.
func (t *tree) walk(skip []string) error {
	return filepath.WalkDir(t.root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(t.root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if slices.Contains(skip, rel) {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		t.textRules(rel, b)
		if strings.HasSuffix(rel, ".go") && !strings.Contains("/"+rel, "/testdata/") {
			return t.parse(rel, b)
		}
		return nil
	})
}

func (t *tree) parse(rel string, b []byte) error {
	a, err := parser.ParseFile(t.fset, rel, b, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	f := &file{
		path: rel, dir: path.Dir(rel), test: strings.HasSuffix(rel, "_test.go"), ast: a,
		lines: bytes.Count(b, []byte("\n")), imports: map[string]string{},
	}
	for _, s := range a.Imports {
		p := strings.Trim(s.Path.Value, "\"`")
		name := path.Base(p)
		if s.Name != nil {
			name = s.Name.Name
		}
		if name == "." {
			t.find(rel, t.line(s), "dot-import", "%s is imported without a name", p)
		}
		if name == "_" { // several of them would share one key
			name += p
		}
		f.imports[name] = p
	}
	t.files = append(t.files, f)
	return nil
}

// textRules checks what holds for every text file, whatever its language.
func (t *tree) textRules(rel string, b []byte) {
	if bytes.IndexByte(b[:min(len(b), 8000)], 0) >= 0 {
		return
	}
	// Put together here so that this file does not hold what it looks for.
	machine := regexp.MustCompile(`(^|[\s"'=:(,` + "`" + `])/(` + "work" + `(\W|$)|` + "root" + `/\w)`)
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		if m := machine.FindString(line); m != "" {
			t.find(rel, n, "machine-path", "%q is a path of the machine that built it", strings.TrimSpace(m))
		}
	}
	if path.Base(rel) == "go.mod" {
		t.modRules(rel, b)
	}
}

// modRules refuses replace directives: with one in it, the module can be neither
// installed by "go install" nor checked by the checksum database.
func (t *tree) modRules(rel string, b []byte) {
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		if words := strings.Fields(line); len(words) > 0 && strings.HasPrefix(words[0], "replace") || strings.Contains(line, "=>") {
			t.find(rel, n, "replace", "go.mod replaces a module")
		}
	}
}

func (t *tree) line(n ast.Node) int { return t.fset.Position(n.Pos()).Line }
