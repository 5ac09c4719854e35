package doctor

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/postern-pki/postern/hsm"
)

// mechanismNames are those that Postern uses or looks for; others are numbers.
var mechanismNames = [...]struct {
	typ  uint
	name string
}{
	{pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, "CKM_RSA_PKCS_KEY_PAIR_GEN"}, {pkcs11.CKM_EC_KEY_PAIR_GEN, "CKM_EC_KEY_PAIR_GEN"},
	{pkcs11.CKM_RSA_PKCS, "CKM_RSA_PKCS"}, {pkcs11.CKM_RSA_X_509, "CKM_RSA_X_509"}, {pkcs11.CKM_RSA_PKCS_OAEP, "CKM_RSA_PKCS_OAEP"},
	{pkcs11.CKM_RSA_PKCS_PSS, "CKM_RSA_PKCS_PSS"}, {pkcs11.CKM_ECDSA, "CKM_ECDSA"}, {pkcs11.CKM_AES_KEY_GEN, "CKM_AES_KEY_GEN"},
	{pkcs11.CKM_AES_KEY_WRAP, "CKM_AES_KEY_WRAP"}, {pkcs11.CKM_AES_KEY_WRAP_PAD, "CKM_AES_KEY_WRAP_PAD"}, {pkcs11.CKM_AES_CBC_PAD, "CKM_AES_CBC_PAD"},
}

func mechanismName(typ uint) string {
	for _, m := range mechanismNames {
		if m.typ == typ {
			return m.name
		}
	}
	return fmt.Sprintf("0x%x", typ)
}

// A bit is a flag with its word.
type bit struct {
	mask uint
	word string
}

func words(flags uint, bits []bit) []string {
	out := []string{}
	for _, b := range bits {
		if flags&b.mask != 0 {
			out = append(out, b.word)
		}
	}
	return out
}

func tokenFlags(flags uint) []string {
	return words(flags, []bit{
		{pkcs11.CKF_TOKEN_INITIALIZED, "initialized"}, {pkcs11.CKF_USER_PIN_INITIALIZED, "user-pin-set"}, {pkcs11.CKF_LOGIN_REQUIRED, "login-required"},
		{pkcs11.CKF_USER_PIN_COUNT_LOW, "user-pin-count-low"}, {pkcs11.CKF_USER_PIN_FINAL_TRY, "user-pin-final-try"}, {pkcs11.CKF_USER_PIN_LOCKED, "user-pin-locked"},
		{pkcs11.CKF_USER_PIN_TO_BE_CHANGED, "user-pin-to-be-changed"}, {pkcs11.CKF_SO_PIN_TO_BE_CHANGED, "so-pin-to-be-changed"},
		{pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH, "pin-pad"}, {pkcs11.CKF_WRITE_PROTECTED, "write-protected"}, {pkcs11.CKF_RNG, "rng"},
	})
}

func (e *examination) mechanisms() error {
	all, err := e.p.GetMechanismList(e.slot.ID)
	if err != nil {
		return err
	}
	for _, m := range all {
		i, err := e.p.GetMechanismInfo(e.slot.ID, []*pkcs11.Mechanism{m})
		if err != nil {
			return err
		}
		e.Mechanisms = append(e.Mechanisms, Mechanism{Name: mechanismName(m.Mechanism), Min: i.MinKeySize, Max: i.MaxKeySize, Flags: words(i.Flags, []bit{
			{pkcs11.CKF_HW, "hardware"}, {pkcs11.CKF_SIGN, "sign"}, {pkcs11.CKF_DECRYPT, "decrypt"}, {pkcs11.CKF_WRAP, "wrap"}, {pkcs11.CKF_GENERATE, "generate"}, {pkcs11.CKF_GENERATE_KEY_PAIR, "generate-pair"},
		})})
	}
	slices.SortFunc(e.Mechanisms, func(a, b Mechanism) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

// has reports whether the token says that it has a mechanism for a use.
func (e *examination) has(name, use string) bool {
	return slices.ContainsFunc(e.Mechanisms, func(m Mechanism) bool { return m.Name == name && slices.Contains(m.Flags, use) })
}

func middle(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)/2]
}

