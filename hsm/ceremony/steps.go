package ceremony

import (
	"cmp"
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

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/ceremony/pins"
	"github.com/postern-pki/postern/hsm/ceremony/plan"
	"github.com/postern-pki/postern/hsm/ceremony/transcript"
)

// timeFormat is that of a record's own time.
const timeFormat = "2006-01-02T15:04:05.000000Z"

// environment is the first step: what is about to happen, and where.
func (r *run) environment(s plan.Step) error {
	begin := audit.Object{
		"name": r.plan.Name, "class": string(r.plan.Class), "plan": r.plan.Text, "plan_sha256": r.plan.Digest(),
		"start": r.start.Format(timeFormat), "rehearsal": number(r.opts.Rehearse), "people": r.signed,
	}
	return r.step(s, "plan "+r.plan.Digest(), begin, func() (audit.Object, error) { return r.facts.object(), nil })
}

// object is what is recorded of where the ceremony runs.
func (f facts) object() audit.Object {
	openssl := audit.Object{"path": "absent"}
	if f.openssl != "" {
		openssl = audit.Object{"path": f.openssl, "version": f.opensslVersion}
	}
	var modules []any
	for _, m := range f.modules {
		modules = append(modules, audit.Object{"path": m.path, "sha256": m.sha256, "cryptoki": m.cryptoki, "name": m.name, "version": m.version})
	}
	host, _ := os.Hostname()
	return audit.Object{
		"binary":  audit.Object{"path": f.binary, "sha256": f.binarySHA256, "go": f.goVersion, "version": f.version, "revision": f.revision, "modified": f.modified},
		"modules": modules,
		"process": audit.Object{"core_limit": 0, "dumpable": 0, "uid": os.Getuid(), "host": host, "kernel": f.kernel},
		"openssl": openssl, "softhsm2_conf": f.softhsmConf,
	}
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// A draft is a certificate as the throw-away key signed it.
type draft struct {
	template, cert *x509.Certificate
}

// authority returns who issues a role's certificates. Its own certificate is nil
// until it has signed itself.
func (r *run) authority(ctx context.Context, role Role) (*authority, error) {
	a := r.signers[role]
	if a == nil {
		key, err := r.key(ctx, role)
		if err != nil {
			return nil, err
		}
		if a, err = newAuthority(key.With(ctx)); err != nil {
			return nil, err
		}
		r.signers[role] = a
	}
	a.cert = r.certs[role]
	return a, nil
}

// public is the key that a role's certificate is about.
func (r *run) public(role Role) crypto.PublicKey {
	if a := r.signers[role]; a != nil {
		return a.signer.Public()
	}
	return r.keys[role].Public
}

// above is what stands above a role's certificate, the nearest first. A
// certificate that signs itself stands above itself.
func (r *run) above(role Role) (out []*x509.Certificate) {
	for {
		issuer := r.plan.Issuer(role)
		if issuer == plan.RoleOutside {
			return append(out, r.chain...)
		}
		if out = append(out, r.certs[issuer]); issuer == role || issuer == r.plan.Issuer(issuer) {
			return out
		}
		role = issuer
	}
}

// look drafts a certificate with the throw-away key, and looks at it before the
// issuer's key is asked for anything.
func (r *run) look(ctx context.Context, s plan.Step, role Role) error {
	c, _ := r.plan.Certificate(role)
	when := period{r.start, r.plan.Backdate}
	what := audit.Object{"role": string(role), "subject": c.Subject.String()}
	return r.step(s, "draft of "+role.File()+" looked at", what, func() (audit.Object, error) {
		a, err := r.authority(ctx, r.plan.Issuer(role))
		if err != nil {
			return nil, err
		}
		if k := r.keys[role]; k != nil {
			if _, err := r.key(ctx, role); err != nil { // a kept one's public half is read from the token
				return nil, err
			}
		}
		pub := r.public(role)
		var d draft
		if d.template, err = a.template(c, pub, when); err != nil {
			return nil, err
		}
		if d.cert, err = a.sign(d.template, pub, a.throwAway); err != nil {
			return nil, err
		}
		tbs := audit.Object{"tbs_sha256": transcript.Digest(d.cert.RawTBSCertificate)}
		if wrong := lint(d.cert, c, pub, a.cert, when); len(wrong) > 0 {
			return tbs, fmt.Errorf("the draft is not as planned: %s", strings.Join(wrong, "; "))
		}
		r.drafts[role] = d
		return tbs, nil
	})
}

// issue has the issuer's key sign what was looked at. The first certificate of an
// authority that signs itself is its own.
func (r *run) issue(ctx context.Context, s plan.Step, role Role) error {
	d := r.drafts[role]
	begin := audit.Object{"role": string(role), "tbs_sha256": transcript.Digest(d.cert.RawTBSCertificate)}
	return r.step(s, role.File()+" issued", begin, func() (audit.Object, error) {
		a, err := r.authority(ctx, r.plan.Issuer(role))
		if err != nil {
			return nil, err
		}
		cert, err := a.sign(d.template, r.public(role), a.signer)
		if err != nil {
			return nil, err
		}
		ob := audit.Object{"role": string(role), "certificate": base64.StdEncoding.EncodeToString(cert.Raw), "sha256": transcript.Digest(cert.Raw), "go": "verified", "openssl": "absent"}
		if string(cert.RawTBSCertificate) != string(d.cert.RawTBSCertificate) {
			return ob, errors.New("the CA's key signed other bytes than the draft's")
		}
		if err := verifyIssued(cert, a.cert); err != nil {
			return ob, err
		}
		r.certs[role] = cert
		if r.facts.openssl != "" {
			if err := opensslVerify(ctx, r.facts.openssl, cert, r.above(role), r.start); err != nil {
				return ob, err
			}
			ob["openssl"] = "verified"
		}
		r.tell(role, cert)
		return ob, r.out.write(role.File(), false, certificatePEM(cert.Raw))
	})
}

// tell adds a certificate to the result.
func (r *run) tell(role Role, cert *x509.Certificate) {
	c, _ := r.plan.Certificate(role)
	r.result.Certificates = append(r.result.Certificates, CertificateResult{
		Role: string(role), File: role.File(), Subject: c.Subject.String(), Serial: cert.SerialNumber.Text(16), SHA256: transcript.Digest(cert.Raw), NotAfter: cert.NotAfter,
	})
}

// operatorKey makes a key of the operators, in software: they are no part of the
// token, so that no device's issuer can make an operator.
func (r *run) operatorKey(s plan.Step, role Role) error {
	file, _ := leaves(s)
	return r.step(s, file+" made", audit.Object{"role": string(role), "file": file, "algorithm": "P-256"}, func() (audit.Object, error) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		spki, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return nil, err
		}
		if r.signers[role], err = newAuthority(key); err != nil {
			return nil, err
		}
		ob := audit.Object{"role": string(role), "spki_sha256": transcript.Digest(spki), "spki": base64.StdEncoding.EncodeToString(spki)}
		return ob, r.out.writeKey(file, key)
	})
}

