// Package probe finds out what a SCEP server (RFC 8894) offers and what it gets
// wrong, anybody's server.
//
// # What a caller may rely on
//
// A probe does no harm: nothing that it sends is a request that could be granted.
// No envelope holds a certificate request, most cannot even be opened, and there is
// no challenge. It sends some forty small questions, one after the other, and
// measures no times. Each answer is bounded, each question has a deadline, and so
// has the whole. What it read of a server is cut and stripped of control
// characters.
//
// # What it does not protect against
//
// The certificates that a server gives are not held against a fingerprint: what
// is found is found of whoever answered. A server that says nothing wrong may
// still do it. A server that counts broken messages will count these.
package probe

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
)

// Severity says how bad a finding is.
type Severity string

// The severities, the best first.
const (
	OK    Severity = "ok"
	Info  Severity = "info"  // worth knowing
	Weak  Severity = "weak"  // permitted, or not said, and bad for somebody
	Wrong Severity = "wrong" // not as RFC 8894 has it, or a way in
)

// rank orders severities.
func (s Severity) rank() int { return slices.Index([]Severity{OK, Info, Weak, Wrong}, s) }

// AtLeast reports whether s is as bad as other, or worse.
func (s Severity) AtLeast(other Severity) bool { return s.rank() >= other.rank() }

// A Finding is what was seen of one matter.
type Finding struct {
	ID       string   `json:"id"`
	Severity Severity `json:"severity"`
	Saw      string   `json:"saw"`
	Says     string   `json:"says"` // what is right, and where that is written
}

// A Report is what was found, in the order that it was looked for.
type Report struct {
	URL      string    `json:"url"`
	Time     time.Time `json:"time"`
	Findings []Finding `json:"findings"`
}

// Worst is the worst severity of a report.
func (r *Report) Worst() Severity {
	worst := OK
	for _, f := range r.Findings {
		if f.Severity.AtLeast(worst) {
			worst = f.Severity
		}
	}
	return worst
}

// Options say what is probed. URL is required.
type Options struct {
	URL      string
	Roots    *x509.CertPool // that TLS is trusted by; nil: the system's
	Insecure bool           // http and TLS that nobody vouches for are probed too, and reported
	Proxy    func(*http.Request) (*url.URL, error)

	key *rsa.PrivateKey // that messages are signed with; nil: a new one
}

const (
	deadline  = 5 * time.Minute  // for all of it
	timeout   = 30 * time.Second // for one question
	maxAnswer = 1 << 20          // octets
	maxSaw    = 300              // characters of a finding
)

// ErrInsecure says that the server is not behind a TLS that is trusted.
var ErrInsecure = errors.New("scep probe: the server is not behind a TLS that is trusted")

// ErrURL says that there is no such URL.
var ErrURL = errors.New("scep probe: no http or https URL")

// A prober is one run.
type prober struct {
	Options
	base   *url.URL
	http   *http.Client
	report *Report
	tls    seenTLS

	caps  []string
	certs []*x509.Certificate // of GetCACert, in their order
	self  *identity
	seen  map[string][]string // of replies: what is wrong, in answers to what
	nonce map[string]bool     // senderNonces of replies
	reads int                 // replies that were read

	answered bool // anything
}

// Run probes a server. An error says that it could not be asked, or that it must
// not be ([ErrInsecure]); what it got wrong stands in the report.
func Run(ctx context.Context, o Options) (*Report, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%w: %q", ErrURL, o.URL)
	}
	if u.Scheme == "http" && !o.Insecure {
		return nil, fmt.Errorf("%w: it is plain http", ErrInsecure)
	}
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	p := &prober{Options: o, base: u, report: &Report{URL: o.URL, Time: time.Now().UTC()}, seen: map[string][]string{}, nonce: map[string]bool{}}
	p.http = p.client()
	defer p.http.CloseIdleConnections()
	if p.self, err = newIdentity(o.key); err != nil {
		return nil, err
	}
	caps, err := p.get(ctx, "operation=GetCACaps")
	if err != nil {
		return nil, err // nobody is there, or somebody else
	}
	p.transport(ctx)
	p.checkCaps(caps)
	for _, step := range []func(context.Context) error{p.checkCA, p.checkNextCA, p.checkBroken, p.checkMessages, p.checkQueries, p.checkPaths} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	p.replies()
	return p.report, nil
}

// add adds a finding; format says what was seen.
func (p *prober) add(s Severity, id, format string, args ...any) {
	p.report.Findings = append(p.report.Findings, Finding{id, s, clean(fmt.Sprintf(format, args...)), says(id)})
}

// clean makes a stranger's text fit for a terminal.
func clean(s string) string {
	s = strings.TrimSpace(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?")))
	n := 0
	for i := range s {
		if n == maxSaw {
			return s[:i]
		}
		n++
	}
	return s
}

// list joins what is not empty, or says none.
func list(all []string) string {
	if len(all) == 0 {
		return "none"
	}
	return strings.Join(all, ", ")
}
