package bundle_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/audit/bundle"
	"github.com/postern-pki/postern/audit/bundle/manifest"
)

// records is how many records the log has that is tampered with.
var records = flag.Int("records", 10_000, "records of the log that is tampered with")

// A forged bundle is one in the hands of somebody else.
type forged struct {
	t      *testing.T
	s      signer
	folder string
	files  map[string][]byte
	lines  int
}

func forge(t *testing.T, s signer, folder string, data []byte) *forged {
	f := &forged{t: t, s: s, folder: folder}
	_, f.files = files(t, data)
	f.lines = bytes.Count(f.all(), []byte("\n"))
	return f
}

func (f *forged) segments() []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(f.files)) {
		if strings.HasPrefix(name, "segments/") {
			out = append(out, name)
		}
	}
	return out
}

func (f *forged) all() []byte {
	var b []byte
	for _, name := range f.segments() {
		b = append(b, f.files[name]...)
	}
	return b
}

// change changes the lines of the segment that record n is in; i is its index there.
func (f *forged) change(n int, how func(lines [][]byte, i int) [][]byte) {
	for _, name := range f.segments() {
		lines := bytes.SplitAfter(f.files[name], []byte("\n"))
		lines = lines[:len(lines)-1]
		if n < len(lines) {
			f.files[name] = bytes.Join(how(lines, n), nil)
			return
		}
		n -= len(lines)
	}
	f.t.Fatal("no such record")
}

// rewrite makes the chain and the segments' digests whole again behind a change, as
// somebody can who has the disk and not the key.
func (f *forged) rewrite() {
	var prev [32]byte
	before := ""
	for i, name := range f.segments() {
		lines := bytes.SplitAfter(f.files[name], []byte("\n"))
		for n, l := range lines[:len(lines)-1] {
			if i > 0 && n == 0 {
				at := bytes.Index(l, []byte(`"previous_sha256":"`)) + len(`"previous_sha256":"`)
				copy(l[at:], before)
			}
			copy(l[bytes.LastIndex(l, []byte(`,"prev":"`))+9:], hex.EncodeToString(prev[:]))
			prev = sha256.Sum256(l)
		}
		f.files[name] = bytes.Join(lines, nil)
		before = fmt.Sprintf("%x", sha256.Sum256(f.files[name]))
	}
}

// tar is the bundle as it is now: with the old manifest, or with another one that the
// audit key signed, as somebody gets who owns the service.
func (f *forged) tar(signed bool) []byte {
	f.t.Helper()
	out := maps.Clone(f.files)
	if signed {
		delete(out, "MANIFEST")
		delete(out, "MANIFEST.p7s")
		var m manifest.Manifest
		for _, name := range slices.Sorted(maps.Keys(out)) {
			m = append(m, manifest.Of(name, out[name]))
		}
		out["MANIFEST"] = m.Bytes()
		out["MANIFEST.p7s"] = must[[]byte](f.t)(f.s.manifest(context.Background(), m.Bytes(), nil))
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(out)) {
		no(f.t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.folder + name, Size: int64(len(out[name])), Mode: 0o644, ModTime: time.Unix(1, 0), Format: tar.FormatUSTAR}))
		must[int](f.t)(w.Write(out[name]))
	}
	no(f.t, w.Close())
	return b.Bytes()
}

func swapped(b []byte, old, new string) []byte { return bytes.Replace(b, []byte(old), []byte(new), 1) }

// A tampering is one way to change a bundle, and where it shows: the record, or the
// words that name the place to the verifier and to the script.
type tampering struct {
	do     func(f *forged)
	record int
	words  [2]string // where it is no record's
}

// tamperings have each row of what an attacker can do to records.
func tamperings(middle int) map[string]tampering {
	one := func(how func([]byte) [][]byte) func(*forged) {
		return func(f *forged) {
			f.change(middle, func(l [][]byte, i int) [][]byte { return slices.Replace(l, i, i+1, how(bytes.Clone(l[i]))...) })
		}
	}
	edit := func(b []byte) [][]byte { return [][]byte{swapped(b, `"ob":{`, `"ob":{"a":1,`)} }
	last := func(f *forged) {
		f.change(f.lines-1, func(l [][]byte, i int) [][]byte { l[i] = edit(l[i])[0]; return l })
	}
	return map[string]tampering{
		"a record is edited":  {one(edit), middle, [2]string{}},
		"a record is removed": {one(func([]byte) [][]byte { return nil }), middle, [2]string{}},
		"a record is added":   {one(func(b []byte) [][]byte { return [][]byte{b, b} }), middle + 1, [2]string{}},
		"a record is no JSON": {one(func(b []byte) [][]byte { b[3] = 0; return [][]byte{b} }), middle, [2]string{}},
		"two records are moved": {func(f *forged) {
			f.change(middle, func(l [][]byte, i int) [][]byte { l[i], l[i+1] = l[i+1], l[i]; return l })
		}, middle, [2]string{}},
		"the last one is edited": {last, -1, [2]string{"another root", "is not the one in the signed checkpoint"}},
		"the end is cut": {func(f *forged) { f.change(f.lines-2, func(l [][]byte, i int) [][]byte { return l[:i] }) }, -1,
			[2]string{"the log was cut: the signed checkpoint names", "the log was cut: the signed checkpoint names"}},
		"an edit, and the chain is made anew": {func(f *forged) { one(edit)(f); f.rewrite() }, -1, [2]string{"the checkpoint in the record is not of the records before it", "is not the one in the signed checkpoint"}},
		"a segment is removed":                {func(f *forged) { delete(f.files, f.segments()[1]) }, -1, [2]string{"a segment is missing", "record"}},
		"two segments have each other's names": {func(f *forged) {
			s := f.segments()
			f.files[s[1]], f.files[s[2]] = f.files[s[2]], f.files[s[1]]
		}, -1, [2]string{"segment", "segments/"}},
		"a certificate is left out": {func(f *forged) {
			b := f.files["certificates/issued.pem"]
			f.files["certificates/issued.pem"] = b[bytes.Index(b, []byte("-----END CERTIFICATE-----\n"))+26:]
		}, -1, [2]string{"certificates/issued.pem", "certificates/issued.pem"}},
		"the checkpoint is of another key": {func(f *forged) {
			for name, b := range f.files {
				if strings.HasPrefix(name, "checkpoints/") {
					size, root, err := audit.OpenCheckpoint(b, f.s.verifier(f.t))
					no(f.t, err)
					f.files[name] = must[[]byte](f.t)(newSigner(f.t).SignCheckpoint(context.Background(), audit.Head{Size: size, Root: root}))
				}
			}
		}, -1, [2]string{"checkpoints/", "checkpoints/"}},
		"another log's name": {func(f *forged) {
			f.files["bundle.json"] = swapped(f.files["bundle.json"], `"origin":"test`, `"origin":"best`)
		}, -1, [2]string{"checkpoints/", "bundle.json"}},
	}
}

