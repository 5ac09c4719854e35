package ceremony

import (
	"cmp"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v3"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/ceremony/newlog"
	"github.com/postern-pki/postern/hsm/ceremony/plan"
	"github.com/postern-pki/postern/hsm/ceremony/transcript"
)

// The files of an output folder. What is secret has mode 0600.
const (
	TranscriptFile = "transcript.jsonl"
	KeysFile       = "keys.yaml"
	PINFile        = "hsm-pin"       // secret; if the ceremony made the PIN
	RootPINFile    = "root-pin"      // the same of the root's token
	SealedSuffix   = ".cred"         // of a PIN that is encrypted for this machine
	ChallengeFile  = "challenge.key" // secret; 32 random bytes
	OperatorCAKey  = "operator-ca.key"
	OperatorKey    = "operator.key"
	RequestFile    = "ca.csr"               // for an outside CA to sign
	SignatureFile  = "transcript.audit.sig" // of the audit key on the transcript: ECDSA, SHA-256, DER
	tokenDir       = "token"                // of a rehearsal alone
	confFile       = "softhsm2.conf"
)

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

// checkOutput refuses a folder in which something lies, and says where the folder is.
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
		return output{dir: abs}, fmt.Errorf("%w: %q is in %s", ErrOutput, entries[0].Name(), abs)
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
		w.sha256 = transcript.Digest(data)
	}
	o.written = append(o.written, w)
	return nil
}

func certificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
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

// leaves is the file that a step leaves, and whether it is secret; "" for none.
func leaves(s plan.Step) (name string, secret bool) {
	switch s.Name {
	case plan.StepCertificate, plan.StepReceive:
		return Role(s.Of).File(), false
	case plan.StepRequest:
		return RequestFile, false
	case plan.StepOperatorKey:
		return operatorKeyFile(Role(s.Of)), true
	case plan.StepSecrets:
		return ChallengeFile, true
	case plan.StepDescribe:
		return KeysFile, false
	case plan.StepQuote:
		return newlog.File, false
	}
	return "", false
}

func operatorKeyFile(r Role) string {
	if r == plan.RoleOperatorCA {
		return OperatorCAKey
	}
	return OperatorKey
}

// describe writes what the service's configuration needs to know.
func (r *run) describe(s plan.Step) error {
	content := r.keysFile
	if r.plan.Changes() {
		content = r.changedFile
	}
	return r.step(s, KeysFile+" written", audit.Object{"file": KeysFile}, func() (audit.Object, error) {
		b, err := yaml.Marshal(content())
		if err != nil {
			return nil, err
		}
		text := append([]byte("# What the service's configuration needs, from the ceremony's transcript. Paths are relative to this file.\n"), b...)
		r.result.KeysFile = r.out.path(KeysFile)
		return audit.Object{"sha256": transcript.Digest(text)}, r.out.write(KeysFile, false, text)
	})
}

