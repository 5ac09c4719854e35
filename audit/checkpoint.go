package audit

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// ErrCheckpoint is returned for a note that is no checkpoint of this log.
var ErrCheckpoint = errors.New("audit: not a checkpoint of this log")

// maxNote bounds a checkpoint with its signatures.
const maxNote = 16 << 10

// NoteText is the text of a checkpoint (C2SP tlog-checkpoint): origin, size, and
// root in base64, a line each.
func NoteText(origin string, h Head) string {
	return origin + "\n" + strconv.FormatUint(h.Size, 10) + "\n" + base64.StdEncoding.EncodeToString(h.Root[:]) + "\n"
}

// AssembleNote puts text and signature together (C2SP signed-note, signature
// type 0x02). The signature is DER ECDSA over the SHA-256 of the text.
func AssembleNote(origin string, pub *ecdsa.PublicKey, text string, signature []byte) ([]byte, error) {
	id, err := keyHash(pub)
	if err != nil {
		return nil, err
	}
	sig := binary.BigEndian.AppendUint32(nil, id)
	return []byte(text + "\n\u2014 " + origin + " " + base64.StdEncoding.EncodeToString(append(sig, signature...)) + "\n"), nil
}

// keyHash is the key's id in a note: the first four octets of the SHA-256 of its
// SubjectPublicKeyInfo. The key is on P-256, the one curve that checkpoints
// are signed on.
func keyHash(pub *ecdsa.PublicKey) (uint32, error) {
	if pub == nil || pub.Curve != elliptic.P256() {
		return 0, fmt.Errorf("%w: the audit key is not ECDSA on P-256", ErrCheckpoint)
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return 0, fmt.Errorf("audit: encoding the audit key: %w", err)
	}
	sum := sha256.Sum256(der)
	return binary.BigEndian.Uint32(sum[:4]), nil
}

type ecdsaVerifier struct {
	name string
	id   uint32
	pub  *ecdsa.PublicKey
}

// ECDSANoteVerifier verifies the checkpoints of the log of that origin. The error
// is ErrCheckpoint for a key that is not on P-256.
func ECDSANoteVerifier(origin string, pub *ecdsa.PublicKey) (note.Verifier, error) {
	if origin == "" || strings.ContainsAny(origin, " +\n") {
		return nil, fmt.Errorf("audit: %q cannot be an origin", origin)
	}
	id, err := keyHash(pub)
	if err != nil {
		return nil, err
	}
	return &ecdsaVerifier{origin, id, pub}, nil
}

func (v *ecdsaVerifier) Name() string    { return v.name }
func (v *ecdsaVerifier) KeyHash() uint32 { return v.id }
func (v *ecdsaVerifier) Verify(msg, sig []byte) bool {
	sum := sha256.Sum256(msg)
	return ecdsa.VerifyASN1(v.pub, sum[:], sig)
}

// OpenCheckpoint verifies a checkpoint's signature and returns its size and
// root. The error is ErrCheckpoint.
func OpenCheckpoint(data []byte, v note.Verifier) (size uint64, root tlog.Hash, err error) {
	if len(data) > maxNote {
		return 0, root, ErrCheckpoint
	}
	n, err := note.Open(data, note.VerifierList(v))
	if err != nil {
		return 0, root, fmt.Errorf("%w: %w", ErrCheckpoint, err)
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) != 4 || lines[0] != v.Name() || lines[3] != "" {
		return 0, root, ErrCheckpoint
	}
	size, err = strconv.ParseUint(lines[1], 10, 53)
	if err != nil || strconv.FormatUint(size, 10) != lines[1] {
		return 0, root, ErrCheckpoint
	}
	sum, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(sum) != len(root) {
		return 0, root, ErrCheckpoint
	}
	return size, tlog.Hash(sum), nil
}

// signWithin bounds the signer, and retryAfter how soon one that failed is asked
// again.
const (
	signWithin = 10 * time.Second
	retryAfter = 5 * time.Second
)

// keepNotes is how many checkpoint files are kept: each note stands in the log
// too.
const keepNotes = 16

// whenDue signs a checkpoint if it is time for one.
func (l *Log) whenDue() {
	if l.opt.Signer == nil || l.Healthy() != nil || time.Now().Before(l.w.retry) {
		return
	}
	age := time.Since(l.w.at)
	many := l.w.chain.size-l.w.signed >= l.opt.CheckpointRecords
	if !many && age < l.opt.CheckpointIdle && (!l.w.active || age < l.opt.CheckpointEvery) {
		return
	}
	if _, err := l.checkpoint(); err != nil {
		l.w.retry = time.Now().Add(retryAfter)
		l.opt.Log.Warn("no checkpoint was signed; it is tried again", zap.Error(err))
	}
}

// checkpoint has the head signed, keeps the note, and records it. A signer that
// fails costs nothing but the checkpoint; a disk that fails poisons the log.
func (l *Log) checkpoint() ([]byte, error) {
	if err := l.Healthy(); err != nil { // another one of this batch met a bad disk
		return nil, err
	}
	h := l.w.chain.Head()
	ctx, cancel := context.WithTimeout(context.Background(), signWithin)
	defer cancel()
	note, err := l.opt.Signer.SignCheckpoint(ctx, h)
	if err != nil {
		return nil, fmt.Errorf("audit: signing the checkpoint at %d: %w", h.Size, err)
	}
	size, root, err := OpenCheckpoint(note, l.opt.Verifier)
	if err != nil {
		return nil, err
	}
	if size != h.Size || root != h.Root {
		return nil, fmt.Errorf("%w: the signer signed another head", ErrCheckpoint)
	}
	if err := l.opt.disk.WriteFile(l.path(checkpointDir, noteName(h.Size)), note); err != nil {
		return nil, l.fail(fmt.Errorf("writing the checkpoint: %w", err))
	}
	p, err := prepare(Entry{Event: "log.checkpoint", Outcome: "signed", Actor: Actor{Kind: "system", ID: "log"},
		Object: Object{"size": h.Size, "root": hex.EncodeToString(h.Root[:]), "note": string(note)}})
	if err != nil {
		return nil, err
	}
	if _, err := l.write([]*prepared{p}, false); err != nil {
		return nil, l.fail(err)
	}
	l.w.signed, l.w.at, l.w.active = h.Size, time.Now(), false
	l.forget()
	return note, nil
}

func noteName(size uint64) string { return fmt.Sprintf("%012d.note", size) }

// forget removes old checkpoint files. A failure is no harm.
func (l *Log) forget() {
	sizes, err := numbered(l.path(checkpointDir), ".note")
	if err != nil {
		return
	}
	for _, n := range sizes[:max(0, len(sizes)-keepNotes)] {
		_ = os.Remove(l.path(checkpointDir, noteName(n)))
	}
}
