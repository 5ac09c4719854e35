package authority

import (
	"crypto"
	"strings"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
)

// proofTraits are those that the proof itself shows: of them the gate's word is not
// taken.
const proofTraits = protocol.TraitSHA1 | protocol.TraitDES3 | protocol.TraitSHA1CSR | protocol.TraitRenewalByPKCSReq

// clientObject is a client as a record has it, nil for one of which nothing is
// known.
func clientObject(c protocol.Client) audit.Object {
	o := audit.Object{}
	if agent := strings.ToValidUTF8(c.Agent[:min(len(c.Agent), protocol.MaxAgent)], "\uFFFD"); agent != "" {
		o["agent"] = agent
	}
	if words := c.Traits.Words(); len(words) > 0 {
		o["traits"] = words
	}
	if len(o) == 0 {
		return nil
	}
	return o
}

// addClient puts a client into the object of a record.
func addClient(o audit.Object, c protocol.Client) {
	if client := clientObject(c); client != nil {
		o["client"] = client
	}
}

// sender is what is known of who sent the request: the gate's word, and what the
// proof shows. kind is "" where nobody decided yet what is asked for.
func (q *proven) sender(kind string) protocol.Client {
	c := q.client
	c.Traits &^= proofTraits
	if q.digest == crypto.SHA1 {
		c.Traits |= protocol.TraitSHA1
	}
	if q.cipher == cms.DES3CBC {
		c.Traits |= protocol.TraitDES3
	}
	if q.csr != nil && strings.Contains(q.csr.SignatureAlgorithm.String(), "SHA1") {
		c.Traits |= protocol.TraitSHA1CSR
	}
	if kind == kindRenewal && q.message.Type == scep.PKCSReq {
		c.Traits |= protocol.TraitRenewalByPKCSReq
	}
	return c
}
