package probe

import (
	"bytes"
	"context"
	"crypto"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
	"github.com/postern-pki/postern/protocol/scep/client"
)

// send builds and posts a message, and judges the answer.
func (p *prober) send(ctx context.Context, what string, m message) (verdict, error) {
	der, err := p.build(&m)
	if err != nil {
		return verdict{}, err
	}
	a, err := p.message(ctx, der)
	if err != nil {
		return verdict{}, err
	}
	return p.judge(a, &m, what), nil
}

// message sends one by POST, or by GET if the server says nothing of POST.
func (p *prober) message(ctx context.Context, der []byte) (*answer, error) {
	if p.has("POSTPKIOperation") || p.has("SCEPStandard") {
		return p.ask(ctx, http.MethodPost, "", "operation=PKIOperation", der, typeMessage)
	}
	return p.get(ctx, "operation=PKIOperation&message="+url.QueryEscape(base64.StdEncoding.EncodeToString(der)))
}

// checkBroken sends what is no message at all.
func (p *prober) checkBroken(ctx context.Context) error {
	report := func(id string, a *answer) {
		switch {
		case a.status >= 500, a.status == 0:
			p.add(Wrong, id, "HTTP status %d: %.80s", a.status, a.body)
		case a.status >= 400:
			p.add(OK, id, "HTTP status %d", a.status)
		default:
			p.add(Info, id, "HTTP status %d", a.status)
		}
		if a.status != 0 && parserWords.Match(a.body) {
			p.note("reply.words", fmt.Sprintf("%s: %.100s", id, clean(string(a.body))))
		}
	}
	a, err := p.get(ctx, "operation=PKIOperation&message=%21%21no-base64%21%21%3d%3d%3d")
	if err != nil {
		return err
	}
	report("bad.base64", a)
	if a, err = p.get(ctx, "operation=GetNothing"); err != nil {
		return err
	}
	report("bad.operation", a)
	if p.recipient() == nil {
		return nil
	}
	der, err := p.build(&message{})
	if err != nil {
		return err
	}
	if a, err = p.message(ctx, der[:len(der)/2]); err != nil {
		return err
	}
	report("bad.truncated", a)
	return nil
}

// checkMessages sends messages that have to be refused.
func (p *prober) checkMessages(ctx context.Context) error {
	if p.recipient() == nil {
		return nil
	}
	base, err := p.send(ctx, "an envelope without a request", message{})
	if err != nil {
		return err
	}
	p.expectRefusal("an envelope without a request", base)
	for _, step := range []func(context.Context, verdict) error{p.envelopes, p.algorithms, p.forgeries, p.types, p.transactions, p.byGet} {
		if err := step(ctx, base); err != nil {
			return err
		}
	}
	return nil
}

func (p *prober) expectRefusal(what string, v verdict) {
	if v.rep != nil && !v.refused() {
		p.note("reply.status", what+": "+v.String())
	}
}

// envelopes compares the answers to all that can be wrong in one.
func (p *prober) envelopes(ctx context.Context, base verdict) error {
	var differ []string
	for _, class := range []struct {
		what string
		m    message
	}{
		{"RSA padding", message{badPadding: true}}, {"key length", message{shortKey: true}}, {"CBC padding", message{badBlock: true}},
		{"inner ASN.1", message{content: []byte{0x30, 0x82, 0x7f, 0xff, 0x02}}},
	} {
		v, err := p.send(ctx, class.what, class.m)
		if err != nil {
			return err
		}
		p.expectRefusal(class.what, v)
		if !v.same(base) {
			differ = append(differ, class.what+": "+v.String())
		}
	}
	if len(differ) > 0 {
		differ = append(differ, "no request: "+base.String())
	}
	p.some(Wrong, "bad.envelope", differ, "one answer: "+base.String())
	return nil
}

