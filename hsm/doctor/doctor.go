// Package doctor examines a PKCS#11 module and a token for what Postern needs of
// them: mechanisms, attributes, how it decrypts, speed, limits and quirks.
//
// # What a caller may rely on
//
// Nothing is left on the token: what is made is made for one session, which ends.
// Without a PIN no login is tried, and with one a single time, by the rules of package
// hsm. A [Report] holds no secret: it is what an operator sends with a question.
//
// # What it does not protect against
//
// Objects of a session may be treated better or worse than those of the token, and
// what a module says of itself is taken as said. A token that is in service is
// slowed down by the examination.
package doctor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/postern-pki/postern/hsm"
)

// A Report is what was found.
type Report struct {
	Module     Module      `json:"module"`
	Tokens     []Token     `json:"tokens"`
	Examined   string      `json:"examined"` // the serial of the token that the rest is about, or ""
	LoggedIn   bool        `json:"logged_in"`
	Mechanisms []Mechanism `json:"mechanisms"`
	Sessions   Sessions    `json:"sessions"`
	Keys       []Key       `json:"keys"` // none without a login
	Decrypt    Decrypt     `json:"decrypt"`
	Quirks     []string    `json:"quirks"`
	Expect     []string    `json:"expect"`
}

// Module is the library, in its own words.
type Module struct {
	Path         string `json:"path"`
	SHA256       string `json:"sha256"` // of the file
	Manufacturer string `json:"manufacturer"`
	Description  string `json:"description"`
	Version      string `json:"version"`
	Cryptoki     string `json:"cryptoki"`
}

// Token is a slot with a token in it.
type Token struct {
	Slot         uint     `json:"slot"`
	Serial       string   `json:"serial"`
	Label        string   `json:"label"`
	Manufacturer string   `json:"manufacturer"`
	Model        string   `json:"model"`
	Firmware     string   `json:"firmware"`
	Flags        []string `json:"flags"`
	MinPIN       uint     `json:"min_pin"`
	MaxPIN       uint     `json:"max_pin"`
	MaxSessions  int      `json:"max_sessions"` // 0: not said
}

// Mechanism is one that the token has. Key sizes are in the unit that the token
// gives them in, most often bits.
type Mechanism struct {
	Name  string   `json:"name"`
	Min   uint     `json:"min_key"`
	Max   uint     `json:"max_key"`
	Flags []string `json:"flags"`
}

// Sessions is how many could be opened at once, of those that were tried.
type Sessions struct {
	Tried  int `json:"tried"`
	Opened int `json:"opened"`
}

// Options say what is examined.
type Options struct {
	Module        string // absolute path
	Serial, Label string // of the token; both empty: the only one that is initialized
	PIN           hsm.PINSource
}

// Run examines. A report that is not nil is good as far as it goes, also with an error.
func Run(ctx context.Context, o Options) (*Report, error) {
	r := &Report{Tokens: []Token{}, Mechanisms: []Mechanism{}, Keys: []Key{}, Quirks: []string{}, Expect: []string{}}
	m, err := hsm.Load(o.Module)
	if err != nil {
		return nil, err
	}
	err = r.examine(ctx, m, o)
	if cerr := m.Close(); err == nil {
		err = cerr
	}
	return r, err
}

func (r *Report) examine(ctx context.Context, m *hsm.Module, o Options) error {
	slots, err := m.Slots(ctx)
	if err != nil {
		return err
	}
	r.Module.Path = o.Module
	if r.Module.SHA256, err = digest(o.Module); err != nil {
		return err
	}
	slot, ok, err := which(ctx, m, slots, o)
	if err != nil || !ok {
		for _, s := range slots {
			r.Tokens = append(r.Tokens, Token{Slot: s.ID, Serial: s.Serial, Label: s.Label, Manufacturer: s.Manufacturer, Model: s.Model, Firmware: s.Firmware, Flags: []string{}, MaxSessions: s.MaxSessions})
		}
		r.Expect = append(r.Expect, "name the token to examine by --serial or --label")
		return err
	}
	r.Examined = slot.Serial
	return m.Examine(ctx, slot, o.PIN, func(p *pkcs11.Ctx, h pkcs11.SessionHandle) error {
		e := &examination{Report: r, p: p, h: h, slot: slot, slots: slots, ctx: ctx}
		r.LoggedIn = o.PIN != nil
		return e.all()
	})
}

