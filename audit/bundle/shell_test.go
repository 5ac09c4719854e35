package bundle_test

import (
	"bytes"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/postern-pki/postern/audit/bundle"
)

// unpack has tar unpack a bundle, and returns its folder.
func unpack(t testing.TB, data []byte) string {
	t.Helper()
	dir := t.TempDir()
	no(t, os.WriteFile(filepath.Join(dir, "b.tar"), data, 0o600))
	if out, err := exec.CommandContext(t.Context(), "tar", "-C", dir, "-xf", filepath.Join(dir, "b.tar")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	list := must[[]string](t)(filepath.Glob(filepath.Join(dir, "bundle-*")))
	if len(list) != 1 {
		t.Fatalf("the tar has %v", list)
	}
	return list[0]
}

// trust is a file with the signer's certificate.
func (s signer) trust(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "trust.pem")
	no(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cert.Raw}), 0o600))
	return path
}

// shell runs verify.sh in a folder.
func shell(t testing.TB, dir string, args ...string) (out string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", append([]string{filepath.Join(dir, "verify.sh")}, args...)...)
	b, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

// The script takes what the verifier takes, from wherever a bundle begins.
func TestTheScriptTakesWhatIsGood(t *testing.T) {
	s, dir := newSigner(t), t.TempDir()
	newLog(t, s, dir, 700, 60_000, 40)
	var previous *bundle.Previous
	folder := ""
	for i, r := range [][2]uint64{{0, 0}, {1, 10}, {42, 200}, {255, 300}, {333, 600}} {
		o := s.options(t, dir)
		o.From, o.To, o.Previous = at(r[0]), at(r[1]), previous
		data, _ := export(t, o)
		args := []string{s.trust(t)}
		here := unpack(t, data)
		want := 0
		if previous != nil && previous.Info.Size < r[0] {
			want = 3
		}
		if i > 0 {
			args = append(args, folder)
		}
		if out, code := shell(t, here, args...); code != want {
			t.Errorf("%v: exit %d: %s", r, code, out)
		}
		if _, err := verify(t, data, bundle.VerifyOptions{Trust: s.cert, Previous: previous}); err != nil {
			t.Errorf("%v: %v", r, err)
		}
		previous, folder = must[*bundle.Previous](t)(bundle.OpenPrevious(bytes.NewReader(data), s.cert)), here
	}
	if out, code := shell(t, folder); code != 3 {
		t.Errorf("without trust: exit %d: %s", code, out)
	}
	if out, code := shell(t, folder, newSigner(t).trust(t)); code != 1 {
		t.Errorf("another's trust: exit %d: %s", code, out)
	}
	for _, args := range [][]string{{"nowhere"}, {"a", "b", "c"}} {
		if out, code := shell(t, folder, args...); code != 2 {
			t.Errorf("%v: exit %d: %s", args, code, out)
		}
	}
}
