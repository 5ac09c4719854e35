package operator

import (
	"cmp"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/authority"
	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
)

// Limits on a request: a body holds a batch of challenges, an answer the records
// of one request.
const (
	maxBody    = 4 << 20
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

// Options are what [NewHandler] needs; every field is required.
type Options struct {
	Acts   acts
	Index  index
	Log    recorder
	Scan   func(from uint64, fn func(audit.Line) error) error                         // the log's lines, see audit.Scan
	Find   func(ctx context.Context, request string, limit int) ([]audit.Line, error) // a request's lines, see audit.Find
	Status func(ctx context.Context) Status
	Actor  func(r *http.Request) (audit.Actor, bool) // who asks; false refuses
	Zap    *zap.Logger
}

type server struct{ Options }

// NewHandler returns the API. A browser that another site sends here, with an
// operator's certificate in it, is turned away.
func NewHandler(o Options) http.Handler {
	s := &server{o}
	mux := http.NewServeMux()
	for pattern, h := range map[string]func(*http.Request, audit.Actor) (int, any, error){
		"GET /api/v1/status":                s.status,
		"POST /api/v1/challenges":           s.createChallenges,
		"GET /api/v1/certificates":          s.certificates,
		"GET /api/v1/certificates/{serial}": s.certificate,
		"GET /api/v1/records":               s.records,
	} {
		mux.Handle(pattern, s.answered(h))
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		s.write(w, http.StatusNotFound, Problem{Error: "no such resource", Hint: "the API begins at /api/v1/status"})
	})
	own := http.NewCrossOriginProtection()
	own.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.write(w, http.StatusForbidden, Problem{Error: "a request from another site"})
	}))
	return own.Handler(mux)
}

// problem is an error with its status; everything else is a fault of ours.
type problem struct {
	code int
	Problem
}

func (p *problem) Error() string { return p.Problem.Error }

func refuse(code int, text, hint string) error { return &problem{code, Problem{text, hint}} }

// answered is the one place that writes: who, within which time, and which
// status an error gets. An act that was not carried out is recorded here, one that
// was where it is done.
func (s *server) answered(h func(*http.Request, audit.Actor) (int, any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, ok := s.Actor(r)
		if !ok {
			s.note(r, who, "denied", "")
			s.write(w, http.StatusForbidden, Problem{Error: "not an operator", Hint: "root and the service's own user may use the local socket"})
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), actWithin)
		defer cancel()
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		code, answer, err := s.safely(h, r.WithContext(ctx), who)
		if err != nil {
			var p Problem
			code, p = s.failure(err)
			if answer = p; r.Method != http.MethodGet && r.Method != http.MethodHead {
				s.note(r, who, "refused", p.Error)
			}
		}
		s.write(w, code, answer)
	})
}

// safely makes a panic a fault of ours.
func (s *server) safely(h func(*http.Request, audit.Actor) (int, any, error), r *http.Request, who audit.Actor) (code int, answer any, err error) {
	defer func() {
		if v := recover(); v != nil {
			s.Zap.Error("operator API: panic", zap.Any("value", v), zap.ByteString("stack", debug.Stack()))
			err = errPanic
		}
	}()
	return h(r, who)
}

// note records an attempt that came to nothing, also of somebody who hung up.
func (s *server) note(r *http.Request, who audit.Actor, out, why string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), noteWithin)
	defer cancel()
	o := audit.Object{"method": cut(r.Method), "path": cut(r.URL.Path)}
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

func (s *server) failure(err error) (int, Problem) {
	if p, ok := errors.AsType[*problem](err); ok {
		return p.code, p.Problem
	}
	if tooLong, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return http.StatusRequestEntityTooLarge, Problem{Error: fmt.Sprintf("the body is larger than %d bytes", tooLong.Limit)}
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

func (s *server) write(w http.ResponseWriter, code int, answer any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		s.Zap.Debug("operator hung up", zap.Error(err))
	}
}

func (s *server) status(r *http.Request, _ audit.Actor) (int, any, error) {
	return http.StatusOK, s.Status(r.Context()), nil
}

func (s *server) createChallenges(r *http.Request, who audit.Actor) (int, any, error) {
	asked, err := readBatch(r.Body)
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
	made, err := s.Acts.CreateChallenges(r.Context(), who, list)
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
func readBatch(body io.Reader) (asked []ChallengeRequest, err error) {
	dec := json.NewDecoder(body)
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
		err = cmp.Or(err, errBatch)
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, err
	}
	return nil, refuse(http.StatusBadRequest, "the body is not a list of challenge requests", "fields: profile, subject, dns, ttl")
}

