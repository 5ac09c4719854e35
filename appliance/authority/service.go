package authority

import (
	"crypto"
	"slices"

	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/protocol"
)

// serviceOf is what a profile offers: its issuer's certificates and its own
// limits on algorithms. SHA-384 is listed since strongSwan 5.9.8 asks for it.
func serviceOf(s protocol.Service, p *policy.Profile) protocol.Service {
	s.Profile = p.Name
	s.Ciphers = slices.Clone(p.Clients.Ciphers)
	s.LegacySHA1, s.LegacyDES3 = p.Clients.SHA1, p.Clients.DES3
	s.Digests = nil
	caps := []string{"AES", "POSTPKIOperation", "Renewal"}
	for _, d := range p.Clients.Digests {
		switch d {
		case "SHA-256":
			s.Digests = append(s.Digests, crypto.SHA256)
			caps = append(caps, "SHA-256", "SHA-384")
		case "SHA-384":
			s.Digests = append(s.Digests, crypto.SHA384)
		case "SHA-512":
			s.Digests = append(s.Digests, crypto.SHA512)
			caps = append(caps, "SHA-512")
		}
	}
	// What is advertised has to work: see the note on SHA-384 above.
	if slices.Contains(caps, "SHA-384") && !slices.Contains(s.Digests, crypto.SHA384) {
		s.Digests = append(s.Digests, crypto.SHA384)
	}
	if s.LegacySHA1 {
		caps = append(caps, "SHA-1")
	}
	if s.LegacyDES3 {
		caps = append(caps, "DES3")
	}
	s.Capabilities = append(caps, "SCEPStandard")
	return s
}
