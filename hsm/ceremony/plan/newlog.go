package plan

import (
	"path/filepath"
	"regexp"

	"go.yaml.in/yaml/v3"
)

// A Log is what a plan of kind new-log is about: where the service keeps what it
// knows of its log, and under which origin a new one is begun.
type Log struct {
	State     string // the authority's folder: the log, its index
	Keyholder string // the keyholder's folder
	Origin    string // of the log that is put aside
	NewOrigin string // of the one that begins; an origin never has two histories
	Reason    string // in the people's words
}

// Steps of a plan of kind new-log.
const (
	StepSurvey = "survey" // what the token, the keyholder's file and the disk know of the log
	StepAside  = "aside"  // the old log is moved aside, with all that is true of it alone
	StepQuote  = "quote"  // what the new log's first record will say of the old one
	StepMark   = "mark"   // the token's mark is one of no line of the new log
)

const maxReason = 1024 // bytes

// originForm is that of the service's configuration.
var originForm = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*(/[A-Za-z0-9._-]+)*$`)

// log reads the part of the plan that is about the log.
func (d *decoder) log(l *Log, n *yaml.Node, path string) {
	before := len(d.faults)
	d.mapping(n, path,
		field{"state", true, d.folder(&l.State)},
		field{"keyholder_state", true, d.folder(&l.Keyholder)},
		field{"origin", true, d.origin(&l.Origin)},
		field{"new_origin", true, d.origin(&l.NewOrigin)},
		field{"reason", true, d.text(&l.Reason, maxReason)})
	if len(d.faults) == before && l.Origin == l.NewOrigin {
		d.fault(n, path+".new_origin", "", "is that of the old log: an origin never has two histories")
	}
}

func (d *decoder) folder(dst *string) func(*yaml.Node, string) {
	return func(n *yaml.Node, path string) {
		d.text(dst, 1024)(n, path)
		if *dst != "" && (!filepath.IsAbs(*dst) || filepath.Clean(*dst) != *dst) {
			d.fault(n, path, "", "must be an absolute path without . or ..")
		}
	}
}

func (d *decoder) origin(dst *string) func(*yaml.Node, string) {
	return func(n *yaml.Node, path string) {
		d.text(dst, 256)(n, path)
		if *dst != "" && !originForm.MatchString(*dst) {
			d.fault(n, path, "", "has to look like host.example/log")
		}
	}
}

// newLog wants what only a new log needs: its audit key, and people for production.
func (d *decoder) newLog(p Plan, doc *yaml.Node, at map[string]*yaml.Node) {
	if p.Kind != NewLog {
		return
	}
	if _, given := at["log"]; !given {
		d.fault(doc, "log", "", "is missing: it says where the log is, and what the new one is called")
	}
	if _, kept := p.Kept(RoleAudit); !kept {
		d.fault(find(doc, "keep"), "keep", "", "need the audit key that signs the new log")
	}
	if p.Class == Production && len(p.People) == 0 {
		d.fault(doc, "people", "", "are missing: a new log is begun by two people of different roles, an administrator and a witness at least")
	}
}
