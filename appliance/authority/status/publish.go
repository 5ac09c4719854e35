package status

import (
	"context"
	"crypto"
	"errors"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/protocol/status"
)

// A Part is what is handed out for an issuer elsewhere: the CA's certificate and the
// newest list in the first part, and answers, in order of their serial numbers. Next
// continues; "" is the end.
type Part struct {
	CA, CRL []byte // DER
	Answers []Asked
	Next    string
}

// Asked is an answer and its question.
type Asked struct{ Request, Response []byte } // DER

// partSize is how many certificates one part has answers about.
const partSize = 250

// Names returns the issuers, in the order of the configuration.
func (s *Service) Names() (all []string) {
	for _, i := range s.o.Issuers {
		all = append(all, i.Issuer.Name())
	}
	return all
}

// Part returns what is handed out, after a serial number. The error is
// [store.ErrNotFound] where there is no such issuer.
func (s *Service) Part(ctx context.Context, name, after string) (p Part, err error) {
	n, ok := s.issuers[name]
	if !ok {
		return p, store.ErrNotFound
	}
	if after == "" {
		p.CA = n.ca.Raw
		n.mu.Lock()
		p.CRL = n.list.DER
		n.mu.Unlock()
		if p.CRL == nil {
			return p, errors.New("status: no list was signed yet")
		}
	}
	if n.Responder == nil {
		return p, nil
	}
	serials, err := s.o.Index.Serials(ctx, name, after, s.o.Now(), partSize)
	if err != nil {
		return p, err
	}
	for _, serial := range serials {
		for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
			a, err := s.ask(ctx, n, h, serial)
			if err != nil {
				return p, err
			}
			p.Answers = append(p.Answers, a)
		}
	}
	if len(serials) == partSize {
		p.Next = serials[partSize-1]
	}
	return p, nil
}

func (s *Service) ask(ctx context.Context, n *one, h crypto.Hash, serial string) (Asked, error) {
	id := status.CertID{Hash: h, NameHash: n.ids[h][0], KeyHash: n.ids[h][1], Serial: serial}
	question, err := id.Request()
	if err != nil {
		return Asked{}, err
	}
	n.mu.Lock()
	changes := n.changes
	n.mu.Unlock()
	a, err := s.make(ctx, n, key{h, serial}, changes)
	return Asked{question, a.DER}, err
}
