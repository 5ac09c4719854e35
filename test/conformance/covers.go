package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

const module = "github.com/postern-pki/postern"

// A Test is a test or fuzz target that says which rows it shows.
type Test struct {
	Package string // import path
	Name    string
	Place   string // file:line
	Rows    []string
}

func (t Test) String() string { return strings.TrimPrefix(t.Package, module+"/") + " " + t.Name }

var coversLine = regexp.MustCompile(`(?m)^[ \t]*Covers:(.*)$`)

// Covers reads all test files below root, and returns the tests that have a line
// "Covers: ..." in their doc comment, and what is wrong with such lines.
func Covers(root string) (tests []Test, findings []string, err error) {
	fset := token.NewFileSet()
	err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if base := d.Name(); rel != "." && (strings.HasPrefix(base, ".") || base == "testdata" || rel == "bin" || rel == "demo") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(fset, name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		found, wrong := ofFile(fset, rel, f)
		tests, findings = append(tests, found...), append(findings, wrong...)
		return nil
	})
	slices.SortFunc(tests, func(a, b Test) int { return strings.Compare(a.String(), b.String()) })
	return tests, findings, err
}

func ofFile(fset *token.FileSet, rel string, f *ast.File) (tests []Test, findings []string) {
	at := func(n ast.Node) string { return fmt.Sprintf("%s:%d", rel, fset.Position(n.Pos()).Line) }
	docs := map[*ast.CommentGroup]bool{}
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Doc == nil || !runs(fn) {
			continue
		}
		docs[fn.Doc] = true
		test := Test{Package: module + "/" + path.Dir(rel), Name: fn.Name.Name, Place: at(fn)}
		for _, m := range coversLine.FindAllStringSubmatch(fn.Doc.Text(), -1) {
			for id := range strings.SplitSeq(m[1], ",") {
				id = strings.TrimSuffix(strings.TrimSpace(id), ".")
				if !idForm.MatchString(id) {
					findings = append(findings, fmt.Sprintf("%s: %q is no id of a row", test.Place, id))
					continue
				}
				test.Rows = append(test.Rows, id)
			}
		}
		if len(test.Rows) > 0 {
			tests = append(tests, test)
		}
	}
	for _, g := range f.Comments {
		if !docs[g] && coversLine.MatchString(g.Text()) {
			findings = append(findings, at(g)+": a line \"Covers:\" that belongs to no test")
		}
	}
	return tests, findings
}

// runs reports whether "go test" runs a function: its name and its parameter say so.
func runs(fn *ast.FuncDecl) bool {
	name, is := strings.CutPrefix(fn.Name.Name, "Test")
	want := "T"
	if !is {
		name, is = strings.CutPrefix(fn.Name.Name, "Fuzz")
		want = "F"
	}
	if first, _ := utf8.DecodeRuneInString(name); !is || fn.Recv != nil || unicode.IsLower(first) || fn.Type.Results != nil || len(fn.Type.Params.List) != 1 {
		return false
	}
	star, ok := fn.Type.Params.List[0].Type.(*ast.StarExpr)
	if !ok {
		return false
	}
	sel, ok := star.X.(*ast.SelectorExpr)
	return ok && sel.Sel.Name == want
}
