package transcript_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/ceremony/transcript"
)

// write begins a transcript with two steps, the second one failed.
func write(tb testing.TB) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "t.jsonl")
	f, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	w, err := transcript.New(f, "test", "", time.Now)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	if err := w.Step("one", audit.Object{"of": "x"}, func() (audit.Object, error) { return nil, nil }); err != nil {
		tb.Fatal(err)
	}
	bad := errors.New("bad luck")
	if err := w.Step("two", nil, func() (audit.Object, error) { return nil, bad }); !errors.Is(err, bad) {
		tb.Fatal(err)
	}
	return path
}

func reopen(tb testing.TB, path string) (*transcript.Writer, transcript.History) {
	tb.Helper()
	w, h, err := transcript.Open(path, time.Now)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = w.Close() })
	return w, h
}

func TestATranscriptGoesOnWhereItStopped(t *testing.T) {
	path := write(t)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"actor":{"id"`); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	w, h := reopen(t, path)
	if len(h.Steps) != 2 || len(h.Done()) != 1 || h.Torn != 14 || h.Steps[0].String() != "one x" || h.Steps[1].End.Object.String("error") != "bad luck" {
		t.Errorf("%+v", h)
	}
	if _, _, err := transcript.Open(path, time.Now); !errors.Is(err, transcript.ErrInUse) {
		t.Errorf("a second writer: %v", err)
	}
	nothing := func() (audit.Object, error) { return nil, nil }
	if err := errors.Join(w.Write(transcript.Resume, transcript.End, audit.Object{"at": 1}), w.Step("two", nil, nothing)); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h, err = transcript.Read(raw)
	if err != nil || len(h.Done()) != 2 || len(h.Resumptions) != 1 || h.Resumptions[0].Undone[0].String() != "two" {
		t.Errorf("%+v, %v", h, err)
	}
}

func TestWhatDoesNotFollowIsRefused(t *testing.T) {
	nothing := func() (audit.Object, error) { return nil, nil }
	for name, tt := range map[string]struct {
		write func(w *transcript.Writer) error
		want  string
	}{
		"a step after a failed one": {func(w *transcript.Writer) error { return w.Step("three", nil, nothing) }, "only a resumption"},
		"a resumption beyond what is done": {func(w *transcript.Writer) error {
			return w.Write(transcript.Resume, transcript.End, audit.Object{"at": 2})
		}, "not reached"},
		"one before the beginning": {func(w *transcript.Writer) error {
			return w.Write(transcript.Resume, transcript.End, audit.Object{"at": -1})
		}, "not reached"},
		"an end of nothing": {func(w *transcript.Writer) error {
			return errors.Join(w.Write(transcript.Resume, transcript.End, audit.Object{"at": 1}), w.Write("two", transcript.End, nil))
		}, "out of order"},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t)
			w, _ := reopen(t, path)
			if err := tt.write(w); err != nil {
				t.Fatal(err)
			}
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := transcript.Read(raw); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Read: %v, want %s", err, tt.want)
			}
		})
	}
}

// FuzzRead checks that no text makes the reader panic, and that what it accepts
// has steps that a verifier may rely on.
func FuzzRead(f *testing.F) {
	raw, err := os.ReadFile(write(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(bytes.Replace(raw, []byte("ceremony.two"), []byte("ceremony.resume"), 1))
	f.Add(raw[:len(raw)/2])
	f.Fuzz(func(t *testing.T, raw []byte) {
		h, err := transcript.Read(raw)
		if err != nil {
			return
		}
		for i, s := range h.Steps {
			if !s.Done() && i < len(h.Steps)-1 {
				t.Errorf("step %d is not done, and others follow it", i)
			}
		}
	})
}

// What a log begins with is a ceremony that came to its end.
func TestOnlyAClosedTranscriptIsClosed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.jsonl")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w, err := transcript.New(f, "test", "", time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	nothing := func() (audit.Object, error) { return nil, nil }
	closed := func() error {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, err = transcript.Closed(raw)
		return err
	}
	if err := w.Step("one", nil, nothing); err != nil {
		t.Fatal(err)
	}
	if err := closed(); !errors.Is(err, transcript.ErrOpen) {
		t.Errorf("before its end: %v", err)
	}
	if err := w.Step("close", nil, nothing); err != nil {
		t.Fatal(err)
	}
	if err := closed(); err != nil {
		t.Errorf("after its end: %v", err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"nothing":         {},
		"its tail cut":    raw[:bytes.LastIndexByte(raw[:len(raw)-1], '\n')+1],
		"its last LF cut": raw[:len(raw)-1],
		"a line changed":  bytes.Replace(raw, []byte("ceremony.one"), []byte("ceremony.two"), 1),
		"a line missing":  raw[bytes.IndexByte(raw, '\n')+1:],
	} {
		if _, err := transcript.Closed(bad); err == nil {
			t.Errorf("%s: it counts as closed", name)
		}
	}
}
