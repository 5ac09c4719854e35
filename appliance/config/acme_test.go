package config_test

import (
	"path/filepath"
	"strings"
	"testing"
)

const internalTLS = "tls: {mode: internal, key: tls, issuer: corp, names: [scep.corp.example]}"

func withTLS(text string) string { return strings.Replace(good, internalTLS, "tls: "+text, 1) }

func TestModeACMEIsResolved(t *testing.T) {
	dir := site(t)
	c, faults := load(t, dir, withTLS(`{mode: acme, directory: "https://acme.corp.example/dir", roots: root.pem, email: pki@corp.example, names: [scep.corp.example, 192.0.2.1, "2001:db8::1"]}`))
	if faults != nil {
		t.Fatal(faults)
	}
	if c.ACMERoots == nil || c.TLS.Directory != "https://acme.corp.example/dir" {
		t.Errorf("not resolved: %+v", c.TLS)
	}
}

func TestModeACMEFaults(t *testing.T) {
	dir := site(t)
	put(t, dir, "empty.pem", "\n")
	put(t, dir, "key.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
	for name, tt := range map[string]struct{ from, to, path string }{
		"no directory":             {`directory: "https://acme.corp.example/dir", `, "", "tls.directory"},
		"a plain directory":        {"https://acme", "http://acme", "tls.directory"},
		"a directory without host": {"https://acme.corp.example/dir", "https:///dir", "tls.directory"},
		"a directory with a user":  {"https://acme", "https://user@acme", "tls.directory"},
		"no roots":                 {"roots: root.pem, ", "", "tls.roots"},
		"roots that are gone":      {"root.pem", "gone.pem", "tls.roots"},
		"empty roots":              {"root.pem", "empty.pem", "tls.roots"},
		"a key for roots":          {"root.pem", "key.pem", "tls.roots"},
		"text for roots":           {"root.pem", "transcript.jsonl", "tls.roots"},
		"no mail address":          {"pki@corp.example", "PKI", "tls.email"},
		"a mail address's name":    {"pki@corp.example", "'PKI <pki@corp.example>'", "tls.email"},
		"no names":                 {"names: [scep.corp.example]", "names: []", "tls.names"},
		"a wildcard":               {"[scep.corp.example]", "['*.corp.example']", "tls.names"},
		"a name without a dot":     {"[scep.corp.example]", "[localhost]", "tls.names"},
		"an upper-case name":       {"[scep.corp.example]", "[SCEP.corp.example]", "tls.names"},
		"an address with a zone":   {"[scep.corp.example]", "['fe80::1%eth0']", "tls.names"},
		"a key of the token":       {"mode: acme", "mode: acme, key: tls", "tls.key"},
		"a key file":               {"mode: acme", "mode: acme, key_file: tls.key", "tls.key_file"},
		"an issuer":                {"mode: acme", "mode: acme, issuer: corp", "tls.issuer"},
		"a directory otherwise":    {"mode: acme", "mode: files, certificate: c.pem, private_key: k.pem", "tls.directory"},
	} {
		t.Run(name, func(t *testing.T) {
			text := withTLS(`{mode: acme, directory: "https://acme.corp.example/dir", roots: root.pem, email: pki@corp.example, names: [scep.corp.example]}`)
			if _, faults := load(t, dir, text); faults != nil {
				t.Fatal("before the change:", faults)
			}
			_, faults := load(t, dir, strings.Replace(text, tt.from, tt.to, 1))
			for _, f := range faults {
				if f.Path == tt.path && f.Line == 25 {
					return
				}
			}
			t.Errorf("%v, want a fault at %s", faults, tt.path)
		})
	}
}

func TestAKeyFileIsInPlaceOfTheTokensKey(t *testing.T) {
	dir := site(t)
	c, faults := load(t, dir, withTLS("{mode: internal, key_file: tls.key, issuer: corp, names: [scep.corp.example]}"))
	if faults != nil || c.TLS.KeyFile != filepath.Join(dir, "tls.key") {
		t.Fatalf("%v, %v", c, faults)
	}
	_, faults = load(t, dir, withTLS("{mode: internal, key: tls, key_file: tls.key, issuer: corp, names: [scep.corp.example]}"))
	if len(faults) != 1 || faults[0].Path != "tls.key_file" {
		t.Errorf("both: %v, want one fault at tls.key_file", faults)
	}
}
