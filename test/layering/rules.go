package layering

import (
	"go/ast"
	"go/token"
	"path"
	"slices"
	"strings"
)

// module is the path under which the tree is imported.
const module = "github.com/postern-pki/postern"

// mayImport says which folders of ours a folder may use beside itself. The
// longest entry that is a prefix of a package's folder counts; "x/..." allows x
// and everything below it, "x" allows x alone.
func mayImport() map[string][]string {
	return map[string][]string{
		"audit":    {},
		"policy":   {},
		"protocol": {},
		"tls":      {},
		"hsm":      {"audit/..."},
		// The issuer signs through an interface: it must not know the token.
		"hsm/issuer": {"audit/...", "hsm/lint"},
		"hsm/lint":   {},
		"appliance":  {"audit/...", "hsm/...", "policy/...", "protocol/...", "tls/...", "appliance/..."},

		"appliance/link":       {},
		"appliance/rpc":        {"audit/...", "protocol/...", "hsm/issuer", "appliance/link"},
		"appliance/supervisor": {"appliance/link"},

		"appliance/gate":      {"protocol/...", "tls/...", "appliance/rpc"},
		"appliance/authority": {"audit/...", "policy/...", "protocol/...", "hsm/issuer", "appliance/store"},
		"appliance/keyholder": {"audit/...", "hsm/...", "appliance/rpc"},
		"appliance/courier":   {"policy/challenge/...", "audit/..."},
		"appliance/store":     {"audit/...", "policy/...", "protocol/..."},
		"appliance/sandbox":   {}, // every role enters it

		"cmd": {"appliance/...", "audit/...", "hsm/...", "protocol/...", "policy/..."},
	}
}

// onlyIn says below which folders a foreign package may be imported.
func onlyIn() map[string][]string {
	return map[string][]string{
		"github.com/miekg/pkcs11":             {"hsm"}, // nothing above hsm knows PKCS#11
		"github.com/ThalesGroup/crypto11":     {"hsm"},
		"github.com/mattn/go-sqlite3":         {"appliance/store/sqlite"},
		"github.com/smallstep/scep":           {"test"},
		"net/http/pprof":                      {},
		"github.com/ThalesIgnite/crypto11":    {},
		"github.com/caddyserver/certmagic":    {"tls", "appliance/courier"},
		"github.com/mholt/acmez":              {"appliance/courier"},
		"github.com/coreos/go-systemd/v22/":   {"tls/listen", "appliance", "cmd"},
		"github.com/landlock-lsm/go-landlock": {"appliance/sandbox"},
	}
}

// fileRules checks one file by itself.
func (t *tree) fileRules(f *file) {
	exempt := f.test || under(f.dir, "test") || under(f.dir, "tools")
	if f.ast.Name.Name == "tls" {
		t.find(f.path, t.line(f.ast.Name), "package-tls", "a package called tls would shadow crypto/tls")
	}
	for _, d := range f.ast.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
			t.find(f.path, t.line(fn), "init", "init runs where nobody called it")
		}
	}
	if !f.test && f.lines >= maxFileLines {
		t.find(f.path, 0, "file-length", "%d lines, a file has fewer than %d", f.lines, maxFileLines)
	}
	if exempt {
		return
	}
	t.importRules(f)
	t.funcLength(f)
	t.variables(f)
	t.servers(f)
}

func (t *tree) importRules(f *file) {
	rule, may := ruleFor(f.dir)
	for _, s := range f.ast.Imports {
		imp := strings.Trim(s.Path.Value, "\"`")
		for foreign, dirs := range onlyIn() {
			prefix := strings.TrimSuffix(foreign, "/") + "/"
			if strings.HasPrefix(imp+"/", prefix) && !slices.ContainsFunc(dirs, func(d string) bool { return under(f.dir, d) }) {
				t.find(f.path, t.line(s), "import", "%s may be imported below %v only", imp, dirs)
			}
		}
		to, ours := strings.CutPrefix(imp, module+"/")
		switch {
		case !ours:
		case to == "appliance" && under(f.dir, "appliance"):
			t.find(f.path, t.line(s), "import", "%s imports the composition root", f.dir)
		case rule == "":
			t.find(f.path, t.line(s), "import", "%s has no place in the table of imports", f.dir)
		case !under(to, rule) && !slices.ContainsFunc(may, func(m string) bool { return matches(to, m) }):
			t.find(f.path, t.line(s), "import", "%s imports %s: beside itself %s may use %v only", f.dir, to, rule, may)
		}
	}
}

