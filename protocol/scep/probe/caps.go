package probe

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strings"

	"github.com/postern-pki/postern/protocol/cms"
)

// Media types of RFC 8894, sections 4.2.1, 4.3 and 4.7.1.
const (
	typeMessage = "application/x-pki-message"
	typeCA      = "application/x-x509-ca-cert"
	typeRA      = "application/x-x509-ca-ra-cert"
	typeNext    = "application/x-x509-next-ca-cert"
)

const maxCaps = 1024 // octets that certmonger reads

// known are the keywords of RFC 8894, section 3.5.2, and those of the drafts
// before it that clients look for.
var known = [...]string{
	"AES", "DES3", "GetNextCACert", "POSTPKIOperation", "Renewal", "SHA-1", "SHA-256", "SHA-512", "SCEPStandard",
	"SHA-224", "SHA-384", "Update", "DES", "MD5",
}

// kindOf looks at a Content-Type: whether it is the wanted one, and whether it is
// that exactly.
func kindOf(kind string, want ...string) (fits, exact bool) {
	if slices.Contains(want, kind) {
		return true, true
	}
	parsed, _, err := mime.ParseMediaType(kind)
	return err == nil && slices.Contains(want, parsed), false
}

// checkCaps looks at GetCACaps.
func (p *prober) checkCaps(a *answer) {
	if a.status != http.StatusOK {
		p.add(Wrong, "caps.answer", "HTTP status %d: %.80s", a.status, a.body)
		return
	}
	p.add(OK, "caps.answer", "%d octets", len(a.body))
	switch fits, exact := kindOf(a.kind, "text/plain"); {
	case exact:
		p.add(OK, "caps.type", "%s", a.kind)
	case fits:
		p.add(Info, "caps.type", "%s", a.kind)
	default:
		p.add(Weak, "caps.type", "%q", a.kind)
	}
	size := OK
	if len(a.body) > maxCaps {
		size = Weak
	}
	p.add(size, "caps.size", "%d octets", len(a.body))
	var odd, unknown []string
	for line := range strings.Lines(string(a.body)) {
		word := strings.TrimRight(line, "\r\n")
		if word == "" {
			continue
		}
		i := slices.IndexFunc(known[:], func(k string) bool { return strings.EqualFold(k, strings.TrimSpace(word)) })
		switch {
		case i < 0:
			unknown = append(unknown, word)
		case known[i] != word:
			odd = append(odd, fmt.Sprintf("%q for %s", word, known[i]))
			p.caps = append(p.caps, known[i])
		default:
			p.caps = append(p.caps, word)
		}
	}
	p.some(Wrong, "caps.spelling", odd, "as in the table")
	p.some(Info, "caps.unknown", unknown, "none")
	p.capabilities()
}

// some reports what there is of a bad thing.
func (p *prober) some(s Severity, id string, all []string, good string) {
	if len(all) == 0 {
		p.add(OK, id, "%s", good)
		return
	}
	p.add(s, id, "%s", list(all))
}

func (p *prober) has(keyword string) bool { return slices.Contains(p.caps, keyword) }

// capabilities looks at what the keywords say.
func (p *prober) capabilities() {
	var missing, old []string
	for _, k := range []string{"AES", "POSTPKIOperation", "SHA-256"} {
		if !p.has(k) {
			missing = append(missing, k)
		}
	}
	for _, k := range []string{"SHA-1", "DES3"} {
		if p.has(k) {
			old = append(old, k)
		}
	}
	p.some(Wrong, "caps.required", missing, strings.Join(p.caps, " "))
	s := Weak
	for _, k := range []string{"DES", "MD5"} {
		if p.has(k) {
			s, old = Wrong, append(old, k)
		}
	}
	p.some(s, "caps.weak", old, "none")
	if p.has("Renewal") {
		p.add(OK, "caps.renewal", "listed")
	} else {
		p.add(Info, "caps.renewal", "not listed")
	}
}

// checkNextCA compares GetNextCACert with the capabilities, and looks at what it
// says.
func (p *prober) checkNextCA(ctx context.Context) error {
	a, err := p.get(ctx, "operation=GetNextCACert")
	if err != nil {
		return err
	}
	p.cached(a, "GetNextCACert")
	listed, answered := p.has("GetNextCACert"), a.status == http.StatusOK
	switch {
	case listed != answered:
		p.add(Wrong, "next.caps", "listed: %t, HTTP status %d", listed, a.status)
	case answered:
		p.add(OK, "next.caps", "listed and answered")
	default:
		p.add(OK, "next.caps", "not listed, HTTP status %d", a.status)
	}
	if !answered {
		return nil
	}
	if err := p.nextCA(a); err != nil {
		p.add(Wrong, "next.answer", "%v", err)
		return nil
	}
	p.add(OK, "next.answer", "signed by the current CA or RA")
	return nil
}

// nextCA says what is wrong with an answer to GetNextCACert.
func (p *prober) nextCA(a *answer) error {
	if fits, exact := kindOf(a.kind, typeNext); !fits || !exact {
		return fmt.Errorf("the content type is %q", a.kind)
	}
	der, err := cms.DER(a.body, cms.Limits{Bytes: maxAnswer})
	if err != nil {
		return err
	}
	signed, err := cms.ParseSigned(der)
	if err != nil {
		return err
	}
	if err := signed.Verify(); err != nil {
		return err
	}
	if !slices.ContainsFunc(p.certs, func(c *x509.Certificate) bool { return bytes.Equal(c.Raw, signed.Signer.Raw) }) {
		return fmt.Errorf("the signer is not one of GetCACert's")
	}
	if signed.Digest == crypto.SHA1 {
		return fmt.Errorf("it is signed with SHA-1")
	}
	inner, err := parseCerts(signed.Content)
	if err != nil {
		return fmt.Errorf("what is signed: %w", err)
	}
	if !slices.ContainsFunc(inner, func(c *x509.Certificate) bool { return c.IsCA }) {
		return fmt.Errorf("there is no CA in it")
	}
	return nil
}

// parseCerts reads a degenerate SignedData.
func parseCerts(ber []byte) ([]*x509.Certificate, error) {
	der, err := cms.DER(ber, cms.Limits{Bytes: maxAnswer})
	if err != nil {
		return nil, err
	}
	raw, err := cms.ParseCertsOnly(der)
	if err != nil {
		return nil, err
	}
	var out []*x509.Certificate
	for _, r := range raw {
		c, err := x509.ParseCertificate(r)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// cached notes an answer that a proxy may keep.
func (p *prober) cached(a *answer, what string) {
	if a.status != 0 && !strings.Contains(strings.ToLower(a.header.Get("Cache-Control")), "no-store") {
		p.note("http.cache", what)
	}
}

// note remembers what is wrong in the answer to something.
func (p *prober) note(id, what string) {
	if !slices.Contains(p.seen[id], what) {
		p.seen[id] = append(p.seen[id], what)
	}
}
