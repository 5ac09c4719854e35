package probe

import (
	"crypto/rsa"
	"crypto/x509"
	"slices"
)

// usage reports whether a certificate says so; one without the extension says all.
func usage(c *x509.Certificate, u x509.KeyUsage) bool { return c.KeyUsage == 0 || c.KeyUsage&u != 0 }

// families asks what the clients in the field would select.
func (p *prober) families() {
	for _, f := range []struct {
		id     string
		faults func() []string
	}{
		{"client.apple", p.apple}, {"client.windows", p.windows}, {"client.jscep", p.jscep}, {"client.sscep", p.sscep},
		{"client.strongswan", p.strongSwan}, {"client.certmonger", p.certmonger},
	} {
		p.some(Weak, f.id, f.faults(), "can select")
	}
	p.some(Info, "client.micromdm", p.micromdm(), "can select")
}

// split returns the RA certificates and the others.
func (p *prober) split() (ras, cas []*x509.Certificate) {
	for _, c := range p.certs {
		if c.IsCA {
			cas = append(cas, c)
		} else {
			ras = append(ras, c)
		}
	}
	return ras, cas
}

const (
	signing      = x509.KeyUsageDigitalSignature
	enciphering  = x509.KeyUsageKeyEncipherment
	encipherData = x509.KeyUsageDataEncipherment
)

func (p *prober) apple() (out []string) {
	ras, cas := p.split()
	if n := len(slices.DeleteFunc(slices.Clone(cas), func(c *x509.Certificate) bool { return !selfSigned(c) })); n > 1 {
		out = append(out, "several roots")
	}
	if len(ras) == 0 {
		if !slices.ContainsFunc(cas, func(c *x509.Certificate) bool { return usage(c, signing) && usage(c, enciphering) }) {
			out = append(out, "the CA, without an RA, lacks a usage")
		}
		return out
	}
	if slices.ContainsFunc(cas, func(c *x509.Certificate) bool { return c.KeyUsage&signing != 0 }) {
		out = append(out, "a CA says digitalSignature beside an RA")
	}
	both := slices.ContainsFunc(ras, func(c *x509.Certificate) bool { return c.KeyUsage&signing != 0 && c.KeyUsage&enciphering != 0 })
	sign := slices.ContainsFunc(ras, func(c *x509.Certificate) bool { return c.KeyUsage&signing != 0 && c.KeyUsage&enciphering == 0 })
	open := slices.ContainsFunc(ras, func(c *x509.Certificate) bool { return c.KeyUsage&signing == 0 && c.KeyUsage&enciphering != 0 })
	if apart, alone := sign && open, both && len(ras) == 1; !apart && !alone {
		out = append(out, "the RA's usages are neither disjoint nor in one certificate")
	}
	return out
}

func (p *prober) windows() (out []string) {
	ras, cas := p.split()
	if !slices.ContainsFunc(cas, selfSigned) {
		out = append(out, "no root")
	}
	if len(ras) == 0 {
		if !slices.ContainsFunc(cas, func(c *x509.Certificate) bool { return c.KeyUsage&enciphering != 0 }) {
			out = append(out, "the CA, without an RA, lacks keyEncipherment")
		}
		return out
	}
	for what, u := range map[string]x509.KeyUsage{"keyEncipherment": enciphering, "digitalSignature": signing} {
		if !slices.ContainsFunc(ras, func(c *x509.Certificate) bool { return c.KeyUsage&u != 0 && isRA(c) }) {
			out = append(out, "no RA certificate with "+what+" and an extended usage of an RA")
		}
	}
	slices.Sort(out)
	return out
}

func (p *prober) jscep() (out []string) {
	ras, cas := p.split()
	pick := func(uses ...x509.KeyUsage) *x509.Certificate {
		for _, u := range uses {
			if i := slices.IndexFunc(ras, func(c *x509.Certificate) bool { return c.KeyUsage&u != 0 }); i >= 0 {
				return ras[i]
			}
		}
		if len(cas) > 0 {
			return cas[0]
		}
		return nil
	}
	to, from := pick(enciphering, encipherData), pick(signing)
	if to == nil || from == nil {
		return append(out, "nobody to select")
	}
	if _, ok := to.PublicKey.(*rsa.PublicKey); !ok {
		out = append(out, "the recipient is not RSA")
	}
	for _, c := range []*x509.Certificate{to, from} {
		if !c.IsCA && !slices.ContainsFunc(cas, func(ca *x509.Certificate) bool { return issued(ca, c) }) {
			out = append(out, "the RA is not directly below the CA")
			break
		}
	}
	if !p.has("AES") || !p.has("SHA-256") {
		out = append(out, "without AES and SHA-256 by name it takes DES and MD5")
	}
	return out
}

func (p *prober) sscep() (out []string) {
	if !slices.ContainsFunc(p.certs, func(c *x509.Certificate) bool {
		_, ok := c.PublicKey.(*rsa.PublicKey)
		return ok && usage(c, enciphering)
	}) {
		out = append(out, "no recipient by key usage")
	}
	return out
}

func (p *prober) strongSwan() (out []string) {
	_, cas := p.split()
	if !slices.ContainsFunc(cas, selfSigned) {
		out = append(out, "no root")
	}
	if !p.has("SHA-256") && !p.has("SCEPStandard") {
		out = append(out, "neither SHA-256 nor SCEPStandard")
	}
	if p.has("AES") && !p.has("SHA-384") {
		out = append(out, "AES without SHA-384")
	}
	return out
}

func (p *prober) certmonger() (out []string) {
	ras, _ := p.split()
	to := p.recipient()
	for _, c := range ras {
		if c.KeyUsage&signing != 0 && c.KeyUsage&enciphering != 0 && to != nil && !c.Equal(to) {
			out = append(out, "it enciphers to the signing RA, which says keyEncipherment")
		}
	}
	if n := len(p.caps); n > 64 {
		out = append(out, "too many capabilities")
	}
	return out
}

func (p *prober) micromdm() (out []string) {
	for _, c := range p.certs {
		if _, ok := c.PublicKey.(*rsa.PublicKey); !ok {
			return append(out, "needs a selector: not all keys are RSA")
		}
	}
	return out
}
