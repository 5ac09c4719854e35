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

// vars is what the scripts know of the one service that all of them share.
var (
	vars    map[string]string
	running *site.Site
)

func TestMain(m *testing.M) {
	testscript.Main(suite{m}, map[string]func(){"postern": main})
}

type suite struct{ *testing.M }

// Run starts the service, once for all scripts, after the test binary knows that
// it is not one of their commands.
func (s suite) Run() int {
	ctx := context.Background()
	return site.Main(ctx, "", func(made *site.Site) int {
		running = made
		var err error
		if vars, err = prepare(ctx, running); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return s.M.Run()
	})
}

// prepare has one device enroll and one refused, and keeps a copy of the folder as
// it is while the service is down.
func prepare(ctx context.Context, s *site.Site) (map[string]string, error) {
	fingerprint, err := s.Fingerprint(ctx)
	if err != nil {
		return nil, err
	}
	url, err := s.URL(ctx, "demo")
	if err != nil {
		return nil, err
	}
	c, err := s.NewChallenge(ctx, "demo", "CN=first.demo.example")
	if err != nil {
		return nil, err
	}
	for i, subject := range []string{"CN=second.demo.example", "CN=first.demo.example"} {
		out, errOut, code := s.Postern(ctx, []byte(c.Challenge), "scep", "enroll", "--url", url, "--tls-ca", s.CA(), "--ca-fingerprint", fingerprint,
			"--subject", subject, "--challenge-file", "-", "--out", s.Path(fmt.Sprint("device-", i)))
		if code != 1-i { // the challenge is not the first one's
			return nil, fmt.Errorf("enrolling %s: exit %d: %s%s", subject, code, out, errOut)
		}
	}
	if err := s.Stop(); err != nil {
		return nil, err
	}
	down := s.Dir + "-down"
	if _, errOut, code := site.Run(ctx, nil, "cp", "-a", s.Dir, down); code != 0 {
		return nil, fmt.Errorf("cp: %s", errOut)
	}
	if err := s.Start(ctx); err != nil {
		return nil, err
	}
	if url, err = s.URL(ctx, "demo"); err != nil {
		return nil, err
	}
	return map[string]string{
		"SITE": s.Dir, "CONFIG": s.Config(), "CA": s.CA(), "FINGERPRINT": fingerprint, "URL": url, "DOWN": down, "ISSUED": s.Path("device-1", "cert.pem"),
		"PATH": "$PATH" + string(os.PathListSeparator) + s.Bin(),
	}, nil
}

func TestScript(t *testing.T) { script.Run(t, vars) }
