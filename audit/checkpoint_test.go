package audit_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/postern-pki/postern/audit"
)

func TestTimers(t *testing.T) {
	dir := t.TempDir()
	s := newSigner(t)
	synctest.Test(t, func(t *testing.T) {
		l, err := audit.Open(context.Background(), options(t, dir, s))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if s.count() != 1 {
			t.Errorf("at start: %d checkpoints", s.count())
		}
		time.Sleep(59 * time.Minute)
		if s.count() != 1 {
			t.Errorf("idle: %d checkpoints", s.count())
		}
		time.Sleep(2 * time.Minute)
		if s.count() != 2 {
			t.Errorf("after an hour: %d checkpoints", s.count())
		}
		if _, err := l.Append(context.Background(), refusal(1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(62 * time.Second)
		if s.count() != 3 {
			t.Errorf("60 s after a record: %d checkpoints", s.count())
		}
		if err := l.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestCheckpointByOthers(t *testing.T) {
	dir, s := t.TempDir(), newSigner(t)
	l := open(t, options(t, dir, s))
	appendN(t, l, 3)
	head := l.Head()
	data, err := l.Checkpoint(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	n, err := note.Open(data, note.VerifierList(s.verifier()))
	if err != nil || n.Text != audit.NoteText(origin, head) || strings.Count(n.Text, "\n") != 3 {
		t.Fatalf("note.Open: %+v, %v", n, err)
	}
	if size, root, err := audit.OpenCheckpoint(data, s.verifier()); err != nil || size != head.Size || root != head.Root {
		t.Errorf("OpenCheckpoint = %d, %v, %v", size, root, err)
	}
	if got := readFile(t, filepath.Join(dir, "checkpoints", "000000000004.note")); !bytes.Equal(got, data) {
		t.Errorf("the file has %q", got)
	}
	sig, err := base64.StdEncoding.DecodeString(n.Sigs[0].Base64)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&s.key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	tmp := t.TempDir()
	path := func(name string, b []byte) string {
		writeFile(t, filepath.Join(tmp, name), b)
		return filepath.Join(tmp, name)
	}
	args := []string{"dgst", "-sha256", "-verify", path("key", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), "-signature", path("sig", sig[4:]), path("text", []byte(n.Text))}
	if out, err := exec.Command("openssl", args...).CombinedOutput(); err != nil {
		t.Errorf("openssl: %v: %s", err, out)
	}
	if _, err := os.Stat(filepath.Join(dir, "checkpoints", "000000000004.note.tmp")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a temporary file stays: %v", err)
	}
}

func TestCheckpointRefused(t *testing.T) {
	s, other := newSigner(t), newSigner(t)
	make := func(s *softSigner, text string) []byte {
		data, err := s.SignCheckpoint(context.Background(), audit.Head{Size: 4})
		if err != nil {
			t.Fatal(err)
		}
		return []byte(strings.Replace(string(data), audit.NoteText(origin, audit.Head{Size: 4}), text, 1))
	}
	text := audit.NoteText(origin, audit.Head{Size: 4})
	for name, data := range map[string][]byte{
		"another key":     make(other, text),
		"another size":    make(s, strings.Replace(text, "\n4\n", "\n5\n", 1)),
		"an extension":    make(s, text+"ext\n"),
		"no octet":        nil,
		"not UTF-8":       []byte("\xff\n\n"),
		"beyond measure":  bytes.Repeat([]byte("x"), 1<<20),
		"another's words": []byte("go.sum database tree\n1\nAAAA\n\n"),
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := audit.OpenCheckpoint(data, s.verifier()); !errors.Is(err, audit.ErrCheckpoint) {
				t.Errorf("OpenCheckpoint: %v, want ErrCheckpoint", err)
			}
		})
	}
}

// TestSignerThatFails costs a checkpoint and nothing else.
func TestSignerThatFails(t *testing.T) {
	s := newSigner(t)
	l := open(t, options(t, t.TempDir(), s))
	s.set(func(context.Context) error { return errors.New("token is gone") })
	if _, err := l.Checkpoint(context.Background()); err == nil || errors.Is(err, audit.ErrPoisoned) {
		t.Errorf("Checkpoint: %v", err)
	}
	appendN(t, l, 1)
	s.set(nil)
	if _, err := l.Checkpoint(context.Background()); err != nil {
		t.Error(err)
	}
}

// TestCheckpointTriggers: by number of records, at a roll, at the stop.
func TestCheckpointTriggers(t *testing.T) {
	dir := t.TempDir()
	s := newSigner(t)
	synctest.Test(t, func(t *testing.T) {
		o := options(t, dir, s)
		o.CheckpointRecords, o.SegmentBytes = 50, 20_000
		l, err := audit.Open(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		n := s.count()
		var fifty []audit.Entry
		for i := range 50 {
			fifty = append(fifty, refusal(i))
		}
		if _, err := l.AppendAll(context.Background(), fifty...); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if s.count() != n+1 {
			t.Errorf("%d checkpoints after 50 records, want %d", s.count(), n+1)
		}
		for range 2 { // the second goes into a new segment
			if _, err := l.Append(context.Background(), big(0, 20_000)); err != nil {
				t.Fatal(err)
			}
		}
		n = s.count()
		time.Sleep(2 * time.Second)
		if s.count() != n+1 {
			t.Errorf("%d checkpoints after a roll, want %d", s.count(), n+1)
		}
		n = s.count()
		if err := l.Close(context.Background()); err != nil || s.count() != n+1 {
			t.Errorf("%d checkpoints after the stop, want %d (%v)", s.count(), n+1, err)
		}
	})
}

// FuzzCheckpoint: nothing beside a log can panic its readers, and without the
// key nothing is a checkpoint but what was signed.
func FuzzOpenCheckpoint(f *testing.F) {
	s := newSigner(f)
	h := audit.Head{Size: 4}
	good, err := s.SignCheckpoint(context.Background(), h)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("test.example/log\n4\nAAAA\n\n\u2014 postern.example/log AAAAAA==\n"))
	v := s.verifier()
	f.Fuzz(func(t *testing.T, data []byte) {
		size, root, err := audit.OpenCheckpoint(data, v)
		if err == nil && (size != h.Size || root != h.Root) {
			t.Errorf("%q is a checkpoint of %d, %v", data, size, root)
		}
	})
}

func TestNotesAreSignedOnP256Alone(t *testing.T) {
	if _, err := audit.ECDSANoteVerifier(origin, nil); !errors.Is(err, audit.ErrCheckpoint) {
		t.Errorf("no key: %v", err)
	}
	for _, curve := range []elliptic.Curve{elliptic.P224(), elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		_, verr := audit.ECDSANoteVerifier(origin, &key.PublicKey)
		_, aerr := audit.AssembleNote(origin, &key.PublicKey, audit.NoteText(origin, audit.Head{}), nil)
		for _, err := range []error{verr, aerr} {
			if good := curve == elliptic.P256(); good != (err == nil) || !good && !errors.Is(err, audit.ErrCheckpoint) {
				t.Errorf("%s: %v", curve.Params().Name, err)
			}
		}
	}
}