// secrets makes the key of the challenges' tags.
func (r *run) secrets(s plan.Step) error {
	return r.step(s, ChallengeFile+" made", audit.Object{"file": ChallengeFile, "bytes": challengeBytes}, func() (audit.Object, error) {
		key := make([]byte, challengeBytes)
		defer clear(key)
		if _, err := rand.Read(key); err != nil {
			return nil, err
		}
		return audit.Object{"file": ChallengeFile}, r.out.write(ChallengeFile, true, key)
	})
}

const challengeBytes = 32

// finish lists what is on the service's token and in the folder.
func (r *run) finish(ctx context.Context, s plan.Step) error {
	return r.step(s, "the token's objects are listed", nil, func() (audit.Object, error) {
		var there []any
		if r.plan.Kind != plan.Erase {
			if _, err := r.open(ctx, plan.Service); err != nil {
				return nil, err
			}
			var err error
			if there, err = r.holders[plan.Service].inventory(ctx); err != nil {
				return audit.Object{"objects": there}, err
			}
		}
		var files []any
		for _, w := range r.out.written {
			f := audit.Object{"file": w.name, "sha256": w.sha256}
			if w.secret {
				f = audit.Object{"file": w.name, "secret": 1}
			}
			files = append(files, f)
		}
		head := r.log.Head()
		return audit.Object{"objects": there, "files": files, "records": head.Size, "digest": hex.EncodeToString(head.Prev[:])}, nil
	})
}

