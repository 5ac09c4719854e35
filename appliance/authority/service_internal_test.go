package authority

import (
	"slices"
	"strings"
	"testing"

	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/protocol"
)

// Nothing is offered that the profile would refuse: RFC 8894, section 3.5.2.
//
// Covers: S-029
func TestCapabilitiesAreThoseThatAreServed(t *testing.T) {
	for want, c := range map[string]policy.Clients{
		"AES POSTPKIOperation Renewal SHA-256 SHA-384 SHA-512 SCEPStandard":    {Digests: []string{"SHA-256", "SHA-384", "SHA-512"}, Ciphers: []string{"AES-128-CBC", "AES-256-CBC"}},
		"AES POSTPKIOperation Renewal SHA-512":                                 {Digests: []string{"SHA-512"}, Ciphers: []string{"AES-128-CBC"}},
		"POSTPKIOperation Renewal SHA-256 SHA-384":                             {Digests: []string{"SHA-256", "SHA-384"}, Ciphers: []string{"AES-256-CBC"}},
		"AES POSTPKIOperation Renewal SHA-256 SHA-384 SHA-1 DES3 SCEPStandard": {Digests: []string{"SHA-384", "SHA-256"}, Ciphers: []string{"AES-128-CBC"}, SHA1: true, DES3: true},
	} {
		s := serviceOf(protocol.Service{Capabilities: []string{"old"}}, &policy.Profile{Name: "p", Clients: c, Renewal: policy.Renewal{Allowed: true}})
		if got := strings.Join(s.Capabilities, " "); got != want {
			t.Errorf("%+v: %q, want %q", c, got, want)
		}
		if s = serviceOf(s, &policy.Profile{Name: "p", Clients: c}); slices.Contains(s.Capabilities, "Renewal") {
			t.Errorf("%+v: renewal is offered by a profile that has none", c)
		}
		for _, h := range s.Digests {
			if !slices.Contains(c.Digests, h.String()) {
				t.Errorf("%+v: %v is let through", c, h)
			}
		}
	}
}
