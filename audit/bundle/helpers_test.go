package bundle_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/audit/bundle"
	"github.com/postern-pki/postern/audit/bundle/manifest"
)

const origin = "test.example/log"

// A signer has the audit key, as the token would.
type signer struct {
	*ecdsa.PrivateKey
	cert *x509.Certificate
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func no(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newSigner(t testing.TB) signer {
	t.Helper()
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	c := &x509.Certificate{
		SerialNumber: big.NewInt(4711), Subject: pkix.Name{CommonName: "Audit"}, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, c, c, key.Public(), key))
	return signer{key, must[*x509.Certificate](t)(x509.ParseCertificate(der))}
}

func (s signer) sign(message []byte) ([]byte, error) {
	sum := sha256.Sum256(message)
	return ecdsa.SignASN1(rand.Reader, s.PrivateKey, sum[:])
}

func (s signer) SignCheckpoint(_ context.Context, h audit.Head) ([]byte, error) {
	text := audit.NoteText(origin, h)
	sig, err := s.sign([]byte(text))
	if err != nil {
		return nil, err
	}
	return audit.AssembleNote(origin, &s.PublicKey, text, sig)
}

func (s signer) manifest(_ context.Context, m, _ []byte) ([]byte, error) {
	return manifest.Sign(m, s.cert, time.Now().UTC().Truncate(time.Second), s.sign)
}

func (s signer) verifier(t testing.TB) note.Verifier {
	return must[note.Verifier](t)(audit.ECDSANoteVerifier(origin, &s.PublicKey))
}

// transcript is the ceremony's, which the first record names.
var transcript = []byte("{\"a\":\"transcript\"}\n")

// newLog writes a log of n records and more, in segments of so many octets, with a
// checkpoint every so many records.
func newLog(t testing.TB, s signer, dir string, n int, segment int64, every uint64) {
	t.Helper()
	sum := sha256.Sum256(transcript)
	l := must[*audit.Log](t)(audit.Open(t.Context(), audit.Options{
		Dir: dir, Origin: origin, Signer: s, Verifier: s.verifier(t), SegmentBytes: segment, CheckpointRecords: every,
		Genesis: func() (audit.Entry, error) {
			return audit.Entry{Outcome: "ok", Actor: audit.Actor{Kind: "system"}, Object: audit.Object{"transcript_sha256": fmt.Sprintf("%x", sum)}}, nil
		},
	}))
	var batch []audit.Entry
	for i := range n {
		batch = append(batch, entry(s, i))
		if len(batch) == 100 || i == n-1 {
			must[[]audit.Line](t)(l.AppendAll(t.Context(), batch...))
			batch = nil
		}
	}
	no(t, l.Close(context.Background()))
}

// entry is one of what a service records, by its number.
func entry(s signer, i int) audit.Entry {
	device := audit.Actor{Kind: "device", ID: "-", Source: "192.0.2.1:5"}
	req := fmt.Sprintf("req-%d", i)
	switch i % 10 {
	case 0:
		return audit.Entry{Event: "system.start", Outcome: "ok", Actor: audit.Actor{Kind: "system"}, Object: audit.Object{"version": "1", "policy": fmt.Sprintf("sha256:%064d", i/1000), "config": "c"}}
	case 1, 2, 3:
		return audit.Entry{Event: "enroll", Outcome: "issued", Request: req, Actor: device, Object: audit.Object{
			"intent_seq": int64(0), "serial": fmt.Sprintf("%032x", i), "certificate": base64.StdEncoding.EncodeToString(s.cert.Raw[:len(s.cert.Raw)-i%5]),
		}}
	}
	return audit.Entry{Event: "enroll", Outcome: "refused", Request: req, Actor: device, Object: audit.Object{"kind": "badRequest", "why": "subject \u00fc <&>", "i": i}}
}

func (s signer) options(t testing.TB, dir string) bundle.ExportOptions {
	return bundle.ExportOptions{
		Dir: dir, Verifier: s.verifier(t), Certificate: s.cert, Temp: t.TempDir(), Sign: s.manifest, Exporter: "test",
		Files: []bundle.File{{Name: "ceremony/transcript.jsonl", Data: transcript}, {Name: "policy/wifi.yaml", Data: []byte("profiles: []\n"), Digest: fmt.Sprintf("sha256:%064d", 0)}, {Name: "policy/never.yaml", Data: nil, Digest: "sha256:never"}},
	}
}

// export is a bundle's octets.
func export(t testing.TB, o bundle.ExportOptions) ([]byte, bundle.Exported) {
	t.Helper()
	var b bytes.Buffer
	out := must[bundle.Exported](t)(bundle.Export(t.Context(), o, &b))
	return b.Bytes(), out
}

func verify(t testing.TB, data []byte, o bundle.VerifyOptions) (bundle.Verified, error) {
	t.Helper()
	return bundle.Verify(t.Context(), bytes.NewReader(data), o)
}

func copyDir(t testing.TB, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "log")
	no(t, os.CopyFS(to, os.DirFS(from)))
	return to
}
