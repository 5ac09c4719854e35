package ceremony

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-pki/postern/audit"
)

// The outcomes of a transcript's records.
const (
	outBegin     = "begin"
	outEnd       = "end"
	outException = "exception"
)

// eventPrefix stands before the name of a step in a record's event.
const eventPrefix = "ceremony."

// A transcript is written while the ceremony goes on, in the format of the
// audit log: what a step is about to do is durable before it is done.
type transcript struct {
	f       *os.File
	chain   audit.Chain
	actor   audit.Actor
	request string // names the ceremony, the same in every record
	boot    string
	mark    bool // every record says that it is of a rehearsal
	now     func() time.Time
	records uint64
	broken  error // the first failure to write; nothing is written after it
}

func openTranscript(o *output, plan Plan, rehearsal bool, now func() time.Time) (*transcript, error) {
	f, err := o.create(TranscriptFile, 0o644)
	if err != nil {
		return nil, fmt.Errorf("transcript: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		boot = []byte("unknown")
	}
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &transcript{
		f: f, now: now, mark: rehearsal, boot: strings.TrimSpace(string(boot)), request: hex.EncodeToString(id[:]),
		actor: audit.Actor{Kind: "ceremony", ID: plan.Name},
	}, nil
}

// write appends one record and returns when it is durable.
func (t *transcript) write(step, outcome string, ob audit.Object) error {
	if t.broken != nil {
		return t.broken
	}
	if ob == nil {
		ob = audit.Object{}
	}
	if t.mark {
		ob["mark"] = rehearsalMark
	}
	line, err := audit.Encode(t.record(step, outcome, ob))
	if err == nil {
		_, err = audit.ParseLine(line.Raw) // what a verifier refuses must not be written
	}
	if err == nil {
		err = t.chain.Step(line)
	}
	if err != nil {
		return fmt.Errorf("transcript: %w", err)
	}
	if _, err = t.f.Write(line.Raw); err == nil {
		err = t.f.Sync()
	}
	if err != nil {
		t.broken = fmt.Errorf("transcript: %w", err)
		return t.broken
	}
	t.records++
	return nil
}

func (t *transcript) record(step, outcome string, ob audit.Object) audit.Record {
	var mono unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono) // cannot fail for this clock
	head := t.chain.Head()
	return audit.Record{
		Version: 1, Seq: head.Size, Prev: hex.EncodeToString(head.Prev[:]),
		Time: t.now().UTC(), Boot: t.boot, Mono: mono.Nano() / 1000,
		Event: eventPrefix + step, Outcome: outcome, Request: t.request, Actor: t.actor, Object: ob,
	}
}

// step carries one step out between its two records. When do fails, the second
// one is an exception with what do returned beside the error.
func (t *transcript) step(name string, begin audit.Object, do func() (audit.Object, error)) error {
	if err := t.write(name, outBegin, begin); err != nil {
		return &Error{Step: name, Err: err}
	}
	end, err := do()
	if err != nil {
		if end == nil {
			end = audit.Object{}
		}
		end["error"] = cutBytes(strings.ToValidUTF8(err.Error(), "?"), 4096)
		if werr := t.write(name, outException, end); werr != nil {
			err = errors.Join(err, werr)
		}
		return &Error{Step: name, Err: err}
	}
	if err := t.write(name, outEnd, end); err != nil {
		return &Error{Step: name, Err: err}
	}
	return nil
}

func (t *transcript) close() error { return t.f.Close() }

const timeFormat = "2006-01-02T15:04:05.000000Z"

// The files of an output folder. What is secret has mode 0600.
const (
	TranscriptFile = "transcript.jsonl"
	KeysFile       = "keys.yaml"
	PINFile        = "hsm-pin"       // secret; of a rehearsal alone
	ChallengeFile  = "challenge.key" // secret; 32 random bytes
	OperatorCAKey  = "operator-ca.key"
	OperatorKey    = "operator.key"
	tokenDir       = "token" // of a rehearsal alone
	confFile       = "softhsm2.conf"
)

// File returns the name of the role's certificate file.
func (r Role) File() string { return string(r) + ".pem" }

// ErrOutput says that the output folder cannot be used.
var ErrOutput = errors.New("the output folder must be absent or empty")

// An output is a ceremony's folder. Nothing in it is ever overwritten, and what
// was written is durable.
type output struct {
	dir     string
	made    bool // by us
	written []writtenFile
}

type writtenFile struct {
	name   string
	sha256 string // of what is public
	secret bool
}

// check refuses a folder in which something lies, and says where the folder is.
func checkOutput(dir string) (output, error) {
	if dir == "" {
		return output{}, fmt.Errorf("%w: none is named", ErrOutput)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return output{}, fmt.Errorf("%w: %w", ErrOutput, err)
	}
	entries, err := os.ReadDir(abs)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if info, perr := os.Stat(filepath.Dir(abs)); perr != nil || !info.IsDir() {
			return output{}, fmt.Errorf("%w: %s is not a folder", ErrOutput, filepath.Dir(abs))
		}
		return output{dir: abs}, nil
	case err != nil:
		return output{}, fmt.Errorf("%w: %w", ErrOutput, err)
	case len(entries) > 0:
		return output{}, fmt.Errorf("%w: %q is in %s", ErrOutput, entries[0].Name(), abs)
	}
	return output{dir: abs}, nil
}

// make creates the folder; others than its owner have no business in it.
func (o *output) make() error {
	err := os.Mkdir(o.dir, 0o700)
	o.made = o.made || err == nil
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// discard takes back what a ceremony that never began has made.
func (o *output) discard() {
	_ = os.RemoveAll(filepath.Join(o.dir, tokenDir))
	if o.made {
		_ = os.Remove(o.dir)
	}
}

func (o *output) path(name string) string { return filepath.Join(o.dir, name) }

// create opens a file that was not there.
func (o *output) create(name string, mode fs.FileMode) (*os.File, error) {
	f, err := os.OpenFile(o.path(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return nil, err
	}
	return f, o.sync()
}

func (o *output) sync() error {
	d, err := os.Open(o.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (o *output) write(name string, secret bool, data []byte) error {
	mode := fs.FileMode(0o644)
	if secret {
		mode = 0o600
	}
	f, err := o.create(name, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	w := writtenFile{name: name, secret: secret}
	if !secret {
		w.sha256 = digest(data)
	}
	o.written = append(o.written, w)
	return nil
}

func (o *output) writeCertificate(r Role, der []byte) error {
	return o.write(r.File(), false, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// writeKey writes a software key in PKCS#8 (RFC 5958).
func (o *output) writeKey(name string, key any) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	defer clear(der)
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	defer clear(text)
	return o.write(name, true, text)
}

func readTranscript(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(io.LimitReader(f, maxTranscript+1))
	if err == nil && len(raw) > maxTranscript {
		err = fmt.Errorf("more than %d bytes", maxTranscript)
	}
	return raw, err
}
