package ceremony

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"
	"golang.org/x/sys/unix"

	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/ceremony/plan"
	"github.com/postern-pki/postern/hsm/ceremony/transcript"
)

const (
	usualSoftHSM = "/usr/lib/softhsm/libsofthsm2.so"
	confVariable = "SOFTHSM2_CONF"
)

// facts are what the ceremony runs on, as its first record has them.
type facts struct {
	binary, binarySHA256 string
	goVersion, version   string
	revision, modified   string
	kernel               string
	modules              []moduleFacts
	softhsmConf          string
	openssl              string // path; "" if there is none
	opensslVersion       string
}

type moduleFacts struct {
	path, sha256            string
	cryptoki, name, version string
}

// prepare checks everything that can be checked, without changing the token. What
// it made in the output folder is taken away again if something is in the way.
func (r *run) prepare(ctx context.Context) (err error) {
	if r.plan.Text == "" || len(r.plan.Tokens) == 0 {
		return errors.New("the plan was not read by plan.Parse")
	}
	if r.plan.Class == plan.Production && !r.opts.Rehearse && r.opts.Confirm == nil {
		return &Error{Err: ErrUnattended, Hint: "run it at a terminal, or rehearse it"}
	}
	if r.out, err = checkOutput(r.opts.Out); err != nil && !r.resumable() {
		return &Error{Err: err, Hint: "name another folder with --out"}
	}
	if err := harden(); err != nil {
		return err
	}
	if r.opts.Rehearse {
		module, err := rehearsalModule(r.opts.SoftHSM, r.plan.Token(plan.Service).Module)
		if err != nil {
			return err
		}
		r.plan = r.plan.Rehearsal(module)
	}
	for _, t := range r.plan.Tokens {
		r.holders[t.On] = &holder{plan: t}
	}
	if r.plan.Changes() {
		if r.opts.Rehearse {
			return &Error{Err: errors.New("a change of a token that has keys cannot be rehearsed on an empty one"), Hint: "run it as a plan of class test, on a token with the keys of a rehearsal"}
		}
		r.holders[plan.Service].keep = r.plan.Keep
		for _, k := range r.plan.Keep {
			if !k.Retired {
				r.keys[k.Role] = &madeKey{Generated: hsm.Generated{KeyPlan: k.KeyPlan}, on: plan.Service, spki: k.SPKI, past: k.Attributes}
			}
		}
	}
	if err := r.facts.collect(ctx, r.plan); err != nil {
		return err
	}
	if err := r.reopen(); err != nil { // does nothing for a new ceremony
		return err
	}
	if err := r.peopleSigned(); err != nil {
		return err
	}
	if err := r.holdLog(); err != nil {
		return err
	}
	if err := r.gatherPINs(ctx); err != nil {
		return err
	}
	defer func() {
		if err != nil && r.log == nil {
			r.out.discard()
		}
	}()
	if err := r.tokensAsTheyAre(ctx); err != nil {
		return err
	}
	if err := r.confirm(ctx); err != nil {
		return err
	}
	if r.log != nil {
		return r.goOn(ctx)
	}
	return r.begin()
}

// tokensAsTheyAre looks at modules and tokens; a rehearsal's are made to be.
func (r *run) tokensAsTheyAre(ctx context.Context) error {
	if r.opts.Rehearse {
		if err := r.throwAway(); err != nil {
			return err
		}
	}
	r.facts.softhsmConf = os.Getenv(confVariable)
	for i := range r.facts.modules {
		m := &r.facts.modules[i]
		if err := m.ask(); err != nil {
			return err
		}
		if r.opts.Rehearse && !strings.HasPrefix(m.name, "SoftHSM") {
			return &Error{Err: fmt.Errorf("%s says that it is %q and not SoftHSM: a rehearsal must not reach a real token", m.path, m.name), Hint: "name SoftHSM's module with --softhsm"}
		}
	}
	for _, t := range r.plan.Tokens {
		if r.isDone(plan.Step{Name: plan.StepToken, Of: string(t.On)}) || r.first > 0 && t.New {
			continue // what an interrupted ceremony began to use is not empty any more; each step looks for itself
		}
		if r.plan.Kind == plan.Unlock { // its PIN may be locked: what is on it is seen afterwards
			err := withModule(t.Module, func(m *hsm.Module) (err error) {
				r.holders[t.On].slot, err = m.Find(ctx, t.Serial, t.Label)
				return err
			})
			if err != nil {
				return err
			}
			continue
		}
		if err := r.holders[t.On].look(context.WithoutCancel(ctx), r.plan.KeysOn(t.On)); err != nil { // as in perform
			return err
		}
	}
	return nil
}

