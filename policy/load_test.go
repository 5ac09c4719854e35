package policy_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/policy"
)

func faults(t *testing.T, sources ...policy.Source) []policy.Fault {
	t.Helper()
	_, err := policy.Load(sources...)
	if err == nil {
		return nil
	}
	e, ok := errors.AsType[*policy.LoadError](err)
	if !ok {
		t.Fatalf("%v is no LoadError", err)
	}
	return e.Faults
}

// Each edit of the demo profile is refused at the path, with words that tell why.
func TestLoadRefuses(t *testing.T) {
	for name, tt := range map[string]struct{ from, to, path, say string }{
		"an unknown key":             {"approve: automatic", "aprove: automatic", "profiles[0].aprove", `did you mean "approve"`},
		"a key twice":                {"approve: automatic", "approve: automatic\n    approve: automatic", "profiles[0].approve", "twice"},
		"approval by nobody known":   {"approve: automatic", "approve: manually", "profiles[0].approve", `did you mean "manual"`},
		"nobody who vouches":         {"mode: one-time, ttl: 30m", "mode: none", "profiles[0].challenge.mode", "nobody would vouch"},
		"a life of no challenge":     {"{mode: one-time, ttl: 30m}\n    approve: automatic", "{mode: none, ttl: 30m}\n    approve: manual", "profiles[0].challenge.ttl", "means nothing"},
		"a challenge without a life": {"mode: one-time, ttl: 30m", "mode: one-time", "profiles[0].challenge.ttl", "missing"},
		"waiting for nobody":         {"approve: automatic", "approve: automatic\n    pending: {ttl: 1d}", "profiles[0].pending", "no request waits"},
		"waiting for ever":           {"approve: automatic", "approve: manual\n    pending: {ttl: 31d}", "profiles[0].pending.ttl", "more than"},
		"room for none":              {"approve: automatic", "approve: manual\n    pending: {max: 0}", "profiles[0].pending.max", "from 1"},
		"no mode and one":            {"mode: one-time, ttl: 30m", "mode: [none, webhook], webhook: w", "profiles[0].challenge.mode", "stands alone"},
		"a webhook without a name":   {"mode: one-time, ttl: 30m", "mode: webhook", "profiles[0].challenge.webhook", "missing"},
		"a webhook with a life":      {"mode: one-time", "webhook: w, mode: webhook", "profiles[0].challenge.ttl", "mode one-time"},
		"a webhook for nothing":      {"mode: one-time", "webhook: w, mode: one-time", "profiles[0].challenge.webhook", "never be reached"},
		"a webhook with a bad name":  {"mode: one-time, ttl: 30m", "mode: webhook, webhook: 'a b'", "profiles[0].challenge.webhook", "not a name"},
		"a mode twice":               {"mode: one-time", "mode: [one-time, one-time]", "profiles[0].challenge.mode[1]", "given twice"},
		"no mode at all":             {"mode: one-time, ttl: 30m", "mode: []", "profiles[0].challenge.mode", "not empty"},
		"a mode that is none":        {"mode: one-time", "mode: [one-time, webhok]", "profiles[0].challenge.mode", `did you mean "webhook"`},
		"a one-time one without end": {"mode: one-time, ttl: 30m", "mode: [webhook, one-time], webhook: w", "profiles[0].challenge.ttl", "missing"},
		"Intune without a name":      {"mode: one-time, ttl: 30m", "mode: intune", "profiles[0].challenge.intune", "missing"},
		"Intune and ours":            {"mode: one-time, ttl: 30m", "mode: [one-time, intune], ttl: 30m, intune: i", "profiles[0].challenge.mode", "one challenge"},
		"Intune and a person":        {"{mode: one-time, ttl: 30m}\n    approve: automatic", "{mode: intune, intune: i}\n    approve: manual", "profiles[0].challenge.mode", "at once"},
		"the NDES page":              {"mode: one-time", "mode: ndes", "profiles[0].challenge.mode", "not supported by this version"},
		"a static challenge":         {"mode: one-time", "mode: static", "profiles[0].challenge.mode", "not supported by this version"},
		"leave for a static one":     {"mode: one-time", "mode: one-time, allow_static: true", "profiles[0].challenge.allow_static", "not supported by this version"},
		"no challenge":               {"    challenge: {mode: one-time, ttl: 30m}\n", "", "profiles[0].challenge", "missing"},
		"an empty challenge":         {"challenge: {mode: one-time, ttl: 30m}", "challenge:", "profiles[0].challenge", "mapping"},
		"a challenge for ever":       {"ttl: 30m", "ttl: 31d", "profiles[0].challenge.ttl", "more than"},
		"a duration without a unit":  {"ttl: 30m", "ttl: 30", "profiles[0].challenge.ttl", "unit"},
		"revocation of the old one":  {"old: keep", "old: revoke", "profiles[0].renewal.old", "not supported by this version"},
		"another protocol":           {"protocols: [scep]", "protocols: [scep, est]", "profiles[0].protocols", "not supported by this version"},
		"no protocol":                {"protocols: [scep]", "protocols: []", "profiles[0].protocols", "not empty"},
		"elliptic curves":            {"reuse: same-subject", "ecdsa: {curves: [P-256]}", "profiles[0].key.ecdsa", "no device could have the answer"},
		"Ed25519":                    {"reuse: same-subject", "ed25519: true", "profiles[0].key.ed25519", "not supported by this version"},
		"no type of key":             {"rsa: {min: 2048, max: 4096}, ", "", "profiles[0].key.rsa", "is missing, and so is ecdsa"},
		"a password for RSA alone":   {"legacy: {sha1", "password_recipient: true, legacy: {sha1", "profiles[0].clients.password_recipient", "never be reached"},
		"a signer's key unlike any":  {"legacy: {sha1", "signer_key: other, legacy: {sha1", "profiles[0].clients.signer_key", "none of same, any"},
		"short keys":                 {"min: 2048", "min: 1024", "profiles[0].key.rsa.min", "from 2048"},
		"min above max":              {"min: 2048, max: 4096", "min: 4096, max: 3072", "profiles[0].key.rsa.min", "more than max"},
		"octal numbers":              {"min: 2048", "min: 04000", "profiles[0].key.rsa.min", "whole number"},
		"a pattern that is broken":   {"'[a-z0-9-]{1,40}\\.corp\\.example'", "'[a-z'", "profiles[0].subject.CN.pattern", "does not compile"},
		"a pattern out of its ropes": {"'[a-z0-9-]{1,40}\\.corp\\.example'", "'a)|(?:b'", "profiles[0].subject.CN.pattern", "does not compile"},
		"a pattern nothing matches":  {"'[a-z0-9-]{1,40}\\.corp\\.example'", "'[^\\x00-\\x{10FFFF}]'", "profiles[0].subject.CN.pattern", "never be reached"},
		"a pattern without end":      {"'[a-z0-9-]{1,40}\\.corp\\.example'", "'" + strings.Repeat("a", 513) + "'", "profiles[0].subject.CN.pattern", "longer than 512"},
		"pattern and value":          {"value: Example Corp", "value: Example Corp, pattern: x", "profiles[0].subject.O", "never be reached"},
		"neither of them":            {"{value: Example Corp}", "{required: true}", "profiles[0].subject.O", "needs a pattern or a value"},
		"a value that is required":   {"value: Example Corp", "value: Example Corp, required: true", "profiles[0].subject.O.required", "never be reached"},
		"a value with a tab":         {"value: Example Corp", `value: "Example\tCorp"`, "profiles[0].subject.O.value", "printable"},
		"a number for text":          {"value: Example Corp", "value: 42", "profiles[0].subject.O.value", "quotes"},
		"two CNs":                    {"required: true}", "required: true, max: 2}", "profiles[0].subject.CN.max", "occurs once"},
		"none, and required":         {"required: true}", "required: true, max: 0}", "profiles[0].subject.CN.max", "from 1"},
		"an attribute in lower case": {"      O: {value", "      o: {value", "profiles[0].subject.o", "is written O"},
		"an OID that has a name":     {"      O: {value", "      2.5.4.10: {value", "profiles[0].subject.2.5.4.10", "is written O"},
		"an unknown attribute":       {"      O: {value", "      emailAdress: {value", "profiles[0].subject.emailAdress", `did you mean "emailAddress"`},
		"no dNSName at all":          {"max: 2, must_equal", "max: 0, must_equal", "profiles[0].san.dns.max", "from 1"},
		"must_equal another":         {"must_equal: CN", "must_equal: O", "profiles[0].san.dns.must_equal", "none of CN"},
		"an unknown kind of name":    {"      dns: {pattern", "      dsn: {pattern", "profiles[0].san.dsn", `did you mean "dns"`},
		"a network with host bits":   {"    san:\n", "    san:\n      ip: {networks: [10.0.0.1/8]}\n", "profiles[0].san.ip.networks", "10.0.0.0/8"},
		"no network":                 {"    san:\n", "    san:\n      ip: {max: 1}\n", "profiles[0].san.ip.networks", "missing"},
		"certificates signed by it":  {"rsa: [digitalSignature, keyEncipherment]", "rsa: [digitalSignature, keyCertSign]", "profiles[0].usage.key.rsa", "CA alone"},
		"CRLs signed by it":          {"rsa: [digitalSignature, keyEncipherment]", "rsa: [cRLSign]", "profiles[0].usage.key.rsa", "CA alone"},
		"usages of elliptic curves":  {"usage: {key: {rsa", "usage: {key: {ecdsa: [digitalSignature], rsa", "profiles[0].usage.key.ecdsa", "never be reached"},
		"no usages of RSA":           {"rsa: [digitalSignature, keyEncipherment]", "", "profiles[0].usage.key.rsa", "missing"},
		"no purpose":                 {"extended: [clientAuth]", "extended: []", "profiles[0].usage.extended", "not empty"},
		"the key extended left out":  {", extended: [clientAuth]", "", "profiles[0].usage.extended", "missing"},
		"any purpose":                {"extended: [clientAuth]", "extended: [anyExtendedKeyUsage]", "profiles[0].usage.extended", "not for devices"},
		"any purpose, by OID":        {"extended: [clientAuth]", "extended: [2.5.29.37.0]", "profiles[0].usage.extended", "not for devices"},
		"OCSP":                       {"extended: [clientAuth]", "extended: [OCSPSigning]", "profiles[0].usage.extended", "not for devices"},
		"OCSP, by OID":               {"extended: [clientAuth]", "extended: [1.3.6.1.5.5.7.3.9]", "profiles[0].usage.extended", "not for devices"},
		"code":                       {"extended: [clientAuth]", "extended: [codeSigning]", "profiles[0].usage.extended", "not for devices"},
		"smart card logon":           {"extended: [clientAuth]", "extended: [1.3.6.1.4.1.311.20.2.2]", "profiles[0].usage.extended", "not for devices"},
		"an enrollment agent":        {"extended: [clientAuth]", "extended: [1.3.6.1.4.1.311.20.2.1]", "profiles[0].usage.extended", "not for devices"},
		"a purpose that has a name":  {"extended: [clientAuth]", "extended: [1.3.6.1.5.5.7.3.2]", "profiles[0].usage.extended", "is written clientAuth"},
		"an unknown purpose":         {"extended: [clientAuth]", "extended: [clientauth]", "profiles[0].usage.extended", `did you mean "clientAuth"`},
		"eleven years":               {"for: 365d", "for: 11y", "profiles[0].validity.for", "more than"},
		"25 hours back":              {"backdate: 1h", "backdate: 25h", "profiles[0].validity.backdate", "more than"},
		"more back than it lives":    {"for: 365d, backdate: 1h", "for: 1h, backdate: 1h", "profiles[0].validity.backdate", "leaves nothing"},
		"more than the whole life":   {"window: 100%", "window: 101%", "profiles[0].renewal.window", "from 1% to 100%"},
		"none of the life":           {"window: 100%", "window: 0%", "profiles[0].renewal.window", "from 1% to 100%"},
		"a window beyond the life":   {"window: 100%", "window: 366d", "profiles[0].renewal.window", "longer than"},
		"no renewal, by a count":     {"max_count: 1", "max_count: 0", "profiles[0].renewal.max_count", "from 1"},
		"an age beyond the count":    {"max_age: 2y", "max_age: 3y", "profiles[0].renewal.max_age", "never be reached"},
		"an age below one life":      {"max_age: 2y", "max_age: 364d", "profiles[0].renewal.max_age", "less than"},
		"a key that may be new":      {"new_key: required", "new_key: maybe", "profiles[0].renewal.new_key", "none of"},
		"no certificates":            {"active_per_subject: 2", "active_per_subject: 0", "profiles[0].limits.active_per_subject", "from 1"},
		"SHA-1 among the digests":    {"digests: [SHA-256,", "digests: [SHA-1,", "profiles[0].clients.digests", "legacy"},
		"3DES among the ciphers":     {"ciphers: [AES-128-CBC,", "ciphers: [DES-EDE3-CBC,", "profiles[0].clients.ciphers", "legacy"},
		"yes for true":               {"sha1: false", "sha1: yes", "profiles[0].clients.legacy.sha1", "true or false"},
		"an exception without cause": {"          reason: replies to renewals are encrypted to the device's key\n", "", "profiles[0].lint.except[0].reason", "missing"},
		"an anchor":                  {"approve: automatic", "approve: &a automatic", "profiles[0].approve", "anchors"},
		"a tag":                      {"approve: automatic", "approve: !!str automatic", "profiles[0].approve", "tags"},
		"a merge key":                {"approve: automatic", "approve: automatic\n    <<: {}", "profiles[0].<<", "unknown key"},
		"a name that is a path":      {"name: demo", "name: ../demo", "profiles[0].name", "URL"},
		"a second document":          {"          reason: replies to renewals are encrypted to the device's key\n", "          reason: x\n---\nprofiles: []\n", "", "second document"},
		"a tab for an indent":        {"    approve: automatic", "\tapprove: automatic", "", "not YAML"},
	} {
		t.Run(name, func(t *testing.T) {
			fs := faults(t, edited(t, tt.from, tt.to))
			ok := slices.ContainsFunc(fs, func(f policy.Fault) bool {
				return (f.Path == tt.path || strings.HasPrefix(f.Path, tt.path+"[")) && strings.Contains(f.String(), tt.say) && f.File == "demo.yaml" && f.Line > 0
			})
			if !ok || len(fs) > 2 {
				t.Errorf("faults %v, want one at %q that says %q", fs, tt.path, tt.say)
			}
		})
	}
}

