package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-pki/postern/appliance"
	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/appliance/operator"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/audit/bundle"
	"github.com/postern-pki/postern/audit/bundle/envelope"
)

// exporting is one `postern audit export`.
type exporting struct {
	from, to, out, previous, recipient string
	transcripts                        []string
}

// exported is its JSON.
type exported struct {
	Out          string `json:"out"`
	Folder       string `json:"folder"`
	Manifest     string `json:"manifest_sha256"`
	From         uint64 `json:"from"`
	Size         uint64 `json:"size"`
	First        string `json:"first"`
	Last         string `json:"last"`
	Certificates uint64 `json:"certificates"`
	Encrypted    bool   `json:"encrypted"`
}

func (a *app) auditExportCmd() *cobra.Command {
	var x exporting
	c := &cobra.Command{
		Use: "export --out B.tar", Short: "Write a part of the log as a signed bundle for an auditor", Args: cobra.NoArgs,
		Long: `Write a part of the log as a signed bundle: records, the signed checkpoint that they
end at, certificates, transcripts, and what checks them without Postern. A range ends at
the first checkpoint at or after --to, so that the same range gives the same octets, but
for the signature. The log is read where it lies; the service signs the list of the
files, and records who exported what.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.export(cmd, x) },
	}
	f := c.Flags()
	f.StringVar(&x.from, "from", "", "first `record`: a number or a time (default: where --previous ends, or 0)")
	f.StringVar(&x.to, "to", "", "last `record`: a number or a time (default: now)")
	f.StringVar(&x.out, "out", "", "`file` to write, which must not be there yet")
	f.StringVar(&x.previous, "previous", "", "the bundle before, a `file`: this one proves that it continues that one")
	f.StringVar(&x.recipient, "encrypt-to", "", "encrypt to the RSA certificate in this `file`")
	f.StringArrayVar(&x.transcripts, "transcript", nil, "transcript of a later ceremony, a `file`, beside the configuration's; may be repeated")
	return c
}

func (a *app) export(cmd *cobra.Command, x exporting) error {
	if x.out == "" {
		return misused("--out bundle.tar", "no file to write is named")
	}
	o := bundle.ExportOptions{Temp: filepath.Dir(x.out), Exporter: version()}
	for _, one := range []struct {
		text string
		end  bool
		to   *bundle.Bound
	}{{x.from, false, &o.From}, {x.to, true, &o.To}} {
		b, err := boundOf(one.text, one.end)
		if err != nil {
			return err
		}
		*one.to = b
	}
	to, err := recipientOf(x.recipient)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(x.out); !errors.Is(err, fs.ErrNotExist) {
		return failed("--out names a file that is not there yet", "%s is there already", x.out)
	}
	if err := a.exportFrom(x, &o); err != nil {
		return err
	}
	o.Sign = func(ctx context.Context, manifest, note []byte) ([]byte, error) {
		var done operator.Exported
		err := a.call(ctx, http.MethodPost, "/api/v1/exports", operator.ExportRequest{Manifest: manifest, Checkpoint: note}, &done)
		return done.Signature, err
	}
	if now := time.Now(); !o.To.Set || o.To.At.After(now) { // up to now: what is not signed yet is
		o.To = bundle.Bound{}
		if err := a.signCheckpoint(cmd.Context()); err != nil {
			return err
		}
	}
	done, err := a.writeBundle(cmd.Context(), x.out, o, to)
	if errors.Is(err, bundle.ErrUnsigned) {
		if err = a.signCheckpoint(cmd.Context()); err == nil {
			done, err = a.writeBundle(cmd.Context(), x.out, o, to)
		}
	}
	if err != nil {
		return exportFailure(err)
	}
	r := exported{x.out, done.Folder, done.Manifest, done.Info.From, done.Info.Size, done.Info.First, done.Info.Last, done.Info.Certificates, to != nil}
	return a.print(r, func(w io.Writer) {
		_, _ = fmt.Fprintf(w, "%s has records %d to %d\nfirst\t%s\nlast\t%s\ncertificates\t%d\nmanifest\t%s\n", r.Out, r.From, r.Size-1, r.First, r.Last, r.Certificates, r.Manifest)
	})
}

// exportFrom fills in what the configuration and the bundle before say.
func (a *app) exportFrom(x exporting, o *bundle.ExportOptions) error {
	cfg, err := config.Load(a.config)
	if err != nil {
		return failed("", "%w", err)
	}
	o.Dir, o.Certificate = filepath.Join(cfg.State, "audit"), cfg.AuditCertificate
	if _, err := os.ReadDir(filepath.Join(o.Dir, "segments")); err != nil {
		return failed("run it on the appliance's host, as root or as somebody who may read the log", "no log in %s: %w", o.Dir, err)
	}
	if o.Verifier, err = appliance.AuditVerifier(cfg, "", o.Dir); err != nil {
		return failed("", "%w", err)
	}
	if o.Files, err = appliance.BundleFiles(cfg, x.transcripts...); err != nil {
		return failed("", "%w", err)
	}
	if x.previous == "" {
		return nil
	}
	f, err := os.Open(x.previous)
	if err != nil {
		return failed("--previous names the bundle before", "%w", err)
	}
	defer func() { _ = f.Close() }()
	if o.Previous, err = bundle.OpenPrevious(f, cfg.AuditCertificate); err != nil {
		return failed("--previous names the bundle before, as it was exported here and not encrypted", "%s: %w", x.previous, err)
	}
	return nil
}

func (a *app) signCheckpoint(ctx context.Context) error {
	var c operator.Checkpoint
	return a.call(ctx, http.MethodPost, "/api/v1/checkpoints", nil, &c)
}

// boundOf reads a record's number or a time; a day without a time ends, as an end, with
// its last moment.
func boundOf(text string, end bool) (bundle.Bound, error) {
	if text == "" {
		return bundle.Bound{}, nil
	}
	if n, err := strconv.ParseUint(text, 10, 53); err == nil {
		return bundle.Bound{Set: true, Seq: n}, nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return bundle.Bound{Set: true, At: t.UTC()}, nil
	}
	t, err := time.Parse(time.DateOnly, text)
	if err != nil {
		return bundle.Bound{}, misused("a record's number, 2026-11-21, or 2026-11-21T08:00:00Z", "neither a record's number nor a time: %q", text)
	}
	if end {
		t = t.Add(24*time.Hour - time.Microsecond)
	}
	return bundle.Bound{Set: true, At: t}, nil
}

// recipientOf reads the certificate to encrypt to; nil where none is named.
func recipientOf(path string) (*x509.Certificate, error) {
	if path == "" {
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, failed("--encrypt-to names a certificate", "%w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, failed("--encrypt-to names a certificate", "%s holds no PEM certificate", path)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, failed("--encrypt-to names a certificate", "%s: %w", path, err)
	}
	if err := envelope.Fits(c); err != nil {
		return nil, failed("--encrypt-to names a certificate with an RSA key", "%s: %w", path, err)
	}
	return c, nil
}

// writeBundle has the whole file under its name, or none.
func (a *app) writeBundle(ctx context.Context, path string, o bundle.ExportOptions, to *x509.Certificate) (done bundle.Exported, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".bundle-*")
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, f.Close(), removed(f.Name())) }()
	if done, err = bundle.Export(ctx, o, f); err != nil {
		return done, err
	}
	if to == nil {
		return done, finish(f, path)
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return done, err
	}
	e, err := os.CreateTemp(filepath.Dir(path), ".bundle-*")
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, e.Close(), removed(e.Name())) }()
	if err := envelope.Encrypt(e, io.NewSectionReader(f, 0, size), size, to); err != nil {
		return done, err
	}
	return done, finish(e, path)
}

// finish makes a file durable and gives it its name, unless there is one of that name.
func finish(f *os.File, path string) error {
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Link(f.Name(), path)
}

func removed(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func exportFailure(err error) error {
	if _, ok := errors.AsType[*hinted](err); ok {
		return err
	}
	if damage, ok := errors.AsType[*audit.Damage](err); ok {
		return failed("the log was changed or damaged: keep the disk as it is, and hand over a copy of the folder", "%w", damage)
	}
	switch {
	case errors.Is(err, bundle.ErrUnsigned):
		return failed("--to names a record that there is", "%w", err)
	case errors.Is(err, bundle.ErrRange):
		return failed("postern audit verify says what the log has", "%w", err)
	}
	return failed("", "%w", err)
}

// prove writes records with their proofs, under a checkpoint that is signed for it
// where none covers them yet.
func (a *app) prove(ctx context.Context, path string, records []string) error {
	var o bundle.ExportOptions
	if err := a.exportFrom(exporting{}, &o); err != nil {
		return err
	}
	var seqs []uint64
	for _, raw := range records {
		l, err := audit.ParseLine([]byte(raw))
		if err != nil {
			return failed("is it a Postern of the same version?", "the service's answer is no record: %w", err)
		}
		seqs = append(seqs, l.Record.Seq)
	}
	p, err := bundle.Prove(ctx, o.Dir, o.Verifier, seqs...)
	if errors.Is(err, bundle.ErrUnsigned) {
		if err = a.signCheckpoint(ctx); err == nil {
			p, err = bundle.Prove(ctx, o.Dir, o.Verifier, seqs...)
		}
	}
	if err != nil {
		return exportFailure(err)
	}
	data, err := p.Encode()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return failed("--proof names a file that is not there yet", "%w", err)
	}
	if _, err = f.Write(data); errors.Join(err, f.Close()) != nil {
		return failed("is the disk full?", "%s could not be written", path)
	}
	return nil
}

// version is what the build knows of itself.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return info.Main.Version + " " + info.GoVersion
}
