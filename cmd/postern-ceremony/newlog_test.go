package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/ceremony"
	"github.com/postern-pki/postern/hsm/ceremony/newlog"
	"github.com/postern-pki/postern/hsm/ceremony/plan"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

const newLogScript = "../../hsm/ceremony/scripts/new-log.yaml"

// A lost site is one whose disk is older than its token.
type lostSite struct {
	*site.Site
	dir string
	out string // of the ceremony

	held *x509.Certificate // what a device has from the old log
	key  *rsa.PrivateKey
}

func newSite(t *testing.T) *site.Site {
	t.Helper()
	bin, endBuild, err := site.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(endBuild)
	s, end, err := site.New(t.Context(), bin, site.Profiles)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the service's journal:\n%s", s.Tail())
		}
		end()
	})
	return s
}

// lose lets a site serve, takes a copy of its disk, lets it serve on, and puts the
// copy back: the token, which is elsewhere, knows of more.
func lose(t *testing.T) *lostSite {
	t.Helper()
	s := newSite(t)
	must(t, s.Start(t.Context()))
	held, key := enroll(t, s, "before.demo.example")
	must(t, s.Stop())
	copied := t.TempDir()
	for _, dir := range disk() {
		must(t, os.CopyFS(filepath.Join(copied, dir), os.DirFS(s.Path(dir))))
	}
	must(t, s.Start(t.Context()))
	enroll(t, s, "lost.demo.example")
	must(t, s.Stop())
	for _, dir := range disk() {
		must(t, os.RemoveAll(s.Path(dir)))
		must(t, os.CopyFS(s.Path(dir), os.DirFS(filepath.Join(copied, dir))))
	}
	dir := t.TempDir()
	return &lostSite{Site: s, dir: dir, out: filepath.Join(dir, "out"), held: held, key: key}
}

// disk are the folders that an old disk brings back.
func disk() []string { return []string{"state", "keyholder"} }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func enroll(t *testing.T, s *site.Site, cn string) (*x509.Certificate, *rsa.PrivateKey) {
	t.Helper()
	d, err := s.Device(t.Context(), "interop")
	must(t, err)
	c, err := s.NewChallenge(t.Context(), "interop", "CN="+cn)
	must(t, err)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	r, err := d.Enroll(t.Context(), client.Enrollment{Key: key, Subject: pkix.Name{CommonName: cn}, Challenge: []byte(c.Challenge)})
	must(t, err)
	return r.Certificate, key
}

// renew asks for a certificate of a new key in place of one that a device has.
func renew(t *testing.T, s *site.Site, c *x509.Certificate, old *rsa.PrivateKey) error {
	t.Helper()
	d, err := s.Device(t.Context(), "interop")
	must(t, err)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	_, err = d.Renew(t.Context(), client.Renewal{OldCert: c, OldKey: old, NewKey: key})
	return err
}

// refused wants posternd to end with 1 and to say each word.
func refused(t *testing.T, s *site.Site, words ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, stderr, code := site.Run(ctx, nil, filepath.Join(s.Bin(), "posternd"), "--config", s.Config())
	if code != 1 {
		t.Errorf("posternd: exit %d: %s", code, stderr)
	}
	for _, w := range words {
		if !strings.Contains(stderr, w) {
			t.Errorf("posternd does not say %q: %s", w, stderr)
		}
	}
}

