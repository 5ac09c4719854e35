package keyholder

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/audit/bundle/manifest"
)

// SignManifest implements [rpc.ManifestSigner]. Everything that is signed is made
// here: the attributes, the time and the digest.
func (k *Keyholder) SignManifest(ctx context.Context, m, note []byte) ([]byte, error) {
	size, err := k.checkManifest(m, note)
	if err != nil {
		k.refusals.add("a manifest: " + err.Error())
		return nil, fmt.Errorf("%w: %w", rpc.ErrManifest, err)
	}
	if err := k.keepHead(size); err != nil {
		return nil, err
	}
	defer k.wanted()()
	return manifest.Sign(m, k.o.AuditCertificate, k.o.Now().UTC().Truncate(time.Second), func(attributes []byte) ([]byte, error) {
		return sign(ctx, k.o.Audit, attributes)
	})
}

// checkManifest wants a manifest that names the checkpoint in the note, and a
// checkpoint of the log that was followed, and returns how many records it covers.
func (k *Keyholder) checkManifest(m, note []byte) (uint64, error) {
	parsed, err := manifest.Parse(m)
	if err != nil {
		return 0, err
	}
	named, sum, err := parsed.Checkpoint()
	if err != nil {
		return 0, err
	}
	if sum != sha256.Sum256(note) {
		return 0, fmt.Errorf("it names another checkpoint than the one beside it, of %d records", named)
	}
	size, root, err := audit.OpenCheckpoint(note, k.verifier)
	if err != nil || size != named {
		return 0, fmt.Errorf("it names a checkpoint of %d records that was not signed here", named)
	}
	k.mu.Lock()
	own, known, wrong := k.chain.Head(), k.mark.size, k.wrong
	k.mu.Unlock()
	switch {
	case k.o.AuditCertificate == nil:
		return 0, rpc.ErrNoKey
	case wrong != nil:
		return 0, wrong
	case size > own.Size || size == own.Size && root != own.Root:
		return 0, fmt.Errorf("it names a checkpoint of %d records with root %x, and the log that was followed has %d", size, root[:8], own.Size)
	case own.Size < known:
		return 0, fmt.Errorf("the mark on the token knows of %d records, and the log that was followed has %d", known, own.Size)
	}
	return size, nil
}
