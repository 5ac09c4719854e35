package interop

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-pki/postern/test/site"
)

// patience is for what certmonger does in its own time: it looks at a CA, makes a
// key, and asks, as one small program after the other.
const patience = 60 * time.Second

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=%s</listen>
  <auth>EXTERNAL</auth>
  <policy context="default"><allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_type="signal"/><allow send_destination="*"/><allow receive_sender="*"/></policy>
</busconfig>
`

// A monger is a certmonger on a bus of its own, which ends with the test.
type monger struct {
	t   *testing.T
	dir string
	env []string
	url string
}

// startCertmonger runs the bus and the service, with all of their state in a folder. A
// file of CAs that is given to certmonger is for its questions about the CA; when it
// asks for a certificate it looks at the system's.
func startCertmonger(t *testing.T) *monger {
	t.Helper()
	dir := must[string](t)(os.MkdirTemp("", "cm-")) // a socket's path has to be short
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	m := &monger{t: t, dir: dir}
	m.env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS=unix:path="+m.file("bus"), "TMPDIR="+dir, "HOME="+dir, "CERTMONGER_SYSTEM_LOCK_FILE="+m.file("lock"))
	for name, variable := range map[string]string{"config": "CERTMONGER_CONFIG_DIR", "requests": "CERTMONGER_REQUESTS_DIR", "cas": "CERTMONGER_CAS_DIR", "local": "CERTMONGER_LOCAL_CA_DIR"} {
		if err := os.Mkdir(m.file(name), 0o700); err != nil {
			t.Fatal(err)
		}
		m.env = append(m.env, variable+"="+m.file(name))
	}
	write(t, dir, "bus.conf", fmt.Appendf(nil, busConfig, m.file("bus")))
	m.start("dbus-daemon", "dbus-daemon", "--config-file="+m.file("bus.conf"), "--nofork", "--nopidfile")
	m.until("the bus", func() bool { _, err := os.Stat(m.file("bus")); return err == nil })
	prefix, target, end, err := testSite.Trusting(t.Context(), dir, target(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(end)
	m.url = target
	m.start("certmonger", append(prefix, "certmonger", "-S", "-n", "-d", "3", "-p", m.file("pid"))...)
	m.until("certmonger", func() bool { _, code := m.getcert("list-cas"); return code == 0 })
	return m
}

func (m *monger) file(name string) string { return filepath.Join(m.dir, name) }

// start runs a program until the test ends; name is that of its journal.
func (m *monger) start(name string, args ...string) {
	m.t.Helper()
	journal := must[*os.File](m.t)(os.Create(m.file(name + ".log")))
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = m.env, m.dir, journal, journal
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // its helpers too
		_ = cmd.Wait()
		_ = journal.Close()
	})
}

// getcert is the command by which a user talks to certmonger.
func (m *monger) getcert(args ...string) (out string, code int) {
	cmd := exec.CommandContext(m.t.Context(), "getcert", append(args, "-S")...)
	cmd.Env, cmd.Dir = m.env, m.dir
	b, _ := cmd.CombinedOutput()
	return string(b), cmd.ProcessState.ExitCode()
}

func (m *monger) mustGetcert(args ...string) {
	m.t.Helper()
	if out, code := m.getcert(args...); code != 0 {
		m.t.Fatalf("getcert %s: exit %d: %s", strings.Join(args, " "), code, out)
	}
}

func (m *monger) until(what string, done func() bool) {
	m.t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			list, _ := m.getcert("list", "-v")
			journal, _ := os.ReadFile(m.file("certmonger.log"))
			m.t.Fatalf("%s: not within %v: %s\n%s", what, patience, list, journal[max(0, len(journal)-4000):])
		}
	}
}

// watched waits until certmonger has a certificate other than before, and watches it.
func (m *monger) watched(cert, before string) (now string) {
	m.t.Helper()
	m.until(cert, func() bool {
		list, _ := m.getcert("list", "-f", cert)
		if !strings.Contains(list, "status: MONITORING") {
			return false
		}
		now = serial(m.t, cert)
		return now != before
	})
	return now
}

// TestCertmonger enrolls and renews with certmonger, which finds out by itself what it
// needs to know of the CA, or is given its files. It signs renewals with its
// certificate, as PKCSReq, repeats the challenge that is spent, and sends a
// transactionID again.
// Covers: S-002, S-003, S-112, S-113, S-115, S-076
func TestCertmonger(t *testing.T) {
	m := startCertmonger(t)
	write(t, m.dir, "cacert.der", newLibrary(t, "interop").get("GetCACert"))
	openssl(t, m.dir, `openssl pkcs7 -inform DER -in cacert.der -print_certs -out all.pem; csplit -sz -f ra- -b %%d.pem all.pem '/^subject/' '{*}'`)
	for name, files := range map[string][]string{
		"by-files":     {"-r", m.file("ra-1.pem"), "-I", m.file("ra-0.pem"), "-N", m.file("ra-2.pem")},
		"by-discovery": nil,
	} {
		t.Run(name, func(t *testing.T) {
			m := &monger{t: t, dir: m.dir, env: m.env, url: m.url}
			cn := name + ".demo.example"
			m.mustGetcert(append([]string{"add-scep-ca", "-c", name, "-u", m.url, "-R", testSite.CA()}, files...)...)
			write(t, m.dir, name+".word", []byte(challenge(t, "interop", cn)))
			cert := m.file(name + ".pem")
			m.mustGetcert("request", "-c", name, "-k", m.file(name+".key"), "-f", cert, "-g", "2048", "-N", "CN="+cn, "-l", m.file(name+".word"))
			first := m.watched(cert, "")
			m.mustGetcert("resubmit", "-f", cert)
			second := m.watched(cert, first)
			if out, errOut, code := site.Run(t.Context(), nil, "openssl", "verify", "-CAfile", testSite.CA(), cert); code != 0 {
				t.Errorf("openssl verify: %s%s", out, errOut)
			}
			out, errOut, code := testSite.Postern(t.Context(), nil, "cert", "show", strings.ToLower(strings.TrimPrefix(second, "serial=")), "--output", "json")
			if code != 0 || !strings.Contains(out, `"renewal":1`) && !strings.Contains(out, `"renewal": 1`) {
				t.Errorf("the second certificate is no renewal: %s%s", out, errOut)
			}
		})
	}
}
