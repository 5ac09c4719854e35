package site

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Root is the repository's folder.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("no go.mod above the working folder")
}

// Build returns the folder of the binaries: POSTERN_BIN, or one with new ones
// that end removes.
func Build(ctx context.Context) (bin string, end func(), err error) {
	if bin = os.Getenv("POSTERN_BIN"); bin != "" {
		return bin, func() {}, nil
	}
	root, err := Root()
	if err != nil {
		return "", nil, err
	}
	if bin, err = os.MkdirTemp("", "postern-bin-"); err != nil {
		return "", nil, err
	}
	end = func() { _ = os.RemoveAll(bin) }
	cmd := exec.CommandContext(ctx, "go", "build", "-o", bin+"/", "./cmd/...")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		end()
		return "", nil, fmt.Errorf("building: %w: %s", err, out)
	}
	return bin, end, nil
}

// New makes a site in a temporary folder, by the demonstration's plan. end kills
// what runs there and removes it.
func New(ctx context.Context, bin, profiles string) (s *Site, end func(), err error) {
	root, err := Root()
	if err != nil {
		return nil, nil, err
	}
	tmp, err := os.MkdirTemp("", "postern-test-")
	if err != nil {
		return nil, nil, err
	}
	s, _, err = Make(ctx, filepath.Join(tmp, "site"), Options{
		Bin: bin, Plan: filepath.Join(root, "hsm/ceremony/scripts/demo.yaml"), Profiles: profiles, DevicePort: "0", OperatorPort: "0",
	})
	if err != nil {
		_ = os.RemoveAll(tmp)
		return nil, nil, err
	}
	return s, func() { _ = s.Kill(); _ = os.RemoveAll(tmp) }, nil
}

// Main starts a site for a package's tests, and stops it after them: in order,
// with a log that verifies and a journal without a panic. It returns the exit
// status.
func Main(ctx context.Context, profiles string, tests func(s *Site) int) int {
	code, err := run(ctx, profiles, tests)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func run(ctx context.Context, profiles string, tests func(s *Site) int) (int, error) {
	bin, clean, err := Build(ctx)
	if err != nil {
		return 1, err
	}
	defer clean()
	s, end, err := New(ctx, bin, profiles)
	if err != nil {
		return 1, err
	}
	defer end()
	if err := s.Start(ctx); err != nil {
		return 1, err
	}
	code := tests(s)
	if code != 0 {
		fmt.Fprintf(os.Stderr, "the service's journal:\n%s", s.Tail())
	}
	if err := s.Stop(); err != nil {
		return 1, fmt.Errorf("stopping the service: %w: %s", err, s.Tail())
	}
	if err := s.Verify(ctx); err != nil {
		return 1, err
	}
	journal, err := os.ReadFile(s.Journal())
	if err != nil {
		return 1, err
	}
	if at := strings.Index(string(journal), "panic"); at >= 0 {
		return 1, fmt.Errorf("a panic: %.4000s", journal[at:])
	}
	return code, nil
}
