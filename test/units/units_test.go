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
	"slices"
	"strings"
	"testing"
)

const source = "../../systemd"

// A role is how one process runs in production.
type role struct {
	command    string
	sockets    []string // the units of its sockets
	link       string   // how it is called by the other roles; "" is not at all
	callers    []string // the roles that may
	credential string
	state      bool
	network    bool
	exposure   string // the worst that "systemd-analyze security" may say, in tenths
}

// roles are by the name of the unit, without posternd- and .service.
func roles() map[string]role {
	return map[string]role{
		"keyholder": {
			command: "keyholder", sockets: []string{"posternd-keyholder.socket"}, link: "keyholder", callers: []string{"authority", "devices", "operators"},
			credential: "hsm-pin", state: true, exposure: "6",
		},
		"authority": {
			command: "authority", sockets: []string{"posternd-authority.socket"}, link: "authority", callers: []string{"devices", "operators"},
			credential: "challenge-key", state: true, exposure: "6",
		},
		"devices":   {command: "gate devices", sockets: []string{"posternd-devices.socket"}, exposure: "4"},
		"operators": {command: "gate operators", sockets: []string{"posternd-operators.socket", "posternd-local.socket"}, exposure: "6"},
		"courier": {
			command: "courier", sockets: []string{"posternd-courier.socket"}, link: "courier", callers: []string{"authority", "devices", "operators"},
			state: true, network: true, exposure: "15",
		},
	}
}

func service(role string) string { return "posternd-" + role + ".service" }

// units are all that are installed.
func units(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, kind := range []string{"service", "socket", "target"} {
		names, err := filepath.Glob(filepath.Join(source, "*."+kind))
		if err != nil || len(names) == 0 {
			t.Fatalf("units: %v, %v", names, err)
		}
		for _, n := range names {
			all = append(all, filepath.Base(n))
		}
	}
	return all
}

