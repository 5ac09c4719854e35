package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/postern-pki/postern/appliance/authority"
	"github.com/postern-pki/postern/appliance/operator/acts"
	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/policy/challenge"
)

func (s *Service) createChallenges(ctx context.Context, r *request) (int, any, error) {
	asked, err := readBatch(r.Body)
	if err != nil {
		return 0, nil, err
	}
	act := acts.CreateChallenge
	if len(asked) > 1 {
		act = acts.CreateChallenges
	}
	return s.alone(ctx, r, act, acts.Parameters{Challenges: asked})
}

func (s *Service) revokeChallenge(ctx context.Context, r *request) (int, any, error) {
	if len(r.Body) > 0 {
		return 0, nil, refuse(http.StatusBadRequest, "a body means nothing here", "")
	}
	return s.alone(ctx, r, acts.RevokeChallenge, acts.Parameters{Challenge: r.arg})
}

// alone does an act that one person asks for.
func (s *Service) alone(ctx context.Context, r *request, name string, p acts.Parameters) (int, any, error) {
	act, _ := acts.Named(name)
	if err := r.permit(act); err != nil {
		return 0, nil, err
	}
	if s.Rules.NeedsTwo(name) {
		return 0, nil, refuse(http.StatusForbidden, fmt.Sprintf("%s takes %d people here", name, acts.Signers),
			"with --act FILE the same command writes the act down; each person signs it with postern act sign, and postern act submit sends it")
	}
	return s.perform(ctx, r.who, name, p)
}

// perform does an act that is allowed. What is before it in the log is durable
// together with it.
func (s *Service) perform(ctx context.Context, who audit.Actor, act string, p acts.Parameters, before ...audit.Entry) (int, any, error) {
	switch act {
	case acts.ApprovePending, acts.DenyPending:
		return s.decide(ctx, who, act, p, before...)
	case acts.RevokeCertificate:
		return s.revoke(ctx, who, p, before...)
	case acts.SwitchCA:
		return http.StatusOK, *p.Switch, s.Acts.SwitchCA(ctx, who, authority.CASwitch(*p.Switch), before...)
	case acts.RevokeChallenge:
		err := s.Acts.RevokeChallenge(ctx, who, p.Challenge, before...)
		if errors.Is(err, store.ErrNotFound) {
			err = refuse(http.StatusNotFound, "no challenge has that id", "postern challenge list")
		}
		return http.StatusOK, Revoked{p.Challenge}, err
	}
	list := make([]authority.NewChallenge, len(p.Challenges))
	for i, a := range p.Challenges {
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
	made, err := s.Acts.CreateChallenges(ctx, who, list, before...)
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

func (s *Service) challenges(ctx context.Context, r *request) (int, any, error) {
	f := store.ChallengeFilter{Profile: r.query.Get("profile"), State: challenge.State(r.query.Get("state"))}
	if f.State != "" && !slices.Contains([]challenge.State{challenge.Open, challenge.Spent, challenge.Revoked}, f.State) {
		return 0, nil, refuse(http.StatusBadRequest, "a challenge has no such state", "open, spent or revoked")
	}
	var err error
	if f.Limit, err = limitOf(r); err != nil {
		return 0, nil, err
	}
	list, err := s.Index.Challenges(ctx, f)
	if err != nil {
		return 0, nil, err
	}
	out := Challenges{Challenges: make([]ChallengeState, len(list))}
	for i, c := range list {
		out.Challenges[i] = ChallengeState{
			ID: c.ID, State: string(c.State), Profile: c.Profile, Subject: policy.FormatSubject(c.Names.Subject), DNS: c.Names.DNS,
			Created: c.Created, Expires: c.Expires, Refusals: c.Refusals,
		}
	}
	return http.StatusOK, out, nil
}
