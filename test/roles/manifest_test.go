package roles_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"testing"

	"github.com/postern-pki/postern/appliance/link"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/audit/bundle/manifest"
)

// naming is a manifest that names a note as the checkpoint of so many records.
func naming(size uint64, note []byte) []byte {
	return manifest.Manifest{manifest.Of("VERIFY.txt", []byte("v")), manifest.Of(manifest.NoteName(size), note)}.Bytes()
}

// manifests name a checkpoint that the keyholder signed, and come as manifests.
func (l *liar) manifests(t *testing.T) {
	head := l.log.Head()
	note := must(l.keys.SignCheckpoint(l.within(), head))(t)
	good := naming(head.Size, note)
	sig := must(l.keys.SignManifest(l.within(), good, note))(t)
	if s, err := manifest.Verify(good, sig); err != nil || !s.Certificate.Equal(l.cfg.AuditCertificate) {
		t.Errorf("the signature: %+v, %v", s, err)
	}
	own := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	forge := func(h audit.Head, key *ecdsa.PrivateKey) []byte {
		text := audit.NoteText(l.cfg.Origin, h)
		sum := sha256.Sum256([]byte(text))
		return must(audit.AssembleNote(l.cfg.Origin, &key.PublicKey, text, must(ecdsa.SignASN1(rand.Reader, key, sum[:]))(t)))(t)
	}
	other := head
	other.Root[0] ^= 1
	changed := bytes.Replace(note, []byte("\n\n"), []byte("\n\n\n"), 1)
	pub, _ := l.cfg.AuditCertificate.PublicKey.(*ecdsa.PublicKey)
	// The octets of a real signature, under the text of another head.
	moved := must(audit.AssembleNote(l.cfg.Origin, pub, audit.NoteText(l.cfg.Origin, other), []byte{0x30, 6, 2, 1, 1, 2, 1, 1}))(t)
	others := forge(head, own)
	digest := sha256.Sum256(good)
	for what, one := range map[string]struct{ manifest, note []byte }{
		"a checkpoint of another key":         {naming(head.Size, others), others},
		"another root":                        {naming(head.Size, moved), moved},
		"a note that was changed":             {naming(head.Size, changed), changed},
		"a checkpoint under another size":     {naming(head.Size+1, note), note},
		"a checkpoint that is not beside it":  {naming(head.Size, note), moved},
		"no checkpoint":                       {manifest.Manifest{manifest.Of("VERIFY.txt", nil)}.Bytes(), note},
		"a digest":                            {digest[:], note},
		"a checkpoint's text":                 {[]byte(audit.NoteText(l.cfg.Origin, head)), note},
		"a line of the log":                   {must(audit.Encode(audit.Record{Event: "a", Outcome: "b", Actor: audit.Actor{Kind: "c"}}))(t).Raw, note},
		"a certificate":                       {l.cfg.Issuers[0].CA.RawTBSCertificate, note},
		"signed attributes of another's":      {sig[len(sig)/2:], note},
		"a manifest with an empty line":       {append(bytes.Clone(good), '\n'), note},
		"nothing":                             {nil, nil},
		"a manifest that names it twice over": {append(bytes.Clone(good), good...), note},
	} {
		if got, err := l.keys.SignManifest(l.within(), one.manifest, one.note); got != nil || !errors.Is(err, rpc.ErrManifest) {
			t.Errorf("%s: %x, %v", what, got, err)
		}
	}
	l.wants("a manifest: manifest: not a manifest of a bundle", "that was not signed here", "a manifest: it names another checkpoint than the one beside it")
	c := link.NewClient(l.toKeyholder(rpc.RoleAuthority))
	defer func() { _ = c.Close() }()
	no(t, c.Ready(l.within()))
	for what, fill := range map[string]func(e *link.Encoder){
		"a digest alone":      func(e *link.Encoder) { e.Raw(digest[:]) },
		"a manifest alone":    func(e *link.Encoder) { e.Bytes(good) },
		"attributes behind":   func(e *link.Encoder) { e.Bytes(good); e.Bytes(note); e.Bytes(digest[:]) },
		"a manifest too long": func(e *link.Encoder) { e.Bytes(make([]byte, manifest.MaxSize+1)); e.Bytes(note) },
	} {
		e := new(link.Encoder)
		fill(e)
		_, err := c.Call(l.within(), verbSignManifest, e)
		fault(t, what, err, link.CodeMessage)
	}
}
