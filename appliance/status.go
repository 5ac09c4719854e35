package appliance

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/authority/status"
	"github.com/postern-pki/postern/appliance/operator"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/policy"
)

const (
	askEvery  = time.Second     // how soon what the keyholder refused is in the log
	askWithin = 3 * time.Second // a keyholder that does not answer is away
)

// watchHolder records what the keyholder was asked for and refused: it has no pen
// of its own.
func (a *Authority) watchHolder(ctx context.Context) {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_, _ = a.askHolder(ctx) // the status says that it is away
		case <-ctx.Done():
			return
		}
	}
}

func (a *Authority) askHolder(ctx context.Context) (rpc.HolderStatus, error) {
	ask, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	s, err := a.holder.Status(ask)
	if err != nil {
		return s, err
	}
	if len(s.Refused) == 0 {
		return s, nil
	}
	_, err = a.log.AppendAll(context.WithoutCancel(ctx), refusals(s)...)
	if err != nil {
		a.env.Zap.Error("what the keyholder refused could not be recorded", zap.Strings("refused", s.Refused), zap.Error(err))
	}
	return s, nil
}

// refusals are the records of what the keyholder refused. Few stand in each: who
// asks for what is refused chooses some of the words, and must not make a record
// that is too long to be kept.
func refusals(s rpc.HolderStatus) []audit.Entry {
	const few = 16
	var all []audit.Entry
	for part := range slices.Chunk(s.Refused, few) {
		all = append(all, audit.Entry{Event: "keyholder", Outcome: "refused", Actor: audit.Actor{Kind: "system", ID: "keyholder"}, Object: audit.Object{"refused": part}})
	}
	if s.Lost > 0 {
		all[len(all)-1].Object["lost"] = s.Lost
	}
	return all
}

// howItIs is how the appliance is, with every reason why it is not good.
func (a *Authority) howItIs(ctx context.Context) operator.Status {
	head := a.log.Head()
	s := operator.Status{
		State: operator.Good, Reasons: []string{}, Version: a.env.Version, Started: a.started, Policy: a.cfg.Policies.Digest(),
		Log:   operator.StatusLog{Origin: a.cfg.Origin, Size: head.Size, Root: hex.EncodeToString(head.Root[:])},
		Token: operator.StatusToken{Serial: a.facts.Serial, Label: a.facts.Label},
	}
	degraded := func(why string) { s.State, s.Reasons = operator.Degraded, append(s.Reasons, why) }
	if err := a.log.Healthy(); err != nil {
		degraded(noLog(err))
	}
	if err := a.index.Healthy(); err != nil {
		degraded("the index, and nothing is issued until the service is started again: " + err.Error())
	}
	holder, err := a.askHolder(ctx)
	s.Token.Operations, s.Token.Failures = holder.Operations, holder.Failures
	switch {
	case err != nil:
		degraded("the keyholder does not answer, and nothing is issued until it does: " + err.Error())
	case holder.Trouble != "":
		degraded("the token: " + holder.Trouble)
	}
	for _, l := range a.status.Overview() {
		s.CRLs = append(s.CRLs, operator.StatusCRL{Issuer: l.Issuer, Number: l.Number, NextUpdate: l.NextUpdate})
		if l.Trouble != "" {
			degraded("the CRL of " + l.Issuer + ": " + l.Trouble)
		}
	}
	expiry := func(name string, c *x509.Certificate) {
		sum := sha256.Sum256(c.Raw)
		s.Expiries = append(s.Expiries, operator.StatusExpiry{Name: name, NotAfter: c.NotAfter, SHA256: hex.EncodeToString(sum[:])})
		if left := c.NotAfter.Sub(a.env.Now()); left < a.soon(name, c) {
			degraded(fmt.Sprintf("the %s certificate ends on %s", name, c.NotAfter.UTC().Format(time.DateTime)))
		}
	}
	for _, i := range a.cfg.Issuers {
		expiry(i.Name+" ca", i.CA)
		expiry(i.Name+map[bool]string{false: " ra-sign", true: " ra"}[i.SingleRA()], i.RASign)
		if i.SingleRA() {
			s.Weaker = append(s.Weaker, "issuer "+i.Name+" has a single RA key: whoever can have it sign can have it open envelopes too")
			continue
		}
		expiry(i.Name+" ra-decrypt", i.RADecrypt)
	}
	s.Weaker = append(s.Weaker, weakerProfiles(a.cfg.Policies)...)
	for _, i := range a.cfg.Issuers {
		if c := i.Status.OCSP; c != nil {
			expiry(i.Name+" ocsp", c)
		}
	}
	expiry("audit", a.cfg.AuditCertificate)
	switch {
	case a.cert != nil:
		expiry("tls", a.cert.Leaf())
	case a.cfg.TLS.Mode == "acme":
		if leaf, why := a.acmeState(ctx); leaf != nil {
			expiry("tls", leaf)
		} else {
			degraded("the listeners have no certificate, and every handshake fails until they do: " + why)
		}
	}
	for _, name := range a.cfg.Policies.Names() {
		s.Profiles = append(s.Profiles, operator.StatusProfile{Name: name, URL: a.deviceURL(name)})
	}
	return s
}

// noLog says what a log that failed asks of a person.
func noLog(err error) string {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return "the disk is full: make room, then start the service again; until then nothing is issued: " + err.Error()
	}
	return "the log cannot be written, and nothing is issued until the service is started again: " + err.Error()
}

// deviceURL is what the devices of a profile are told.
func (a *Authority) deviceURL(profile string) string {
	base := a.cfg.Devices.URL
	if base == "" {
		base = "https://" + a.cfg.Devices.Listen
	}
	if a.cfg.Devices.URL == "" && a.env.Devices != "" {
		base = "https://" + a.env.Devices
	}
	return base + "/scep/" + profile
}

// weakerProfiles says what profiles allow their clients that is weaker than need be.
func weakerProfiles(set *policy.Set) (out []string) {
	for _, name := range set.Names() {
		p, _ := set.Profile(name)
		if p.Clients.SHA1 {
			out = append(out, "profile "+name+" takes messages that are signed with SHA-1: postern report clients names who sends them")
		}
		if p.Clients.DES3 {
			out = append(out, "profile "+name+" takes messages that are encrypted with triple DES: postern report clients names who sends them")
		}
		if p.Clients.AnySigner {
			out = append(out, "profile "+name+" takes requests that another key signed: whoever sees one on its way can sign it anew, and use up its challenge")
		}
	}
	return out
}

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
