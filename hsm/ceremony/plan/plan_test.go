package plan_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/postern-pki/postern/hsm/ceremony/plan"
)

func script(tb testing.TB, name string) string {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join("..", "scripts", name))
	if err != nil {
		tb.Fatal(err)
	}
	return string(b)
}

func TestThePlansOfTheProjectAreGood(t *testing.T) {
	files, err := filepath.Glob("../scripts/*.yaml")
	if err != nil || len(files) < 2 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		text := script(t, filepath.Base(f))
		p, err := plan.Parse([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		if p.Name+".yaml" != filepath.Base(f) || p.Text != text || len(p.Digest()) != 64 {
			t.Errorf("%s: name %q, digest %q", f, p.Name, p.Digest())
		}
		if len(p.Warnings()) == 0 {
			t.Errorf("%s: a self-signed CA on the service's token is no reason for a word", f)
		}
	}
}

func TestEveryKeyThatIsMissingIsNamed(t *testing.T) {
	optional := map[string]bool{"backdate": true, "token.new": true, "token.label": true}
	var doc map[string]any
	if err := yaml.Unmarshal([]byte(script(t, "self-signed.yaml")), &doc); err != nil {
		t.Fatal(err)
	}
	var walk func(m map[string]any, path string)
	walk = func(m map[string]any, path string) {
		for key, v := range m {
			at := strings.TrimPrefix(path+"."+key, ".")
			delete(m, key)
			text, err := yaml.Marshal(doc)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := plan.Parse(text); !optional[at] && !hasFault(err, at, "is missing") {
				t.Errorf("without %s: %v", at, err)
			}
			m[key] = v
			if inner, ok := v.(map[string]any); ok {
				walk(inner, at)
			}
		}
	}
	walk(doc, "")
}

func hasFault(err error, path, say string) bool {
	e, ok := errors.AsType[*plan.Error](err)
	if !ok {
		return false
	}
	for _, f := range e.Faults {
		if f.Path == path && strings.Contains(f.Say, say) {
			return true
		}
	}
	return false
}

func TestParsePlanRefuses(t *testing.T) {
	for name, tt := range map[string]struct{ old, repl, path, say string }{
		"a later version":                     {"version: 1", "version: 2", "version", "none of 1"},
		"an unknown class":                    {"class: test", "class: prod", "class", "none of test, production"},
		"a name that is no file name":         {"name: demo", "name: ../demo", "name", "at most 32"},
		"a relative module":                   {"/usr/lib/softhsm", "softhsm", "token.module", "absolute"},
		"a new token with a serial":           {"new: true", "new: true\n  serial: '12'", "token.serial", "either"},
		"neither new nor a serial":            {"new: true", "new: false", "token.serial", "is missing"},
		"a label longer than a token's":       {"label: postern-demo", "label: " + strings.Repeat("x", 33), "token.label", "longer than 32"},
		"two keys of one label":               {"label: tls", "label: audit", "keys.audit.label", "another key"},
		"an RA that signs with EC":            {"label: ra-sign,    algorithm: RSA-2048", "label: ra-sign,    algorithm: P-256", "keys.ra-sign.algorithm", "none of RSA-2048"},
		"an audit key that is not P-256":      {"label: audit,      algorithm: P-256", "label: audit,      algorithm: P-384", "keys.audit.algorithm", "none of P-256"},
		"RSA of 1024 bits":                    {"RSA-2048", "RSA-1024", "keys.ra-sign.algorithm", "none of"},
		"two certificates of one subject":     {"Demo Audit Log", "Demo Device CA", "certificates.audit.subject", "another certificate"},
		"an RA that outlives its CA":          {"validity: 825d", "validity: 9y", "certificates.ra-sign.validity", ""},
		"a TLS certificate of three years":    {"validity: 90d", "validity: 3y", "certificates.tls.validity", "not between"},
		"no unit":                             {"validity: 90d", "validity: '90'", "certificates.tls.validity", "no duration"},
		"a duration beyond all numbers":       {"validity: 90d", "validity: 1000000y", "certificates.tls.validity", "no duration"},
		"clientAuth for the RA":               {"[certificateRequestAgent]", "[clientAuth]", "certificates.ra-sign.extended[0]", "none of"},
		"one extended usage twice":            {"[certificateRequestAgent]", "[serverAuth, serverAuth]", "certificates.ra-sign.extended[1]", "twice"},
		"no extended usage":                   {"[certificateRequestAgent]", "[]", "certificates.ra-sign.extended", "1 to 2"},
		"a wildcard":                          {"[localhost,", "['*.example',", "certificates.tls.names[0]", "wildcards"},
		"a name twice":                        {"[localhost,", "[localhost, localhost,", "certificates.tls.names[1]", "twice"},
		"a subject without a value":           {"CN=demo-operator,", "CN,", "operators.first.subject", ""},
		"an empty value":                      {"CN=demo-operator,", "CN=,", "operators.first.subject", "empty"},
		"a multi-valued RDN":                  {"CN=demo-operator,", "CN=a+OU=b,", "operators.first.subject", "backslash"},
		"a type that a CA does not need":      {"CN=demo-operator,", "emailAddress=a@b,", "operators.first.subject", "not supported"},
		"a country of three letters":          {"CN=demo-operator,", "CN=a,C=USA,", "operators.first.subject", "more than 2"},
		"a common name beyond the bound":      {"CN=demo-operator,", "CN=" + strings.Repeat("x", 65) + ",", "operators.first.subject", "more than 64"},
		"a key twice":                         {"class: test", "class: test\nclass: test", "class", "twice"},
		"an anchor":                           {"label: postern-demo", "label: &x postern-demo", "token.label", "plain"},
		"null":                                {"class: test", "class: ", "class", "empty"},
		"a list for a mapping":                {"  ca:         {subject: 'CN=Postern Demo Operator CA,O=Example Corp', validity: 10y}", "  ca: []", "operators.ca", "mapping"},
		"a second document":                   {"operators:", "---\noperators:", "", "more than one"},
		"characters that nobody sees":         {"name: demo", "name: demo # \u202e", "", "cannot see"},
		"more than a record can hold":         {"version: 1", "version: 1 # " + strings.Repeat("x", 16<<10), "", "more than"},
		"a tab for indentation":               {"  ca:         {label", "\tca:         {label", "", ""},
		"an alias to nothing":                 {"class: test", "class: *nothing", "", "unknown anchor"},
		"backdating by a week":                {"class: test", "class: test\nbackdate: 7d", "backdate", "not between"},
		"a production token called REHEARSAL": {"class: test", "class: production # ", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			text := script(t, "demo.yaml")
			if !strings.Contains(text, tt.old) {
				t.Fatalf("%q is not in the plan", tt.old)
			}
			text = strings.ReplaceAll(text, tt.old, tt.repl)
			if strings.Contains(name, "REHEARSAL") {
				text = strings.Replace(text, "label: postern-demo", "label: rehearsal-1", 1)
				tt.path, tt.say = "token.label", "is not called"
			}
			if name == "an RA that outlives its CA" {
				text = strings.Replace(text, "Device CA,O=Example Corp', validity: 10y", "Device CA,O=Example Corp', validity: 8y", 1)
			}
			_, err := plan.Parse([]byte(text))
			if !hasFault(err, tt.path, tt.say) {
				t.Errorf("ParsePlan: %v; want %s: %s", err, tt.path, tt.say)
			}
		})
	}
}

