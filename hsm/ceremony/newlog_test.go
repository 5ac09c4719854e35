package ceremony_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/ceremony"
	"github.com/postern-pki/postern/hsm/ceremony/newlog"
	"github.com/postern-pki/postern/hsm/ceremony/pins"
	"github.com/postern-pki/postern/test/softhsm"
)

// begun carries a plan for a new log out, where the disk has lost everything.
func begun(t *testing.T) (softhsm.Token, ceremony.Result, string) {
	t.Helper()
	tok, first := onToken(t)
	state, holder := t.TempDir(), t.TempDir()
	p := filled(t, "new-log.yaml", tok, first)
	for _, change := range [][2]string{{"/var/lib/postern/authority", state}, {"/var/lib/postern/keyholder", holder}} {
		p = reparsed(t, p.Text, change[0], change[1])
	}
	r, err := ceremony.Run(t.Context(), p, ceremony.Options{Out: filepath.Join(t.TempDir(), "out"), PIN: pins.FromFile(tok.PINFile(t))})
	if err != nil {
		t.Fatal(err)
	}
	return tok, r, state
}

// A transcript that says something else than what the new log quotes, or than was
// planned, does not hold.
func TestATranscriptOfANewLogIsFoundOut(t *testing.T) {
	tok, r, state := begun(t)
	report, err := ceremony.Verify(r.Transcript)
	if err != nil {
		t.Fatal(err)
	}
	said := ""
	for _, s := range report.Statements {
		said += s.Say + "\n"
	}
	for _, w := range []string{"the token keeps no mark", "the keyholder has no file of its own", "the disk has no log", "the new log is host.example/log-2"} {
		if !strings.Contains(said, w) {
			t.Errorf("it does not say %q:\n%s", w, said)
		}
	}
	raw, err := os.ReadFile(r.Transcript)
	if err != nil {
		t.Fatal(err)
	}
	note := regexp.MustCompile(`"note":"host\.example/log-2\\n0\\n`)
	for name, tt := range map[string]struct {
		old  *regexp.Regexp
		repl string
	}{
		"what the disk held": {regexp.MustCompile(`"disk":\{"state":"none"\}`), `"disk":{"size":7,"state":"verifies"}`},
		"what was aside":     {regexp.MustCompile(`"aside":\[\]`), `"aside":["/somewhere"]`},
		"the mark's size":    {note, `"note":"host.example/log-2\n7\n`},
		"the mark's origin":  {note, `"note":"host.example/log-3\n0\n`},
		"what was quoted":    {regexp.MustCompile(`("ev":"ceremony\.quote".*"ob":\{"sha256":")[0-9a-f]{8}`), `${1}00000000`},
	} {
		lines := bytes.SplitAfter(raw, []byte("\n"))
		lines = lines[:len(lines)-1]
		changed := false
		for i := range lines {
			was := lines[i]
			lines[i] = tt.old.ReplaceAll(lines[i], []byte(tt.repl))
			changed = changed || !bytes.Equal(was, lines[i])
		}
		path := filepath.Join(t.TempDir(), "transcript.jsonl") // alone: no signature and no file beside it
		if err := os.WriteFile(path, rechain(lines), 0o600); err != nil {
			t.Fatal(err)
		}
		if report, err := ceremony.Verify(path); !changed || !errors.Is(err, ceremony.ErrTranscript) || !strings.Contains(err.Error(), "a new log begins as planned") {
			t.Errorf("%s: changed %t, %v, %+v", name, changed, err, report.Statements)
		}
	}

	// The token has the mark and the service its file; a change of the token's keys
	// takes the mark for what it is.
	token, err := hsm.Open(t.Context(), hsm.Config{Module: tok.Module, Serial: tok.Serial, PIN: hsm.PINFromFile(tok.PINFile(t))})
	if err != nil {
		t.Fatal(err)
	}
	if notes, err := token.ReadData(t.Context(), hsm.MarkLabel); err != nil || len(notes) != 1 || !bytes.HasPrefix(notes[0], []byte("host.example/log-2\n0\n")) {
		t.Errorf("the mark is %q, %v", notes, err)
	}
	if err := token.Close(); err != nil {
		t.Fatal(err)
	}
	if after, err := newlog.Read(state); err != nil || after.String("origin") != "host.example/log-2" || after.String("why") == "" {
		t.Errorf("the service is told %+v, %v", after, err)
	}
}

// A file that no ceremony left stops the service; it is not quoted.
func TestAFileThatIsNoCeremonysIsNotQuoted(t *testing.T) {
	dir := t.TempDir()
	if after, err := newlog.Read(dir); after != nil || err != nil {
		t.Errorf("none: %v, %v", after, err)
	}
	for _, text := range []string{"", "{}", "{} \n", `{"b":1,"a":2}` + "\n", "[]\n", `{"a":1.5}` + "\n", `{"a":"` + strings.Repeat("x", 48<<10) + "\"}\n"} {
		if err := os.WriteFile(filepath.Join(dir, newlog.File), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if after, err := newlog.Read(dir); !errors.Is(err, newlog.ErrFile) {
			t.Errorf("%.20q: %v, %v", text, after, err)
		}
	}
}
