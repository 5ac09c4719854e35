// Package report prints a plan as a script for the people who carry it out, and a
// transcript as a report for those who were not there: as text, and as HTML that
// prints well and loads nothing.
//
// # What a caller may rely on
//
// Both show what the plan or the transcript says and nothing else; a report shows
// what [ceremony.Verify] found, good or bad, before anything that the transcript
// claims. A rehearsal is marked at the head of every page. Whatever stands in a
// transcript is shown as text, never as markup.
//
// # What it does not protect against
//
// A report is a copy on paper: the transcript is the evidence, and its digest is
// what people compare.
package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"strings"
)

//go:embed document.html
var page string

// A Document is what is printed.
type Document struct {
	Title    string
	Mark     string // at the head, in capitals; "" for none
	Sections []Section
}

// A Section is a heading with lines of text, a table, and boxes to be filled in.
type Section struct {
	Title string
	Lines []string
	Head  []string   // of the table
	Rows  [][]string // each as long as Head
	Boxes []string   // what has to be filled in by hand
}

// HTML writes a document as one page of HTML.
func (d Document) HTML(w io.Writer) error {
	t, err := template.New("page").Parse(page)
	if err != nil {
		return err
	}
	return t.Execute(w, d)
}

// Text writes a document as plain text.
func (d Document) Text(w io.Writer) error {
	var b strings.Builder
	if d.Mark != "" {
		fmt.Fprintf(&b, "*** %s ***\n\n", d.Mark)
	}
	fmt.Fprintf(&b, "%s\n%s\n", d.Title, strings.Repeat("=", len([]rune(d.Title))))
	for _, s := range d.Sections {
		fmt.Fprintf(&b, "\n%s\n%s\n", s.Title, strings.Repeat("-", len([]rune(s.Title))))
		for _, l := range s.Lines {
			fmt.Fprintf(&b, "%s\n", plain(l))
		}
		s.table(&b)
		for _, box := range s.Boxes {
			fmt.Fprintf(&b, "%-50s %s\n", plain(box)+":", strings.Repeat("_", 28))
		}
	}
	if d.Mark != "" {
		fmt.Fprintf(&b, "\n*** %s ***\n", d.Mark)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// maxColumn is how wide a column is made for its entries; a longer one sticks out.
const maxColumn = 40

func (s Section) table(b *strings.Builder) {
	if len(s.Rows) == 0 {
		return
	}
	widths := make([]int, len(s.Head))
	for _, row := range append([][]string{s.Head}, s.Rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], min(len([]rune(plain(cell))), maxColumn))
		}
	}
	for _, row := range append([][]string{s.Head}, s.Rows...) {
		var line string
		for i, cell := range row {
			line += fmt.Sprintf("%-*s  ", widths[i], plain(cell))
		}
		fmt.Fprintf(b, "%s\n", strings.TrimRight(line, " "))
	}
}

// plain replaces what would move a terminal's cursor.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x200b && r <= 0x200f || r >= 0x2028 && r <= 0x202e {
			return '?'
		}
		return r
	}, s)
}
