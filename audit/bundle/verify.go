package bundle

import (
	"archive/tar"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/audit/bundle/manifest"
)

// A BadError says which file of a bundle is not what it should be. Where a record is
// not, the error is an *audit.Damage.
type BadError struct{ File, Why string }

// Error names the file.
func (e *BadError) Error() string { return fmt.Sprintf("bundle: bad: %s: %s", e.File, e.Why) }

// ErrCut says that the tar ends before its end: what came so far was good.
var ErrCut = errors.New("bundle: the file is cut short")

// VerifyOptions say what a bundle is judged by. Trust is required.
type VerifyOptions struct {
	Trust    *x509.Certificate              // of the audit key, from elsewhere than the bundle
	Previous *Previous                      // the bundle before, verified; nil: none
	Each     func(*audit.Seen) error        // gets each record that was found good; nil: nobody does
	Origin   func(origin string, info Info) // told once, before the first record; nil: nobody is
}

// Previous is what the next bundle has to continue.
type Previous struct {
	Manifest string // SHA-256, hex
	Info     Info
}

// Verified is what a bundle holds.
type Verified struct {
	Previous
	Signed  time.Time // by the signer's clock; zero: it is not signed
	Report  audit.Report
	Missing []string // what is not there, and a whole verification needs; nothing was found to be wrong
}

// verifier reads a bundle from its first octet to its last.
type verifier struct {
	o        VerifyOptions
	by       note.Verifier
	tar      *tar.Reader
	folder   string
	out      Verified
	list     manifest.Manifest
	cert     *x509.Certificate // of the signature
	root     tlog.Hash
	notes    map[uint64]tlog.Hash
	walk     *audit.Walk
	issued   hash.Hash // certificates that the records name
	claimed  [32]byte  // what issued.pem has
	count    uint64
	genesis  string // digest of the transcript that the first record names
	digests  map[string]bool
	segments int
}

// Verify checks a bundle. The error is *BadError or *audit.Damage for one that is not
// what it should be, ErrCut, or that of r.
func Verify(ctx context.Context, r io.Reader, o VerifyOptions) (Verified, error) {
	v := &verifier{o: o, tar: tar.NewReader(r), notes: make(map[uint64]tlog.Hash), issued: sha256.New(), digests: make(map[string]bool)}
	if err := v.head(); err != nil {
		return v.out, err
	}
	for _, e := range v.list {
		h, err := v.next()
		if err != nil {
			return v.out, err
		}
		if h == nil || h.Name != v.folder+e.Name {
			return v.out, &BadError{e.Name, "the manifest lists it, and it is not there, or not in its place"}
		}
		if err := v.file(ctx, e, h); err != nil {
			return v.out, err
		}
	}
	if h, err := v.next(); err != nil || h != nil {
		if err == nil {
			err = &BadError{strings.TrimPrefix(h.Name, v.folder), "it is there, and the manifest does not list it"}
		}
		return v.out, err
	}
	if n, err := io.Copy(io.Discard, r); err != nil || n > 0 {
		return v.out, errors.Join(err, &BadError{"the tar", "something follows its end"})
	}
	return v.out, v.end()
}

// next is the next file, nil at the end. The headers have one form.
func (v *verifier) next() (*tar.Header, error) {
	h, err := v.tar.Next()
	switch {
	case errors.Is(err, io.EOF):
		return nil, nil
	case errors.Is(err, io.ErrUnexpectedEOF):
		return nil, ErrCut
	case err != nil:
		return nil, &BadError{"the tar", err.Error()}
	case h.Typeflag != tar.TypeReg || len(h.PAXRecords) > 0 || h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "":
		return nil, &BadError{h.Name, "it is no plain file"}
	}
	return h, nil
}

