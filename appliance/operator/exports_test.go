package operator_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/postern-pki/postern/appliance/operator"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/audit/bundle/manifest"
)

const theOrigin = "corp.example/log"

// SignCheckpoint makes the key of these tests an audit key too.
func (k softKey) SignCheckpoint(_ context.Context, h audit.Head) ([]byte, error) {
	text := audit.NoteText(theOrigin, h)
	sum := sha256.Sum256([]byte(text))
	sig, err := ecdsa.SignASN1(rand.Reader, k.PrivateKey, sum[:])
	if err != nil {
		return nil, err
	}
	return audit.AssembleNote(theOrigin, &k.PublicKey, text, sig)
}

func (k softKey) verifier(t *testing.T) note.Verifier {
	return must[note.Verifier](t)(audit.ECDSANoteVerifier(theOrigin, &k.PublicKey))
}

// SignManifest refuses what does not name the checkpoint beside it, as the keyholder
// does, and signs nothing that anybody could use.
func (k softKey) SignManifest(_ context.Context, m, n []byte) ([]byte, error) {
	parsed, err := manifest.Parse(m)
	if err != nil {
		return nil, errors.Join(rpc.ErrManifest, err)
	}
	if _, sum, _ := parsed.Checkpoint(); sum != sha256.Sum256(n) {
		return nil, rpc.ErrManifest
	}
	return []byte("signed"), nil
}

// exportOf is the body of an export.
func exportOf(m, n []byte) string {
	return `{"manifest":"` + base64.StdEncoding.EncodeToString(m) + `","checkpoint":"` + base64.StdEncoding.EncodeToString(n) + `"}`
}

func theManifest(n []byte) []byte {
	return manifest.Manifest{manifest.Of(manifest.NoteName(7), n), manifest.Of("segments/000000000003.jsonl", nil)}.Bytes()
}

// What is signed is recorded before and after, with who asked and of which range.
func TestAnExportIsRecordedBeforeAndAfterItIsSigned(t *testing.T) {
	w := newWorld(t)
	m := theManifest([]byte("n"))
	a := w.do(t, http.MethodPost, "/api/v1/exports", exportOf(m, []byte("n")), "X-Who", "auditor")
	var done operator.Exported
	if err := json.Unmarshal([]byte(a.body), &done); err != nil || a.code != http.StatusCreated || string(done.Signature) != "signed" {
		t.Fatalf("%d %s", a.code, a.body)
	}
	before, after := w.records(t, "audit", "export"), w.records(t, "audit", "exported")
	if len(before) != 1 || len(after) != 1 || before[0].Seq >= after[0].Seq {
		t.Fatalf("%+v, %+v", before, after)
	}
	for _, r := range []audit.Record{before[0], after[0]} {
		if r.Actor.ID != "auditor" || r.Object.Int("size") != 7 || r.Object.String("first") != "segments/000000000003.jsonl" || len(r.Object.String("manifest_sha256")) != 64 {
			t.Errorf("%+v", r)
		}
	}
}

func TestAnExportThatIsNoneIsRefusedAndRecorded(t *testing.T) {
	w := newWorld(t)
	m := theManifest([]byte("n"))
	for name, tt := range map[string]struct {
		body string
		code int
	}{
		"another checkpoint": {exportOf(m, []byte("x")), 409}, "no manifest": {exportOf([]byte("x"), []byte("n")), 400}, "nothing": {"", 400},
		"something behind": {exportOf(m, []byte("n")) + "{}", 400}, "an unknown field": {`{"digest":""}`, 400}, "no base64": {`{"manifest":"%"}`, 400},
		"a digest": {exportOf(bytes.Repeat([]byte{7}, 32), []byte("n")), 400},
	} {
		before := len(w.records(t, "operator", "refused"))
		if a := w.do(t, http.MethodPost, "/api/v1/exports", tt.body, "X-Who", "auditor"); a.code != tt.code {
			t.Errorf("%s: %d %s", name, a.code, a.body)
		}
		if n := len(w.records(t, "operator", "refused")); n != before+1 {
			t.Errorf("%s: %d refusals are recorded", name, n-before)
		}
	}
	if n := len(w.records(t, "audit", "exported")); n != 0 || len(w.records(t, "audit", "failed")) != 1 {
		t.Errorf("%d exports", n)
	}
}

// A checkpoint that is asked for covers who asked for it.
func TestACheckpointOnDemand(t *testing.T) {
	w := newWorld(t)
	a := w.do(t, http.MethodPost, "/api/v1/checkpoints", "", "X-Who", "auditor")
	var c operator.Checkpoint
	if err := json.Unmarshal([]byte(a.body), &c); err != nil || a.code != http.StatusCreated {
		t.Fatalf("%d %s", a.code, a.body)
	}
	asked := w.records(t, "audit", "checkpoint")
	if len(asked) != 1 || asked[0].Actor.ID != "auditor" {
		t.Fatalf("%+v", asked)
	}
	size, _, err := audit.OpenCheckpoint([]byte(c.Note), w.audit.verifier(t))
	if err != nil || size != asked[0].Seq+1 {
		t.Errorf("it covers %d records: %v", size, err)
	}
	if a := w.do(t, http.MethodPost, "/api/v1/checkpoints", "{}"); a.code != http.StatusBadRequest {
		t.Errorf("with a body: %d %s", a.code, a.body)
	}
}