// algorithms tries those that must not be, should not be, and may be supported. A
// message that has the answer of an ordinary one was read.
func (p *prober) algorithms(ctx context.Context, base verdict) error {
	for _, t := range []struct {
		id   string
		m    message
		read Severity
	}{
		{"alg.des", message{cipher: cms.DESCBC}, Wrong}, {"alg.md5", message{hash: crypto.MD5}, Wrong},
		{"alg.des3", message{cipher: cms.DES3CBC}, Weak}, {"alg.sha1", message{hash: crypto.SHA1}, Weak},
		{"alg.strong", message{cipher: cms.AES256CBC, hash: crypto.SHA512}, OK},
	} {
		v, err := p.send(ctx, t.id, t.m)
		if err != nil {
			return err
		}
		p.expectRefusal(t.id, v)
		switch {
		case v.refused() && v.info == scep.BadAlg && base.info != scep.BadAlg:
			p.add(map[bool]Severity{true: Info, false: OK}[t.read == OK], t.id, "refused: %s", v)
		case v.same(base):
			p.add(t.read, t.id, "it is read: the answer is that to AES-128 and SHA-256")
		default:
			p.add(Info, t.id, "%s", v)
		}
	}
	return nil
}

// forgeries are a message of a broken signature, and one for somebody else.
func (p *prober) forgeries(ctx context.Context, _ verdict) error {
	flip := func(der []byte) []byte { der[len(der)-1] ^= 1; return der } // the signature comes last
	v, err := p.send(ctx, "bad.signature", message{tamper: flip})
	if err != nil {
		return err
	}
	p.expectRefusal("bad.signature", v)
	if v.refused() && v.info == scep.BadMessageCheck {
		p.add(OK, "bad.signature", "%s", v)
	} else {
		p.add(Weak, "bad.signature", "%s", v)
	}
	if v, err = p.send(ctx, "bad.recipient", message{to: p.self.cert}); err != nil {
		return err
	}
	p.expectRefusal("bad.recipient", v)
	if v.refused() {
		p.add(OK, "bad.recipient", "%s", v)
	} else {
		p.add(Wrong, "bad.recipient", "%s", v)
	}
	return nil
}

// types are those of no request, and a poll for nothing.
func (p *prober) types(ctx context.Context, _ verdict) error {
	var odd []string
	worst := Info
	for _, kind := range []int{scep.CertRep, 18, 99} {
		what := fmt.Sprintf("messageType %d", kind)
		v, err := p.send(ctx, what, message{kind: kind})
		if err != nil {
			return err
		}
		p.expectRefusal(what, v)
		if !v.refused() || v.info != scep.BadRequest {
			odd = append(odd, what+": "+v.String())
		}
		if !v.refused() {
			worst = Wrong
		}
	}
	p.some(worst, "type.unknown", odd, "badRequest")
	names, err := client.IssuerAndSubject(p.issuer(), p.self.cert.RawSubject)
	if err != nil {
		return err
	}
	v, err := p.send(ctx, "poll.unknown", message{kind: scep.CertPoll, content: names})
	if err != nil {
		return err
	}
	p.expectRefusal("poll.unknown", v)
	switch {
	case v.refused():
		p.add(OK, "poll.unknown", "%s", v)
	default:
		p.add(Wrong, "poll.unknown", "%s", v)
	}
	return nil
}

// issuer is the Name of the CA.
func (p *prober) issuer() []byte {
	for _, c := range p.certs {
		if c.IsCA {
			return c.RawSubject
		}
	}
	return p.certs[0].RawIssuer
}

// transactions sends ids that some servers cannot repeat; what came back is
// judged as in every reply.
func (p *prober) transactions(ctx context.Context, _ verdict) error {
	suffix := fmt.Sprintf("-%d", time.Now().UnixNano()%1e6)
	for _, t := range []struct {
		what string
		der  []byte
	}{
		{"an id with _ and @", text(cbasn1.PrintableString, "Probe_1@x/+ "+suffix)},
		{"an id in UTF8String", text(cbasn1.UTF8String, "probe-utf8"+suffix)},
		{"an id in IA5String", text(cbasn1.IA5String, "Probe*ia5"+suffix)},
	} {
		if _, err := p.send(ctx, t.what, message{transaction: t.der}); err != nil {
			return err
		}
	}
	return nil
}