// expect draws the conclusions.
func (e *examination) expect() {
	say := func(format string, args ...any) { e.Expect = append(e.Expect, fmt.Sprintf(format, args...)) }
	if !e.has("CKM_ECDSA", "sign") {
		say("no EC keys: the audit key, the TLS key and a P-256 CA have to be on another token (tokens: in postern.yaml)")
	}
	if !e.has("CKM_RSA_PKCS", "sign") {
		say("no RA keys: it does not sign by CKM_RSA_PKCS")
	}
	if e.Sessions.Opened < 4 {
		say("only %d sessions at once: set sessions: %d in postern.yaml", e.Sessions.Opened, max(1, e.Sessions.Opened-2))
	}
	if !e.LoggedIn {
		say("attributes, decryption and speed are unknown without a PIN (--pin-file or --pin-fd)")
		return
	}
	switch e.Decrypt.Mode {
	case "raw":
		say("envelopes are opened by raw RSA and unpadded in constant time")
	case "":
		say("no RA-decrypt key could be tried")
	default:
		say("it cannot hold the RA-decrypt key: this version opens envelopes by raw RSA (CKM_RSA_X_509) alone; decrypt mode %s", e.Decrypt.Mode)
	}
	var sum int64
	for _, k := range e.Keys {
		for _, a := range k.Attributes {
			if strings.Contains(a.Result, "could be set") || strings.Contains(a.Result, "COULD") {
				say("a key for %s would be refused: %s %s", k.Purpose, a.Name, a.Result)
			}
		}
		switch {
		case !k.Made || k.Micros == 0:
			say("no %s key for %s: %s", k.Algorithm, k.Purpose, k.Why)
		case k.Algorithm == hsm.RSA2048 || k.Algorithm == hsm.P256:
			sum += k.Micros
		}
	}
	if sum > 0 && e.Decrypt.Mode == "raw" {
		say("the private-key operations of an enrollment take about %.2f ms one after the other: at most %d enrollments a second for each operation that it does at a time", float64(sum)/1000, 1_000_000/sum)
	}
}

// Text writes the report for people.
func (r *Report) Text(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(t, format, args...) } // Flush tells of errors
	p("module\t%s\n\t%s, %s, version %s, Cryptoki %s\n\tSHA-256 %s\n", r.Module.Path, r.Module.Manufacturer, r.Module.Description, r.Module.Version, r.Module.Cryptoki, r.Module.SHA256)
	for _, k := range r.Tokens {
		p("token\tslot %d, serial %s, label %q, %s %s, firmware %s\n", k.Slot, k.Serial, k.Label, k.Manufacturer, k.Model, k.Firmware)
		p("\t%s; PIN of %d to %d characters\n", strings.Join(k.Flags, " "), k.MinPIN, k.MaxPIN)
	}
	p("examined\t%s\n", r.Examined)
	p("sessions\t%d of %d opened\n", r.Sessions.Opened, r.Sessions.Tried)
	for _, m := range r.Mechanisms {
		if !strings.HasPrefix(m.Name, "0x") {
			p("mechanism\t%s, keys %d to %d: %s\n", m.Name, m.Min, m.Max, strings.Join(m.Flags, " "))
		}
	}
	for _, k := range r.Keys {
		if k.Made {
			p("key\t%s for %s: %.2f ms\n", k.Algorithm, k.Purpose, float64(k.Micros)/1000)
		} else {
			p("key\t%s for %s: none: %s\n", k.Algorithm, k.Purpose, k.Why)
		}
		for _, a := range k.Attributes {
			p("\t%s: %s\n", a.Name, a.Result)
		}
	}
	if r.Decrypt.Mode != "" {
		p("decrypt\t%s\n", r.Decrypt.Mode)
	}
	for _, q := range r.Quirks {
		p("quirk\t%s\n", q)
	}
	for _, x := range r.Expect {
		p("expect\t%s\n", x)
	}
	return t.Flush()
}
