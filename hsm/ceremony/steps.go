package ceremony

import (
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
	"github.com/postern-pki/postern/hsm/ceremony/newlog"
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

// oldLog is what a ceremony that begins a new log knows of the old one.
type oldLog struct {
	found audit.Object
	aside []string
}

// folder is where the old log itself is; "" if there was none.
func (o oldLog) folder() string {
	for _, name := range o.aside {
		if info, err := os.Stat(name); err == nil && info.IsDir() {
			return name
		}
	}
	return ""
}

func (r *run) places() newlog.Places {
	return newlog.Places{State: r.plan.Log.State, Keyholder: r.plan.Log.Keyholder}
}

// holdLog keeps the service out until the ceremony ends.
func (r *run) holdLog() error {
	if r.plan.Kind != plan.NewLog || r.log != nil && r.first == len(r.plan.Steps()) {
		return nil
	}
	release, err := newlog.Hold(r.places())
	if err != nil {
		return &Error{Err: err, Hint: "stop the service first; log.state and log.keyholder_state in the plan are the folders of its configuration"}
	}
	r.cleanup = append(r.cleanup, release)
	return nil
}

// auditKeys are the audit keys on the token: the one in use, and retired ones.
func (r *run) auditKeys(ctx context.Context) (all []*ecdsa.PublicKey, err error) {
	token, err := r.open(ctx, plan.Service)
	if err != nil {
		return nil, err
	}
	for _, k := range r.plan.Keep {
		if k.Role != plan.RoleAudit {
			continue
		}
		key, err := token.Key(ctx, hsm.KeySpec{Purpose: k.Purpose, Label: k.Label, ID: k.ID})
		if err != nil {
			return nil, err
		}
		pub, ok := key.Public().(*ecdsa.PublicKey)
		if !ok {
			return nil, fmt.Errorf("the audit key %q is a %T", k.Label, key.Public())
		}
		all = append(all, pub)
	}
	return all, nil
}

// survey looks at what is left of the log, and has people see it before anything is
// moved.
func (r *run) survey(ctx context.Context, s plan.Step) error {
	return r.step(s, "the new log will be "+r.plan.Log.NewOrigin, nil, func() (found audit.Object, err error) {
		keys, err := r.auditKeys(ctx)
		if err != nil {
			return nil, err
		}
		notes, err := r.holders[plan.Service].token.ReadData(ctx, hsm.MarkLabel)
		if err != nil && !errors.Is(err, hsm.ErrNoData) {
			return nil, err
		}
		found = audit.Object{"marks": newlog.Marks(notes, keys)}
		if found["head"], err = newlog.Head(r.places()); err != nil {
			return found, err
		}
		if found["disk"], err = newlog.Disk(ctx, r.places(), keys); err != nil {
			return found, err
		}
		for _, w := range newlog.Words(found) {
			r.opts.Progress(s.Name, w)
		}
		if newlog.Used(found, r.plan.Log.NewOrigin) {
			return found, fmt.Errorf("log.new_origin: %s is that of a log that was found: an origin never has two histories", r.plan.Log.NewOrigin)
		}
		for _, m := range found.Objects("marks") {
			if o := m.String("origin"); o != "" && o != r.plan.Log.Origin {
				return found, fmt.Errorf("log.origin: the mark on the token is of %s", o)
			}
		}
		if r.opts.Confirm != nil {
			err = r.opts.Confirm(ctx, Intention{Plan: r.plan.Name, Digest: r.plan.Digest(), Token: r.holders[plan.Service].words(), Out: r.out.dir, Found: strings.Join(newlog.Words(found), "\n")})
		}
		r.old.found = found
		return found, err
	})
}

// moveAside gives the old log another name.
func (r *run) moveAside(s plan.Step) error {
	tag := r.plan.Digest()[:8]
	return r.step(s, "the old log has another name, with .before-"+tag, audit.Object{"tag": tag}, func() (audit.Object, error) {
		var err error
		r.old.aside, err = newlog.Aside(r.places(), tag)
		return audit.Object{"aside": r.old.aside}, err
	})
}

// quote writes what the service's next first record will say.
func (r *run) quote(s plan.Step) error {
	return r.step(s, newlog.File+" written", audit.Object{"file": newlog.File}, func() (audit.Object, error) {
		head := r.log.Head()
		text, err := newlog.Encode(newlog.After(r.plan, r.old.found, r.old.aside, head.Size, hex.EncodeToString(head.Prev[:])))
		if err == nil {
			err = errors.Join(r.out.write(newlog.File, false, text), newlog.Write(r.places(), text))
		}
		return audit.Object{"sha256": transcript.Digest(text)}, err
	})
}

// mark has the audit key sign that the new log has no line. The service can begin it
// when this is on the token, and not before: it may have done so if the ceremony was
// interrupted.
func (r *run) mark(ctx context.Context, s plan.Step) error {
	origin := r.plan.Log.NewOrigin
	err := r.step(s, "now set in the service's configuration  origin: "+origin, audit.Object{"origin": origin}, func() (audit.Object, error) {
		keys, err := r.auditKeys(ctx)
		if err != nil {
			return nil, err
		}
		key, err := r.key(ctx, plan.RoleAudit)
		if err != nil {
			return nil, err
		}
		token := r.holders[plan.Service].token
		if notes, err := token.ReadData(ctx, hsm.MarkLabel); err == nil && len(notes) == 1 && r.interrupted(s) && newlog.Used(audit.Object{"marks": newlog.Marks(notes, keys)}, origin) {
			return audit.Object{"note": string(notes[0]), "found": 1}, nil
		}
		if err := newlog.Cleared(r.places()); err != nil {
			return nil, err
		}
		note, err := newlog.Mark(origin, key.With(ctx))
		if err != nil {
			return nil, err
		}
		return audit.Object{"note": string(note), "found": 0}, token.ReplaceData(ctx, hsm.MarkLabel, note)
	})
	r.result.NewOrigin, r.result.OldLog = origin, r.old.folder()
	return err
}