// begin makes the folder and the transcript.
func (r *run) begin() (err error) {
	if err := r.out.make(); err != nil {
		return fmt.Errorf("%w: %w", ErrOutput, err)
	}
	r.start = r.opts.Now().UTC()
	f, err := r.out.create(TranscriptFile, 0o644)
	if err != nil {
		return fmt.Errorf("transcript: %w", err)
	}
	mark := ""
	if r.opts.Rehearse {
		mark = plan.RehearsalMark
	}
	if r.log, err = transcript.New(f, r.plan.Name, mark, r.opts.Now); err != nil {
		return errors.Join(err, f.Close())
	}
	r.describeResult()
	return nil
}

func (r *run) describeResult() {
	r.result.Out, r.result.Plan, r.result.PlanSHA256 = r.out.dir, r.plan.Name, r.plan.Digest()
	r.result.Class, r.result.Rehearsal = r.plan.Class, r.opts.Rehearse
	r.result.Module, r.result.SoftHSM2Conf, r.result.Transcript = r.plan.Token(plan.Service).Module, r.facts.softhsmConf, r.out.path(TranscriptFile)
}

// harden keeps the PIN out of core files and away from debuggers.
func harden() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("setting RLIMIT_CORE: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("setting PR_SET_DUMPABLE: %w", err)
	}
	return nil
}

// rehearsalModule picks SoftHSM: a rehearsal must not reach the real token.
func rehearsalModule(given, planned string) (string, error) {
	for _, path := range []string{given, planned, usualSoftHSM} {
		if !strings.Contains(filepath.Base(path), "softhsm") && path != given || path == "" {
			continue
		}
		if _, err := os.Stat(path); err != nil {
			return "", &Error{Err: fmt.Errorf("SoftHSM: %w", err), Hint: "install softhsm2, or name its module with --softhsm"}
		}
		return filepath.Abs(path)
	}
	return "", errors.New("no module for a rehearsal")
}

func (f *facts) collect(ctx context.Context, p Plan) (err error) {
	if f.binary, err = os.Executable(); err != nil {
		return err
	}
	if f.binarySHA256, err = fileDigest(f.binary); err != nil {
		return err
	}
	f.goVersion = runtime.Version()
	if info, ok := debug.ReadBuildInfo(); ok {
		f.version = info.Main.Version
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				f.revision = s.Value
			case "vcs.modified":
				f.modified = s.Value
			}
		}
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err == nil {
		f.kernel = unix.ByteSliceToString(uts.Sysname[:]) + " " + unix.ByteSliceToString(uts.Release[:]) + " " + unix.ByteSliceToString(uts.Machine[:])
	}
	for _, t := range p.Tokens {
		if slices.ContainsFunc(f.modules, func(m moduleFacts) bool { return m.path == t.Module }) {
			continue
		}
		m := moduleFacts{path: t.Module}
		if m.sha256, err = fileDigest(t.Module); err != nil {
			return &Error{Err: fmt.Errorf("PKCS#11 module: %w", err), Hint: "token.module in the plan names it"}
		}
		f.modules = append(f.modules, m)
	}
	if f.openssl, err = exec.LookPath("openssl"); err != nil {
		f.openssl = "" // its second look is left out, and the transcript says so
		return nil
	}
	out, err := exec.CommandContext(ctx, f.openssl, "version").Output() //nolint:gosec // the path is that of LookPath
	if err != nil {
		return fmt.Errorf("openssl version: %w", err)
	}
	f.opensslVersion = string(bytes.TrimSpace(out))
	return nil
}

func fileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// ask asks the module who it is, and leaves it again.
func (m *moduleFacts) ask() error {
	p := pkcs11.New(m.path)
	if p == nil {
		return fmt.Errorf("%w: %s is not a PKCS#11 library for this machine", hsm.ErrModule, m.path)
	}
	defer p.Destroy()
	if err := p.Initialize(); err != nil {
		return fmt.Errorf("%w: %s: %w", hsm.ErrModule, m.path, err)
	}
	info, err := p.GetInfo()
	if err = errors.Join(err, p.Finalize()); err != nil {
		return fmt.Errorf("%w: %s: %w", hsm.ErrModule, m.path, err)
	}
	m.cryptoki = fmt.Sprintf("%d.%d", info.CryptokiVersion.Major, info.CryptokiVersion.Minor)
	m.version = fmt.Sprintf("%d.%d", info.LibraryVersion.Major, info.LibraryVersion.Minor)
	m.name = strings.TrimSpace(strings.TrimRight(info.ManufacturerID, " \x00") + " " + strings.TrimRight(info.LibraryDescription, " \x00"))
	return nil
}

// throwAway makes a token folder inside the output and points SoftHSM at it.
// SoftHSM reads the variable at C_Initialize, which comes after this.
func (r *run) throwAway() error {
	if err := r.out.make(); err != nil {
		return fmt.Errorf("%w: %w", ErrOutput, err)
	}
	dir := r.out.path(tokenDir)
	tokens := filepath.Join(dir, "tokens")
	if strings.ContainsAny(tokens, "\n#=") {
		return fmt.Errorf("%w: SoftHSM's configuration cannot hold the path %q", ErrOutput, tokens)
	}
	if err := os.MkdirAll(tokens, 0o700); err != nil {
		return fmt.Errorf("%w: %w", ErrOutput, err)
	}
	conf := filepath.Join(dir, confFile)
	text := "directories.tokendir = " + tokens + "\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return fmt.Errorf("%w: %w", ErrOutput, err)
	}
	before, was := os.LookupEnv(confVariable)
	r.cleanup = append(r.cleanup, func() {
		if was {
			_ = os.Setenv(confVariable, before)
		} else {
			_ = os.Unsetenv(confVariable)
		}
	})
	return os.Setenv(confVariable, conf)
}

// look finds the token, or the one empty slot for a new one, and makes sure that nothing is on it.
func (h *holder) look(ctx context.Context, keys []plan.Key) error {
	return withModule(h.plan.Module, func(m *hsm.Module) (err error) {
		if h.plan.New {
			h.slot, err = emptySlot(ctx, m, h.plan.Label)
			return err
		}
		return h.lookAtExisting(ctx, m, keys)
	})
}

func (h *holder) lookAtExisting(ctx context.Context, m *hsm.Module, keys []plan.Key) error {
	token, err := m.Open(ctx, hsm.Config{Serial: h.plan.Serial, Label: h.plan.Label, PIN: hsm.PINFrom(h.pin.PIN)})
	if err != nil {
		return err
	}
	objects, err := h.objects(ctx, token)
	h.slot = token.Slot()
	if err = errors.Join(err, token.Close()); err != nil {
		return err
	}
	for _, o := range objects {
		if slices.ContainsFunc(keys, func(k plan.Key) bool { return k.Label == o.Label }) {
			return &Error{Err: fmt.Errorf("%w: %s %q", hsm.ErrKeyExists, o.Class, o.Label), Hint: "a ceremony needs an empty token; nothing was changed"}
		}
	}
	if err := h.expected(objects); err != nil {
		hint := "a ceremony needs an empty token; nothing was changed"
		if len(h.keep) > 0 {
			hint = "the plan has to name every key that is there, retired ones too; nothing was changed"
		}
		return &Error{Err: err, Hint: hint}
	}
	return nil
}

// words name a token for a person.
func (h *holder) words() string {
	s := h.slot
	switch {
	case s.Serial == "" && h.plan.New:
		return fmt.Sprintf("a new token %q", h.plan.Label)
	case h.plan.New && !s.Initialized:
		return fmt.Sprintf("a new token %q, in the empty slot %d (%s %s)", h.plan.Label, s.ID, s.Manufacturer, s.Model)
	default:
		return fmt.Sprintf("the token %q, serial %s, of %s %s", s.Label, s.Serial, s.Manufacturer, s.Model)
	}
}

func (r *run) confirm(ctx context.Context) error {
	if r.opts.Confirm == nil || r.opts.Rehearse {
		return nil
	}
	var which []string
	for _, t := range r.plan.Tokens {
		which = append(which, r.holders[t.On].words())
	}
	i := Intention{Plan: r.plan.Name, Digest: r.plan.Digest(), Token: strings.Join(which, " and "), Out: r.out.dir}
	if r.log != nil {
		i.Resume = r.progress()
	}
	return r.opts.Confirm(ctx, i)
}
