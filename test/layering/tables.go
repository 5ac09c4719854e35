package layering

import (
	"go/ast"
	"go/token"
)

// table reports whether a package variable is an unexported literal list or map
// that its package only reads: Go has no constants of these types.
func (t *tree) table(f *file, v *ast.ValueSpec) bool {
	if len(v.Names) != len(v.Values) {
		return false
	}
	for i, e := range v.Values {
		lit, ok := e.(*ast.CompositeLit)
		if !ok || v.Names[i].IsExported() || len(lit.Elts) == 0 {
			return false
		}
		switch lit.Type.(type) {
		case *ast.ArrayType, *ast.MapType:
		default:
			return false
		}
		if t.written(f, v.Names[i].Name) {
			return false
		}
	}
	return true
}

// written reports whether anything in the package of f may change the variable
// of that name. A local variable that shadows it counts too: it reads as if.
func (t *tree) written(f *file, name string) bool {
	found := false
	for _, other := range t.files {
		if other.dir != f.dir || other.ast.Name.Name != f.ast.Name.Name {
			continue
		}
		ast.Inspect(other.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				for _, l := range n.Lhs {
					found = found || base(l) == name
				}
			case *ast.IncDecStmt:
				found = found || base(n.X) == name
			case *ast.UnaryExpr:
				found = found || n.Op == token.AND && base(n.X) == name
			case *ast.CallExpr:
				found = found || other.writes(n, name)
			}
			return !found
		})
	}
	return found
}

// writes reports whether a call may change its first argument, of that name.
func (f *file) writes(call *ast.CallExpr, name string) bool {
	if len(call.Args) == 0 || base(call.Args[0]) != name {
		return false
	}
	if id, ok := call.Fun.(*ast.Ident); ok {
		switch id.Name {
		case "append", "delete", "clear", "copy":
			return true
		}
		return false
	}
	switch f.qualified(call.Fun) {
	case "slices.Sort", "slices.SortFunc", "slices.SortStableFunc", "slices.Reverse", "slices.Insert", "slices.Delete",
		"slices.DeleteFunc", "slices.Replace", "slices.Compact", "slices.CompactFunc", "slices.Grow", "slices.Clip", "maps.Copy", "maps.DeleteFunc", "maps.Insert":
		return true
	}
	return false
}

// base is the variable that an expression is, or is a part of.
func base(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.IndexExpr:
		return base(e.X)
	case *ast.SliceExpr:
		return base(e.X)
	case *ast.SelectorExpr:
		return base(e.X)
	case *ast.ParenExpr:
		return base(e.X)
	}
	return ""
}