// restricted are the units that have a drop-in for a site's networks.
func restricted() []string {
	return []string{
		"posternd.service", "posternd.socket", "posternd-single-operators.socket",
		"posternd-devices.socket", "posternd-operators.socket", "posternd-courier.service",
	}
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
	var names []string
	for _, u := range units(t) {
		names = append(names, filepath.Join(source, u))
	}
	if dropIns {
		more, err := filepath.Glob(filepath.Join(source, "*.d", "segment.conf"))
		if err != nil || len(more) != len(restricted()) {
			t.Fatalf("drop-ins %v, %v", more, err)
		}
		names = append(names, more...)
	}
	for _, name := range names {
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
			for _, u := range units(t) {
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
	worst := map[string]string{"posternd.service": "6"}
	for name, r := range roles() {
		worst[service(name)] = r.exposure
	}
	for name, dropIns := range map[string]bool{"as shipped": false, "with the segment's drop-ins": true} {
		t.Run(name, func(t *testing.T) {
			dir := install(t, dropIns)
			for _, u := range units(t) {
				if filepath.Ext(u) != ".service" {
					continue
				}
				out, err := analyze(t, dir, "security", "--no-pager", "--offline=true", "--threshold="+worst[u], filepath.Join(dir, u))
				if err != nil {
					t.Errorf("%s: %v\n%s", u, err, out)
				}
				lines := strings.Split(strings.TrimSpace(out), "\n")
				t.Log(strings.TrimSpace(lines[len(lines)-1]))
			}
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
	if out, err := analyze(t, dir, "security", "--no-pager", "--offline=true", "--threshold=20", u); err == nil {
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

// words returns a setting's values as one list.
func words(t *testing.T, name, key string) []string {
	t.Helper()
	return strings.Fields(strings.Join(setting(t, name, key), " "))
}

func TestWhatTheProgramReliesOn(t *testing.T) {
	for _, tt := range []struct{ unit, key, want string }{
		{"posternd.socket", "FileDescriptorName", "devices"},
		{"posternd.socket", "Service", "posternd.service"},
		{"posternd-single-operators.socket", "FileDescriptorName", "operators"},
		{"posternd-single-operators.socket", "Service", "posternd.service"},
		{"posternd.service", "Type", "notify"},
		{"posternd.service", "StateDirectory", "postern/authority postern/keyholder postern/courier"},
		{"posternd.service", "RuntimeDirectory", "postern"},
		{"posternd.service", "LoadCredential", "hsm-pin:/etc/postern/credentials/hsm-pin challenge-key:/etc/postern/credentials/challenge-key"},
		{"posternd.service", "IPAddressDeny", "any"},
		{"posternd.service", "Environment", "POSTERN_BOOT_ID=%b"}, // ProcSubset= hides it; secrets would be seen there
		{"posternd.service", "RestartPreventExitStatus", "1 2 78"},
		{"posternd.service", "OnFailure", "posternd-halted.target"},
		{"posternd-halted.target", "Conflicts", "posternd.socket posternd-single-operators.socket"},
		{"posternd-authority.service", "Environment", "POSTERN_BOOT_ID=%b"},
		{"posternd-devices.socket", "FileDescriptorName", "devices"},
		{"posternd-devices.socket", "ListenStream", "8443"},
		{"posternd-operators.socket", "FileDescriptorName", "operators"},
		{"posternd-operators.socket", "ListenStream", "9443"},
		{"posternd-local.socket", "FileDescriptorName", "local"},
		{"posternd-local.socket", "ListenStream", "/run/postern/operators.sock"},
	} {
		if got := strings.Join(setting(t, tt.unit, tt.key), " "); got != tt.want {
			t.Errorf("%s: %s=%q, want %q", tt.unit, tt.key, got, tt.want)
		}
	}
	for _, u := range restricted() {
		drop := filepath.Join(u+".d", "segment.conf")
		deny, allow := words(t, drop, "IPAddressDeny"), setting(t, drop, "IPAddressAllow")
		if len(deny) != 1 || deny[0] != "any" || len(allow) == 0 {
			t.Errorf("%s: denies %v, allows %v", drop, deny, allow)
		}
	}
}

// TestEachRoleIsAProcessOfItsOwn reads from the units what a role gets.
func TestEachRoleIsAProcessOfItsOwn(t *testing.T) {
	users := map[string]string{"postern": "posternd.service"}
	for name, r := range roles() {
		u := service(name)
		is := func(key, want string) {
			t.Helper()
			if got := strings.Join(setting(t, u, key), " "); got != want {
				t.Errorf("%s: %s=%q, want %q", u, key, got, want)
			}
		}
		is("ExecStart", "/usr/bin/posternd "+r.command+" --config /etc/postern/postern.yaml")
		is("User", "postern-"+name)
		is("Group", "postern-"+name)
		is("Sockets", strings.Join(r.sockets, " "))
		is("Requires", strings.Join(r.sockets, " "))
		is("Restart", "always")
		is("RestartPreventExitStatus", "1 2 78")
		is("RestartSec", "100ms")
		is("PartOf", "postern.target")
		if r.credential != "" {
			is("LoadCredential", r.credential+":/etc/postern/credentials/"+r.credential)
		} else {
			is("LoadCredential", "")
		}
		is("LoadCredentialEncrypted", "")
		if r.state {
			is("StateDirectory", "postern/"+name)
			is("StateDirectoryMode", "0700")
		} else {
			is("StateDirectory", "")
		}
		if r.network {
			is("PrivateNetwork", "")
			is("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6")
			is("SocketBindDeny", "any")
		} else {
			is("PrivateNetwork", "yes")
			is("RestrictAddressFamilies", "AF_UNIX")
			is("IPAddressDeny", "any")
		}
		if other, taken := users["postern-"+name]; taken {
			t.Errorf("%s and %s have one user", u, other)
		}
		users["postern-"+name] = u
		for _, s := range r.sockets {
			if got := setting(t, s, "Service"); len(got) != 1 || got[0] != u {
				t.Errorf("%s belongs to %v, want %s", s, got, u)
			}
		}
		if !slices.Contains(words(t, "postern.target", "Wants"), u) {
			t.Errorf("postern.target does not start %s", u)
		}
	}
	if services, err := filepath.Glob(filepath.Join(source, "posternd-*.service")); err != nil || len(services) != len(roles()) {
		t.Errorf("units of roles: %v, %v", services, err)
	}
}

// TestARoleIsCalledByItsCallersAlone works out from the users and groups of the units
// who may connect to which socket.
func TestARoleIsCalledByItsCallersAlone(t *testing.T) {
	callers := map[string][]string{"posternd-local.socket": {}} // people, and no role
	for _, r := range roles() {
		if r.link == "" {
			continue
		}
		u := "posternd-" + r.link + ".socket"
		callers[u] = r.callers
		for key, want := range map[string]string{"ListenStream": "/run/postern/" + r.link + ".sock", "FileDescriptorName": r.link} {
			if got := strings.Join(setting(t, u, key), " "); got != want {
				t.Errorf("%s: %s=%q, want %q", u, key, got, want)
			}
		}
	}
	for u, want := range callers {
		owner, group, mode := setting(t, u, "SocketUser"), setting(t, u, "SocketGroup"), setting(t, u, "SocketMode")
		if len(owner) != 1 || owner[0] != "root" || len(group) != 1 || len(mode) != 1 || mode[0] != "0660" {
			t.Errorf("%s is of %v:%v, mode %v", u, owner, group, mode)
			continue
		}
		for name := range roles() {
			may := slices.Contains(append(words(t, service(name), "SupplementaryGroups"), words(t, service(name), "Group")...), group[0])
			if may != slices.Contains(want, name) {
				t.Errorf("%s may connect to %s: %v", name, u, may)
			}
		}
	}
}

// TestEverySandboxHasTheSameWalls keeps one unit from falling behind when another is
// made tighter: what posternd.service has, each role has.
func TestEverySandboxHasTheSameWalls(t *testing.T) {
	for _, key := range []string{
		"NoNewPrivileges", "CapabilityBoundingSet", "AmbientCapabilities", "ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "DevicePolicy",
		"PrivateIPC", "ProtectHostname", "ProtectClock", "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups",
		"ProtectProc", "ProcSubset", "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID", "RemoveIPC", "LockPersonality",
		"MemoryDenyWriteExecute", "KeyringMode", "SystemCallArchitectures", "SystemCallFilter", "SystemCallErrorNumber", "LimitCORE", "MemorySwapMax", "UMask",
	} {
		want := setting(t, "posternd.service", key)
		if len(want) == 0 {
			t.Errorf("posternd.service has no %s", key)
		}
		for name := range roles() {
			if got := setting(t, service(name), key); !slices.Equal(got, want) {
				t.Errorf("%s: %s=%q, want %q", service(name), key, got, want)
			}
		}
	}
	// Without these the roles cannot bind themselves.
	allowed := words(t, "posternd.service", "SystemCallFilter")
	for _, call := range []string{"seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"} {
		if !slices.Contains(allowed, call) {
			t.Errorf("%s is not allowed", call)
		}
	}
}

// TestAWrongPINIsNotTriedByCallers: a socket starts its service again at the next
// connection, whatever the service said when it ended.
func TestAWrongPINIsNotTriedByCallers(t *testing.T) {
	for _, u := range []string{"posternd.service", "posternd-keyholder.service"} {
		target := strings.Join(setting(t, u, "OnFailure"), " ")
		if target == "" {
			t.Errorf("%s: its sockets would start it again", u)
			continue
		}
		if got, want := words(t, target, "Conflicts"), words(t, u, "Sockets"); !slices.Equal(got, want) {
			t.Errorf("%s closes %v, want %v", target, got, want)
		}
		if setting(t, u, "StartLimitBurst") == nil || setting(t, u, "StartLimitIntervalSec") == nil {
			t.Errorf("%s is started without end", u)
		}
	}
}

// TestTheFirewallKnowsThePorts compares the example with the sockets.
func TestTheFirewallKnowsThePorts(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(source, "nftables", "postern.nft"))
	if err != nil {
		t.Fatal(err)
	}
	for u, set := range map[string]string{"posternd-devices.socket": "@devices4", "posternd.socket": "@devices4", "posternd-operators.socket": "@operators4", "posternd-single-operators.socket": "@operators4"} {
		port := strings.Join(setting(t, u, "ListenStream"), " ")
		if line := "tcp dport " + port + " ip saddr " + set; !strings.Contains(string(b), line) {
			t.Errorf("%s listens on %s, and the example has no line %q", u, port, line)
		}
	}
	if user := strings.Join(setting(t, "posternd-courier.service", "User"), " "); !strings.Contains(string(b), `meta skuid "`+user+`"`) {
		t.Errorf("the example does not let %s out", user)
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
	names := map[string]bool{}
	for _, u := range units(t) {
		for _, key := range []string{"User", "Group", "SupplementaryGroups", "SocketUser", "SocketGroup"} {
			for _, n := range words(t, u, key) {
				names[n] = n != "root"
			}
		}
	}
	if os.Geteuid() != 0 {
		out := run("systemd-sysusers", "--dry-run")
		for n, ours := range names {
			if ours && !strings.Contains(out, n) {
				t.Errorf("sysusers does not make %s: %q", n, out)
			}
		}
		return
	}
	run("systemd-sysusers")
	run("systemd-tmpfiles", "--create")
	made := func(file string) string {
		b, err := os.ReadFile(filepath.Join(root, "etc", file))
		if err != nil {
			t.Fatal(err)
		}
		return "\n" + string(b)
	}
	for n, ours := range names {
		if ours && !strings.Contains(made("group"), "\n"+n+":") {
			t.Errorf("there is no group %s", n)
		}
	}
	for name := range roles() {
		if !strings.Contains(made("passwd"), "\npostern-"+name+":") {
			t.Errorf("there is no user postern-%s", name)
		}
	}
	for path, mode := range map[string]os.FileMode{"etc/postern": 0o750, "etc/postern/profiles.d": 0o750, "etc/postern/credentials": 0o700, "var/lib/postern": 0o755} {
		st, err := os.Stat(filepath.Join(root, path))
		if err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, want mode %o", path, err, mode)
		}
	}
}
