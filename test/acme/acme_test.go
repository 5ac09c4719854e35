package acme

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/postern-pki/postern/test/site"
)

// names are those of the certificate; the address has no server name of its own.
func names() []string { return []string{"scep.postern.test", "127.0.0.1"} }

// service is a site whose listeners' certificate comes from a directory.
type service struct {
	*site.Site
	t    *testing.T
	addr string
}

// newService makes a site on a port that a directory can be told, with its section
// tls, and what devices says in the section of that name.
func newService(t *testing.T, port int, section map[string]any, devices ...map[string]any) *service {
	t.Helper()
	root, err := site.Root()
	if err != nil {
		t.Fatal(err)
	}
	s, _, err := site.Make(t.Context(), filepath.Join(t.TempDir(), "site"), site.Options{
		Bin: built().postern, Plan: filepath.Join(root, "hsm/ceremony/scripts/demo.yaml"), DevicePort: strconv.Itoa(port), OperatorPort: "0",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Kill() })
	b, err := os.ReadFile(s.Config())
	if err != nil {
		t.Fatal(err)
	}
	var cfg map[string]any
	if err := yaml.Unmarshal(b, &cfg); err != nil {
		t.Fatal(err)
	}
	cfg["tls"] = section
	for _, d := range devices {
		maps.Copy(cfg["devices"].(map[string]any), d)
	}
	if b, err = yaml.Marshal(cfg); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.Config(), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return &service{s, t, fmt.Sprintf("127.0.0.1:%d", port)}
}

func (s *service) start() {
	s.t.Helper()
	if err := s.Start(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

func (s *service) stop() {
	s.t.Helper()
	if err := s.Stop(); err != nil {
		s.t.Fatal(err)
	}
}

// get asks the devices' listener by a name, and returns the certificate that it
// showed, which roots have to vouch for.
func (s *service) get(roots *x509.CertPool, name string) (*x509.Certificate, error) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: name}, DisableKeepAlives: true,
	}}
	resp, err := client.Get("https://" + s.addr + "/scep/demo?operation=GetCACaps")
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if b, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(b), "POSTPKIOperation") {
		return nil, fmt.Errorf("the answer %q, %w", b, err)
	}
	return resp.TLS.PeerCertificates[0], nil
}

// reasons are what `postern status` has against the service.
func (s *service) reasons() string {
	s.t.Helper()
	st, err := s.Status(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return fmt.Sprint(st["reasons"])
}

func (s *service) journal() string {
	s.t.Helper()
	b, err := os.ReadFile(s.Journal())
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

func section(d *directory) map[string]any {
	return map[string]any{"mode": "acme", "directory": d.URL(), "roots": d.path("root.pem"), "email": "pki@postern.test", "names": names()}
}

// TestADirectoryThatIsDown begins with none, has it come and go, and restarts the
// service without it.
func TestADirectoryThatIsDown(t *testing.T) {
	port := freePort(t)
	d := newDirectory(t, port)
	s := newService(t, port, section(d))
	s.start()

	// Without a certificate nothing is served, and whoever asks is told why.
	_, err := s.get(x509.NewCertPool(), names()[0])
	if op, ok := errors.AsType[*net.OpError](err); !ok || op.Op != "remote error" {
		t.Errorf("a handshake without a certificate: %v, want the server's alert", err)
	}
	eventually(t, "the status says why", func() error {
		if r := s.reasons(); !strings.Contains(r, "the listeners have no certificate") || !strings.Contains(r, d.at(d.port)) {
			return errors.New(r)
		}
		return nil
	})
	if j := s.journal(); !strings.Contains(j, "no server certificate from the directory, and none was kept") || !strings.Contains(j, "software key") {
		t.Errorf("the journal: %s", j)
	}

	d.start(90 * 24 * time.Hour)
	issued := d.issued()
	var first *x509.Certificate
	eventually(t, "a certificate comes", func() (err error) {
		first, err = s.get(issued, names()[0])
		if err != nil {
			err = fmt.Errorf("%w: %s", err, s.Tail())
		}
		return err
	})
	if c, err := s.get(issued, names()[1]); err != nil || !c.Equal(first) {
		t.Errorf("by its address: %v", err)
	}
	if r := s.reasons(); strings.Contains(r, "certificate") {
		t.Errorf("still degraded: %s", r)
	}
	keysArePrivate(t, s.Path("courier"))

	d.stop()
	s.stop()
	s.start()
	if c, err := s.get(issued, names()[0]); err != nil || !c.Equal(first) {
		t.Errorf("after a restart without the directory: %v", err)
	}
	s.stop()
}

// keysArePrivate looks at what the courier keeps.
func keysArePrivate(t *testing.T, dir string) {
	t.Helper()
	keys := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		if strings.HasSuffix(path, ".key") {
			if keys++; st.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v", path, st.Mode())
			}
		}
		return nil
	})
	if err != nil || keys != 2 {
		t.Errorf("%d keys in %s, want the account's and the certificate's: %v", keys, dir, err)
	}
}

