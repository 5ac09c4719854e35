// Package client is the device's side of SCEP (RFC 8894): it asks for a
// certificate and believes nothing of the answer before it is verified.
//
// # What a caller may rely on
//
// The CA is the one whose fingerprint, or whose root's, was given: without one
// there is no enrollment, whatever TLS says. An answer counts only if the RA's
// signing certificate signed it, if it repeats our transactionID and our nonce
// and has a nonce of its own; only then are its status and its failInfo
// believed. A certificate is returned only if it holds the key that was asked
// for and the CA signed it. What the server says of its capabilities chooses
// between GET and POST and nothing else, so that nobody on the way can weaken
// an algorithm. Answers are bounded in size and time, redirects are not
// followed, and texts of the server are cut and stripped of control characters.
// A [Client] may be used by several goroutines if its HTTP client and its Rand
// may.
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
}

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

// do returns the body and the media type of an answer.
func (c *Client) do(ctx context.Context, operation string, message []byte, post bool) (body []byte, kind string, err error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, "", fmt.Errorf("%w: %q is no http or https URL", ErrRequest, c.URL)
	}
	q := u.Query()
	q.Set("operation", operation)
	method := http.MethodGet
	if post {
		method = http.MethodPost
	} else if message != nil {
		q.Set("message", base64.StdEncoding.EncodeToString(message))
		message = nil
	}
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(message))
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if post {
		req.Header.Set("Content-Type", typeMessage)
	}
	resp, err := c.http().Do(req)
	if err != nil {
		var e *url.Error
		if errors.As(err, &e) { // it repeats the URL, which has all of the message
			err = e.Err
		}
		return nil, "", fmt.Errorf("scep client: %s: %w", operation, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, "", fmt.Errorf("scep client: %s: %w", operation, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, "", &StatusError{resp.StatusCode, clean(string(body))}
	}
	if len(body) > maxAnswer {
		return nil, "", fmt.Errorf("%w: %s has more than %d bytes", ErrTransport, operation, maxAnswer)
	}
	kind, _, err = mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		kind = "" // the caller says which one it wants
	}
	return body, kind, nil
}

// Media types of RFC 8894, sections 4.2.1 and 4.3.
const (
	typeMessage = "application/x-pki-message"
	typeCA      = "application/x-x509-ca-cert"
	typeRA      = "application/x-x509-ca-ra-cert"
)

// Caps asks for the server's capabilities. Nobody vouches for them.
func (c *Client) Caps(ctx context.Context) ([]string, error) {
	body, _, err := c.do(ctx, "GetCACaps", nil, false) // of any type: RFC 8894, section 3.5.2
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

// Send sends a pkiMessage, by POST if the server can.
func (c *Client) Send(ctx context.Context, der []byte) (*Reply, error) {
	caps, err := c.Caps(ctx)
	if err != nil {
		return nil, err
	}
	post := slices.ContainsFunc(caps, func(s string) bool {
		return strings.EqualFold(s, "POSTPKIOperation") || strings.EqualFold(s, "SCEPStandard")
	})
	body, kind, err := c.do(ctx, "PKIOperation", der, post)
	if err != nil {
		return nil, err
	}
	if kind != typeMessage {
		return nil, fmt.Errorf("%w: PKIOperation has the content type %q", ErrTransport, clean(kind))
	}
	return &Reply{DER: body}, nil
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
