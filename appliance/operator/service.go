package operator

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/authority"
	"github.com/postern-pki/postern/appliance/operator/acts"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/policy/challenge"
)

// Limits on a call: an answer holds the records of one request.
const (
	maxRecords = 1000
	actWithin  = 30 * time.Second
	noteWithin = 15 * time.Second // a checkpoint may keep the log busy for 10 s
)

type (
	doer interface {
		CreateChallenges(ctx context.Context, who audit.Actor, asked []authority.NewChallenge, before ...audit.Entry) ([]authority.Challenge, error)
		RevokeChallenge(ctx context.Context, who audit.Actor, id string, before ...audit.Entry) error
		RevokeCertificate(ctx context.Context, who audit.Actor, serial string, reason int, before ...audit.Entry) (store.Revocation, error)
		Approve(ctx context.Context, who audit.Actor, r authority.Ruling, before ...audit.Entry) (store.Issuance, error)
		Deny(ctx context.Context, who audit.Actor, r authority.Ruling, before ...audit.Entry) error
		SwitchCA(ctx context.Context, who audit.Actor, s authority.CASwitch, before ...audit.Entry) error
		CAs() []authority.CAState
		ProfilesOf(issuer string) []string
	}
	index interface {
		Certificate(ctx context.Context, serial string) (store.Issuance, error)
		Certificates(ctx context.Context, f store.CertificateFilter) ([]store.Issuance, error)
		Challenges(ctx context.Context, f store.ChallengeFilter) ([]challenge.Record, error)
		Pending(ctx context.Context, request string) (store.Pending, error)
		PendingList(ctx context.Context, f store.PendingFilter) ([]store.Pending, error)
		PendingCount(ctx context.Context, profile string, now time.Time) (int64, error)
		CountCAs(ctx context.Context, now time.Time) ([]store.CACount, error)
		Fetches(ctx context.Context, profile, generation string, limit int) ([]store.Fetch, int64, error)
		Fetched(ctx context.Context, profile, generation, source string) (time.Time, error)
	}
	recorder interface {
		AppendAll(ctx context.Context, e ...audit.Entry) ([]audit.Line, error)
		Head() audit.Head
		Checkpoint(ctx context.Context) ([]byte, error)
	}
)

// Options are what [New] needs; every field is required.
type Options struct {
	Acts   doer
	Index  index
	Log    recorder
	Scan   func(from uint64, fn func(audit.Line) error) error                         // the log's lines, see audit.Scan
	From   func(t time.Time) (uint64, error)                                          // where to Scan from, see audit.From
	Find   func(ctx context.Context, request string, limit int) ([]audit.Line, error) // a request's lines, see audit.Find
	Status func(ctx context.Context) Status                                           // but for Operators and Waiting
	// Publication is what an issuer's web server elsewhere hands out, see [Publication].
	Publication func(ctx context.Context, issuer, after string) (Publication, error)
	Origin      string // of the log
	Rules       acts.Rules
	Now         func() time.Time
	Zap         *zap.Logger
	Manifests   rpc.ManifestSigner
}

// Service carries out operators' calls. It implements [rpc.Operator], and is safe
// for concurrent use.
type Service struct {
	Options
	table    []acts.Act
	handlers map[string]handler
	ordering chan struct{} // held while an order is carried out: one at a time
}

var _ rpc.Operator = (*Service)(nil)

// New returns the API.
func New(o Options) *Service {
	return &Service{o, acts.Table(), handlers(), make(chan struct{}, 1)}
}

// handler does one act; what it returns becomes JSON.
type handler func(s *Service, ctx context.Context, r *request) (code int, answer any, err error)

// handlers has every act of the table.
func handlers() map[string]handler {
	return map[string]handler{
		acts.ReadStatus:        (*Service).status,
		acts.CreateChallenge:   (*Service).createChallenges,
		acts.CreateChallenges:  (*Service).createChallenges,
		acts.ListChallenges:    (*Service).challenges,
		acts.RevokeChallenge:   (*Service).revokeChallenge,
		acts.ListCertificates:  (*Service).certificates,
		acts.ShowCertificate:   (*Service).certificate,
		acts.RevokeCertificate: (*Service).revokeCertificate,
		acts.ReadPublication:   (*Service).publication,
		acts.ShowRecords:       (*Service).records,
		acts.ListPending:       (*Service).pendings,
		acts.ShowPending:       (*Service).pending,
		acts.ApprovePending:    (*Service).approvePending,
		acts.DenyPending:       (*Service).denyPending,
		acts.ReportClients:     (*Service).clients,
		acts.ListCAs:           (*Service).cas,
		acts.ShowRollover:      (*Service).rollover,
		acts.SwitchCA:          (*Service).switchCA,
		acts.ExportBundle:      (*Service).export,
		acts.SignCheckpoint:    (*Service).checkpoint,
		acts.SubmitOrder:       (*Service).submit,
	}
}