// Each tampering is found by the verifier and by the script, in the hands of somebody
// who changes files, and of somebody who has the service sign the list of them; and
// the place is named.
func TestEachTamperingIsFoundAndNamed(t *testing.T) {
	s, dir := newSigner(t), t.TempDir()
	newLog(t, s, dir, *records, int64(*records)*100, 1000)
	data, out := export(t, s.options(t, dir))
	if f := forge(t, s, out.Folder, data); len(f.segments()) < 3 {
		t.Fatalf("there are %d segments", len(f.segments()))
	} else if _, err := verify(t, f.tar(true), bundle.VerifyOptions{Trust: s.cert}); err != nil {
		t.Fatalf("the forger's own tools: %v", err)
	}
	trust := s.trust(t)
	for name, tt := range tamperings(*records / 2) {
		t.Run(name, func(t *testing.T) {
			for _, signed := range []bool{false, true} {
				f := forge(t, s, out.Folder, data)
				tt.do(f)
				changed := f.tar(signed)
				_, err := verify(t, changed, bundle.VerifyOptions{Trust: s.cert})
				said, code := shell(t, unpack(t, changed), trust)
				if err == nil || code != 1 {
					t.Errorf("signed %t: %v; exit %d: %s", signed, err, code, said)
					continue
				}
				tt.named(t, signed, err, said)
			}
		})
	}
}

func (tt tampering) named(t *testing.T, signed bool, err error, said string) {
	t.Helper()
	last := said[strings.LastIndex(strings.TrimSuffix(said, "\n"), "\n")+1:]
	if d, ok := errors.AsType[*audit.Damage](err); tt.record >= 0 && (!ok || d.Seq != uint64(tt.record) || d.Line == 0) {
		t.Errorf("signed %t: the verifier says %v, want record %d", signed, err, tt.record)
	}
	if !signed {
		if !strings.Contains(last, "not as MANIFEST says") || !strings.Contains(last, "/") && !strings.Contains(last, "bundle.json") {
			t.Errorf("the script says %s", last)
		}
		return
	}
	if word := fmt.Sprintf("record %d", tt.record); tt.record >= 0 && !strings.Contains(last, word) {
		t.Errorf("the script says %s, want %s", last, word)
	}
	if !strings.Contains(err.Error(), tt.words[0]) || !strings.Contains(last, tt.words[1]) {
		t.Errorf("they say %v and %s, want %q", err, last, tt.words)
	}
}

// A list that somebody else signed, or that nobody did, ends it at once.
func TestAManifestOfSomebodyElseIsFound(t *testing.T) {
	s, dir := newSigner(t), t.TempDir()
	newLog(t, s, dir, 200, 20_000, 50)
	data, out := export(t, s.options(t, dir))
	for name, do := range map[string]func(f *forged) []byte{
		"another key":  func(f *forged) []byte { f.s = newSigner(t); return f.tar(true) },
		"no signature": func(f *forged) []byte { delete(f.files, "MANIFEST.p7s"); return f.tar(false) },
		"an older signature": func(f *forged) []byte {
			f.files["MANIFEST"] = swapped(f.files["MANIFEST"], "a", "b")
			return f.tar(false)
		},
		"a file more": func(f *forged) []byte { f.files["certificates/more.pem"] = []byte("x"); return f.tar(false) },
		"a file less": func(f *forged) []byte { delete(f.files, "VERIFY.txt"); return f.tar(false) },
	} {
		changed := do(forge(t, s, out.Folder, data))
		if _, err := verify(t, changed, bundle.VerifyOptions{Trust: s.cert}); err == nil {
			t.Errorf("%s: it is verified", name)
		}
		if said, code := shell(t, unpack(t, changed), s.trust(t)); code != 1 {
			t.Errorf("%s: exit %d: %s", name, code, said)
		}
	}
	for _, n := range []int{0, 1, 511, 5000, len(data) / 2, len(data) - 1024 - 600} {
		if _, err := verify(t, data[:n], bundle.VerifyOptions{Trust: s.cert}); err == nil {
			t.Errorf("cut after %d octets it is verified", n)
		}
	}
	if _, err := verify(t, append(bytes.Clone(data), 'x'), bundle.VerifyOptions{Trust: s.cert}); err == nil {
		t.Error("with an octet more it is verified")
	}
}
