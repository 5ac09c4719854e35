package appliance

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/postern-pki/postern/appliance/authority/status"
	"github.com/postern-pki/postern/appliance/operator"
	"github.com/postern-pki/postern/hsm/issuer"
)

// openStatus has the issuers, and what is said about their certificates.
func (a *Authority) openStatus(context.Context) (err error) {
	a.issuers = make(map[string]*issuer.Issuer)
	o := status.Options{Log: a.log, Index: a.index, Signer: a.holder, Dir: filepath.Join(a.cfg.State, "crl"), Now: a.env.Now, Zap: a.env.Zap.Named("status")}
	for _, i := range a.cfg.Issuers {
		is, err := issuer.New(i.Name, i.CA, a.holder, issuer.Options{MaxValidity: i.MaxValidity})
		if err != nil {
			return fmt.Errorf("issuer %s: %w", i.Name, err)
		}
		a.issuers[i.Name] = is
		one := status.Issuer{Issuer: is, Every: i.Status.Every, Validity: i.Status.Validity, Answers: i.Status.Answers}
		if c := i.Status.OCSP; c != nil {
			if one.Responder, err = issuer.NewResponder(is, c, a.holder); err != nil {
				return fmt.Errorf("issuer %s: %w", i.Name, err)
			}
		}
		o.Issuers = append(o.Issuers, one)
	}
	a.status, err = status.New(o)
	return err
}

// publication is what a web server elsewhere hands out.
func (a *Authority) publication(ctx context.Context, name, after string) (operator.Publication, error) {
	if name == "" {
		return operator.Publication{Issuers: a.status.Names()}, nil
	}
	p, err := a.status.Part(ctx, name, after)
	if err != nil {
		return operator.Publication{}, err
	}
	out := operator.Publication{CA: p.CA, CRL: p.CRL, After: p.Next}
	for _, asked := range p.Answers {
		out.Answers = append(out.Answers, operator.PublicationsAnswer{Request: asked.Request, Response: asked.Response})
	}
	return out, nil
}

func (a *Authority) newestCRL(ctx context.Context, name string) ([]byte, error) {
	l, err := a.status.List(ctx, name, [32]byte{})
	return l.DER, err
}