// request is a call as an act sees it.
type request struct {
	rpc.Call
	who    audit.Actor
	person acts.Person
	act    string // as far as it is known
	order  string // its id, "" if there is none
	arg    string // what stands for the * of the path
	query  url.Values
}

// find returns the first row of a call's path, and what stands for its *.
func (s *Service) find(method, path string) (acts.Act, string, bool) {
	if method == http.MethodHead {
		method = http.MethodGet
	}
	for _, a := range s.table {
		if a.Method != method {
			continue
		}
		if a.Path == path {
			return a, "", true
		}
		folder, open := strings.CutSuffix(a.Path, "*")
		if arg, in := strings.CutPrefix(path, folder); open && in && arg != "" && !strings.Contains(arg, "/") {
			return a, arg, true
		}
	}
	return acts.Act{}, "", false
}

// permit makes it known which act is asked for, and refuses who has no role for it.
func (r *request) permit(act acts.Act) error {
	r.act = act.Name
	if act.May(r.person.Roles) {
		return nil
	}
	return refuse(http.StatusForbidden, fmt.Sprintf("%s may not: %s", r.person.Name, act.Name),
		fmt.Sprintf("it takes one of the roles %s; this is one with %s", words(act.Roles), words(r.person.Roles)))
}

func words(roles []acts.Role) string {
	out := make([]string, len(roles))
	for i, r := range roles {
		out[i] = string(r)
	}
	return strings.Join(out, ", ")
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
	r := &request{Call: c, who: audit.Actor{Kind: "operator", ID: c.Actor.ID, Source: c.Actor.Source}}
	var known bool
	if r.person, known = s.Rules.Who(c.Actor.ID); !c.Allowed || !known {
		s.note(ctx, r, "denied", "")
		p := Problem{Error: "not an operator", Hint: "operators.people and operators.local in the configuration say who is one"}
		if c.Allowed {
			p.Hint += "; this is " + c.Actor.ID
		}
		return s.encode(http.StatusForbidden, p), nil
	}
	within, cancel := context.WithTimeout(ctx, actWithin)
	defer cancel()
	code, answer, err := s.safely(within, r)
	if err != nil {
		var p Problem
		code, p = s.failure(err)
		switch answer = p; {
		case code == http.StatusForbidden:
			s.note(ctx, r, "denied", p.Error)
		case c.Method != http.MethodGet && c.Method != http.MethodHead:
			s.note(ctx, r, "refused", p.Error)
		}
	}
	return s.encode(code, answer), nil
}

// RefuseLink refuses a call that came over a link on which operators have nothing
// to say, such as that of the devices' gate, and records it as a security event.
// Who the call says it is from is that gate's invention.
func (s *Service) RefuseLink(ctx context.Context, link string, c rpc.Call) (rpc.Answer, error) {
	const why = "operators' acts come from the operators' gate alone"
	who := audit.Actor{Kind: "gate", ID: link}
	s.record(ctx,
		audit.Entry{Event: "operator", Outcome: "refused", Actor: who, Object: audit.Object{
			"method": cut(c.Method), "path": cut(c.Path), "claims": cut(c.Actor.ID), "link": cut(link), "why": why}},
		audit.Entry{Event: "security", Outcome: "alert", Actor: who, Object: audit.Object{"what": "an operator's act came from another gate", "link": cut(link)}})
	s.Zap.Error("security event", zap.String("what", why), zap.String("link", link))
	return s.encode(http.StatusForbidden, Problem{Error: why}), nil
}