func TestTwoTokensAreTwo(t *testing.T) {
	text := script(t, "two-tier-offline-root.yaml")
	for name, tt := range map[string]struct{ old, repl, path, say string }{
		"no root":                      {"kind: offline-root", "kind: offline-root # ", "root", ""},
		"a root of a self-signed plan": {"kind: offline-root", "kind: self-signed", "root", "alone"},
		"an unknown kind":              {"kind: offline-root", "kind: ofline-root", "kind", "none of"},
		"one label":                    {"label: postern-root", "label: postern-service", "root.token.label", "too"},
		"a CA that outlives its root":  {"validity: 20y", "validity: 9y", "certificates.ca.validity", "outlive"},
		"the root's subject again":     {"CN=Example Root,", "CN=Example Device CA,", "certificates.ca.subject", "another"},
		"a root without a serial":      {"new: true, label: postern-root", "label: postern-root", "root.token.serial", "missing"},
		"a root key for the audit log": {"label: root, algorithm: P-384", "label: root, algorithm: ed25519", "root.key.algorithm", "none of"},
	} {
		t.Run(name, func(t *testing.T) {
			changed := strings.Replace(text, tt.old, tt.repl, 1)
			if name == "no root" {
				from, to := strings.Index(changed, "root:\n"), strings.Index(changed, "keys:\n")
				changed, tt.say = changed[:from]+changed[to:], "is missing"
			}
			if _, err := plan.Parse([]byte(changed)); changed == text || !hasFault(err, tt.path, tt.say) {
				t.Errorf("Parse: %v; want %s: %s", err, tt.path, tt.say)
			}
		})
	}
	same := strings.NewReplacer("  new: true\n  label: postern-service", "  serial: '12'", "new: true, label: postern-root", "serial: '12'").Replace(text)
	if _, err := plan.Parse([]byte(same)); !hasFault(err, "root.token.serial", "not offline") {
		t.Errorf("one serial for both: %v", err)
	}
}

