package config_test

import (
	"strings"
	"testing"
	"time"
)

// What an issuer says of its lists and of OCSP has bounds, and the OCSP certificate is
// one of the issuer's for nothing else.
func TestListsAndAnswersHaveBounds(t *testing.T) {
	dir := site(t)
	c, faults := load(t, dir, good)
	if faults != nil {
		t.Fatal(faults)
	}
	if s := c.Issuers[0].Status; s.Every != time.Hour || s.Validity != 7*24*time.Hour || s.OCSP != nil {
		t.Errorf("defaults: %+v", s)
	}
	const at = "    ra_decrypt: {key: ra-decrypt, certificate: ra-decrypt.pem}\n"
	withKey := strings.Replace(good, "issuers:\n", "  - {name: ocsp, purpose: ocsp, label: ocsp}\nissuers:\n", 1)
	for more, path := range map[string]string{
		"    crl: {every: 30m, validity: 1h}\n":                  "",
		"    crl: {every: 31m, validity: 1h}\n":                  "issuers[0].crl.every",
		"    crl: {every: 1s}\n":                                 "issuers[0].crl.every",
		"    crl: {validity: 91d}\n":                             "issuers[0].crl.validity",
		"    ocsp: {key: ocsp}\n":                                "issuers[0].ocsp.certificate",
		"    ocsp: {key: audit, certificate: audit.pem}\n":       "issuers[0].ocsp.key",
		"    ocsp: {key: ocsp, certificate: audit.pem}\n":        "issuers[0].ocsp.certificate",
		"    ocsp: {key: ocsp, certificate: gone.pem}\n":         "issuers[0].ocsp.certificate",
		"    ocsp: {validity: 1d}\n":                             "issuers[0].ocsp.key",
		"    ocsp: {key: ocsp, certificate: a, validity: 31d}\n": "issuers[0].ocsp.validity",
		"    crl: {number: 7}\n":                                 "issuers[0].crl.number",
	} {
		_, faults := load(t, dir, strings.Replace(withKey, at, at+more, 1))
		found := path == "" && len(faults) == 0
		for _, f := range faults {
			found = found || f.Path == path
		}
		if !found {
			t.Errorf("%s%v, want a fault at %q", more, faults, path)
		}
	}
	for _, name := range []string{"a/b", "..", "a b", strings.Repeat("a", 65)} {
		if _, faults := load(t, dir, strings.Replace(good, "- name: corp", "- name: '"+name+"'", 1)); len(faults) == 0 || faults[0].Path != "issuers[0].name" {
			t.Errorf("an issuer called %q: %v", name, faults)
		}
	}
}
