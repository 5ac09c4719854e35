package site

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/postern-pki/postern/audit"
)

// Verify is `postern audit verify`.
func (s *Site) Verify(ctx context.Context) error {
	if out, errOut, code := s.Postern(ctx, nil, "audit", "verify"); code != 0 {
		return fmt.Errorf("postern audit verify: exit %d: %s%s", code, out, errOut)
	}
	return nil
}

// LogSize is how many records the running service's log has.
func (s *Site) LogSize(ctx context.Context) (uint64, error) {
	st, err := s.Status(ctx)
	if err != nil {
		return 0, err
	}
	log, _ := st["log"].(map[string]any)
	size, ok := log["size"].(float64)
	if !ok {
		return 0, fmt.Errorf("the status has no log's size: %v", st)
	}
	return uint64(size), nil
}

// Lines are the lines of the log from one on, read from the disk beside the
// service.
func (s *Site) Lines(from uint64) ([]audit.Line, error) {
	var all []audit.Line
	err := audit.Scan(s.Path("state", "audit"), from, func(l audit.Line) error { all = append(all, l); return nil })
	return all, err
}

// PeakMemory is the largest resident size that the service had, in bytes.
func (s *Site) PeakMemory() (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.PID()))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(text), " kB"), 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no VmHWM", s.PID())
}
