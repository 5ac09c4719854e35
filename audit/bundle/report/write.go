package report

import (
	"crypto/x509"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

//go:embed report.html
var page string

// certificate is subject and end of a certificate in base64, "" if it cannot be read.
func certificate(text string) string {
	der, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return ""
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return ""
	}
	return " " + c.Subject.String() + ", until " + c.NotAfter.UTC().Format(time.RFC3339)
}

// A Part of the report that is a list.
type Part struct {
	Title string
	List
}

// Parts are the lists, in the order in which they are shown.
func (r *Report) Parts() []Part {
	return []Part{
		{"Exceptions", r.Exceptions}, {"Changes of keys, policy and program", r.Changes}, {"Gaps in time", r.Gaps}, {"Clock", r.Clock},
		{"Revoked", r.Revoked}, {"Certificates issued", r.Issued},
	}
}

// More is how many items are not in the list.
func (l List) More() int64 { return l.Total - int64(len(l.Items)) }

// HTML writes the report as one page that needs nothing else.
func (r *Report) HTML(w io.Writer) error {
	t, err := template.New("report").Parse(page)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return t.Execute(w, r)
}

// Text writes the report for a terminal.
func (r *Report) Text(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 8, 2, ' ', 0)
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }
	p("%s\n\n", Shown(r.Title))
	for _, f := range r.Facts {
		p("%s\t%s\n", Shown(f.What), Shown(f.Reason))
	}
	p("\nWHO\tRECORDS\n")
	for _, c := range r.Actors {
		p("%s\t%d\n", Shown(c.What), c.N)
	}
	p("\nEVENT\tREASON\tRECORDS\n")
	for _, c := range r.Events {
		p("%s\t%s\t%d\n", Shown(c.What), Shown(c.Reason), c.N)
	}
	for _, part := range r.Parts() {
		p("\n%s: %d\n", strings.ToUpper(part.Title), part.Total)
		for _, i := range part.Items {
			p("%d\t%s\t%s\n", i.Seq, i.Time, Shown(i.What))
		}
		if part.More() > 0 {
			p("and %d more, which the records have\n", part.More())
		}
	}
	return w.Flush()
}

// Shown is a text of somebody else's as a terminal may have it: what would move its
// cursor or rename its window is escaped.
func Shown(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !strconv.IsPrint(r) || r == '\uFFFD' }) < 0 {
		return s
	}
	return strconv.QuoteToASCII(s)
}
