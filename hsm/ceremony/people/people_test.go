package people_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/postern-pki/postern/hsm/ceremony/people"
)

// person makes a key as people do, and returns its line and file.
func person(tb testing.TB, args ...string) (line, file string) {
	tb.Helper()
	file = filepath.Join(tb.TempDir(), "key")
	if out, err := exec.Command("ssh-keygen", append([]string{"-q", "-N", "", "-f", file}, args...)...).CombinedOutput(); err != nil {
		tb.Fatalf("%v: %s", err, out)
	}
	raw, err := os.ReadFile(file + ".pub")
	if err != nil {
		tb.Fatal(err)
	}
	return string(raw), file
}

func sign(tb testing.TB, key, namespace string, message []byte, args ...string) []byte {
	tb.Helper()
	cmd := exec.Command("ssh-keygen", append([]string{"-q", "-Y", "sign", "-n", namespace, "-f", key}, args...)...)
	cmd.Stdin = bytes.NewReader(message)
	out, err := cmd.Output()
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

func TestPeopleSignWithSSHKeygen(t *testing.T) {
	message := []byte("the plan\n")
	for _, args := range [][]string{{"-t", "ed25519"}, {"-t", "ecdsa", "-b", "384"}, {"-t", "rsa", "-b", "2048"}} {
		line, file := person(t, args...)
		key, err := people.ParseKey(line)
		if err != nil {
			t.Fatal(err)
		}
		for _, more := range [][]string{nil, {"-O", "hashalg=sha256"}} {
			if err := key.Verify(sign(t, file, people.ForPlan, message, more...), people.ForPlan, message); err != nil {
				t.Errorf("%v %v: %v", args, more, err)
			}
		}
		good := sign(t, file, people.ForPlan, message)
		_, stranger := person(t, "-t", "ed25519")
		for name, err := range map[string]error{
			"other bytes":        key.Verify(good, people.ForPlan, []byte("the plan")),
			"another purpose":    key.Verify(good, people.ForTranscript, message),
			"made for another":   key.Verify(sign(t, file, "git", message), people.ForPlan, message),
			"another's key":      key.Verify(sign(t, stranger, people.ForPlan, message), people.ForPlan, message),
			"no signature":       key.Verify([]byte("x"), people.ForPlan, message),
			"something after it": key.Verify(append(bytes.Clone(good), "x"...), people.ForPlan, message),
			"no key":             people.Key{}.Verify(good, people.ForPlan, message),
		} {
			if !errors.Is(err, people.ErrSignature) {
				t.Errorf("%v, %s: %v", args, name, err)
			}
		}
	}
	for _, line := range []string{"", "ssh-ed25519", "ssh-dss AAAAB3NzaC1kc3MAAACBAP==", "no-pty " + first(person(t, "-t", "ed25519")), first(person(t, "-t", "rsa", "-b", "1024"))} {
		if k, err := people.ParseKey(line); err == nil {
			t.Errorf("ParseKey(%q) = %s", line, k.Fingerprint())
		}
	}
}

func first(s, _ string) string { return s }

// FuzzVerify checks that no signature makes the verifier panic, and that none but
// the good one holds.
func FuzzVerify(f *testing.F) {
	line, file := person(f, "-t", "ed25519")
	key, err := people.ParseKey(line)
	if err != nil {
		f.Fatal(err)
	}
	good := sign(f, file, people.ForPlan, []byte("m"))
	f.Add(good)
	f.Add(bytes.Replace(good, []byte("U1NI"), []byte("U1NJ"), 1))
	f.Add([]byte("-----BEGIN SSH SIGNATURE-----\nU1NIU0lH\n-----END SSH SIGNATURE-----\n"))
	f.Fuzz(func(t *testing.T, armored []byte) {
		if err := key.Verify(armored, people.ForTranscript, []byte("m")); err == nil {
			t.Error("a signature for another purpose holds")
		}
	})
}
