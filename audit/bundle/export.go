package bundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/audit/bundle/manifest"
)

// A File goes into the bundle beside the log: below ceremony/, policy/ or crls/, or
// certificates/issuers.pem. One with a Digest is left out where no record of the range
// has that text.
type File struct {
	Name   string
	Data   []byte
	Digest string
}

var fileForm = regexp.MustCompile(`^(ceremony/[^/]+|policy/[^/]+|crls/[^/]+|certificates/issuers\.pem)$`)

// ExportOptions say what is exported; Dir, Verifier, Certificate, Temp and Sign are
// required.
type ExportOptions struct {
	Dir         string // the log's folder
	Verifier    note.Verifier
	Certificate *x509.Certificate
	From, To    Bound
	Previous    *Previous // the bundle before, if there is one
	Files       []File
	Exporter    string // version of the program
	Temp        string // a folder for a file as large as the certificates
	// Sign signs a manifest, see package manifest; note is the checkpoint that it names.
	Sign func(ctx context.Context, manifest, note []byte) ([]byte, error)
}

// Exported is what was written.
type Exported struct {
	Folder   string // in the tar
	Info     Info
	Manifest string // its SHA-256, hex
}

// export is one that is under way.
type export struct {
	o      ExportOptions
	extent extent
	info   Info
	walk   *audit.Walk
	start  *audit.Chain // before the first record
	prover audit.Prover
	parts  []*part
	wanted map[string]bool // digests of Files: whether a record has it
	issued *os.File
	sum    hash.Hash // of issued
}

// A part is what the bundle has of a segment.
type part struct {
	file        string // on the disk
	first       uint64
	offset, len int64
	sum         hash.Hash
}

func (p *part) name() string { return fmt.Sprintf("segments/%012d.jsonl", p.first) }

// Export writes a bundle to w. The error is *audit.Damage for a log that is not what
// it should be, ErrUnsigned, ErrRange, or that of the disk, of w or of Sign.
func Export(ctx context.Context, o ExportOptions, w io.Writer) (_ Exported, err error) {
	if o.Previous != nil && !o.From.Set {
		o.From = Bound{Set: true, Seq: o.Previous.Info.Size}
	}
	e := &export{o: o, wanted: make(map[string]bool), sum: sha256.New()}
	for _, f := range o.Files {
		if !fileForm.MatchString(f.Name) || !manifest.ValidName(f.Name) || len(f.Data) > maxFile {
			return Exported{}, fmt.Errorf("%w: %q may not be a file of a bundle, or is larger than %d octets", ErrForm, f.Name, maxFile)
		}
		if f.Digest != "" {
			e.wanted[f.Digest] = false
		}
	}
	if e.extent, err = find(ctx, o.Dir, o.From, o.To); err != nil {
		return Exported{}, err
	}
	if e.issued, err = os.CreateTemp(o.Temp, ".issued-*"); err != nil {
		return Exported{}, fmt.Errorf("bundle: %w", err)
	}
	defer func() { err = errors.Join(err, e.issued.Close(), os.Remove(e.issued.Name())) }()
	if err := e.read(ctx); err != nil {
		return Exported{}, err
	}
	return e.write(ctx, w)
}

var errEnd = errors.New("bundle: the end of the range")

// read walks the log to the end of the range.
func (e *export) read(ctx context.Context) error {
	size, root, err := audit.OpenCheckpoint(e.extent.note, e.o.Verifier)
	if err != nil || size != e.extent.size {
		return &audit.Damage{Seq: e.extent.size, Why: "the checkpoint in the record does not verify with the audit certificate"}
	}
	if p := e.o.Previous; p != nil {
		if p.Info.Size > size {
			return fmt.Errorf("%w: the earlier bundle ends with %d records, and this one with %d", ErrRange, p.Info.Size, size)
		}
		_, _ = e.prover.Consistent(p.Info.Size, size) // to have what it needs kept
	}
	e.start = new(audit.Chain)
	e.walk = audit.NewWalk(audit.WalkOptions{Verifier: e.o.Verifier, Each: e.each})
	if err := e.walk.Folder(ctx, e.o.Dir); !errors.Is(err, errEnd) {
		if err == nil {
			err = &audit.Damage{Seq: size, Why: "the log ends before the checkpoint"}
		}
		return err
	}
	if e.walk.Chain().Head().Root != root {
		return &audit.Damage{Seq: size - 1, Why: "the signed checkpoint of the records up to this one has another root"}
	}
	return nil
}

