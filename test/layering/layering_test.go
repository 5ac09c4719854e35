package layering_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-pki/postern/test/layering"
)

func TestTheTreeKeepsItsShape(t *testing.T) {
	findings, err := layering.Check("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		t.Error(f)
	}
}

const ours = "github.com/postern-pki/postern/"

// pkg is a package with a comment that imports what is named, and code after it.
func pkg(name, code string, imports ...string) string {
	var b strings.Builder
	b.WriteString("// Package " + name + " is a part.\npackage " + name + "\n")
	for _, i := range imports {
		b.WriteString("import _ \"" + i + "\"\n")
	}
	return b.String() + code + "\n"
}

// write puts files into a new folder and returns it.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		p := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// TestForbiddenTreesAreSeen breaks one rule at a time, so that a checker that has
// gone blind is noticed.
func TestForbiddenTreesAreSeen(t *testing.T) {
	for name, tt := range map[string]struct {
		path, text string
		rule       string
	}{
		"audit imports policy":               {"audit/a.go", pkg("audit", "", ours+"policy"), "import"},
		"policy imports the appliance":       {"policy/challenge/a.go", pkg("challenge", "", ours+"appliance/store"), "import"},
		"protocol imports hsm":               {"protocol/scep/a.go", pkg("scep", "", ours+"hsm"), "import"},
		"tls imports audit":                  {"tls/listen/a.go", pkg("listen", "", ours+"audit"), "import"},
		"hsm imports protocol":               {"hsm/a.go", pkg("hsm", "", ours+"protocol/cms"), "import"},
		"the issuer imports the token":       {"hsm/issuer/a.go", pkg("issuer", "", ours+"hsm"), "import"},
		"the issuer imports the ceremony":    {"hsm/issuer/a.go", pkg("issuer", "", ours+"hsm/ceremony"), "import"},
		"the gate imports the log":           {"appliance/gate/a.go", pkg("gate", "", ours+"audit"), "import"},
		"the gate imports the authority":     {"appliance/gate/a.go", pkg("gate", "", ours+"appliance/authority"), "import"},
		"the authority imports the token":    {"appliance/authority/a.go", pkg("authority", "", ours+"hsm"), "import"},
		"the authority imports one database": {"appliance/authority/a.go", pkg("authority", "", ours+"appliance/store/sqlite"), "import"},
		"the keyholder imports policy":       {"appliance/keyholder/a.go", pkg("keyholder", "", ours+"policy"), "import"},
		"the courier imports policy":         {"appliance/courier/a.go", pkg("courier", "", ours+"policy"), "import"},
		"the store imports hsm":              {"appliance/store/sqlite/a.go", pkg("sqlite", "", ours+"hsm/issuer"), "import"},
		"a part imports the root of all":     {"appliance/config/a.go", pkg("config", "", ours+"appliance"), "import"},
		"a command imports tls":              {"cmd/postern/a.go", "// Command postern is one.\npackage main\nimport _ \"" + ours + "tls/listen\"\n", "import"},
		"a folder that has no place":         {"audit/../extra/a.go", pkg("extra", "", ours+"audit"), "import"},
		"PKCS#11 above hsm":                  {"appliance/a.go", pkg("appliance", "", "github.com/miekg/pkcs11"), "import"},
		"the test client in the product":     {"protocol/scep/a.go", pkg("scep", "", "github.com/smallstep/scep"), "import"},
		"debug endpoints":                    {"appliance/a.go", pkg("appliance", "", "net/http/pprof"), "import"},
		"an entry at the top":                {"pkg/util.go", pkg("pkg", ""), "top-level"},
		"a stray file at the top":            {"notes.txt", "", "top-level"},
		"no package comment":                 {"audit/a.go", "package audit\n", "package-comment"},
		"a license as package comment":       {"audit/a.go", "// Copyright.\npackage audit\n", "package-comment"},
		"an init function":                   {"audit/a.go", pkg("audit", "func init() {}"), "init"},
		"an init function in a test":         {"audit/a_test.go", pkg("audit", "func init() {}"), "init"},
		"a package called tls":               {"tls/a.go", pkg("tls", ""), "package-tls"},
		"a replace directive":                {"go.mod", "module x\n\nreplace a => ../a\n", "replace"},
		"a replace block":                    {"go.mod", "module x\n\nreplace (\n\ta => ../a\n)\n", "replace"},
		"a long file":                        {"audit/a.go", pkg("audit", strings.Repeat("// x\n", 400)), "file-length"},
		"a long function":                    {"audit/a.go", pkg("audit", "func f() {\n"+strings.Repeat("f()\n", 71)+"}"), "func-length"},
		"a map as package variable":          {"audit/a.go", pkg("audit", "var m = map[string]int{}"), "variable"},
		"a table that is written":            {"audit/a.go", pkg("audit", "var m = map[string]int{\"a\": 1}\nfunc f() { m[\"b\"] = 2 }"), "variable"},
		"a table that is appended to":        {"audit/a.go", pkg("audit", "var m = []int{1}\nfunc f() []int { return append(m, 2) }"), "variable"},
		"a table that is sorted":             {"audit/a.go", pkg("audit", "import \"slices\"\nvar m = []int{1}\nfunc f() { slices.Sort(m) }"), "variable"},
		"a table that others see":            {"audit/a.go", pkg("audit", "var M = []int{1}"), "variable"},
		"a counter as package variable":      {"audit/a.go", pkg("audit", "var n int"), "variable"},
		"a function as package variable":     {"audit/a.go", pkg("audit", "var now = func() int { return 1 }"), "variable"},
		"a look-alike of a sentinel":         {"audit/a.go", pkg("audit", "import errors \"example.org/errors\"\nvar e = errors.New(1)"), "variable"},
		"the default mux":                    {"appliance/a.go", pkg("appliance", "import \"net/http\"\nfunc f() { http.HandleFunc(\"/\", nil) }"), "default-mux"},
		"the default mux under a new name":   {"appliance/a.go", pkg("appliance", "import h \"net/http\"\nfunc f() { h.DefaultServeMux.Handle(\"/\", nil) }"), "default-mux"},
		"a server without limits":            {"appliance/a.go", pkg("appliance", "import \"net/http\"\nfunc f() { http.ListenAndServe(\"\", nil) }"), "server"},
		"a server of one's own":              {"appliance/a.go", pkg("appliance", "import \"net/http\"\nfunc f() { _ = &http.Server{} }"), "server"},
		"a TCP listener":                     {"appliance/a.go", pkg("appliance", "import \"net\"\nfunc f() { net.Listen(\"tcp\", \":1\") }"), "listener"},
		"a TCP listener by a configuration":  {"appliance/a.go", pkg("appliance", "import \"net\"\nfunc f() { _ = net.ListenConfig{} }"), "listener"},
		"a path of the build machine":        {"README.md", "see /" + "work/main\n", "machine-path"},
		"a home of the build machine":        {"Makefile", "X=/" + "root/go\n", "machine-path"},
		"a dot import":                       {"audit/a.go", pkg("audit", "import . \"fmt\""), "dot-import"},
	} {
		t.Run(name, func(t *testing.T) {
			findings, err := layering.Check(write(t, map[string]string{tt.path: tt.text}))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range findings {
				if f.Rule == tt.rule {
					return
				}
			}
			t.Errorf("rule %q did not see it; findings: %v", tt.rule, findings)
		})
	}
}