// safely does what is asked, and makes a panic a fault of ours.
func (s *Service) safely(ctx context.Context, r *request) (code int, answer any, err error) {
	defer func() {
		if v := recover(); v != nil {
			s.Zap.Error("operator API: panic", zap.Any("value", v), zap.ByteString("stack", debug.Stack()))
			err = errPanic
		}
	}()
	switch r.Fault {
	case rpc.Whole:
	case rpc.TooLarge:
		return 0, nil, refuse(http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes, or the path or query than %d", rpc.MaxBody, rpc.MaxPath), "")
	case rpc.CrossSite:
		return 0, nil, refuse(http.StatusForbidden, "a request from another site", "")
	default:
		return 0, nil, refuse(http.StatusBadRequest, "the body did not come whole", "")
	}
	act, arg, ok := s.find(r.Method, r.Path)
	if !ok {
		return 0, nil, refuse(http.StatusNotFound, "no such resource", "the API begins at /api/v1/status")
	}
	if err := r.permit(act); err != nil {
		return 0, nil, err
	}
	r.arg = arg
	if r.query, err = url.ParseQuery(r.Query); err != nil {
		return 0, nil, refuse(http.StatusBadRequest, "the query cannot be read", "name=value&name=value, with %XX for what is not a letter or digit")
	}
	return s.handlers[act.Name](s, ctx, r)
}

// note records an attempt that came to nothing, also of somebody who hung up.
func (s *Service) note(ctx context.Context, r *request, out, why string) {
	o := audit.Object{"method": cut(r.Method), "path": cut(r.Path)}
	for key, value := range map[string]string{"why": why, "act": r.act, "id": r.order} {
		if value != "" {
			o[key] = cut(value)
		}
	}
	s.record(ctx, audit.Entry{Event: "operator", Outcome: out, Actor: r.who, Object: o})
}

func (s *Service) record(ctx context.Context, e ...audit.Entry) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteWithin)
	defer cancel()
	if _, err := s.Log.AppendAll(ctx, e...); err != nil {
		s.Zap.Error("an operator's attempt could not be recorded", zap.String("outcome", e[0].Outcome), zap.Error(err))
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
	case errors.Is(err, authority.ErrNotRevocable):
		return http.StatusConflict, Problem{Error: err.Error(), Hint: "postern cert show says how it is"}
	case errors.Is(err, authority.ErrNotOpen):
		return http.StatusConflict, Problem{Error: err.Error(), Hint: "postern challenge list says how it is"}
	case errors.Is(err, authority.ErrReason):
		return http.StatusBadRequest, Problem{Error: err.Error(), Hint: "--reason TEXT: it stands in the log, and the device is not told"}
	case errors.Is(err, authority.ErrNotWaiting):
		return http.StatusConflict, Problem{Error: err.Error(), Hint: "postern pending show ID says how it is"}
	case errors.Is(err, authority.ErrRefused):
		return http.StatusConflict, Problem{Error: err.Error(), Hint: "it still waits: change what stands against it, or deny it"}
	case errors.Is(err, authority.ErrNoCA):
		return http.StatusNotFound, Problem{Error: err.Error(), Hint: "postern ca list"}
	case errors.Is(err, authority.ErrCurrent):
		return http.StatusConflict, Problem{Error: err.Error(), Hint: "postern ca list says which; somebody may have switched meanwhile"}
	case errors.Is(err, authority.ErrNotNow):
		return http.StatusConflict, Problem{Error: err.Error(), Hint: "postern ca list says when which certificates begin and end"}
	case errors.Is(err, acts.ErrForm):
		return http.StatusBadRequest, Problem{Error: err.Error(), Hint: "postern challenge create --act FILE writes one"}
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
	st, head := s.Status(ctx), s.Log.Head()
	st.Log.Size, st.Log.Root, st.Log.Last = head.Size, hex.EncodeToString(head.Root[:]), hex.EncodeToString(head.Prev[:])
	st.Operators = StatusOperators{LocalDefault: s.Rules.Default, TwoPerson: append([]string{}, s.Rules.TwoPerson...)}
	for _, p := range s.Rules.People {
		if strings.HasPrefix(p.ID, "uid:") {
			st.Operators.Local++
		} else {
			st.Operators.People++
		}
	}
	for _, p := range st.Profiles {
		n, err := s.Index.PendingCount(ctx, p.Name, s.Now())
		if err != nil {
			break // that something is wrong with the index is said above
		}
		st.Waiting += n
	}
	return http.StatusOK, st, nil
}

var (
	errEnough = errors.New("enough")
	errBatch  = errors.New("operator: no list")
	errPanic  = errors.New("operator: panic")
)
