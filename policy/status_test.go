package policy_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/postern-pki/postern/policy"
)

// A profile says in which URLs the status of its certificates is; few clients fetch
// that over https, so such a URL has to be meant.
//
// Covers: S-163
func TestStatusURLs(t *testing.T) {
	for text, say := range map[string]string{
		"{crl: ['http://pki.example/crl/ca.crl'], ocsp: ['http://pki.example/ocsp/ca'], ca_issuers: ['http://pki.example/ca.cer']}": "",
		"{crl: ['https://pki.example/ca.crl'], allow_https_status: true}":                                                           "",
		"{crl: ['https://pki.example/ca.crl']}":                                                                                     "allow_https_status: true",
		"{ocsp: ['https://pki.example/'], allow_https_status: false}":                                                               "allow_https_status: true",
		"{crl: ['http://pki.example/{ca}.crl']}":                                                                                    "",
		"{crl: ['http://pki.example/{issuer}.crl']}":                                                                                "has to be a URL",
		"{crl: ['ldap://pki.example/cn=ca']}":                                                                                       "has to be a URL",
		"{crl: ['pki.example/ca.crl']}":                                                                                             "has to be a URL",
		"{crl: ['http:///ca.crl']}":                                                                                                 "has to be a URL",
		"{crl: ['http://me@pki.example/ca.crl']}":                                                                                   "has to be a URL",
		"{crl: ['http://pki.example/ca crl']}":                                                                                      "has to be a URL",
		"{crl: ['http://pki.example/" + strings.Repeat("a", 256) + "']}":                                                            "has to be a URL",
		"{crl: ['http://a/', 'http://b/', 'http://c/', 'http://d/', 'http://e/']}":                                                  "more than 4",
		"{allow_https_status: true}":                                                                                                "names no URL",
		"{crls: ['http://a/']}":                                                                                                     "unknown key",
	} {
		set, err := policy.Load(policy.Source{Name: "p.yaml", Data: []byte(statusProfile + "    status: " + text + "\n")})
		if say != "" {
			if err == nil || !strings.Contains(err.Error(), say) {
				t.Errorf("%s: %v, want %q", text, err, say)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		p, _ := set.Profile("wifi")
		if p.Status.PerCA() != strings.Contains(text, "{ca}") {
			t.Errorf("%s: another one for each CA: %v", text, p.Status.PerCA())
		}
		if len(p.Status.CRL) != 1 || !slices.Contains([]int{0, 1}, len(p.Status.OCSP)) {
			t.Errorf("%s: %+v", text, p.Status)
		}
	}
}

const statusProfile = `profiles:
  - name: wifi
    protocols: [scep]
    issuer: corp
    challenge: {mode: one-time, ttl: 30m}
    approve: automatic
    key: {rsa: {min: 2048, max: 4096}}
    subject:
      CN: {pattern: '[a-z]+\.corp\.example', required: true}
    usage: {key: {rsa: [digitalSignature]}, extended: [clientAuth]}
    validity: {for: 365d}
`
