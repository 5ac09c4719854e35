package pkcs10_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/pkcs10"
)

// verdicts are the words that a vector may want.
var verdicts = map[string]error{
	"ok": nil, "malformed": cms.ErrMalformed, "too many": cms.ErrTooMany, "trailing": cms.ErrTrailing,
	"algorithm": cms.ErrAlgorithm, "signature": cms.ErrSignature,
}

// A vector is one file of testdata/vectors.
type vector struct {
	name    string
	head    map[string]string // lines "name: value" of its comment
	message []byte            // message.hex
}

func readVectors(t testing.TB) []vector {
	t.Helper()
	names, err := filepath.Glob("testdata/vectors/*.txtar")
	if err != nil || len(names) == 0 {
		t.Fatal("no vectors", err)
	}
	var all []vector
	for _, name := range names {
		a, err := txtar.ParseFile(name)
		if err != nil || len(a.Files) != 1 || a.Files[0].Name != "message.hex" {
			t.Fatalf("%s: not a vector (%v)", name, err)
		}
		v := vector{name: strings.TrimSuffix(filepath.Base(name), ".txtar"), head: map[string]string{}}
		for line := range strings.Lines(string(a.Comment)) {
			if key, value, ok := strings.Cut(line, ": "); ok && !strings.HasPrefix(line, "#") {
				v.head[key] = strings.TrimSpace(value)
			}
		}
		if v.message, err = hex.DecodeString(strings.Join(strings.Fields(string(a.Files[0].Data)), "")); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all = append(all, v)
	}
	return all
}

// golden are the CSRs in the messages that other programs sent.
func golden(t testing.TB) (all [][]byte) {
	t.Helper()
	names, err := filepath.Glob("../scep/testdata/vectors/*.txtar")
	if err != nil || len(names) == 0 {
		t.Fatal("no vectors", err)
	}
	for _, name := range names {
		a, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range a.Files {
			if f.Name != "csr.hex" {
				continue
			}
			csr, err := hex.DecodeString(strings.Join(strings.Fields(string(f.Data)), ""))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, csr)
		}
	}
	return all
}

// TestVectors runs every file of testdata/vectors; each states its own verdict.
func TestVectors(t *testing.T) {
	for _, v := range readVectors(t) {
		t.Run(v.name, func(t *testing.T) {
			want, ok := verdicts[v.head["want"]]
			if !ok {
				t.Fatalf("vector wants %q", v.head["want"])
			}
			r, err := pkcs10.Parse(v.message)
			if err == nil {
				err = r.CheckSignature()
			}
			if !errors.Is(err, want) || err != nil && want == nil {
				t.Fatalf("got %v, want %q", err, v.head["want"])
			}
			if err != nil {
				return
			}
			if got := r.SignatureAlgorithm.String(); got != v.head["algorithm"] {
				t.Errorf("algorithm %s, want %s", got, v.head["algorithm"])
			}
			if got := strings.Join(r.DNSNames, " "); got != v.head["dns"] {
				t.Errorf("DNS names %q, want %q", got, v.head["dns"])
			}
			if pw := r.Challenge; (pw == nil) != (v.head["challenge"] == "") || pw != nil && string(pw.Bytes()) != v.head["challenge"] {
				t.Error("another challenge")
			}
		})
	}
}

// FuzzParse: what parses was read whole, its parts are parts of it, and its
// signature can be checked.
func FuzzParse(f *testing.F) {
	for _, v := range readVectors(f) {
		f.Add(v.message)
	}
	for _, csr := range golden(f) {
		f.Add(csr)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := pkcs10.Parse(in)
		if err != nil {
			return
		}
		if !bytes.Equal(r.Raw, in) || !bytes.Contains(in, r.RawTBS) || !bytes.Contains(r.RawTBS, r.RawSubject) || !bytes.Contains(r.RawTBS, r.RawSPKI) {
			t.Fatal("the parts are not those of the whole")
		}
		if err := r.CheckSignature(); err != nil && !errors.Is(err, cms.ErrSignature) && !errors.Is(err, cms.ErrAlgorithm) {
			t.Error(err)
		}
		for _, e := range r.Extensions {
			if len(e.Id) < 2 {
				t.Errorf("extension %v", e.Id)
			}
		}
	})
}
