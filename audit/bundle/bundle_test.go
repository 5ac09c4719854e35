package bundle_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/audit/bundle"
)

func at(seq uint64) bundle.Bound { return bundle.Bound{Set: true, Seq: seq} }

// files are those of a tar, without its folder.
func files(t testing.TB, data []byte) (names []string, all map[string][]byte) {
	t.Helper()
	all = map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names, all
		}
		no(t, err)
		_, name, _ := strings.Cut(h.Name, "/")
		names = append(names, name)
		all[name] = must[[]byte](t)(io.ReadAll(r))
	}
}

// Two exports of a range are the same but for the signature, also after the log grew.
func TestTwoExportsAreTheSameOctets(t *testing.T) {
	s, dir := newSigner(t), t.TempDir()
	newLog(t, s, dir, 500, 40_000, 50)
	o := s.options(t, dir)
	o.From, o.To = at(70), at(333)
	first, out := export(t, o)
	newLog(t, s, dir, 100, 40_000, 50)
	time.Sleep(1100 * time.Millisecond) // the signature's time is another one
	second, _ := export(t, o)
	if bytes.Equal(first, second) {
		t.Error("the signatures are the same octets, so nothing is shown")
	}
	names, a := files(t, first)
	_, b := files(t, second)
	for _, name := range names {
		if same := bytes.Equal(a[name], b[name]); same == (name == "MANIFEST.p7s") {
			t.Errorf("%s is the same: %t", name, same)
		}
	}
	if len(a) != len(b) || out.Info.From != 70 || out.Info.Size <= 333 || a["policy/never.yaml"] != nil || a["policy/wifi.yaml"] == nil {
		t.Errorf("%v, %+v", names, out)
	}
	around := func(data []byte) [2]string {
		text := string(data)
		return [2]string{text[:strings.Index(text, out.Folder+"MANIFEST.p7s\x00")], text[strings.Index(text, out.Folder+"VERIFY.txt\x00"):]}
	}
	if around(first) != around(second) {
		t.Error("the tars differ elsewhere")
	}
}

func TestABundleVerifies(t *testing.T) {
	s, dir := newSigner(t), t.TempDir()
	newLog(t, s, dir, 1000, 100_000, 100)
	whole, _ := export(t, s.options(t, dir))
	v, err := verify(t, whole, bundle.VerifyOptions{Trust: s.cert})
	if err != nil || len(v.Missing) > 0 || v.Report.Records != v.Info.Size || v.Report.Events["enroll refused"] != 600 || v.Info.Certificates != 300 || v.Report.Segments < 3 || v.Signed.IsZero() {
		t.Fatalf("%+v, %v", v, err)
	}
	for _, r := range [][2]uint64{{0, 0}, {1, 10}, {99, 100}, {333, 700}, {512, 900}} {
		o := s.options(t, dir)
		o.From, o.To = at(r[0]), at(r[1])
		data, out := export(t, o)
		v, err := verify(t, data, bundle.VerifyOptions{Trust: s.cert})
		if err != nil || v.Info.From != r[0] || v.Info.Size <= r[1] || v.Manifest != out.Manifest || v.Report.Records != v.Info.Size {
			t.Errorf("%v: %+v, %v", r, v, err)
		}
	}
	_, err = verify(t, whole, bundle.VerifyOptions{Trust: newSigner(t).cert})
	if bad, ok := errors.AsType[*bundle.BadError](err); !ok || bad.File != "MANIFEST.p7s" {
		t.Errorf("another's trust: %v", err)
	}
}

