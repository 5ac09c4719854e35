// Package manifest is the list of a bundle's files, and the signature on it: what the
// keyholder signs, and what a verifier looks at first.
//
// A manifest is in the format of sha256sum: the SHA-256 in hex, two spaces and a
// name, a line each, in the order of the names' octets. It names exactly one signed
// checkpoint, checkpoints/NNNNNNNNNNNN.note, which is that of the bundle's last
// record. The signature is detached CMS (RFC 5652) with the attributes of CAdES-BES
// (RFC 5126, section 4.3.1).
//
// # What a caller may rely on
//
// What [Parse] takes is a manifest and nothing else: no digest, no checkpoint and no
// certificate reads as one. [Verify] takes no other digest, signer or attribute than
// [Sign] writes.
//
// # What it does not protect against
//
// A manifest says which files there are, not what is in them.
package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strconv"
)

// Bounds, in octets: of a manifest, and of a name in it.
const (
	MaxSize = 1 << 20
	maxName = 100 // what every tar holds
)

// ErrForm is returned for what is no manifest.
var ErrForm = errors.New("manifest: not a manifest of a bundle")

// An Entry is one file.
type Entry struct {
	Name   string
	SHA256 [32]byte
}

// A Manifest lists files in the order of their names.
type Manifest []Entry

var (
	nameForm = regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9._-]*/)*[A-Za-z0-9][A-Za-z0-9._-]*$`)
	noteForm = regexp.MustCompile(`^checkpoints/([0-9]{12})\.note$`)
)

// ValidName reports whether a file of a bundle may be called so: letters, digits,
// dot, dash and underscore, no part that begins with a dot, at most 100 octets.
func ValidName(name string) bool { return len(name) <= maxName && nameForm.MatchString(name) }

// NoteName is what the checkpoint of so many records is called.
func NoteName(size uint64) string { return fmt.Sprintf("checkpoints/%012d.note", size) }

// Parse reads a manifest in its one form. The error is ErrForm.
func Parse(data []byte) (Manifest, error) {
	if len(data) > MaxSize {
		return nil, fmt.Errorf("%w: it is larger than %d octets", ErrForm, MaxSize)
	}
	var m Manifest
	for n := 1; len(data) > 0; n++ {
		line, rest, whole := bytes.Cut(data, []byte("\n"))
		if !whole || len(line) < 67 || string(line[64:66]) != "  " {
			return nil, fmt.Errorf("%w: line %d", ErrForm, n)
		}
		e := Entry{Name: string(line[66:])}
		sum := string(line[:64])
		if _, err := hex.Decode(e.SHA256[:], line[:64]); err != nil || hex.EncodeToString(e.SHA256[:]) != sum || !ValidName(e.Name) {
			return nil, fmt.Errorf("%w: line %d", ErrForm, n)
		}
		if len(m) > 0 && m[len(m)-1].Name >= e.Name {
			return nil, fmt.Errorf("%w: line %d is not in the order of the names", ErrForm, n)
		}
		m, data = append(m, e), rest
	}
	if _, _, err := m.Checkpoint(); err != nil {
		return nil, err
	}
	return m, nil
}

// Checkpoint is the one that the manifest names: how many records it covers, and the
// SHA-256 of its note.
func (m Manifest) Checkpoint() (size uint64, sum [32]byte, err error) {
	found := 0
	for _, e := range m {
		part := noteForm.FindStringSubmatch(e.Name)
		if part == nil {
			continue
		}
		found++
		if size, err = strconv.ParseUint(part[1], 10, 53); err != nil {
			return 0, sum, fmt.Errorf("%w: %s", ErrForm, e.Name)
		}
		sum = e.SHA256
	}
	if found != 1 {
		return 0, sum, fmt.Errorf("%w: it names %d checkpoints, not one", ErrForm, found)
	}
	return size, sum, nil
}

// Bytes is the manifest's one form.
func (m Manifest) Bytes() []byte {
	var b bytes.Buffer
	for _, e := range m {
		_, _ = fmt.Fprintf(&b, "%x  %s\n", e.SHA256, e.Name)
	}
	return b.Bytes()
}

// Of returns the entry of a file.
func Of(name string, data []byte) Entry { return Entry{name, sha256.Sum256(data)} }
