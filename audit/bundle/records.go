package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/audit/bundle/manifest"
)

// segment walks the records of one file.
func (v *verifier) segment(ctx context.Context, e manifest.Entry) error {
	if v.walk == nil {
		return &BadError{e.Name, "there is no checkpoint before it"}
	}
	if at := v.walk.Chain().Head().Size; e.Name != fmt.Sprintf("segments/%012d.jsonl", at) {
		return &BadError{e.Name, fmt.Sprintf("a segment is missing: record %d should come next", at)}
	}
	v.segments++
	read := &reader{from: v.tar}
	sum, err := v.walk.Segment(ctx, strings.TrimPrefix(e.Name, segmentPrefix), read, false)
	switch {
	case errors.Is(read.err, io.ErrUnexpectedEOF):
		return ErrCut
	case err != nil:
		return err
	}
	if sum != fmt.Sprintf("%x", e.SHA256) {
		return &BadError{e.Name, "its SHA-256 is not the one in the manifest"}
	}
	return nil
}

// reader remembers why reading ended.
type reader struct {
	from io.Reader
	err  error
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.from.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

// each takes one record that was found good.
func (v *verifier) each(s *audit.Seen) error {
	if s.Seq == 0 {
		l, err := audit.ParseLine(s.Raw)
		if err != nil {
			return err
		}
		v.genesis = l.Record.Object.String("transcript_sha256")
	}
	if cert := issuedIn(s); cert != nil {
		v.count++
		if err := armor(v.issued, cert); err != nil {
			return err
		}
	}
	if v.o.Each != nil {
		return v.o.Each(s)
	}
	return nil
}

// end compares what was walked with what the bundle says of itself.
func (v *verifier) end() error {
	if v.walk == nil {
		return &BadError{fileManifest, "the bundle has no checkpoint or no records"}
	}
	i, head := v.out.Info, v.walk.Chain().Head()
	var err error
	if v.out.Report, err = v.walk.Report(); err != nil {
		return err
	}
	first, last := v.out.Report.First.Format(timeForm), v.out.Report.Last.Format(timeForm)
	switch {
	case head.Size < i.Size:
		return &audit.Damage{Segment: "the last one", Seq: head.Size, Why: fmt.Sprintf("the log was cut: the signed checkpoint names %d records, there are %d", i.Size, head.Size)}
	case head.Size != i.Size || head.Root != v.root:
		return &audit.Damage{Segment: "the last one", Seq: head.Size, Why: fmt.Sprintf("the records have another size or root than the signed checkpoint of %d records", i.Size)}
	case [32]byte(v.issued.Sum(nil)) != v.claimed || v.count != i.Certificates:
		return &BadError{fileIssued, "it does not have exactly the certificates that the records name as issued"}
	case first != i.First || last != i.Last:
		return &BadError{fileInfo, "the first or last time is not that of the records"}
	}
	if v.genesis != "" && !v.digests[v.genesis] {
		v.out.Missing = append(v.out.Missing, "the transcript of the ceremony that the first record names: no file of the bundle has the SHA-256 "+v.genesis)
	}
	return nil
}
