package ceremony_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-pki/postern/hsm/ceremony"
	"github.com/postern-pki/postern/hsm/ceremony/people"
	"github.com/postern-pki/postern/hsm/ceremony/pins"
	"github.com/postern-pki/postern/hsm/ceremony/plan"
	"github.com/postern-pki/postern/test/softhsm"
)

func sshKeygen(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ssh-keygen", args...).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen %v: %v\n%s", args, err, out)
	}
}

// The people sign the plan before, and the transcript after; the audit key signs
// the transcript too, and openssl verifies that.
func TestPeopleAndTheAuditKeySign(t *testing.T) {
	dir, tok := t.TempDir(), softhsm.New(t)
	text := strings.Replace(script(t, "demo.yaml"), "new: true\n  label: postern-demo", "serial: '"+tok.Serial+"'", 1)
	text += "people:\n"
	for _, who := range [][2]string{{"alice", "administrator"}, {"bob", "witness"}} {
		name, role := who[0], who[1]
		sshKeygen(t, "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name))
		pub, err := os.ReadFile(filepath.Join(dir, name+".pub"))
		if err != nil {
			t.Fatal(err)
		}
		text += fmt.Sprintf("  - {name: %s, role: %s, key: '%s'}\n", name, role, strings.TrimSpace(string(pub)))
	}
	path := filepath.Join(dir, "plan.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := plan.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	o := ceremony.Options{Out: filepath.Join(dir, "out"), PIN: pins.FromFile(tok.PINFile(t)), Signatures: map[string]string{}}
	for _, who := range [][2]string{{"alice", people.ForPlan}, {"bob", people.ForTranscript}} { // bob's is for something else
		name, purpose := who[0], who[1]
		sshKeygen(t, "-q", "-Y", "sign", "-n", purpose, "-f", filepath.Join(dir, name), path)
		if err := os.Rename(path+".sig", path+"."+name); err != nil {
			t.Fatal(err)
		}
		if _, err := ceremony.Run(t.Context(), p, o); err == nil || !strings.Contains(err.Error(), "is missing") {
			t.Errorf("without all signatures: %v", err)
		}
		o.Signatures[name] = path + "." + name
	}
	if _, err := ceremony.Run(t.Context(), p, o); !errors.Is(err, people.ErrSignature) {
		t.Errorf("a signature for another purpose: %v", err)
	}
	sshKeygen(t, "-q", "-Y", "sign", "-n", people.ForPlan, "-f", filepath.Join(dir, "bob"), path)
	o.Signatures["bob"] = path + ".sig"
	r, err := ceremony.Run(t.Context(), p, o)
	if err != nil {
		t.Fatal(err)
	}
	says(t, r.Transcript, "signed by the audit key; not here: alice, bob")
	sshKeygen(t, "-q", "-Y", "sign", "-n", people.ForTranscript, "-f", filepath.Join(dir, "bob"), r.Transcript)
	if err := os.Rename(r.Transcript+".sig", filepath.Join(r.Out, "transcript.bob.sig")); err != nil {
		t.Fatal(err)
	}
	says(t, r.Transcript, "signed by the audit key, bob; not here: alice")

	pub := filepath.Join(dir, "audit.pub")
	if out, err := exec.Command("openssl", "x509", "-in", filepath.Join(r.Out, "audit.pem"), "-pubkey", "-noout", "-out", pub).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	sig := filepath.Join(r.Out, ceremony.SignatureFile)
	if out, err := exec.Command("openssl", "dgst", "-sha256", "-verify", pub, "-signature", sig, r.Transcript).CombinedOutput(); err != nil {
		t.Errorf("openssl: %v: %s", err, out)
	}

	// A signature that was lost is made again; one that is there is not touched.
	if _, err := ceremony.Run(t.Context(), p, o); !errors.Is(err, ceremony.ErrOutput) {
		t.Errorf("once more: %v", err)
	}
	raw, err := os.ReadFile(r.Transcript)
	if err == nil {
		err = os.Remove(sig)
	}
	if err != nil {
		t.Fatal(err)
	}
	if again, err := ceremony.Run(t.Context(), p, o); err != nil || again.Digest != r.Digest {
		t.Errorf("signed again: %v", err)
	}
	if now, err := os.ReadFile(r.Transcript); err != nil || !bytes.Equal(now, raw) {
		t.Errorf("the closed transcript was changed: %v", err)
	}
	says(t, r.Transcript, "signed by the audit key, bob; not here: alice")

	// A forged signature, and one of another transcript, do not pass.
	for _, name := range []string{ceremony.SignatureFile, "transcript.bob.sig"} {
		file := filepath.Join(r.Out, name)
		good, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		bad := bytes.Clone(good)
		bad[len(bad)/2] ^= 1
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ceremony.Verify(r.Transcript); !errors.Is(err, ceremony.ErrTranscript) {
			t.Errorf("%s forged: %v", name, err)
		}
		if err := os.WriteFile(file, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func says(t *testing.T, path, want string) {
	t.Helper()
	report, err := ceremony.Verify(path)
	if err != nil {
		t.Error(err)
	}
	for _, s := range report.Statements {
		if s.Name == "the transcript's signatures hold" && s.Say == want {
			return
		}
	}
	t.Errorf("no %q in %+v", want, report.Statements)
}
