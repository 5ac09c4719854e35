package crash_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-pki/postern/test/site"
)

// inside says that this process has a mount namespace of its own.
const inside = "POSTERN_TEST_MOUNTS"

// alone runs the test in a process of its own that may mount, and reports
// whether this is that process. Nothing is left mounted after it.
func alone(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inside) != "" {
		return true
	}
	args := []string{"-m"}
	if os.Getuid() != 0 {
		args = []string{"-rm"}
	}
	args = append(args, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=2m")
	cmd := exec.CommandContext(t.Context(), "unshare", args...)
	cmd.Env = append(os.Environ(), inside+"=1", "POSTERN_BIN="+bin)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("%v:\n%s", err, out)
	}
	return false
}

// smallDisk puts the site's log on a disk of 256 KiB.
func smallDisk(t *testing.T, s *site.Site) {
	t.Helper()
	dir := s.Path("state", "audit")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Kill(); _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

// fill leaves no room on the site's disk, but for what is left of the pages that
// files have begun.
func fill(t *testing.T, s *site.Site) {
	t.Helper()
	f, err := os.Create(s.Path("state", "audit", "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	page := make([]byte, os.Getpagesize())
	for err == nil {
		_, err = f.Write(page)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
}

func clean(t *testing.T, s *site.Site) {
	t.Helper()
	if err := os.Remove(s.Path("state", "audit", "filler")); err != nil {
		t.Fatal(err)
	}
}

// shut ends a service that cannot record that it ends.
func shut(t *testing.T, s *site.Site) {
	t.Helper()
	if err := s.Stop(); err == nil {
		t.Error("a service that could not record its end says that all is well")
	}
}

// maintained wants a service that says what is wrong, and issues nothing.
func maintained(t *testing.T, s *site.Site) {
	t.Helper()
	out, stderr, code := s.Postern(t.Context(), nil, "status")
	if code != 2 || !strings.Contains(out, "the disk is full: make room, then start the service again") {
		t.Errorf("postern status: exit %d: %s%s", code, out, stderr)
	}
	if _, stderr, code := s.Postern(t.Context(), nil, "challenge", "create", "--profile", "interop", "--subject", "CN=no.demo.example"); code == 0 {
		t.Errorf("a challenge was created that is not in the log: %s", stderr)
	}
}

// TestAFullDiskIssuesNothing fills the disk before the intent of an enrollment.
func TestAFullDiskIssuesNothing(t *testing.T) {
	if !alone(t) {
		return
	}
	s := newSite(t)
	smallDisk(t, s)
	shim := shimmed(t, s)
	start(t, s)
	d, key := newDevice(t, s), newKey(t)
	c := newChallenge(t, s, "full.demo.example")
	r := request(t, d, key, c)
	from := logSize(t, s)
	fill(t, s)
	shim.Spoil(t, "SignInit:ca", "rv 0x0", 1000) // counts
	for range 7 {
		_, err := d.Do(t.Context(), r)
		unavailable(t, err)
	}
	if n := shim.Spoiled(t); n != 0 {
		t.Errorf("the CA's key was used %d times without an intent", n)
	}
	maintained(t, s)
	shut(t, s)
	verify(t, s)
	if got := outcomes(t, s, from); len(got) > 0 {
		t.Errorf("the log says %v", got)
	}
	// It does not come up while it cannot record that it does.
	stderr, code := posternd(t, s)
	says(t, stderr, code, 1, "no space left on device")

	clean(t, s)
	shim.Spoil(t, "SignInit:ca", "rv 0x0", 0)
	start(t, s)
	enrolls(t, s, c, r)
}

// TestAFullDiskAfterTheSignature fills the disk while the CA signs: nobody gets
// a certificate that the log does not have, and it is revoked.
func TestAFullDiskAfterTheSignature(t *testing.T) {
	if !alone(t) {
		return
	}
	s := newSite(t)
	smallDisk(t, s)
	shim := shimmed(t, s)
	rewrite(t, s.Config(), func(text string) string {
		return strings.Replace(text, "\ntoken:\n", "\ntoken:\n    deadline: 30s\n", 1)
	})
	start(t, s)
	d, key := newDevice(t, s), newKey(t)
	c := newChallenge(t, s, "signed.demo.example")
	r := request(t, d, key, c)
	from := logSize(t, s)
	shim.Spoil(t, "Sign:ca", "hold", 1)
	told := make(chan error, 1)
	go func() { _, err := d.Do(t.Context(), r); told <- err }()
	for deadline := time.Now().Add(20 * time.Second); shim.Spoiled(t) == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the CA was not asked to sign")
		}
	}
	if got := outcomes(t, s, from); !slices.Equal(got, []string{"intent"}) {
		t.Errorf("while the CA signs the log says %v", got)
	}
	fill(t, s)
	waste(t, s, d)
	shim.Spoil(t, "Sign:ca", "hold", 0)
	unavailable(t, <-told)
	maintained(t, s)
	shut(t, s)
	verify(t, s)
	if got := outcomes(t, s, from); !slices.Equal(got, []string{"intent"}) {
		t.Errorf("the log says %v", got)
	}
	clean(t, s)
	start(t, s)
	if got := outcomes(t, s, from); !slices.Equal(got, []string{"intent", "due", "unknown"}) {
		t.Errorf("after a start with room the log says %v", got)
	}
	enrolls(t, s, c, r)
}

// waste uses up what is left of the last page of the log, so that no certificate
// has room in it. A plain question makes the smallest record.
func waste(t *testing.T, s *site.Site, d *site.Device) {
	t.Helper()
	segments, err := filepath.Glob(s.Path("state", "audit", "segments", "*.jsonl"))
	if err != nil || len(segments) != 1 {
		t.Fatalf("segments: %v, %v", segments, err)
	}
	for {
		st, err := os.Stat(segments[0])
		if err != nil {
			t.Fatal(err)
		}
		page := int64(os.Getpagesize())
		if left := (page - st.Size()%page) % page; left < 800 {
			return
		}
		if _, err := d.Caps(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// enrolls wants one certificate for the request now, the first for its challenge,
// and a log that is whole.
func enrolls(t *testing.T, s *site.Site, c site.Challenge, r *site.Request) {
	t.Helper()
	from, d := logSize(t, s), newDevice(t, s)
	got, err := d.Do(t.Context(), r)
	if err != nil {
		t.Fatalf("with room on the disk: %v", err)
	}
	if got := outcomes(t, s, from); !slices.Equal(got, []string{"intent", "issued"}) {
		t.Errorf("with room on the disk the log says %v", got)
	}
	if out, stderr, code := s.Postern(t.Context(), nil, "status"); code != 0 {
		t.Errorf("postern status: exit %d: %s%s", code, out, stderr)
	}
	stop(t, s)
	verify(t, s)
	start(t, s)
	newLedger().check(t, s, map[string]string{hexSerial(got.Certificate): c.ID})
	stop(t, s)
	rebuilt(t, s)
}
