package services_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// Users that every Debian has, one for each role.
var users = map[string]string{"keyholder": "games", "authority": "daemon", "devices": "bin", "operators": "sys"}

func ids(t *testing.T, name string) (uid, gid int) {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, _ = strconv.Atoi(u.Uid)
	gid, _ = strconv.Atoi(u.Gid)
	return uid, gid
}

// A journal is what a process printed.
type journal struct {
	mu sync.Mutex
	b  strings.Builder
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

// world is a site whose roles a test starts by itself.
type world struct {
	t       *testing.T
	s       *site.Site
	devices net.Listener
	sockets map[string][]*os.File // by role
	names   map[string][]string
	said    *journal
}

// newWorld gives every role its own files. Without root there is one user only, and
// the roles then have to refuse to be services of their own.
func newWorld(t *testing.T) *world {
	t.Helper()
	bin, clean, err := site.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(clean)
	s, end, err := site.New(t.Context(), bin, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(end)
	w := &world{t: t, s: s, sockets: map[string][]*os.File{}, names: map[string][]string{}, said: new(journal)}
	w.devices = w.listen("tcp", "127.0.0.1:0", "devices", "devices")
	w.listen("unix", s.Path("operator.sock"), "operators", "local")
	for _, dir := range []string{"run", "authority", "keyholder"} {
		if err := os.Mkdir(s.Path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, role := range []string{"keyholder", "authority"} {
		w.listen("unix", s.Path("run", role+".sock"), role, role)
		if err := os.Chmod(s.Path("run", role+".sock"), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(s.Config())
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(data), "\nstate: state", "\nstate: authority\nkeyholder: {state: keyholder}\nlinks: {folder: run, authority: daemon, devices: bin, operators: sys}", 1)
	text = strings.Replace(text, "\ndevices:\n", "\ndevices:\n    url: https://"+w.devices.Addr().String()+"\n", 1)
	if err := os.WriteFile(s.Config(), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(filepath.Join(bin, "posternd"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.Path("posternd"), program, 0o755); err != nil { // where every user can run it
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		w.shareOut()
	}
	return w
}

func (w *world) listen(network, address, role, name string) net.Listener {
	w.t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		w.t.Fatal(err)
	}
	f, err := l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		w.t.Fatal(err)
	}
	w.sockets[role], w.names[role] = append(w.sockets[role], f), append(w.names[role], name)
	w.t.Cleanup(func() { _, _ = f.Close(), l.Close() })
	return l
}

// shareOut makes everything readable that is no secret, and gives each secret and
// each folder to its role.
func (w *world) shareOut() {
	for dir := w.s.Path(); dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			w.t.Fatal(err)
		}
	}
	err := filepath.Walk(w.s.Path(), func(path string, info os.FileInfo, err error) error {
		if err != nil || info.Mode().Type() == os.ModeSocket {
			return err
		}
		rel, _ := filepath.Rel(w.s.Path(), path)
		owner := ""
		for prefix, role := range map[string]string{"ceremony/token": "keyholder", "ceremony/hsm-pin": "keyholder", "keyholder": "keyholder", "ceremony/challenge.key": "authority", "authority": "authority"} {
			if rel == prefix || strings.HasPrefix(rel, prefix+"/") {
				owner = role
			}
		}
		switch {
		case owner != "":
			uid, gid := ids(w.t, users[owner])
			if info.IsDir() {
				err = os.Chmod(path, 0o700)
			}
			if err == nil {
				err = os.Chown(path, uid, gid)
			}
		case info.IsDir():
			err = os.Chmod(path, 0o755)
		case strings.HasSuffix(path, ".pem"), strings.HasSuffix(path, ".yaml"), strings.HasSuffix(path, ".jsonl"):
			err = os.Chmod(path, 0o644)
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// start runs a role as the user of that role.
func (w *world) start(role string) *exec.Cmd {
	w.t.Helper()
	words := []string{role}
	if role == "devices" || role == "operators" {
		words = []string{"gate", role}
	}
	args := append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`, w.s.Path("posternd")}, append(words, "--config", w.s.Config())...)
	cmd := exec.Command("/bin/sh", args...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("LISTEN_FDS=%d", len(w.sockets[role])), "LISTEN_FDNAMES="+strings.Join(w.names[role], ":"))
	cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = w.sockets[role], w.said, w.said
	if os.Geteuid() == 0 {
		uid, gid := ids(w.t, users[role])
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// up waits for an answer of the operators' socket.
func (w *world) up() {
	w.t.Helper()
	for began := time.Now(); time.Since(began) < 40*time.Second; time.Sleep(50 * time.Millisecond) {
		if _, err := w.s.Status(w.t.Context()); err == nil {
			return
		}
	}
	w.t.Fatalf("there is no service:\n%s", w.said)
}

func (w *world) enroll(cn string) error {
	c, err := w.s.Challenges(w.t.Context(), "interop", "CN="+cn)
	if err != nil {
		return err
	}
	d, err := w.s.Device(w.t.Context(), "interop")
	if err != nil {
		return err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	_, err = d.Enroll(w.t.Context(), client.Enrollment{Key: key, Subject: pkix.Name{CommonName: cn}, Challenge: []byte(c[0].Challenge)})
	return err
}

// TestEachRoleIsAServiceOfItsOwn: users that differ, links by name, and a start in
// any order.
func TestEachRoleIsAServiceOfItsOwn(t *testing.T) {
	w := newWorld(t)
	if os.Geteuid() != 0 {
		cmd := w.start("authority")
		_ = cmd.Wait()
		if cmd.ProcessState.ExitCode() == 0 {
			t.Errorf("one user for all roles: it ran: %s", w.said)
		}
		return
	}
	running := map[string]*exec.Cmd{}
	for _, role := range []string{"operators", "devices", "authority", "keyholder"} { // the last first
		running[role] = w.start(role)
	}
	w.up()
	if err := w.enroll("a.demo.example"); err != nil {
		t.Fatalf("%v\n%s", err, w.said)
	}
	w.strangers()
	// One role is killed, and started again by whoever manages it.
	for _, role := range []string{"keyholder", "authority"} {
		_ = running[role].Process.Kill()
		_ = running[role].Wait()
		running[role] = w.start(role)
		w.up()
		for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
			err := w.enroll(role + ".demo.example")
			if err == nil {
				break
			}
			if time.Since(began) > 30*time.Second {
				t.Fatalf("after the %s was started again: %v\n%s", role, err, w.said)
			}
		}
	}
	for _, role := range []string{"devices", "operators", "authority", "keyholder"} {
		_ = running[role].Process.Signal(syscall.SIGTERM)
		if err := running[role].Wait(); err != nil {
			t.Errorf("the %s: %v\n%s", role, err, w.said)
		}
	}
	if out, errOut, code := w.s.Postern(t.Context(), nil, "audit", "verify"); code != 0 || !strings.Contains(out, "is whole") {
		t.Errorf("postern audit verify: exit %d: %s%s", code, out, errOut)
	}
}

// strangers connects as users that have no role, or another one.
func (w *world) strangers() {
	w.t.Helper()
	for _, role := range []string{"keyholder", "authority"} {
		c, err := net.Dial("unix", w.s.Path("run", role+".sock"))
		if err != nil {
			w.t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if said, _ := io.ReadAll(c); !strings.Contains(string(said), "has no role here") { // this test is root
			w.t.Errorf("the %s tells a stranger %q", role, said)
		}
		_ = c.Close()
	}
}
