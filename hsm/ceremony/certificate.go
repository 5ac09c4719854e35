package ceremony

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/ceremony/plan"
	"github.com/postern-pki/postern/hsm/ceremony/transcript"
	issued "github.com/postern-pki/postern/hsm/lint"
)

var (
	oidRequestAgent = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 1}
	oidSKI          = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidKeyUsage     = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidSAN          = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidConstraints  = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidAKI          = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidNoCheck      = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5} // RFC 6960, section 4.2.2.2.1
	oidExtUsage     = asn1.ObjectIdentifier{2, 5, 29, 37}
)

// usageOf returns the one set of key usages that a role may have.
func usageOf(r Role) x509.KeyUsage {
	switch {
	case r.IsCA():
		return x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	case r == plan.RoleRA:
		return x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	case r == plan.RoleRADecrypt:
		return x509.KeyUsageKeyEncipherment
	default:
		return x509.KeyUsageDigitalSignature
	}
}

// pathLen is the pathLenConstraint of a role's certificate, as package x509 has it.
func pathLen(r Role) (length int, zero bool) {
	switch {
	case r == plan.RoleRoot:
		return 1, false // the CA, and nothing below it
	case r.IsCA():
		return 0, true
	default:
		return -1, false
	}
}

// A period is when the ceremony began and how far its certificates reach back.
type period struct {
	start    time.Time
	backdate time.Duration
}

func (p period) notBefore() time.Time { return p.start.Truncate(time.Second).Add(-p.backdate) }
func (p period) notAfter(v time.Duration) time.Time {
	return p.start.Truncate(time.Second).Add(v)
}

// An authority is a CA of the ceremony: the token's, or that of the operators.
type authority struct {
	signer    crypto.Signer
	throwAway crypto.Signer // of the same kind, for the drafts
	cert      *x509.Certificate
}

// newAuthority makes the throw-away key that fits a CA's own.
func newAuthority(signer crypto.Signer) (*authority, error) {
	a := &authority{signer: signer}
	var err error
	switch pub := signer.Public().(type) {
	case *rsa.PublicKey:
		a.throwAway, err = rsa.GenerateKey(rand.Reader, pub.N.BitLen())
	case *ecdsa.PublicKey:
		a.throwAway, err = ecdsa.GenerateKey(pub.Curve, rand.Reader)
	default:
		err = fmt.Errorf("no CA has a %T", pub)
	}
	return a, err
}

// signatureAlgorithm is the one that fits a CA's key.
func signatureAlgorithm(pub crypto.PublicKey) x509.SignatureAlgorithm {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return x509.SHA256WithRSA
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P384() {
			return x509.ECDSAWithSHA384
		}
		return x509.ECDSAWithSHA256
	default:
		return x509.UnknownSignatureAlgorithm
	}
}

// keyID is method 1 of RFC 7093, section 2: SHA-256 of the key's bits, cut to 160.
func keyID(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	var spki struct {
		Algorithm asn1.RawValue
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &spki); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(spki.Key.RightAlign())
	return sum[:20], nil
}

func (a *authority) template(c plan.Certificate, pub crypto.PublicKey, when period) (*x509.Certificate, error) {
	subject, err := c.Subject.DER()
	if err != nil {
		return nil, err
	}
	ski, err := keyID(pub)
	if err != nil {
		return nil, err
	}
	serial := make([]byte, 16)
	if _, err := rand.Read(serial); err != nil {
		return nil, err
	}
	serial[0] = serial[0]&0x7f | 0x40 // positive, and always of one length
	t := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial), RawSubject: subject, SubjectKeyId: ski,
		NotBefore: when.notBefore(), NotAfter: when.notAfter(c.Validity),
		KeyUsage: usageOf(c.Role), BasicConstraintsValid: true, IsCA: c.Role.IsCA(),
		DNSNames: c.Names.DNS, SignatureAlgorithm: signatureAlgorithm(a.signer.Public()),
	}
	t.MaxPathLen, t.MaxPathLenZero = pathLen(c.Role)
	for _, ip := range c.Names.IP {
		t.IPAddresses = append(t.IPAddresses, net.IP(ip.AsSlice()))
	}
	for _, u := range c.Extended {
		switch u {
		case plan.ServerAuth:
			t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		case plan.ClientAuth:
			t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
		case plan.OCSPSigning:
			t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning)
			t.ExtraExtensions = append(t.ExtraExtensions, pkix.Extension{Id: oidNoCheck, Value: asn1.NullBytes}) // nobody answers for who answers
		case plan.RequestAgent:
			t.UnknownExtKeyUsage = append(t.UnknownExtKeyUsage, oidRequestAgent)
		default:
			return nil, fmt.Errorf("extended key usage %q is not known", u)
		}
	}
	return t, nil
}

