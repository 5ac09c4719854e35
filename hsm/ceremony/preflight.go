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
	"strings"

	"github.com/miekg/pkcs11"
	"golang.org/x/sys/unix"

	"github.com/postern-pki/postern/hsm"
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
	modulePath           string
	moduleSHA256         string
	cryptoki, moduleName string
	moduleVersion        string
	softhsmConf          string
	openssl              string // path; "" if there is none
	opensslVersion       string
}

// prepare checks everything that can be checked, without changing the token. What
// it made in the output folder is taken away again if something is in the way.
func (r *run) prepare(ctx context.Context) (err error) {
	if r.plan.Text == "" || len(r.plan.Keys) == 0 {
		return errors.New("the plan was not read by ParsePlan")
	}
	if r.plan.Class == Production && !r.opts.Rehearse && r.opts.Confirm == nil {
		return &Error{Err: ErrUnattended, Hint: "run it at a terminal, or rehearse it"}
	}
	if r.out, err = checkOutput(r.opts.Out); err != nil {
		return &Error{Err: err, Hint: "name another folder with --out"}
	}
	if err := harden(); err != nil {
		return err
	}
	if r.opts.Rehearse {
		module, err := rehearsalModule(r.opts.SoftHSM, r.plan.Token.Module)
		if err != nil {
			return err
		}
		r.plan = r.plan.rehearsal(module)
	}
	if err := r.facts.collect(ctx, r.plan.Token.Module); err != nil {
		return err
	}
	if err := r.pins(ctx); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			r.out.discard()
		}
	}()
	if r.opts.Rehearse {
		if err := r.throwAway(); err != nil {
			return err
		}
	}
	r.facts.softhsmConf = os.Getenv(confVariable)
	if err := r.facts.moduleInfo(r.plan.Token.Module); err != nil {
		return err
	}
	if r.opts.Rehearse && !strings.HasPrefix(r.facts.moduleName, "SoftHSM") {
		return &Error{Err: fmt.Errorf("%s says that it is %q and not SoftHSM: a rehearsal must not reach a real token", r.plan.Token.Module, r.facts.moduleName), Hint: "name SoftHSM's module with --softhsm"}
	}
	if err := r.look(context.WithoutCancel(ctx)); err != nil { // as in perform
		return err
	}
	if err := r.confirm(ctx); err != nil {
		return err
	}
	return r.begin()
}

