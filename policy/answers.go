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

// CAPlaceholder stands in a URL for the name of the CA that issues the certificate:
// each generation of an issuer has lists and answers of its own.
const CAPlaceholder = "{ca}"

// PerCA reports whether every URL leads to the status of the CA that issues.
func (s Status) PerCA() bool {
	for _, u := range slices.Concat(s.CRL, s.OCSP, s.CAIssuers) {
		if !strings.Contains(u, CAPlaceholder) {
			return false
		}
	}
	return true
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
			strings.ContainsAny(strings.ReplaceAll(w, CAPlaceholder, ""), "{}"),
			u.Scheme != "http" && u.Scheme != "https":
			l.fault(nodes[i], path, "%q has to be a URL such as http://pki.example/crl/ca.crl, of at most %d octets of ASCII", w, maxURL)
		case u.Scheme == "https" && !https:
			l.fault(nodes[i], path, "%q: most clients do not fetch status over https; say allow_https_status: true if yours do", w)
		}
	}
	return words
}

// CACertificates says how a profile's devices are given the certificates of its CA.
// Its zero value has the RA first, and the root.
type CACertificates struct {
	CAFirst bool // the CA before the RA
	NoRoot  bool // without the root, where that is not the CA itself
}

// Reply says what an answer to a request has beside what every client needs. Its
// zero value has the issued certificate alone, and words in a refusal.
type Reply struct {
	Chain          bool // the CA's certificates after the issued one
	NoFailInfoText bool // no failInfoText
}

// answers reads what a profile says of the form of its answers.
func (l *loader) answers(c *compiled, s section) {
	if n := s.get("ca_certificates"); n != nil {
		m := l.mapping(n, s.at("ca_certificates"), keys{may: []string{"order", "root"}})
		if n := m.get("order"); n != nil {
			c.CACertificates.CAFirst = l.choice(n, m.at("order"), nil, "ra-first", "ca-first") == "ca-first"
		}
		if n := m.get("root"); n != nil {
			c.CACertificates.NoRoot = l.choice(n, m.at("root"), nil, "include", "exclude") == "exclude"
		}
	}
	if n := s.get("reply"); n != nil {
		m := l.mapping(n, s.at("reply"), keys{may: []string{"chain", "fail_info_text"}})
		c.Reply.Chain = m.get("chain") != nil && l.boolean(m.get("chain"), m.at("chain"))
		c.Reply.NoFailInfoText = m.get("fail_info_text") != nil && !l.boolean(m.get("fail_info_text"), m.at("fail_info_text"))
	}
}
