package probe

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
	"github.com/postern-pki/postern/protocol/scep/client"
)

// A verdict is what a server made of a message, as far as two of them can be
// compared.
type verdict struct {
	http int
	rep  *client.Rep // nil if it was no CertRep
	info int         // failInfo; -1 if there is none
	text string      // without what is of this request alone
}

func (v verdict) String() string {
	if v.rep == nil {
		return fmt.Sprintf("HTTP status %d, no CertRep: %s", v.http, v.text)
	}
	switch v.rep.Status {
	case scep.StatusFailure:
		names := [...]string{"badAlg", "badMessageCheck", "badRequest", "badTime", "badCertId"}
		name := fmt.Sprint(v.info)
		if v.info >= 0 && v.info < len(names) {
			name = names[v.info]
		}
		return strings.TrimSpace(name + " " + v.text)
	case scep.StatusPending:
		return "PENDING"
	case scep.StatusSuccess:
		return "SUCCESS"
	}
	return fmt.Sprintf("pkiStatus %d", v.rep.Status)
}

// same reports whether two messages were answered alike.
func (v verdict) same(o verdict) bool {
	return v.http == o.http && (v.rep == nil) == (o.rep == nil) && v.info == o.info && v.text == o.text && (v.rep == nil || v.rep.Status == o.rep.Status)
}

func (v verdict) refused() bool { return v.rep != nil && v.rep.Status == scep.StatusFailure }

// ofThisRequest is what a text may have of one request: numbers, digests, times.
var ofThisRequest = regexp.MustCompile(`\(request [^)]*\)|[0-9A-Za-z-]*[0-9][0-9A-Za-z:.-]*`)

// parserWords are those of libraries and of programs that fail.
var parserWords = regexp.MustCompile(`(?i)asn1:|x509:|pkcs7:|pkcs7 |pkcs#7|tls:|crypto/|exception|stack ?trace|goroutine|panic|java\.|org\.bouncy|openssl|error:0|traceback|\.go:\d|\.java:\d|unmarshal|tag mismatch|padding|/usr/|/home/|nil pointer|sql`)

// judge looks at everything in an answer to m that does not depend on what is
// asked.
func (p *prober) judge(a *answer, m *message, what string) verdict {
	v := verdict{http: a.status, info: -1, text: generic(a.body)}
	p.cached(a, what)
	rep, err := client.Inspect(&client.Reply{DER: a.body})
	if a.status != http.StatusOK || err != nil {
		if parserWords.Match(a.body) && a.status != http.StatusOK && a.status != 0 {
			p.note("reply.words", fmt.Sprintf("%s: %.100s", what, clean(string(a.body))))
		}
		p.note("reply.read", fmt.Sprintf("%s: HTTP status %d, %v", what, a.status, err))
		return v
	}
	p.reads++
	v.rep, v.info, v.text = rep, rep.FailInfo, generic([]byte(rep.FailInfoText))
	if fits, exact := kindOf(a.kind, typeMessage); !fits || !exact {
		p.note("reply.type", fmt.Sprintf("%q", a.kind))
	}
	p.judgeSignature(rep, what)
	p.judgeAttributes(rep, m, what)
	if rep.Status == scep.StatusFailure {
		if rep.FailInfo < scep.BadAlg || rep.FailInfo > scep.BadCertID {
			p.note("reply.fail-info", fmt.Sprintf("%s: %d", what, rep.FailInfo))
		}
		if rep.Signed.Content != nil {
			p.note("reply.content", what)
		}
	}
	if parserWords.MatchString(rep.FailInfoText) {
		p.note("reply.words", fmt.Sprintf("%s: %.100s", what, rep.FailInfoText))
	}
	return v
}

// generic takes out of a text what is of one request alone.
func generic(body []byte) string {
	s := clean(string(body))
	return strings.TrimSpace(ofThisRequest.ReplaceAllString(s[:min(len(s), 100)], ""))
}

func (p *prober) judgeSignature(rep *client.Rep, what string) {
	if err := rep.Signed.Verify(); err != nil {
		p.note("reply.signature", fmt.Sprintf("%s: %v", what, err))
	}
	if !slices.ContainsFunc(p.certs, func(c *x509.Certificate) bool { return bytes.Equal(c.Raw, rep.Signed.Signer.Raw) }) {
		p.note("reply.signer", what)
	}
	if d := rep.Signed.Digest; d == crypto.SHA1 {
		p.note("reply.digest", fmt.Sprintf("%s: %v", what, d))
	}
	if !rep.Signed.SignatureAlgorithm.Equal(cms.OIDRSAEncryption) {
		p.note("reply.rsa", rep.Signed.SignatureAlgorithm.String())
	}
}

func (p *prober) judgeAttributes(rep *client.Rep, m *message, what string) {
	if rep.MessageType != scep.CertRep {
		p.note("reply.message-type", fmt.Sprintf("%s: %d", what, rep.MessageType))
	}
	if got := attribute(rep, scep.OIDTransactionID); !bytes.Equal(got, m.transaction) {
		p.note("reply.transaction", fmt.Sprintf("%s: %q for %q", what, got, m.transaction))
	}
	if !bytes.Equal(rep.RecipientNonce, m.nonce) {
		p.note("reply.recipient-nonce", what)
	}
	switch nonce := string(rep.SenderNonce); {
	case nonce == "":
		p.note("reply.sender-nonce", what+": none")
	case nonce == string(m.nonce):
		p.note("reply.sender-nonce", what+": our own")
	case p.nonce[nonce]:
		p.note("reply.sender-nonce", what+": used before")
	default:
		p.nonce[nonce] = true
		if len(nonce) != 16 {
			p.note("reply.nonce-size", fmt.Sprintf("%d octets", len(nonce)))
		}
	}
	for _, oid := range []asn1.ObjectIdentifier{scep.OIDMessageType, scep.OIDPKIStatus, scep.OIDFailInfo} {
		if der := attribute(rep, oid); der != nil && der[0] != 0x13 {
			p.note("reply.strings", fmt.Sprintf("%v has the tag %#x", oid, der[0]))
		}
	}
}

// attribute returns the DER of a signed attribute's value; nil if there is none.
func attribute(rep *client.Rep, oid asn1.ObjectIdentifier) []byte {
	for _, a := range rep.Signed.Attributes {
		if a.Type.Equal(oid) && len(a.Value) > 0 {
			return a.Value
		}
	}
	return nil
}

// replies reports what all replies together showed.
func (p *prober) replies() {
	for _, r := range []struct {
		id string
		s  Severity
	}{
		{"http.cache", Weak}, {"reply.read", Wrong}, {"reply.type", Weak}, {"reply.signer", Wrong}, {"reply.signature", Wrong}, {"reply.digest", Weak}, {"reply.rsa", Info},
		{"reply.message-type", Wrong}, {"reply.transaction", Wrong}, {"reply.recipient-nonce", Wrong}, {"reply.sender-nonce", Wrong}, {"reply.nonce-size", Info},
		{"reply.status", Wrong}, {"reply.fail-info", Wrong}, {"reply.content", Wrong}, {"reply.strings", Weak}, {"reply.words", Weak},
	} {
		all := p.seen[r.id]
		n := len(all)
		if n > 3 {
			all = append(slices.Clone(all[:3]), fmt.Sprintf("and %d more", n-3))
		}
		if p.reads == 0 && strings.HasPrefix(r.id, "reply.") && n == 0 {
			continue // there was no reply to look at
		}
		p.some(r.s, r.id, all, fmt.Sprintf("in %d replies", p.reads))
	}
}