// TestACertificateIsRenewed has a directory that issues for some seconds.
func TestACertificateIsRenewed(t *testing.T) {
	port := freePort(t)
	d := newDirectory(t, port)
	d.start(15 * time.Second)
	s := newService(t, port, section(d))
	s.start()
	issued := d.issued()
	var first *x509.Certificate
	eventually(t, "a certificate comes", func() (err error) {
		first, err = s.get(issued, names()[0])
		return err
	})
	eventually(t, "another comes", func() error {
		c, err := s.get(issued, names()[0])
		switch {
		case err != nil:
			t.Fatalf("while it is renewed: %v\n%s\n%s", err, s.Tail(), d.log())
		case c.SerialNumber.Cmp(first.SerialNumber) == 0:
			return errors.New("still the first")
		case c.NotBefore.Sub(first.NotBefore) < 9*time.Second:
			t.Errorf("renewed after %v, before two thirds of its life", c.NotBefore.Sub(first.NotBefore))
		case bytes.Equal(c.RawSubjectPublicKeyInfo, first.RawSubjectPublicKeyInfo):
			t.Error("the new certificate is for the old key")
		}
		return nil
	})
	if r := s.reasons(); strings.Contains(r, "certificate") {
		t.Errorf("a short life is held against it: %s", r)
	}
	d.stop()
	eventually(t, "a renewal that is overdue is in the status", func() error {
		if r := s.reasons(); !strings.Contains(r, "the tls certificate ends on") {
			return errors.New(r)
		}
		return nil
	})
	s.stop()
}

// TestAnOrderThatIsCutOff has a directory that says nothing, and kills the service
// while it waits for it.
func TestAnOrderThatIsCutOff(t *testing.T) {
	port := freePort(t)
	d := newDirectory(t, port)
	d.start(90 * 24 * time.Hour)
	d.pause()
	s := newService(t, port, section(d))
	s.start()
	eventually(t, "the order begins", func() error {
		if locks, err := os.ReadDir(s.Path("courier", "locks")); err != nil || len(locks) == 0 {
			return fmt.Errorf("no lock: %w", err)
		}
		return nil
	})
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.stop() // in order, though the directory still says nothing
	s.start()
	d.resume()
	issued := d.issued()
	eventually(t, "a certificate comes", func() error { _, err := s.get(issued, names()[0]); return err })
	s.stop()
}

// TestTheCourierMayDie kills the role that asks the directory: the gates go on with
// what they have, and it is back by itself.
func TestTheCourierMayDie(t *testing.T) {
	port := freePort(t)
	d := newDirectory(t, port)
	d.start(90 * 24 * time.Hour)
	s := newService(t, port, section(d))
	s.start()
	issued := d.issued()
	var first *x509.Certificate
	eventually(t, "a certificate comes", func() (err error) { first, err = s.get(issued, names()[0]); return err })
	courier := func() int {
		t.Helper()
		all, err := s.Processes()
		if err != nil {
			t.Fatal(err)
		}
		return all["courier"]
	}
	before := courier()
	if before == 0 {
		t.Fatal("the courier is no process of its own")
	}
	if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if c, err := s.get(issued, names()[0]); err != nil || !c.Equal(first) {
		t.Errorf("without the courier: %v", err)
	}
	eventually(t, "it is back", func() error {
		if now := courier(); now == 0 || now == before {
			return fmt.Errorf("process %d", now)
		}
		if r := s.reasons(); r != "[]" {
			return errors.New(r)
		}
		return nil
	})
	if c, err := s.get(issued, names()[0]); err != nil || !c.Equal(first) {
		t.Errorf("after it: %v", err)
	}
	s.stop()
}

// TestAFloodOfOneSource has a whole service limit one source and serve another.
func TestAFloodOfOneSource(t *testing.T) {
	s := newService(t, freePort(t), map[string]any{"mode": "internal", "key": "tls", "issuer": "demo", "names": []string{"127.0.0.1"}},
		map[string]any{"handshakes_per_source": 1, "connections_per_source": 5})
	s.start()
	b, err := os.ReadFile(s.CA())
	if err != nil {
		t.Fatal(err)
	}
	ca := x509.NewCertPool()
	ca.AppendCertsFromPEM(b)
	flood := &tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}, Config: &tls.Config{RootCAs: ca, ServerName: "127.0.0.1"}}
	cut := 0
	for range 40 {
		conn, err := flood.DialContext(t.Context(), "tcp", s.addr)
		if err != nil {
			cut++
			continue
		}
		_ = conn.Close()
	}
	if cut == 0 {
		t.Error("a source that floods is not limited")
	}
	if _, err := s.get(ca, "127.0.0.1"); err != nil {
		t.Error("another source:", err)
	}
	if !strings.Contains(s.journal(), "connections refused") {
		t.Error("the journal does not tell of it")
	}
	s.stop()
}

