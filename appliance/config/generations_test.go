package config_test

import (
	"slices"
	"strings"
	"testing"
)

// withNext is the good configuration with a generation below another root, by keys
// of its own.
func withNext(change ...string) string {
	const keys = `  - {name: ca-2, purpose: ca, label: ca-2}
  - {name: ra-sign-2, purpose: ra-sign, label: ra-sign-2}
  - {name: ra-decrypt-2, purpose: ra-decrypt, label: ra-decrypt-2}
`
	const next = `    generations:
      - name: "2027"
        ca: {key: ca-2, certificate: below.pem}
        ra_sign: {key: ra-sign-2, certificate: below-sign.pem}
        ra_decrypt: {key: ra-decrypt-2, certificate: below-decrypt.pem}
        chain: [root.pem]
`
	text := strings.Replace(good, "issuers:\n", keys+"issuers:\n", 1)
	text = strings.Replace(text, "audit: {key: audit,", next+"audit: {key: audit,", 1)
	return strings.NewReplacer(change...).Replace(text)
}

// The generation in the issuer itself is the first one, under the issuer's name; one
// of the list has a name of its own, which its CA's certificates are recorded under.
func TestGenerationsOfAnIssuer(t *testing.T) {
	dir := site(t)
	for text, want := range map[string][]string{
		good:       {"corp corp first"},
		withNext(): {"corp corp first", "corp.2027 corp 2027"},
		withNext("  - name: corp\n", "  - name: corp\n    generation: \"2026\"\n"): {"corp corp 2026", "corp.2027 corp 2027"},
		withNext("    ca: {key: ca, certificate: ca.pem}\n", "", "    ra_sign: {key: ra-sign, certificate: ra-sign.pem}\n", "",
			"    ra_decrypt: {key: ra-decrypt, certificate: ra-decrypt.pem}\n", ""): {"corp.2027 corp 2027"},
	} {
		c, faults := load(t, dir, text)
		if faults != nil {
			t.Errorf("%v\n%s", faults, text)
			continue
		}
		var got []string
		for _, i := range c.GenerationsOf("corp") {
			got = append(got, i.Name+" "+i.Of+" "+i.Generation)
			if i.CA == nil || i.RASign == nil || i.RADecrypt == nil || i.MaxValidity == 0 {
				t.Errorf("%s lacks a certificate or a limit", i.Name)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// What could not be told apart, or does not belong together, is refused where it
// stands.
func TestGenerationsThatAreRefused(t *testing.T) {
	dir := site(t)
	const list = "issuers[0].generations"
	for what, c := range map[string]struct{ from, to, path, say string }{
		"no name":                {`      - name: "2027"` + "\n        ca:", "      - ca:", list + "[0].name", "missing"},
		"a name with a slash":    {`name: "2027"`, `name: "20/27"`, list, "no name of a generation"},
		"the first one's name":   {`name: "2027"`, `name: first`, list, "given twice"},
		"one CA key for two":     {"ca: {key: ca-2,", "ca: {key: ca,", list, "one CA key"},
		"one RA key for two":     {"ra_decrypt: {key: ra-decrypt-2,", "ra_decrypt: {key: ra-decrypt,", list, "one RA key"},
		"another CA's RA":        {"certificate: below-sign.pem", "certificate: ra-sign.pem", list + "[0].ra_sign.certificate", "not issued by"},
		"a chain without a root": {"        chain: [root.pem]\n", "", list + "[0].chain", "root"},
		"a key of another use":   {"ra_sign: {key: ra-sign-2,", "ra_sign: {key: ra-decrypt-2,", list + "[0].ra_sign.key", "is for ra-decrypt"},
		"a name for none":        {"    ca: {key: ca, certificate: ca.pem}\n    ra_sign: {key: ra-sign, certificate: ra-sign.pem}\n    ra_decrypt: {key: ra-decrypt, certificate: ra-decrypt.pem}\n", "    generation: x\n", "issuers[0].generation", "there is none"},
		"an unknown key":         {"        chain: [root.pem]", "        chian: [root.pem]", list + "[0].chian", "unknown key"},
		"another issuer's CA name": {"audit: {key: audit,", `  - name: corp.2027
    ca: {key: ca-2, certificate: below.pem}
    ra_sign: {key: ra-sign-2, certificate: below-sign.pem}
    ra_decrypt: {key: ra-decrypt-2, certificate: below-decrypt.pem}
    chain: [root.pem]
audit: {key: audit,`, "issuers[1].generations", "another issuer has"},
	} {
		text := withNext(c.from, c.to)
		if text == withNext() {
			t.Errorf("%s: the case changes nothing", what)
		}
		found := false
		_, faults := load(t, dir, text)
		for _, f := range faults {
			found = found || f.Path == c.path && strings.Contains(f.Say, c.say) && f.Line > 0
		}
		if !found {
			t.Errorf("%s: %v, want a fault at %s: %s", what, faults, c.path, c.say)
		}
	}
}

// Each generation has lists of its own: a URL that is the same for all would say the
// wrong one.
func TestStatusURLsOfSeveralGenerations(t *testing.T) {
	dir := site(t)
	for url, fine := range map[string]bool{"http://pki.example/{ca}.crl": true, "http://pki.example/corp.crl": false} {
		put(t, dir, "profiles.yaml", profiles+"    status: {crl: ['"+url+"']}\n")
		if _, faults := load(t, dir, good); faults != nil {
			t.Errorf("%s with one generation: %v", url, faults)
		}
		_, faults := load(t, dir, withNext())
		if fine != (faults == nil) || !fine && !strings.Contains(faults[0].Say, "{ca}") {
			t.Errorf("%s with two: %v", url, faults)
		}
	}
}