// each takes one record of the log.
func (e *export) each(s *audit.Seen) error {
	e.prover.Add(s.Leaf)
	if s.Seq+1 == e.extent.from {
		e.start = e.walk.Chain()
	}
	if s.Seq >= e.extent.from {
		if err := e.take(s); err != nil {
			return err
		}
	}
	if s.Seq+1 == e.extent.size {
		return errEnd
	}
	return nil
}

// take takes one record of the range.
func (e *export) take(s *audit.Seen) error {
	if len(e.parts) == 0 || e.parts[len(e.parts)-1].file != s.Segment {
		e.parts = append(e.parts, &part{file: s.Segment, first: s.Seq, offset: s.Offset, sum: sha256.New()})
	}
	p := e.parts[len(e.parts)-1]
	p.len += int64(len(s.Raw))
	_, _ = p.sum.Write(s.Raw)
	e.info.Last = strings.Trim(string(s.Time), `"`)
	if e.info.First == "" {
		e.info.First = e.info.Last
	}
	for digest, found := range e.wanted {
		if !found && bytes.Contains(s.Object, []byte(digest)) {
			e.wanted[digest] = true
		}
	}
	if cert := issuedIn(s); cert != nil {
		e.info.Certificates++
		if err := armor(io.MultiWriter(e.issued, e.sum), cert); err != nil {
			return err
		}
	}
	return e.info.version(s)
}

// issuedIn is the certificate that a record says was issued, in base64; nil if it is
// another record.
func issuedIn(s *audit.Seen) []byte {
	if string(s.Outcome) != `"issued"` {
		return nil
	}
	text := audit.Field(s.Object, "certificate")
	if len(text) <= 2 || text[0] != '"' {
		return nil
	}
	return text[1 : len(text)-1]
}

// armor writes a certificate in base64 as PEM: lines of 64 (RFC 7468, section 2).
func armor(w io.Writer, text []byte) error {
	b := append(make([]byte, 0, len(text)+len(text)/64+64), "-----BEGIN CERTIFICATE-----\n"...)
	for line := range slices.Chunk(text, 64) {
		b = append(append(b, line...), '\n')
	}
	if _, err := w.Write(append(b, "-----END CERTIFICATE-----\n"...)); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	return nil
}

// version notes what a start says of the service.
func (i *Info) version(s *audit.Seen) error {
	if string(s.Event) != `"system.start"` {
		return nil
	}
	l, err := audit.ParseLine(s.Raw)
	if err != nil {
		return err
	}
	o := l.Record.Object
	v := Version{s.Seq, o.String("version"), o.String("policy"), o.String("config")}
	if n := len(i.Versions); n > 0 {
		last := i.Versions[n-1]
		if last.Seq = v.Seq; last == v || n == maxVersions {
			return nil
		}
	}
	i.Versions = append(i.Versions, v)
	return nil
}

// content is a file of the bundle on its way into the tar.
type content struct {
	entry manifest.Entry
	size  int64
	copy  func(w io.Writer) error
}

func whole(name string, data []byte) content {
	return content{manifest.Of(name, data), int64(len(data)), func(w io.Writer) error { _, err := w.Write(data); return err }}
}

