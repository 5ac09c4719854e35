package intune

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// A token is an access token, and until when it is used.
type token struct {
	text  string
	until time.Time
}

// Lives of what is kept.
const (
	early     = 5 * time.Minute // a token is renewed that much before its end
	assertion = 5 * time.Minute // of what the application's certificate signs
	maxToken  = 16 << 10
	maxPlaces = 256
)

// post calls a service. What was kept of it may be what fails: then it is asked for
// anew, and the service once more.
func (c *Client) post(ctx context.Context, service, path, version string, body, reply any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	stale, err := c.call(ctx, service, path, version, data, reply)
	if err == nil {
		return nil
	}
	c.forget()
	if stale && ctx.Err() == nil {
		if _, err = c.call(ctx, service, path, version, data, reply); err != nil {
			c.forget()
		}
	}
	return err
}

// forget drops tokens and addresses.
func (c *Client) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.tokens)
	clear(c.services)
}

// call makes one call; stale says that it was made by what had been kept.
func (c *Client) call(ctx context.Context, service, path, version string, body []byte, reply any) (stale bool, err error) {
	place, kept, err := c.place(ctx, service)
	if err != nil {
		return kept, err
	}
	// The resource ends in a slash, and so does what the reference client asks for.
	access, kept2, err := c.token(ctx, c.o.Resource+"/.default")
	if err != nil {
		return kept2, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(place, "/")+"/"+path, bytes.NewReader(body))
	if err != nil {
		return false, fmt.Errorf("%w: the service's address: %w", ErrAnswer, err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("api-version", version)
	r.Header.Set("UserAgent", c.o.Caller) // as the reference client has it, beside the usual one
	return kept || kept2, c.do(r, access, reply)
}

// do makes a call with a token, and reads the JSON of an answer of status 200.
func (c *Client) do(r *http.Request, access string, reply any) error {
	if access != "" {
		r.Header.Set("Authorization", "Bearer "+access)
		r.Header.Set("client-request-id", guid())
	}
	r.Header.Set("Accept", "application/json")
	r.Header.Set("User-Agent", c.o.Caller)
	resp, err := c.http.Do(r)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err
		}
		return fmt.Errorf("%w: %s: %w", ErrReach, r.URL.Host, err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("%w: %s broke off: %w", ErrReach, r.URL.Host, err)
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%w: %s: status %d", ErrAnswer, r.URL.Host, resp.StatusCode)
	case len(data) > maxAnswer:
		return fmt.Errorf("%w: %s: more than %d octets", ErrAnswer, r.URL.Host, maxAnswer)
	}
	if err := json.Unmarshal(data, reply); err != nil {
		return fmt.Errorf("%w: %s: no JSON of the form", ErrAnswer, r.URL.Host)
	}
	return nil
}

// place finds where a service is.
func (c *Client) place(ctx context.Context, service string) (place string, kept bool, err error) {
	name := strings.ToLower(service)
	c.mu.Lock()
	place, kept = c.services[name]
	c.mu.Unlock()
	if kept {
		return place, true, nil
	}
	access, old, err := c.token(ctx, c.o.Graph+"/.default")
	if err != nil {
		return "", old, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.o.Graph+"/v1.0/servicePrincipals/appId="+application+"/endpoints", nil)
	if err != nil {
		return "", false, fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	var list struct {
		Value []struct {
			Name string `json:"providerName"`
			URI  string `json:"uri"`
		} `json:"value"`
	}
	if err := c.do(r, access, &list); err != nil {
		return "", old, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range list.Value[:min(len(list.Value), maxPlaces)] {
		if secure(e.URI) {
			c.services[strings.ToLower(e.Name)] = e.URI
		}
	}
	if place, ok := c.services[name]; ok {
		return place, false, nil
	}
	return "", false, fmt.Errorf("%w: the directory lists no %s: the tenant lacks Intune, or the application its role", ErrAnswer, service)
}

// token has an access token for a scope.
func (c *Client) token(ctx context.Context, scope string) (text string, kept bool, err error) {
	c.mu.Lock()
	t, ok := c.tokens[scope]
	c.mu.Unlock()
	if ok && c.o.Now().Before(t.until) {
		return t.text, true, nil
	}
	endpoint := c.o.Login + "/" + c.o.Tenant + "/oauth2/v2.0/token"
	form := url.Values{"client_id": {c.o.App}, "scope": {scope}, "grant_type": {"client_credentials"}}
	if err := c.identify(form, endpoint); err != nil {
		return "", false, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return "", false, fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	var reply struct {
		Type   string `json:"token_type"`
		Token  string `json:"access_token"`
		Expiry int64  `json:"expires_in"` // seconds
	}
	if err := c.do(r, "", &reply); err != nil {
		return "", false, err
	}
	if !strings.EqualFold(reply.Type, "Bearer") || reply.Token == "" || len(reply.Token) > maxToken || strings.ContainsAny(reply.Token, "\r\n") || reply.Expiry <= 0 || reply.Expiry > 7*24*3600 {
		return "", false, fmt.Errorf("%w: %s: no token", ErrAnswer, r.URL.Host)
	}
	t = token{reply.Token, c.o.Now().Add(time.Duration(reply.Expiry)*time.Second - early)}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tokens[scope] = t
	return t.text, false, nil
}

// identify adds the application's credential: its secret, or what its certificate signs
// (RFC 7523, section 2.2).
func (c *Client) identify(form url.Values, audience string) error {
	if c.o.Certificate == nil {
		form.Set("client_secret", string(c.o.Secret.Bytes()))
		return nil
	}
	key, ok := c.o.Certificate.PrivateKey.(*rsa.PrivateKey)
	if !ok {
		return fmt.Errorf("%w: the certificate's key has to be RSA", ErrOptions)
	}
	sum, now := sha256.Sum256(c.o.Certificate.Certificate[0]), c.o.Now()
	part := func(v any) string {
		b, _ := json.Marshal(v) // strings and integers
		return base64.RawURLEncoding.EncodeToString(b)
	}
	signed := part(map[string]any{"alg": "PS256", "typ": "JWT", "x5t#S256": base64.RawURLEncoding.EncodeToString(sum[:])}) + "." + part(map[string]any{
		"aud": audience, "iss": c.o.App, "sub": c.o.App, "jti": guid(), "nbf": now.Unix(), "iat": now.Unix(), "exp": now.Add(assertion).Unix(),
	})
	digest := sha256.Sum256([]byte(signed))
	sig, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, digest[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	if err != nil {
		return fmt.Errorf("%w: signing: %w", ErrOptions, err)
	}
	form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
	form.Set("client_assertion", signed+"."+base64.RawURLEncoding.EncodeToString(sig))
	return nil
}

// guid returns a random UUID (RFC 9562, section 5.4).
func guid() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	s := hex.EncodeToString(b[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}