// The keys file has the shape of the service's configuration where it says the same.
type (
	keysFile struct {
		Version    int         `yaml:"version"`
		Plan       planOf      `yaml:"plan"`
		Transcript string      `yaml:"transcript"`
		Token      tokenOf     `yaml:"token"`
		Keys       []keyOf     `yaml:"keys"`
		Root       *rootOf     `yaml:"root,omitempty"` // not for the service: what was used, and is put away
		Issuers    []issuerOf  `yaml:"issuers"`
		Audit      keyCert     `yaml:"audit"`
		TLS        tlsOf       `yaml:"tls"`
		Challenges secretOf    `yaml:"challenges"`
		Operators  operatorsOf `yaml:"operators"`
	}
	planOf struct {
		Name      string `yaml:"name"`
		SHA256    string `yaml:"sha256"`
		Class     Class  `yaml:"class"`
		Rehearsal bool   `yaml:"rehearsal"`
	}
	tokenOf struct {
		Module       string  `yaml:"module"`
		Serial       string  `yaml:"serial"`
		Label        string  `yaml:"label"`
		PIN          *fileOf `yaml:"pin,omitempty"` // if it is in a file; else people, or the service manager, have it
		SoftHSM2Conf string  `yaml:"softhsm2_conf,omitempty"`
	}
	fileOf   struct{ File string }
	secretOf struct{ Key fileOf }
	keyOf    struct {
		Name       string `yaml:"name"`
		KeyResult  `yaml:",inline"`
		Attributes map[string]string `yaml:"attributes,omitempty"` // of a copied key: what its token tells of its past
	}
	rootOf struct {
		Serial      string    `yaml:"serial"`
		Label       string    `yaml:"label"`
		Certificate string    `yaml:"certificate"`
		Key         KeyResult `yaml:"key"`
	}
	keyCert  struct{ Key, Certificate string }
	issuerOf struct { // or one generation of an issuer
		Name      string   `yaml:"name"`
		CA        keyCert  `yaml:"ca"`
		Chain     []string `yaml:"chain,omitempty"` // above the CA, the root last
		RASign    keyCert  `yaml:"ra_sign"`
		RADecrypt keyCert  `yaml:"ra_decrypt"`
		OCSP      *keyCert `yaml:"ocsp,omitempty"`
	}
	tlsOf struct {
		Names            []string
		Key, Certificate string
	}
	operatorsOf struct {
		CA, Certificate, Key string
	}
)

func (r *run) keysFile() any {
	pair := func(role Role) keyCert { return keyCert{Key: string(role), Certificate: role.File()} }
	service := r.holders[plan.Service]
	f := keysFile{
		Version: 1, Transcript: TranscriptFile,
		Plan:       planOf{Name: r.plan.Name, SHA256: r.plan.Digest(), Class: r.plan.Class, Rehearsal: r.opts.Rehearse},
		Token:      tokenOf{Module: service.plan.Module, Serial: service.slot.Serial, Label: service.slot.Label, SoftHSM2Conf: r.facts.softhsmConf},
		Issuers:    []issuerOf{{Name: r.plan.Name, CA: pair(plan.RoleCA), RASign: pair(plan.RoleRASign), RADecrypt: pair(plan.RoleRADecrypt)}},
		Audit:      pair(plan.RoleAudit),
		Challenges: secretOf{fileOf{ChallengeFile}},
		Operators:  operatorsOf{CA: plan.RoleOperatorCA.File(), Certificate: plan.RoleOperator.File(), Key: OperatorKey},
	}
	if r.plan.SingleRA() {
		f.Issuers[0].RASign, f.Issuers[0].RADecrypt = pair(plan.RoleRA), pair(plan.RoleRA)
	}
	if _, ok := r.plan.Certificate(plan.RoleOCSP); ok {
		ocsp := pair(plan.RoleOCSP)
		f.Issuers[0].OCSP = &ocsp
	}
	if service.generate && !service.sealed() {
		f.Token.PIN = &fileOf{PINFile}
	}
	if r.opts.Rehearse {
		f.Token.SoftHSM2Conf = filepath.Join(tokenDir, confFile)
	}
	for i := range r.chain {
		f.Issuers[0].Chain = append(f.Issuers[0].Chain, chainFile(i))
	}
	for _, k := range r.result.Keys {
		if k.Role == string(plan.RoleRoot) {
			root := r.holders[plan.Root]
			f.Root = &rootOf{Serial: root.slot.Serial, Label: root.slot.Label, Certificate: plan.RoleRoot.File(), Key: k}
			f.Issuers[0].Chain = []string{plan.RoleRoot.File()}
			continue
		}
		f.Keys = append(f.Keys, keyOf{Name: k.Purpose, KeyResult: k})
	}
	for _, c := range r.plan.Certificates {
		if c.Role == plan.RoleTLS {
			f.TLS = tlsOf{Names: c.Names.All(), Key: string(plan.RoleTLS), Certificate: plan.RoleTLS.File()}
		}
	}
	return f
}

