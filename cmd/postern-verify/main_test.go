package main

import (
	"bytes"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// An auditor can read all that the verifier is made of: no cgo, and no library but
// these.
func TestTheVerifierIsMadeOfLittle(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}} {{len .CgoFiles}}{{end}}", ".")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{"github.com/postern-pki/postern/audit", "github.com/postern-pki/postern/cmd/postern-verify", "golang.org/x/mod/sumdb", "golang.org/x/crypto/cryptobyte", "golang.org/x/sys/unix", "go.uber.org/zap", "go.uber.org/multierr"}
	n := 0
	for line := range strings.Lines(string(out)) {
		path, cgo, _ := strings.Cut(strings.TrimSpace(line), " ")
		n++
		if cgo != "0" || !slices.ContainsFunc(allowed, func(a string) bool { return path == a || strings.HasPrefix(path, a+"/") }) {
			t.Errorf("%s, with %s files of cgo", path, cgo)
		}
	}
	if n < 5 {
		t.Errorf("%d packages", n)
	}
}

func TestMisuse(t *testing.T) {
	for _, args := range [][]string{{}, {"--trust", "a"}, {"a"}, {"a", "--trust", "b", "--output", "xml"}, {"a", "--trust", "nowhere"}, {"--color"}} {
		var out, errOut bytes.Buffer
		if code := run(t.Context(), args, &out, &errOut); code != misused || out.Len() > 0 || !strings.Contains(errOut.String(), "hint: ") {
			t.Errorf("%q: exit %d: %s%s", args, code, out.String(), errOut.String())
		}
	}
	var out, errOut bytes.Buffer
	if code := run(t.Context(), []string{"--help"}, &out, &errOut); code != good || !strings.Contains(errOut.String(), "usage: ") {
		t.Errorf("--help: exit %d: %s", code, errOut.String())
	}
}
