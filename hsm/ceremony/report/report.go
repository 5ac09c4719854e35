package report

import (
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/postern-pki/postern/hsm/ceremony"
	"github.com/postern-pki/postern/hsm/ceremony/plan"
	"github.com/postern-pki/postern/hsm/ceremony/transcript"
	"github.com/postern-pki/postern/hsm/ceremony/words"
)

// Of returns the report of a transcript. It has one of a transcript that does not
// hold too, which says so first; the error is then [ceremony.ErrTranscript].
func Of(path string) (Document, error) {
	found, verr := ceremony.Verify(path)
	if verr != nil && !errors.Is(verr, ceremony.ErrTranscript) {
		return Document{}, verr
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return Document{}, err
	}
	h, _ := transcript.Read(raw) // as far as it can be read: what does not hold is said above
	d := Document{Title: "Report of the ceremony " + found.Plan}
	if found.Plan == "" {
		d.Title = "Report of a ceremony"
	}
	switch {
	case verr != nil:
		d.Mark = "THIS TRANSCRIPT DOES NOT HOLD"
	case found.Rehearsal:
		d.Mark = plan.RehearsalMark
	}
	if len(found.Exceptions) > 0 {
		d.Sections = append(d.Sections, Section{Title: "Exceptions", Lines: found.Exceptions})
	}
	d.Sections = append(d.Sections, verdict(found), digests(found))
	if h.Records > 0 {
		d.Sections = append(d.Sections, where(h), keys(h), certificates(h), course(h))
	}
	if len(h.Resumptions) > 0 {
		d.Sections = append(d.Sections, interruptions(h))
	}
	d.Sections = append(d.Sections, thePlan(h), Section{
		Title: "Signatures", Lines: []string{"Whoever signs has compared both digests above with those that were kept at the ceremony."},
		Boxes: []string{"Administrator", "Witness", "Auditor", "Place and date"},
	})
	return d, verr
}

func verdict(r ceremony.Report) Section {
	s := Section{Title: "What was verified", Head: []string{"", "statement", "found"}}
	for _, st := range r.Statements {
		word := "holds"
		if !st.OK {
			word = "DOES NOT HOLD"
		}
		s.Rows = append(s.Rows, []string{word, st.Name, st.Say})
	}
	return s
}

func digests(r ceremony.Report) Section {
	s := Section{Title: "Digests, to be compared and read aloud"}
	for _, d := range []struct{ what, sum string }{{"The plan's SHA-256", r.PlanSHA256}, {"The transcript's SHA-256", r.Digest}} {
		if d.sum == "" {
			continue
		}
		s.Lines = append(s.Lines, d.what+": "+d.sum)
		for _, l := range words.OfHex(d.sum) {
			s.Lines = append(s.Lines, "    "+l)
		}
	}
	return s
}

func where(h transcript.History) Section {
	s := Section{Title: "Where and when", Head: []string{"", ""}}
	row := func(what, is string) {
		if is != "" {
			s.Rows = append(s.Rows, []string{what, is})
		}
	}
	row("first record", h.First.Time.Format("2006-01-02 15:04:05 MST"))
	row("last record", h.Last.Time.Format("2006-01-02 15:04:05 MST"))
	for _, st := range h.Steps {
		ob := st.End.Object
		switch st.Name {
		case plan.StepEnvironment:
			b, p := ob.Object("binary"), ob.Object("process")
			row("host", p.String("host")+", "+p.String("kernel"))
			row("program", strings.TrimSpace(b.String("version")+" "+b.String("revision"))+", SHA-256 "+b.String("sha256"))
			for _, m := range ob.Objects("modules") {
				row("PKCS#11 module", m.String("path")+", "+m.String("name")+" "+m.String("version")+", SHA-256 "+m.String("sha256"))
			}
			o := ob.Object("openssl")
			row("openssl", strings.TrimSpace(o.String("path")+" "+o.String("version")))
		case plan.StepToken:
			row("the "+st.Of+" token", fmt.Sprintf("%q, serial %s, of %s %s", ob.String("label"), ob.String("serial"), ob.String("manufacturer"), ob.String("model")))
		}
	}
	return s
}

// keys says what is known of each key: its attributes and proofs in numbers.
func keys(h transcript.History) Section {
	s := Section{Title: "Keys", Head: []string{"key", "token", "label", "algorithm", "attributes", "proofs", "SHA-256 of the public key"}}
	count := func(name, of, list, state string) int {
		n := 0
		for _, st := range h.Steps {
			if st.Name == name && st.Of == of {
				for _, a := range st.End.Object.Objects(list) {
					if a.String("state") == state {
						n++
					}
				}
			}
		}
		return n
	}
	for _, st := range h.Steps {
		if st.Name != plan.StepKeys {
			continue
		}
		for _, k := range st.End.Object.Objects("keys") {
			role := k.String("role")
			attributes := fmt.Sprintf("%d as wanted, %d not told", count(plan.StepReadBack, role, "attributes", "as wanted"), count(plan.StepReadBack, role, "attributes", "not told"))
			proofs := fmt.Sprintf("%d hold", count(plan.StepProofs, role, "proofs", "holds"))
			s.Rows = append(s.Rows, []string{role, st.Of, k.String("label"), k.String("algorithm"), attributes, proofs, k.String("spki_sha256")})
		}
	}
	return s
}

func certificates(h transcript.History) Section {
	s := Section{Title: "Certificates", Head: []string{"certificate", "subject", "issuer", "serial", "from", "until", "SHA-256"}}
	for _, st := range h.Steps {
		der, err := base64.StdEncoding.DecodeString(st.End.Object.String("certificate"))
		if st.Name != plan.StepCertificate || err != nil {
			continue
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			s.Lines = append(s.Lines, st.Of+": "+err.Error())
			continue
		}
		const date = "2006-01-02"
		s.Rows = append(s.Rows, []string{st.Of, c.Subject.String(), c.Issuer.String(), c.SerialNumber.Text(16), c.NotBefore.Format(date), c.NotAfter.Format(date), st.End.Object.String("sha256")})
	}
	return s
}

func course(h transcript.History) Section {
	s := Section{Title: "What was done", Head: []string{"record", "time", "step", "outcome"}}
	for _, st := range h.Steps {
		s.Rows = append(s.Rows, stepRow(st))
	}
	return s
}

func stepRow(st transcript.Step) []string {
	outcome := "did not end"
	switch {
	case st.Done():
		outcome = "done"
	case st.End.Event != "":
		outcome = "failed: " + st.End.Object.String("error")
	}
	return []string{fmt.Sprint(st.Begin.Seq), st.Begin.Time.Format("15:04:05"), st.String(), outcome}
}

func interruptions(h transcript.History) Section {
	s := Section{Title: "Interruptions and failures", Head: []string{"record", "time", "step", "outcome"}}
	for _, again := range h.Resumptions {
		for _, st := range again.Undone {
			row := stepRow(st)
			row[3] += ", and done again"
			s.Rows = append(s.Rows, row)
		}
		at := again.Record
		s.Rows = append(s.Rows, []string{fmt.Sprint(at.Seq), at.Time.Format("15:04:05"), "resume", fmt.Sprintf("went on at step %d", at.Object.Int("at")+1)})
	}
	return s
}

func thePlan(h transcript.History) Section {
	text := h.First.Object.String("plan")
	return Section{Title: "The plan", Lines: slices.Collect(strings.SplitSeq(strings.TrimRight(text, "\n"), "\n"))}
}