// Bundles that follow each other are one log; a range between them is missing, and
// another history is found.
func TestBundlesFollowEachOther(t *testing.T) {
	s, dir := newSigner(t), t.TempDir()
	newLog(t, s, dir, 600, 100_000, 50)
	part := func(dir string, from, to uint64, previous *bundle.Previous) []byte {
		o := s.options(t, dir)
		o.From, o.To, o.Previous = at(from), at(to), previous
		data, _ := export(t, o)
		return data
	}
	open := func(data []byte) *bundle.Previous {
		return must[*bundle.Previous](t)(bundle.OpenPrevious(bytes.NewReader(data), s.cert))
	}
	a := part(dir, 0, 200, nil)
	end := open(a).Info.Size
	for name, tt := range map[string]struct {
		data    []byte
		missing bool
	}{
		"the next one":                  {part(dir, end, 500, open(a)), false},
		"the next one without a proof":  {part(dir, end, 500, nil), false},
		"one that overlaps":             {part(dir, 100, 500, nil), false},
		"one that overlaps, with proof": {part(dir, 100, 500, open(a)), false},
		"one with a gap":                {part(dir, end+7, 500, nil), true},
		"one with a gap, with proof":    {part(dir, end+7, 500, open(a)), true},
		"itself":                        {a, false},
	} {
		v, err := verify(t, tt.data, bundle.VerifyOptions{Trust: s.cert, Previous: open(a)})
		if err != nil || len(v.Missing) > 0 != tt.missing {
			t.Errorf("%s: %+v, %v", name, v.Missing, err)
		}
	}
	other := t.TempDir()
	newLog(t, s, other, 700, 100_000, 50)
	for name, data := range map[string][]byte{
		"another history":               part(other, open(a).Info.Size, 500, nil),
		"another history that overlaps": part(other, 0, 500, nil),
		"another history of one size":   part(other, 100, 200, nil),
		"an older one":                  part(dir, 0, 60, nil),
	} {
		_, err := verify(t, data, bundle.VerifyOptions{Trust: s.cert, Previous: open(a)})
		_, bad := errors.AsType[*bundle.BadError](err)
		_, damage := errors.AsType[*audit.Damage](err)
		if !bad && !damage {
			t.Errorf("%s: %v", name, err)
		}
	}
	o := s.options(t, other)
	o.Previous = open(a)
	if _, err := bundle.Export(t.Context(), o, io.Discard); err == nil {
		t.Error("a log that does not go on from the bundle before is exported after it")
	}
}

func TestRangesByTimeAndTheirErrors(t *testing.T) {
	s, dir := newSigner(t), t.TempDir()
	newLog(t, s, dir, 100, 100_000, 50)
	now := time.Now()
	for name, tt := range map[string]struct {
		from, to bundle.Bound
		want     error
	}{
		"all":                        {bundle.Bound{}, bundle.Bound{}, nil},
		"since an hour, until then":  {bundle.Bound{Set: true, At: now.Add(-time.Hour)}, bundle.Bound{Set: true, At: now.Add(time.Hour)}, nil},
		"a past that had no record":  {bundle.Bound{}, bundle.Bound{Set: true, At: now.Add(-time.Hour)}, nil},
		"a future":                   {bundle.Bound{Set: true, At: now.Add(time.Hour)}, bundle.Bound{}, bundle.ErrRange},
		"a record that is not there": {bundle.Bound{}, at(1000), bundle.ErrUnsigned},
		"from behind the end":        {at(1000), bundle.Bound{}, bundle.ErrRange},
		"the wrong way round":        {at(90), at(10), bundle.ErrRange},
	} {
		o := s.options(t, dir)
		o.From, o.To = tt.from, tt.to
		if _, err := bundle.Export(t.Context(), o, io.Discard); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestARecordIsProvenByItself(t *testing.T) {
	s, dir := newSigner(t), t.TempDir()
	newLog(t, s, dir, 300, 20_000, 50)
	for _, seqs := range [][]uint64{{0}, {17}, {17, 18, 250}, {199}} {
		p := must[*bundle.Proof](t)(bundle.Prove(t.Context(), dir, s.verifier(t), seqs...))
		data := must[[]byte](t)(p.Encode())
		q := must[*bundle.Proof](t)(bundle.ParseProof(data))
		lines, _, err := q.Verify(s.verifier(t))
		if err != nil || len(lines) != len(seqs) || lines[0].Record.Seq != seqs[0] {
			t.Fatalf("%v: %v", seqs, err)
		}
		q.Records[0].Line = bytes.Replace(q.Records[0].Line, []byte(`"v":1`), []byte(`"v":2`), 1)
		if _, _, err := q.Verify(s.verifier(t)); err == nil {
			t.Error("another version is proven")
		}
		q = must[*bundle.Proof](t)(bundle.ParseProof(data))
		q.Records[0].Line = bytes.Replace(q.Records[0].Line, []byte(`"mono":`), []byte(`"mono":1`), 1)
		if _, _, err := q.Verify(s.verifier(t)); err == nil {
			t.Error("another record is proven")
		}
		if _, _, err := must[*bundle.Proof](t)(bundle.ParseProof(data)).Verify(newSigner(t).verifier(t)); err == nil {
			t.Error("it verifies by another's key")
		}
	}
}
