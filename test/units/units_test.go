// Package units checks the systemd units as systemd reads them: that they are
// valid, and that the sandbox they describe is as tight as we say it is.
//
// # What a caller may rely on
//
// The tools are systemd's own and work offline, on a copy of the units in which
// the program is one that exists here.
//
// # What it does not protect against
//
// Nothing is started: whether a PKCS#11 module can live in the sandbox shows on a
// machine that has one.
package units

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const source = "../../systemd"

// exposure is the worst that "systemd-analyze security" may say, in tenths.
const exposure = "20"

// units are those that are installed.
func units() []string {
	return []string{"posternd.service", "posternd.socket", "posternd-operators.socket"}
}

// install copies the units to a new folder, with a program that exists in place of
// ours, and returns it. Drop-ins come along if asked for.
func install(t *testing.T, dropIns bool) string {
	t.Helper()
	dir := t.TempDir()
	program, err := exec.LookPath("true")
	if err != nil {
		t.Fatal(err)
	}
	if built, err := filepath.Abs("../../bin/posternd"); err == nil {
		if _, err := os.Stat(built); err == nil {
			program = built
		}
	}
	names, err := filepath.Glob(filepath.Join(source, "*.s*"))
	if err != nil {
		t.Fatal(err)
	}
	if dropIns {
		more, err := filepath.Glob(filepath.Join(source, "*.d", "segment.conf"))
		if err != nil || len(more) != len(units()) {
			t.Fatalf("drop-ins %v, %v", more, err)
		}
		names = append(names, more...)
	}
	for _, name := range names {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if st.IsDir() {
			continue
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		rel, err := filepath.Rel(source, name)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, rel)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, bytes.ReplaceAll(b, []byte("/usr/bin/posternd"), []byte(program)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// analyze runs systemd-analyze, which has to be there: a check that does not run
// is none.
func analyze(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Fatal("systemd-analyze is needed (package systemd): ", err)
	}
	cmd := exec.Command(tool, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":", "SYSTEMD_COLORS=0", "SYSTEMD_PAGER=")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestUnitsAreValid(t *testing.T) {
	for name, dropIns := range map[string]bool{"as shipped": false, "with the segment's drop-ins": true} {
		t.Run(name, func(t *testing.T) {
			dir := install(t, dropIns)
			for _, u := range units() {
				// verify warns about what it ignores, and says nothing when all is well.
				if out, err := analyze(t, dir, "verify", "--man=no", "--recursive-errors=no", filepath.Join(dir, u)); err != nil || out != "" {
					t.Errorf("%s: %v\n%s", u, err, out)
				}
			}
		})
	}
}

func TestAMisspelledUnitIsNoticed(t *testing.T) {
	dir := install(t, false)
	u := filepath.Join(dir, "posternd.service")
	b, err := os.ReadFile(u)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(u, bytes.Replace(b, []byte("ProtectHome="), []byte("ProtectHomes="), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := analyze(t, dir, "verify", "--man=no", "--recursive-errors=no", u); err == nil && out == "" {
		t.Error("verify is silent about ProtectHomes=")
	}
}

func TestTheSandboxIsTight(t *testing.T) {
	for name, dropIns := range map[string]bool{"as shipped": false, "with the segment's drop-ins": true} {
		t.Run(name, func(t *testing.T) {
			u := filepath.Join(install(t, dropIns), "posternd.service")
			out, err := analyze(t, filepath.Dir(u), "security", "--no-pager", "--offline=true", "--threshold="+exposure, u)
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			lines := strings.Split(strings.TrimSpace(out), "\n")
			t.Log(strings.TrimSpace(lines[len(lines)-1]))
		})
	}
}

// TestALooseSandboxIsNoticed makes sure that the threshold is not blind.
func TestALooseSandboxIsNoticed(t *testing.T) {
	dir := t.TempDir()
	u := filepath.Join(dir, "loose.service")
	if err := os.WriteFile(u, []byte("[Service]\nExecStart=/bin/true\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := analyze(t, dir, "security", "--no-pager", "--offline=true", "--threshold="+exposure, u); err == nil {
		t.Errorf("a unit without a sandbox passes:\n%s", out)
	}
}

// setting returns the values of a key in a unit file, in order.
func setting(t *testing.T, name, key string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(source, name))
	if err != nil {
		t.Fatal(err)
	}
	var values []string
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), key+"="); ok {
			values = append(values, v)
		}
	}
	return values
}

func TestWhatTheProgramReliesOn(t *testing.T) {
	for _, tt := range []struct{ unit, key, want string }{
		{"posternd.socket", "FileDescriptorName", "devices"},
		{"posternd.socket", "Service", "posternd.service"},
		{"posternd-operators.socket", "FileDescriptorName", "operators"},
		{"posternd-operators.socket", "Service", "posternd.service"},
		{"posternd.service", "Type", "notify"},
		{"posternd.service", "StateDirectory", "postern"},
		{"posternd.service", "RuntimeDirectory", "postern"},
		{"posternd.service", "LoadCredential", "hsm-pin:/etc/postern/credentials/hsm-pin challenge-key:/etc/postern/credentials/challenge-key"},
		{"posternd.service", "IPAddressDeny", "any"},
		{"posternd.service", "Environment", "POSTERN_BOOT_ID=%b"}, // ProcSubset= hides it; secrets would be seen there
		{"posternd.service", "RestartPreventExitStatus", "1 2 78"},
	} {
		if got := strings.Join(setting(t, tt.unit, tt.key), " "); got != tt.want {
			t.Errorf("%s: %s=%q, want %q", tt.unit, tt.key, got, tt.want)
		}
	}
	for _, u := range units() {
		drop := filepath.Join(u+".d", "segment.conf")
		if deny, allow := setting(t, drop, "IPAddressDeny"), setting(t, drop, "IPAddressAllow"); len(deny) != 1 || deny[0] != "any" || len(allow) == 0 {
			t.Errorf("%s: denies %v, allows %v", drop, deny, allow)
		}
	}
}

// TestUsersAndFoldersAreMade lets systemd's tools build them in an empty root;
// where we are not root they cannot give files away, and only say what they would.
func TestUsersAndFoldersAreMade(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"sysusers.d", "tmpfiles.d"} {
		to := filepath.Join(root, "usr/lib", dir)
		if err := os.CopyFS(to, os.DirFS(filepath.Join(source, dir))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	run := func(tool string, args ...string) string {
		out, err := exec.Command(tool, append(args, "--root="+root, "postern.conf")...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", tool, err, out)
		}
		return string(out)
	}
	if os.Geteuid() != 0 {
		if out := run("systemd-sysusers", "--dry-run"); !strings.Contains(out, "postern") {
			t.Errorf("sysusers would do %q", out)
		}
		return
	}
	run("systemd-sysusers")
	run("systemd-tmpfiles", "--create")
	passwd, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
	if err != nil || !strings.Contains(string(passwd), "postern:") {
		t.Errorf("passwd %q, %v", passwd, err)
	}
	for path, mode := range map[string]os.FileMode{"etc/postern": 0o750, "etc/postern/profiles.d": 0o750, "etc/postern/credentials": 0o700, "var/lib/postern": 0o700} {
		st, err := os.Stat(filepath.Join(root, path))
		if err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, want mode %o", path, err, mode)
		}
	}
}