// sign issues t for pub: by the throw-away key for a draft, else by the CA's own.
// The bytes that are signed are the same.
func (a *authority) sign(t *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	parent := *t
	if a.cert != nil {
		parent = *a.cert
	}
	parent.PublicKey = nil // else a draft would be refused; the signature is verified below us
	der, err := x509.CreateCertificate(rand.Reader, t, &parent, pub, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// lint compares a certificate, or a draft of it, with its plan, and says all
// that is wrong. It looks at what was encoded and not at the template. The issuer
// is nil for a certificate that signs itself. The signature is not its business.
func lint(c *x509.Certificate, p plan.Certificate, pub crypto.PublicKey, issuer *x509.Certificate, when period) (wrong []string) {
	must := func(ok bool, say string) {
		if !ok {
			wrong = append(wrong, say)
		}
	}
	subject, err := p.Subject.DER()
	must(err == nil && bytes.Equal(c.RawSubject, subject), "the subject is not that of the plan")
	spki, err := x509.MarshalPKIXPublicKey(pub)
	must(err == nil && bytes.Equal(c.RawSubjectPublicKeyInfo, spki), "the key is another one")
	issuerName, issuerKey, last := c.RawSubject, pub, c.NotAfter
	if issuer != nil {
		issuerName, issuerKey, last = issuer.RawSubject, issuer.PublicKey, issuer.NotAfter
		must(len(issuer.SubjectKeyId) > 0 && bytes.Equal(c.AuthorityKeyId, issuer.SubjectKeyId), "authorityKeyIdentifier is not the issuer's subjectKeyIdentifier")
	}
	must(bytes.Equal(c.RawIssuer, issuerName), "the issuer is another one")
	must(c.SignatureAlgorithm == signatureAlgorithm(issuerKey), "the signature algorithm does not fit the issuer's key")
	must(c.Version == 3, "the version is not 3")
	n := c.SerialNumber.BitLen()
	must(c.SerialNumber.Sign() > 0 && n >= 64 && n <= 159, "the serial is not a positive number of 64 to 159 bits (RFC 5280, section 4.1.2.2)")
	must(c.NotBefore.Equal(when.notBefore()) && c.NotAfter.Equal(when.notAfter(p.Validity)), "the validity is not that of the plan")
	must(!c.NotAfter.After(last), "it outlives its issuer")
	must(c.BasicConstraintsValid && c.IsCA == p.Role.IsCA(), "basicConstraints are wrong")
	length, zero := pathLen(p.Role)
	must(c.MaxPathLen == length && c.MaxPathLenZero == zero, "the pathLenConstraint is not the one of its role")
	must(c.KeyUsage == usageOf(p.Role), "the key usage is not the one of its role")
	must(slices.Equal(usages(c), sorted(p.Extended)), "the extended key usages are not those of the plan")
	must(sameNames(c, p.Names), "the alternative names are not those of the plan")
	id, err := keyID(pub)
	must(err == nil && bytes.Equal(c.SubjectKeyId, id), "subjectKeyIdentifier is not that of the key")
	for _, e := range c.Extensions {
		critical := e.Id.Equal(oidConstraints) || e.Id.Equal(oidKeyUsage)
		noCheck := p.Role == plan.RoleOCSP && e.Id.Equal(oidNoCheck) && bytes.Equal(e.Value, asn1.NullBytes)
		known := critical || noCheck || e.Id.Equal(oidExtUsage) || e.Id.Equal(oidSKI) || e.Id.Equal(oidAKI) || e.Id.Equal(oidSAN)
		must(known && e.Critical == critical, "extension "+e.Id.String()+" is not expected, or wrongly critical")
	}
	checked := slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidNoCheck) })
	must(checked == (p.Role == plan.RoleOCSP), "id-pkix-ocsp-nocheck is missing, or there")
	return append(wrong, asIssued(c, p, issuer)...)
}

// asIssued looks at the bytes to be signed with the checks that the service has for
// every certificate: other code than what built them. They are made for devices: what
// they say of a role that no device has is left out, and compared with the plan above.
func asIssued(c *x509.Certificate, p plan.Certificate, issuer *x509.Certificate) (wrong []string) {
	want := issued.Rules{KeyUsage: usageOf(p.Role), Names: &issued.Names{DNS: p.Names.DNS, IP: p.Names.IP}}
	var other []string
	if p.Role.IsCA() {
		other = append(other, "basic-constraints", "key-usage", "extended-key-usage-present")
	}
	if p.Role == plan.RoleAudit {
		other = append(other, "extended-key-usage-present")
	}
	switch {
	case p.Role == plan.RoleOCSP:
		other = append(other, "extended-key-usage", "extension-unknown")
	case slices.Contains(p.Extended, plan.RequestAgent):
		other = append(other, "extended-key-usage")
	}
	if issuer == nil {
		other = append(other, "subject-not-issuer", "authority-key-identifier")
	} else {
		want.Issuer, want.IssuerSPKI = issuer.RawSubject, issuer.RawSubjectPublicKeyInfo
		want.IssuerNotAfter, want.AuthorityKeyID = issuer.NotAfter, issuer.SubjectKeyId
	}
	for _, f := range issued.Check(c.RawTBSCertificate, want) {
		if !slices.Contains(other, f.Rule) {
			wrong = append(wrong, f.String())
		}
	}
	return wrong
}

