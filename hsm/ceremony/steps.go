package ceremony

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm"
)

// The steps, by the names that their records have.
const (
	stepEnvironment = "environment"
	stepToken       = "token"
	stepPIN         = "pin"
	stepKeys        = "keys"
	stepReadBack    = "readback"
	stepProofs      = "proofs"
	stepLint        = "lint"
	stepCertificate = "certificate"
	stepOperatorKey = "operator-key"
	stepSecrets     = "secrets"
	stepDescribe    = "describe"
	stepClose       = "close"
)

// generationDeadline is the longest that one search for primes may take on a slow token.
const generationDeadline = 10 * time.Minute

func (r *run) config() hsm.Config {
	return hsm.Config{Module: r.plan.Token.Module, Serial: r.slot.Serial, Label: r.slot.Label, PIN: hsm.PINFrom(r.pin.PIN), Sessions: 2, Deadline: time.Minute}
}

// environment is the first step: what is about to happen, and where.
func (r *run) environment(context.Context) error {
	f := r.facts
	begin := audit.Object{
		"name": r.plan.Name, "class": string(r.plan.Class), "plan": r.plan.Text, "plan_sha256": r.plan.Digest(),
		"start": r.start.Format(timeFormat), "rehearsal": number(r.opts.Rehearse),
	}
	return r.step(stepEnvironment, "plan "+r.plan.Digest(), begin, func() (audit.Object, error) {
		openssl := audit.Object{"path": "absent"}
		if f.openssl != "" {
			openssl = audit.Object{"path": f.openssl, "version": f.opensslVersion}
		}
		host, _ := os.Hostname()
		return audit.Object{
			"binary":  audit.Object{"path": f.binary, "sha256": f.binarySHA256, "go": f.goVersion, "version": f.version, "revision": f.revision, "modified": f.modified},
			"module":  audit.Object{"path": f.modulePath, "sha256": f.moduleSHA256, "cryptoki": f.cryptoki, "name": f.moduleName, "version": f.moduleVersion},
			"process": audit.Object{"core_limit": 0, "dumpable": 0, "uid": os.Getuid(), "host": host, "kernel": f.kernel},
			"openssl": openssl, "softhsm2_conf": f.softhsmConf,
		}, nil
	})
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// openToken initializes a new token, or names the one that was looked at.
func (r *run) openToken(ctx context.Context) error {
	begin := audit.Object{"new": number(r.plan.Token.New), "label": r.plan.Token.Label, "serial": r.plan.Token.Serial}
	err := r.step(stepToken, "token ready", begin, func() (audit.Object, error) {
		if r.plan.Token.New {
			err := r.withModule(func(m *hsm.Module) (err error) {
				slot, err := m.InitToken(ctx, r.slot, r.plan.Token.Label, r.so.PIN)
				if err == nil {
					r.slot = slot
				}
				return err
			})
			if err != nil {
				return nil, err
			}
		}
		return audit.Object{"serial": r.slot.Serial, "label": r.slot.Label, "manufacturer": r.slot.Manufacturer, "model": r.slot.Model, "firmware": r.slot.Firmware}, nil
	})
	r.result.TokenSerial, r.result.TokenLabel = r.slot.Serial, r.slot.Label
	return err
}

func (r *run) withModule(f func(m *hsm.Module) error) error {
	m, err := hsm.Load(r.plan.Token.Module)
	if err != nil {
		return err
	}
	return errors.Join(f(m), m.Close())
}

// setPIN sets a new token's user PIN; a generated one is in its file before it
// is on the token. It ends with a login and a look that nothing is there.
func (r *run) setPIN(ctx context.Context) error {
	begin := audit.Object{"source": r.pin.Source, "new": number(r.plan.Token.New)}
	if r.text != nil {
		begin["bits"], begin["file"] = 8*generatedBytes, PINFile
	}
	return r.step(stepPIN, "PIN from "+r.pin.Source, begin, func() (audit.Object, error) {
		if r.text != nil {
			text := append(bytes.Clone(r.text), '\n')
			defer clear(text)
			if err := r.out.write(PINFile, true, text); err != nil {
				return nil, err
			}
			r.result.PINFile = r.out.path(PINFile)
		}
		if r.plan.Token.New {
			err := r.withModule(func(m *hsm.Module) error {
				slot, err := m.Find(ctx, r.slot.Serial, r.slot.Label) // slots may have other numbers in a module that was loaded again
				if err != nil {
					return err
				}
				return m.InitPIN(ctx, slot, r.so.PIN, r.pin.PIN)
			})
			if err != nil {
				return nil, err
			}
		}
		var objects []hsm.Object
		err := r.withToken(ctx, func(t *hsm.Token) (err error) {
			objects, err = t.Objects(ctx)
			return err
		})
		if err == nil && len(objects) > 0 {
			err = fmt.Errorf("the token is not empty: it has %d objects", len(objects))
		}
		return audit.Object{"objects": len(objects)}, err
	})
}

func (r *run) withToken(ctx context.Context, f func(t *hsm.Token) error) error {
	t, err := hsm.Open(ctx, r.config())
	if err != nil {
		return err
	}
	return errors.Join(f(t), t.Close())
}

// generate makes all keys, with all their attributes said.
func (r *run) generate(ctx context.Context) error {
	var planned []any
	for i := range r.plan.Keys {
		k := &r.plan.Keys[i]
		k.ID = make([]byte, 16)
		if _, err := rand.Read(k.ID); err != nil {
			return err
		}
		planned = append(planned, audit.Object{"purpose": string(k.Purpose), "label": k.Label, "algorithm": string(k.Algorithm), "id": hex.EncodeToString(k.ID)})
	}
	return r.step(stepKeys, fmt.Sprintf("%d keys generated", len(r.plan.Keys)), audit.Object{"keys": planned}, func() (audit.Object, error) {
		limited, cancel := context.WithTimeout(ctx, generationDeadline)
		defer cancel()
		made, err := hsm.Generate(limited, r.config(), r.plan.Keys)
		var keys []any
		for _, g := range made {
			spki, derr := x509.MarshalPKIXPublicKey(g.Public)
			if derr != nil {
				return nil, errors.Join(err, derr)
			}
			k := KeyResult{Purpose: string(g.Purpose), Label: g.Label, ID: hex.EncodeToString(g.ID), SPKI: digest(spki), Algorithm: string(g.Algorithm)}
			r.result.Keys = append(r.result.Keys, k)
			keys = append(keys, audit.Object{"purpose": k.Purpose, "label": k.Label, "algorithm": k.Algorithm, "id": k.ID, "spki_sha256": k.SPKI,
				"spki": base64.StdEncoding.EncodeToString(spki), "attributes": string(g.Tier)})
		}
		if r.made = made; err == nil {
			r.token, err = hsm.Open(ctx, r.config())
		}
		return audit.Object{"keys": keys}, err
	})
}

// readBack asks the token for every attribute of every key.
func (r *run) readBack(ctx context.Context) error {
	for _, g := range r.made {
		role := Role(g.Purpose)
		err := r.step(stepReadBack, "attributes of "+g.Label+" as they must be", audit.Object{"purpose": string(role), "label": g.Label}, func() (audit.Object, error) {
			key, err := r.token.Key(ctx, hsm.KeySpec{Purpose: g.Purpose, Label: g.Label, ID: g.ID})
			if err != nil {
				if e, ok := errors.AsType[*hsm.AttributeError](err); ok {
					return audit.Object{"attributes": findings(e.Differences)}, err
				}
				return nil, err
			}
			if e, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !e.Equal(g.Public) {
				return nil, errors.New("the token has another public key under this name than it generated")
			}
			r.keys[role] = key
			return audit.Object{"attributes": findings(key.Findings())}, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func findings(all []hsm.Finding) []any {
	var out []any
	for _, f := range all {
		state := "as wanted"
		switch {
		case !f.Supported:
			state = "not told"
		case !f.OK:
			state = "different"
		}
		out = append(out, audit.Object{"attribute": f.Attribute, "tier": string(f.Tier), "want": f.Want, "got": f.Got, "state": state})
	}
	return out
}

// prove tries what each key must not do.
func (r *run) prove(ctx context.Context) error {
	for _, g := range r.made {
		err := r.step(stepProofs, "proofs of "+g.Label+" hold", audit.Object{"purpose": string(g.Purpose), "label": g.Label}, func() (audit.Object, error) {
			proofs, err := r.token.Prove(ctx, r.keys[Role(g.Purpose)])
			var out []any
			for _, p := range proofs {
				state := "holds"
				if !p.Holds {
					state = "does not hold"
				}
				out = append(out, audit.Object{"proof": p.Name, "tried": p.Tried, "answer": p.Code.String(), "say": p.Say, "state": state})
			}
			return audit.Object{"proofs": out}, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// certificates has the CA sign itself and then the others.
func (r *run) certificates(ctx context.Context) (err error) {
	if r.certs, err = newAuthority(r.keys[RoleCA].With(ctx)); err != nil {
		return err
	}
	for _, c := range r.plan.Certificates {
		if err := r.issue(ctx, r.certs, c, r.keys[c.Role].Public()); err != nil {
			return err
		}
	}
	return nil
}

// issue drafts a certificate with the throw-away key, looks at it, and only then
// asks the CA's key. The first certificate of an authority is its own.
func (r *run) issue(ctx context.Context, a *authority, c CertificatePlan, pub crypto.PublicKey) error {
	when := period{r.start, r.plan.Backdate}
	what := audit.Object{"role": string(c.Role), "subject": c.Subject.String()}
	var template, draft *x509.Certificate
	err := r.step(stepLint, "draft of "+c.Role.File()+" looked at", what, func() (_ audit.Object, err error) {
		if template, err = a.template(c, pub, when); err != nil {
			return nil, err
		}
		if draft, err = a.sign(template, pub, a.throwAway); err != nil {
			return nil, err
		}
		tbs := audit.Object{"tbs_sha256": digest(draft.RawTBSCertificate)}
		if wrong := lint(draft, c, pub, a.cert, when); len(wrong) > 0 {
			return tbs, fmt.Errorf("the draft is not as planned: %s", strings.Join(wrong, "; "))
		}
		return tbs, nil
	})
	if err != nil {
		return err
	}
	begin := audit.Object{"role": string(c.Role), "tbs_sha256": digest(draft.RawTBSCertificate)}
	return r.step(stepCertificate, c.Role.File()+" issued", begin, func() (audit.Object, error) {
		cert, err := a.sign(template, pub, a.signer)
		if err != nil {
			return nil, err
		}
		ob := audit.Object{"role": string(c.Role), "certificate": base64.StdEncoding.EncodeToString(cert.Raw), "sha256": digest(cert.Raw), "go": "verified", "openssl": "absent"}
		if string(cert.RawTBSCertificate) != string(draft.RawTBSCertificate) {
			return ob, errors.New("the CA's key signed other bytes than the draft's")
		}
		if err := verifyIssued(cert, a.cert); err != nil {
			return ob, err
		}
		if a.cert == nil {
			a.cert = cert
		}
		if r.facts.openssl != "" {
			if err := opensslVerify(ctx, r.facts.openssl, cert, a.cert, r.start); err != nil {
				return ob, err
			}
			ob["openssl"] = "verified"
		}
		r.result.Certificates = append(r.result.Certificates, CertificateResult{
			Role: string(c.Role), File: c.Role.File(), Subject: c.Subject.String(), Serial: cert.SerialNumber.Text(16), SHA256: digest(cert.Raw), NotAfter: cert.NotAfter,
		})
		return ob, r.out.writeCertificate(c.Role, cert.Raw)
	})
}

// operators makes the operator CA and the first operator, in software: they
// are no part of the token, so that no device's issuer can make an operator.
func (r *run) operators(ctx context.Context) error {
	var ops *authority
	for i, c := range r.plan.Operators {
		file := []string{OperatorCAKey, OperatorKey}[i]
		var key *ecdsa.PrivateKey
		err := r.step(stepOperatorKey, file+" made", audit.Object{"role": string(c.Role), "file": file, "algorithm": "P-256"}, func() (_ audit.Object, err error) {
			if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
				return nil, err
			}
			spki, err := x509.MarshalPKIXPublicKey(key.Public())
			if err != nil {
				return nil, err
			}
			ob := audit.Object{"role": string(c.Role), "spki_sha256": digest(spki), "spki": base64.StdEncoding.EncodeToString(spki)}
			return ob, r.out.writeKey(file, key)
		})
		if err != nil {
			return err
		}
		if ops == nil {
			if ops, err = newAuthority(key); err != nil {
				return err
			}
		}
		if err := r.issue(ctx, ops, c, key.Public()); err != nil {
			return err
		}
	}
	return nil
}

// secrets makes the key of the challenges' tags.
func (r *run) secrets(context.Context) error {
	return r.step(stepSecrets, ChallengeFile+" made", audit.Object{"file": ChallengeFile, "bytes": 32}, func() (audit.Object, error) {
		key := make([]byte, 32)
		defer clear(key)
		if _, err := rand.Read(key); err != nil {
			return nil, err
		}
		return audit.Object{"file": ChallengeFile}, r.out.write(ChallengeFile, true, key)
	})
}

// finish lists what is on the token and in the folder, and closes both.
func (r *run) finish(ctx context.Context) error {
	err := r.step(stepClose, "token closed", nil, func() (audit.Object, error) {
		objects, err := r.token.Objects(ctx)
		if err != nil {
			return nil, err
		}
		var there, files []any
		for _, o := range objects {
			there = append(there, audit.Object{"class": o.Class, "label": o.Label, "id": hex.EncodeToString(o.ID)})
		}
		if want := 2 * len(r.made); len(objects) != want {
			return audit.Object{"objects": there}, fmt.Errorf("the token has %d objects and should have %d", len(objects), want)
		}
		for _, w := range r.out.written {
			f := audit.Object{"file": w.name, "sha256": w.sha256}
			if w.secret {
				f = audit.Object{"file": w.name, "secret": 1}
			}
			files = append(files, f)
		}
		err = r.token.Close()
		r.token = nil
		head := r.log.chain.Head()
		return audit.Object{"objects": there, "files": files, "records": head.Size, "digest": hex.EncodeToString(head.Prev[:])}, err
	})
	if err != nil {
		return err
	}
	r.result.Records = r.log.records
	r.result.Digest, err = fileDigest(r.out.path(TranscriptFile))
	return err
}
