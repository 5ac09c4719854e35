package layering

import (
	"go/ast"
	"go/token"
	"slices"
	"strings"
)

// constant reports whether a package variable is one by the language's fault
// only: an interface guard, a sentinel error, a compiled pattern, an object
// identifier, or the build's information, which the linker sets.
func (f *file) constant(v *ast.ValueSpec) bool {
	if !slices.ContainsFunc(v.Names, func(n *ast.Ident) bool { return n.Name != "_" }) {
		return true
	}
	if len(v.Values) == 0 {
		return f.buildInfo(v)
	}
	for _, e := range v.Values {
		if !f.constantValue(e) && !f.buildInfo(v) {
			return false
		}
	}
	return true
}

func (f *file) constantValue(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.CallExpr:
		switch f.qualified(e.Fun) {
		case "errors.New", "fmt.Errorf", "regexp.MustCompile":
			return true
		}
	case *ast.CompositeLit:
		return f.qualified(e.Type) == "encoding/asn1.ObjectIdentifier"
	}
	return false
}

// buildInfo allows "version", "commit" and "date" in a program, as strings.
func (f *file) buildInfo(v *ast.ValueSpec) bool {
	names := []string{"version", "commit", "date"}
	if f.ast.Name.Name != "main" || len(v.Names) != 1 || !slices.Contains(names, v.Names[0].Name) {
		return false
	}
	if len(v.Values) == 1 {
		lit, ok := v.Values[0].(*ast.BasicLit)
		return ok && lit.Kind == token.STRING
	}
	id, ok := v.Type.(*ast.Ident)
	return ok && id.Name == "string"
}

// qualified returns "import/path.Name" for a selector of an imported package, and
// "" for anything else.
func (f *file) qualified(e ast.Expr) string {
	sel, ok := e.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	id, ok := sel.X.(*ast.Ident)
	if !ok || f.imports[id.Name] == "" {
		return ""
	}
	return f.imports[id.Name] + "." + sel.Sel.Name
}

// servers refuses what would serve or listen beside the one constructor for it,
// tls/listen, and the mux that any package can add a handler to.
func (t *tree) servers(f *file) {
	inListen := under(f.dir, "tls/listen")
	ast.Inspect(f.ast, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok && f.unixListen(call) {
			return false
		}
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		name := f.qualified(sel)
		switch name {
		case "net/http.DefaultServeMux", "net/http.Handle", "net/http.HandleFunc":
			t.find(f.path, t.line(sel), "default-mux", "%s: any package could add a handler", name)
		case "net/http.ListenAndServe", "net/http.ListenAndServeTLS", "net/http.Serve", "net/http.ServeTLS":
			t.find(f.path, t.line(sel), "server", "%s has no limits; tls/listen makes the servers", name)
		case "net/http.Server":
			if !inListen {
				t.find(f.path, t.line(sel), "server", "only tls/listen makes servers")
			}
		case "net.Listen", "net.ListenTCP", "net.ListenConfig", "crypto/tls.Listen", "crypto/tls.NewListener":
			if !inListen {
				t.find(f.path, t.line(sel), "listener", "%s: only tls/listen opens a listening socket", name)
			}
		}
		return true
	})
}

// unixListen reports whether call is net.Listen on a Unix socket.
func (f *file) unixListen(call *ast.CallExpr) bool {
	if f.qualified(call.Fun) != "net.Listen" || len(call.Args) == 0 {
		return false
	}
	lit, ok := call.Args[0].(*ast.BasicLit)
	return ok && strings.HasPrefix(lit.Value, `"unix`)
}
