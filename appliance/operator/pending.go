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
	"strconv"

	"github.com/postern-pki/postern/appliance/authority"
	"github.com/postern-pki/postern/appliance/operator/acts"
	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
)

// stateExpired is what a request is called that nobody decided on in time.
const stateExpired = "expired"

func (s *Service) pendings(ctx context.Context, r *request) (int, any, error) {
	q := r.query
	f := store.PendingFilter{Profile: q.Get("profile"), State: store.PendingState(q.Get("state"))}
	states := []store.PendingState{"", store.Waiting, store.Approved, store.Granted, store.Denied}
	if !slices.Contains(states, f.State) {
		return 0, nil, refuse(http.StatusBadRequest, "a request has no such state", "waiting, approved, issued or denied")
	}
	if f.State == store.Waiting {
		f.After = s.Now()
	}
	var err error
	if f.Limit, err = limitOf(r); err != nil {
		return 0, nil, err
	}
	if v := q.Get("before"); v != "" {
		if f.Before, err = strconv.ParseUint(v, 10, 53); err != nil {
			return 0, nil, refuse(http.StatusBadRequest, "before is a number that a list gave", "")
		}
	}
	list, err := s.Index.PendingList(ctx, f)
	if err != nil {
		return 0, nil, err
	}
	out := PendingList{Pending: make([]Pending, len(list))}
	for i, p := range list {
		out.Pending[i] = s.pendingOf(p)
	}
	if n := len(list); n > 0 && n == f.Limit {
		out.Before = list[n-1].Seq
	}
	return http.StatusOK, out, nil
}

func (s *Service) pendingOf(p store.Pending) Pending {
	out := Pending{
		ID: p.Request, State: string(p.State), Profile: p.Profile, Kind: p.Kind, Subject: p.Subject, DNS: p.Facts.DNS, Source: p.Source,
		Created: p.Created, Expires: p.Expires, Digest: p.Digest, Serial: p.Serial, Why: p.Why, Record: p.Seq, Decision: p.DeniedSeq,
	}
	if p.State == store.Waiting && !p.Open(s.Now()) {
		out.State = stateExpired
	}
	return out
}

func (s *Service) pending(ctx context.Context, r *request) (int, any, error) {
	p, err := s.Index.Pending(ctx, r.arg)
	if err != nil {
		return 0, nil, noPending(err)
	}
	key := p.Facts.Key.Type
	if p.Facts.Key.Bits > 0 {
		key += fmt.Sprintf(" %d", p.Facts.Key.Bits)
	}
	return http.StatusOK, PendingDetail{
		Pending: s.pendingOf(p), Transaction: p.Transaction, Signer: p.Signer, VouchedBy: p.Facts.AuthorizedBy, Key: key, KeySHA256: p.SPKI,
		Policy: p.Policy, Facts: p.Facts.Object(),
	}, nil
}

func noPending(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return refuse(http.StatusNotFound, "no request of that id waits, or did", "postern pending list")
	}
	return err
}

func (s *Service) approvePending(ctx context.Context, r *request) (int, any, error) {
	return s.ruling(ctx, r, acts.ApprovePending)
}

func (s *Service) denyPending(ctx context.Context, r *request) (int, any, error) {
	return s.ruling(ctx, r, acts.DenyPending)
}

// ruling reads what one person decides.
func (s *Service) ruling(ctx context.Context, r *request, act string) (int, any, error) {
	var in Ruling
	dec := json.NewDecoder(bytes.NewReader(r.Body))
	dec.DisallowUnknownFields()
	err := dec.Decode(&in)
	if err == nil {
		if _, err = dec.Token(); errors.Is(err, io.EOF) {
			err = nil
		} else {
			err = errBatch
		}
	}
	if err != nil {
		return 0, nil, refuse(http.StatusBadRequest, "the body is not a decision", "fields: reason, digest")
	}
	return s.alone(ctx, r, act, acts.Parameters{Pending: r.arg, Digest: in.Digest, Reason: in.Reason})
}

// decide carries out what one person or two decided on a request that waits.
func (s *Service) decide(ctx context.Context, who audit.Actor, act string, p acts.Parameters, before ...audit.Entry) (int, any, error) {
	r := authority.Ruling{Request: p.Pending, Digest: p.Digest, Reason: p.Reason}
	if act == acts.DenyPending {
		err := s.Acts.Deny(ctx, who, r, before...)
		return http.StatusOK, Ruled{ID: p.Pending, State: string(store.Denied)}, noPending(err)
	}
	i, err := s.Acts.Approve(ctx, who, r, before...)
	return http.StatusOK, Ruled{ID: p.Pending, State: string(store.Granted), Serial: i.Serial}, noPending(err)
}
