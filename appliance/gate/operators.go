package gate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/tls/listen"
)

// operateWithin bounds a call: the authority's own bound on an act, and what it
// takes to record that the act failed.
const operateWithin = 50 * time.Second

// Operators returns the handler of the operators' API: what is HTTP of it. Every
// request becomes one call to the backend, which decides and records; actor says
// who asks, and false where nobody knows. The backend is told where another site
// sent it, through a browser with an operator's certificate.
func Operators(backend rpc.Operator, actor func(*http.Request) (rpc.Actor, bool), log *zap.Logger) http.Handler {
	return operators{backend, actor, http.NewCrossOriginProtection(), log}
}

type operators struct {
	backend rpc.Operator
	actor   func(*http.Request) (rpc.Actor, bool)
	own     *http.CrossOriginProtection
	log     *zap.Logger
}

func (g operators) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), operateWithin)
	defer cancel()
	answer, err := g.backend.Operate(ctx, g.call(w, r))
	if err != nil {
		g.log.Error("operators: the authority did not answer", zap.Error(err))
		w.Header().Set("Retry-After", "5")
		answer = rpc.Answer{Code: http.StatusServiceUnavailable, Body: []byte(`{"error":"the appliance did not answer",` +
			`"hint":"ask what became of it before you try again: postern status, and postern audit show"}` + "\n")}
	}
	g.write(w, answer)
}

// call is the request as the authority gets it. What is beyond its bounds is sent
// too, as far as it fits: also that attempt is recorded.
func (g operators) call(w http.ResponseWriter, r *http.Request) rpc.Call {
	var c rpc.Call
	c.Actor, c.Allowed = g.actor(r)
	c.Method, c.Path, c.Query = r.Method, r.URL.Path, r.URL.RawQuery
	for _, part := range []struct {
		text *string
		most int
	}{
		{&c.Actor.Kind, rpc.MaxActor}, {&c.Actor.ID, rpc.MaxActor}, {&c.Actor.Source, rpc.MaxActor},
		{&c.Method, rpc.MaxMethod}, {&c.Path, rpc.MaxPath}, {&c.Query, rpc.MaxPath},
	} {
		if len(*part.text) > part.most {
			*part.text, c.Fault = (*part.text)[:part.most], rpc.TooLarge
		}
	}
	if c.Fault == rpc.Whole && g.own.Check(r) != nil {
		c.Fault = rpc.CrossSite
	}
	if !c.Allowed || c.Fault != rpc.Whole {
		return c // nobody reads the body
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, rpc.MaxBody))
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		c.Fault = rpc.TooLarge
	} else if err != nil {
		c.Fault = rpc.Broken
	} else {
		c.Body = body
	}
	return c
}

func (g operators) write(w http.ResponseWriter, a rpc.Answer) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(a.Code)
	if _, err := w.Write(a.Body); err != nil {
		g.log.Debug("operator hung up", zap.Error(err))
	}
}

// LocalActor asks the kernel who is at the other end of a local socket.
func LocalActor(r *http.Request) (rpc.Actor, bool) {
	who := rpc.Actor{Kind: "operator", Source: "local"}
	peer, ok := listen.PeerOf(r.Context())
	if ok {
		who.ID = "uid:" + strconv.FormatUint(uint64(peer.UID), 10)
	}
	return who, ok
}

// CertificateActor names an operator by the key of the certificate that the
// handshake verified.
func CertificateActor(r *http.Request) (rpc.Actor, bool) {
	who := rpc.Actor{Kind: "operator", Source: r.RemoteAddr}
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return who, false
	}
	sum := sha256.Sum256(r.TLS.PeerCertificates[0].RawSubjectPublicKeyInfo)
	who.ID = "key:" + hex.EncodeToString(sum[:])
	return who, true
}
