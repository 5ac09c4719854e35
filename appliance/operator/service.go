package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/authority"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
)

// Limits on a call: an answer holds the records of one request.
const (
	maxRecords = 1000
	actWithin  = 30 * time.Second
	noteWithin = 15 * time.Second // a checkpoint may keep the log busy for 10 s
)

type (
	acts interface {
		CreateChallenges(ctx context.Context, who audit.Actor, asked []authority.NewChallenge) ([]authority.Challenge, error)
	}
	index interface {
		Certificate(ctx context.Context, serial string) (store.Issuance, error)
		Certificates(ctx context.Context, f store.CertificateFilter) ([]store.Issuance, error)
	}
	recorder interface {
		Append(ctx context.Context, e audit.Entry) (audit.Line, error)
	}
)

// Options are what [New] needs; every field is required.
type Options struct {
	Acts   acts
	Index  index
	Log    recorder
	Scan   func(from uint64, fn func(audit.Line) error) error                         // the log's lines, see audit.Scan
	Find   func(ctx context.Context, request string, limit int) ([]audit.Line, error) // a request's lines, see audit.Find
	Status func(ctx context.Context) Status
	Zap    *zap.Logger
}

// Service carries out operators' calls. It implements [rpc.Operator], and is safe
// for concurrent use.
type Service struct {
	Options
	routes []route
}

var _ rpc.Operator = (*Service)(nil)

// New returns the API.
func New(o Options) *Service { return &Service{o, routes()} }

// An act is one thing to do for an operator; what it returns becomes JSON.
type act func(s *Service, ctx context.Context, r *request) (code int, answer any, err error)

// route is where an act is found: path is exact, but for a last segment *, which
// is anything without a slash.
type route struct {
	method, path string
	do           act
}

func routes() []route {
	return []route{
		{http.MethodGet, "/api/v1/status", (*Service).status},
		{http.MethodPost, "/api/v1/challenges", (*Service).createChallenges},
		{http.MethodGet, "/api/v1/certificates", (*Service).certificates},
		{http.MethodGet, "/api/v1/certificates/*", (*Service).certificate},
		{http.MethodGet, "/api/v1/records", (*Service).records},
	}
}

// request is a call as an act sees it.
type request struct {
	who   audit.Actor
	arg   string // what stands for the * of the path
	query url.Values
	body  []byte
}

// find returns the route of a call, and what stands for its *.
func (s *Service) find(method, path string) (route, string, bool) {
	if method == http.MethodHead {
		method = http.MethodGet
	}
	for _, r := range s.routes {
		if r.method != method {
			continue
		}
		if r.path == path {
			return r, "", true
		}
		folder, open := strings.CutSuffix(r.path, "*")
		if arg, in := strings.CutPrefix(path, folder); open && in && arg != "" && !strings.Contains(arg, "/") {
			return r, arg, true
		}
	}
	return route{}, "", false
}

// problem is an error with its status; everything else is a fault of ours.
type problem struct {
	code int
	Problem
}

func (p *problem) Error() string { return p.Problem.Error }

func refuse(code int, text, hint string) error { return &problem{code, Problem{text, hint}} }

// Operate implements [rpc.Operator]. It is the one place that says within which
// time and which status an error gets. An act that was not carried out is recorded
// here, one that was where it is done. It returns no error: whatever went wrong
// is an answer.
func (s *Service) Operate(ctx context.Context, c rpc.Call) (rpc.Answer, error) {
	who := audit.Actor{Kind: c.Actor.Kind, ID: c.Actor.ID, Source: c.Actor.Source}
	if !c.Allowed {
		s.note(ctx, c, who, "denied", "")
		return s.encode(http.StatusForbidden, Problem{Error: "not an operator", Hint: "root and the service's own user may use the local socket"}), nil
	}
	within, cancel := context.WithTimeout(ctx, actWithin)
	defer cancel()
	code, answer, err := s.safely(within, c, who)
	if err != nil {
		var p Problem
		code, p = s.failure(err)
		if answer = p; c.Method != http.MethodGet && c.Method != http.MethodHead {
			s.note(ctx, c, who, "refused", p.Error)
		}
	}
	return s.encode(code, answer), nil
}

