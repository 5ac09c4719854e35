package sandbox_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-pki/postern/appliance/sandbox"
	"github.com/postern-pki/postern/test/softhsm"
)

// works fails for each step that did not end as it should: well, unless except
// says otherwise.
func works(t *testing.T, r result, except map[string]string) {
	t.Helper()
	if r.Refusal != "" {
		t.Fatal(r.Refusal)
	}
	for step, said := range r.Said {
		if said != except[step] {
			t.Errorf("%s: %q, want %q", step, said, except[step])
		}
	}
	for step := range except {
		if _, tried := r.Said[step]; !tried {
			t.Errorf("%s was not tried", step)
		}
	}
}

// selfSigned is a certificate for 127.0.0.1, and its key.
func selfSigned(t *testing.T) (certificate, key string) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, priv.Public(), priv)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}

// plain is a listener as the service manager makes them: Go's own would be
// Multipath TCP.
func plain(t *testing.T) *net.TCPListener {
	t.Helper()
	var c net.ListenConfig
	c.SetMultipathTCP(false)
	l, err := c.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.(*net.TCPListener)
}

// serveAsGate has a child serve one device, and lets it try to reach another
// service through the sockets that it has.
func serveAsGate(t *testing.T, p *sandbox.Profile, dial string) result {
	t.Helper()
	l, elsewhere := plain(t), plain(t)
	listener, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer func() { _ = ours.Close() }()
	certificate, key := selfSigned(t)
	o := order{Profile: p, Job: "gate", With: map[string]string{"certificate": certificate, "key": key, "elsewhere": elsewhere.Addr().String(), "dial": dial}}
	done, err := start(t, exec.Command(os.Args[0]), o, listener, theirs)
	if err != nil {
		t.Fatal(err)
	}
	_, _, _ = listener.Close(), theirs.Close(), l.Close()
	ping := make([]byte, 4)
	if _, err := io.ReadFull(ours, ping); err != nil || string(ping) != "ping" {
		t.Errorf("the link: %q, %v", ping, err)
	}
	device := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+l.Addr().String()+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := device.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = got.Body.Close() }()
	served := make([]byte, 6)
	if _, err := io.ReadFull(got.Body, served); err != nil || string(served) != "served" {
		t.Errorf("the device got %q, %v", served, err)
	}
	return done()
}

func TestAGateServesAndReachesNobody(t *testing.T) {
	link := filepath.Join(t.TempDir(), "link.sock")
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", link)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	connection, listener := "*net.TCPConn ", "*net.TCPListener "

	t.Run("no sandbox", func(t *testing.T) {
		r := serveAsGate(t, nil, link)
		if r.Said["serve"] != "" || r.Said[connection+"connect"] != "" || r.Said[listener+"connect"] != "" {
			t.Errorf("without a sandbox a socket that was given is of use to an intruder: %v", r.Said)
		}
	})
	t.Run("inherited links", func(t *testing.T) {
		gate := sandbox.Gate("devices", nil, nil)
		works(t, serveAsGate(t, &gate, ""), map[string]string{
			connection + "connect": "EPERM", listener + "connect": "EPERM", connection + "first packet": "EPERM", listener + "first packet": "EPERM",
		})
	})
	t.Run("named links", func(t *testing.T) {
		gate := sandbox.Gate("devices", []string{filepath.Dir(link)}, nil)
		works(t, serveAsGate(t, &gate, link), map[string]string{
			"named link": "", connection + "connect": "EACCES", listener + "connect": "EACCES", connection + "first packet": "EPERM", listener + "first packet": "EPERM",
		})
	})
}

func TestTheAuthorityKeepsItsStateAndLog(t *testing.T) {
	p := newPlace(t)
	profile := sandbox.Authority(p.state, []string{p.config}, nil, false)
	r := run(t, order{Profile: &profile, Job: "authority", With: map[string]string{"state": p.state, "config": p.config}})
	works(t, r, map[string]string{"VACUUM": "", "fdatasync": "", "move": "", "sync of the folder": "", "configuration": ""})
	if _, err := os.Stat(filepath.Join(p.state, "audit", "segments", "0")); err != nil {
		t.Error(err)
	}
}

func TestTheKeyholderSigns(t *testing.T) {
	p, token := newPlace(t), softhsm.New(t)
	pin := token.PINFile(t)
	keys := sandbox.Known(token.Module)
	keys.State, keys.Secrets = p.state, []string{pin}
	profile := sandbox.Keyholder(keys)
	with := map[string]string{"state": p.state, "pin": pin, "module": token.Module, "label": token.Label}
	r := run(t, order{Profile: &profile, Job: "keyholder", With: with})
	works(t, r, map[string]string{"login": "", "new key": "", "sign": "", "head": ""})

	t.Run("not without its token's folder", func(t *testing.T) {
		profile.WriteIf = nil
		r := run(t, order{Profile: &profile, Job: "keyholder", With: with})
		if said, tried := r.Said["sign"]; tried && said == "" {
			t.Errorf("it signed: %v", r.Said)
		}
	})
}

// nameServer answers every question with 192.0.2.1.
func nameServer(t *testing.T) string {
	t.Helper()
	c, err := new(net.ListenConfig).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		for {
			q := make([]byte, 512)
			n, from, err := c.ReadFrom(q)
			if err != nil {
				return
			}
			end := 12 // behind the header: the name, its type and class
			for end < n && q[end] != 0 {
				end += 1 + int(q[end])
			}
			end += 5
			if end > n {
				continue
			}
			a := append([]byte(nil), q[:end]...)
			a[2], a[3] = 0x84, 0 // an answer, with authority
			copy(a[6:12], make([]byte, 6))
			if q[end-3] == 1 { // type A
				a[7] = 1
				a = append(a, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1)
			}
			_, _ = c.WriteTo(a, from)
		}
	}()
	return c.LocalAddr().String()
}

func TestTheCourierReachesTheWorld(t *testing.T) {
	p, outside := newPlace(t), plain(t)
	go func() {
		for {
			c, err := outside.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello\n")
			_ = c.Close()
		}
	}()
	with := map[string]string{"state": p.state, "names": nameServer(t), "outside": outside.Addr().String()}
	profile := sandbox.Courier(p.state, nil, nil)
	r := run(t, order{Profile: &profile, Job: "courier", With: with})
	works(t, r, map[string]string{"address": "192.0.2.1", "heard": "hello\n", "name in C": "", "resolv.conf": "", "state": "", "listen": r.Said["listen"]})
	if !strings.Contains(r.Said["listen"], "EPERM") {
		t.Errorf("it listens: %q", r.Said["listen"])
	}
}
