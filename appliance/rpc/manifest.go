package rpc

import (
	"context"

	"github.com/postern-pki/postern/appliance/link"
	"github.com/postern-pki/postern/audit/bundle/manifest"
)

// verbSignManifest is the authority's, of the keyholder.
const verbSignManifest link.Verb = 80

// maxManifestSignature bounds a signature with its certificate, in octets.
const maxManifestSignature = 64 << 10

// A ManifestSigner signs the list of a bundle's files. It gets the manifest and the
// note of the checkpoint that the manifest names, both whole, and returns detached
// CMS in DER. The error is ErrManifest for a manifest that is none, and for one that
// does not name a checkpoint of the log that was followed.
type ManifestSigner interface {
	SignManifest(ctx context.Context, manifest, note []byte) ([]byte, error)
}

// SignManifest implements [ManifestSigner].
func (h *Holder) SignManifest(ctx context.Context, m, note []byte) ([]byte, error) {
	e := link.Sized(64 + len(m) + len(note))
	encodeManifest(e, manifestCall{m, note})
	d, err := h.call(ctx, verbSignManifest, e)
	if err != nil {
		return nil, err
	}
	sig := d.Bytes(maxManifestSignature)
	return sig, d.Err()
}

type manifestCall struct{ Manifest, Note []byte }

func encodeManifest(e *link.Encoder, c manifestCall) {
	e.Bytes(c.Manifest)
	e.Bytes(c.Note)
}

func decodeManifest(d *link.Decoder) manifestCall {
	return manifestCall{Manifest: d.Bytes(manifest.MaxSize), Note: d.Bytes(maxNote)}
}

func signManifest(k ManifestSigner) link.Handler {
	return link.Handler{Do: func(ctx context.Context, d *link.Decoder, out *link.Encoder) error {
		c := decodeManifest(d)
		if err := d.Err(); err != nil {
			return err
		}
		return answer(out)(k.SignManifest(ctx, c.Manifest, c.Note))
	}}
}
