package main

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/postern-pki/postern/test/script"
	"github.com/postern-pki/postern/test/site"
)

// vars is what the scripts know of a site whose service never ran.
var vars map[string]string

func TestMain(m *testing.M) {
	testscript.Main(suite{m}, map[string]func(){"posternd": main})
}

type suite struct{ *testing.M }

func (s suite) Run() int {
	bin, clean, err := site.Build(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer clean()
	made, end, err := site.New(context.Background(), bin, "")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer end()
	vars = map[string]string{"SITE": made.Dir, "PATH": "$PATH" + string(os.PathListSeparator) + made.Bin()}
	return s.M.Run()
}

func TestScript(t *testing.T) { script.Run(t, vars) }
