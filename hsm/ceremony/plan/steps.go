package plan

import "slices"

// A Step is one step of a ceremony: its records have the event "ceremony." and
// Name, and Of in their field "of".
type Step struct {
	Name string
	Of   string // the role of a key or certificate, or the name of a token; "" for a step of the whole
}

// String returns both.
func (s Step) String() string {
	if s.Of == "" {
		return s.Name
	}
	return s.Name + " " + s.Of
}

// The names of steps.
const (
	StepEnvironment = "environment"  // what the ceremony runs on
	StepShares      = "shares"       // the SO PIN is made and split, and people keep the shares
	StepToken       = "token"        // a token is selected, or initialized
	StepPIN         = "pin"          // its PIN is set and tried, and it is empty
	StepKeys        = "keys"         // its keys are generated
	StepReadBack    = "readback"     // a key's attributes are read
	StepProofs      = "proofs"       // what a key must not do is tried
	StepLint        = "lint"         // the draft of a certificate is looked at
	StepCertificate = "certificate"  // and signed
	StepUnlock      = "unlock"       // the security officer sets a new user PIN
	StepErase       = "erase"        // everything on a token is destroyed
	StepRequest     = "request"      // the CA key signs a request for its certificate
	StepReceive     = "receive"      // a certificate that was made elsewhere, or before, is looked at
	StepLeave       = "leave"        // a token is closed before the others, to be taken away
	StepOperatorKey = "operator-key" // a software key of the operators
	StepSecrets     = "secrets"      // the key of the challenges' tags
	StepDescribe    = "describe"     // the file for the service's configuration
	StepClose       = "close"        // the last look, and the end
)

// Steps lists what a ceremony by this plan does, in order.
func (p Plan) Steps() []Step {
	out := []Step{{StepEnvironment, ""}}
	for _, t := range p.Tokens {
		if t.Shares > 0 {
			out = append(out, Step{StepShares, string(t.On)})
		}
		out = append(out, Step{StepToken, string(t.On)})
		if p.Kind == Unlock {
			out = append(out, Step{StepUnlock, string(t.On)})
		}
		out = append(out, Step{StepPIN, string(t.On)})
		if len(p.KeysOn(t.On)) > 0 {
			out = append(out, Step{StepKeys, string(t.On)})
		}
	}
	for _, k := range p.Keep {
		if !k.Retired {
			out = append(out, Step{StepReadBack, string(k.Role)})
		}
	}
	for _, name := range []string{StepReadBack, StepProofs} {
		for _, k := range p.Keys {
			out = append(out, Step{name, string(k.Role)})
		}
	}
	if p.Kind == Erase {
		return append(out, Step{StepErase, string(Service)}, Step{StepClose, ""})
	}
	if p.Kind == NewLog {
		return append(out, Step{StepSurvey, ""}, Step{StepAside, ""}, Step{StepQuote, ""}, Step{StepMark, ""}, Step{StepClose, ""})
	}
	out = append(out, p.issuing()...)
	for _, c := range p.Operators {
		out = append(out, Step{StepOperatorKey, string(c.Role)}, Step{StepLint, string(c.Role)}, Step{StepCertificate, string(c.Role)})
	}
	if p.Changes() {
		return append(out, Step{StepDescribe, ""}, Step{StepClose, ""})
	}
	return append(out, Step{StepSecrets, ""}, Step{StepDescribe, ""}, Step{StepClose, ""})
}

// issuing lists the steps of the certificates of the tokens' keys.
func (p Plan) issuing() (out []Step) {
	if p.CASHA256 != "" {
		out = append(out, Step{StepReceive, string(RoleCA)})
	}
	for _, c := range p.Certificates {
		if c.Role == RoleCA && p.Kind == OutsideCA {
			out = append(out, Step{StepRequest, string(c.Role)}, Step{StepReceive, string(c.Role)})
			continue
		}
		out = append(out, Step{StepLint, string(c.Role)}, Step{StepCertificate, string(c.Role)})
		if c.Role == RoleCA && p.HasRoot() {
			out = append(out, Step{StepLeave, string(Root)})
		}
	}
	return out
}

// Index returns where a step stands in a list, or -1.
func Index(steps []Step, s Step) int { return slices.Index(steps, s) }
