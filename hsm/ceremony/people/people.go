// Package people verifies the signatures that the people of a ceremony make with
// their own keys and with a tool that everybody has: `ssh-keygen -Y sign`, with a key
// in a file, in an agent or on a security key.
//
// # What a caller may rely on
//
// A signature counts for one key, one purpose (the namespace) and the exact bytes of
// one file. Keys are Ed25519, ECDSA or RSA of at least 2048 bits, and those of
// security keys. The format is PROTOCOL.sshsig of OpenSSH.
//
// # What it does not protect against
//
// Whose a key is, the plan says, and people checked it. That somebody was there when
// it signed is not shown; a security key that wants a touch comes closer.
package people

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

// The namespaces: what a signature is for.
const (
	ForPlan       = "postern-ceremony-plan"
	ForTranscript = "postern-ceremony-transcript"
)

// ErrSignature says that a signature is none of this key, for this purpose, of this file.
var ErrSignature = errors.New("the signature does not hold")

const (
	magic    = "SSHSIG"
	maxSize  = 16 << 10 // bytes of a signature's file
	leastRSA = 2048
)

// A Key is a person's public key.
type Key struct{ key ssh.PublicKey }

// ParseKey reads a line as in an authorized_keys file, without options.
func ParseKey(line string) (Key, error) {
	key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil || len(options) > 0 || len(rest) > 0 {
		return Key{}, errors.New("must be one SSH public key, such as `ssh-ed25519 AAAA...`")
	}
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoSKECDSA256:
	case ssh.KeyAlgoRSA:
		if c, ok := key.(ssh.CryptoPublicKey); ok {
			if pub, ok := c.CryptoPublicKey().(*rsa.PublicKey); !ok || pub.N.BitLen() < leastRSA {
				return Key{}, fmt.Errorf("an RSA key has at least %d bits", leastRSA)
			}
		}
	default:
		return Key{}, fmt.Errorf("keys of type %s are not accepted", key.Type())
	}
	return Key{key}, nil
}

// Fingerprint names the key as ssh-keygen -l does.
func (k Key) Fingerprint() string {
	if k.key == nil {
		return ""
	}
	return ssh.FingerprintSHA256(k.key)
}

// wire is the format of PROTOCOL.sshsig behind the magic.
type wire struct {
	Version   uint32
	PublicKey []byte
	Namespace string
	Reserved  string
	Hash      string
	Signature []byte
}

// Verify checks an armored signature of a message for one purpose.
func (k Key) Verify(armored []byte, namespace string, message []byte) error {
	bad := func(say string) error { return fmt.Errorf("%w: %s", ErrSignature, say) }
	if k.key == nil || len(armored) > maxSize {
		return bad("there is no key, or the file is too large for a signature")
	}
	block, rest := pem.Decode(armored)
	if block == nil || block.Type != "SSH SIGNATURE" || strings.TrimSpace(string(rest)) != "" || len(block.Headers) > 0 {
		return bad("the file is no SSH signature; ssh-keygen -Y sign makes one")
	}
	blob, ok := bytes.CutPrefix(block.Bytes, []byte(magic))
	if !ok {
		return bad("it has another format")
	}
	var w wire
	if err := ssh.Unmarshal(blob, &w); err != nil || w.Version != 1 {
		return bad("it has another format")
	}
	if !bytes.Equal(w.PublicKey, k.key.Marshal()) {
		return bad("it was made with another key than the plan's, " + k.Fingerprint())
	}
	if w.Namespace != namespace {
		return bad(fmt.Sprintf("it was made for %q and not for %q (ssh-keygen -n)", w.Namespace, namespace))
	}
	var digest []byte
	switch w.Hash {
	case "sha256":
		sum := sha256.Sum256(message)
		digest = sum[:]
	case "sha512":
		sum := sha512.Sum512(message)
		digest = sum[:]
	default:
		return bad("its hash is neither sha256 nor sha512")
	}
	var sig struct {
		Format string
		Blob   []byte
		Rest   []byte `ssh:"rest"`
	}
	if err := ssh.Unmarshal(w.Signature, &sig); err != nil || sig.Format == ssh.KeyAlgoRSA { // that one is by SHA-1
		return bad("it has another format")
	}
	signed := append([]byte(magic), ssh.Marshal(struct {
		Namespace, Reserved, Hash string
		Digest                    []byte
	}{w.Namespace, w.Reserved, w.Hash, digest})...)
	if err := k.key.Verify(signed, &ssh.Signature{Format: sig.Format, Blob: sig.Blob, Rest: sig.Rest}); err != nil {
		return bad("it is not of these bytes")
	}
	return nil
}
