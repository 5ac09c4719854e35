package operator

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/postern-pki/postern/appliance/operator/acts"
	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/issuer"
)

// RevokedCertificate is the answer of DELETE /api/v1/certificates/SERIAL?reason=NAME.
type RevokedCertificate struct {
	Serial string    `json:"serial"`
	Reason string    `json:"reason"`
	At     time.Time `json:"revoked_at"`
}

// A Publication is the answer of GET /api/v1/publication?issuer=NAME: what is handed
// out for an issuer, in parts. The first has its CA's certificate and its newest CRL,
// all have OCSP answers, if it has a responder; After continues with the next part, and
// is empty at the end. Without an issuer it lists those there are.
type Publication struct {
	Issuers []string             `json:"issuers,omitempty"`
	CA      []byte               `json:"ca,omitempty"`  // DER
	CRL     []byte               `json:"crl,omitempty"` // DER
	Answers []PublicationsAnswer `json:"answers,omitempty"`
	After   string               `json:"after,omitempty"`
}

// A PublicationsAnswer is an OCSP answer, with the question that it is for.
type PublicationsAnswer struct {
	Request  []byte `json:"request"`  // DER, in the form of RFC 5019
	Response []byte `json:"response"` // DER
}

func (s *Service) revokeCertificate(ctx context.Context, r *request) (int, any, error) {
	if len(r.Body) > 0 {
		return 0, nil, refuse(http.StatusBadRequest, "a body means nothing here", "the reason is in the query: ?reason=keyCompromise")
	}
	return s.alone(ctx, r, acts.RevokeCertificate, acts.Parameters{Certificate: r.arg, Reason: r.query.Get("reason")})
}

func (s *Service) revoke(ctx context.Context, who audit.Actor, p acts.Parameters, before ...audit.Entry) (int, any, error) {
	reason, ok := issuer.ReasonOf(p.Reason)
	if !ok {
		return 0, nil, refuse(http.StatusBadRequest, "a certificate is not revoked here for that reason", "one of "+strings.Join(Reasons(), ", "))
	}
	done, err := s.Acts.RevokeCertificate(ctx, who, p.Certificate, reason, before...)
	if errors.Is(err, store.ErrNotFound) {
		err = refuse(http.StatusNotFound, "no certificate has that serial number", "postern cert list")
	}
	return http.StatusOK, RevokedCertificate{p.Certificate, p.Reason, done.At}, err
}

// Reasons returns the names of the reasons for which a certificate can be revoked.
func Reasons() (all []string) {
	for code := range 16 {
		if name := issuer.Reason(code); name != "" {
			all = append(all, name)
		}
	}
	return all
}

func (s *Service) publication(ctx context.Context, r *request) (int, any, error) {
	p, err := s.Publication(ctx, r.query.Get("issuer"), r.query.Get("after"))
	if errors.Is(err, store.ErrNotFound) {
		err = refuse(http.StatusNotFound, "there is no such issuer", "without an issuer the answer lists them")
	}
	return http.StatusOK, p, err
}
