package ceremony_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/postern-pki/postern/hsm/ceremony"
)

func TestEveryByteOfATranscriptCounts(t *testing.T) {
	r := rehearse(t, demo(t))
	raw, err := os.ReadFile(r.Transcript)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "t.jsonl")
	verify := func(b []byte) error {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := ceremony.Verify(path)
		return err
	}
	if err := verify(raw); err != nil {
		t.Fatalf("unchanged, and moved alone: %v", err)
	}
	end := len(raw) - len(lastLine(raw))
	for i := 0; i < end; i += 97 { // the last line is bound by the digest that people keep
		b := bytes.Clone(raw)
		b[i] ^= 1
		if err := verify(b); !errors.Is(err, ceremony.ErrTranscript) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
	lines := bytes.SplitAfter(raw, []byte("\n"))
	for i := range lines[:len(lines)-1] {
		without := bytes.Join(append(append([][]byte{}, lines[:i]...), lines[i+1:]...), nil)
		if err := verify(without); !errors.Is(err, ceremony.ErrTranscript) {
			t.Errorf("line %d left out: %v", i+1, err)
		}
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "torn": raw[:len(raw)-1], "more": append(bytes.Clone(raw), lastLine(raw)...), "an empty line": append(bytes.Clone(raw), '\n'),
	} {
		if err := verify(b); !errors.Is(err, ceremony.ErrTranscript) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func lastLine(raw []byte) []byte {
	return raw[bytes.LastIndexByte(raw[:len(raw)-1], '\n')+1:]
}

var (
	prevField   = regexp.MustCompile(`"prev":"[0-9a-f]{64}"`)
	digestField = regexp.MustCompile(`"digest":"[0-9a-f]{64}"`)
)

// rechain makes the chain fit again after lines were changed, as somebody who
// forges a transcript would.
func rechain(lines [][]byte) []byte {
	prev := strings.Repeat("0", 64)
	var out []byte
	for _, l := range lines {
		l = prevField.ReplaceAll(l, []byte(`"prev":"`+prev+`"`))
		l = digestField.ReplaceAll(l, []byte(`"digest":"`+prev+`"`))
		out = append(out, l...)
		sum := sha256.Sum256(l)
		prev = hex.EncodeToString(sum[:])
	}
	return out
}

// A forged transcript with a good chain still has to say what the plan says.
func TestAForgedTranscriptIsFoundOutByWhatItSays(t *testing.T) {
	r, other := rehearse(t, demo(t)), rehearse(t, demo(t))
	read := func(path string) [][]byte {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		lines := bytes.SplitAfter(raw, []byte("\n"))
		return lines[:len(lines)-1]
	}
	theirs := read(other.Transcript)
	for name, tt := range map[string]struct {
		old, repl string // of a regular expression; "" replaces the line of the same number by another ceremony's
		line      int
		want      string
	}{
		"nothing":                              {`"v":1`, `"v":1`, -1, ""},
		"another plan":                         {`validity: 825d`, `validity: 826d`, 0, "digest"},
		"another digest of the plan":           {`"plan_sha256":"[0-9a-f]{8}`, `"plan_sha256":"00000000`, 0, "digest"},
		"a rehearsal that passes for real":     {`"rehearsal":1`, `"rehearsal":0`, 0, "mark"},
		"a record without its mark":            {`"mark":"REHEARSAL",`, ``, 4, "mark"},
		"a later start":                        {`"start":"20`, `"start":"21`, 0, "start"},
		"an earlier start":                     {`"start":"20`, `"start":"19`, 0, "validity"},
		"a key that may be taken out":          {`"attribute":"CKA_EXTRACTABLE","got":"false"`, `"attribute":"CKA_EXTRACTABLE","got":"true"`, -1, "CKA_EXTRACTABLE"},
		"an attribute that is not told of":     {`"attribute":"CKA_SENSITIVE","got":"true","state":"as wanted"`, `"attribute":"CKA_SENSITIVE","got":"","state":"not told"`, -1, "CKA_SENSITIVE"},
		"a proof that does not hold":           {`"state":"holds"`, `"state":"does not hold"`, -1, "key ca"},
		"an attempt that was left out":         {`\{"answer":"CKR_[A-Z_]+","proof":"it cannot be made readable"[^}]*\},`, ``, 27, "6 proofs and not 7"},
		"an attempt that counts twice":         {`"proof":"it cannot be made readable"`, `"proof":"it cannot be made extractable"`, 27, "cannot be made readable"},
		"an attempt that was no refusal":       {`"answer":"CKR_[A-Z_]+","proof":"it cannot be made readable"`, `"answer":"CKR_OK","proof":"it cannot be made readable"`, 27, "key audit"},
		"another key":                          {`"spki":"`, `"spki":"AA`, 7, "digest"},
		"another algorithm":                    {`algorithm: P-256`, `algorithm: P-256 `, 0, "digest"},
		"another label":                        {`"label":"ra-sign"`, `"label":"ra-sing"`, 7, "label"},
		"the certificate of another ceremony":  {"", "", 31, ""},
		"a draft of another ceremony":          {"", "", 29, "looked at"},
		"a certificate's digest":               {`"sha256":"[0-9a-f]{4}`, `"sha256":"0000`, 31, "digest"},
		"a step that ended badly":              {`"out":"end"`, `"out":"exception"`, 31, "failed"},
		"a step under another name":            {`ceremony.lint`, `ceremony.hint`, -1, "comes here"},
		"an event of the log":                  {`ceremony.lint`, `policy.lint`, -1, "none of a ceremony"},
		"a token with a stranger's object":     {`"objects":\[`, `"objects":[{"class":"data","id":"","label":"x"},`, 65, "exactly one"},
		"a token that was not empty":           {`"objects":0`, `"objects":1`, 5, "not empty"},
		"a file outside":                       {`"file":"ca.pem"`, `"file":"../ca.pem"`, 65, "no file's name"},
		"an exception that is left out":        {`"exceptions":\[[^]]*\],`, ``, -1, "not noted"},
		"a weak PIN that nobody accepted":      {`"bits":128`, `"bits":42`, -1, "not noted"},
		"another ceremony's record in between": {`"req":"[0-9a-f]{4}`, `"req":"0000`, 12, "same ceremony"},
	} {
		t.Run(name, func(t *testing.T) {
			lines := read(r.Transcript)
			changed := false
			for i := range lines {
				if tt.line >= 0 && i != tt.line {
					continue
				}
				before := lines[i]
				if tt.old == "" {
					lines[i] = regexp.MustCompile(`"req":"[0-9a-f]+"`).ReplaceAll(theirs[i], regexp.MustCompile(`"req":"[0-9a-f]+"`).Find(before))
					lines[i] = regexp.MustCompile(`"mono":\d+`).ReplaceAll(lines[i], regexp.MustCompile(`"mono":\d+`).Find(before))
				} else {
					lines[i] = regexp.MustCompile(tt.old).ReplaceAll(lines[i], []byte(tt.repl))
				}
				changed = changed || tt.want == "" || !bytes.Equal(before, lines[i])
			}
			if !changed {
				t.Fatalf("nothing was changed in line %d: %s", tt.line+1, lines[max(tt.line, 0)])
			}
			path := filepath.Join(t.TempDir(), "t.jsonl")
			if err := os.WriteFile(path, rechain(lines), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := ceremony.Verify(path)
			if name == "nothing" {
				if err != nil {
					t.Errorf("the test forges badly: %v", err)
				}
				return
			}
			if !errors.Is(err, ceremony.ErrTranscript) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Verify: %v, want %s", err, tt.want)
			}
		})
	}
}

func TestFilesBesideTheTranscriptAreCompared(t *testing.T) {
	r := rehearse(t, demo(t))
	for _, name := range []string{"ca.pem", "keys.yaml", "operator.pem"} {
		path := filepath.Join(r.Out, name)
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(bytes.Clone(raw), '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ceremony.Verify(r.Transcript); !errors.Is(err, ceremony.ErrTranscript) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s changed: %v", name, err)
		}
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ceremony.Verify(r.Transcript); err != nil {
		t.Error(err)
	}
	if _, err := ceremony.Verify(filepath.Join(r.Out, "none")); err == nil || errors.Is(err, ceremony.ErrTranscript) {
		t.Errorf("no transcript: %v", err)
	}
}
