package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/postern-pki/postern/test/script"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"postern-ceremony": main, "ceremony-that-stops": stopping})
}

func TestScript(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	script.Run(t, map[string]string{"SCRIPTS": here + "/../../hsm/ceremony/scripts"})
}
