package courier

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/policy/challenge"
)

// maxAsked bounds the questions that one validator has before it: a stranger whose
// requests prove themselves has one asked for each.
const maxAsked = 32

// A Peer is a validator as the courier talks to it.
type Peer interface {
	Ask(ctx context.Context, q challenge.Question) challenge.Answer
}

// Validators puts questions to those who vouch. Each hears what is addressed to it
// alone. It is safe for concurrent use.
type Validators struct {
	peers map[string]chan Peer // a place for each question
	log   *zap.Logger
}

// NewValidators returns the validators by their names.
func NewValidators(peers map[string]Peer, log *zap.Logger) *Validators {
	if log == nil {
		log = zap.NewNop()
	}
	v := &Validators{peers: make(map[string]chan Peer), log: log}
	for name, p := range peers {
		places := make(chan Peer, maxAsked)
		for range maxAsked {
			places <- p
		}
		v.peers[name] = places
	}
	return v
}

// Ask puts a question to the validator that it names. A question to nobody is an
// error; whatever a validator does is an answer.
func (v *Validators) Ask(ctx context.Context, q challenge.Question) (a challenge.Answer, err error) {
	places, ok := v.peers[q.Validator]
	if !ok {
		return a, fmt.Errorf("courier: no validator %q", q.Validator)
	}
	select {
	case p := <-places:
		defer func() { places <- p }()
		a = p.Ask(ctx, q)
	case <-ctx.Done():
		a = challenge.AnswerOf(challenge.TimedOut, "busy", fmt.Sprintf("%d other questions are before it", maxAsked))
	}
	if !a.Verdict.Answered() {
		v.log.Warn("a validator does not answer", zap.String("validator", q.Validator), zap.String("occasion", q.Occasion),
			zap.String("request", q.Request), zap.String("verdict", string(a.Verdict)), zap.String("say", a.Say))
	}
	return a, nil
}

// Outbound is how a validator is reached: TLS by the given roots, no proxy, and a
// client certificate where there is one. What is read is bounded by who reads it.
func Outbound(roots *x509.CertPool, certificate *tls.Certificate) http.RoundTripper {
	c := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	if certificate != nil {
		c.Certificates = []tls.Certificate{*certificate}
	}
	return &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		TLSClientConfig:     c,
		TLSHandshakeTimeout: 5 * time.Second, IdleConnTimeout: 30 * time.Second,
		MaxIdleConnsPerHost: 8, MaxConnsPerHost: maxAsked, MaxResponseHeaderBytes: 64 << 10, ForceAttemptHTTP2: true,
	}
}
