// Package transcript writes and reads what a ceremony did, as it was done, in the
// format of the audit log.
//
// # What a caller may rely on
//
// What a step is about to do is durable before it is done, and what came of it
// before the next step begins. A [Writer] holds a lock on its file, so that two
// ceremonies cannot write one transcript, and writes nothing after its first
// failure. [Read] refuses every line that does not continue the chain, and every
// step that is out of order; a ceremony that was interrupted goes on behind a
// record that says at which step, and what it takes back is still there to be read.
//
// # What it does not protect against
//
// The chain shows that a transcript is whole, not who wrote it: whoever can write
// the file can write another one. What the steps mean is not known here.
package transcript

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/postern-pki/postern/audit"
)

// The outcomes of records.
const (
	Begin     = "begin"
	End       = "end"
	Exception = "exception"
)

// Resume is the step whose one record stands where an interrupted ceremony went on.
const Resume = "resume"

const (
	eventPrefix = "ceremony."
	actorKind   = "ceremony"
	maxError    = 4096 // bytes of an error's text
)

// ErrInUse says that another process writes the transcript.
var ErrInUse = errors.New("another process writes this transcript")

// A Writer appends records to a transcript.
type Writer struct {
	f       *os.File
	chain   audit.Chain
	actor   audit.Actor
	request string // names the ceremony, the same in every record
	boot    string
	mark    string // in every record; "" for none
	now     func() time.Time
	broken  error // the first failure to write; nothing is written after it
}

// New begins a transcript in an empty file, which the Writer then owns. A mark
// stands in every record.
func New(f *os.File, actor, mark string, now func() time.Time) (*Writer, error) {
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	return newWriter(f, actor, mark, hex.EncodeToString(id[:]), now)
}

func newWriter(f *os.File, actor, mark, request string, now func() time.Time) (*Writer, error) {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("transcript: %w", errors.Join(ErrInUse, err))
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		boot = []byte("unknown")
	}
	return &Writer{
		f: f, now: now, mark: mark, boot: strings.TrimSpace(string(boot)), request: request,
		actor: audit.Actor{Kind: actorKind, ID: actor},
	}, nil
}

// Open opens the transcript of an interrupted ceremony. A line that was torn off
// when it was interrupted, of which nothing can have followed, is cut; the History
// says how much that was. mark is that of its records.
func Open(path string, now func() time.Time) (*Writer, History, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return nil, History{}, err
	}
	w, h, err := open(f, now)
	if err != nil {
		return nil, h, errors.Join(err, f.Close())
	}
	return w, h, nil
}

func open(f *os.File, now func() time.Time) (*Writer, History, error) {
	w, err := newWriter(f, "", "", "", now) // locked before it is read
	if err != nil {
		return nil, History{}, err
	}
	raw, err := Load(f)
	if err != nil {
		return nil, History{}, err
	}
	whole := raw[:bytes.LastIndexByte(raw, '\n')+1]
	h, err := Read(whole)
	if err != nil {
		return nil, h, err
	}
	if h.Torn = len(raw) - len(whole); h.Torn > 0 {
		if err := errors.Join(f.Truncate(int64(len(whole))), f.Sync()); err != nil {
			return nil, h, err
		}
	}
	w.chain, w.actor, w.request, w.mark = h.chain, h.Last.Actor, h.Last.Request, h.Last.Object.String("mark")
	return w, h, nil
}

// maxTranscript is far above what a ceremony writes: some 100 KiB.
const maxTranscript = 8 << 20

// Load reads a transcript to its end, if it is not too large for one.
func Load(r io.Reader) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxTranscript+1))
	if err == nil && len(raw) > maxTranscript {
		err = fmt.Errorf("more than %d bytes", maxTranscript)
	}
	return raw, err
}

// Head returns the number of records so far, and the hash of the last one.
func (w *Writer) Head() audit.Head { return w.chain.Head() }

// Close leaves the file.
func (w *Writer) Close() error { return w.f.Close() }

// Write appends one record and returns when it is durable.
func (w *Writer) Write(step, outcome string, ob audit.Object) error {
	if w.broken != nil {
		return w.broken
	}
	if ob == nil {
		ob = audit.Object{}
	}
	if w.mark != "" {
		ob["mark"] = w.mark
	}
	line, err := audit.Encode(w.record(step, outcome, ob))
	if err == nil {
		_, err = audit.ParseLine(line.Raw) // what a verifier refuses must not be written
	}
	if err == nil {
		err = w.chain.Step(line)
	}
	if err != nil {
		return fmt.Errorf("transcript: %w", err)
	}
	if _, err = w.f.Write(line.Raw); err == nil {
		err = w.f.Sync()
	}
	if err != nil {
		w.broken = fmt.Errorf("transcript: %w", err)
		return w.broken
	}
	return nil
}

func (w *Writer) record(step, outcome string, ob audit.Object) audit.Record {
	var mono unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono) // cannot fail for this clock
	head := w.chain.Head()
	return audit.Record{
		Version: 1, Seq: head.Size, Prev: hex.EncodeToString(head.Prev[:]),
		Time: w.now().UTC(), Boot: w.boot, Mono: mono.Nano() / 1000,
		Event: eventPrefix + step, Outcome: outcome, Request: w.request, Actor: w.actor, Object: ob,
	}
}

// Step carries one step out between its two records. When do fails, the second
// one is an exception with what do returned beside the error.
func (w *Writer) Step(name string, begin audit.Object, do func() (audit.Object, error)) error {
	if err := w.Write(name, Begin, begin); err != nil {
		return err
	}
	end, err := do()
	if err != nil {
		return errors.Join(err, w.Fail(name, end, err))
	}
	return w.Write(name, End, end)
}

// Fail writes that a step failed, or that it was not begun.
func (w *Writer) Fail(name string, ob audit.Object, err error) error {
	if ob == nil {
		ob = audit.Object{}
	}
	ob["error"] = cut(strings.ToValidUTF8(err.Error(), "?"), maxError)
	return w.Write(name, Exception, ob)
}

// cut shortens s to at most n bytes, between characters.
func cut(s string, n int) string {
	for len(s) > n {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return s
}

// Digest is the SHA-256 of a transcript's bytes in lower-case hex.
func Digest(raw []byte) string {
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}