// gatherPINs gets the PINs that the steps to come need, and refuses weak ones while
// nothing depends on them yet.
func (r *run) gatherPINs(ctx context.Context) error {
	for _, t := range r.plan.Tokens {
		h := r.holders[t.On]
		if h.left {
			continue
		}
		if err := r.pinsOf(ctx, h); err != nil {
			return err
		}
	}
	return r.apart()
}

func (r *run) pinsOf(ctx context.Context, h *holder) (err error) {
	if r.opts.Rehearse {
		h.generate = true
		var forgotten []byte // nobody resets the PIN of a throw-away token
		h.so, forgotten, err = pins.Generate(0)
		clear(forgotten)
		return err
	}
	user, officer, of := r.opts.PIN, r.opts.SOPIN, ""
	if h.plan.On == plan.Root {
		user, officer, of = r.opts.RootPIN, r.opts.RootSOPIN, " of the root's token"
	}
	get := func(dst *pins.Given, from pins.Source, what string) error {
		if from == nil {
			return fmt.Errorf("no source for %s is given", what)
		}
		p, err := from(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		*dst = p
		longest, production := 0, r.plan.Class == plan.Production
		if production && p.Bits() < pins.MinBits {
			if longest, err = h.longest(ctx); err != nil {
				return err
			}
		}
		if err := p.Strong(what, production, longest); err != nil {
			return &Error{Err: err, Hint: "choose a longer one, or let the ceremony make a new token's user PIN"}
		}
		return nil
	}
	officerActs := h.plan.New && !r.isDone(plan.Step{Name: plan.StepPIN, Of: string(h.plan.On)}) ||
		r.plan.Kind == plan.Unlock && !r.isDone(plan.Step{Name: plan.StepUnlock, Of: string(h.plan.On)}) ||
		r.plan.Kind == plan.Erase && !r.isDone(plan.Step{Name: plan.StepErase, Of: string(h.plan.On)})
	if h.plan.Shares > 0 && officerActs {
		if r.opts.KeepShare == nil || r.opts.AskShares == nil {
			return &Error{Err: fmt.Errorf("%w: shares are shown to people", ErrUnattended), Hint: "run it at a terminal, or rehearse it"}
		}
		officerActs = r.isDone(plan.Step{Name: plan.StepShares, Of: string(h.plan.On)})
		officer = r.opts.AskShares(h.plan.Threshold)
	}
	if officerActs {
		if err := get(&h.so, officer, "the security officer's PIN"+of); err != nil {
			return err
		}
	}
	if h.generate = user == nil && h.plan.New && (r.plan.Class == plan.Production || h.plan.Credential != ""); h.generate {
		return r.regainPIN(ctx, h)
	}
	return get(&h.pin, user, "the user PIN"+of)
}

// longest asks how many characters a token's PIN may have; 0 if it does not say.
func (h *holder) longest(ctx context.Context) (longest int, err error) {
	err = withModule(h.plan.Module, func(m *hsm.Module) (err error) {
		slot := h.slot
		if h.plan.New && slot.Serial == "" {
			slot, err = emptySlot(ctx, m, h.plan.Label)
		} else {
			slot, err = m.Find(ctx, cmp.Or(slot.Serial, h.plan.Serial), slot.Label)
		}
		longest = slot.MaxPIN
		return err
	})
	return longest, err
}

// apart refuses one PIN for two purposes.
func (r *run) apart() error {
	var all []pins.Given
	for _, t := range r.plan.Tokens {
		for _, p := range []pins.Given{r.holders[t.On].so, r.holders[t.On].pin} {
			if p.Empty() {
				continue
			}
			for _, other := range all {
				if p.Equal(other.PIN) {
					return &Error{Err: fmt.Errorf("%w: two PINs are the same", pins.ErrWeak), Hint: "whoever has one must not have the other"}
				}
			}
			all = append(all, p)
		}
	}
	return nil
}
