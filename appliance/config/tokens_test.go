package config_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// several is a configuration with RSA keys on one maker's token and the rest on another's.
var several = strings.NewReplacer(`token:
  module: /usr/lib/softhsm/libsofthsm2.so
  serial: "0123456789abcdef"
  pin: {file: pin}
`, `tokens:
  - name: main
    module: /usr/lib/softhsm/libsofthsm2.so
    serial: "0123456789abcdef"
    softhsm2_conf: softhsm2.conf
    pin: {file: pin}
  - name: rsa
    module: /opt/maker/libpkcs11.so
    label: rsa
    deadline: 20s
    pin: {file: rsa-pin}
`, "label: ca}", "label: key, token: rsa}", "label: ra-sign}", "label: ra-sign, token: rsa}", "label: ra-decrypt}", "label: ra-decrypt, token: rsa}",
	"label: tls}", "label: tls, token: main}", "label: audit}", "label: key, token: main}").Replace(good)

func TestEachKeyNamesItsToken(t *testing.T) {
	dir := site(t)
	c, faults := load(t, dir, several)
	if faults != nil {
		t.Fatal(faults)
	}
	if len(c.Tokens) != 2 || c.KeyNamed("ca").Token != "rsa" || c.KeyNamed("audit").Token != "main" {
		t.Errorf("%+v", c.Tokens)
	}
	if r := c.Tokens[1]; r.Name != "rsa" || r.PINPath != filepath.Join(dir, "rsa-pin") || r.Deadline != 20*time.Second || c.SoftHSM2Conf != filepath.Join(dir, "softhsm2.conf") {
		t.Errorf("%+v, %q", r, c.SoftHSM2Conf)
	}
	if c, faults = load(t, dir, good); faults != nil || len(c.Tokens) != 1 || c.KeyNamed("ca").Token != c.Tokens[0].Name || c.Tokens[0].Name == "" {
		t.Errorf("the only token: %v, %+v", faults, c)
	}
}

func TestFaultsOfSeveralTokens(t *testing.T) {
	dir := site(t)
	for name, tt := range map[string]struct{ from, to, path, nearest string }{
		"a key that names none":     {"label: tls, token: main}", "label: tls}", "keys[3].token", ""},
		"a token that is nowhere":   {"label: tls, token: main}", "label: tls, token: mian}", "keys[3].token", "main"},
		"a token without a name":    {"  - name: rsa\n    module:", "  - module:", "tokens[1].name", ""},
		"two of one name":           {"- name: rsa", "- name: main", "tokens[1].name", ""},
		"one token and a list":      {"tokens:\n", "token: {label: x, module: /x, pin: {file: pin}}\ntokens:\n", "tokens", ""},
		"neither serial nor label":  {"    label: rsa\n", "", "tokens[1]", ""},
		"a PIN from nowhere":        {"pin: {file: rsa-pin}", "pin: {}", "tokens[1].pin", ""},
		"two settings for SoftHSM":  {"    label: rsa\n", "    label: rsa\n    softhsm2_conf: other.conf\n", "tokens[1].softhsm2_conf", ""},
		"two keys of one label":     {"label: tls, token: main}", "label: key, token: main}", "keys[4].label", ""},
		"a deadline that is no one": {"deadline: 20s", "deadline: soon", "tokens[1].deadline", ""},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(several, tt.from, tt.to, 1)
			if text == several {
				t.Fatal("the case changes nothing")
			}
			_, faults := load(t, dir, text)
			for _, f := range faults {
				if f.Path == tt.path && f.Nearest == tt.nearest && f.Line > 0 {
					return
				}
			}
			t.Errorf("%v, want a fault at %s, nearest %q", faults, tt.path, tt.nearest)
		})
	}
}