func TestPeopleAreSeveral(t *testing.T) {
	const alice, bob = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHUOL4NVvmKMcH2mpp5OWjhbHFFgGNxSHgNCl7sKUsQh"
	for name, tt := range map[string]struct{ people, path, say string }{
		"two":              {"{name: a, role: administrator, key: '" + alice + "'}, {name: b, role: witness, key: '" + bob + "'}", "", ""},
		"one":              {"{name: a, role: administrator, key: '" + alice + "'}", "people", "a witness"},
		"one key for both": {"{name: a, role: administrator, key: '" + alice + "'}, {name: b, role: witness, key: '" + alice + "'}", "people[1]", "the key of another"},
		"a name for both":  {"{name: a, role: administrator, key: '" + alice + "'}, {name: a, role: witness, key: '" + bob + "'}", "people[1]", "the name"},
		"no key":           {"{name: a, role: administrator, key: 'ssh-ed25519'}", "people[0].key", "SSH public key"},
		"another role":     {"{name: a, role: boss, key: '" + alice + "'}", "people[0].role", "none of"},
	} {
		p, err := plan.Parse([]byte(script(t, "demo.yaml") + "people: [" + tt.people + "]\n"))
		if tt.say == "" && (err != nil || len(p.People) != 2) || tt.say != "" && !hasFault(err, tt.path, tt.say) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAChangeIsWhole(t *testing.T) {
	text := script(t, "rotate-tls.yaml")
	for name, tt := range map[string]struct{ old, repl, path, say string }{
		"two keys in use":            {"{role: tls, retired: true,", "{role: tls,", "keep", "retired"},
		"a label again":              {"label: tls-2,", "label: tls,", "keys.tls.label", "another key"},
		"no CA certificate":          {"ca_certificate_sha256: ", "# ", "ca_certificate_sha256", "is missing"},
		"an id that is too short":    {"id: 00000000000000000000000000000001", "id: '01'", "keep[0].id", "16 bytes"},
		"operators":                  {"kind: change", "kind: change\noperators: {}", "operators", "does not belong"},
		"a new token":                {"serial: '0123456789abcdef'", "new: true\n  label: x", "token.new", "name its serial"},
		"the parts of another kind":  {"kind: change", "kind: self-signed", "keep", "does not belong"},
		"a key that is made by none": {"keys:\n  tls:        {label: tls-2,        algorithm: P-256}\n", "", "certificates.tls", "no key of this role"},
	} {
		t.Run(name, func(t *testing.T) {
			changed := strings.Replace(text, tt.old, tt.repl, 1)
			_, err := plan.Parse([]byte(changed))
			if changed == text || !hasFault(err, tt.path, tt.say) {
				t.Errorf("Parse: %v; want %s: %s", err, tt.path, tt.say)
			}
		})
	}
}

func TestAllFaultsAreToldAtOnceByTheirPlaces(t *testing.T) {
	text := strings.NewReplacer("class: test", "classe: test", "label: ra-sign", "lable: ra-sign", "90d", "90x").Replace(script(t, "demo.yaml"))
	_, err := plan.Parse([]byte(text))
	e, ok := errors.AsType[*plan.Error](err)
	if !ok {
		t.Fatal(err)
	}
	for _, want := range []string{
		`line 5, column 1: classe: unknown key; did you mean "class"?`,
		`keys.ra-sign.lable: unknown key; did you mean "label"?`,
		`class: is missing`, `keys.ra-sign.label: is missing`, `"90x" is no duration`,
	} {
		if !strings.Contains(e.Error(), want) {
			t.Errorf("no %q in:\n%v", want, e)
		}
	}
	for i := 1; i < len(e.Faults); i++ {
		if e.Faults[i].Line < e.Faults[i-1].Line {
			t.Errorf("%v comes after %v", e.Faults[i], e.Faults[i-1])
		}
	}
}

func TestSubjectsAreThoseOfRFC4514(t *testing.T) {
	for in, want := range map[string]string{
		"CN=a,O=b,C=DE":          "CN=a,O=b,C=DE",
		"cn=a,o=b":               "CN=a,O=b",
		`CN=a\, Inc.,O=\#1\ `:    `CN=a\, Inc.,O=\#1\ `,
		`CN=\<a\>\;\"b\"\+\\c`:   `CN=\<a\>\;\"b\"\+\\c`,
		"CN=Größe,DC=example":    "CN=Größe,DC=example",
		"SERIALNUMBER=12-A, O=b": "SERIALNUMBER=12-A,O=b",
		"CN= a":                  "", "CN=a ": "", "CN=a,": "", "CN=a ,O=b": "", "": "", "=a": "", "CN=#0401": "",
		"CN=a\x00": "", "CN=\xff": "", "C=de": "", "DC=ä": "", `CN=a\`: "", `CN=a\61`: "",
	} {
		s, err := plan.ParseSubject(in)
		if want == "" {
			if err == nil {
				t.Errorf("ParseSubject(%q) = %v", in, s)
			}
			continue
		}
		if err != nil || s.String() != want {
			t.Errorf("ParseSubject(%q) = %v, %v; want %s", in, s, err, want)
		}
	}
}

// FuzzParsePlan checks that no text makes the parser panic, and that what it
// accepts has what a ceremony relies on.
func FuzzParsePlan(f *testing.F) {
	demo := script(f, "demo.yaml")
	f.Add([]byte(demo))
	f.Add([]byte(script(f, "self-signed.yaml")))
	for _, name := range []string{"two-tier-offline-root.yaml", "outside-ca.yaml", "rotate-tls.yaml", "next-ca.yaml", "unlock-pin.yaml"} {
		f.Add([]byte(script(f, name)))
	}
	f.Add([]byte(strings.ReplaceAll(demo, "{", "[")))
	f.Add([]byte("a: &a [*a, *a]\n"))
	f.Add([]byte("? {a: b}\n: c\n"))
	f.Add([]byte("---\n--- !!binary x"))
	f.Add([]byte(strings.Replace(demo, "new: true", "serial: '0123456789abcdef'", 1)))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := plan.Parse(text)
		if err != nil {
			if e, ok := errors.AsType[*plan.Error](err); !ok || len(e.Faults) == 0 {
				t.Errorf("an error without a fault: %v", err)
			}
			return
		}
		whole := len(p.Keys) >= 5 && len(p.Certificates) >= 5 && len(p.Operators) == 2 && len(p.Steps()) >= 30 || p.Changes() && len(p.Keep) > 0
		if !whole || p.Text != string(text) {
			t.Errorf("accepted, but not whole: %+v", p)
		}
		for _, token := range p.Tokens {
			if !filepath.IsAbs(token.Module) || token.New == (token.Serial != "") {
				t.Errorf("token %+v", token)
			}
		}
		for _, c := range append(p.Certificates, p.Operators...) {
			again, err := plan.ParseSubject(c.Subject.String())
			if err != nil || again.String() != c.Subject.String() {
				t.Errorf("subject %q is read again as %q, %v", c.Subject, again, err)
			}
		}
	})
}
