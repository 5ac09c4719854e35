package newlog

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/audit/headfile"
)

// What may be found, in the field "state".
const (
	None    = "none"
	Good    = "verifies"
	Damaged = "does not verify"
)

// Marks says what the token keeps: each note, by whichever of the audit keys signed it.
// A token has one, or two where a replacement was cut short.
func Marks(notes [][]byte, keys []*ecdsa.PublicKey) []any {
	out := []any{}
	for _, n := range notes {
		ob := audit.Object{"state": Damaged, "sha256": digest(n)}
		origin := firstLine(n)
		for _, k := range keys {
			v, err := audit.ECDSANoteVerifier(origin, k)
			if err != nil {
				continue
			}
			if size, root, err := audit.OpenCheckpoint(n, v); err == nil {
				ob = audit.Object{"state": Good, "origin": origin, "size": size, "root": hex.EncodeToString(root[:]), "sha256": digest(n)}
				if len(n) <= maxNote {
					ob["note"] = string(n)
				}
			}
		}
		out = append(out, ob)
	}
	return out
}

// maxNote is how many octets of a note have room in a record: all of one of ours.
const maxNote = 1 << 10

// Mark is the checkpoint of no line of the log of an origin, signed by its audit key.
func Mark(origin string, key crypto.Signer) ([]byte, error) {
	pub, ok := key.Public().(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("the audit key is a %T", key.Public())
	}
	text := audit.NoteText(origin, new(audit.Chain).Head())
	sum := sha256.Sum256([]byte(text))
	sig, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	note, err := audit.AssembleNote(origin, pub, text, sig)
	if err != nil {
		return nil, err
	}
	v, err := audit.ECDSANoteVerifier(origin, pub)
	if err == nil {
		_, _, err = audit.OpenCheckpoint(note, v)
	}
	return note, err
}

func firstLine(n []byte) string {
	line, _, _ := strings.Cut(string(n), "\n")
	return line
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Head says what the keyholder's file knows.
func Head(p Places) (audit.Object, error) {
	raw, err := readBounded(p.head(), 2*headfile.SlotSize)
	if errors.Is(err, fs.ErrNotExist) {
		return audit.Object{"state": None}, nil
	}
	if err != nil {
		return nil, err
	}
	c, _, err := headfile.Decode(raw)
	if err != nil {
		return audit.Object{"state": Damaged, "sha256": digest(raw)}, nil
	}
	h := c.Head()
	return audit.Object{"state": Good, "size": h.Size, "root": hex.EncodeToString(h.Root[:]), "last_sha256": hex.EncodeToString(h.Prev[:])}, nil
}

// Disk says what the log on the disk holds: whether it verifies by one of the audit
// keys and if not where, and its last line that can be read. "segments_sha256" is
// what `cd segments && sha256sum *.jsonl | sha256sum` says.
func Disk(ctx context.Context, p Places, keys []*ecdsa.PublicKey) (audit.Object, error) {
	segments, err := filepath.Glob(filepath.Join(p.log(), "segments", "*.jsonl"))
	if err != nil || len(segments) == 0 {
		return audit.Object{"state": None}, err
	}
	ob := audit.Object{"state": Damaged}
	if ob["segments_sha256"], err = sums(segments); err != nil {
		return nil, err
	}
	// A line that cannot be read ends the reading: what is wrong there is said below.
	_ = audit.Scan(p.log(), 0, func(l audit.Line) error {
		if l.Record.Seq == 0 {
			ob["origin"] = l.Record.Object.String("origin")
			ob["after_origin"] = l.Record.Object.Object("after").String("old_origin")
		}
		hash := l.Hash()
		ob["readable"], ob["last_sha256"], ob["last_time"] = l.Record.Seq+1, hex.EncodeToString(hash[:]), l.Record.Time.Format(time.RFC3339Nano)
		return ctx.Err()
	})
	origin, _ := ob["origin"].(string)
	for _, k := range keys {
		v, err := audit.ECDSANoteVerifier(origin, k)
		if err != nil {
			continue
		}
		r, err := audit.Verify(ctx, p.log(), audit.VerifyOptions{Verifier: v})
		if err == nil {
			ob["state"], ob["size"], ob["root"], ob["signed"] = Good, r.Records, r.Root, r.Signed
			delete(ob, "damage")
			return ob, nil
		}
		why := audit.Object{"why": err.Error()}
		if d, ok := errors.AsType[*audit.Damage](err); ok {
			why = audit.Object{"segment": d.Segment, "line": d.Line, "octet": d.Offset, "record": d.Seq, "why": d.Why}
		}
		if ob["damage"] == nil {
			ob["damage"] = why
		}
	}
	return ob, ctx.Err()
}

// sums is the digest of a list of digests, as sha256sum writes it.
func sums(paths []string) (string, error) {
	all := sha256.New()
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		h := sha256.New()
		_, err = io.Copy(h, bufio.NewReader(f))
		if err = errors.Join(err, f.Close()); err != nil {
			return "", err
		}
		_, _ = fmt.Fprintf(all, "%x  %s\n", h.Sum(nil), filepath.Base(path))
	}
	return hex.EncodeToString(all.Sum(nil)), nil
}

// Used reports whether an origin is one of a log that was found.
func Used(found audit.Object, origin string) bool {
	for _, m := range found.Objects("marks") {
		if m.String("origin") == origin {
			return true
		}
	}
	disk := found.Object("disk")
	return disk.String("origin") == origin || disk.String("after_origin") == origin
}

// Words say what was found, a line each.
func Words(found audit.Object) []string {
	var out []string
	if len(found.Objects("marks")) == 0 {
		out = append(out, "the token keeps no mark")
	}
	for _, m := range found.Objects("marks") {
		if m.String("state") != Good {
			out = append(out, "the token keeps a mark that does not verify by the audit key, SHA-256 "+m.String("sha256"))
			continue
		}
		out = append(out, fmt.Sprintf("the token's mark knows of %d records of %s, root %s", m.Int("size"), m.String("origin"), m.String("root")))
	}
	switch h := found.Object("head"); h.String("state") {
	case None:
		out = append(out, "the keyholder has no file of its own")
	case Good:
		out = append(out, fmt.Sprintf("the keyholder's file knows of %d records, the last one with SHA-256 %s", h.Int("size"), h.String("last_sha256")))
	default:
		out = append(out, "the keyholder's file is damaged, SHA-256 "+h.String("sha256"))
	}
	d := found.Object("disk")
	switch d.String("state") {
	case None:
		return append(out, "the disk has no log")
	case Good:
		out = append(out, fmt.Sprintf("the disk holds %d records of %s, root %s; they verify", d.Int("size"), d.String("origin"), d.String("root")))
	default:
		w := d.Object("damage")
		out = append(out, fmt.Sprintf("the disk holds a log that does not verify: segment %s, line %d, record %d: %s", w.String("segment"), w.Int("line"), w.Int("record"), w.String("why")))
	}
	return append(out, fmt.Sprintf("its last readable record is number %d of %s, SHA-256 %s", d.Int("readable")-1, d.String("last_time"), d.String("last_sha256")))
}
