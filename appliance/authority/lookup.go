package authority

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
)

// eventLookup is the event of what is asked for by its name and is there already.
const eventLookup = "lookup"

// outFound is its outcome where it was given; else it is [store.OutRefused].
const outFound = "found"

// event is what a message is in the log.
func (q *proven) event() string {
	if q.message.Type == scep.GetCert || q.message.Type == scep.GetCRL {
		return eventLookup
	}
	return store.EventEnroll
}

// noCertificate is the one answer for everything that keeps a GetCert or a GetCRL
// from naming a certificate; why goes to the log alone.
func noCertificate(why string) *verdict {
	const say = "there is no such certificate"
	return &verdict{kind: protocol.NotFound, say: say, reasons: []policy.Reason{{Rule: "lookup", Saw: why, Say: say}}}
}

// lookUp answers a GetCert and a GetCRL (RFC 8894, section 3.3.4). Anybody may ask
// who has a key; what there is to find are the certificates of the profile, by
// issuer and serial number, and a serial number is 128 random bits.
func (p *Pipeline) lookUp(ctx context.Context, q *proven) (protocol.Outcome, error) {
	i, why, err := p.namedBy(ctx, q)
	switch {
	case err != nil:
		return protocol.Outcome{}, err
	case why != "":
		return p.refuse(ctx, q, nil, noCertificate(why))
	case q.message.Type == scep.GetCRL:
		return p.crl(ctx, q, i)
	}
	if ok, err := p.delivered(ctx, i.Serial); err != nil {
		return protocol.Outcome{}, err
	} else if !ok {
		return p.refuse(ctx, q, nil, noCertificate("serial "+i.Serial+" is not delivered yet"))
	}
	if err := p.found(ctx, q, audit.Object{"serial": i.Serial}); err != nil {
		return protocol.Outcome{}, err
	}
	return protocol.Outcome{RequestID: q.id, Status: protocol.Issued, Certificates: [][]byte{i.Certificate}}, nil
}

// namedBy returns the certificate that the request names, or why there is none.
func (p *Pipeline) namedBy(ctx context.Context, q *proven) (i store.Issuance, why string, err error) {
	serial := serialHex(q.named.Serial)
	if serial == "" {
		return i, "a serial number that no certificate of ours has", nil
	}
	i, err = p.index.Certificate(ctx, serial)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return i, "no certificate of serial " + serial, nil
	case err != nil:
		return i, "", fmt.Errorf("authority: looking up a certificate: %w", err)
	case i.State != store.Issued:
		return i, "serial " + serial + " is " + string(i.State), nil
	case i.Profile != q.profile.Name:
		return i, "serial " + serial + " is of another profile", nil
	}
	c, err := cms.ParseCertificate(i.Certificate)
	if err != nil {
		return i, "", fmt.Errorf("authority: certificate %s: %w", serial, err)
	}
	if !bytes.Equal(c.RawIssuer, q.named.Issuer) {
		return i, "serial " + serial + " is of another issuer", nil
	}
	return i, "", nil
}

// maxReply is the largest CRL that goes into a message, in octets: clients of SCEP hold
// the whole of it, and decrypt it. A longer one is had over HTTP alone.
const maxReply = 1 << 20

// crl answers a GetCRL for a certificate of the profile with the newest CRL of the
// certificate's issuer: an outcome that is Issued, and has the CRL alone.
func (p *Pipeline) crl(ctx context.Context, q *proven, i store.Issuance) (protocol.Outcome, error) {
	der, err := p.newestCRL(ctx, i.Issuer)
	if err != nil {
		return protocol.Outcome{}, fmt.Errorf("authority: the CRL of %s: %w", i.Issuer, err)
	}
	if len(der) > maxReply {
		const say = "the CRL is too long for a message: fetch it over HTTP"
		return p.refuse(ctx, q, nil, &verdict{kind: protocol.Unsupported, say: say,
			reasons: []policy.Reason{{Rule: "message.type", Saw: fmt.Sprintf("a CRL of %d octets", len(der)), Say: say}}})
	}
	if err := p.found(ctx, q, audit.Object{"serial": i.Serial, "crl_sha256": digest(der)}); err != nil {
		return protocol.Outcome{}, err
	}
	return protocol.Outcome{RequestID: q.id, Status: protocol.Issued, CRL: der}, nil
}

// found records what was given to whom.
func (p *Pipeline) found(ctx context.Context, q *proven, o audit.Object) error {
	o["profile"], o["transaction"], o["message_type"] = q.profile.Name, cut(q.message.TransactionID), strconv.Itoa(q.message.Type)
	o["signer_cert"] = q.signerDigest
	addClient(o, q.sender(""))
	_, err := p.log.Append(ctx, audit.Entry{Event: eventLookup, Outcome: outFound, Request: q.id, Actor: q.actor(), Object: o})
	return err
}
