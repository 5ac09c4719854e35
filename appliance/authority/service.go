package authority

import (
	"crypto"
	"slices"

	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/protocol"
)

// serviceOf is what a profile offers: its issuer's certificates and its own
// limits on algorithms. A capability is listed where a client that uses it is
// served (RFC 8894, section 3.5.2); AES there means AES-128-CBC, and SCEPStandard
// that and SHA-256.
func serviceOf(s protocol.Service, p *policy.Profile) protocol.Service {
	s.Profile = p.Name
	s.Ciphers = slices.Clone(p.Clients.Ciphers)
	s.LegacySHA1, s.LegacyDES3 = p.Clients.SHA1, p.Clients.DES3
	s.AnySignerKey, s.PasswordRecipient = p.Clients.AnySigner, p.Clients.PasswordRecipient
	s.Digests = nil
	var caps []string
	aes := slices.Contains(s.Ciphers, "AES-128-CBC")
	if aes {
		caps = append(caps, "AES")
	}
	caps = append(caps, "POSTPKIOperation")
	if p.Renewal.Allowed {
		caps = append(caps, "Renewal")
	}
	for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		if slices.Contains(p.Clients.Digests, h.String()) {
			s.Digests, caps = append(s.Digests, h), append(caps, h.String())
		}
	}
	if s.LegacySHA1 {
		caps = append(caps, "SHA-1")
	}
	if s.LegacyDES3 {
		caps = append(caps, "DES3")
	}
	if aes && slices.Contains(s.Digests, crypto.SHA256) {
		caps = append(caps, "SCEPStandard")
	}
	if s.Next != "" {
		caps = append(caps, "GetNextCACert")
	}
	s.CAFirst, s.NoRoot = p.CACertificates.CAFirst, p.CACertificates.NoRoot
	s.ReplyChain, s.NoFailInfoText = p.Reply.Chain, p.Reply.NoFailInfoText
	s.Capabilities = caps
	return s
}