// plan fills in the project's own plan for the site.
func (l *lostSite) plan(t *testing.T, oldnew ...string) string {
	t.Helper()
	raw, err := os.ReadFile(newLogScript)
	must(t, err)
	var keys struct {
		Token struct{ Serial string }
		Keys  []struct{ ID, SPKI string }
	}
	made, err := os.ReadFile(l.Path("ceremony", "keys.yaml"))
	must(t, err)
	must(t, yaml.Unmarshal(made, &keys))
	change := []string{
		"0123456789abcdef", keys.Token.Serial, "/var/lib/postern/authority", l.Path("state"), "/var/lib/postern/keyholder", l.Path("keyholder"),
		"origin: host.example/log ", "origin: demo.example/log ", "host.example/log-2", "demo.example/log-2",
	}
	for i, k := range keys.Keys {
		change = append(change, fmt.Sprintf("id: %032d, spki: %064d", i+1, i+1), "id: "+k.ID+", spki: "+k.SPKI)
	}
	// The demonstration has a sixth key, which the plan need not have.
	text := strings.Replace(string(raw), "\nlog:\n", fmt.Sprintf("\n  - {role: ocsp, label: ocsp, algorithm: P-256, id: %032d, spki: %064d}\nlog:\n", 6, 6), 1)
	for i := range len(change) / 2 {
		text = strings.Replace(text, change[2*i], change[2*i+1], 1)
	}
	for i := range len(oldnew) / 2 {
		if !strings.Contains(text, oldnew[2*i]) {
			t.Fatalf("%q is not in the plan", oldnew[2*i])
		}
		text = strings.Replace(text, oldnew[2*i], oldnew[2*i+1], 1)
	}
	path := filepath.Join(l.dir, "plan.yaml")
	must(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// desk is where the ceremony of a plan is carried out.
func (l *lostSite) desk(path string) *desk {
	return &desk{dir: l.dir, out: l.out, script: path, args: []string{"run", path, "--out", l.out, "--pin-file", l.Path("ceremony", "hsm-pin")}}
}

func (l *lostSite) run(t *testing.T, d *desk) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	d.said.Reset()
	return l.atSite(d.command(ctx, t)).Run()
}

// atSite points a ceremony at the site's token.
func (l *lostSite) atSite(cmd *exec.Cmd) *exec.Cmd {
	cmd.Env = append(cmd.Env, "SOFTHSM2_CONF="+l.Path("ceremony", "token", "softhsm2.conf"))
	return cmd
}

func (l *lostSite) setOrigin(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(l.Config())
	must(t, err)
	changed := strings.Replace(string(text), "origin: "+from+"\n", "origin: "+to+"\n", 1)
	if changed == string(text) {
		t.Fatalf("no origin: %s in\n%s", from, text)
	}
	must(t, os.WriteFile(l.Config(), []byte(changed), 0o600))
}

func (l *lostSite) aside(t *testing.T) string {
	t.Helper()
	all, err := filepath.Glob(l.Path("state", "audit.before-????????")) // more only where a service was refused in between
	if err != nil || len(all) != 1 {
		t.Fatalf("the old log is at %v, %v", all, err)
	}
	return all[0]
}

func (l *lostSite) verifies(t *testing.T, dir string) {
	t.Helper()
	if out, errOut, code := l.Postern(t.Context(), nil, "audit", "verify", "--dir", dir, "--trust", l.Path("ceremony", "audit.pem")); code != 0 {
		t.Errorf("postern audit verify: exit %d: %s%s", code, out, errOut)
	}
}

// serves wants a service that begins the new log, and says in it what the old one was.
func (l *lostSite) serves(t *testing.T) {
	t.Helper()
	l.setOrigin(t, "demo.example/log", "demo.example/log-2")
	for i := range 2 { // it is the same log after a restart
		must(t, l.Start(t.Context()))
		c, key := enroll(t, l.Site, fmt.Sprintf("after-%d.demo.example", i))
		must(t, renew(t, l.Site, c, key))
		if _, ok := errors.AsType[*client.FailError](renew(t, l.Site, l.held, l.key)); !ok {
			t.Error("a certificate that the new log does not know was renewed")
		}
		must(t, l.Stop())
	}
	var first audit.Line
	err := audit.Scan(l.Path("state", "audit"), 0, func(line audit.Line) error {
		first = line
		return io.EOF
	})
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	after := first.Record.Object.Object("after")
	marks, disk := after.Objects("marks"), after.Object("disk")
	if first.Record.Event != "log.genesis" || after.String("old_origin") != "demo.example/log" || after.String("why") == "" || len(marks) != 1 {
		t.Fatalf("the genesis says %+v", first.Record.Object)
	}
	if disk.String("state") != newlog.Good || disk.Int("size") == 0 || disk.Int("size") >= marks[0].Int("size") || after.Object("head").Int("size") != disk.Int("size") {
		t.Errorf("mark, head and disk: %+v, %+v, %+v", marks, after.Object("head"), disk)
	}
	raw, err := os.ReadFile(filepath.Join(l.out, ceremony.TranscriptFile))
	must(t, err)
	lines := strings.SplitAfter(string(raw), "\n")
	last, err := audit.ParseLine([]byte(lines[after.Object("ceremony").Int("records")-1]))
	must(t, err)
	if h := last.Hash(); fmt.Sprintf("%x", h) != after.Object("ceremony").String("sha256") {
		t.Error("the genesis names another transcript")
	}
	l.verifies(t, l.Path("state", "audit"))
	l.verifies(t, l.aside(t))
}

// An older disk is put back: the service refuses, the ceremony begins a new log, and
// the service serves and says in its first record what there was.
func TestANewLogAfterAnOldDiskWasPutBack(t *testing.T) {
	l := lose(t)
	refused(t, l.Site, "an old disk was put back", "the mark on the token")
	held, err := audit.OriginOf(l.Path("state", "audit"))
	must(t, err)
	d := l.desk(l.plan(t))
	if err := l.run(t, d); err != nil {
		t.Fatalf("%v\n%s", err, d.said.String())
	}
	for _, w := range []string{"the token's mark knows of ", "the keyholder's file knows of ", "they verify", "origin: demo.example/log-2", "postern audit verify --dir " + l.aside(t)} {
		if !strings.Contains(d.said.String(), w) {
			t.Errorf("it does not say %q:\n%s", w, d.said.String())
		}
	}
	if kept, err := audit.OriginOf(l.aside(t)); err != nil || kept != held {
		t.Errorf("what was put aside: %q, %v", kept, err)
	}
	if r, err := ceremony.Verify(filepath.Join(l.out, ceremony.TranscriptFile)); err != nil {
		t.Errorf("Verify: %v, %+v", err, r)
	}
	refused(t, l.Site, `"demo.example/log-2"`, `"demo.example/log"`) // nobody changed the origin yet
	l.serves(t)

	// The same origin cannot be begun again, and not the one before.
	for _, name := range []string{"demo.example/log-2", "demo.example/log"} {
		l.out = filepath.Join(t.TempDir(), "out")
		d = l.desk(l.plan(t, "origin: demo.example/log ", "origin: demo.example/log-2 ", "new_origin: demo.example/log-2", "new_origin: "+name))
		if err := l.run(t, d); err == nil || !strings.Contains(d.said.String(), "never has two histories") {
			t.Errorf("begun again as %s: %v\n%s", name, err, d.said.String())
		}
	}
	must(t, l.Start(t.Context()))
	must(t, l.Stop())
}

// The ceremony is killed in each of its steps, before and after what the step does
// is recorded, and a service is started in between, which refuses.
func TestANewLogIsBegunAfterKillsInEachStep(t *testing.T) {
	l := lose(t)
	d := l.desk(l.plan(t))
	t.Setenv("SOFTHSM2_CONF", l.Path("ceremony", "token", "softhsm2.conf"))
	steps := readScript(t, d.script).Steps()
	for i, s := range steps {
		for _, records := range []int{3, 4} { // what it does is done; and its end is recorded too
			if s.Name == plan.StepClose && records == 4 {
				break
			}
			l.stopBefore(t, d, records)
			if h := d.history(); len(h.Steps) != i+1 || h.Steps[i].String() != s.String() || h.Steps[i].Done() != (records == 4) {
				t.Fatalf("%s: after the kill it is %+v", s, h.Steps[len(h.Steps)-1])
			}
			if slices.Contains([]string{plan.StepAside, plan.StepQuote}, s.Name) {
				refused(t, l.Site) // it must not begin anything now
			}
		}
	}
	if err := l.run(t, d); err != nil {
		t.Fatalf("%v\n%s", err, d.said.String())
	}
	if _, err := ceremony.Verify(filepath.Join(l.out, ceremony.TranscriptFile)); err != nil {
		t.Error(err)
	}
	l.serves(t)
}

func (l *lostSite) stopBefore(t *testing.T, d *desk, records int) {
	t.Helper()
	conf := filepath.Join(d.dir, "softhsm2.conf")
	text, err := os.ReadFile(l.Path("ceremony", "token", "softhsm2.conf"))
	must(t, err)
	must(t, os.WriteFile(conf, text, 0o600))
	d.stopBefore(t, records, syscall.SIGKILL)
}

// The service may serve again when the mark is there, before the ceremony says so.
func TestAServiceThatBeganBetweenMarkAndRecord(t *testing.T) {
	l := lose(t)
	d := l.desk(l.plan(t))
	steps := readScript(t, d.script).Steps()
	l.stopBefore(t, d, 2+2*plan.Index(steps, plan.Step{Name: plan.StepMark})+1)
	l.setOrigin(t, "demo.example/log", "demo.example/log-2")
	must(t, l.Start(t.Context()))
	if err := l.run(t, d); err == nil || !strings.Contains(d.said.String(), "the service runs") {
		t.Errorf("while the service runs: %v\n%s", err, d.said.String())
	}
	enroll(t, l.Site, "between.demo.example")
	must(t, l.Stop())
	before, err := l.Lines(0)
	must(t, err)
	if err := l.run(t, d); err != nil {
		t.Fatalf("%v\n%s", err, d.said.String())
	}
	if now, err := l.Lines(0); err != nil || len(now) != len(before) {
		t.Errorf("the new log had %d records and has %d, %v", len(before), len(now), err)
	}
	l.setOrigin(t, "demo.example/log-2", "demo.example/log")
	l.serves(t)
}

func TestANewLogIsRefused(t *testing.T) {
	l := lose(t)
	before := tree(t, l.Path("state"))
	for name, tt := range map[string]struct {
		change []string
		want   string
	}{
		"the same origin":             {[]string{"new_origin: demo.example/log-2", "new_origin: demo.example/log"}, "never has two histories"},
		"another log":                 {[]string{"origin: demo.example/log ", "origin: other.example/log "}, "the mark on the token is of demo.example/log"},
		"another folder":              {[]string{l.Path("keyholder"), l.Path("nowhere")}, "nowhere"},
		"production, by nobody":       {[]string{"class: test", "class: production"}, "two people of different roles"},
		"production, by one person":   {[]string{"class: test", "class: production\npeople:\n" + person(t, "alice", "administrator")}, "an administrator and a witness"},
		"production, of one role":     {[]string{"class: test", "class: production\npeople:\n" + person(t, "alice", "witness") + person(t, "bob", "witness")}, "an administrator and a witness"},
		"two people, none has signed": {[]string{"class: test", "class: test\npeople:\n" + person(t, "alice", "administrator") + person(t, "bob", "witness")}, "signature of alice"},
	} {
		t.Run(name, func(t *testing.T) {
			l.out = filepath.Join(t.TempDir(), "out")
			d := l.desk(l.plan(t, tt.change...))
			if err := l.run(t, d); err == nil || !strings.Contains(d.said.String(), tt.want) {
				t.Errorf("%v, want %s:\n%s", err, tt.want, d.said.String())
			}
			if now := tree(t, l.Path("state")); now != before {
				t.Errorf("it changed the folder:\n%s\nwas\n%s", now, before)
			}
		})
	}
	refused(t, l.Site, "an old disk was put back") // as before
}

// A log that was changed is put aside as it is, and the place is written down.
func TestANewLogAfterADamagedOne(t *testing.T) {
	s := newSite(t)
	must(t, s.Start(t.Context()))
	enroll(t, s, "damaged.demo.example")
	must(t, s.Stop())
	segment := s.Path("state", "audit", "segments", "000000000000.jsonl")
	raw, err := os.ReadFile(segment)
	must(t, err)
	damaged := bytes.Replace(raw, []byte("CN=damaged"), []byte("CN=dbmaged"), 1)
	if bytes.Equal(raw, damaged) {
		t.Fatal("nothing to damage")
	}
	must(t, os.WriteFile(segment, damaged, 0o600))
	l := &lostSite{Site: s, dir: t.TempDir()}
	l.out = filepath.Join(l.dir, "out")
	d := l.desk(l.plan(t))
	if err := l.run(t, d); err != nil || !strings.Contains(d.said.String(), "does not verify: segment 000000000000.jsonl, line ") {
		t.Errorf("%v\n%s", err, d.said.String())
	}
	if kept, err := os.ReadFile(filepath.Join(l.aside(t), "segments", "000000000000.jsonl")); err != nil || !bytes.Equal(kept, damaged) {
		t.Errorf("what was put aside is not what there was: %v", err)
	}
	l.setOrigin(t, "demo.example/log", "demo.example/log-2")
	must(t, s.Start(t.Context()))
	enroll(t, s, "sound.demo.example")
	must(t, s.Stop())
	l.verifies(t, s.Path("state", "audit"))
}

func TestANewLogIsRefusedWhileTheServiceRuns(t *testing.T) {
	s := newSite(t)
	l := &lostSite{Site: s, dir: t.TempDir()}
	l.out = filepath.Join(l.dir, "out")
	must(t, s.Start(t.Context()))
	d := l.desk(l.plan(t))
	if err := l.run(t, d); err == nil || !strings.Contains(d.said.String(), "the service runs") || !strings.Contains(d.said.String(), "stop the service first") {
		t.Errorf("%v\n%s", err, d.said.String())
	}
	enroll(t, s, "still.demo.example")
	must(t, s.Stop())
	must(t, s.Verify(t.Context()))
}

// Two people sign the plan of a production ceremony; at the terminal they see what was
// found, and nothing is moved before they say so once more.
func TestANewLogOfProductionIsConfirmedTwice(t *testing.T) {
	l := lose(t)
	keys := t.TempDir()
	people := ""
	for _, who := range [][2]string{{"alice", "administrator"}, {"bob", "witness"}} {
		people += personIn(t, keys, who[0], who[1])
	}
	path := l.plan(t, "class: test", "class: production\npeople:\n"+people)
	args := []string{"run", path, "--out", l.out, "--pin-file", l.Path("ceremony", "hsm-pin")}
	for _, name := range []string{"alice", "bob"} {
		if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-Y", "sign", "-n", "postern-ceremony-plan", "-f", filepath.Join(keys, name), path).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		must(t, os.Rename(path+".sig", path+"."+name))
		args = append(args, "--signature", name+"="+path+"."+name)
	}
	binary, err := exec.LookPath("postern-ceremony")
	must(t, err)
	last8 := readScript(t, path).Digest()[56:]
	before := tree(t, l.Path("state"))
	for _, typed := range []string{"00000000", last8} {
		s, slave := openPTY(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, binary, args...)
		cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+l.Path("ceremony", "token", "softhsm2.conf"))
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		must(t, cmd.Start())
		_ = slave.Close()
		s.answer(t, "approved plan's SHA-256: ", last8)
		for asked := 0; !strings.Contains(s.text(), "Nothing has been moved yet."); time.Sleep(10 * time.Millisecond) { // what the token does not tell
			if n := strings.Count(s.text(), "Type the name, or nothing to stop: "); n > asked {
				asked = n
				_, err := s.master.WriteString("bob\n")
				must(t, err)
			}
			if ctx.Err() != nil {
				t.Fatalf("nothing was found:\n%s", s.text())
			}
		}
		s.answer(t, "Nothing has been moved yet. To go on, type the last 8 characters of the approved plan's SHA-256: ", typed)
		err := cmd.Wait()
		if (err == nil) != (typed == last8) || !strings.Contains(s.text(), "the token's mark knows of ") {
			t.Fatalf("%v:\n%s", err, s.text())
		}
		if typed != last8 && tree(t, l.Path("state")) != before {
			t.Error("something was moved that nobody confirmed")
		}
	}
	if _, err := ceremony.Verify(filepath.Join(l.out, ceremony.TranscriptFile)); err != nil {
		t.Error(err)
	}
	l.serves(t)
}

// person is a line of the plan with a key that was just made.
func person(t *testing.T, name, role string) string {
	t.Helper()
	return personIn(t, t.TempDir(), name, role)
}

// personIn leaves the key in a folder.
func personIn(t *testing.T, dir, name, role string) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	pub, err := os.ReadFile(file + ".pub")
	must(t, err)
	return fmt.Sprintf("  - {name: %s, role: %s, key: '%s'}\n", name, role, strings.TrimSpace(string(pub)))
}

// tree names every file below a folder.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	must(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		all = append(all, path)
		return err
	}))
	return strings.Join(all, "\n")
}
