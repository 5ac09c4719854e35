package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/audit/bundle"
	"github.com/postern-pki/postern/audit/bundle/report"
)

// A verification is one run.
type verification struct {
	command
	cert    *x509.Certificate
	collect *report.Collector
	code    int
	result  result
}

// result is the answer as JSON.
type result struct {
	Result  string    `json:"result"` // good, bad or incomplete
	Checked []checked `json:"checked"`
	Bad     *place    `json:"bad,omitempty"`
	Missing []string  `json:"missing,omitempty"`
}

// checked is a file that was verified.
type checked struct {
	File        string           `json:"file"`
	Kind        string           `json:"kind"` // bundle, log or record
	Origin      string           `json:"origin"`
	From        uint64           `json:"from"`
	Size        uint64           `json:"size"`   // records in the log, with the last one here
	Signed      uint64           `json:"signed"` // of them covered by a signed checkpoint
	Root        string           `json:"root,omitempty"`
	First       *time.Time       `json:"first,omitempty"`
	Last        *time.Time       `json:"last,omitempty"`
	Manifest    string           `json:"manifest_sha256,omitempty"`
	ManifestAt  *time.Time       `json:"manifest_signed,omitempty"`
	Exporter    string           `json:"exporter,omitempty"`
	Checkpoints int              `json:"checkpoints,omitempty"`
	Unfinished  int64            `json:"unfinished,omitempty"`
	Issued      uint64           `json:"certificates,omitempty"`
	Events      map[string]int64 `json:"events,omitempty"`
	Records     []string         `json:"records,omitempty"` // lines, of a proof
}

// place says what is bad.
type place struct {
	File   string  `json:"file"`
	Within string  `json:"within,omitempty"` // file of the bundle, or segment
	Line   int     `json:"line,omitempty"`   // within the segment, from 1
	Offset int64   `json:"offset,omitempty"` // of the line, in octets
	Record *uint64 `json:"record,omitempty"`
	Why    string  `json:"why"`
}

// do verifies every file. An error is one that is not a matter of good or bad, or of
// what is bad.
func (v *verification) do(ctx context.Context) (err error) {
	if v.cert, err = certificate(v.trust); err != nil {
		return err
	}
	if v.report != "" {
		v.collect = new(report.Collector)
	}
	var previous *bundle.Previous
	files := v.files
	if v.previous != "" {
		files = append([]string{v.previous}, files...)
	}
	for i, path := range files {
		kind, err := kindOf(path)
		if err != nil {
			return err
		}
		if kind != "bundle" && len(files) > 1 {
			return cannot("one folder or proof at a time", "%s is no bundle, and a chain is of bundles", path)
		}
		switch kind {
		case "log":
			err = v.folder(ctx, path)
		case "record":
			err = v.proof(path)
		default:
			previous, err = v.bundle(ctx, path, previous, v.previous != "" && i == 0)
		}
		if _, unread := errors.AsType[*fs.PathError](err); unread || ctx.Err() != nil {
			return cannot("nothing is known of it", "reading %s: %w", path, err)
		}
		if err != nil {
			v.found(path, err)
			return err
		}
	}
	return nil
}

func certificate(path string) (*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, cannot("--trust audit.pem, from the ceremony", "%w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, cannot("--trust audit.pem, from the ceremony", "%s holds no PEM certificate", path)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, cannot("--trust audit.pem, from the ceremony", "%s: %w", path, err)
	}
	if _, ok := c.PublicKey.(*ecdsa.PublicKey); !ok {
		return nil, cannot("--trust audit.pem, from the ceremony", "%s: the audit key is ECDSA, and this one is not", path)
	}
	return c, nil
}

// kindOf tells what a file is by how it begins.
func kindOf(path string) (string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return "", cannot("is the path right?", "%w", err)
	}
	if st.IsDir() {
		if _, err := os.Stat(filepath.Join(path, "segments")); err != nil {
			return "", cannot("the folder of a log has segments/", "%s is no log: %w", path, err)
		}
		if _, err := os.Stat(filepath.Join(path, "MANIFEST")); err == nil {
			return "", cannot("give the tar, or run sh verify.sh in the folder", "%s is a bundle that was unpacked", path)
		}
		return "log", nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", cannot("who may read it?", "%w", err)
	}
	var first [1]byte
	_, err = io.ReadFull(f, first[:])
	if err = errors.Join(err, f.Close()); err != nil {
		return "", cannot("is it the right file?", "%s is empty, or cannot be read: %w", path, err)
	}
	switch first[0] {
	case '{':
		return "record", nil
	case 0x30:
		return "", cannot("openssl cms -decrypt -binary -inform DER -in FILE -recip CERT -inkey KEY -out B.tar", "%s is encrypted", path)
	}
	return "bundle", nil
}