func TestTwoPackageCommentsAndTooManyFiles(t *testing.T) {
	files := map[string]string{}
	for i := range 13 {
		files["audit/"+string(rune('a'+i))+".go"] = "package audit\n"
	}
	files["audit/a.go"] = pkg("audit", "")
	files["audit/b.go"] = pkg("audit", "")
	findings, err := layering.Check(write(t, files))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, f := range findings {
		seen[f.Rule] = true
	}
	if !seen["package-comment"] || !seen["package-files"] || len(seen) != 2 {
		t.Errorf("findings %v", findings)
	}
}

// TestAllowedTreeIsQuiet holds what looks forbidden and is not.
func TestAllowedTreeIsQuiet(t *testing.T) {
	findings, err := layering.Check(write(t, map[string]string{
		".gitignore":  "/coverage\n# build\n*.o\n",
		"coverage/x":  "/" + "work/x",
		"bin/postern": "/" + "work/x",
		"go.mod":      "module " + strings.TrimSuffix(ours, "/") + "\n",
		"audit/a.go": pkg("audit", `import ("errors"; "regexp"; "encoding/asn1"; _ "embed"; "io"; "net")
var ErrX = errors.New("x")
var re = regexp.MustCompile("x")
var oid = asn1.ObjectIdentifier{1, 2}
//go:embed a.go
var text string
var _ io.Reader = (*T)(nil)
type T struct{}
func f() { net.Listen("unix", "x") }
func (T) init() {}
func long() {
`+strings.Repeat("// why\n", 80)+"}\n"),
		"audit/a_test.go":                  "package audit\nimport _ \"" + ours + "appliance\"\nvar n int\n",
		"audit/bundle/a.go":                pkg("bundle", "", ours+"audit"),
		"hsm/a.go":                         pkg("hsm", "", ours+"audit", "github.com/miekg/pkcs11"),
		"hsm/ceremony/a.go":                pkg("ceremony", "", ours+"hsm", ours+"audit"),
		"hsm/issuer/a.go":                  pkg("issuer", "", ours+"audit", ours+"hsm/lint"),
		"appliance/a.go":                   pkg("appliance", "", ours+"appliance/gate", ours+"tls/listen"),
		"appliance/gate/a.go":              pkg("gate", "", ours+"protocol/scep", ours+"appliance/rpc"),
		"appliance/authority/a.go":         pkg("authority", "", ours+"hsm/issuer", ours+"appliance/store"),
		"appliance/store/sqlite/a.go":      pkg("sqlite", "", ours+"appliance/store", "github.com/mattn/go-sqlite3"),
		"cmd/postern/main.go":              "// Postern is the command of operators.\npackage main\nimport _ \"" + ours + "appliance\"\nvar version = \"dev\"\n",
		"tls/listen/a.go":                  pkg("listen", "import (\"net\"; \"net/http\")\nfunc f() { net.Listen(\"tcp\", \"\"); _ = http.Server{} }"),
		"test/crash/a_test.go":             pkg("crash", "var n int", ours+"appliance"),
		"protocol/testdata/forbidden.go":   "package tls\nfunc init() {}\n",
		"protocol/testdata/url-of-root.md": "https://x.example/" + "root/ca and certs/" + "work/a\n",
	}))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		t.Error(f)
	}
}