// head reads manifest and signature, and the first file where there is no signature.
func (v *verifier) head() error {
	h, err := v.next()
	if err != nil {
		return err
	}
	if h == nil || !strings.HasSuffix(h.Name, "/"+fileManifest) || strings.Count(h.Name, "/") != 1 {
		return &BadError{fileManifest, "the file does not begin with it: this is no bundle"}
	}
	v.folder = strings.TrimSuffix(h.Name, fileManifest)
	data, err := v.small(fileManifest, h)
	if err != nil {
		return err
	}
	if v.list, err = manifest.Parse(data); err != nil {
		return &BadError{fileManifest, err.Error()}
	}
	sum := sha256.Sum256(data)
	v.out.Manifest = hex.EncodeToString(sum[:])
	if h, err = v.next(); err != nil {
		return err
	}
	if h == nil || h.Name != v.folder+fileSignature {
		return &BadError{fileSignature, "it is not there: nobody signed this bundle"}
	}
	signature, err := v.small(fileSignature, h)
	if err != nil {
		return err
	}
	s, err := manifest.Verify(data, signature)
	if err != nil {
		return &BadError{fileSignature, err.Error()}
	}
	if string(s.Certificate.RawSubjectPublicKeyInfo) != string(v.o.Trust.RawSubjectPublicKeyInfo) {
		return &BadError{fileSignature, "the manifest is signed, but with another key than that of the trusted certificate"}
	}
	v.cert, v.out.Signed = s.Certificate, s.At
	return nil
}

// small reads a file that has a bound.
func (v *verifier) small(name string, h *tar.Header) ([]byte, error) {
	if h.Size > maxFile {
		return nil, &BadError{name, fmt.Sprintf("it is larger than %d octets", maxFile)}
	}
	data, err := io.ReadAll(v.tar)
	return data, cut(err)
}

func cut(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrCut
	}
	return err
}

// file checks one file that the manifest lists.
func (v *verifier) file(ctx context.Context, e manifest.Entry, h *tar.Header) error {
	v.digests[hex.EncodeToString(e.SHA256[:])] = true
	if strings.HasPrefix(e.Name, segmentPrefix) {
		return v.segment(ctx, e)
	}
	sum := sha256.New()
	if e.Name == fileIssued {
		v.claimed = e.SHA256
		if _, err := io.Copy(sum, v.tar); err != nil {
			return cut(err)
		}
		return v.same(e, [32]byte(sum.Sum(nil)))
	}
	data, err := v.small(e.Name, h)
	if err != nil {
		return err
	}
	if err := v.same(e, sha256.Sum256(data)); err != nil {
		return err
	}
	switch {
	case e.Name == fileInfo:
		return v.info(data)
	case e.Name == fileCertificate:
		if string(data) != string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: v.cert.Raw})) {
			return &BadError{e.Name, "it is another certificate than that of the signature"}
		}
	case e.Name == fileConsistency:
		return v.consistency(data)
	case strings.HasPrefix(e.Name, "checkpoints/"):
		return v.checkpoint(e.Name, data)
	case e.Name == fileText, e.Name == fileScript, fileForm.MatchString(e.Name):
	default:
		return &BadError{e.Name, "a bundle has no such file"}
	}
	return nil
}

func (v *verifier) same(e manifest.Entry, sum [32]byte) error {
	if sum != e.SHA256 {
		return &BadError{e.Name, "its SHA-256 is not the one in the manifest"}
	}
	return nil
}

// info reads bundle.json.
func (v *verifier) info(data []byte) error {
	i, err := parseInfo(data)
	if err != nil {
		return &BadError{fileInfo, err.Error()}
	}
	v.out.Info = *i
	if v.folder != folder(i.From, i.Size) {
		return &BadError{fileInfo, "the folder is called for another range"}
	}
	pub, ok := v.o.Trust.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return &BadError{fileCertificate, "the trusted key is not ECDSA"}
	}
	if v.by, err = audit.ECDSANoteVerifier(i.Origin, pub); err != nil {
		return &BadError{fileInfo, err.Error()}
	}
	if v.o.Origin != nil {
		v.o.Origin(i.Origin, *i)
	}
	return nil
}

