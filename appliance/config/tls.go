package config

import (
	"fmt"
	"slices"
	"time"

	"github.com/postern-pki/postern/policy"
)

func (l *loader) tls() {
	t := &l.c.TLS
	l.abs(&t.Certificate)
	l.abs(&t.PrivateKey)
	l.abs(&t.KeyFile)
	l.c.TLSValidity = l.duration("tls.validity", t.Validity, 90*24*time.Hour, 24*time.Hour, 398*24*time.Hour)
	switch t.Mode {
	case "internal":
		if t.KeyFile == "" {
			l.use("tls.key", t.Key, "tls")
		} else if t.Key != "" {
			l.fault("tls.key_file", "is in place of tls.key: name one of them", "")
		}
		var known []string
		for _, i := range l.c.File.Issuers {
			known = append(known, i.Name)
		}
		if l.need("tls.issuer", t.Issuer) && !slices.Contains(known, t.Issuer) {
			l.fault("tls.issuer", fmt.Sprintf("issuer %q is defined nowhere", t.Issuer), policy.Nearest(t.Issuer, known))
		}
		if len(t.Names) == 0 {
			l.fault("tls.names", "is missing: the names that devices connect to", "")
		}
		if t.PrivateKey != "" {
			l.fault("tls.private_key", "in mode internal the key is on the token", "")
		}
	case "files":
		l.need("tls.certificate", t.Certificate)
		l.need("tls.private_key", t.PrivateKey)
	case "acme":
		l.acme()
	default:
		modes := []string{"internal", "files", "acme"}
		l.fault("tls.mode", "is one of internal, files, acme", policy.Nearest(t.Mode, modes))
	}
	if t.Mode != "internal" && t.KeyFile != "" {
		l.fault("tls.key_file", "is for mode internal", "")
	}
	for path, value := range map[string]string{"tls.directory": t.Directory, "tls.roots": t.Roots, "tls.email": t.Email} {
		if t.Mode != "acme" && value != "" {
			l.fault(path, "is for mode acme", "")
		}
	}
}
