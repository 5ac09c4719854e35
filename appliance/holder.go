package appliance

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/appliance/keyholder"
	"github.com/postern-pki/postern/appliance/tokens"
	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/hsm/lint"
	"github.com/postern-pki/postern/policy"
)

// Keyholder is the role that has the token.
type Keyholder struct {
	*keyholder.Keyholder
	closers
	cfg    *config.Config
	tokens *tokens.Set
	keys   map[string]*hsm.Key // by name
}

// OpenKeyholder logs in once, finds every key, with the attributes of its purpose
// and the public key that the ceremony recorded, and takes up the log where it
// stopped to follow it.
func OpenKeyholder(ctx context.Context, cfg *config.Config, env Env) (_ *Keyholder, err error) {
	env = env.orDefault()
	k := &Keyholder{cfg: cfg, keys: make(map[string]*hsm.Key)}
	defer k.failed(ctx, &err)
	if k.tokens, err = tokens.Open(ctx, cfg.Tokens, env.Zap.Named("hsm")); err != nil {
		return nil, err
	}
	k.onClose(k.tokens.Close)
	for _, c := range cfg.Keys {
		if k.keys[c.Name], err = openKey(ctx, k.tokens.Token(c.Token), c); err != nil {
			return nil, err
		}
	}
	if err := k.matchCertificates(); err != nil {
		return nil, err
	}
	if err := folder(cfg.KeyholderState); err != nil {
		return nil, err
	}
	o, err := k.options(env)
	if err != nil {
		return nil, err
	}
	if k.Keyholder, err = keyholder.New(ctx, o); err != nil {
		return nil, err
	}
	k.onClose(k.Keyholder.Close)
	return k, nil
}

// Close stops the keyholder and logs out.
func (k *Keyholder) Close(ctx context.Context) error { return k.closers.Close(ctx) }

// Hung is closed when a call of the token's library has outlived its deadline: only
// the end of the process helps.
func (k *Keyholder) Hung() <-chan struct{} { return k.tokens.Hung() }

func (k *Keyholder) options(env Env) (keyholder.Options, error) {
	o := keyholder.Options{
		Origin: k.cfg.Origin, Audit: k.keys[k.cfg.Audit.Key], AuditCertificate: k.cfg.AuditCertificate, CAs: make(map[string]keyholder.CA), Names: k.keys,
		Token: k.tokens, Dir: k.cfg.KeyholderState, Marks: marks{k.tokens.Token(k.cfg.TokenOf(k.cfg.Audit.Key).Name)}, MarkEvery: k.cfg.MarkEvery, Rate: k.cfg.KeyholderRate,
		Now: env.Now, Log: env.Zap.Named("keyholder"),
	}
	if err := k.tlsKey(env, &o); err != nil {
		return o, err
	}
	for _, i := range k.cfg.Issuers {
		limits, err := issuer.Limits{
			MaxValidity: i.MaxValidity, NotAfter: i.CA.NotAfter, Issuer: i.CA.RawSubject, IssuerSPKI: i.CA.RawSubjectPublicKeyInfo,
			SubjectKeyID: i.CA.SubjectKeyId, MaxStatus: i.Status.Validity, Status: statusURLs(k.cfg, i),
			KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement | x509.KeyUsageDataEncipherment | x509.KeyUsageContentCommitment,
		}.Fixed()
		if err != nil {
			return o, fmt.Errorf("issuer %s: %w", i.Name, err)
		}
		ca := keyholder.CA{Key: k.keys[i.Keys.CA.Key], Limits: limits}
		if c := i.Status.OCSP; c != nil {
			limits, err := issuer.NewOCSPLimits(c, i.CA, i.Status.Answers)
			if err != nil {
				return o, fmt.Errorf("issuer %s: %w", i.Name, err)
			}
			ca.OCSP = keyholder.NewOCSP(k.keys[i.Keys.OCSP.Key], limits)
		}
		o.CAs[i.Name] = ca
		o.RA = append(o.RA, k.keys[i.Keys.RASign.Key], k.keys[i.Keys.RADecrypt.Key])
	}
	return o, nil
}

