// Package intune has Microsoft Intune vouch for requests: it validates the challenge that
// it gave a device, and is told what became of the request.
//
// # What a caller may rely on
//
// Only the code Success vouches, in an answer of status 200; every other code refuses,
// those that are new too, with a sentence on what to do about it. What is no answer is a
// fault and not a word about the request. Tokens and the addresses of services are kept
// as long as they are good, and asked for again after a failure. Where a service is said
// to be has to be https.
//
// # What it does not protect against
//
// It believes the directory about where the services are, and the services about
// requests. That a certificate is delivered only after Intune was told of it is the
// caller's work.
package intune

import (
	"context"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // the thumbprint that Intune knows a certificate by
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/postern-pki/postern/policy/challenge"
)

// Where Microsoft's services are. A national cloud has others.
const (
	Login    = "https://login.microsoftonline.com"
	Graph    = "https://graph.microsoft.com"
	Resource = "https://api.manage.microsoft.com/"
)

// Bounds of a call.
const (
	DefaultTime = 12 * time.Second // of one question, with token and address
	MaxTime     = 15 * time.Second
	maxAnswer   = 1 << 20
)

// failed is the HRESULT of a failureNotification: severity and customer bits, and the
// one code of ours ([MS-ERREF], section 2.1).
const failed = 0xA0040001

// The services, by the names that the directory has them under, and their versions.
const (
	validation        = "ScepRequestValidationFEService"
	validationVersion = "2018-02-20"
	connector         = "PkiConnectorFEService"
	connectorVersion  = "5019-05-05"
	application       = "0000000a-0000-0000-c000-000000000000" // Intune itself
)

// Errors of this package.
var (
	ErrOptions = errors.New("intune: bad options")
	ErrAnswer  = errors.New("intune: not an answer") // another status, another form
	ErrReach   = errors.New("intune: not reached")
)

// Options are what [New] needs.
type Options struct {
	Tenant string // of the directory: a domain or an id
	App    string // the application's (client) id
	// Secret or Certificate is the application's credential. The certificate's key is RSA.
	Secret      challenge.Credential
	Certificate *tls.Certificate
	Caller      string // callerInfo: product and version

	Login, Graph, Resource string // "": Microsoft's

	Timeout time.Duration // 0: DefaultTime
	HTTP    http.RoundTripper
	Now     func() time.Time // nil: time.Now
}

// A Client talks to one tenant's Intune. It is safe for concurrent use.
type Client struct {
	o    Options
	http *http.Client

	mu       sync.Mutex // guards the two; nobody waits for the network while holding it
	tokens   map[string]token
	services map[string]string // address by name, in lower case
}

