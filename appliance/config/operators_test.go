package config_test

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/postern-pki/postern/appliance/operator/acts"
)

const (
	keyA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	keyB = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

// withOperators is the good configuration with lines of the operators' section,
// the first of which is line 26.
func withOperators(lines ...string) string {
	const section = "operators: {socket: operator.sock, listen: \":9443\", ca: operator-ca.pem}\n"
	return strings.Replace(good, section, "", 1) + "operators:\n  socket: operator.sock\n  " + strings.Join(lines, "\n  ") + "\n"
}

func TestOperatorsAreResolved(t *testing.T) {
	dir := site(t)
	data, err := os.ReadFile(filepath.Join(dir, "audit.pem"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	c, faults := load(t, dir, withOperators(
		"people:",
		"  - {name: alice, key: "+keyA+", roles: [registration-officer, security-officer]}",
		"  - {name: bob, certificate: audit.pem, roles: [administrator]}",
		"  - {name: carol, key: "+keyB+", roles: [auditor]}",
		"local:",
		"  - {uid: 4711, roles: [monitor]}",
		"  - {user: root, roles: [auditor]}",
		"two_person: [challenge.create, challenge.batch]"))
	if faults != nil {
		t.Fatal(faults)
	}
	want := acts.Rules{TwoPerson: []string{"challenge.create", "challenge.batch"}, People: []acts.Person{
		{Name: "alice", ID: "key:" + keyA, Roles: []acts.Role{acts.RegistrationOfficer, acts.SecurityOfficer}},
		{Name: "bob", ID: "key:" + hex.EncodeToString(sum[:]), Roles: []acts.Role{acts.Administrator}},
		{Name: "carol", ID: "key:" + keyB, Roles: []acts.Role{acts.Auditor}},
		{Name: "uid:4711", ID: "uid:4711", Roles: []acts.Role{acts.Monitor}},
		{Name: "root", ID: "uid:0", Roles: []acts.Role{acts.Auditor}},
	}}
	if !reflect.DeepEqual(c.Rules, want) {
		t.Errorf("%+v, want %+v", c.Rules, want)
	}
}

// Somebody has to be able to begin, and the configuration says who may go on.
func TestWithoutLocalUsersRootAndTheServiceMay(t *testing.T) {
	c, faults := load(t, site(t), good)
	if faults != nil {
		t.Fatal(faults)
	}
	for _, uid := range []int{0, os.Geteuid()} {
		if p, ok := c.Rules.Who("uid:" + strconv.Itoa(uid)); !ok || !reflect.DeepEqual(p.Roles, []acts.Role{acts.Administrator}) {
			t.Errorf("uid %d: %+v", uid, p)
		}
	}
	if !c.Rules.Default {
		t.Error("it is not said that this is the default")
	}
	if c, faults = load(t, site(t), withOperators("local: [{uid: 4711, roles: [administrator]}]")); faults != nil {
		t.Fatal(faults)
	}
	if _, ok := c.Rules.Who("uid:0"); ok || c.Rules.Default {
		t.Errorf("root stays beside those that the configuration names: %+v", c.Rules)
	}
}

func TestFaultsOfOperatorsNameTheirPlace(t *testing.T) {
	dir := site(t)
	person := func(rest string) []string { return []string{"people:", "  - {name: alice, " + rest + "}"} }
	two := func(act string, roles ...string) []string {
		lines := []string{"people:"}
		for i, r := range roles {
			key := strings.Repeat(strconv.Itoa(i), 64)
			lines = append(lines, "  - {name: p"+strconv.Itoa(i)+", key: '"+key+"', roles: ["+r+"]}")
		}
		return append(lines, "two_person: ["+act+"]")
	}
	for name, tt := range map[string]struct {
		lines         []string
		path, nearest string
		line          int
	}{
		"an auditor with another role":              {person("key: " + keyA + ", roles: [auditor, monitor]"), "operators.people[0].roles", "", 28},
		"a local auditor with another role":         {[]string{"local:", "  - {uid: 1, roles: [security-officer, auditor]}"}, "operators.local[0].roles", "", 28},
		"no such role":                              {person("key: " + keyA + ", roles: [monitr]"), "operators.people[0].roles[0]", "monitor", 28},
		"a role twice":                              {person("key: " + keyA + ", roles: [monitor, monitor]"), "operators.people[0].roles[1]", "", 28},
		"no role":                                   {person("key: " + keyA), "operators.people[0].roles", "", 28},
		"an empty list of roles":                    {person("key: " + keyA + ", roles: []"), "operators.people[0].roles", "", 28},
		"no key":                                    {person("roles: [monitor]"), "operators.people[0]", "", 28},
		"key and certificate":                       {person("key: " + keyA + ", certificate: audit.pem, roles: [monitor]"), "operators.people[0]", "", 28},
		"a key that is no digest":                   {person("key: " + keyA[1:] + ", roles: [monitor]"), "operators.people[0].key", "", 28},
		"a certificate that is missing":             {person("certificate: gone.pem, roles: [monitor]"), "operators.people[0].certificate", "", 28},
		"nobody's key":                              {[]string{"people:", "  - {key: " + keyA + ", roles: [monitor]}"}, "operators.people[0].name", "", 28},
		"a name twice":                              {append(person("key: "+keyA+", roles: [monitor]"), "  - {name: alice, key: "+keyB+", roles: [monitor]}"), "operators.people[1].name", "", 29},
		"a key twice":                               {append(person("key: "+keyA+", roles: [monitor]"), "  - {name: bob, key: "+keyA+", roles: [monitor]}"), "operators.people[1]", "", 29},
		"neither uid nor user":                      {[]string{"local:", "  - {roles: [monitor]}"}, "operators.local[0]", "", 28},
		"uid and user":                              {[]string{"local:", "  - {uid: 0, user: root, roles: [monitor]}"}, "operators.local[0]", "", 28},
		"a uid that nobody has":                     {[]string{"local:", "  - {uid: -1, roles: [monitor]}"}, "operators.local[0].uid", "", 28},
		"no such user":                              {[]string{"local:", "  - {user: nobody-of-that-name, roles: [monitor]}"}, "operators.local[0].user", "", 28},
		"a user twice":                              {[]string{"local:", "  - {uid: 0, roles: [monitor]}", "  - {user: root, roles: [monitor]}"}, "operators.local[1]", "", 29},
		"the list of uids of before":                {[]string{"uids: [1000]"}, "operators.uids", "", 27},
		"no such act":                               {two("challenge.creat", "administrator", "administrator"), "operators.two_person[0]", "challenge.create", 30},
		"an act that only reads":                    {two("record.show", "administrator", "administrator"), "operators.two_person[0]", "", 30},
		"one person for two":                        {two("challenge.batch", "administrator"), "operators.two_person[0]", "", 29},
		"two people of whom one may":                {two("challenge.batch", "administrator", "security-officer"), "operators.two_person[0]", "", 30},
		"one challenge takes two, and two take one": {two("challenge.create", "administrator", "administrator"), "operators.two_person", "", 30},
		"nobody but root and the service user":      {[]string{"two_person: [challenge.revoke]"}, "operators.two_person[0]", "", 27},
	} {
		t.Run(name, func(t *testing.T) {
			_, faults := load(t, dir, withOperators(tt.lines...))
			if len(faults) != 1 || faults[0].Path != tt.path || faults[0].Line != tt.line || tt.nearest != "" && faults[0].Nearest != tt.nearest {
				t.Errorf("%v, want one at line %d, %s, nearest %q", faults, tt.line, tt.path, tt.nearest)
			}
		})
	}
}
