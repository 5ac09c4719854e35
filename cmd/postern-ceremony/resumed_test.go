package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-pki/postern/hsm/ceremony"
	"github.com/postern-pki/postern/hsm/ceremony/pins"
	"github.com/postern-pki/postern/hsm/ceremony/plan"
	"github.com/postern-pki/postern/hsm/ceremony/transcript"
)

const twoTier = "../../hsm/ceremony/scripts/two-tier-offline-root.yaml"

// canaries are the PINs by their flags.
func canaries() map[string]string {
	return map[string]string{
		"pin": "canary-user-4711", "so-pin": "canary-officer-0815", "root-pin": "canary-root-4712", "root-so-pin": "canary-root-officer-0816",
	}
}

// A desk is a folder with SoftHSM in it, files of PINs, and what was printed.
type desk struct {
	dir, out, script string
	args             []string
	said             bytes.Buffer
}

func newDesk(t *testing.T, script string) *desk {
	t.Helper()
	d := &desk{dir: t.TempDir(), script: script}
	d.out = filepath.Join(d.dir, "out")
	d.args = []string{"run", script, "--out", d.out}
	kept := t.TempDir()
	for name, pin := range canaries() {
		path := filepath.Join(kept, name)
		if err := os.WriteFile(path, []byte(pin), 0o600); err != nil {
			t.Fatal(err)
		}
		d.args = append(d.args, "--"+name+"-file", path)
	}
	if err := os.Mkdir(filepath.Join(d.dir, "tokens"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.dir, "softhsm2.conf"), []byte("directories.tokendir = "+d.dir+"/tokens\nlog.level = ERROR\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *desk) command(ctx context.Context, t *testing.T) *exec.Cmd {
	t.Helper()
	binary, err := exec.LookPath("postern-ceremony") // TestMain put it there
	if err != nil {
		t.Fatal(err)
	}
	script, err := filepath.Abs(d.script)
	if err != nil {
		t.Fatal(err)
	}
	args := append([]string{}, d.args...)
	args[1] = script
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Dir = d.dir // where a core file would be
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+d.dir+"/softhsm2.conf", "GOTRACEBACK=crash")
	cmd.Stdout, cmd.Stderr = &d.said, &d.said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal
	return cmd
}

// history is what the transcript says, as far as its lines are whole.
func (d *desk) history() transcript.History {
	raw, err := os.ReadFile(filepath.Join(d.out, ceremony.TranscriptFile))
	if err != nil {
		return transcript.History{}
	}
	h, _ := transcript.Read(raw[:bytes.LastIndexByte(raw, '\n')+1])
	return h
}

func (d *desk) noPIN(t *testing.T, path string) {
	t.Helper()
	raw, _ := os.ReadFile(path) // a process may be gone
	for _, pin := range canaries() {
		if bytes.Contains(raw, []byte(pin)) {
			t.Errorf("%s has a PIN in it", path)
		}
	}
}

func readScript(t *testing.T, path string) plan.Plan {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p, err := plan.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// stopping is run, but that it stops itself, for its parent to look at and to
// kill, before it writes a record: the one whose number STOP_BEFORE is, where the
// look at the clock at the start counts too.
func stopping() {
	left, err := strconv.Atoi(os.Getenv("STOP_BEFORE"))
	if err != nil {
		panic(err)
	}
	var o ceremony.Options
	flags := map[string]*pins.Source{"--pin-file": &o.PIN, "--so-pin-file": &o.SOPIN, "--root-pin-file": &o.RootPIN, "--root-so-pin-file": &o.RootSOPIN}
	args := os.Args[1:]
	p, err := readPlan(args[1])
	for i := 2; i+1 < len(args); i += 2 {
		if dst := flags[args[i]]; dst != nil {
			*dst = pins.FromFile(args[i+1])
		} else {
			o.Out = args[i+1]
		}
	}
	o.Now = func() time.Time {
		if left--; left == 0 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
			time.Sleep(time.Minute) // the signal may take another thread first
		}
		return time.Now()
	}
	if err == nil {
		err = perform(context.Background(), &printer{format: "text", out: os.Stdout}, p, o)
	}
	fmt.Println(err)
}

// stopBefore runs the ceremony until it is about to write the given record of its
// own, looks for PINs in what others can see of it, and kills it.
func (d *desk) stopBefore(t *testing.T, record int, sig syscall.Signal) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := d.command(ctx, t)
	cmd.Path = filepath.Join(filepath.Dir(cmd.Path), "ceremony-that-stops")
	cmd.Args[0] = "ceremony-that-stops"
	cmd.Env = append(cmd.Env, "STOP_BEFORE="+strconv.Itoa(record))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var state syscall.WaitStatus
	if _, err := syscall.Wait4(cmd.Process.Pid, &state, syscall.WUNTRACED, nil); err != nil || !state.Stopped() {
		t.Fatalf("before record %d: it ended: %v, %v\n%s", record, state.ExitStatus(), err, d.said.String())
	}
	for _, f := range []string{"cmdline", "environ"} {
		d.noPIN(t, fmt.Sprintf("/proc/%d/%s", cmd.Process.Pid, f))
	}
	if err := errors.Join(cmd.Process.Signal(sig), cmd.Process.Signal(syscall.SIGCONT)); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("it lived on")
	}
}