// New returns a client, which asks nobody yet. The error is [ErrOptions].
func New(o Options) (*Client, error) {
	for _, d := range []struct {
		to  *string
		def string
	}{{&o.Login, Login}, {&o.Graph, Graph}, {&o.Resource, Resource}} {
		if *d.to == "" {
			*d.to = d.def
		}
		if !secure(*d.to) {
			return nil, fmt.Errorf("%w: %s has to be an https URL", ErrOptions, *d.to)
		}
	}
	o.Login, o.Graph = strings.TrimRight(o.Login, "/"), strings.TrimRight(o.Graph, "/")
	switch {
	case o.Tenant == "" || o.App == "" || o.Caller == "" || o.HTTP == nil:
		return nil, fmt.Errorf("%w: tenant, application, caller and a way to send are needed", ErrOptions)
	case strings.ContainsAny(o.Tenant, "/?#%"):
		return nil, fmt.Errorf("%w: the tenant is a domain or an id", ErrOptions)
	case o.Secret.None() == (o.Certificate == nil):
		return nil, fmt.Errorf("%w: a secret or a certificate, one of the two", ErrOptions)
	case o.Timeout < 0 || o.Timeout > MaxTime:
		return nil, fmt.Errorf("%w: the time is more than %s", ErrOptions, MaxTime)
	}
	if o.Certificate != nil {
		if _, ok := o.Certificate.PrivateKey.(*rsa.PrivateKey); !ok || len(o.Certificate.Certificate) == 0 {
			return nil, fmt.Errorf("%w: the certificate's key has to be RSA", ErrOptions)
		}
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTime
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Client{
		o: o, tokens: make(map[string]token), services: make(map[string]string),
		http: &http.Client{Transport: o.HTTP, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}, nil
}

func secure(text string) bool {
	u, err := url.Parse(text)
	return err == nil && u.Scheme == "https" && u.Host != "" && u.User == nil && u.RawQuery == "" && u.Fragment == ""
}

// The bodies of the three calls.
type (
	request struct {
		Transaction string `json:"transactionId"`
		CSR         string `json:"certificateRequest"` // base64 of the device's own octets
		Caller      string `json:"callerInfo"`
	}
	success struct {
		Transaction string `json:"transactionId"`
		CSR         string `json:"certificateRequest"`
		Thumbprint  string `json:"certificateThumbprint"`
		Serial      string `json:"certificateSerialNumber"`
		Expires     string `json:"certificateExpirationDateUtc"`
		Issuer      string `json:"issuingCertificateAuthority"`
		Caller      string `json:"callerInfo"`
		Config      string `json:"caConfiguration"`
		Authority   string `json:"certificateAuthority"`
	}
	failure struct {
		Transaction string `json:"transactionId"`
		CSR         string `json:"certificateRequest"`
		Result      int64  `json:"hResult"`
		Description string `json:"errorDescription"` // at most 255 characters
		Caller      string `json:"callerInfo"`
	}
)

// Ask asks Intune about a request, or tells it what became of one.
func (c *Client) Ask(ctx context.Context, q challenge.Question) challenge.Answer {
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	if q.Bare || q.Transaction == "" {
		return challenge.AnswerOf(challenge.Refused, "", "Intune judges a request with its own challenge and transaction alone")
	}
	action, body, err := c.body(q)
	if err != nil {
		return challenge.AnswerOf(challenge.Unreadable, "", err.Error())
	}
	var reply json.RawMessage
	err = c.post(ctx, validation, "ScepActions/"+action, validationVersion, body, &reply)
	switch {
	case errors.Is(err, ErrAnswer):
		return challenge.AnswerOf(challenge.Unreadable, "", err.Error())
	case err != nil && ctx.Err() != nil:
		return challenge.AnswerOf(challenge.TimedOut, "", fmt.Sprintf("no answer within %s", c.o.Timeout))
	case err != nil:
		return challenge.AnswerOf(challenge.Unreachable, "", err.Error())
	}
	return ParseReply(reply)
}

// ParseReply reads the body of an answer of status 200. Only the code Success allows; an
// answer without a code is [challenge.Unreadable].
func ParseReply(body []byte) challenge.Answer {
	var reply map[string]json.RawMessage // keys as they are written
	var code string
	if json.Unmarshal(body, &reply) != nil || json.Unmarshal(reply["code"], &code) != nil || code == "" {
		return challenge.AnswerOf(challenge.Unreadable, "", "an answer without a code")
	}
	if code == "Success" {
		return challenge.AnswerOf(challenge.Allowed, "", "")
	}
	return challenge.AnswerOf(challenge.Refused, code, Reason(code))
}

// body returns the action and its body.
func (c *Client) body(q challenge.Question) (action string, body map[string]any, err error) {
	csr := base64.StdEncoding.EncodeToString(q.CSR)
	switch q.Occasion {
	case challenge.OccasionCheck:
		return "validateRequest", map[string]any{"request": request{q.Transaction, csr, c.o.Caller}}, nil
	case challenge.OccasionIssued:
		cert, err := x509.ParseCertificate(q.Certificate)
		if err != nil {
			return "", nil, errors.New("the certificate does not parse")
		}
		sum := sha1.Sum(cert.Raw) //nolint:gosec // as above
		return "successNotification", map[string]any{"notification": success{
			Transaction: q.Transaction, CSR: csr, Thumbprint: strings.ToUpper(hex.EncodeToString(sum[:])),
			Serial: strings.ToUpper(hex.EncodeToString(cert.SerialNumber.Bytes())), Expires: cert.NotAfter.UTC().Format("2006-01-02T15:04:05.000Z"),
			Issuer: q.Issuer, Caller: c.o.Caller, Config: q.Profile, Authority: q.Issuer,
		}}, nil
	case challenge.OccasionFailed:
		return "failureNotification", map[string]any{"notification": failure{q.Transaction, csr, failed, challenge.AnswerOf("", "", q.Why).Say, c.o.Caller}}, nil
	}
	return "", nil, errors.New("no such occasion")
}