// TestNobodyElseIsAnswered has strangers ask for a validation.
func TestNobodyElseIsAnswered(t *testing.T) {
	port := freePort(t)
	d := newDirectory(t, port)
	d.start(90 * 24 * time.Hour)
	s := newService(t, port, section(d))
	s.start()
	issued := d.issued()
	eventually(t, "a certificate comes", func() error { _, err := s.get(issued, names()[0]); return err })
	for _, name := range []string{names()[0], "1.0.0.127.in-addr.arpa", "other.postern.test", ""} {
		conn, err := tls.Dial("tcp", s.addr, &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: []string{"acme-tls/1"}})
		if err == nil {
			t.Errorf("%q: a validation succeeds while none is pending, with %v", name, conn.ConnectionState().PeerCertificates[0].Subject)
			_ = conn.Close()
		}
	}
	// Who offers more than a directory does gets the certificate, and no answer.
	conn, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: issued, ServerName: names()[0], NextProtos: []string{"acme-tls/1", "h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, _ = io.WriteString(conn, "GET /scep/demo?operation=GetCACaps HTTP/1.0\r\n\r\n")
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if ne, ok := errors.AsType[net.Error](err); len(b) > 0 || ok && ne.Timeout() {
		t.Errorf("acme-tls/1 got %q, %v, want the end of the connection", b, err)
	}
	s.stop()
}

func TestAPlainDirectoryIsRefused(t *testing.T) {
	s := newService(t, freePort(t), map[string]any{"mode": "acme", "directory": "http://127.0.0.1:1/dir", "roots": "ceremony/ca.pem", "names": names()})
	for _, cmd := range [][]string{{"postern", "--config", s.Config(), "config", "check"}, {"posternd", "--config", s.Config()}} {
		_, errOut, code := site.Run(t.Context(), nil, filepath.Join(s.Bin(), cmd[0]), cmd[1:]...)
		if code == 0 || !strings.Contains(errOut, "tls.directory") || !strings.Contains(errOut, "https") {
			t.Errorf("%s: exit %d, %s", cmd[0], code, errOut)
		}
	}
}

// TestASoftwareKeyWithTheInternalIssuer has the token sign no handshake.
func TestASoftwareKeyWithTheInternalIssuer(t *testing.T) {
	s := newService(t, freePort(t), map[string]any{"mode": "internal", "key_file": "keyholder/tls.key", "issuer": "demo", "names": []string{"127.0.0.1"}})
	s.start()
	b, err := os.ReadFile(s.CA())
	if err != nil {
		t.Fatal(err)
	}
	ca := x509.NewCertPool()
	ca.AppendCertsFromPEM(b)
	operations := func() any {
		st, err := s.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return st["token"].(map[string]any)["operations"]
	}
	first, err := s.get(ca, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	before := operations()
	for range 20 {
		if _, err := s.get(ca, "127.0.0.1"); err != nil {
			t.Fatal(err)
		}
	}
	if after := operations(); after.(float64)-before.(float64) >= 20 {
		t.Errorf("the token did %v operations before 20 handshakes and %v after", before, after)
	}
	if st, err := os.Stat(s.Path("keyholder", "tls.key")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the key file: %v, %v", st.Mode(), err)
	}
	if !strings.Contains(s.journal(), "software key") {
		t.Error("the journal does not say that the key is a software key")
	}
	s.stop()
	s.start()
	if c, err := s.get(ca, "127.0.0.1"); err != nil || !bytes.Equal(c.RawSubjectPublicKeyInfo, first.RawSubjectPublicKeyInfo) {
		t.Errorf("after a restart: %v", err)
	}
	s.stop()

	// Another kind of key is refused, and so is one that others may read.
	if out, err := exec.Command("openssl", "genpkey", "-algorithm", "RSA", "-out", s.Path("keyholder", "tls.key")).CombinedOutput(); err != nil {
		t.Fatalf("openssl: %v: %s", err, out)
	}
	for mode, want := range map[os.FileMode]string{0o600: "wants an ECDSA key", 0o644: "open to others"} {
		if err := os.Chmod(s.Path("keyholder", "tls.key"), mode); err != nil {
			t.Fatal(err)
		}
		if _, errOut, code := site.Run(t.Context(), nil, filepath.Join(s.Bin(), "posternd"), "--config", s.Config()); code == 0 || !strings.Contains(errOut, want) {
			t.Errorf("mode %v: exit %d, %s", mode, code, errOut)
		}
	}
}