// One ceremony is killed in each of its steps, when what the step does is done and
// not yet recorded, and again between that record and the next step; and ends well.
func TestACeremonyThatIsKilledInEachStepGoesOn(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		t.Fatal(err)
	}
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: limit.Max, Max: limit.Max}) // so that only the program itself keeps cores away
	d := newDesk(t, twoTier)
	steps := readScript(t, twoTier).Steps()
	kills := 0
	for i, s := range steps {
		back := 0 // how many steps are done again with this one
		if s.Name == plan.StepCertificate {
			back = 1
		}
		records := 1 + 2*back + 2 // one of the resumption, or the look at the clock; begin; end
		d.stopBefore(t, records, syscall.SIGKILL)
		kills++
		if h := d.history(); len(h.Steps) != i+1 || h.Steps[i].String() != s.String() || h.Steps[i].Done() {
			t.Fatalf("%s: killed before its end, it is %+v", s, h.Steps[len(h.Steps)-1])
		}
		if s.Name == plan.StepClose {
			break
		}
		if s.Name == plan.StepLint {
			continue // the step after it begins with another look
		}
		d.stopBefore(t, records+1, syscall.SIGABRT) // leaves all stacks, and a core where one is allowed
		kills++
		if h := d.history(); len(h.Steps) != i+1 || !h.Steps[i].Done() {
			t.Fatalf("%s: killed after its end, it is %+v", s, h.Steps[len(h.Steps)-1])
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := d.command(ctx, t).Run(); err != nil {
		t.Fatalf("the last time: %v\n%s", err, d.said.String())
	}
	report, err := ceremony.Verify(filepath.Join(d.out, ceremony.TranscriptFile))
	if err != nil || report.Resumed != kills {
		t.Errorf("Verify after %d kills: %v; %+v", kills, err, report)
	}
	if !strings.Contains(d.said.String(), "steps are done; it goes on with") {
		t.Error("nobody was told that it went on")
	}
	for pin := range canaries() {
		if strings.Contains(d.said.String(), canaries()[pin]) {
			t.Errorf("%s was printed", pin)
		}
	}
	cores := 0
	err = filepath.WalkDir(d.dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			d.noPIN(t, path)
			if strings.HasPrefix(e.Name(), "core") {
				cores++
			}
		}
		return err
	})
	if err != nil || cores > 0 {
		t.Errorf("%d core files, %v", cores, err)
	}
	chain(t, d.out)

	// What is complete is not begun again.
	if err := d.command(t.Context(), t).Run(); err == nil || !strings.Contains(d.said.String(), "is complete") {
		t.Errorf("a complete ceremony was run again: %v", err)
	}
}

// chain looks at the certificates that came out.
func chain(t *testing.T, out string) {
	t.Helper()
	read := func(name string) *x509.Certificate {
		raw, err := os.ReadFile(filepath.Join(out, name))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := pem.Decode(raw)
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(read("root.pem"))
	between.AddCert(read("ca.pem"))
	for _, leaf := range []string{"ra-sign.pem", "ra-decrypt.pem", "tls.pem", "audit.pem"} {
		if _, err := read(leaf).Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			t.Errorf("%s: %v", leaf, err)
		}
	}
}

// What was changed between the kill and the next run is not built upon.
func TestAnInterruptedCeremonyIsRefusedWhenSomethingChanged(t *testing.T) {
	d := newDesk(t, twoTier)
	steps := readScript(t, twoTier).Steps()
	d.stopBefore(t, 2+2*plan.Index(steps, plan.Step{Name: plan.StepSecrets}), syscall.SIGKILL)
	path := func(name string) string { return filepath.Join(d.out, name) }
	edit := func(name string, change func([]byte) []byte) func() {
		return func() {
			raw, err := os.ReadFile(path(name))
			if err == nil {
				err = os.WriteFile(path(name), change(raw), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, tt := range map[string]struct {
		change func()
		want   string
	}{
		"a certificate":     {edit("ca.pem", func(b []byte) []byte { return append(b, '\n') }), "ca.pem was changed"},
		"an operator's key": {func() { _ = os.Rename(path("operator-ca.key"), path("operator.key")) }, "operator-ca.key"},
		"a record":          {edit("transcript.jsonl", func(b []byte) []byte { return bytes.Replace(b, []byte("CKA_LOCAL"), []byte("CKA_LOCAK"), 1) }), "line "},
		"a stranger's file": {func() { _ = os.WriteFile(path("notes.txt"), nil, 0o600) }, "is not of this ceremony"},
		"another plan":      {func() { d.script = "../../hsm/ceremony/scripts/demo.yaml" }, "ceremony of another plan"},
		"the token is gone": {func() {
			_ = os.Rename(filepath.Join(d.dir, "tokens"), filepath.Join(d.dir, "away"))
			_ = os.Mkdir(filepath.Join(d.dir, "tokens"), 0o700)
		}, "no such token"},
		"the user PIN": {func() { d.args = append(d.args, "--pin-file", writePIN(t, "another-pin-4711")) }, "did not take the PIN"},
	} {
		t.Run(name, func(t *testing.T) {
			kept := t.TempDir()
			if err := os.CopyFS(kept, os.DirFS(d.dir)); err != nil {
				t.Fatal(err)
			}
			script, args := d.script, d.args
			defer func() {
				d.script, d.args = script, args
				for _, err := range []error{os.RemoveAll(d.dir), os.CopyFS(d.dir, os.DirFS(kept))} {
					if err != nil {
						t.Fatal(err)
					}
				}
				for _, secret := range []string{"operator-ca.key", "operator.key"} {
					_ = os.Chmod(path(secret), 0o600)
				}
			}()
			tt.change()
			d.said.Reset()
			err := d.command(t.Context(), t).Run()
			if err == nil || !strings.Contains(d.said.String(), tt.want) || !strings.Contains(d.said.String(), "hint: ") {
				t.Errorf("%v, want %s:\n%s", err, tt.want, d.said.String())
			}
		})
	}
	if err := d.command(t.Context(), t).Run(); err != nil {
		t.Errorf("as it was: %v\n%s", err, d.said.String())
	}
}

func writePIN(t *testing.T, pin string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(path, []byte(pin), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