// which finds the token; false if several could be meant.
func which(ctx context.Context, m *hsm.Module, slots []hsm.Slot, o Options) (hsm.Slot, bool, error) {
	if o.Serial != "" || o.Label != "" {
		s, err := m.Find(ctx, o.Serial, o.Label)
		return s, err == nil, err
	}
	var found []hsm.Slot
	for _, s := range slots {
		if s.Initialized {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		return hsm.Slot{}, false, nil
	}
	return found[0], true, nil
}

func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// An examination is one run in one session.
type examination struct {
	*Report
	p     *pkcs11.Ctx
	h     pkcs11.SessionHandle
	slot  hsm.Slot
	slots []hsm.Slot
	ctx   context.Context //nolint:containedctx // an examination is one call
}

func (e *examination) quirk(format string, args ...any) {
	e.Quirks = append(e.Quirks, fmt.Sprintf(format, args...))
}

func (e *examination) all() error {
	for _, step := range []func() error{e.module, e.tokens, e.mechanisms, e.sessions, e.keys} {
		if err := step(); err != nil {
			return err
		}
		if err := e.ctx.Err(); err != nil {
			return err
		}
	}
	e.expect()
	return nil
}

func text(s string) string { return strings.TrimRight(s, " \x00") }

func (e *examination) module() error {
	i, err := e.p.GetInfo()
	if err != nil {
		return err
	}
	e.Module.Manufacturer, e.Module.Description = text(i.ManufacturerID), text(i.LibraryDescription)
	e.Module.Version = fmt.Sprintf("%d.%d", i.LibraryVersion.Major, i.LibraryVersion.Minor)
	e.Module.Cryptoki = fmt.Sprintf("%d.%d", i.CryptokiVersion.Major, i.CryptokiVersion.Minor)
	return nil
}

func (e *examination) tokens() error {
	serials := map[string]int{}
	for _, s := range e.slots {
		i, err := e.p.GetTokenInfo(s.ID)
		if err != nil {
			return err
		}
		serials[s.Serial]++
		t := Token{
			Slot: s.ID, Serial: s.Serial, Label: s.Label, Manufacturer: s.Manufacturer, Model: s.Model, Firmware: s.Firmware,
			Flags: tokenFlags(i.Flags), MinPIN: i.MinPinLen, MaxPIN: i.MaxPinLen, MaxSessions: s.MaxSessions,
		}
		e.Tokens = append(e.Tokens, t)
		if s.ID != e.slot.ID {
			continue
		}
		switch {
		case i.Flags&pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH != 0:
			e.quirk("the PIN is given at a pad of its own: Postern gives it through the module")
		case i.Flags&pkcs11.CKF_LOGIN_REQUIRED == 0:
			e.quirk("it says that no login is needed")
		}
		if i.Flags&pkcs11.CKF_USER_PIN_TO_BE_CHANGED != 0 {
			e.quirk("its user PIN has to be changed before anything else is done")
		}
		if t.MaxPIN < 14 {
			e.quirk("its PIN has at most %d characters: fewer than a PIN of 80 bits; an exception for the ceremony's record", t.MaxPIN)
		}
	}
	if e.slot.Serial == "" {
		e.quirk("it has no serial: name it by its label")
	} else if serials[e.slot.Serial] > 1 {
		e.quirk("%d tokens have its serial: name it by serial and label", serials[e.slot.Serial])
	}
	return nil
}

// sessions opens as many as a large pool would, and closes them.
func (e *examination) sessions() error {
	const most = 64
	var open []pkcs11.SessionHandle
	e.Sessions.Tried = most
	var err error
	for range most {
		var h pkcs11.SessionHandle
		if h, err = e.p.OpenSession(e.slot.ID, pkcs11.CKF_SERIAL_SESSION); err != nil {
			break
		}
		open = append(open, h)
	}
	e.Sessions.Opened = len(open)
	for _, h := range open {
		if cerr := e.p.CloseSession(h); cerr != nil {
			return cerr
		}
	}
	if code, ok := hsm.CodeOf(err); ok && uint(code) != pkcs11.CKR_SESSION_COUNT {
		return err
	}
	return nil
}

// timed repeats f for a while and returns the median of its times.
func (e *examination) timed(f func() error) (median time.Duration, err error) {
	var all []time.Duration
	for end := time.Now().Add(300 * time.Millisecond); len(all) < 5 || len(all) < 200 && time.Now().Before(end); {
		if err := e.ctx.Err(); err != nil {
			return 0, err
		}
		began := time.Now()
		if err := f(); err != nil {
			return 0, err
		}
		all = append(all, time.Since(began))
	}
	return middle(all), nil
}

// refused reports whether the token said no to what it was asked, and is well.
func refused(err error) (hsm.CKR, bool) {
	var bare pkcs11.Error
	if !errors.As(err, &bare) {
		return 0, false
	}
	code := hsm.CKR(bare)
	return code, code.Class() == hsm.ClassOther || uint(code) == pkcs11.CKR_GENERAL_ERROR || uint(code) == pkcs11.CKR_FUNCTION_FAILED
}
