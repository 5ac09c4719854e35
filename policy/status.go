package policy

import (
	"net/url"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Status is what a certificate says of where its own status is: URLs, in order. The
// zero value says nothing.
type Status struct {
	CRL       []string // CRL distribution points (RFC 5280, section 4.2.1.13)
	OCSP      []string // OCSP responders (section 4.2.2.1)
	CAIssuers []string // the CA's certificate
}

func (s Status) clone() Status {
	return Status{slices.Clone(s.CRL), slices.Clone(s.OCSP), slices.Clone(s.CAIssuers)}
}

// Bounds of URLs in a certificate.
const (
	maxURLs = 4
	maxURL  = 255
)

// status reads where devices' peers find out about a certificate. Few of them fetch that
// over https, and those that do may need another certificate's status to trust it: an
// https URL is refused unless the profile says that it is meant.
func (l *loader) status(c *compiled, s section) {
	n := s.get("status")
	if n == nil {
		return
	}
	m := l.mapping(n, s.at("status"), keys{may: []string{"crl", "ocsp", "ca_issuers", "allow_https_status"}})
	https := m.get("allow_https_status") != nil && l.boolean(m.get("allow_https_status"), m.at("allow_https_status"))
	for key, to := range map[string]*[]string{"crl": &c.Status.CRL, "ocsp": &c.Status.OCSP, "ca_issuers": &c.Status.CAIssuers} {
		if v := m.get(key); v != nil {
			*to = l.urls(v, m.at(key), https)
		}
	}
	if len(c.Status.CRL)+len(c.Status.OCSP)+len(c.Status.CAIssuers) == 0 {
		l.fault(n, s.at("status"), "names no URL: leave it out if certificates should say nothing")
	}
}

func (l *loader) urls(n *yaml.Node, path string, https bool) []string {
	words, nodes := l.words(n, path)
	if len(words) > maxURLs {
		l.fault(n, path, "has more than %d URLs", maxURLs)
	}
	for i, w := range words {
		u, err := url.Parse(w)
		switch {
		case err != nil, u.Host == "", u.User != nil, u.Fragment != "", u.RawQuery != "", len(w) > maxURL, strings.ContainsFunc(w, func(r rune) bool { return r <= ' ' || r >= 0x7f }),
			u.Scheme != "http" && u.Scheme != "https":
			l.fault(nodes[i], path, "%q has to be a URL such as http://pki.example/crl/ca.crl, of at most %d octets of ASCII", w, maxURL)
		case u.Scheme == "https" && !https:
			l.fault(nodes[i], path, "%q: most clients do not fetch status over https; say allow_https_status: true if yours do", w)
		}
	}
	return words
}
