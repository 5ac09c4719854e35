package operator

import (
	"context"
	"encoding/pem"
	"errors"
	"math"
	"net/http"
	"strconv"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/issuer"
)

func (s *Service) certificates(ctx context.Context, r *request) (int, any, error) {
	q := r.query
	f := store.CertificateFilter{Profile: q.Get("profile"), Subject: q.Get("subject"), State: store.State(q.Get("state"))}
	var err error
	if f.Limit, err = limitOf(r); err != nil {
		return 0, nil, err
	}
	if v := q.Get("before"); v != "" {
		if f.Before, err = strconv.ParseUint(v, 10, 53); err != nil {
			return 0, nil, refuse(http.StatusBadRequest, "before is a number that a list gave", "")
		}
	}
	list, err := s.Index.Certificates(ctx, f)
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

// limitOf is how much of a list is asked for.
func limitOf(r *request) (int, error) {
	v := r.query.Get("limit")
	if v == "" {
		return 100, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > 1000 {
		return 0, refuse(http.StatusBadRequest, "limit is 1 to 1000", "")
	}
	return n, nil
}

func (s *Service) certificate(ctx context.Context, r *request) (int, any, error) {
	i, err := s.issuance(ctx, r.arg)
	if err != nil {
		return 0, nil, err
	}
	c := certificateOf(i)
	if i.Certificate != nil {
		c.PEM = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Certificate}))
	}
	return http.StatusOK, c, nil
}

func (s *Service) issuance(ctx context.Context, serial string) (store.Issuance, error) {
	i, err := s.Index.Certificate(ctx, serial)
	if errors.Is(err, store.ErrNotFound) {
		err = refuse(http.StatusNotFound, "no certificate has that serial number", "postern cert list")
	}
	return i, err
}

func certificateOf(i store.Issuance) Certificate {
	c := Certificate{
		Serial: i.Serial, State: string(i.State), Profile: i.Profile, Issuer: i.Issuer, Subject: i.Subject,
		NotBefore: i.NotBefore, NotAfter: i.NotAfter, Request: i.Request, Lineage: i.Lineage, Renewal: i.Generation,
		Predecessor: i.Predecessor, RevocationDue: i.RevocationDue, IntentSeq: i.IntentSeq, ResultSeq: i.ResultSeq,
	}
	if i.RevocationDue {
		c.RevokedAt, c.Reason = &i.RevokedAt, issuer.Reason(i.Reason)
	}
	return c
}

// records finds the lines of a request, or of a serial number, in the log itself:
// the log is the truth, the index only says where a serial's stand.
func (s *Service) records(ctx context.Context, r *request) (int, any, error) {
	req, serial := r.query.Get("req"), r.query.Get("serial")
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
func (s *Service) ofSerial(ctx context.Context, serial string) (lines []audit.Line, _ error) {
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