// write signs the manifest and writes the tar.
func (e *export) write(ctx context.Context, w io.Writer) (Exported, error) {
	files, err := e.contents()
	if err != nil {
		return Exported{}, err
	}
	var m manifest.Manifest
	for _, f := range files {
		m = append(m, f.entry)
	}
	list := m.Bytes()
	if _, err := manifest.Parse(list); err != nil {
		return Exported{}, err
	}
	signature, err := e.o.Sign(ctx, list, e.extent.note)
	if err != nil {
		return Exported{}, fmt.Errorf("signing the manifest: %w", err)
	}
	if s, err := manifest.Verify(list, signature); err != nil || !s.Certificate.Equal(e.o.Certificate) {
		return Exported{}, errors.Join(errors.New("bundle: the manifest was not signed for the audit certificate"), err)
	}
	last, err := parseTime(e.info.Last)
	if err != nil {
		return Exported{}, err
	}
	out := Exported{Folder: folder(e.extent.from, e.extent.size), Info: e.info}
	sum := sha256.Sum256(list)
	out.Manifest = hex.EncodeToString(sum[:])
	all := append([]content{whole(fileManifest, list), whole(fileSignature, signature)}, files...)
	return out, writeTar(w, out.Folder, last.Truncate(time.Second), all)
}

// contents are the files in their order, but for the manifest.
func (e *export) contents() ([]content, error) {
	h := e.walk.Chain().Head()
	start := e.start.Head()
	e.info.Origin, e.info.From, e.info.Size, e.info.Root = e.o.Verifier.Name(), e.extent.from, e.extent.size, hex.EncodeToString(h.Root[:])
	e.info.Prev, e.info.Exporter, e.info.Frontier = hex.EncodeToString(start.Prev[:]), e.o.Exporter, []string{}
	for _, f := range e.start.Frontier() {
		e.info.Frontier = append(e.info.Frontier, hex.EncodeToString(f[:]))
	}
	info, err := e.info.encode()
	if err != nil {
		return nil, err
	}
	files := []content{
		whole(fileInfo, info), whole(fileText, []byte(text)), whole(fileScript, []byte(script)), whole(manifest.NoteName(e.extent.size), e.extent.note),
		whole(fileCertificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: e.o.Certificate.Raw})),
	}
	for _, f := range e.o.Files {
		if f.Digest == "" || e.wanted[f.Digest] {
			files = append(files, whole(f.Name, f.Data))
		}
	}
	if p := e.o.Previous; p != nil {
		c, err := e.consistency(p)
		if err != nil {
			return nil, err
		}
		files = append(files, whole(fileConsistency, c))
	}
	end, err := e.issued.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	files = append(files, content{manifest.Entry{Name: fileIssued, SHA256: [32]byte(e.sum.Sum(nil))}, end, func(w io.Writer) error {
		_, err := io.Copy(w, io.NewSectionReader(e.issued, 0, end))
		return err
	}})
	for _, p := range e.parts {
		files = append(files, content{manifest.Entry{Name: p.name(), SHA256: [32]byte(p.sum.Sum(nil))}, p.len, func(w io.Writer) error { return p.copy(e.o.Dir, w) }})
	}
	slices.SortFunc(files, func(a, b content) int { return strings.Compare(a.entry.Name, b.entry.Name) })
	return files, nil
}

func (p *part) copy(dir string, w io.Writer) (err error) {
	f, err := os.Open(audit.SegmentPath(dir, p.file))
	if err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = io.Copy(w, io.NewSectionReader(f, p.offset, p.len))
	return err
}

func (e *export) consistency(p *Previous) ([]byte, error) {
	c := Consistency{Manifest: p.Manifest, Size: p.Info.Size, Root: p.Info.Root, Proof: []string{}}
	proof, err := e.prover.Consistent(p.Info.Size, e.extent.size)
	if err != nil {
		return nil, err
	}
	for _, h := range proof {
		c.Proof = append(c.Proof, hex.EncodeToString(h[:]))
	}
	if err := c.check(e.extent.size, e.walk.Chain().Head().Root); err != nil {
		return nil, err
	}
	return c.encode()
}