// ruleFor returns the longest entry of the table that dir is in.
func ruleFor(dir string) (rule string, may []string) {
	for r, m := range mayImport() {
		if under(dir, r) && len(r) > len(rule) {
			rule, may = r, m
		}
	}
	return rule, may
}

func matches(to, pattern string) bool {
	if dir, tree := strings.CutSuffix(pattern, "/..."); tree {
		return under(to, dir)
	}
	return to == pattern
}

func under(dir, parent string) bool {
	return dir == parent || strings.HasPrefix(dir, parent+"/")
}

// funcLength counts as the linter funlen does: the lines between the braces,
// comments left out.
func (t *tree) funcLength(f *file) {
	for _, d := range f.ast.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Body == nil {
			continue
		}
		n := t.fset.Position(fn.End()).Line - t.line(fn) - 1
		for _, g := range f.ast.Comments {
			if g.Pos() > fn.Body.Pos() && g.End() < fn.End() {
				n -= t.commentLines(g)
			}
		}
		if n > maxFuncLines {
			t.find(f.path, t.line(fn), "func-length", "%s has %d lines, at most %d are allowed", fn.Name.Name, n, maxFuncLines)
		}
	}
}

func (t *tree) commentLines(g *ast.CommentGroup) int {
	return t.fset.Position(g.End()).Line - t.line(g) + 1
}

// packageRules checks what several files of a folder have to agree on.
func (t *tree) packageRules() {
	byDir := map[string][]*file{}
	for _, f := range t.files {
		byDir[f.dir] = append(byDir[f.dir], f)
	}
	for dir, all := range byDir {
		plain := slices.DeleteFunc(slices.Clone(all), func(f *file) bool { return f.test })
		if len(plain) > maxPackageFiles {
			t.find(dir, 0, "package-files", "%d files, a package has at most %d", len(plain), maxPackageFiles)
		}
		if len(plain) == 0 { // a folder of tests alone
			plain = all
		}
		var with []string
		for _, f := range plain {
			if f.ast.Doc == nil {
				continue
			}
			with = append(with, path.Base(f.path))
			if text := f.ast.Doc.Text(); !documents(f.ast.Name.Name, dir, text) {
				t.find(f.path, t.line(f.ast.Doc), "package-comment", "begins with %q", first(text))
			}
		}
		if len(with) != 1 {
			t.find(dir, 0, "package-comment", "has %d package comments %v, wants one", len(with), with)
		}
	}
}

// documents reports whether text begins as a package comment does; a program's
// may begin with its name.
func documents(name, dir, text string) bool {
	base := path.Base(dir)
	return strings.HasPrefix(text, "Package "+name+" ") ||
		name == "main" && (strings.HasPrefix(text, "Command "+base+" ") || strings.HasPrefix(strings.ToLower(text), strings.ToLower(base)+" "))
}

func first(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// variables refuses package variables that somebody could change.
func (t *tree) variables(f *file) {
	for _, d := range f.ast.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.VAR {
			continue
		}
		for _, s := range g.Specs {
			v, ok := s.(*ast.ValueSpec)
			if !ok {
				continue
			}
			embed := strings.Contains(commentText(g.Doc)+commentText(v.Doc), "//go:embed ")
			if !embed && !f.constant(v) && !t.table(f, v) {
				t.find(f.path, t.line(v), "variable", "%s is a package variable that can change", v.Names[0].Name)
			}
		}
	}
}

func commentText(g *ast.CommentGroup) string {
	var b strings.Builder
	if g != nil { // CommentGroup.Text leaves directives out
		for _, c := range g.List {
			b.WriteString(c.Text + "\n")
		}
	}
	return b.String()
}
