package config

import (
	"crypto/x509"
	"regexp"
	"time"

	"github.com/postern-pki/postern/hsm/issuer"
)

// LoadedStatus is what the world is told of a CA's certificates.
type LoadedStatus struct {
	Every    time.Duration // from one CRL to the next
	Validity time.Duration // of a CRL
	OCSP     *x509.Certificate
	Answers  time.Duration // how long an OCSP answer is good
}

// issuerForm is what can stand in a URL and be the name of a file.
var issuerForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// status checks what is said of CRLs and OCSP.
func (l *loader) status(at string, i LoadedIssuer, crl CRL) (out LoadedStatus) {
	const day = 24 * time.Hour
	if i.Name != "" && !issuerForm.MatchString(i.Name) {
		l.fault(at+".name", "has at most 64 letters, digits, dots, - and _: it stands in the URLs of CRLs", "")
	}
	out.Every = l.duration(at+".crl.every", crl.Every, time.Hour, time.Minute, 30*day)
	out.Validity = l.duration(at+".crl.validity", crl.Validity, 7*day, time.Hour, 90*day)
	if out.Every > out.Validity/2 {
		l.fault(at+".crl.every", "is more than half of crl.validity: a list that is missed once would leave devices without", "")
	}
	o := i.Keys.OCSP
	out.Answers = l.duration(at+".ocsp.validity", o.Validity, day, 10*time.Minute, 30*day)
	if o == (OCSP{}) {
		return out
	}
	l.use(at+".ocsp.key", o.Key, "ocsp")
	if out.OCSP = l.certificate(at+".ocsp.certificate", o.Certificate); out.OCSP == nil || i.CA == nil {
		return out
	}
	if err := issuer.CheckResponder(out.OCSP, i.CA); err != nil {
		l.fault(at+".ocsp.certificate", "has to be issued by the issuer's CA for a P-256 key, with digitalSignature, OCSPSigning and id-pkix-ocsp-nocheck alone", "")
	}
	return out
}
