package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const validators = `validators:
  - name: inventory
    webhook: {url: "https://inventory.corp.example/scep", key: {file: hook.key}, roots: ca.pem, timeout: 5s}
`

// hooks is a site whose profile names a webhook.
func hooks(t *testing.T) string {
	t.Helper()
	dir := site(t)
	p := strings.Replace(profiles, "{mode: one-time, ttl: 30m}", "{mode: webhook, webhook: inventory}", 1)
	if err := os.WriteFile(filepath.Join(dir, "profiles.yaml"), []byte(p), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestAValidatorIsResolved(t *testing.T) {
	dir := hooks(t)
	c, faults := load(t, dir, good+validators)
	if faults != nil {
		t.Fatal(faults)
	}
	v := c.Validators[0]
	if v.Kind != "webhook" || v.KeyPath != filepath.Join(dir, "hook.key") || v.Roots == nil || v.Timeout != 5*time.Second || v.BearerPath != "" {
		t.Errorf("%+v", v)
	}
}

func TestFaultsOfValidators(t *testing.T) {
	dir := hooks(t)
	for name, tt := range map[string]struct{ from, to, path string }{
		"none at all":             {validators, "", "wifi.challenge.webhook"},
		"another name":            {"name: inventory", "name: inventroy", "wifi.challenge.webhook"},
		"a bad name":              {"name: inventory", "name: 'a b'", "validators[0].name"},
		"twice":                   {validators, validators + strings.TrimPrefix(validators, "validators:\n"), "validators[1].name"},
		"no kind":                 {"    webhook:", "    # webhook:", "validators[0]"},
		"two kinds":               {"    webhook:", "    intune: {tenant: t, app: a, secret: {file: s}}\n    webhook:", "validators[0]"},
		"the other kind":          {"    webhook: {url: \"https://inventory.corp.example/scep\", key: {file: hook.key}, roots: ca.pem, timeout: 5s}", "    intune: {tenant: t, app: a, secret: {file: s}}", "wifi.challenge.webhook"},
		"plain HTTP":              {"https://inv", "http://inv", "validators[0].webhook.url"},
		"a secret in the address": {"https://inv", "https://user:pw@inv", "validators[0].webhook.url"},
		"no key":                  {"key: {file: hook.key}, ", "", "validators[0].webhook.key"},
		"the roots of the world":  {"roots: ca.pem, ", "", "validators[0].webhook.roots"},
		"for ever":                {"timeout: 5s", "timeout: 1m", "validators[0].webhook.timeout"},
		"a user alone":            {"timeout: 5s", "user: me", "validators[0].webhook.user"},
		"a certificate alone":     {"timeout: 5s", "certificate: ca.pem", "validators[0].webhook.certificate"},
		"two ways in":             {"timeout: 5s", "user: me, password: {file: p}, bearer: {file: b}", "validators[0].webhook.bearer"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(good+validators, tt.from, tt.to, 1)
			_, faults := load(t, dir, text)
			for _, f := range faults {
				if f.Path == tt.path {
					return
				}
			}
			t.Errorf("%v, want a fault at %s", faults, tt.path)
		})
	}
}

func TestIntuneIsResolved(t *testing.T) {
	dir := site(t)
	if err := os.WriteFile(filepath.Join(dir, "profiles.yaml"), []byte(strings.Replace(profiles, "{mode: one-time, ttl: 30m}", "{mode: intune, intune: corp}", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	text := good + "validators: [{name: corp, intune: {tenant: corp.onmicrosoft.com, app: some-id, secret: {file: s}}}]\n"
	c, faults := load(t, dir, text)
	if faults != nil {
		t.Fatal(faults)
	}
	if v := c.Validators[0]; v.Kind != "intune" || v.SecretPath != filepath.Join(dir, "s") || v.Roots != nil || v.Timeout != 12*time.Second {
		t.Errorf("%+v", v)
	}
	for name, tt := range map[string]struct{ from, to, path string }{
		"no tenant":         {"tenant: corp.onmicrosoft.com, ", "", "validators[0].intune.tenant"},
		"a path for one":    {"corp.onmicrosoft.com", "a/b", "validators[0].intune.tenant"},
		"no application":    {"app: some-id, ", "", "validators[0].intune.app"},
		"no credential":     {", secret: {file: s}", "", "validators[0].intune.secret"},
		"two credentials":   {"secret: {file: s}", "secret: {file: s}, certificate: ca.pem, private_key: {file: k}", "validators[0].intune.secret"},
		"half a credential": {"secret: {file: s}", "certificate: ca.pem", "validators[0].intune.certificate"},
		"plain HTTP":        {"secret: {file: s}", "secret: {file: s}, login: 'http://login.example'", "validators[0].intune.login"},
	} {
		_, faults := load(t, dir, strings.Replace(text, tt.from, tt.to, 1))
		found := false
		for _, f := range faults {
			found = found || f.Path == tt.path
		}
		if !found {
			t.Errorf("%s: %v, want a fault at %s", name, faults, tt.path)
		}
	}
}
