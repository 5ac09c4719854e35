// Package site makes a whole Postern in a folder and runs it: a rehearsed
// ceremony on SoftHSM, a configuration, profiles, the service as a process.
//
// # What a caller may rely on
//
// Everything is the real thing, as an operator would set it up, with the
// binaries that were built; what [Site.Start] started ends with [Site.Stop].
//
// # What it does not protect against
//
// It is for demonstrations and tests: the PIN is in a file.
package site

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"
)

// Options say how a site differs from the usual.
type Options struct {
	Bin          string // folder of the binaries
	Plan         string // ceremony plan
	Profiles     string // YAML; "" for Profiles
	DevicePort   string // "0": any
	OperatorPort string
	Serve        func(config string) *exec.Cmd // nil: posternd
}

// A Site is one folder with everything in it.
type Site struct {
	Dir string
	opt Options

	cmd    *exec.Cmd
	exited chan struct{}
	err    error
	log    *os.File
}

// Make rehearses the ceremony and writes the configuration into dir, which must
// not exist. It returns what the ceremony printed.
func Make(ctx context.Context, dir string, o Options) (*Site, string, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, "", err
	}
	s := &Site{Dir: dir, opt: o}
	out, err := exec.CommandContext(ctx, filepath.Join(o.Bin, "postern-ceremony"), "rehearse", o.Plan, "--out", s.Path("ceremony")).CombinedOutput()
	if err != nil {
		return nil, string(out), fmt.Errorf("the ceremony: %w: %s", err, out)
	}
	if err := os.Mkdir(s.Path("profiles.d"), 0o700); err != nil {
		return nil, "", err
	}
	text := o.Profiles
	if text == "" {
		text = Profiles
	}
	if err := os.WriteFile(s.Path("profiles.d", "profiles.yaml"), []byte(text), 0o600); err != nil {
		return nil, "", err
	}
	return s, string(out), s.configure()
}

// At returns the site that Make made in dir.
func At(dir string, o Options) *Site { return &Site{Dir: dir, opt: o} }

// Path returns a path within the site.
func (s *Site) Path(parts ...string) string {
	return filepath.Join(append([]string{s.Dir}, parts...)...)
}

// Bin is the folder of the binaries.
func (s *Site) Bin() string { return s.opt.Bin }

// Config is the path of the configuration.
func (s *Site) Config() string { return s.Path("postern.yaml") }

// configure turns what the ceremony left into a configuration, as its handbook
// says.
func (s *Site) configure() error {
	data, err := os.ReadFile(s.Path("ceremony", "keys.yaml"))
	if err != nil {
		return err
	}
	var keys map[string]any
	if err := yaml.Unmarshal(data, &keys); err != nil {
		return err
	}
	in := func(m map[string]any, names ...string) {
		for _, n := range names {
			if v, ok := m[n].(string); ok && !filepath.IsAbs(v) {
				m[n] = filepath.Join("ceremony", v)
			}
		}
	}
	token := keys["token"].(map[string]any)
	in(token, "softhsm2_conf")
	in(token["pin"].(map[string]any), "file")
	for _, i := range keys["issuers"].([]any) {
		for _, k := range []string{"ca", "ra_sign", "ra_decrypt", "ocsp"} {
			if m, ok := i.(map[string]any)[k].(map[string]any); ok { // a plan need not have a key for OCSP
				in(m, "certificate")
			}
		}
		chain, _ := i.(map[string]any)["chain"].([]any)
		for n := range chain {
			chain[n] = filepath.Join("ceremony", chain[n].(string))
		}
	}
	in(keys["audit"].(map[string]any), "certificate")
	in(keys["challenges"].(map[string]any)["key"].(map[string]any), "file")
	names := keys["tls"].(map[string]any)["names"]
	cfg := map[string]any{
		"version": 1, "state": "state", "origin": "demo.example/log", "transcript": "ceremony/transcript.jsonl", "profiles": []string{"profiles.d"},
		"token": token, "keys": keys["keys"], "issuers": keys["issuers"], "audit": keys["audit"], "challenges": keys["challenges"],
		"devices": map[string]any{"listen": "127.0.0.1:" + s.opt.DevicePort, "connections_per_source": 512, "broken_per_minute": 100_000},
		"operators": map[string]any{
			"listen": "127.0.0.1:" + s.opt.OperatorPort, "ca": "ceremony/operator-ca.pem", "socket": "operator.sock",
			"people": []any{map[string]any{"name": "operator", "certificate": "ceremony/operator.pem", "roles": []string{"administrator"}}},
		},
		"tls": map[string]any{"mode": "internal", "key": "tls", "issuer": keys["issuers"].([]any)[0].(map[string]any)["name"], "names": names},
	}
	out, err := yaml.Marshal(cfg)
	if err != nil {
		return err
	}
	return os.WriteFile(s.Config(), out, 0o600)
}

