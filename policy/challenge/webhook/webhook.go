// Package webhook asks an operator's own service whether a request may have a
// certificate, by the messages of step-ca's SCEPCHALLENGE webhook.
//
// # What a caller may rely on
//
// A request is allowed only by an answer of status 200 whose body is one JSON object
// with "allow": true. An answer with "allow": false refuses; everything else, a
// redirection among it, is no answer. One address is asked and no other; what is
// sent is signed by HMAC-SHA-256, and what is read is bounded in size and time.
//
// # What it does not protect against
//
// It believes the service. The signature tells the service who asks, and not the other
// way round: that is for TLS, whose roots the caller names. Who has the key of the
// signature can ask in our name.
package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/postern-pki/postern/policy/challenge"
)

// ErrOptions is wrapped by the errors of [New].
var ErrOptions = errors.New("webhook: bad options")

// Bounds of a call.
const (
	maxAnswer   = 64 << 10
	DefaultTime = 10 * time.Second // of all tries together
	MaxTime     = 15 * time.Second // a device's own request has 20 s
	pause       = time.Second      // before the one retry
	minKey      = 16               // octets of the signature's key
)

// Options are what [New] needs.
type Options struct {
	URL      string               // https
	ID       string               // of the webhook at the service, which it tells keys apart by; "" for none
	Key      challenge.Credential // of the signature, 16 octets at least
	Bearer   challenge.Credential // or none
	User     string               // of Basic authentication, or ""
	Password challenge.Credential
	Timeout  time.Duration // 0: DefaultTime
	HTTP     http.RoundTripper
	Now      func() time.Time // nil: time.Now
}

// A Client asks one service. It is safe for concurrent use.
type Client struct {
	o    Options
	http *http.Client
}

// New returns a client. The error is [ErrOptions].
func New(o Options) (*Client, error) {
	u, err := url.Parse(o.URL)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "":
		return nil, fmt.Errorf("%w: the address has to be an https URL without a user", ErrOptions)
	case len(o.Key.Bytes()) < minKey:
		return nil, fmt.Errorf("%w: the key of the signature has fewer than %d octets", ErrOptions, minKey)
	case !o.Bearer.None() && o.User != "":
		return nil, fmt.Errorf("%w: Bearer or Basic, not both", ErrOptions)
	case o.HTTP == nil:
		return nil, fmt.Errorf("%w: nothing to send by", ErrOptions)
	case o.Timeout < 0 || o.Timeout > MaxTime:
		return nil, fmt.Errorf("%w: the time is more than %s", ErrOptions, MaxTime)
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTime
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Client{o, &http.Client{Transport: o.HTTP, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}, nil
}

// errAgain is around what one more try may cure.
var errAgain = errors.New("webhook: not served")

// Ask implements the caller's side of a validator. It is asked alone, and has
// nothing to be told: of any other occasion it answers that it was.
func (c *Client) Ask(ctx context.Context, q challenge.Question) challenge.Answer {
	if q.Occasion != challenge.OccasionCheck {
		return challenge.AnswerOf(challenge.Allowed, "", "a webhook is not told")
	}
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	body, err := Body(q, c.o.Now())
	if err != nil {
		return challenge.AnswerOf(challenge.Refused, "csr", "the request cannot be put into the webhook's form")
	}
	a, err := c.once(ctx, q.Request, body)
	if errors.Is(err, errAgain) && ctx.Err() == nil {
		t := time.NewTimer(pause)
		defer t.Stop()
		select {
		case <-t.C:
			a, err = c.once(ctx, q.Request, body)
		case <-ctx.Done():
		}
	}
	switch {
	case err == nil, !errors.Is(err, errAgain):
		return a
	case ctx.Err() != nil:
		return challenge.AnswerOf(challenge.TimedOut, "", fmt.Sprintf("no answer within %s", c.o.Timeout))
	}
	return a
}

// once makes one call. Where the error is errAgain the answer is what to say if
// there is no other try; an answer that is one comes without an error.
func (c *Client) once(ctx context.Context, request string, body []byte) (challenge.Answer, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.o.URL, bytes.NewReader(body))
	if err != nil {
		return challenge.AnswerOf(challenge.Unreachable, "", "the address is no URL"), err
	}
	c.head(r, request, body)
	resp, err := c.http.Do(r)
	if err != nil {
		return challenge.AnswerOf(challenge.Unreachable, "", reason(err)), errAgain
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return challenge.AnswerOf(challenge.Unreachable, "", "the answer broke off"), errAgain
	case resp.StatusCode >= http.StatusInternalServerError:
		return challenge.AnswerOf(challenge.Unreadable, "", fmt.Sprintf("status %d", resp.StatusCode)), errAgain
	case resp.StatusCode != http.StatusOK:
		return challenge.AnswerOf(challenge.Unreadable, "", fmt.Sprintf("status %d", resp.StatusCode)), nil
	case len(data) > maxAnswer:
		return challenge.AnswerOf(challenge.Unreadable, "", fmt.Sprintf("more than %d octets", maxAnswer)), nil
	}
	return ParseAnswer(data), nil
}

// head sets what identifies us, and signs the body.
func (c *Client) head(r *http.Request, request string, body []byte) {
	m := hmac.New(sha256.New, c.o.Key.Bytes())
	_, _ = m.Write(body)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "Postern")
	r.Header.Set("X-Smallstep-Signature", hex.EncodeToString(m.Sum(nil)))
	if c.o.ID != "" {
		r.Header.Set("X-Smallstep-Webhook-ID", c.o.ID)
	}
	if request != "" {
		r.Header.Set("X-Request-Id", request)
	}
	switch {
	case !c.o.Bearer.None():
		r.Header.Set("Authorization", "Bearer "+string(c.o.Bearer.Bytes()))
	case c.o.User != "":
		r.SetBasicAuth(c.o.User, string(c.o.Password.Bytes()))
	}
}

// reason is what went wrong with a call, without the address, which may hold a secret
// in its query.
func reason(err error) string {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return err.Error()
}

// ParseAnswer reads the body of an answer of status 200. What is no JSON object with
// a boolean allow is [challenge.Unreadable].
func ParseAnswer(body []byte) challenge.Answer {
	unreadable := func(say string) challenge.Answer { return challenge.AnswerOf(challenge.Unreadable, "", say) }
	var o map[string]json.RawMessage // keys as they are written: encoding/json would take them in any case
	if err := json.Unmarshal(body, &o); err != nil || o == nil {
		return unreadable("not a JSON object")
	}
	switch string(o["allow"]) {
	case "true":
		return challenge.AnswerOf(challenge.Allowed, "", "")
	case "false":
	default:
		return unreadable("allow is neither true nor false")
	}
	var why struct{ Code, Message string }
	if err := json.Unmarshal(o["error"], &why); err != nil {
		var text string // some services have text there
		_ = json.Unmarshal(o["error"], &text)
		why.Message = text
	}
	return challenge.AnswerOf(challenge.Refused, why.Code, why.Message)
}