// statusURLs are those that the profiles of a CA's issuer have its certificates name.
func statusURLs(cfg *config.Config, ca config.LoadedIssuer) *lint.Status {
	named := func(urls []string) (out []string) {
		for _, u := range urls {
			out = append(out, strings.ReplaceAll(u, policy.CAPlaceholder, ca.Name))
		}
		return out
	}
	all := &lint.Status{}
	for _, name := range cfg.Policies.Names() {
		if p, _ := cfg.Policies.Profile(name); p.Issuer == ca.Of {
			all.CRL = append(all.CRL, named(p.Status.CRL)...)
			all.OCSP = append(all.OCSP, named(p.Status.OCSP)...)
			all.CAIssuers = append(all.CAIssuers, named(p.Status.CAIssuers)...)
		}
	}
	return all
}

// marks keeps the newest checkpoint on the token.
type marks struct{ token *hsm.Token }

func (m marks) Read(ctx context.Context) ([][]byte, error) {
	notes, err := m.token.ReadData(ctx, hsm.MarkLabel)
	if errors.Is(err, hsm.ErrNoData) {
		return nil, nil
	}
	return notes, err
}

func (m marks) Replace(ctx context.Context, mark []byte) error {
	return m.token.ReplaceData(ctx, hsm.MarkLabel, mark)
}

// purposes maps the configuration's words to the token's.
var purposes = [...]struct {
	word    string
	purpose hsm.Purpose
}{{"ca", hsm.CA}, {"ra-sign", hsm.RASign}, {"ra-decrypt", hsm.RADecrypt}, {"ra", hsm.RA}, {"tls", hsm.TLS}, {"audit", hsm.Audit}, {"ocsp", hsm.OCSP}}

// openKey finds a key and compares its public key with what the ceremony
// recorded.
func openKey(ctx context.Context, token *hsm.Token, k config.Key) (*hsm.Key, error) {
	spec := hsm.KeySpec{Label: k.Label, Recorded: k.Attributes}
	for _, p := range purposes {
		if p.word == k.Purpose {
			spec.Purpose = p.purpose
		}
	}
	spec.ID, _ = hex.DecodeString(k.ID) // the configuration checked that it is hex
	key, err := token.Key(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", k.Name, err)
	}
	if k.Algorithm != "" && k.Algorithm != string(key.Algorithm()) {
		return nil, fmt.Errorf("key %s: it is %s on the token, not %s", k.Name, key.Algorithm(), k.Algorithm)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", k.Name, err)
	}
	if sum := sha256.Sum256(der); k.SPKI != "" && hex.EncodeToString(sum[:]) != k.SPKI {
		return nil, fmt.Errorf("key %s: the token's key %q is not the one that the ceremony recorded", k.Name, k.Label)
	}
	return key, nil
}

// matchCertificates refuses a certificate whose key is not on the token.
func (k *Keyholder) matchCertificates() error {
	type pair struct {
		name string
		key  string
		cert *x509.Certificate
	}
	pairs := []pair{{"audit", k.cfg.Audit.Key, k.cfg.AuditCertificate}}
	for _, i := range k.cfg.Issuers {
		pairs = append(pairs, pair{i.Name + " ca", i.Keys.CA.Key, i.CA},
			pair{i.Name + " ra_sign", i.Keys.RASign.Key, i.RASign}, pair{i.Name + " ra_decrypt", i.Keys.RADecrypt.Key, i.RADecrypt})
		if c := i.Status.OCSP; c != nil {
			pairs = append(pairs, pair{i.Name + " ocsp", i.Keys.OCSP.Key, c})
		}
	}
	for _, p := range pairs {
		if !keyholder.MatchesCertificate(k.keys[p.key], p.cert) {
			return fmt.Errorf("the certificate of %s is not about key %s on the token: take the certificates and keys of one ceremony", p.name, p.key)
		}
	}
	return nil
}
