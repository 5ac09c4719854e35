package probe

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// checkCA looks at GetCACert.
func (p *prober) checkCA(ctx context.Context) error {
	a, err := p.get(ctx, "operation=GetCACert")
	if err != nil {
		return err
	}
	p.cached(a, "GetCACert")
	if a.status != http.StatusOK {
		p.add(Wrong, "ca.answer", "HTTP status %d: %.80s", a.status, a.body)
		return nil
	}
	fits, exact := kindOf(a.kind, typeCA, typeRA)
	p.certs, err = p.parseCA(a)
	if err != nil || len(p.certs) == 0 {
		p.add(Wrong, "ca.answer", "%d certificates: %v", len(p.certs), err)
		return nil
	}
	p.add(OK, "ca.answer", "%d certificates", len(p.certs))
	bare := a.body[0] == 0x30 && bytes.Equal(p.certs[0].Raw, a.body)
	switch {
	case !fits, bare != isType(a.kind, typeCA):
		p.add(Wrong, "ca.type", "%q for %s", a.kind, map[bool]string{true: "one certificate", false: "a list"}[bare])
	case !exact:
		p.add(Weak, "ca.type", "%q", a.kind)
	default:
		p.add(OK, "ca.type", "%s", a.kind)
	}
	p.certificates(time.Now())
	p.families()
	return p.identifiers(ctx, a.body)
}

func isType(kind, want string) bool {
	fits, _ := kindOf(kind, want)
	return fits
}

// parseCA reads one certificate or a list, whatever the type says.
func (p *prober) parseCA(a *answer) ([]*x509.Certificate, error) {
	if c, err := x509.ParseCertificate(a.body); err == nil {
		return []*x509.Certificate{c}, nil
	}
	return parseCerts(a.body)
}

// certificates looks at what the certificates say.
func (p *prober) certificates(now time.Time) {
	var ras, cas, roots int
	var order, usages, keys, dates, chain []string
	signs, deciphers := false, false
	for i, c := range p.certs {
		name := fmt.Sprintf("%d (%s)", i+1, c.Subject)
		if c.IsCA {
			cas++
		} else {
			ras++
			if cas > 0 {
				order = append(order, name+" stands after a CA")
			}
		}
		if selfSigned(c) {
			roots++
		} else if !slices.ContainsFunc(p.certs, func(o *x509.Certificate) bool { return issued(o, c) }) && !c.IsCA {
			chain = append(chain, name+" is signed by none of them")
		}
		if c.IsCA && i > 0 && p.certs[i-1].IsCA && !issued(c, p.certs[i-1]) && !selfSigned(p.certs[i-1]) {
			order = append(order, name+" did not sign the CA before it")
		}
		signs = signs || c.KeyUsage&x509.KeyUsageDigitalSignature != 0
		deciphers = deciphers || c.KeyUsage&(x509.KeyUsageKeyEncipherment|x509.KeyUsageDataEncipherment) != 0
		keys = append(keys, weakKey(name, c)...)
		switch left := c.NotAfter.Sub(now); {
		case left < 0:
			dates = append(dates, name+" is over")
		case c.NotBefore.After(now):
			dates = append(dates, name+" has not begun")
		case left < 30*24*time.Hour:
			dates = append(dates, fmt.Sprintf("%s ends in %d days", name, int(left.Hours()/24)))
		}
	}
	if !signs {
		usages = append(usages, "nobody says digitalSignature")
	}
	if !deciphers {
		usages = append(usages, "nobody says keyEncipherment")
	}
	if c := p.recipient(); c == nil {
		keys = append(keys, "nobody has an RSA key to encipher to")
	} else if k, ok := c.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() < 2048 {
		keys = append(keys, fmt.Sprintf("the recipient has RSA of %d bits", k.N.BitLen()))
	}
	p.some(Weak, "ca.order", order, fmt.Sprintf("%d RA, %d CA", ras, cas))
	p.some(Wrong, "ca.usages", usages, "there")
	p.some(Weak, "ca.key", keys, "good")
	p.some(Weak, "ca.validity", dates, "good")
	p.some(Wrong, "ca.chain", chain, "complete")
	if roots == 0 {
		p.add(Weak, "ca.root", "not there")
	} else {
		p.add(OK, "ca.root", "there")
	}
}

func weakKey(name string, c *x509.Certificate) (out []string) {
	if k, ok := c.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() < 2048 {
		out = append(out, fmt.Sprintf("%s has RSA of %d bits", name, k.N.BitLen()))
	}
	switch c.SignatureAlgorithm {
	case x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.MD5WithRSA, x509.DSAWithSHA1:
		if !selfSigned(c) { // a root's own signature proves nothing
			out = append(out, fmt.Sprintf("%s is signed with %s", name, c.SignatureAlgorithm))
		}
	}
	return out
}

// recipient is whom a careful client would encipher to; nil if there is nobody.
func (p *prober) recipient() *x509.Certificate {
	rsaKey := func(c *x509.Certificate) bool { _, ok := c.PublicKey.(*rsa.PublicKey); return ok }
	for _, fits := range []func(*x509.Certificate) bool{
		func(c *x509.Certificate) bool { return !c.IsCA && c.KeyUsage&x509.KeyUsageKeyEncipherment != 0 },
		func(c *x509.Certificate) bool { return c.KeyUsage&x509.KeyUsageKeyEncipherment != 0 },
		func(c *x509.Certificate) bool { return !c.IsCA },
		func(*x509.Certificate) bool { return true },
	} {
		if i := slices.IndexFunc(p.certs, func(c *x509.Certificate) bool { return rsaKey(c) && fits(c) }); i >= 0 {
			return p.certs[i]
		}
	}
	return nil
}

// identifiers asks GetCACert as clients do.
func (p *prober) identifiers(ctx context.Context, plain []byte) error {
	var wrong []string
	for _, ident := range []string{"0", "CAIdentifier", "1"} {
		a, err := p.get(ctx, "operation=GetCACert&message="+ident)
		if err != nil {
			return err
		}
		same := a.status == http.StatusOK && bytes.Equal(a.body, plain)
		switch {
		case a.status >= 500, a.status == 0:
			wrong = append(wrong, fmt.Sprintf("message=%s: HTTP status %d", ident, a.status))
		case !same && ident != "1":
			wrong = append(wrong, fmt.Sprintf("message=%s: another answer, HTTP status %d", ident, a.status))
		}
	}
	p.some(Weak, "ca.identifier", wrong, "an unknown one changes nothing")
	return nil
}

func issued(ca, c *x509.Certificate) bool {
	return ca.IsCA && bytes.Equal(ca.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(ca) == nil
}

// selfSigned looks at the name alone where Go knows no signature of that age.
func selfSigned(c *x509.Certificate) bool {
	return c.IsCA && bytes.Equal(c.RawSubject, c.RawIssuer)
}

// oidRequestAgent is Microsoft's Certificate Request Agent.
var oidRequestAgent = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 1}

// isRA reports whether Windows takes a certificate for an RA's.
func isRA(c *x509.Certificate) bool {
	return slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || slices.ContainsFunc(c.UnknownExtKeyUsage, oidRequestAgent.Equal)
}