// Start runs posternd and waits until it answers.
func (s *Site) Start(ctx context.Context) error {
	var err error
	if s.log, err = os.OpenFile(s.Journal(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return err
	}
	if s.cmd = exec.Command(filepath.Join(s.opt.Bin, "posternd"), "--config", s.Config()); s.opt.Serve != nil {
		s.cmd = s.opt.Serve(s.Config())
	}
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	// What started it may be killed: the service must not outlive it.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := s.cmd.Start(); err != nil {
		return errors.Join(err, s.log.Close())
	}
	s.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		s.err = cmd.Wait()
		close(exited)
	}(s.cmd, s.exited)
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if _, err := s.Status(ctx); err == nil {
			return nil
		}
		select {
		case <-s.exited:
			return fmt.Errorf("posternd ended: %w: %s", s.err, s.Tail())
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
	}
	return fmt.Errorf("posternd does not answer: %s", s.Tail())
}

// Journal is the file that the service writes its journal to.
func (s *Site) Journal() string { return s.Path("posternd.log") }

// Tail is the end of the service's journal.
func (s *Site) Tail() string {
	b, _ := os.ReadFile(s.Journal())
	return string(b[max(0, len(b)-2000):])
}

// Exited is closed when the service that Start ran has ended, by itself or not.
func (s *Site) Exited() <-chan struct{} { return s.exited }

// PID is that of the running service.
func (s *Site) PID() int { return s.cmd.Process.Pid }

// Stop ends the service in order.
func (s *Site) Stop() error { return s.end(syscall.SIGTERM) }

// Kill ends it without a word.
func (s *Site) Kill() error { return s.end(syscall.SIGKILL) }

func (s *Site) end(sig syscall.Signal) error {
	if s.cmd == nil {
		return nil
	}
	_ = s.cmd.Process.Signal(sig)
	select {
	case <-s.exited:
	case <-time.After(30 * time.Second):
		_ = s.cmd.Process.Kill()
		<-s.exited
		return errors.New("posternd did not end within 30 s")
	}
	s.cmd = nil
	_ = s.log.Close()
	if sig == syscall.SIGTERM {
		return s.err
	}
	return nil
}

// Status is `postern status`, decoded.
func (s *Site) Status(ctx context.Context) (map[string]any, error) {
	out, errOut, code := s.Postern(ctx, nil, "status", "--output", "json")
	if code != 0 && code != 2 {
		return nil, fmt.Errorf("postern status: %s", errOut)
	}
	var m map[string]any
	return m, json.Unmarshal([]byte(out), &m)
}

// Postern runs the operator's tool on this site.
func (s *Site) Postern(ctx context.Context, stdin []byte, args ...string) (stdout, stderr string, code int) {
	return Run(ctx, stdin, filepath.Join(s.opt.Bin, "postern"), append([]string{"--config", s.Config()}, args...)...)
}

// Run runs a program and returns what it printed and its exit status, -1 if it
// could not be run.
func Run(ctx context.Context, stdin []byte, name string, args ...string) (stdout, stderr string, code int) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &errOut
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else if err != nil {
		return out.String(), err.Error(), -1
	}
	return out.String(), errOut.String(), code
}

// URL is what the devices of a profile are told.
func (s *Site) URL(ctx context.Context, profile string) (string, error) {
	st, err := s.Status(ctx)
	if err != nil {
		return "", err
	}
	list, _ := st["profiles"].([]any)
	for _, p := range list {
		if m, ok := p.(map[string]any); ok && m["name"] == profile {
			return m["url"].(string), nil
		}
	}
	return "", fmt.Errorf("no profile %q", profile)
}

// CA is the file that devices trust for TLS and as their CA.
func (s *Site) CA() string { return s.Path("ceremony", "ca.pem") }

// Fingerprint is the CA certificate's SHA-256, as a device is told.
func (s *Site) Fingerprint(ctx context.Context) (string, error) {
	out, errOut, code := Run(ctx, nil, "openssl", "x509", "-in", s.CA(), "-noout", "-fingerprint", "-sha256")
	if code != 0 {
		return "", fmt.Errorf("openssl: %s", errOut)
	}
	_, hex, _ := strings.Cut(strings.TrimSpace(out), "=")
	return strings.ToLower(strings.ReplaceAll(hex, ":", "")), nil
}
