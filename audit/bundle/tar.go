package bundle

import (
	"archive/tar"
	"crypto/sha256"
	"fmt"
	"io"
	"time"
)

// writeTar writes files of one owner, mode and time. What is written has to be what
// the manifest says of it: the log is only ever added to, so else it was tampered with
// meanwhile.
func writeTar(w io.Writer, folder string, at time.Time, files []content) error {
	t := tar.NewWriter(w)
	for _, f := range files {
		mode := int64(0o644)
		if f.entry.Name == fileScript {
			mode = 0o755
		}
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: folder + f.entry.Name, Size: f.size, Mode: mode, ModTime: at, Format: tar.FormatUSTAR}); err != nil {
			return fmt.Errorf("bundle: %w", err)
		}
		sum := sha256.New()
		if err := f.copy(io.MultiWriter(t, sum)); err != nil {
			return fmt.Errorf("bundle: writing %s: %w", f.entry.Name, err)
		}
		if [32]byte(sum.Sum(nil)) != f.entry.SHA256 {
			return fmt.Errorf("bundle: %s changed while it was exported", f.entry.Name)
		}
	}
	if err := t.Close(); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	return nil
}