func usages(c *x509.Certificate) []plan.ExtendedUsage {
	var out []plan.ExtendedUsage
	for _, u := range c.ExtKeyUsage {
		switch u {
		case x509.ExtKeyUsageServerAuth:
			out = append(out, plan.ServerAuth)
		case x509.ExtKeyUsageClientAuth:
			out = append(out, plan.ClientAuth)
		case x509.ExtKeyUsageOCSPSigning:
			out = append(out, plan.OCSPSigning)
		default:
			out = append(out, plan.ExtendedUsage("number "+strconv.Itoa(int(u))))
		}
	}
	for _, u := range c.UnknownExtKeyUsage {
		if u.Equal(oidRequestAgent) {
			out = append(out, plan.RequestAgent)
		} else {
			out = append(out, plan.ExtendedUsage(u.String()))
		}
	}
	return sorted(out)
}

func sorted(u []plan.ExtendedUsage) []plan.ExtendedUsage {
	u = slices.Clone(u)
	slices.Sort(u)
	return u
}

func sameNames(c *x509.Certificate, n plan.Names) bool {
	if len(c.EmailAddresses)+len(c.URIs) > 0 || len(c.IPAddresses) != len(n.IP) || !slices.Equal(c.DNSNames, n.DNS) {
		return false
	}
	for i, ip := range n.IP {
		if !c.IPAddresses[i].Equal(net.IP(ip.AsSlice())) {
			return false
		}
	}
	return true
}

// verifyIssued checks the signature and the chain in Go.
func verifyIssued(c, issuer *x509.Certificate) error { return c.CheckSignatureFrom(cmp.Or(issuer, c)) }

// opensslVerify has the openssl binary look at the chain too: other code, by
// other people. Both certificates reach it through descriptors.
func opensslVerify(ctx context.Context, binary string, c *x509.Certificate, above []*x509.Certificate, at time.Time) error {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = read.Close() }()
	for _, a := range above { // far less than a pipe holds
		_, werr := write.Write(certificatePEM(a.Raw))
		err = errors.Join(err, werr)
	}
	if err = errors.Join(err, write.Close()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "verify", "-x509_strict", "-check_ss_sig", "-no-CApath", "-no-CAstore", //nolint:gosec // the path is that of LookPath
		"-attime", strconv.FormatInt(at.Unix(), 10), "-CAfile", "/dev/fd/3")
	cmd.Stdin = bytes.NewReader(certificatePEM(c.Raw))
	cmd.ExtraFiles, cmd.Env = []*os.File{read}, []string{"LC_ALL=C"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("openssl verify: %w: %s", err, plan.CutBytes(strings.ToValidUTF8(string(bytes.TrimSpace(out)), "?"), 512))
	}
	return nil
}

func isAlgorithm(pub crypto.PublicKey, want hsm.Algorithm) bool {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return want.IsRSA() && k.N.BitLen() == want.Bits() && k.E == 65537
	case *ecdsa.PublicKey:
		return k.Curve == elliptic.P256() && want == hsm.P256 || k.Curve == elliptic.P384() && want == hsm.P384
	default:
		return false
	}
}

// certificates looks at the recorded certificates as their drafts were looked at,
// and verifies their signatures.
func (v *verifier) certificates() (string, error) {
	drafts, openssl := map[string]string{}, 0
	for _, s := range v.steps {
		switch s.Name {
		case plan.StepReceive:
			if err := v.receivedThen(s); err != nil {
				return "", fmt.Errorf("%s: %w", s.Of, err)
			}
		case plan.StepLint:
			drafts[s.Of] = s.End.Object.String("tbs_sha256")
		}
		if s.Name != plan.StepCertificate {
			continue
		}
		ob := s.End.Object
		p, _ := v.plan.Certificate(Role(s.Of))
		der, err := base64.StdEncoding.DecodeString(ob.String("certificate"))
		if err != nil || transcript.Digest(der) != ob.String("sha256") {
			return "", fmt.Errorf("%s: the certificate has another digest", p.Role)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return "", fmt.Errorf("%s: %w", p.Role, err)
		}
		if sum := transcript.Digest(c.RawTBSCertificate); drafts[s.Of] != sum || s.Begin.Object.String("tbs_sha256") != sum {
			return "", fmt.Errorf("%s: what was signed is not what was looked at", p.Role)
		}
		issuer := v.certs[v.plan.Issuer(p.Role)]
		if (issuer == nil) != (v.plan.Issuer(p.Role) == p.Role) {
			return "", fmt.Errorf("%s: its issuer has no certificate", p.Role)
		}
		if wrong := lint(c, p, v.keys[p.Role], issuer, v.when); len(wrong) > 0 {
			return "", fmt.Errorf("%s: %s", p.Role, strings.Join(wrong, "; "))
		}
		if err := verifyIssued(c, issuer); err != nil {
			return "", fmt.Errorf("%s: %w", p.Role, err)
		}
		if ob.String("openssl") == "verified" {
			openssl++
		}
		v.certs[p.Role] = c
	}
	return fmt.Sprintf("%d certificates; openssl saw %d of them at the time", len(v.certs), openssl), nil
}