// checkpoint reads the one that the bundle ends with.
func (v *verifier) checkpoint(name string, data []byte) error {
	if v.by == nil {
		return &BadError{fileInfo, "the manifest does not list it"}
	}
	size, root, err := audit.OpenCheckpoint(data, v.by)
	if err != nil {
		return &BadError{name, "it does not verify with the audit certificate, for the log " + v.out.Info.Origin}
	}
	if size != v.out.Info.Size || name != manifest.NoteName(size) || hex.EncodeToString(root[:]) != v.out.Info.Root {
		return &BadError{name, "it is of another size or root than bundle.json says"}
	}
	v.root = root
	v.notes[size] = root
	start, err := v.out.Info.start()
	if err != nil {
		return &BadError{fileInfo, err.Error()}
	}
	if err := v.continues(start); err != nil {
		return err
	}
	v.walk = audit.NewWalk(audit.WalkOptions{Verifier: v.by, From: start, Notes: v.notes, Each: v.each})
	return nil
}

// consistency checks the proof that is in the bundle, by itself and against the
// bundle before.
func (v *verifier) consistency(data []byte) error {
	c, err := parseConsistency(data)
	if err != nil {
		return &BadError{fileConsistency, err.Error()}
	}
	if v.walk == nil {
		return &BadError{fileConsistency, "there is no checkpoint before it"}
	}
	if err := c.check(v.out.Info.Size, v.root); err != nil {
		return &BadError{fileConsistency, err.Error()}
	}
	if p := v.o.Previous; p != nil && p.Info.Size == c.Size && p.Info.Root != c.Root {
		return &BadError{fileConsistency, fmt.Sprintf("two histories: it goes on from %d records with another root than the bundle before has", c.Size)}
	}
	return nil
}

// continues compares the beginning with the end of the bundle before.
func (v *verifier) continues(start *audit.Chain) error {
	p := v.o.Previous
	if p == nil {
		return nil
	}
	root, err := digest(p.Info.Root)
	if err != nil {
		return err
	}
	i := v.out.Info
	switch head := start.Head(); {
	case p.Info.Origin != i.Origin:
		return &BadError{fileInfo, fmt.Sprintf("it is of the log %q, and the bundle before of %q", i.Origin, p.Info.Origin)}
	case p.Info.Size > i.Size:
		return &BadError{fileInfo, fmt.Sprintf("it ends with %d records, and the bundle before with %d: an old log was put back, or they are in the wrong order", i.Size, p.Info.Size)}
	case p.Info.Size == i.From && head.Root != root, p.Info.Size == i.Size && v.root != root:
		return &BadError{fileInfo, fmt.Sprintf("two histories: the first %d records are not those of the bundle before", p.Info.Size)}
	case p.Info.Size < i.From:
		v.out.Missing = append(v.out.Missing, fmt.Sprintf("records %d to %d: they are neither in this bundle nor in the one before", p.Info.Size, i.From-1))
	default:
		v.notes[p.Info.Size] = root
	}
	return nil
}

// OpenPrevious reads and verifies the beginning of a bundle, up to its checkpoint:
// what an export needs of the bundle before. Its records are not looked at.
func OpenPrevious(r io.Reader, trust *x509.Certificate) (*Previous, error) {
	v := &verifier{o: VerifyOptions{Trust: trust}, tar: tar.NewReader(r), notes: make(map[uint64]tlog.Hash), digests: make(map[string]bool)}
	if err := v.head(); err != nil {
		return nil, err
	}
	for _, e := range v.list {
		h, err := v.next()
		if err != nil {
			return nil, err
		}
		if h == nil || h.Name != v.folder+e.Name || strings.HasPrefix(e.Name, segmentPrefix) {
			break
		}
		if err := v.file(context.Background(), e, h); err != nil {
			return nil, err
		}
		if v.walk != nil {
			return &v.out.Previous, nil
		}
	}
	return nil, &BadError{fileManifest, "there is no checkpoint before the records"}
}