// safely does what is asked, and makes a panic a fault of ours.
func (s *Service) safely(ctx context.Context, c rpc.Call, who audit.Actor) (code int, answer any, err error) {
	defer func() {
		if v := recover(); v != nil {
			s.Zap.Error("operator API: panic", zap.Any("value", v), zap.ByteString("stack", debug.Stack()))
			err = errPanic
		}
	}()
	switch c.Fault {
	case rpc.Whole:
	case rpc.TooLarge:
		return 0, nil, refuse(http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes, or the path or query than %d", rpc.MaxBody, rpc.MaxPath), "")
	default:
		return 0, nil, refuse(http.StatusBadRequest, "the body did not come whole", "")
	}
	r, arg, ok := s.find(c.Method, c.Path)
	if !ok {
		return 0, nil, refuse(http.StatusNotFound, "no such resource", "the API begins at /api/v1/status")
	}
	query, err := url.ParseQuery(c.Query)
	if err != nil {
		return 0, nil, refuse(http.StatusBadRequest, "the query cannot be read", "name=value&name=value, with %XX for what is not a letter or digit")
	}
	return r.do(s, ctx, &request{who, arg, query, c.Body})
}

// note records an attempt that came to nothing, also of somebody who hung up.
func (s *Service) note(ctx context.Context, c rpc.Call, who audit.Actor, out, why string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteWithin)
	defer cancel()
	o := audit.Object{"method": cut(c.Method), "path": cut(c.Path)}
	if why != "" {
		o["why"] = cut(why)
	}
	if _, err := s.Log.Append(ctx, audit.Entry{Event: "operator", Outcome: out, Actor: who, Object: o}); err != nil {
		s.Zap.Error("an operator's attempt could not be recorded", zap.String("outcome", out), zap.Error(err))
	}
}

// cut bounds what a record quotes of a request.
func cut(s string) string {
	const most = 256
	return strings.ToValidUTF8(s[:min(len(s), most)], "\uFFFD")
}

func (s *Service) failure(err error) (int, Problem) {
	if p, ok := errors.AsType[*problem](err); ok {
		return p.code, p.Problem
	}
	switch {
	case errors.Is(err, authority.ErrNoProfile):
		return http.StatusBadRequest, Problem{Error: err.Error(), Hint: "postern status lists the profiles"}
	case errors.Is(err, authority.ErrBadRequest):
		return http.StatusBadRequest, Problem{Error: err.Error(), Hint: "the profile's rules decide: subject, san and challenge"}
	}
	s.Zap.Error("operator API", zap.Error(err))
	return http.StatusServiceUnavailable, Problem{Error: "the appliance could not do this now", Hint: "postern status says why; the service's journal has the details"}
}

// encode makes the answer, which has its bound too.
func (s *Service) encode(code int, answer any) rpc.Answer {
	body, err := json.Marshal(answer)
	if err == nil && len(body) >= rpc.MaxAnswer {
		return s.encode(http.StatusServiceUnavailable, Problem{Error: "the answer is larger than can be shown at once", Hint: "ask for less; the log on disk has all of it"})
	}
	if err != nil {
		s.Zap.Error("operator API", zap.Error(err))
		return s.encode(s.failure(err))
	}
	return rpc.Answer{Code: code, Body: append(body, '\n')}
}

func (s *Service) status(ctx context.Context, _ *request) (int, any, error) {
	return http.StatusOK, s.Status(ctx), nil
}

func (s *Service) createChallenges(ctx context.Context, r *request) (int, any, error) {
	asked, err := readBatch(r.body)
	if err != nil {
		return 0, nil, err
	}
	list := make([]authority.NewChallenge, len(asked))
	for i, a := range asked {
		list[i] = authority.NewChallenge{Profile: a.Profile, Subject: a.Subject, DNS: a.DNS}
		if a.TTL == "" {
			continue
		}
		ttl, err := time.ParseDuration(a.TTL)
		if err != nil || ttl <= 0 {
			return 0, nil, refuse(http.StatusBadRequest, fmt.Sprintf("challenge %d: ttl is not a positive duration", i+1), "such as 30m")
		}
		list[i].TTL = ttl
	}
	made, err := s.Acts.CreateChallenges(ctx, r.who, list)
	if err != nil {
		return 0, nil, err
	}
	out := make([]Challenge, len(made))
	for i, c := range made {
		out[i] = Challenge{ID: c.ID, Challenge: c.Secret.Text(), Expires: c.Expires, Profile: c.Profile, Subject: c.Subject}
	}
	return http.StatusCreated, out, nil
}

// readBatch reads a list, and no more of it than can be asked for at once: the
// body of a batch could hold a million empty ones.
func readBatch(body []byte) (asked []ChallengeRequest, err error) {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	token, err := dec.Token()
	if err == nil && token != json.Delim('[') {
		err = errBatch
	}
	for err == nil && dec.More() {
		if len(asked) == authority.MaxBatch {
			return nil, refuse(http.StatusBadRequest, fmt.Sprintf("a batch has 1 to %d challenges", authority.MaxBatch), "send the rest in another one")
		}
		asked = append(asked, ChallengeRequest{})
		err = dec.Decode(&asked[len(asked)-1])
	}
	if err == nil {
		_, err = dec.Token() // the list's end
	}
	if err == nil {
		if _, err = dec.Token(); errors.Is(err, io.EOF) {
			return asked, nil
		}
	}
	return nil, refuse(http.StatusBadRequest, "the body is not a list of challenge requests", "fields: profile, subject, dns, ttl")
}

var (
	errEnough = errors.New("enough")
	errBatch  = errors.New("operator: no list")
	errPanic  = errors.New("operator: panic")
)