// byGet sends a message by GET.
func (p *prober) byGet(ctx context.Context, base verdict) error {
	m := message{}
	der, err := p.build(&m)
	if err != nil {
		return err
	}
	a, err := p.get(ctx, "operation=PKIOperation&message="+url.QueryEscape(base64.StdEncoding.EncodeToString(der)))
	if err != nil {
		return err
	}
	if a.status == http.StatusMethodNotAllowed || a.status == http.StatusNotFound {
		p.add(Info, "http.get", "HTTP status %d: by POST alone", a.status)
		return nil
	}
	if v := p.judge(a, &m, "GET"); v.same(base) {
		p.add(OK, "http.get", "the same answer")
	} else {
		p.add(Weak, "http.get", "%s; by POST: %s", v, base)
	}
	return nil
}

// checkQueries asks the two questions that may be answered to anybody: a success
// shows how replies are enciphered.
func (p *prober) checkQueries(ctx context.Context) error {
	to := p.recipient()
	if to == nil {
		return nil
	}
	content, err := client.IssuerAndSerial(p.issuer(), to.SerialNumber)
	if err != nil {
		return err
	}
	for i, id := range []string{"query.getcert", "query.getcrl"} {
		v, err := p.send(ctx, id, message{kind: []int{scep.GetCert, scep.GetCRL}[i], content: content})
		if err != nil {
			return err
		}
		switch {
		case v.refused(), v.rep == nil:
			p.add(Info, id, "%s", v)
		case v.rep.Status != scep.StatusSuccess:
			p.add(Wrong, id, "%s", v)
		default:
			s, saw := p.sealed(v.rep.Signed.Content)
			p.add(s, id, "SUCCESS, %s", saw)
		}
	}
	return nil
}

// sealed looks at how a reply is enciphered.
func (p *prober) sealed(ber []byte) (Severity, string) {
	der, err := cms.DER(ber, cms.Limits{Bytes: maxAnswer})
	if err != nil {
		return Wrong, err.Error()
	}
	e, err := cms.ParseEnvelope(der)
	switch {
	case errors.Is(err, cms.ErrAlgorithm):
		return Wrong, err.Error() // single DES is one that is not supported
	case err != nil:
		return Wrong, err.Error()
	case len(e.Recipients) != 1 || !e.Recipients[0].Names(p.self.cert):
		return Wrong, fmt.Sprintf("enciphered to %d recipients", len(e.Recipients))
	case e.Cipher == cms.DES3CBC:
		return Weak, e.Cipher.String()
	}
	return OK, e.Cipher.String()
}

// checkPaths tries what clients add to a URL.
func (p *prober) checkPaths(ctx context.Context) error {
	want, err := p.get(ctx, "operation=GetCACaps")
	if err != nil {
		return err
	}
	var taken, wrong []string
	for _, suffix := range []string{"pkiclient.exe", "cgi-bin/pkiclient.exe", "certsrv/mscep/mscep.dll", "no-such-path"} {
		a, err := p.ask(ctx, http.MethodGet, suffix, "operation=GetCACaps", nil, "")
		if err != nil {
			return err
		}
		switch {
		case a.status == http.StatusOK && bytes.Equal(a.body, want.body):
			taken = append(taken, suffix)
		case a.status >= 500, a.status == 0:
			wrong = append(wrong, fmt.Sprintf("%s: HTTP status %d", suffix, a.status))
		}
	}
	if len(wrong) > 0 {
		p.add(Weak, "http.path", "%s", list(wrong))
		return nil
	}
	p.add(Info, "http.path", "also taken: %s", list(taken))
	return nil
}
