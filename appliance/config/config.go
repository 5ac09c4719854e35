// Package config reads the one configuration file: what a person wrote becomes
// what the program may believe.
//
// # What a caller may rely on
//
// [Load] returns a [Config] that needs no further checks of its own: every file
// that it names was read and parsed, every name that it uses is defined, every
// certificate fits its issuer. Otherwise it returns all faults at once, each with
// file, line, column and path; an unknown key comes with the nearest known one.
//
// # What it does not protect against
//
// Whether the keys on the token are those of the certificates shows only when
// the token is opened. Secrets are not read here, only where they are.
package config

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/postern-pki/postern/appliance/operator/acts"
	"github.com/postern-pki/postern/policy"
)

// Config is what the program may believe. Paths are absolute, durations and
// certificates parsed.
type Config struct {
	File
	Path     string // of the file itself
	Digest   string // "sha256:" and hex, of the file's bytes
	Policies *policy.Set

	Tokens           []LoadedToken // at least one; each key's Token is the name of one
	SoftHSM2Conf     string        // what SOFTHSM2_CONF has to be for them, or ""
	ChallengeKeyPath string
	CheckpointEvery  time.Duration
	KeyholderState   string        // folder of the keyholder
	KeyholderRate    int           // certificates a second that each CA signs, at most; 0: the default
	MarkEvery        time.Duration // how often the newest checkpoint is kept on the token; 0: the default
	TLSValidity      time.Duration
	ACMERoots        *x509.CertPool
	CourierState     string // folder of the courier
	Validators       []LoadedValidator
	AuditCertificate *x509.Certificate
	Issuers          []LoadedIssuer // every generation of every issuer, an issuer's first one first
	OperatorCA       *x509.CertPool
	Rules            acts.Rules // of operators
}

// LoadedIssuer is one CA: a generation of an issuer, with its certificates, which
// were checked to form one.
type LoadedIssuer struct {
	Name       string // the CA's own: the issuer's for the generation in the issuer itself, else ISSUER.GENERATION
	Of         string // the issuer, by the name that profiles use
	Generation string
	Keys       Certified // by their names

	CA          *x509.Certificate
	Chain       []*x509.Certificate
	RASign      *x509.Certificate
	RADecrypt   *x509.Certificate
	MaxValidity time.Duration
	Status      LoadedStatus
}

// SingleRA reports whether one key both signs answers and opens envelopes.
func (i LoadedIssuer) SingleRA() bool { return i.Keys.SingleRA() }

// GenerationsOf returns the generations of an issuer, by the name that profiles use.
func (c *Config) GenerationsOf(issuer string) []LoadedIssuer {
	return slices.DeleteFunc(slices.Clone(c.Issuers), func(i LoadedIssuer) bool { return i.Of != issuer })
}

// KeyNamed returns the key of that name; Load made sure that it is there.
func (c *Config) KeyNamed(name string) Key {
	i := slices.IndexFunc(c.Keys, func(k Key) bool { return k.Name == name })
	return c.Keys[i]
}

// Load reads a file and everything that it names. The error is a
// [*policy.LoadError], or that of reading the file.
func Load(path string) (*Config, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return parse(path, data)
}

func parse(path string, data []byte) (*Config, error) {
	sum := sha256.Sum256(data)
	c := &Config{Path: path, Digest: "sha256:" + hex.EncodeToString(sum[:])}
	l := &loader{decoder: decoder{file: path}, c: c, dir: filepath.Dir(path)}
	l.decode(data, &c.File)
	if err := l.err(); err != nil {
		return nil, err // what could not be read cannot be checked
	}
	l.check()
	return c, l.err()
}

// loader checks what was decoded, and resolves it.
type loader struct {
	decoder
	c   *Config
	dir string
}

func (l *loader) need(path, value string) bool {
	if value == "" {
		l.fault(path, "is missing", "")
	}
	return value != ""
}

// abs makes a path of the file's absolute.
func (l *loader) abs(p *string) {
	if *p != "" && !filepath.IsAbs(*p) {
		*p = filepath.Join(l.dir, *p)
	}
}

