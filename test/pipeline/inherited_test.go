package pipeline_test

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// inherit runs posternd as a service manager does that opened its two sockets.
func inherit(t *testing.T, s *site.Site) (devices, operators string, cmd *exec.Cmd, said *strings.Builder) {
	t.Helper()
	var files []*os.File
	var at []string
	for range 2 {
		l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
		files = append(files, must(l.(*net.TCPListener).File())(t))
		at = append(at, l.Addr().String())
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	said = &strings.Builder{}
	// The number of the process has to be known before the program runs.
	cmd = exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, filepath.Join(s.Bin(), "posternd"), "--config", s.Config())
	cmd.Env = append(os.Environ(), "LISTEN_FDS=2", "LISTEN_FDNAMES=devices:operators")
	cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = files, said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		_ = f.Close()
	}
	return at[0], at[1], cmd, said
}

// Under systemd the sockets are inherited: the addresses of the configuration
// then say nothing, and an operators' socket without an operator CA is refused.
func TestInheritedSocketsAreServed(t *testing.T) {
	s, end, err := site.New(t.Context(), shared.Bin(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	devices, operators, cmd, said := inherit(t, s)
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	for up := false; !up; {
		select {
		case err := <-exited:
			t.Fatalf("posternd ended: %v\n%s", err, said)
		case <-time.After(50 * time.Millisecond):
			_, err := s.Status(t.Context())
			up = err == nil
		}
	}
	for address, asks := range map[string]bool{devices: false, operators: true} {
		asked := false
		d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			asked = true
			return &tls.Certificate{}, nil
		}}}
		c, err := d.DialContext(context.Background(), "tcp", address)
		if err != nil {
			t.Fatalf("%s: %v", address, err)
		}
		_ = c.Close()
		if asked != asks {
			t.Errorf("%s: asked for a client certificate: %v, want %v", address, asked, asks)
		}
	}
	devicesAreNoOperators(t, s, "https://"+devices+"/scep/demo", "https://"+operators+"/api/v1/status")
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := <-exited; err != nil {
		t.Errorf("posternd: %v\n%s", err, said)
	}

	config := must(os.ReadFile(s.Config()))(t)
	var kept []string
	for line := range strings.Lines(string(config)) {
		if !strings.Contains(line, "operator-ca.pem") && !strings.Contains(line, "listen: 127.0.0.1:0") || strings.Contains(line, "connections") {
			kept = append(kept, line)
		}
	}
	text := strings.Replace(strings.Join(kept, ""), "devices:\n", "devices:\n    listen: 127.0.0.1:0\n", 1)
	if err := os.WriteFile(s.Config(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, cmd, said = inherit(t, s)
	if err := cmd.Wait(); err == nil || !strings.Contains(said.String(), "was inherited, but the configuration names no operators.ca") {
		t.Errorf("an operators' socket without an operator CA: %v\n%s", err, said)
	}
}

// devicesAreNoOperators shows a device's certificate, which the service itself
// issued, where operators are asked for theirs.
func devicesAreNoOperators(t *testing.T, s *site.Site, enrollURL, operatorURL string) {
	t.Helper()
	const cn = "phone.demo.example"
	key := newKey(t)
	c := must(s.NewChallenge(t.Context(), "demo", "CN="+cn))(t)
	d := client.Client{URL: enrollURL, HTTP: must(s.HTTP())(t), CAFingerprint: must(s.Fingerprint(t.Context()))(t)}
	r := must(d.Enroll(t.Context(), client.Enrollment{Key: key, Subject: name(cn), Challenge: []byte(c.Challenge)}))(t)
	operator := must(tls.LoadX509KeyPair(s.Path("ceremony", "operator.pem"), s.Path("ceremony", "operator.key")))(t)
	for who, tt := range map[string]struct {
		cert tls.Certificate
		ok   bool
	}{"an operator": {operator, true}, "a device": {tls.Certificate{Certificate: [][]byte{r.Certificate.Raw}, PrivateKey: key}, false}} {
		resp, err := must(s.HTTP(tt.cert))(t).Get(operatorURL)
		if err == nil {
			_ = resp.Body.Close()
		}
		if (err == nil && resp.StatusCode == http.StatusOK) != tt.ok {
			t.Errorf("%s is answered: %v", who, err)
		}
	}
}
