package acme

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/postern-pki/postern/test/site"
)

// bins are the folders of what TestMain built.
type bins struct{ postern, pebble string }

// built is asked for by each test: TestMain put the folders into the environment.
func built() bins { return bins{os.Getenv("POSTERN_BIN"), os.Getenv("POSTERN_TEST_PEBBLE")} }

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	ctx := context.Background()
	bin, clean, err := site.Build(ctx)
	if err != nil {
		return 1, err
	}
	defer clean()
	root, err := site.Root()
	if err != nil {
		return 1, err
	}
	tmp, err := os.MkdirTemp("", "postern-pebble-")
	if err != nil {
		return 1, err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	const pebble = "github.com/letsencrypt/pebble/v2/cmd/pebble"
	cmd := exec.CommandContext(ctx, "go", "build", "-o", tmp+"/", pebble, pebble+"-challtestsrv")
	cmd.Dir = filepath.Join(root, "tools")
	if out, err := cmd.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("building pebble: %w: %s", err, out)
	}
	if err := errors.Join(os.Setenv("POSTERN_BIN", bin), os.Setenv("POSTERN_TEST_PEBBLE", tmp)); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// A directory is a pebble that validates on the devices' port.
type directory struct {
	t       *testing.T
	dir     string
	roots   *x509.CertPool // by which the directory is known
	tlsPort int
	port    int
	adminAt int
	dnsAt   int
	running *process
}

// newDirectory makes what a directory needs, and the DNS server by which every name
// is 127.0.0.1; it is not there before start.
func newDirectory(t *testing.T, tlsPort int) *directory {
	t.Helper()
	d := &directory{t: t, dir: t.TempDir(), tlsPort: tlsPort, port: freePort(t), adminAt: freePort(t), dnsAt: freePort(t)}
	d.certificate()
	spawn(t, d.path("dns.log"), nil, filepath.Join(built().pebble, "pebble-challtestsrv"), "-dnsserver", d.at(d.dnsAt), "-defaultIPv6", "",
		"-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "", "-management", d.at(freePort(t)))
	return d
}

func (d *directory) path(name string) string { return filepath.Join(d.dir, name) }

func (d *directory) at(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// URL is the directory's.
func (d *directory) URL() string { return "https://" + d.at(d.port) + "/dir" }

// certificate makes the directory's own certificate and the root that signed it.
func (d *directory) certificate() {
	d.t.Helper()
	newKey := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			d.t.Fatal(err)
		}
		return k
	}
	write := func(name, kind string, der []byte) {
		if err := os.WriteFile(d.path(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			d.t.Fatal(err)
		}
	}
	rootKey, key := newKey(), newKey()
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "directory root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		NotBefore: root.NotBefore, NotAfter: root.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey)
	if err != nil {
		d.t.Fatal(err)
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, key.Public(), rootKey)
	if err != nil {
		d.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		d.t.Fatal(err)
	}
	write("root.pem", "CERTIFICATE", rootDER)
	write("cert.pem", "CERTIFICATE", leafDER)
	write("key.pem", "PRIVATE KEY", keyDER)
	d.roots = x509.NewCertPool()
	d.roots.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER}))
}

// start runs the directory, which issues for life, and waits until it answers.
func (d *directory) start(life time.Duration) {
	d.t.Helper()
	config := map[string]any{"pebble": map[string]any{
		"listenAddress": d.at(d.port), "managementListenAddress": d.at(d.adminAt), "certificate": d.path("cert.pem"), "privateKey": d.path("key.pem"),
		"httpPort": 1, "tlsPort": d.tlsPort, "keyAlgorithm": "ecdsa", "retryAfter": map[string]any{"authz": 1, "order": 1},
		"profiles": map[string]any{"default": map[string]any{"description": "the only one", "validityPeriod": int(life.Seconds())}},
	}}
	b, err := json.Marshal(config)
	if err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(d.path("pebble.json"), b, 0o600); err != nil {
		d.t.Fatal(err)
	}
	d.running = spawn(d.t, d.path("pebble.log"), []string{"PEBBLE_VA_NOSLEEP=1"}, filepath.Join(built().pebble, "pebble"),
		"-config", d.path("pebble.json"), "-dnsserver", d.at(d.dnsAt), "-strict")
	eventually(d.t, "the directory answers", func() error {
		_, err := d.get(d.URL())
		return err
	})
}

func (d *directory) stop() { d.running.stop() }

// pause has the directory take connections and say nothing; resume ends that.
func (d *directory) pause()  { d.running.signal(syscall.SIGSTOP) }
func (d *directory) resume() { d.running.signal(syscall.SIGCONT) }

// log is what the directory and the DNS server printed.
func (d *directory) log() string {
	a, _ := os.ReadFile(d.path("pebble.log"))
	b, _ := os.ReadFile(d.path("dns.log"))
	return string(a) + string(b)
}

func (d *directory) get(url string) ([]byte, error) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: d.roots}, DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New(resp.Status)
	}
	return io.ReadAll(resp.Body)
}

// issued is the root of what the running directory issues.
func (d *directory) issued() *x509.CertPool {
	d.t.Helper()
	b, err := d.get("https://" + d.at(d.adminAt) + "/roots/0")
	if err != nil {
		d.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(bytes.TrimSpace(b)) {
		d.t.Fatalf("no root: %s", b)
	}
	return pool
}

// A process is a program that runs until stop, or the end of the test.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	ended chan struct{}
}

func spawn(t *testing.T, log string, env []string, name string, args ...string) *process {
	t.Helper()
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: exec.Command(name, args...), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Env = out, out, append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := errors.Join(p.cmd.Start(), out.Close()); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.ended) }()
	t.Cleanup(p.stop)
	return p
}

func (p *process) stop() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// freePort is one that nobody has now.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

// eventually waits for something that takes as long as it takes.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(90 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	t.Fatalf("%s: not within 90 s: %v", what, err)
}