// chainFile is what stands above a CA that was signed elsewhere, the nearest first.
func chainFile(i int) string { return fmt.Sprintf("chain-%d.pem", i+1) }

// changedFile has what a change made, and the keys that are in use after it: the
// service's configuration names other files too, which the plan does not know. The
// keys of a next CA are used beside those of the one before: they are called by
// their labels, and make a generation of the service's issuer.
func (r *run) changedFile() any {
	service := r.holders[plan.Service]
	f := struct {
		Version      int               `yaml:"version"`
		Plan         planOf            `yaml:"plan"`
		Transcript   string            `yaml:"transcript"`
		Token        tokenOf           `yaml:"token"`
		Keys         []keyOf           `yaml:"keys"`
		Certificates map[string]string `yaml:"certificates,omitempty"` // made by this plan
		Generations  []issuerOf        `yaml:"generations,omitempty"`  // made by this plan, for the service's issuer
	}{
		Version: 1, Transcript: TranscriptFile, Plan: planOf{Name: r.plan.Name, SHA256: r.plan.Digest(), Class: r.plan.Class},
		Token:        tokenOf{Module: service.plan.Module, Serial: service.slot.Serial, Label: service.slot.Label, SoftHSM2Conf: r.facts.softhsmConf},
		Certificates: map[string]string{},
	}
	for _, k := range r.plan.Keep {
		if !k.Retired {
			f.Keys = append(f.Keys, keyOf{Name: string(k.Role), Attributes: k.Attributes, KeyResult: KeyResult{Purpose: string(k.Purpose), Label: k.Label, ID: hex.EncodeToString(k.ID), SPKI: k.SPKI, Algorithm: string(k.Algorithm)}})
		}
	}
	next := r.nextCA()
	if next != nil {
		f.Generations = []issuerOf{*next}
	}
	for _, k := range r.result.Keys {
		name := k.Purpose
		if next != nil {
			name = k.Label
		}
		f.Keys = append(f.Keys, keyOf{Name: name, KeyResult: k})
	}
	for _, c := range r.plan.Certificates {
		f.Certificates[string(c.Role)] = c.Role.File()
	}
	return f
}

// nextCA is the generation that a plan makes with a CA and an RA; nil: it makes none.
func (r *run) nextCA() *issuerOf {
	made := map[string]keyCert{}
	for _, k := range r.result.Keys {
		role := cmp.Or(k.Role, k.Purpose)
		made[role] = keyCert{Key: k.Label, Certificate: Role(role).File()}
	}
	g := &issuerOf{Name: r.plan.Name, CA: made[string(plan.RoleCA)], RASign: made[string(plan.RoleRASign)], RADecrypt: made[string(plan.RoleRADecrypt)]}
	if ra, single := made[string(plan.RoleRA)]; single {
		g.RASign, g.RADecrypt = ra, ra
	}
	if ocsp, there := made[string(plan.RoleOCSP)]; there {
		g.OCSP = &ocsp
	}
	if g.CA.Key == "" || g.RASign.Key == "" || g.RADecrypt.Key == "" {
		return nil
	}
	return g
}

// files compares what lies beside the transcript; it may have been moved alone.
func (v *verifier) files() (string, error) {
	same, absent := 0, 0
	for _, f := range v.named(plan.StepClose)[0].End.Object.Objects("files") {
		name := f.String("file")
		if name == "" || name != filepath.Base(name) {
			return "", fmt.Errorf("%q is no file's name", name)
		}
		if f.Int("secret") == 1 {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(v.dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			absent++
			continue
		}
		if err != nil {
			return "", err
		}
		if transcript.Digest(raw) != f.String("sha256") {
			return "", fmt.Errorf("%s was changed", name)
		}
		same++
	}
	return fmt.Sprintf("%d files are unchanged, %d are not here", same, absent), nil
}