func (s *server) certificates(r *http.Request, _ audit.Actor) (int, any, error) {
	q := r.URL.Query()
	f := store.CertificateFilter{Profile: q.Get("profile"), Subject: q.Get("subject"), State: store.State(q.Get("state"))}
	var err error
	if v := q.Get("limit"); v != "" {
		if f.Limit, err = strconv.Atoi(v); err != nil || f.Limit < 1 || f.Limit > 1000 {
			return 0, nil, refuse(http.StatusBadRequest, "limit is 1 to 1000", "")
		}
	}
	if v := q.Get("before"); v != "" {
		if f.Before, err = strconv.ParseUint(v, 10, 53); err != nil {
			return 0, nil, refuse(http.StatusBadRequest, "before is a number that a list gave", "")
		}
	}
	if f.Limit == 0 {
		f.Limit = 100
	}
	list, err := s.Index.Certificates(r.Context(), f)
	if err != nil {
		return 0, nil, err
	}
	out := Certificates{Certificates: make([]Certificate, len(list))}
	for i, c := range list {
		out.Certificates[i] = certificateOf(c)
	}
	if n := len(list); n > 0 && n == f.Limit {
		out.Before = list[n-1].IntentSeq
	}
	return http.StatusOK, out, nil
}

func (s *server) certificate(r *http.Request, _ audit.Actor) (int, any, error) {
	i, err := s.issuance(r.Context(), r.PathValue("serial"))
	if err != nil {
		return 0, nil, err
	}
	c := certificateOf(i)
	if i.Certificate != nil {
		c.PEM = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Certificate}))
	}
	return http.StatusOK, c, nil
}

func (s *server) issuance(ctx context.Context, serial string) (store.Issuance, error) {
	i, err := s.Index.Certificate(ctx, serial)
	if errors.Is(err, store.ErrNotFound) {
		err = refuse(http.StatusNotFound, "no certificate has that serial number", "postern cert list")
	}
	return i, err
}

func certificateOf(i store.Issuance) Certificate {
	return Certificate{
		Serial: i.Serial, State: string(i.State), Profile: i.Profile, Issuer: i.Issuer, Subject: i.Subject,
		NotBefore: i.NotBefore, NotAfter: i.NotAfter, Request: i.Request, Lineage: i.Lineage, Renewal: i.Generation,
		Predecessor: i.Predecessor, RevocationDue: i.RevocationDue, IntentSeq: i.IntentSeq, ResultSeq: i.ResultSeq,
	}
}

var (
	errEnough = errors.New("enough")
	errBatch  = errors.New("operator: no list")
	errPanic  = errors.New("operator: panic")
)

// records finds the lines of a request, or of a serial number, in the log itself:
// the log is the truth, the index only says where a serial's stand.
func (s *server) records(r *http.Request, _ audit.Actor) (int, any, error) {
	ctx, req, serial := r.Context(), r.URL.Query().Get("req"), r.URL.Query().Get("serial")
	if (req == "") == (serial == "") {
		return 0, nil, refuse(http.StatusBadRequest, "ask for one of req and serial", "")
	}
	var lines []audit.Line
	var err error
	if req != "" {
		lines, err = s.Find(ctx, req, maxRecords)
	} else {
		lines, err = s.ofSerial(ctx, serial)
	}
	if err != nil {
		return 0, nil, err
	}
	if len(lines) == 0 {
		return 0, nil, refuse(http.StatusNotFound, "no record is of that request", "the id is the one that the device was told")
	}
	out := Records{Records: make([]string, len(lines))}
	for i, l := range lines {
		out.Records[i] = string(l.Raw)
	}
	return http.StatusOK, out, nil
}

// ofSerial reads from a serial's intent to its outcome.
func (s *server) ofSerial(ctx context.Context, serial string) (lines []audit.Line, _ error) {
	i, err := s.issuance(ctx, serial)
	if err != nil {
		return nil, err
	}
	to := uint64(math.MaxUint64)
	if i.ResultSeq > 0 {
		to = i.ResultSeq
	}
	err = s.Scan(i.IntentSeq, func(l audit.Line) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if l.Record.Seq <= to && l.Record.Request == i.Request {
			lines = append(lines, l)
		}
		if l.Record.Seq >= to || len(lines) == maxRecords {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return lines, err
}