func (v *verification) bundle(ctx context.Context, path string, previous *bundle.Previous, before bool) (*bundle.Previous, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, cannot("is the path right?", "%w", err)
	}
	defer func() { _ = f.Close() }()
	o := bundle.VerifyOptions{Trust: v.cert, Previous: previous}
	if v.collect != nil && !before {
		o.Each = v.collect.Each
	}
	b, err := bundle.Verify(ctx, bufio.NewReaderSize(f, 256<<10), o)
	if err != nil {
		return nil, err
	}
	v.result.Checked = append(v.result.Checked, checked{
		File: path, Kind: "bundle", Origin: b.Info.Origin, From: b.Info.From, Size: b.Info.Size, Signed: b.Info.Size, Root: b.Info.Root, First: &b.Report.First, Last: &b.Report.Last,
		Manifest: b.Manifest, ManifestAt: &b.Signed, Exporter: b.Info.Exporter, Checkpoints: b.Report.Checkpoints, Issued: b.Info.Certificates, Events: b.Report.Events,
	})
	for _, m := range b.Missing {
		v.result.Missing = append(v.result.Missing, path+": "+m)
	}
	return &b.Previous, nil
}

func (v *verification) folder(ctx context.Context, dir string) error {
	origin, err := audit.OriginOf(dir)
	if err != nil {
		return err
	}
	pub, _ := v.cert.PublicKey.(*ecdsa.PublicKey)
	by, err := audit.ECDSANoteVerifier(origin, pub)
	if err != nil {
		return err
	}
	o := audit.VerifyOptions{Verifier: by}
	if v.collect != nil {
		o.Each = v.collect.Each
	}
	r, err := audit.Verify(ctx, dir, o)
	if err != nil {
		return err
	}
	v.result.Checked = append(v.result.Checked, checked{
		File: dir, Kind: "log", Origin: r.Origin, Size: r.Records, Signed: r.Signed, Root: r.Root, First: &r.First, Last: &r.Last, Checkpoints: r.Checkpoints, Unfinished: r.Unfinished, Events: r.Events,
	})
	if r.Checkpoints == 0 {
		v.result.Missing = append(v.result.Missing, dir+": a signed checkpoint")
	}
	return nil
}

func (v *verification) proof(path string) error {
	if v.collect != nil {
		return cannot("verify a bundle or a folder", "there is no report on a record alone")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return cannot("is the path right?", "%w", err)
	}
	p, err := bundle.ParseProof(data)
	if err != nil {
		return err
	}
	pub, _ := v.cert.PublicKey.(*ecdsa.PublicKey)
	by, err := audit.ECDSANoteVerifier(p.Origin, pub)
	if err != nil {
		return err
	}
	lines, size, err := p.Verify(by)
	if err != nil {
		return err
	}
	one := checked{File: path, Kind: "record", Origin: p.Origin, Size: size, Signed: size}
	for i, l := range lines {
		if i == 0 {
			one.From = l.Record.Seq
		}
		one.Records = append(one.Records, string(l.Raw))
	}
	v.result.Checked = append(v.result.Checked, one)
	return nil
}

// found puts into the result what is bad.
func (v *verification) found(path string, err error) {
	b := &place{File: path, Why: err.Error()}
	if d, ok := errors.AsType[*audit.Damage](err); ok {
		b.Within, b.Line, b.Offset, b.Record, b.Why = d.Segment, d.Line, d.Offset, &d.Seq, d.Why
	} else if e, ok := errors.AsType[*bundle.BadError](err); ok {
		b.Within, b.Why = e.File, e.Why
	} else if errors.Is(err, bundle.ErrCut) {
		v.result.Missing = append(v.result.Missing, fmt.Sprintf("%s: its end; what came before it is good", path))
		return
	}
	v.result.Bad = b
}
