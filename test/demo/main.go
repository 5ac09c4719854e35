// Command demo shows the whole life of an enrollment on a real token,
// step by step and in plain words: what `make demo` and `make run` run.
//
// # What a caller may rely on
//
// Every line that says what came out was read from what came out. It exits 1 at
// the first step that did not go as it should, and leaves nothing running.
//
// # What it does not protect against
//
// Its token is SoftHSM with the PIN in a file: for trying out.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/postern-pki/postern/test/site"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, len(os.Args) > 1 && os.Args[1] == "--run")
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "\npostern-demo: %v\n", err)
		os.Exit(1)
	}
}

func env(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

func run(ctx context.Context, stay bool) (err error) {
	bin, err := filepath.Abs("bin")
	if err != nil {
		return err
	}
	dir, err := filepath.Abs("demo")
	if err != nil {
		return err
	}
	if err := fresh(dir); err != nil {
		return err
	}
	d := &demo{ctx: ctx, bin: bin}
	d.step("The ceremony: one plan makes six keys on a new SoftHSM token")
	began := time.Now()
	for _, port := range []string{"DEVICE_PORT", "OPERATOR_PORT"} {
		if n, err := strconv.ParseUint(os.Getenv(port), 10, 16); os.Getenv(port) != "" && (err != nil || n == 0) {
			return fmt.Errorf("%s is no port: %q", port, os.Getenv(port))
		}
	}
	s, out, err := site.Make(ctx, dir, site.Options{
		Bin: bin, Plan: "hsm/ceremony/scripts/demo.yaml", DevicePort: env("DEVICE_PORT", "8443"), OperatorPort: env("OPERATOR_PORT", "9443"),
	})
	if err != nil {
		return err
	}
	d.site = s
	d.quote(lastLines(out, 16))
	d.step("The service: every key is read back and compared, the log begins, both listeners are TLS")
	if err := s.Start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Stop(), forget(s.Path("demo.json"))) }()
	if err := d.describe(); err != nil {
		return err
	}
	if stay {
		return d.stay()
	}
	for _, step := range []func() error{d.enroll, d.strongSwan, d.refusals, d.renewal} {
		if err := step(); err != nil {
			return err
		}
	}
	if err := d.log(); err != nil {
		return err
	}
	if err := d.bundle(); err != nil {
		return err
	}
	fmt.Printf("\nAll of it took %.1f s. State is in ./demo; nothing is left running. `make run` stays in the foreground.\n", time.Since(began).Seconds())
	return nil
}

// fresh removes what an earlier demo left, and nothing else.
func fresh(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if _, err := os.Stat(filepath.Join(dir, "ceremony")); err != nil {
		return fmt.Errorf("%s is there and is no demo: move it away", dir)
	}
	return os.RemoveAll(dir)
}

// forget removes what is true only while the service runs.
func forget(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

type demo struct {
	ctx  context.Context
	bin  string
	site *site.Site
	n    int

	url, fingerprint string
}

func (d *demo) step(what string) {
	d.n++
	fmt.Printf("\n%d. %s\n", d.n, what)
}

func (d *demo) say(format string, args ...any) { fmt.Printf("   "+format+"\n", args...) }

func (d *demo) quote(text string) {
	for line := range strings.Lines(strings.TrimRight(text, "\n")) {
		fmt.Printf("   | %s\n", strings.TrimRight(line, "\n"))
	}
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// describe prints the status, and writes demo.json for scripts.
func (d *demo) describe() error {
	out, errOut, code := d.site.Postern(d.ctx, nil, "status")
	if code != 0 {
		return fmt.Errorf("postern status: exit %d: %s%s", code, out, errOut)
	}
	d.quote(out)
	var err error
	if d.url, err = d.site.URL(d.ctx, "demo"); err != nil {
		return err
	}
	if d.fingerprint, err = d.site.Fingerprint(d.ctx); err != nil {
		return err
	}
	info, err := json.MarshalIndent(map[string]any{
		"device_url": d.url, "operator_url": "https://127.0.0.1:" + env("OPERATOR_PORT", "9443"), "ca_file": d.site.CA(),
		"audit_file": d.site.Path("ceremony", "audit.pem"), "config": d.site.Config(), "profile": "demo",
		"example_subject": "CN=printer-7.demo.example", "pid": d.site.PID(), "ca_fingerprint": d.fingerprint,
		"operator_certificate": d.site.Path("ceremony", "operator.pem"), "operator_key": d.site.Path("ceremony", "operator.key"),
	}, "", "  ")
	if err != nil {
		return err
	}
	// Whoever waits for the file finds all of it.
	if err := os.WriteFile(d.site.Path("demo.json.new"), append(info, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(d.site.Path("demo.json.new"), d.site.Path("demo.json"))
}

// stay keeps the service in the foreground until it is interrupted.
func (d *demo) stay() error {
	fmt.Printf(`
Serving devices at %s and operators at https://127.0.0.1:%s. In another terminal:

  bin/postern --config demo/postern.yaml status
  bin/postern --config demo/postern.yaml challenge create --profile demo --subject 'CN=printer-7.demo.example'
  bin/postern scep enroll --url %s --tls-ca demo/ceremony/ca.pem --ca-fingerprint %s \
      --subject 'CN=printer-7.demo.example' --challenge-file - --out /tmp/printer-7
  bin/postern --config demo/postern.yaml cert list
  bin/postern --config demo/postern.yaml audit verify
  curl --cacert demo/ceremony/ca.pem --cert demo/ceremony/operator.pem --key demo/ceremony/operator.key https://127.0.0.1:%s/api/v1/status

Ctrl-C stops it.
`, d.url, env("OPERATOR_PORT", "9443"), d.url, d.fingerprint, env("OPERATOR_PORT", "9443"))
	select {
	case <-d.ctx.Done():
	case <-d.site.Exited():
		fmt.Println("The service ended by itself; its journal is demo/posternd.log.")
	}
	return nil // stopping says how it ended
}
