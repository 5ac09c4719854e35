package site

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
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

// Processes are those of the running service: the one that was started, and its
// children, by their first two arguments, such as "gate devices".
func (s *Site) Processes() (map[string]int, error) {
	all := map[string]int{"posternd": s.PID()}
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(data), ") ")
		fields := strings.Fields(rest)
		if len(fields) < 2 || fields[1] != strconv.Itoa(s.PID()) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err != nil {
			return nil, err
		}
		argv, err := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline"))
		if err != nil {
			continue
		}
		words := strings.Split(string(argv), "\x00")
		if len(words) < 3 {
			continue
		}
		name := words[1]
		if !strings.HasPrefix(words[2], "-") {
			name += " " + words[2]
		}
		all[name] = pid
	}
	return all, nil
}

// Memory is the resident size of all the service's processes, in octets: what they
// share is counted once, a share of it for each.
func (s *Site) Memory() (uint64, error) {
	return s.sumOf("smaps_rollup", "Pss:")
}

// PeakMemory is the sum of the largest resident sizes that the service's processes
// had, in bytes. What they share, such as the program itself, counts for each.
func (s *Site) PeakMemory() (uint64, error) {
	return s.sumOf("status", "VmHWM:")
}

// sumOf adds up a line of a file that /proc has for each process.
func (s *Site) sumOf(file, name string) (uint64, error) {
	all, err := s.Processes()
	if err != nil {
		return 0, err
	}
	var sum uint64
	for _, pid := range all {
		n, err := lineOf(fmt.Sprintf("/proc/%d/%s", pid, file), name)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

func lineOf(path, name string) (uint64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, name); ok {
			kb, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(text), " kB"), 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, name)
}
