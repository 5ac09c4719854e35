// Package client is the device's side of SCEP (RFC 8894): it asks for a
// certificate and believes nothing of the answer before it is verified.
//
// # What a caller may rely on
//
// The CA is the one whose fingerprint, or whose root's, was given: without one
// there is no enrollment, whatever TLS says. An answer counts only if the RA's
// signing certificate signed it, if it repeats our transactionID and our nonce
// and has a nonce of its own; only then are its status and its failInfo
// believed. A nonce that the same client saw before is refused. A certificate is
// returned only if it holds the key that was asked for, or has the serial number
// that was asked for, and the CA signed it; a CRL only if the CA signed it and it
// is current; a next CA only if the current RA or CA signed it, and all of it.
// What the server says of its capabilities chooses between GET and POST and
// nothing else, so that nobody on the way can weaken an algorithm: SHA-1 and
// triple DES are read only where the caller asked with them. Answers are bounded
// in size and time, redirects are not followed, and texts of the server are cut
// and stripped of control characters. A [Client] may be used by several
// goroutines if its HTTP client and its Rand may.
//
// # What it does not protect against
//
// An RA is told by its extended key usages. Where a CA makes it a TLS server's,
// whoever has a certificate of that CA for TLS servers alone passes for the RA to
// whoever lets him answer, and TLS is what stops him.
//
// The challenge is readable by whoever holds the RA's decryption key, and it is
// in memory until the garbage collector takes it, as keys are. Keys are RSA in
// software. Revocation of the RA and of the CA is not checked. The certificate
// may say less than what was asked for: that is the CA's to decide. An answer
// that was lost is asked for again by the caller, with the same key.
package client

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/postern-pki/postern/protocol/cms"
)

const (
	timeout   = 30 * time.Second
	maxAnswer = 256 << 10 // octets of an HTTP body
	maxCRL    = 4 << 20   // octets of an HTTP body that may hold a CRL
	maxText   = 200       // characters of a server's text
	nonceSize = 16        // RFC 8894, section 3.2.1.5
)

// The errors of answers that are refused, to be told apart by errors.Is.
var (
	ErrFingerprint = errors.New("scep client: the CA is not the one of the fingerprint")
	ErrCA          = errors.New("scep client: the CA's certificates can not be used")
	ErrTransport   = errors.New("scep client: not the HTTP answer of a SCEP server")
	ErrReply       = errors.New("scep client: the reply does not prove that it answers the request")
	ErrCertificate = errors.New("scep client: the certificate is not the one that was asked for")
	ErrCRL         = errors.New("scep client: the CRL is not a current one of the CA")
	ErrNextCA      = errors.New("scep client: the next CA is not vouched for by the current one")
	ErrRequest     = errors.New("scep client: no such request can be made")
)

// A Client asks one SCEP server. URL and CAFingerprint are required.
type Client struct {
	URL           string       // such as https://host/scep/profile, without the operation
	HTTP          *http.Client // default: one of net/http's defaults; it has 30 s if it has no timeout
	CAFingerprint string       // hex SHA-256 of the CA or root certificate, colons allowed
	Cipher        cms.Cipher   // of requests; default AES-128-CBC, which every server reads
	Digest        crypto.Hash  // of requests; default SHA-256
	Rand          io.Reader    // default crypto/rand

	// Method sends messages by [http.MethodGet] or [http.MethodPost]; by default by
	// POST if the server's capabilities have it.
	Method string
	// CAIdentifier is sent as the message of GetCACaps, GetCACert and
	// GetNextCACert; "" sends none.
	CAIdentifier string
	// CACerts are the CA's and RA's certificates as they were kept from before, such
	// as those of a [NextCA]; if there are any, GetCACert is not asked. They have to
	// fit the fingerprint all the same.
	CACerts []*x509.Certificate

	seen Nonces
}

// Nonces are those that this client's servers have used.
func (c *Client) Nonces() *Nonces { return &c.seen }

// A StatusError is an HTTP answer other than 200.
type StatusError struct {
	Code int
	Text string // of the body, cut
}

// Error implements error.
func (e *StatusError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("scep client: HTTP status %d: %s", e.Code, e.Text))
}

func (c *Client) random() io.Reader {
	if c.Rand == nil {
		return rand.Reader
	}
	return c.Rand
}

func (c *Client) cipher() cms.Cipher {
	if c.Cipher == 0 {
		return cms.AES128CBC
	}
	return c.Cipher
}

func (c *Client) digest() crypto.Hash {
	if c.Digest == 0 {
		return crypto.SHA256
	}
	return c.Digest
}

// http returns a client that has a timeout and follows no redirect: a POST would
// become a GET, and a SCEP server has no reason to.
func (c *Client) http() *http.Client {
	h := &http.Client{}
	if c.HTTP != nil {
		copied := *c.HTTP
		h = &copied
	}
	if h.Timeout == 0 {
		h.Timeout = timeout
	}
	h.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return h
}

