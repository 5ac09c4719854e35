package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/postern-pki/postern/audit/bundle/report"
)

// answer says what was found, and decides the exit status. The error is that of
// writing.
func (v *verification) answer(out, errOut io.Writer, found error) error {
	switch {
	case v.result.Bad != nil:
		v.code, v.result.Result = bad, "bad"
	case len(v.result.Missing) > 0:
		v.code, v.result.Result = incomplete, "incomplete"
	default:
		v.code, v.result.Result = good, "good"
	}
	if v.collect != nil && found == nil {
		if err := v.write(); err != nil {
			return err
		}
	}
	if v.output == "json" {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(v.result); err != nil {
			return err
		}
	} else if err := v.text(out); err != nil {
		return err
	}
	if b := v.result.Bad; b != nil {
		_, _ = fmt.Fprintf(errOut, "postern-verify: %s: %s\npostern-verify: hint: keep the file as it is, and ask for another copy of it: a second one that is bad in the same place was made so\n",
			b.File, report.Shown(b.words()))
	}
	for _, m := range v.result.Missing {
		_, _ = fmt.Fprintf(errOut, "postern-verify: missing: %s\n", report.Shown(m))
	}
	if v.code == incomplete {
		_, _ = fmt.Fprintln(errOut, "postern-verify: hint: nothing is wrong, but what is missing could be anything: ask for it")
	}
	return nil
}

// words name the place.
func (b *place) words() string {
	var out []string
	if b.Record != nil {
		out = append(out, fmt.Sprintf("record %d", *b.Record))
	}
	if b.Within != "" {
		out = append(out, b.Within)
	}
	if b.Line > 0 {
		out = append(out, fmt.Sprintf("line %d, octet %d", b.Line, b.Offset))
	}
	return "BAD: " + strings.Join(append(out, b.Why), ": ")
}

func (v *verification) text(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 8, 2, ' ', 0)
	p := func(key string, value any) { _, _ = fmt.Fprintf(w, "%s\t%v\n", key, value) }
	for _, c := range v.result.Checked {
		p("good", c.File)
		p("log", report.Shown(c.Origin))
		if c.Kind == "record" {
			p("checkpoint", fmt.Sprintf("signed, of %d records", c.Size))
			for _, line := range c.Records {
				p("record", report.Shown(strings.TrimSuffix(line, "\n")))
			}
			continue
		}
		p("records", fmt.Sprintf("%d to %d, %s to %s", c.From, c.Size-1, c.First.Format(time.RFC3339), c.Last.Format(time.RFC3339)))
		p("signed", fmt.Sprintf("%d records", c.Signed))
		p("root", c.Root)
		if c.Manifest != "" {
			p("manifest", c.Manifest)
			p("signed at", c.ManifestAt.Format(time.RFC3339)+", by the appliance's clock")
			p("certificates", c.Issued)
		}
		if c.Unfinished > 0 {
			p("unfinished", fmt.Sprintf("%d octets after the last whole record", c.Unfinished))
		}
		for _, event := range slices.Sorted(maps.Keys(c.Events)) {
			p("  "+report.Shown(event), c.Events[event])
		}
	}
	p("result", strings.ToUpper(v.result.Result))
	return w.Flush()
}

// write writes the report.
func (v *verification) write() (err error) {
	r := v.collect.Report()
	r.Title = "Report on " + v.files[0]
	fact := func(what, text string) { r.Facts = append(r.Facts, report.Count{What: what, Reason: text}) }
	fact("result", v.result.Result)
	fact("signed by", v.cert.Subject.String())
	for _, c := range v.result.Checked {
		if c.File == v.previous {
			continue
		}
		fact("log", c.Origin)
		fact("records", fmt.Sprintf("%d to %d of %s", c.From, c.Size-1, c.File))
		fact("time", c.First.Format(time.RFC3339)+" to "+c.Last.Format(time.RFC3339))
		if c.Manifest != "" {
			fact("SHA-256 of the manifest", c.Manifest)
			fact("exported by", c.Exporter)
		}
	}
	for _, m := range v.result.Missing {
		fact("missing", m)
	}
	f, err := os.OpenFile(v.report, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if strings.HasSuffix(v.report, ".html") {
		return r.HTML(f)
	}
	return r.Text(f)
}
