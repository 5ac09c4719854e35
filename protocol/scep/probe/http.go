package probe

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// seenTLS is what the handshake showed.
type seenTLS struct {
	state     *tls.ConnectionState
	untrusted error // why nobody vouches for the certificate
	asked     bool  // for a client certificate
}

// An answer is one of HTTP.
type answer struct {
	status int
	kind   string // Content-Type, as it is
	header http.Header
	body   []byte
}

// client keeps one connection and follows no redirect.
func (p *prober) client() *http.Client {
	config := &tls.Config{
		MinVersion: tls.VersionTLS10,                  // what the server takes is what is to be found out; nothing secret is sent
		RootCAs:    p.Roots, InsecureSkipVerify: true, //nolint:gosec // verified below, so that why not can be reported
		VerifyConnection: p.verify,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			p.tls.asked = true
			return &tls.Certificate{}, nil
		},
	}
	return &http.Client{
		Timeout:       timeout,
		Transport:     &http.Transport{TLSClientConfig: config, Proxy: p.Proxy, MaxIdleConnsPerHost: 1},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// verify does what crypto/tls does by default, and remembers what came of it.
func (p *prober) verify(state tls.ConnectionState) error {
	between := x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: p.Roots, Intermediates: between, DNSName: p.base.Hostname()})
	p.tls.untrusted = err
	if err != nil && !p.Insecure {
		return fmt.Errorf("%w: %w", ErrInsecure, err)
	}
	return nil
}

func (p *prober) get(ctx context.Context, query string) (*answer, error) {
	return p.ask(ctx, http.MethodGet, "", query, nil, "")
}

// ask asks one question. suffix is added to the path.
func (p *prober) ask(ctx context.Context, method, suffix, query string, body []byte, kind string) (*answer, error) {
	u := *p.base
	if suffix != "" {
		u = *u.JoinPath(suffix)
	}
	if u.RawQuery != "" {
		query += "&" + u.RawQuery
	}
	u.RawQuery = query
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrURL, err)
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	resp, err := p.http.Do(req)
	if err != nil {
		return p.noAnswer(ctx, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.TLS != nil {
		p.tls.state = resp.TLS
	}
	a := &answer{status: resp.StatusCode, kind: resp.Header.Get("Content-Type"), header: resp.Header}
	if a.body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer)); err != nil {
		return p.noAnswer(ctx, err)
	}
	p.answered = true
	return a, nil
}

// noAnswer makes an answer of status 0 of what a server does not answer that has
// answered before: that it hangs up is found, and ends nothing.
func (p *prober) noAnswer(ctx context.Context, err error) (*answer, error) {
	if e, ok := errors.AsType[*url.Error](err); ok { // it repeats the URL
		err = e.Err
	}
	if !p.answered || ctx.Err() != nil || errors.Is(err, ErrInsecure) {
		return nil, fmt.Errorf("scep probe: %w", err)
	}
	return &answer{header: http.Header{}, body: []byte("no answer: " + err.Error())}, nil
}

// transport reports what the first question's connection showed.
func (p *prober) transport(ctx context.Context) {
	state := p.tls.state
	if state == nil {
		p.add(Weak, "tls.plain", "plain HTTP")
		return
	}
	leaf := state.PeerCertificates[0]
	if err := p.tls.untrusted; err != nil {
		p.add(Wrong, "tls.trust", "%v", err)
	} else {
		p.add(OK, "tls.trust", "%s", leaf.Subject)
	}
	name := tls.VersionName(state.Version) + ", " + tls.CipherSuiteName(state.CipherSuite)
	switch suite := tls.CipherSuiteName(state.CipherSuite); {
	case state.Version >= tls.VersionTLS13, strings.HasPrefix(suite, "TLS_ECDHE") && (strings.Contains(suite, "GCM") || strings.Contains(suite, "CHACHA20")):
		p.add(OK, "tls.version", "%s", name)
	default:
		p.add(Weak, "tls.version", "%s", name)
	}
	if version := p.oldTLS(ctx); version != "" {
		p.add(Weak, "tls.old", "%s is taken", version)
	} else {
		p.add(OK, "tls.old", "refused")
	}
	if p.tls.asked {
		p.add(Weak, "tls.client-certificate", "asked for")
	} else {
		p.add(OK, "tls.client-certificate", "not asked for")
	}
	life, left := leaf.NotAfter.Sub(leaf.NotBefore), time.Until(leaf.NotAfter)
	s := OK
	if life > 398*24*time.Hour+time.Hour || left < 7*24*time.Hour && left < life/4 {
		s = Weak
	}
	p.add(s, "tls.lifetime", "%d days, %d left", int(life.Hours()/24), int(left.Hours()/24))
}

// oldTLS returns the version that a client of old gets; "" for none.
func (p *prober) oldTLS(ctx context.Context) string {
	host := p.base.Host
	if p.base.Port() == "" {
		host = net.JoinHostPort(p.base.Hostname(), "443")
	}
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: timeout}, Config: &tls.Config{
		MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11, ServerName: p.base.Hostname(),
		InsecureSkipVerify: true, //nolint:gosec // it is hung up at once
	}}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := d.DialContext(ctx, "tcp", host)
	if err != nil {
		return ""
	}
	defer func() { _ = conn.Close() }()
	if c, ok := conn.(*tls.Conn); ok {
		return tls.VersionName(c.ConnectionState().Version)
	}
	return ""
}
