package audit

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

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
// SubjectPublicKeyInfo.
func keyHash(pub *ecdsa.PublicKey) (uint32, error) {
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

// ECDSANoteVerifier verifies the checkpoints of the log of that origin.
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
