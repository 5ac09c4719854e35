package operator

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/postern-pki/postern/appliance/operator/acts"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/audit/bundle/manifest"
)

// The records of an export: what is to be signed, and what was, or why not.
const (
	eventAudit    = "audit"
	outExport     = "export"
	outExported   = "exported"
	outFailed     = "failed"
	outCheckpoint = "checkpoint"
)

// ExportRequest is the body of POST /api/v1/exports: the manifest of a bundle, and
// the note of the checkpoint that it names. The bundle itself does not cross the API:
// who exports reads the log where it lies.
type ExportRequest struct {
	Manifest   []byte `json:"manifest"`
	Checkpoint []byte `json:"checkpoint"`
}

// Exported is its answer: detached CMS in DER.
type Exported struct {
	Signature []byte `json:"signature"`
}

// Checkpoint is the answer of POST /api/v1/checkpoints: the head of the log, signed
// now.
type Checkpoint struct {
	Note string `json:"note"`
}

func (s *Service) export(ctx context.Context, r *request) (int, any, error) {
	var asked ExportRequest
	dec := json.NewDecoder(bytes.NewReader(r.Body))
	dec.DisallowUnknownFields()
	err := dec.Decode(&asked)
	if _, end := dec.Token(); err != nil || !errors.Is(end, io.EOF) {
		return 0, nil, refuse(http.StatusBadRequest, "the body is no manifest with its checkpoint", "postern audit export sends it")
	}
	m, err := manifest.Parse(asked.Manifest)
	if err != nil {
		return 0, nil, refuse(http.StatusBadRequest, err.Error(), "postern audit export makes it")
	}
	size, _, err := m.Checkpoint()
	if err != nil {
		return 0, nil, err
	}
	sum := sha256.Sum256(asked.Manifest)
	what := func(more audit.Object) audit.Object {
		o := audit.Object{"manifest_sha256": hex.EncodeToString(sum[:]), "size": size, "files": len(m), "first": firstSegment(m)}
		for k, v := range more {
			o[k] = v
		}
		return o
	}
	entry := func(out string, o audit.Object) audit.Entry {
		return audit.Entry{Event: eventAudit, Outcome: out, Actor: r.who, Object: o}
	}
	if _, err := s.Log.AppendAll(ctx, entry(outExport, what(nil))); err != nil {
		return 0, nil, err
	}
	signature, err := s.Manifests.SignManifest(ctx, asked.Manifest, asked.Checkpoint)
	if err != nil {
		s.record(ctx, entry(outFailed, what(audit.Object{"act": acts.ExportBundle, "why": cut(err.Error())})))
		if errors.Is(err, rpc.ErrManifest) {
			err = refuse(http.StatusConflict, "the manifest does not name a checkpoint of this log", "was the log folder that of this service?")
		}
		return 0, nil, err
	}
	signed := sha256.Sum256(signature)
	if _, err := s.Log.AppendAll(ctx, entry(outExported, what(audit.Object{"signature_sha256": hex.EncodeToString(signed[:])}))); err != nil {
		return 0, nil, err
	}
	return http.StatusCreated, Exported{signature}, nil
}

// firstSegment is the name of the first part of the log that a bundle has.
func firstSegment(m manifest.Manifest) string {
	for _, e := range m {
		if strings.HasPrefix(e.Name, "segments/") {
			return e.Name
		}
	}
	return ""
}

func (s *Service) checkpoint(ctx context.Context, r *request) (int, any, error) {
	if len(r.Body) > 0 {
		return 0, nil, refuse(http.StatusBadRequest, "a body means nothing here", "")
	}
	if _, err := s.Log.AppendAll(ctx, audit.Entry{Event: eventAudit, Outcome: outCheckpoint, Actor: r.who}); err != nil {
		return 0, nil, err
	}
	note, err := s.Log.Checkpoint(ctx)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusCreated, Checkpoint{string(note)}, nil
}
