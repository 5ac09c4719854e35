package main

import (
	"net"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/postern-pki/postern/test/script"
	"github.com/postern-pki/postern/test/site"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"postern-demo": main})
}

// TestScript runs the demonstration as make does, in a folder that has bin and
// hsm as the repository's has.
func TestScript(t *testing.T) {
	root, err := site.Root()
	if err != nil {
		t.Fatal(err)
	}
	bin, clean, err := site.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer clean()
	vars := map[string]string{"BIN": bin, "HSM": filepath.Join(root, "hsm")}
	for _, name := range []string{"PORT1", "PORT2", "PORT3", "PORT4"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }() // all at once: each is another
		if _, vars[name], err = net.SplitHostPort(l.Addr().String()); err != nil {
			t.Fatal(err)
		}
		if name == "PORT4" { // taken, for as long as the scripts run
			continue
		}
		_ = l.Close()
	}
	t.Run("scripts", func(t *testing.T) { script.Run(t, vars) })
}
