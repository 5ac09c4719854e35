package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// counts says how many rows are in each state.
func counts(rows []Row) string {
	n := map[State]int{}
	for _, r := range rows {
		n[r.State]++
	}
	var parts []string
	for _, s := range []State{Covered, Amended, Refused, Later, Open} {
		if n[s] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n[s], s))
		}
	}
	return fmt.Sprintf("%d rows: %s", len(rows), strings.Join(parts, ", "))
}

// text prints a line for each row, with its tests below.
func (t *Table) text(out io.Writer, tests []Test) error {
	shown := byRow(tests)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, rows := range [][]Row{t.Rows, t.Attacks} {
		for _, r := range rows {
			_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.ID, r.State, r.Level, r.RFC, r.Says)
			if r.Why != "" {
				_, _ = fmt.Fprintf(w, "\t\t\t\t= %s\n", r.Why)
			}
			for _, test := range shown[r.ID] {
				_, _ = fmt.Fprintf(w, "\t\t\t\t> %s\n", test)
			}
		}
		_, _ = fmt.Fprintf(w, "%s\n\n", counts(rows))
	}
	return w.Flush()
}

// cell makes a text one cell of a table.
func cell(s string) string { return strings.NewReplacer("|", "\\|", "\n", " ").Replace(s) }

func says(r Row) string {
	if r.Why == "" {
		return cell(r.Says)
	}
	return cell(r.Says) + " *" + cell(r.Why) + "*"
}

// markdown is the whole table with its tests.
func (t *Table) markdown(out io.Writer, tests []Test) error {
	shown := byRow(tests)
	var b strings.Builder
	for _, rows := range [][]Row{t.Rows, t.Attacks} {
		b.WriteString("| Row | Level | RFC 8894 | What | State | Shown by |\n| --- | --- | --- | --- | --- | --- |\n")
		for _, r := range rows {
			var names []string
			for _, test := range shown[r.ID] {
				names = append(names, "`"+test.String()+"`")
			}
			_, _ = fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", r.ID, cell(r.Level), cell(r.RFC), says(r), r.State, strings.Join(names, ", "))
		}
		b.WriteString("\n" + counts(rows) + "\n\n")
	}
	_, err := io.WriteString(out, b.String())
	return err
}

const handbookHead = `# Conformance

What RFC 8894 asks of a SCEP server, what clients in the field ask of it beside that, and the attacks that are known, row by row. Each row that is *covered* or
*amended* is shown by a test that runs with every build; ` + "`go run ./test/conformance`" + ` prints the table with the names of the tests. This page is made by
` + "`make conformance`" + `.

Levels: MUST, SHOULD and MAY are the RFC's, "client" where they bind the client and the server has to bear with it; *ours* is a rule where the RFC is silent,
*field* is what clients were seen to need. *Amended*: built otherwise than the row says, for the reason given. *Refused*: left out on purpose. *Later*: belongs
to a part that is not there yet.

`

// handbook is the page of the handbook: the tables without their tests, which
// change more often.
func (t *Table) handbook(out io.Writer) error {
	var b strings.Builder
	b.WriteString(handbookHead)
	for _, part := range []struct {
		title string
		rows  []Row
	}{{"Requirements", t.Rows}, {"Attacks", t.Attacks}} {
		_, _ = fmt.Fprintf(&b, "## %s\n\n%s\n\n| Row | Level | RFC 8894 | What | State |\n| --- | --- | --- | --- | --- |\n", part.title, counts(part.rows))
		for _, r := range part.rows {
			_, _ = fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", r.ID, cell(r.Level), cell(r.RFC), says(r), r.State)
		}
		b.WriteString("\n")
	}
	_, err := io.WriteString(out, strings.TrimRight(b.String(), "\n")+"\n")
	return err
}
