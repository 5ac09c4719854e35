package listen_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-pki/postern/tls/listen"
)

// whoami answers with the identity that the kernel gave the peer.
func whoami(w http.ResponseWriter, r *http.Request) {
	p, ok := listen.PeerOf(r.Context())
	_, _ = fmt.Fprint(w, ok, p.PID, p.UID, p.GID)
}

func ask(t *testing.T, path string) (string, error) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	resp, err := client.Get("http://local/")
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func local(t *testing.T, path string) *listen.Local {
	t.Helper()
	s, err := listen.NewLocal(path, 0o660, http.HandlerFunc(whoami), nil)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error("Serve:", err)
		}
	})
	return s
}

func TestLocalKnowsItsPeer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "operator.sock")
	s := local(t, path)
	got, err := ask(t, path)
	if want := fmt.Sprint(true, os.Getpid(), os.Getuid(), os.Getgid()); err != nil || got != want {
		t.Errorf("peer %q, %v; want %q", got, err, want)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("beside the socket: %v, %v", entries, err)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the shutdown: %v", err)
	}
}

func TestPeerIsNotKnownElsewhere(t *testing.T) {
	if p, ok := listen.PeerOf(t.Context()); ok {
		t.Error(p)
	}
	pk := newPKI(t)
	s, _ := serve(t, pk, func(o *listen.Options) { o.Handler = http.HandlerFunc(whoami) })
	resp, err := get(t, s, pk.client())
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(resp.Body); !strings.HasPrefix(string(b), "false") {
		t.Errorf("over TCP the peer is %q", b)
	}
}

func TestALivingSocketIsLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "operator.sock")
	local(t, path)
	if _, err := listen.NewLocal(path, 0o660, http.HandlerFunc(whoami), nil); !errors.Is(err, listen.ErrInUse) {
		t.Errorf("NewLocal: %v, want ErrInUse", err)
	}
	if _, err := ask(t, path); err != nil {
		t.Error("the first server:", err)
	}
}

func TestAStaleSocketIsReplacedAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // as a process that was killed leaves it
	_ = l.Close()
	local(t, stale)
	if _, err := ask(t, stale); err != nil {
		t.Error(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen.NewLocal(file, 0o660, http.HandlerFunc(whoami), nil); !errors.Is(err, listen.ErrNotSocket) {
		t.Errorf("NewLocal over a file: %v", err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("the file: %q, %v", b, err)
	}
}

// TestASuccessorsSocketStays has a second server take the path before the first
// one is closed.
func TestASuccessorsSocketStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "operator.sock")
	first := local(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	local(t, path)
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if _, err := ask(t, path); err != nil {
		t.Error("the successor:", err)
	}
}

// TestInheritedSockets runs this test again as the child of something like
// systemd, with one listening socket under the name "devices".
func TestInheritedSockets(t *testing.T) {
	if os.Getenv("LISTEN_FDNAMES") != "" {
		t.Setenv("LISTEN_PID", fmt.Sprint(os.Getpid())) // which a shell would have set before exec
		all, err := listen.Inherited()
		if err != nil || len(all) != 1 || all["devices"] == nil || os.Getenv("LISTEN_FDS") != "" {
			t.Fatalf("inherited %v, %v", all, err)
		}
		fmt.Println("ADDR", all["devices"].Addr())
		return
	}
	if all, err := listen.Inherited(); err != nil || len(all) != 0 {
		t.Errorf("without systemd: %v, %v", all, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	cmd := exec.Command(os.Args[0], "-test.run=^TestInheritedSockets$")
	cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "LISTEN_FDNAMES=devices")
	cmd.ExtraFiles = []*os.File{f}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "ADDR "+l.Addr().String()) {
		t.Errorf("child: %v\n%s", err, out)
	}
}