// begin makes the folder and the transcript.
func (r *run) begin() (err error) {
	if err := r.out.make(); err != nil {
		return fmt.Errorf("%w: %w", ErrOutput, err)
	}
	r.start = r.opts.Now().UTC()
	if r.log, err = openTranscript(&r.out, r.plan, r.opts.Rehearse, r.opts.Now); err != nil {
		return err
	}
	r.result = Result{
		Out: r.out.dir, Plan: r.plan.Name, PlanSHA256: r.plan.Digest(), Class: r.plan.Class, Rehearsal: r.opts.Rehearse,
		Module: r.plan.Token.Module, SoftHSM2Conf: r.facts.softhsmConf, Transcript: r.out.path(TranscriptFile),
	}
	return nil
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

func (f *facts) collect(ctx context.Context, module string) (err error) {
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
	f.modulePath = module
	if f.moduleSHA256, err = fileDigest(module); err != nil {
		return &Error{Err: fmt.Errorf("PKCS#11 module: %w", err), Hint: "token.module in the plan names it"}
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

// moduleInfo asks the module who it is, and leaves it again.
func (f *facts) moduleInfo(path string) error {
	p := pkcs11.New(path)
	if p == nil {
		return fmt.Errorf("%w: %s is not a PKCS#11 library for this machine", hsm.ErrModule, path)
	}
	defer p.Destroy()
	if err := p.Initialize(); err != nil {
		return fmt.Errorf("%w: %s: %w", hsm.ErrModule, path, err)
	}
	info, err := p.GetInfo()
	if err = errors.Join(err, p.Finalize()); err != nil {
		return fmt.Errorf("%w: %s: %w", hsm.ErrModule, path, err)
	}
	f.cryptoki = fmt.Sprintf("%d.%d", info.CryptokiVersion.Major, info.CryptokiVersion.Minor)
	f.moduleVersion = fmt.Sprintf("%d.%d", info.LibraryVersion.Major, info.LibraryVersion.Minor)
	f.moduleName = strings.TrimSpace(strings.TrimRight(info.ManufacturerID, " \x00") + " " + strings.TrimRight(info.LibraryDescription, " \x00"))
	return nil
}

// pins gets both PINs, and refuses weak ones while nothing depends on them yet.
func (r *run) pins(ctx context.Context) (err error) {
	if r.opts.Rehearse {
		if r.pin, r.text, err = generatePIN(); err != nil {
			return err
		}
		var forgotten []byte // nobody resets the PIN of a throw-away token
		r.so, forgotten, err = generatePIN()
		clear(forgotten)
		return err
	}
	get := func(dst *GivenPIN, from PINSource, what string) error {
		if from == nil {
			return fmt.Errorf("no source for %s is given", what)
		}
		p, err := from(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		*dst = p
		if err := p.strong(what, r.plan.Class); err != nil {
			return &Error{Err: err, Hint: "choose another one; it is not changed later"}
		}
		return nil
	}
	if r.plan.Token.New {
		if err := get(&r.so, r.opts.SOPIN, "the security officer's PIN"); err != nil {
			return err
		}
	}
	if err := get(&r.pin, r.opts.PIN, "the user PIN"); err != nil {
		return err
	}
	if r.plan.Token.New && r.so.Equal(r.pin.PIN) {
		return &Error{Err: fmt.Errorf("%w: both PINs are the same", ErrWeakPIN), Hint: "whoever has one must not have the other"}
	}
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
func (r *run) look(ctx context.Context) (err error) {
	m, err := hsm.Load(r.plan.Token.Module)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if !r.plan.Token.New {
		return r.lookAtExisting(ctx, m)
	}
	slots, err := m.Slots(ctx)
	if err != nil {
		return err
	}
	var empty []hsm.Slot
	for _, s := range slots {
		switch {
		case !s.Initialized:
			empty = append(empty, s)
		case s.Label == r.plan.Token.Label:
			return &Error{Err: fmt.Errorf("a token with the label %q is there already, serial %s", s.Label, s.Serial), Hint: "choose another token.label, or name the token by its serial"}
		}
	}
	if len(empty) != 1 {
		return &Error{
			Err:  fmt.Errorf("%w: %d slots have a token that is not initialized, and one is needed", hsm.ErrNoToken, len(empty)),
			Hint: "leave exactly one such token in, or initialize one by the vendor's tool and name its serial in the plan",
		}
	}
	r.slot = empty[0]
	return nil
}

func (r *run) lookAtExisting(ctx context.Context, m *hsm.Module) error {
	token, err := m.Open(ctx, hsm.Config{Serial: r.plan.Token.Serial, Label: r.plan.Token.Label, PIN: hsm.PINFrom(r.pin.PIN)})
	if err != nil {
		return err
	}
	objects, err := token.Objects(ctx)
	r.slot = token.Slot()
	if err = errors.Join(err, token.Close()); err != nil {
		return err
	}
	for _, o := range objects {
		for _, k := range r.plan.Keys {
			if o.Label == k.Label {
				return &Error{Err: fmt.Errorf("%w: %s %q", hsm.ErrKeyExists, o.Class, o.Label), Hint: "a ceremony needs an empty token; nothing was changed"}
			}
		}
	}
	if len(objects) > 0 {
		return &Error{Err: fmt.Errorf("the token is not empty: %d objects, such as %s %q", len(objects), objects[0].Class, objects[0].Label), Hint: "a ceremony needs an empty token; nothing was changed"}
	}
	return nil
}

func (r *run) confirm(ctx context.Context) error {
	if r.opts.Confirm == nil || r.opts.Rehearse {
		return nil
	}
	which := fmt.Sprintf("the token %q, serial %s, of %s %s", r.slot.Label, r.slot.Serial, r.slot.Manufacturer, r.slot.Model)
	if r.plan.Token.New {
		which = fmt.Sprintf("a new token %q, in the empty slot %d (%s %s)", r.plan.Token.Label, r.slot.ID, r.slot.Manufacturer, r.slot.Model)
	}
	return r.opts.Confirm(ctx, Intention{Plan: r.plan.Name, Digest: r.plan.Digest(), Token: which, Out: r.out.dir})
}