var originForm = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*(/[A-Za-z0-9._-]+)*$`)

func (l *loader) check() {
	c := l.c
	if c.Version != 1 {
		l.fault("version", "this version reads version: 1", "")
	}
	if l.need("state", c.State) {
		l.abs(&c.State)
	}
	if l.need("origin", c.Origin) && !originForm.MatchString(c.Origin) {
		l.fault("origin", "has to look like host.example/log", "")
	}
	if l.need("transcript", c.Transcript) {
		l.abs(&c.Transcript)
		if _, err := os.Stat(c.Transcript); err != nil {
			l.fault("transcript", "cannot be read: "+reason(err), "")
		}
	}
	l.tokens()
	l.keys()
	for i := range c.File.Issuers {
		l.issuer(i)
	}
	if len(c.File.Issuers) == 0 {
		l.fault("issuers", "is missing", "")
	}
	l.audit()
	l.keyholder()
	l.links()
	l.courier()
	c.ChallengeKeyPath = l.secret("challenges.key", c.Challenges.Key)
	l.listeners()
	l.operators()
	l.tls()
	l.profiles()
	l.validators()
}

func reason(err error) string {
	if pe, ok := err.(*os.PathError); ok { //nolint:errorlint // only the outermost says it without the path
		return pe.Err.Error()
	}
	return err.Error()
}

func (l *loader) duration(path, text string, def, least, most time.Duration) time.Duration {
	if text == "" {
		return def
	}
	d, err := parseDuration(text)
	if err != nil || d < least || d > most {
		l.fault(path, fmt.Sprintf("has to be a time from %s to %s, such as 30s, 10m or 90d", least, most), "")
		return def
	}
	return d
}

func parseDuration(text string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err
	}
	return time.ParseDuration(text)
}

// secret returns the path of a secret. Its mode is checked when it is read.
func (l *loader) secret(path string, s Secret) string {
	switch {
	case (s.File == "") == (s.Credential == ""):
		l.fault(path, "has to name one of file and credential", "")
	case s.File != "":
		l.abs(&s.File)
		return s.File
	case strings.ContainsAny(s.Credential, "/\x00") || s.Credential == "." || s.Credential == "..":
		l.fault(path+".credential", "is a name, not a path", "")
	default:
		// systemd sets this; where it does not, the file is missing and says so.
		return filepath.Join(os.Getenv("CREDENTIALS_DIRECTORY"), s.Credential)
	}
	return ""
}

var (
	hexForm = regexp.MustCompile(`^([0-9a-f]{2})+$`)
	sumForm = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

func (l *loader) keys() {
	names, labels := map[string]bool{}, map[string]bool{}
	for i, k := range l.c.Keys {
		at := fmt.Sprintf("keys[%d]", i)
		if l.need(at+".name", k.Name) && names[k.Name] {
			l.fault(at+".name", "is given twice", "")
		}
		label := k.Token + "\x00" + k.Label
		if l.need(at+".label", k.Label) && labels[label] {
			l.fault(at+".label", "one key cannot have two purposes", "")
		}
		names[k.Name], labels[label] = true, true
		purposes := []string{"ca", "ra-sign", "ra-decrypt", "ra", "tls", "audit", "ocsp"}
		if !slices.Contains(purposes, k.Purpose) {
			l.fault(at+".purpose", "is one of "+strings.Join(purposes, ", "), policy.Nearest(k.Purpose, purposes))
		}
		if k.ID != "" && !hexForm.MatchString(k.ID) {
			l.fault(at+".id", "has to be lowercase hex", "")
		}
		if k.SPKI != "" && !sumForm.MatchString(k.SPKI) {
			l.fault(at+".spki", "has to be a SHA-256 in lowercase hex", "")
		}
	}
}

// use checks that a key is there and has the purpose.
func (l *loader) use(path, name, purpose string) {
	if !l.need(path, name) {
		return
	}
	var known []string
	for _, k := range l.c.Keys {
		known = append(known, k.Name)
		if k.Name == name {
			if k.Purpose != purpose {
				l.fault(path, fmt.Sprintf("key %q is for %s, not for %s", name, k.Purpose, purpose), "")
			}
			return
		}
	}
	l.fault(path, fmt.Sprintf("key %q is defined nowhere", name), policy.Nearest(name, known))
}

func (l *loader) certificate(path, file string) *x509.Certificate {
	if !l.need(path, file) {
		return nil
	}
	l.abs(&file)
	data, err := os.ReadFile(file)
	if err != nil {
		l.fault(path, "cannot be read: "+reason(err), "")
		return nil
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" || len(strings.TrimSpace(string(rest))) > 0 {
		l.fault(path, "has to hold one PEM certificate and nothing else", "")
		return nil
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		l.fault(path, "is not a certificate", "")
		return nil
	}
	return cert
}

func (l *loader) audit() {
	l.use("audit.key", l.c.Audit.Key, "audit")
	l.c.AuditCertificate = l.certificate("audit.certificate", l.c.Audit.Certificate)
	l.c.CheckpointEvery = l.duration("audit.checkpoint_every", l.c.Audit.CheckpointEvery, time.Minute, time.Second, time.Hour)
}

func (l *loader) profiles() {
	if len(l.c.Profiles) == 0 {
		l.fault("profiles", "names no file and no folder", "")
		return
	}
	var sources []policy.Source
	for i, p := range l.c.Profiles {
		at := fmt.Sprintf("profiles[%d]", i)
		l.abs(&p)
		files := []string{p}
		if st, err := os.Stat(p); err == nil && st.IsDir() {
			files, _ = filepath.Glob(filepath.Join(p, "*.yaml"))
			if len(files) == 0 {
				l.fault(at, "the folder has no *.yaml", "")
			}
		}
		for _, f := range files {
			data, err := os.ReadFile(f)
			if err != nil {
				l.fault(at, "cannot be read: "+reason(err), "")
				continue
			}
			sources = append(sources, policy.Source{Name: f, Data: data})
		}
	}
	set, err := policy.Load(sources...)
	if err != nil {
		if le, ok := err.(*policy.LoadError); ok { //nolint:errorlint // Load returns it unwrapped
			l.faults = append(l.faults, le.Faults...)
		}
		return
	}
	l.c.Policies = set
	if name := l.c.Devices.DefaultProfile; name != "" && !slices.Contains(set.Names(), name) {
		l.fault("devices.default_profile", fmt.Sprintf("profile %q is defined nowhere", name), policy.Nearest(name, set.Names()))
	}
	var issuers []string
	for _, i := range l.c.File.Issuers {
		issuers = append(issuers, i.Name)
	}
	for _, name := range set.Names() {
		p, _ := set.Profile(name)
		if !slices.Contains(issuers, p.Issuer) {
			l.faults = append(l.faults, policy.Fault{File: p.Source, Line: p.Line, Path: name + ".issuer",
				Say: fmt.Sprintf("issuer %q is defined nowhere", p.Issuer), Nearest: policy.Nearest(p.Issuer, issuers)})
		}
		if n := len(l.c.GenerationsOf(p.Issuer)); n > 1 && !p.Status.PerCA() {
			l.faults = append(l.faults, policy.Fault{File: p.Source, Line: p.Line, Path: name + ".status",
				Say: fmt.Sprintf("issuer %q has %d generations, each with lists of its own: say %s in each URL, for the CA's name", p.Issuer, n, policy.CAPlaceholder)})
		}
	}
}

// Socket returns the operators' socket that a configuration names, without
// checking the rest: the tool that asks the service may not read all of it.
func Socket(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	l := &loader{decoder: decoder{file: path}, c: &Config{}, dir: filepath.Dir(path)}
	l.decode(data, &l.c.File)
	if err := l.err(); err != nil {
		return "", err
	}
	l.abs(&l.c.Operators.Socket)
	if l.c.Operators.Socket == "" {
		return "", fmt.Errorf("%s names no operators.socket", path)
	}
	return l.c.Operators.Socket, nil
}
