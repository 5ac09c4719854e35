package appliance

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"

	"golang.org/x/mod/sumdb/note"

	"github.com/postern-pki/postern/appliance/authority"
	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/appliance/keyholder"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/policy/challenge"
	"github.com/postern-pki/postern/protocol"
)

// purposes maps the configuration's words to the token's.
var purposes = [...]struct {
	word    string
	purpose hsm.Purpose
}{{"ca", hsm.CA}, {"ra-sign", hsm.RASign}, {"ra-decrypt", hsm.RADecrypt}, {"tls", hsm.TLS}, {"audit", hsm.Audit}}

// openKey finds a key and compares its public key with what the ceremony
// recorded.
func openKey(ctx context.Context, token *hsm.Token, k config.Key) (*hsm.Key, error) {
	spec := hsm.KeySpec{Label: k.Label}
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
func (a *Appliance) matchCertificates() error {
	type pair struct {
		name string
		key  string
		cert *x509.Certificate
	}
	pairs := []pair{{"audit", a.cfg.Audit.Key, a.cfg.AuditCertificate}}
	for _, i := range a.cfg.Issuers {
		pairs = append(pairs, pair{i.Name + " ca", i.Issuer.CA.Key, i.CA},
			pair{i.Name + " ra_sign", i.Issuer.RASign.Key, i.RASign}, pair{i.Name + " ra_decrypt", i.Issuer.RADecrypt.Key, i.RADecrypt})
	}
	for _, p := range pairs {
		if !keyholder.MatchesCertificate(a.keys[p.key], p.cert) {
			return fmt.Errorf("the certificate of %s is not about key %s on the token: take the certificates and keys of one ceremony", p.name, p.key)
		}
	}
	return nil
}

func (a *Appliance) keyholderOptions() (keyholder.Options, error) {
	o := keyholder.Options{Origin: a.cfg.Origin, Audit: a.keys[a.cfg.Audit.Key], CAs: make(map[string]keyholder.CA)}
	for _, i := range a.cfg.Issuers {
		limits, err := issuer.Limits{
			MaxValidity: i.MaxValidity, NotAfter: i.CA.NotAfter, Issuer: i.CA.RawSubject, IssuerSPKI: i.CA.RawSubjectPublicKeyInfo,
			KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement | x509.KeyUsageDataEncipherment | x509.KeyUsageContentCommitment,
		}.Fixed()
		if err != nil {
			return o, fmt.Errorf("issuer %s: %w", i.Name, err)
		}
		o.CAs[i.Name] = keyholder.CA{Key: a.keys[i.Issuer.CA.Key], Limits: limits}
	}
	return o, nil
}

// openIssuers wires the pipeline, with the keyholder as the only signer.
func (a *Appliance) openIssuers(holder *keyholder.Keyholder) error {
	issuers := make(map[string]authority.Issuer)
	for _, i := range a.cfg.Issuers {
		is, err := issuer.New(i.Name, i.CA, holder, issuer.Options{MaxValidity: i.MaxValidity})
		if err != nil {
			return fmt.Errorf("issuer %s: %w", i.Name, err)
		}
		s := protocol.Service{RASign: i.RASign.Raw, RADecrypt: i.RADecrypt.Raw, CA: i.CA.Raw}
		for _, c := range i.Chain {
			s.Chain = append(s.Chain, c.Raw)
		}
		issuers[i.Name] = authority.Issuer{Issuer: is, Service: s}
	}
	tagger, err := readTagger(a.cfg.ChallengeKeyPath, a.cfg.Challenges.Key.Credential != "")
	if err != nil {
		return err
	}
	a.authority, err = authority.New(authority.Options{
		Log: a.log, Index: a.index, Policies: a.cfg.Policies, Tagger: tagger, Issuers: issuers, Now: a.env.Now, Zap: a.env.Zap.Named("authority"),
	})
	return err
}

// readTagger reads the key of the challenges' tags: 32 bytes that nobody else may
// read. Who may read a credential is the service manager's business, who may give
// it to the service's user by an access list, which shows as bits of the group.
func readTagger(path string, credential bool) (*challenge.Tagger, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("challenges.key: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 && !credential {
		return nil, fmt.Errorf("challenges.key: %s can be read by others: chmod 0600 it", path)
	}
	key, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("challenges.key: %w", err)
	}
	defer clear(key)
	t, err := challenge.NewTagger(key)
	if err != nil {
		return nil, fmt.Errorf("challenges.key: %w", err)
	}
	return t, nil
}

func auditVerifier(cfg *config.Config) (note.Verifier, error) {
	pub, ok := cfg.AuditCertificate.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("audit.certificate: its key is not ECDSA")
	}
	return audit.ECDSANoteVerifier(cfg.Origin, pub)
}

// genesis is record 0: who signs the log, and which ceremony made the keys.
func (a *Appliance) genesis() (audit.Entry, error) {
	transcript, err := os.ReadFile(a.cfg.Transcript)
	if err != nil {
		return audit.Entry{}, fmt.Errorf("transcript: %w", err)
	}
	sum, cert := sha256.Sum256(transcript), a.cfg.AuditCertificate
	keys := audit.Object{}
	for name, key := range a.keys {
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return audit.Entry{}, err
		}
		id := sha256.Sum256(der)
		keys[name] = hex.EncodeToString(id[:])
	}
	return audit.Entry{Event: "log.genesis", Outcome: "ok", Actor: audit.Actor{Kind: "system", ID: "posternd"}, Object: audit.Object{
		"transcript_sha256": hex.EncodeToString(sum[:]),
		"audit_spki":        base64.StdEncoding.EncodeToString(cert.RawSubjectPublicKeyInfo),
		"audit_certificate": base64.StdEncoding.EncodeToString(cert.Raw),
		"keys":              keys,
	}}, nil
}
