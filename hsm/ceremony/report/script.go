package report

import (
	"fmt"
	"strings"

	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/ceremony/plan"
	"github.com/postern-pki/postern/hsm/ceremony/words"
)

// Script returns a plan as people carry it out: what there is to know before, and
// each step with a box for the time and for initials.
func Script(p plan.Plan) Document {
	d := Document{Title: "Script of the ceremony " + p.Name}
	if p.Class == plan.Test {
		d.Mark = "CLASS TEST: NOTHING MAY RELY ON WHAT THIS MAKES"
	}
	approve := Section{Title: "The plan", Lines: []string{fmt.Sprintf("Class %s, kind %s. SHA-256 of the plan, to be read aloud and compared by everybody with the approved one:", p.Class, p.Kind), p.Digest()}}
	for _, l := range words.OfHex(p.Digest()) {
		approve.Lines = append(approve.Lines, "    "+l)
	}
	approve.Boxes = []string{"Compared by (administrator)", "Compared by (witness)", "Date, time and place", "SHA-256 of the program, first 8"}
	d.Sections = append(d.Sections, approve,
		Section{Title: "To know before", Lines: p.Warnings()},
		Section{Title: "People", Head: []string{"role", "name", "initials"}, Rows: [][]string{{"administrator", "", ""}, {"security officer", "", ""}, {"witness", "", ""}, {"auditor", "", ""}}},
		makes(p))
	steps := Section{Title: "Steps", Head: []string{"no.", "step", "what is done, and what to look at", "time", "initials"}}
	for i, s := range p.Steps() {
		steps.Rows = append(steps.Rows, []string{fmt.Sprint(i + 1), s.String(), explain(p, s), "", ""})
	}
	d.Sections = append(d.Sections, steps, Section{
		Title: "Exceptions", Lines: []string{"Whatever did not go as it stands here: when, what, who decided what."},
		Boxes: []string{"1", "2", "3", "Confirmed by the witness"},
	}, Section{
		Title: "The end", Lines: []string{"SHA-256 of the transcript, as it was shown and read aloud:"},
		Boxes: []string{"First 32 characters", "Last 32 characters", "Administrator", "Security officer", "Witness", "Auditor"},
	})
	return d
}

func makes(p plan.Plan) Section {
	s := Section{Title: "What it makes", Head: []string{"", "token", "what"}}
	for _, k := range p.Keys {
		s.Rows = append(s.Rows, []string{"key", string(k.On), fmt.Sprintf("%s, %s, label %s", k.Role, k.Algorithm, k.Label)})
	}
	for _, c := range append(append([]plan.Certificate{}, p.Certificates...), p.Operators...) {
		s.Rows = append(s.Rows, []string{"certificate", "", fmt.Sprintf("%s: %s, for %d days, signed by %s", c.Role, c.Subject, int(c.Validity.Hours()/24), p.Issuer(c.Role))})
	}
	return s
}

// explain says what people see in a step.
func explain(p plan.Plan, s plan.Step) string {
	t := p.Token(plan.On(s.Of))
	switch s.Name {
	case plan.StepEnvironment:
		return "The program, the module and the machine are recorded. The plan's digest is shown: compare it."
	case plan.StepShares:
		return fmt.Sprintf("The SO PIN is made and split into %d shares, any %d of which give it back. Each is shown to one person alone, who writes it down and enters it again.", t.Shares, t.Threshold)
	case plan.StepToken:
		if t.New {
			return fmt.Sprintf("The empty token in the only free slot is initialized as %q.", t.Label)
		}
		return "The token is selected. Compare the serial on its case with " + t.Serial + "."
	case plan.StepPIN:
		return "The PIN is set where the token is new, and tried once. The token has to be empty."
	case plan.StepKeys:
		var labels []string
		for _, k := range p.KeysOn(t.On) {
			labels = append(labels, k.Label)
		}
		return "Generated on the token, not to be taken out: " + strings.Join(labels, ", ") + "."
	case plan.StepReadBack:
		return "Every attribute of the key is read and compared."
	case plan.StepProofs:
		return proofs(p, plan.Role(s.Of))
	case plan.StepLint:
		return "The certificate's draft, signed by a throw-away key, is compared with the plan."
	case plan.StepCertificate:
		return fmt.Sprintf("The key %s signs the same bytes; %s is written. Compare its SHA-256.", p.Issuer(plan.Role(s.Of)), plan.Role(s.Of).File())
	case plan.StepUnlock:
		return "The security officer sets a new user PIN."
	case plan.StepErase:
		return "Everything on the token is destroyed. Compare its serial once more before."
	case plan.StepRequest:
		return "The CA's key signs a request for its certificate. Compare the file's SHA-256 with whoever signs it."
	case plan.StepReceive:
		return "The CA's certificate and those above it are taken from a file, and compared with the plan."
	case plan.StepSurvey:
		return "What the token's mark, the keyholder's file and the disk know of the log is shown, and confirmed once more: compare it with the reason in the plan."
	case plan.StepAside:
		return "The old log, its index and the keyholder's file are renamed. Nothing is removed: note where they are."
	case plan.StepQuote:
		return "What the new log's first record says of the old one is written to new-log.json."
	case plan.StepMark:
		return "The audit key signs a checkpoint of no line under the new origin; it replaces the mark on the token."
	case plan.StepLeave:
		return "The token is closed. Take it out now, put it into its bag and note the bag's number here."
	case plan.StepOperatorKey:
		return "A key in a file, for the operators; it leaves this machine afterwards."
	case plan.StepSecrets:
		return "The key of the challenges' tags is made, as a file."
	case plan.StepDescribe:
		return "What the service's configuration needs is written to a file."
	case plan.StepClose:
		return "The token's objects are listed and it is closed. The transcript's SHA-256 is shown: write it down."
	default:
		return ""
	}
}

func proofs(p plan.Plan, role plan.Role) string {
	for _, k := range p.Keys {
		if k.Role == role {
			return fmt.Sprintf("%d things that the key must not do are tried and have to be refused; then it has to work.", len(hsm.Proofs(k.Purpose, k.Algorithm))-1)
		}
	}
	return "What the key must not do is tried."
}
