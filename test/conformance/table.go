package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

//go:embed rows.yaml
var rowsYAML []byte

//go:embed attacks.yaml
var attacksYAML []byte

// A State is what was done about a row.
type State string

// The states of a row. All but Refused, Later and Open need a test.
const (
	Covered State = "covered" // built as the row says
	Amended State = "amended" // built otherwise, for the reason given
	Refused State = "refused" // left out on purpose, for the reason given
	Later   State = "later"   // belongs to what is not there yet
	Open    State = "open"    // to be built; a test may be there before the state changes
)

// tested says which states there are, and which of them need a test.
func tested() map[State]bool {
	return map[State]bool{Covered: true, Amended: true, Refused: false, Later: false, Open: false}
}

// A Row is one requirement, or one attack with the defense against it.
type Row struct {
	ID    string `yaml:"id"`
	Level string `yaml:"level"` // MUST, SHOULD, MAY (of the RFC; "client": that binds the client), "-", ours, field
	RFC   string `yaml:"rfc"`   // sections of RFC 8894, "" where it is silent
	Says  string `yaml:"says"`
	State State  `yaml:"state"`
	Why   string `yaml:"why"`
}

// A Table is all rows, in their order.
type Table struct{ Rows, Attacks []Row }

var idForm = regexp.MustCompile(`^[SFA]-[0-9]+[a-z]?$`)

// Load reads the tables that are built in.
func Load() (*Table, error) {
	t := new(Table)
	for _, part := range []struct {
		name string
		data []byte
		rows *[]Row
	}{{"rows.yaml", rowsYAML, &t.Rows}, {"attacks.yaml", attacksYAML, &t.Attacks}} {
		dec := yaml.NewDecoder(bytes.NewReader(part.data))
		dec.KnownFields(true)
		if err := dec.Decode(part.rows); err != nil {
			return nil, fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return t, nil
}

func (t *Table) all() []Row { return slices.Concat(t.Rows, t.Attacks) }

// Check returns what does not fit together: rows by themselves, and rows with the
// tests that there are.
func (t *Table) Check(tests []Test) (findings []string) {
	shown := byRow(tests)
	known := map[string]bool{}
	for _, r := range t.all() {
		if known[r.ID] {
			findings = append(findings, r.ID+" stands twice")
		}
		known[r.ID] = true
		needs, ok := tested()[r.State]
		switch {
		case !idForm.MatchString(r.ID):
			findings = append(findings, fmt.Sprintf("%q is no id", r.ID))
		case !ok:
			findings = append(findings, fmt.Sprintf("%s: no state %q", r.ID, r.State))
		case r.Says == "" || r.Level == "":
			findings = append(findings, r.ID+" says nothing, or not how much it binds")
		case r.State != Covered && r.Why == "":
			findings = append(findings, fmt.Sprintf("%s is %s without a reason", r.ID, r.State))
		case needs && len(shown[r.ID]) == 0:
			findings = append(findings, fmt.Sprintf("%s is %s, and no test covers it", r.ID, r.State))
		}
	}
	for _, test := range tests {
		for _, id := range test.Rows {
			if !known[id] {
				findings = append(findings, fmt.Sprintf("%s covers %s, which is not in the table", test, id))
			}
		}
	}
	return append(findings, named(t.Attacks, shown)...)
}

// named wants an attack's test to be called after it.
func named(attacks []Row, shown map[string][]Test) (findings []string) {
	for _, r := range attacks {
		prefix := fmt.Sprintf("TestAttack%02s", strings.TrimPrefix(r.ID, "A-"))
		if tested()[r.State] && !slices.ContainsFunc(shown[r.ID], func(t Test) bool { return strings.HasPrefix(t.Name, prefix) }) {
			findings = append(findings, fmt.Sprintf("%s has no test called %s...", r.ID, prefix))
		}
	}
	return findings
}

func byRow(tests []Test) map[string][]Test {
	m := map[string][]Test{}
	for _, test := range tests {
		for _, id := range test.Rows {
			m[id] = append(m[id], test)
		}
	}
	return m
}
