package ceremony

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/ceremony/people"
	"github.com/postern-pki/postern/hsm/ceremony/plan"
	"github.com/postern-pki/postern/hsm/ceremony/transcript"
)

// request has the CA's key sign a request for its certificate (RFC 2986), for an
// outside CA. What the CA makes of it is looked at when it comes back.
func (r *run) request(ctx context.Context, s plan.Step, role Role) error {
	c, _ := r.plan.Certificate(role)
	return r.step(s, RequestFile+" written: have it signed", audit.Object{"role": string(role), "subject": c.Subject.String()}, func() (audit.Object, error) {
		key, err := r.key(ctx, role)
		if err != nil {
			return nil, err
		}
		subject, err := c.Subject.DER()
		if err != nil {
			return nil, err
		}
		template := &x509.CertificateRequest{RawSubject: subject, SignatureAlgorithm: signatureAlgorithm(key.Public())}
		der, err := x509.CreateCertificateRequest(rand.Reader, template, key.With(ctx))
		if err != nil {
			return nil, err
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err == nil {
			err = csr.CheckSignature()
		}
		if err != nil {
			return nil, err
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
		ob := audit.Object{"request": base64.StdEncoding.EncodeToString(der), "sha256": transcript.Digest(text)}
		return ob, r.out.write(RequestFile, false, text)
	})
}

// receive takes the CA's certificate, and what stands above it, from a file.
func (r *run) receive(ctx context.Context, s plan.Step, role Role) error {
	if r.opts.Certificate == "" {
		return &Error{Step: s.Name, Err: errors.New("the CA's certificate is not given"), Hint: "--certificate FILE names it, with those above it; run the same plan again with the same --out"}
	}
	all, err := readCertificates(r.opts.Certificate)
	if err != nil {
		return &Error{Step: s.Name, Err: err, Hint: "--certificate FILE has the CA's certificate first, then those above it, in PEM"}
	}
	return r.step(s, role.File()+" taken", audit.Object{"role": string(role), "certificates": len(all)}, func() (audit.Object, error) {
		if _, err := r.key(ctx, role); err != nil {
			return nil, err
		}
		if wrong := received(r.plan, all, r.public(role), r.opts.Now()); len(wrong) > 0 {
			return nil, fmt.Errorf("the CA's certificate cannot be used: %s", strings.Join(wrong, "; "))
		}
		r.adopt(role, all)
		ob := audit.Object{"role": string(role), "sha256": transcript.Digest(all[0].Raw), "time": r.opts.Now().UTC().Format(timeFormat)}
		var chain []any
		for _, c := range all {
			chain = append(chain, base64.StdEncoding.EncodeToString(c.Raw))
		}
		ob["chain"] = chain
		err := r.out.write(role.File(), false, certificatePEM(all[0].Raw))
		for i, c := range r.chain {
			err = errors.Join(err, r.out.write(chainFile(i), false, certificatePEM(c.Raw)))
		}
		return ob, err
	})
}

// adopt makes received certificates the CA's.
func (r *run) adopt(role Role, all []*x509.Certificate) {
	r.certs[role], r.chain = all[0], all[1:]
	if len(r.chain) == 0 && r.plan.Kind == plan.Change {
		r.chain = nil // it signs itself, or what stands above it is where it was
	}
	r.result.Certificates = append(r.result.Certificates, CertificateResult{
		Role: string(role), File: role.File(), Subject: all[0].Subject.String(), Serial: all[0].SerialNumber.Text(16), SHA256: transcript.Digest(all[0].Raw), NotAfter: all[0].NotAfter,
	})
}

const (
	maxCertificates = 8
	maxPEM          = 256 << 10 // bytes of a file with them
)

func readCertificates(path string) ([]*x509.Certificate, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(raw) > maxPEM {
		return nil, fmt.Errorf("%s: more than %d bytes", path, maxPEM)
	}
	var out []*x509.Certificate
	for block, rest := pem.Decode(raw); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil || block.Type != "CERTIFICATE" {
			return nil, errors.Join(fmt.Errorf("%s: a block of type %s", path, block.Type), err)
		}
		if out = append(out, c); len(out) > maxCertificates {
			return nil, fmt.Errorf("%s: more than %d certificates", path, maxCertificates)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s has no certificate in it", path)
	}
	return out, nil
}

// received says all that is wrong with the certificate of our CA key that was made
// elsewhere, or before, and with those above it.
func received(p Plan, all []*x509.Certificate, pub crypto.PublicKey, now time.Time) (wrong []string) {
	must := func(ok bool, say string) {
		if !ok {
			wrong = append(wrong, say)
		}
	}
	ca := all[0]
	spki, err := x509.MarshalPKIXPublicKey(pub)
	must(err == nil && bytes.Equal(ca.RawSubjectPublicKeyInfo, spki), "it is about another key")
	must(ca.BasicConstraintsValid && ca.IsCA, "it is no CA's")
	must(ca.KeyUsage == usageOf(plan.RoleCA), "its key usage is not keyCertSign and cRLSign alone")
	must(len(ca.ExtKeyUsage)+len(ca.UnknownExtKeyUsage) == 0, "it has extended key usages")
	must(len(ca.SubjectKeyId) > 0, "it has no subjectKeyIdentifier")
	must(len(ca.UnhandledCriticalExtensions) == 0, "it has a critical extension that nobody knows")
	must(!now.Before(ca.NotBefore) && now.Before(ca.NotAfter), "it is not valid now")
	if p.Kind == plan.Change {
		must(transcript.Digest(ca.Raw) == p.CASHA256, "it is not the one whose SHA-256 the plan names")
		return wrong
	}
	must(ca.MaxPathLen == 0 && ca.MaxPathLenZero, "its pathLenConstraint is not 0")
	c, _ := p.Certificate(plan.RoleCA)
	subject, err := c.Subject.DER()
	must(err == nil && bytes.Equal(ca.RawSubject, subject), "its subject is not that of the request")
	for i, below := range all {
		above := below // the last one signs itself
		if i+1 < len(all) {
			above = all[i+1]
		}
		must(below.CheckSignatureFrom(above) == nil, fmt.Sprintf("certificate %d, %s, was not signed by the next one, or by itself if it is the last", i+1, below.Subject))
		must(!below.NotAfter.After(above.NotAfter), fmt.Sprintf("certificate %d outlives the next one", i+1))
	}
	must(len(all) > 1, "it signs itself")
	for _, leaf := range p.Certificates {
		end := now.Add(leaf.Validity)
		must(leaf.Role == plan.RoleCA || !end.After(ca.NotAfter), fmt.Sprintf("the planned certificate %s would outlive it", leaf.Role))
	}
	return wrong
}

// receivedThen looks at a recorded certificate as it was looked at when it came.
func (v *verifier) receivedThen(s transcript.Step) error {
	var all []*x509.Certificate
	for _, text := range s.End.Object.Strings("chain") {
		der, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return err
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		all = append(all, c)
	}
	at, err := time.Parse(timeFormat, s.End.Object.String("time"))
	if err != nil || len(all) == 0 || at.After(s.End.Time) || at.Before(s.Begin.Time.Add(-time.Second)) {
		return errors.Join(errors.New("its time or its certificates are missing"), err)
	}
	if wrong := received(v.plan, all, v.keys[Role(s.Of)], at); len(wrong) > 0 {
		return errors.New(strings.Join(wrong, "; "))
	}
	if transcript.Digest(all[0].Raw) != s.End.Object.String("sha256") {
		return errors.New("the certificate has another digest")
	}
	v.certs[Role(s.Of)] = all[0]
	return nil
}

// maxSignature is the size of the largest file with a person's signature, in bytes.
const maxSignature = 16 << 10

// peopleSigned wants a signature of each of the plan's people on its file. A
// rehearsal needs none.
func (r *run) peopleSigned() error {
	if r.opts.Rehearse || r.first > 0 {
		return nil // an interrupted ceremony has them in its first record
	}
	for _, who := range r.plan.People {
		path := r.opts.Signatures[who.Name]
		hint := fmt.Sprintf("%s signs with: ssh-keygen -Y sign -n %s -f KEY PLAN; then --signature %s=PLAN.sig", who.Name, people.ForPlan, who.Name)
		if path == "" {
			return &Error{Err: fmt.Errorf("the signature of %s (%s) on the plan is missing", who.Name, who.Role), Hint: hint}
		}
		sig, err := readSignature(path)
		if err == nil {
			err = who.Key.Verify(sig, people.ForPlan, []byte(r.plan.Text))
		}
		if err != nil {
			return &Error{Err: fmt.Errorf("%s (%s): %w", who.Name, who.Role, err), Hint: hint}
		}
		r.signed = append(r.signed, audit.Object{"name": who.Name, "role": who.Role, "key": who.Key.Fingerprint(), "signature": string(sig)})
	}
	return nil
}

func readSignature(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err == nil && info.Size() > maxSignature {
		err = fmt.Errorf("%s: more than %d bytes", path, maxSignature)
	}
	if err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

// signTranscript has the audit key sign the closed transcript. A signature is
// whole in its file or not there.
func (r *run) signTranscript(ctx context.Context) error {
	if r.keys[plan.RoleAudit] == nil || r.plan.Kind == plan.Erase {
		return nil // there is no audit key, or not any more
	}
	raw, err := load(r.out.path(TranscriptFile))
	if err != nil {
		return err
	}
	key, err := r.key(ctx, plan.RoleAudit)
	if err != nil {
		return err
	}
	digest := sha256.Sum256(raw)
	sig, err := key.With(ctx).Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		return &Error{Step: "sign", Err: err, Hint: "the ceremony is complete, but not its signature: run the same plan again with the same --out"}
	}
	unfinished := SignatureFile + ".new"
	if err := os.Remove(r.out.path(unfinished)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := r.out.write(unfinished, false, sig); err != nil {
		return err
	}
	if err := os.Rename(r.out.path(unfinished), r.out.path(SignatureFile)); err != nil {
		return err
	}
	r.opts.Progress("sign", SignatureFile+" written by the audit key")
	return r.out.sync()
}

// peopleSigned checks the people's signatures that were recorded at the start.
func (v *verifier) peopleSigned() (string, error) {
	recorded := v.steps[0].Begin.Object.Objects("people")
	if v.report.Rehearsal {
		return "not asked for in a rehearsal", nil
	}
	if len(recorded) != len(v.plan.People) {
		return "", fmt.Errorf("%d signatures of %d people", len(recorded), len(v.plan.People))
	}
	var names []string
	for i, who := range v.plan.People {
		if recorded[i].String("name") != who.Name {
			return "", fmt.Errorf("the signature of %s is missing", who.Name)
		}
		if err := who.Key.Verify([]byte(recorded[i].String("signature")), people.ForPlan, []byte(v.plan.Text)); err != nil {
			return "", fmt.Errorf("%s: %w", who.Name, err)
		}
		names = append(names, who.Name+" ("+who.Role+")")
	}
	if len(names) == 0 {
		return "the plan names nobody", nil
	}
	return strings.Join(names, ", "), nil
}

// signatures checks those signatures on the transcript that lie beside it: of the
// audit key, and of each person in a file transcript.NAME.sig.
func (v *verifier) signatures(raw []byte) (string, error) {
	var good, missing []string
	sig, err := readSignature(filepath.Join(v.dir, SignatureFile))
	switch pub, ok := v.keys[plan.RoleAudit].(*ecdsa.PublicKey); {
	case errors.Is(err, fs.ErrNotExist):
		missing = append(missing, "the audit key")
	case err != nil:
		return "", err
	default:
		digest := sha256.Sum256(raw)
		if !ok || !ecdsa.VerifyASN1(pub, digest[:], sig) {
			return "", fmt.Errorf("%s is no signature of the audit key on this transcript", SignatureFile)
		}
		good = append(good, "the audit key")
	}
	for _, who := range v.plan.People {
		sig, err := readSignature(filepath.Join(v.dir, "transcript."+who.Name+".sig"))
		if errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, who.Name)
			continue
		}
		if err == nil {
			err = who.Key.Verify(sig, people.ForTranscript, raw)
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w", who.Name, err)
		}
		good = append(good, who.Name)
	}
	say := "signed by " + strings.Join(good, ", ")
	if len(good) == 0 {
		say = "no signature is here"
	}
	if len(missing) > 0 {
		say += "; not here: " + strings.Join(missing, ", ")
	}
	return say, nil
}
