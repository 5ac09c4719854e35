package ceremony_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/ceremony"
	"github.com/postern-pki/postern/hsm/ceremony/pins"
	"github.com/postern-pki/postern/hsm/ceremony/plan"
	"github.com/postern-pki/postern/test/softhsm"
)

func TestMain(m *testing.M) { os.Exit(softhsm.Main(m)) }

const (
	userPIN    = "canary-user-4711"
	officerPIN = "canary-officer-0815"
)

func script(tb testing.TB, name string) string {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join("scripts", name))
	if err != nil {
		tb.Fatal(err)
	}
	return string(b)
}

// demo parses the demo's plan, without the key that it need not have, and with some of
// its text replaced.
func demo(tb testing.TB, oldnew ...string) ceremony.Plan {
	tb.Helper()
	return parsedText(tb, optional.ReplaceAllString(script(tb, "demo.yaml"), ""), oldnew...)
}

var optional = regexp.MustCompile("(?m)^  ocsp:.*\n")

func parsed(tb testing.TB, name string, oldnew ...string) ceremony.Plan {
	tb.Helper()
	return parsedText(tb, script(tb, name), oldnew...)
}

func parsedText(tb testing.TB, text string, oldnew ...string) ceremony.Plan {
	tb.Helper()
	for i := 0; i < len(oldnew); i += 2 {
		if !strings.Contains(text, oldnew[i]) {
			tb.Fatalf("%q is not in the plan", oldnew[i])
		}
		text = strings.ReplaceAll(text, oldnew[i], oldnew[i+1])
	}
	p, err := plan.Parse([]byte(text))
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func rehearse(tb testing.TB, p ceremony.Plan) ceremony.Result {
	tb.Helper()
	r, err := ceremony.Run(tb.Context(), p, ceremony.Options{Out: filepath.Join(tb.TempDir(), "out"), Rehearse: true})
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// given is a source of a PIN, by way of a file.
func given(tb testing.TB, pin string) pins.Source {
	tb.Helper()
	return pins.FromFile(pinFile(tb, pin+"\n"))
}

func certificate(tb testing.TB, path string) *x509.Certificate {
	tb.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	b, _ := pem.Decode(raw)
	c, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// Covers: S-034, S-037
func TestARehearsalMakesWhatAServiceNeeds(t *testing.T) {
	conf := os.Getenv("SOFTHSM2_CONF")
	r := rehearse(t, demo(t))
	if os.Getenv("SOFTHSM2_CONF") != conf {
		t.Error("SOFTHSM2_CONF is not what it was")
	}
	if !r.Rehearsal || !strings.HasPrefix(r.TokenLabel, "REHEARSAL ") || len(r.Keys) != 5 || len(r.Certificates) != 7 {
		t.Errorf("result: %+v", r)
	}
	ca, operators := certificate(t, filepath.Join(r.Out, "ca.pem")), certificate(t, filepath.Join(r.Out, "operator-ca.pem"))
	agent := "1.3.6.1.4.1.311.20.2.1"
	for file, want := range map[string]struct {
		issuer   *x509.Certificate
		usage    x509.KeyUsage
		extended []x509.ExtKeyUsage
		unknown  string
	}{
		"ca.pem":          {ca, x509.KeyUsageCertSign | x509.KeyUsageCRLSign, nil, ""},
		"ra-sign.pem":     {ca, x509.KeyUsageDigitalSignature, nil, agent},
		"ra-decrypt.pem":  {ca, x509.KeyUsageKeyEncipherment, nil, agent},
		"tls.pem":         {ca, x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, ""},
		"audit.pem":       {ca, x509.KeyUsageDigitalSignature, nil, ""},
		"operator-ca.pem": {operators, x509.KeyUsageCertSign | x509.KeyUsageCRLSign, nil, ""},
		"operator.pem":    {operators, x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, ""},
	} {
		c := certificate(t, filepath.Join(r.Out, file))
		var unknown string
		for _, u := range c.UnknownExtKeyUsage {
			unknown += u.String()
		}
		if err := c.CheckSignatureFrom(want.issuer); err != nil || c.KeyUsage != want.usage || !slices.Equal(c.ExtKeyUsage, want.extended) || unknown != want.unknown {
			t.Errorf("%s: %v, usage %b, extended %v %s", file, err, c.KeyUsage, c.ExtKeyUsage, unknown)
		}
		if isCA := want.issuer.Equal(c); c.IsCA != isCA || !c.BasicConstraintsValid {
			t.Errorf("%s: CA is %v", file, c.IsCA)
		}
		if strings.Contains(c.Subject.String(), "REHEARSAL") {
			t.Errorf("%s: the subject of a test plan is marked: %s", file, c.Subject)
		}
	}
	tls := certificate(t, filepath.Join(r.Out, "tls.pem"))
	for _, name := range []string{"localhost", "127.0.0.1", "::1"} {
		if err := tls.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	checkFolder(t, r)
}

// checkFolder looks at modes, and that the PIN is in its own file alone.
func checkFolder(t *testing.T, r ceremony.Result) {
	t.Helper()
	for _, name := range []string{"hsm-pin", "challenge.key", "operator.key", "operator-ca.key"} {
		info, err := os.Stat(filepath.Join(r.Out, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if key, err := os.ReadFile(filepath.Join(r.Out, "challenge.key")); err != nil || len(key) != 32 {
		t.Errorf("challenge.key: %d bytes, %v", len(key), err)
	}
	pin, err := os.ReadFile(r.PINFile)
	if err != nil || len(bytes.TrimSpace(pin)) < 16 { // 16 characters of base32 are 80 bits
		t.Errorf("PIN of %d characters, %v", len(pin), err)
	}
	noneHolds(t, r.Out, string(bytes.TrimSpace(pin)), "hsm-pin")
}

func noneHolds(t *testing.T, dir, secret, but string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || d.Name() == but {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(secret)) {
			t.Errorf("%s has the PIN in it", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// The keys file is all that a service knows of its token.
func TestTheKeysFileOpensTheToken(t *testing.T) {
	r := rehearse(t, demo(t))
	raw, err := os.ReadFile(r.KeysFile)
	if err != nil {
		t.Fatal(err)
	}
	var f struct {
		Token struct {
			Module, Serial, Label string
			PIN                   struct{ File string }
			Conf                  string `yaml:"softhsm2_conf"`
		}
		Keys []struct{ Name, Purpose, Label, ID, SPKI string }
		TLS  struct{ Names []string }
	}
	if err := yaml.Unmarshal(raw, &f); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", filepath.Join(r.Out, f.Token.Conf))
	token, err := hsm.Open(t.Context(), hsm.Config{Module: f.Token.Module, Serial: f.Token.Serial, Label: f.Token.Label, PIN: hsm.PINFromFile(filepath.Join(r.Out, f.Token.PIN.File))})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := token.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, k := range f.Keys {
		id, err := hex.DecodeString(k.ID)
		if err != nil {
			t.Fatal(err)
		}
		key, err := token.Key(t.Context(), hsm.KeySpec{Purpose: hsm.Purpose(k.Purpose), Label: k.Label, ID: id})
		if err != nil {
			t.Fatal(err)
		}
		c := certificate(t, filepath.Join(r.Out, k.Name+".pem"))
		if sum := sha256.Sum256(c.RawSubjectPublicKeyInfo); hex.EncodeToString(sum[:]) != k.SPKI {
			t.Errorf("%s: certificate and key do not fit", k.Name)
		}
		if k.Purpose == "audit" {
			sum := sha256.Sum256([]byte("checkpoint"))
			if _, err := key.Sign(nil, sum[:], crypto.SHA256); err != nil {
				t.Error(err)
			}
		}
	}
	if len(f.Keys) != 5 || len(f.TLS.Names) != 3 {
		t.Errorf("%+v", f)
	}
}

func TestARehearsalForProductionIsMarkedEverywhere(t *testing.T) {
	p := demo(t, "class: test\n", newCrew(t).production(t), "algorithm: P-256}\n  ra-sign", "algorithm: P-384}\n  ra-sign", "'CN=demo-operator,O=Example Corp'", "'O=Example Corp'", "[certificateRequestAgent]", "[certificateRequestAgent, serverAuth]")
	r := rehearse(t, p)
	for _, c := range r.Certificates {
		if x := certificate(t, filepath.Join(r.Out, c.File)); !strings.Contains(x.Subject.String(), "REHEARSAL") {
			t.Errorf("%s: %s", c.File, x.Subject)
		}
	}
	for _, rec := range records(t, r.Transcript) {
		if rec.Object.String("mark") != "REHEARSAL" {
			t.Errorf("record %d has no mark", rec.Seq)
		}
	}
	if report, err := ceremony.Verify(r.Transcript); err != nil || !report.Rehearsal || report.Class != plan.Production {
		t.Errorf("Verify: %+v, %v", report, err)
	}
}

func records(tb testing.TB, path string) (out []audit.Record) {
	tb.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	for line := range bytes.Lines(raw) {
		l, err := audit.ParseLine(line)
		if err != nil {
			tb.Fatal(err)
		}
		out = append(out, l.Record)
	}
	return out
}

// What is wrong is found before the token or the folder is changed.
func TestNothingIsTouchedWhenSomethingIsWrong(t *testing.T) {
	tok := softhsm.New(t)
	full := softhsm.New(t)
	if _, err := hsm.Generate(t.Context(), hsm.Config{Module: full.Module, Serial: full.Serial, PIN: hsm.PINFromFile(full.PINFile(t))},
		[]hsm.KeyPlan{{Purpose: hsm.Audit, Label: "audit", Algorithm: hsm.P256}}); err != nil {
		t.Fatal(err)
	}
	staff := newCrew(t)
	fresh, production := []string{}, []string{"class: test\n", staff.production(t)}
	existing := func(serial string) []string {
		return []string{"new: true\n  label: postern-demo", "serial: '" + serial + "'"}
	}
	wide := filepath.Join(t.TempDir(), "wide")
	if err := os.WriteFile(wide, []byte(userPIN), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(wide, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change   []string
		pin, so  pins.Source
		confirm  func(context.Context, ceremony.Intention) error
		want     error
		wantText string
	}{
		"a production plan without a person":    {production, given(t, userPIN), given(t, officerPIN), nil, ceremony.ErrUnattended, ""},
		"a person who does not confirm":         {production, given(t, userPIN), given(t, officerPIN), func(context.Context, ceremony.Intention) error { return context.Canceled }, context.Canceled, ""},
		"a short PIN for production":            {production, given(t, "elevenchars"), given(t, officerPIN), yes, pins.ErrWeak, ""},
		"a plain PIN for production":            {production, given(t, "111111111111"), given(t, officerPIN), yes, pins.ErrWeak, ""},
		"a PIN of a row of digits":              {production, given(t, "1234567890123456789012345"), given(t, officerPIN), yes, pins.ErrWeak, ""},
		"a short PIN of the security officer":   {production, given(t, userPIN), given(t, "short"), yes, pins.ErrWeak, ""},
		"one PIN for both":                      {fresh, given(t, userPIN), given(t, userPIN), nil, pins.ErrWeak, ""},
		"a PIN of three characters":             {fresh, given(t, "abc"), given(t, officerPIN), nil, pins.ErrWeak, ""},
		"an empty PIN":                          {fresh, given(t, ""), given(t, officerPIN), nil, nil, "empty"},
		"a PIN file that everybody may read":    {fresh, pins.FromFile(wide), given(t, officerPIN), nil, nil, "too open"},
		"a descriptor that is none":             {fresh, pins.FromFD(-1), given(t, officerPIN), nil, nil, "not a descriptor"},
		"a credential outside of its folder":    {fresh, pins.FromCredential("../x"), given(t, officerPIN), nil, nil, "plain name"},
		"no source of a PIN":                    {fresh, nil, given(t, officerPIN), nil, nil, "no source"},
		"a module that is not there":            {[]string{"/usr/lib/softhsm/libsofthsm2.so", "/nonexistent/module.so"}, given(t, userPIN), given(t, officerPIN), nil, fs.ErrNotExist, ""},
		"a module that is none":                 {[]string{"/usr/lib/softhsm/libsofthsm2.so", "/etc/passwd"}, given(t, userPIN), given(t, officerPIN), nil, hsm.ErrModule, ""},
		"a token label that is taken":           {[]string{"label: postern-demo", "label: " + tok.Label}, given(t, userPIN), given(t, officerPIN), nil, nil, "there already"},
		"a serial that is not there":            {existing("0000000000000000"), given(t, userPIN), nil, nil, hsm.ErrNoToken, ""},
		"a token with a key of the plan's name": {existing(full.Serial), pins.FromFile(full.PINFile(t)), nil, nil, hsm.ErrKeyExists, ""},
		"a token with another object":           {append(existing(full.Serial), "label: audit,", "label: log,"), pins.FromFile(full.PINFile(t)), nil, nil, nil, "not empty"},
		"a wrong PIN":                           {existing(tok.Serial), given(t, "wrong-but-long"), nil, nil, hsm.ErrPIN, ""},
	} {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			p := demo(t, tt.change...)
			_, err := ceremony.Run(t.Context(), p, ceremony.Options{Out: out, PIN: tt.pin, SOPIN: tt.so, Confirm: tt.confirm, Signatures: staff.sign(t, p)})
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.wantText) {
				t.Errorf("Run: %v, want %v %s", err, tt.want, tt.wantText)
			}
			if e, ok := errors.AsType[*ceremony.Error](err); !ok || e.Step != "" {
				t.Errorf("it is a failure of step %q", e.Step)
			}
			if _, err := os.Stat(out); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the output folder is there: %v", err)
			}
		})
	}
	m, err := hsm.Load(softhsm.Module)
	if err != nil {
		t.Fatal(err)
	}
	slots, err := m.Slots(t.Context())
	if err = errors.Join(err, m.Close()); err != nil {
		t.Fatal(err)
	}
	for _, s := range slots {
		if s.Label == "postern-demo" {
			t.Error("a token was initialized")
		}
	}
}

func TestTheOutputIsNeverOverwritten(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{dir, filepath.Join(dir, "ca.pem"), filepath.Join(dir, "none", "out"), ""} {
		if _, err := ceremony.Run(t.Context(), demo(t), ceremony.Options{Out: out, Rehearse: true}); !errors.Is(err, ceremony.ErrOutput) {
			t.Errorf("out %q: %v", out, err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	empty := t.TempDir() // a folder that is there and empty is as good as none
	if _, err := ceremony.Run(t.Context(), demo(t), ceremony.Options{Out: empty, Rehearse: true}); err != nil {
		t.Error(err)
	}
}

func TestACeremonyOnATokenThatIsThere(t *testing.T) {
	tok := softhsm.New(t)
	out := filepath.Join(t.TempDir(), "out")
	staff := newCrew(t)
	p := demo(t, "new: true\n  label: postern-demo", "serial: '"+tok.Serial+"'", "class: test\n", staff.production(t))
	var asked ceremony.Intention
	confirm := func(_ context.Context, i ceremony.Intention) error { asked = i; return nil }
	r, err := ceremony.Run(t.Context(), p, ceremony.Options{Out: out, PIN: pins.FromFile(changePIN(t, tok, userPIN)), Confirm: confirm, Signatures: staff.sign(t, p),
		Accept: func(context.Context, string, []string) (string, error) { return "bob", nil }})
	if err != nil {
		t.Fatal(err)
	}
	if asked.Digest != p.Digest() || !strings.Contains(asked.Token, tok.Serial) || r.TokenSerial != tok.Serial || r.PINFile != "" {
		t.Errorf("asked %+v, result %+v", asked, r)
	}
	noneHolds(t, out, userPIN, "")
	report, err := ceremony.Verify(r.Transcript)
	if err != nil || report.Rehearsal || report.TokenSerial != tok.Serial || report.Digest != r.Digest {
		t.Errorf("Verify: %+v, %v", report, err)
	}
}

func TestACeremonyOnANewToken(t *testing.T) {
	softhsm.Empty(t)
	out := filepath.Join(t.TempDir(), "out")
	f, err := os.Open(pinFile(t, userPIN))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(f.Fd())) // it is closed when it was read
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(pinFile(t, officerPIN))
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	var said []string
	r, err := ceremony.Run(t.Context(), demo(t, "label: postern-demo", "label: new-one"), ceremony.Options{
		Out: out, PIN: pins.FromFD(fd), SOPIN: pins.FromCredential("pin"),
		Progress: func(step, say string) { said = append(said, step+" "+say) },
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, pin := range []string{userPIN, officerPIN} {
		noneHolds(t, out, pin, "")
		if strings.Contains(string(text)+fmt.Sprint(said), pin) {
			t.Error("a PIN was told")
		}
	}
	if _, err := ceremony.Verify(r.Transcript); err != nil {
		t.Error(err)
	}
}

func pinFile(tb testing.TB, pin string) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "pin")
	if err := os.WriteFile(path, []byte(pin), 0o400); err != nil {
		tb.Fatal(err)
	}
	return path
}