func TestLoadReportsAllFaultsWithTheirPlace(t *testing.T) {
	src := edited(t, "approve: automatic\n", "aprove: automatic\n")
	text := string(src.Data)
	text = strings.Replace(text, "min: 2048", "min: 1", 1)
	text = strings.Replace(text, "window: 100%", "window: x", 1)
	src.Data = []byte(text)
	other := policy.Source{Name: "b.yaml", Data: []byte("profiles:\n  - nam: x\n")}
	fs := faults(t, other, src)
	var places []string
	for _, f := range fs[:3] {
		places = append(places, strings.SplitN(f.String(), ": ", 2)[0])
	}
	if !slices.Contains(places, "b.yaml:2:5") {
		t.Errorf("places %q of the first file", places)
	}
	got := (&policy.LoadError{Faults: fs}).Error()
	for _, want := range []string{"demo.yaml:6:5: profiles[0].aprove: unknown key", "demo.yaml:7:22: profiles[0].key.rsa.min", "demo.yaml:15:23: profiles[0].renewal.window", `did you mean "name"`} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestLoadRefusesAProfileTwice(t *testing.T) {
	a, b := source(t, "demo.yaml"), source(t, "demo.yaml")
	b.Name = "z.yaml"
	fs := faults(t, a, b)
	if len(fs) != 1 || fs[0].File != "z.yaml" || !strings.Contains(fs[0].Say, "already defined at demo.yaml:2") {
		t.Errorf("faults %v", fs)
	}
	if fs := faults(t); len(fs) != 1 {
		t.Errorf("no sources: %v", fs)
	}
	if fs := faults(t, policy.Source{Name: "empty.yaml"}); len(fs) != 1 || !strings.Contains(fs[0].Say, "empty") {
		t.Errorf("an empty file: %v", fs)
	}
}

func TestWhatALoadedProfileSays(t *testing.T) {
	s := testSet(t)
	if got := s.Names(); !slices.Equal(got, []string{"demo", "interop"}) {
		t.Errorf("Names %q", got)
	}
	p, ok := s.Profile("demo")
	if !ok || p.Issuer != "demo-devices" || p.Challenge.TTL != 30*time.Minute || p.Renewal.MaxAge != 2*365*24*time.Hour || p.Renewal.Window.Percent != 100 ||
		!slices.Equal(p.Clients.Digests, []string{"SHA-256", "SHA-384", "SHA-512"}) || !slices.Equal(p.LintExceptions(), []string{"e_key_usage_and_extended_key_usage_inconsistent"}) {
		t.Errorf("%+v", p)
	}
	p.Clients.Digests[0] = "MD5"
	if again, _ := s.Profile("demo"); again.Clients.Digests[0] != "SHA-256" {
		t.Error("a caller changed the set")
	}
	a, b := source(t, "demo.yaml"), source(t, "interop.yaml")
	swapped, err := policy.Load(b, a)
	if err != nil || swapped.Digest() != s.Digest() || !strings.HasPrefix(s.Digest(), "sha256:") || len(s.Digest()) != 7+64 {
		t.Errorf("digest %q depends on the order of the files (%v)", s.Digest(), err)
	}
	a.Data = append(a.Data, '\n')
	if changed, err := policy.Load(a, b); err != nil || changed.Digest() == s.Digest() {
		t.Error("another text has the same digest")
	}
}

// FuzzLoad checks that no file can panic the loader, and that what it accepts
// decides without panic.
func FuzzLoad(f *testing.F) {
	for _, name := range []string{"demo.yaml", "interop.yaml"} {
		data, err := os.ReadFile("testdata/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("profiles: [&a [*a], {? [x] : y}]\n"))
	f.Add([]byte("- profiles\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := policy.Load(policy.Source{Name: "fuzz", Data: data})
		if err != nil {
			if e, ok := errors.AsType[*policy.LoadError](err); !ok || len(e.Faults) == 0 {
				t.Errorf("%v is no list of faults", err)
			}
			return
		}
		for _, name := range s.Names() {
			d := s.Decide(policy.Facts{Profile: name, Kind: policy.KindNew, Now: now, Subject: []policy.Attribute{{Name: "CN", Value: "x"}}})
			if d.Issue {
				t.Errorf("profile %s issues for a request without a key", name)
			}
		}
	})
}

// New enrollments of a manual profile wait, and renewals where it says always; how
// long and how many has a bound also where the profile does not say.
//
// Covers: S-107
func TestApproval(t *testing.T) {
	for approve, want := range map[string]struct {
		waits policy.Pending
		kinds []string
	}{
		"approve: automatic": {policy.Pending{}, nil},
		"approve: manual":    {policy.Pending{TTL: 7 * 24 * time.Hour, Max: 1000}, []string{policy.KindNew, policy.KindNewLineage}},
		"approve: always\n    pending: {ttl: 2h, max: 3}":   {policy.Pending{TTL: 2 * time.Hour, Max: 3}, []string{policy.KindNew, policy.KindNewLineage, policy.KindRenewal}},
		"approve: manual\n    pending: {ttl: 30d, max: 10}": {policy.Pending{TTL: 30 * 24 * time.Hour, Max: 10}, []string{policy.KindNew, policy.KindNewLineage}},
	} {
		set, err := policy.Load(edited(t, "approve: automatic", approve))
		if err != nil {
			t.Fatal(err)
		}
		p, _ := set.Profile(set.Names()[0])
		var kinds []string
		for _, k := range []string{policy.KindNew, policy.KindNewLineage, policy.KindRenewal} {
			if p.Waits(k) {
				kinds = append(kinds, k)
			}
		}
		if p.Pending != want.waits || !slices.Equal(kinds, want.kinds) {
			t.Errorf("%s: %+v, %v", approve, p.Pending, kinds)
		}
	}
	set, err := policy.Load(edited(t, "challenge: {mode: one-time, ttl: 30m}\n    approve: automatic", "challenge: {mode: none}\n    approve: always"))
	if err != nil {
		t.Fatal(err)
	}
	if p, _ := set.Profile(set.Names()[0]); p.Challenge.Mode != policy.ModeNone || p.Challenge.TTL != 0 || p.Challenge.Validators != nil {
		t.Errorf("%+v", p.Challenge)
	}
}