// A question is one HTTP request.
type question struct {
	operation string
	message   []byte // of a PKIOperation
	ident     string // of the others
	post      bool
	limit     int // octets of the answer; 0 means maxAnswer
}

// query puts the operation first, as RFC 8894, section 4.1 does, and what the URL
// has of its own last.
func (q question) query(own string) string {
	raw := "operation=" + q.operation
	switch {
	case q.post:
	case q.message != nil:
		raw += "&message=" + url.QueryEscape(base64.StdEncoding.EncodeToString(q.message))
	case q.ident != "":
		raw += "&message=" + url.QueryEscape(q.ident)
	}
	if own != "" {
		raw += "&" + own
	}
	return raw
}

// do returns the body and the media type of an answer.
func (c *Client) do(ctx context.Context, q question) (body []byte, kind string, err error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, "", fmt.Errorf("%w: %q is no http or https URL", ErrRequest, c.URL)
	}
	u.RawQuery = q.query(u.RawQuery)
	method, send := http.MethodGet, io.Reader(http.NoBody)
	if q.post {
		method, send = http.MethodPost, bytes.NewReader(q.message)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), send)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if q.post {
		req.Header.Set("Content-Type", typeMessage)
	}
	resp, err := c.http().Do(req)
	if err != nil {
		var e *url.Error
		if errors.As(err, &e) { // it repeats the URL, which has all of the message
			err = e.Err
		}
		return nil, "", fmt.Errorf("scep client: %s: %w", q.operation, err)
	}
	defer func() { _ = resp.Body.Close() }()
	limit := q.limit
	if limit == 0 {
		limit = maxAnswer
	}
	body, err = io.ReadAll(io.LimitReader(resp.Body, int64(limit)+1))
	if err != nil {
		return nil, "", fmt.Errorf("scep client: %s: %w", q.operation, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, "", &StatusError{resp.StatusCode, clean(string(body))}
	}
	if len(body) > limit {
		return nil, "", fmt.Errorf("%w: %s has more than %d bytes", ErrTransport, q.operation, limit)
	}
	kind, _, err = mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		kind = "" // the caller says which one it wants
	}
	return body, kind, nil
}

// Media types of RFC 8894, sections 4.2.1, 4.3 and 4.7.1.
const (
	typeMessage = "application/x-pki-message"
	typeCA      = "application/x-x509-ca-cert"
	typeRA      = "application/x-x509-ca-ra-cert"
	typeNext    = "application/x-x509-next-ca-cert"
)

// Caps asks for the server's capabilities. Nobody vouches for them.
func (c *Client) Caps(ctx context.Context) ([]string, error) {
	body, _, err := c.do(ctx, question{operation: "GetCACaps", ident: c.CAIdentifier}) // of any type: RFC 8894, section 3.5.2
	if err != nil {
		return nil, err
	}
	var caps []string
	for line := range strings.Lines(string(body)) {
		if line = clean(line); line != "" {
			caps = append(caps, line)
		}
	}
	return caps, nil
}

// A Reply is the body of an answer to a PKIOperation. Nothing of it is verified.
type Reply struct {
	DER []byte // as received, maybe BER
}

// Send sends a pkiMessage, by POST if the server can, unless Method says how.
func (c *Client) Send(ctx context.Context, der []byte) (*Reply, error) {
	return c.send(ctx, der, maxAnswer)
}

func (c *Client) send(ctx context.Context, der []byte, limit int) (*Reply, error) {
	post, err := c.post(ctx)
	if err != nil {
		return nil, err
	}
	body, kind, err := c.do(ctx, question{operation: "PKIOperation", message: der, post: post, limit: limit})
	if err != nil {
		return nil, err
	}
	if kind != typeMessage {
		return nil, fmt.Errorf("%w: PKIOperation has the content type %q", ErrTransport, clean(kind))
	}
	return &Reply{DER: body}, nil
}

// post reports whether messages go by POST.
func (c *Client) post(ctx context.Context) (bool, error) {
	switch c.Method {
	case http.MethodGet:
		return false, nil
	case http.MethodPost:
		return true, nil
	case "":
	default:
		return false, fmt.Errorf("%w: messages go by GET or POST, not by %q", ErrRequest, c.Method)
	}
	caps, err := c.Caps(ctx)
	return slices.ContainsFunc(caps, func(s string) bool {
		return strings.EqualFold(s, "POSTPKIOperation") || strings.EqualFold(s, "SCEPStandard")
	}), err
}

// clean makes a stranger's text fit for a terminal and a log.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	s = strings.TrimSpace(s)
	n := 0
	for i := range s {
		if n == maxText {
			return s[:i]
		}
		n++
	}
	return s
}
