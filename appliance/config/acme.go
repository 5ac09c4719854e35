package config

import (
	"crypto/x509"
	"encoding/pem"
	"net/mail"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

const (
	maxRoots     = 1 << 20
	maxACMENames = 100 // what directories take in one order
)

// nameForm is a DNS name as a directory validates it by tls-alpn-01: no wildcard,
// no final dot, no underscore.
var nameForm = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// courier checks the folder of the courier, which is nobody else's.
func (l *loader) courier() {
	k := &l.c.Courier
	if k.State == "" && l.c.State != "" {
		k.State = filepath.Join(filepath.Dir(l.c.State), "courier")
	}
	l.abs(&k.State)
	if k.State != "" && (k.State == l.c.State || k.State == l.c.KeyholderState) {
		l.fault("courier.state", "has to be a folder of its own: neither state nor keyholder.state", "")
	}
	l.c.CourierState = k.State
}

// acme checks what mode acme needs: everything is said, and nothing is asked of a
// public CA because it was left out.
func (l *loader) acme() {
	t := &l.c.TLS
	if l.need("tls.directory", t.Directory) {
		u, err := url.Parse(t.Directory)
		if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			l.fault("tls.directory", "has to be an https URL, such as https://acme.corp.example/directory", "")
		}
	}
	l.abs(&t.Roots)
	if l.need("tls.roots", t.Roots) {
		l.c.ACMERoots = l.roots("tls.roots", t.Roots)
	}
	if t.Email != "" {
		if a, err := mail.ParseAddress(t.Email); err != nil || a.Address != t.Email {
			l.fault("tls.email", "has to be a mail address, such as pki@corp.example", "")
		}
	}
	if len(t.Names) == 0 || len(t.Names) > maxACMENames {
		l.fault("tls.names", "has 1 to 100 names: those that devices connect to", "")
	}
	for _, n := range t.Names {
		ip, err := netip.ParseAddr(n)
		if address := err == nil && ip.Zone() == ""; !address && (len(n) > 253 || !nameForm.MatchString(n)) {
			l.fault("tls.names", n+" is no lowercase DNS name with a dot, and no address: a directory validates nothing else by tls-alpn-01", "")
		}
	}
	for path, value := range map[string]string{
		"tls.key": t.Key, "tls.issuer": t.Issuer, "tls.validity": t.Validity, "tls.certificate": t.Certificate, "tls.private_key": t.PrivateKey,
	} {
		if value != "" {
			l.fault(path, "in mode acme the directory says what is issued, for a software key that the service makes", "")
		}
	}
}

// roots reads certificates that are trusted: one or more as PEM, and nothing else.
func (l *loader) roots(path, file string) *x509.CertPool {
	st, err := os.Stat(file)
	if err == nil && st.Size() > maxRoots {
		l.fault(path, "is larger than 1 MiB", "")
		return nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		l.fault(path, "cannot be read: "+reason(err), "")
		return nil
	}
	pool, n := x509.NewCertPool(), 0
	for strings.TrimSpace(string(data)) != "" {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil || block.Type != "CERTIFICATE" {
			l.fault(path, "has to hold PEM certificates and nothing else", "")
			return nil
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			l.fault(path, "holds something that is not a certificate", "")
			return nil
		}
		pool.AddCert(c)
		n++
	}
	if n == 0 {
		l.fault(path, "is empty", "")
	}
	return pool
}
