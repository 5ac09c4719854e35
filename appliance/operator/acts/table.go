// Package acts says which acts operators have and who may do them: the table of
// role and act, the people with their roles, and the order that two people sign.
//
// # What a caller may rely on
//
// What is not in the table is nobody's to do, and who has no role may do nothing.
// An [Order] has one canonical form, which is what is signed; what it says is
// bound to one log, one place in it and one id, and ends by itself.
//
// # What it does not protect against
//
// Two people who agree. One person with two keys that the configuration gives to
// two names. Whether an order was carried out before is for the log to say.
package acts

import (
	"net/http"
	"slices"
)

// A Role is what a person is for.
type Role string

// The roles. An auditor has no other one.
const (
	Administrator       Role = "administrator"        // sets up and looks after the appliance
	RegistrationOfficer Role = "registration-officer" // lets devices in
	SecurityOfficer     Role = "security-officer"     // takes things back
	Auditor             Role = "auditor"              // reads everything, changes nothing
	Monitor             Role = "monitor"              // asks how the appliance is
)

// Roles returns all roles.
func Roles() []Role {
	return []Role{Administrator, RegistrationOfficer, SecurityOfficer, Auditor, Monitor}
}

// The names of the acts.
const (
	ReadStatus        = "status.read"
	CreateChallenge   = "challenge.create"
	CreateChallenges  = "challenge.batch" // more than one at a time
	ListChallenges    = "challenge.list"
	RevokeChallenge   = "challenge.revoke"
	ListCertificates  = "certificate.list"
	ShowCertificate   = "certificate.show"
	RevokeCertificate = "certificate.revoke"
	ReadPublication   = "publication.read" // what a plain web server elsewhere hands out
	ShowRecords       = "record.show"
	ListPending       = "pending.list"
	ShowPending       = "pending.show"
	ApprovePending    = "pending.approve"
	DenyPending       = "pending.deny"
	ReportClients     = "client.report"
	ListCAs           = "ca.list"
	ShowRollover      = "ca.rollover"
	SwitchCA          = "ca.switch"
	ExportBundle      = "audit.export"
	SignCheckpoint    = "audit.checkpoint"
	SubmitOrder       = "act.submit" // the act that was signed has a row of its own
)

// An Act is a row of the table: where it is in the API, and whose it is. Path is
// exact, but for a last segment *, which is anything without a slash.
type Act struct {
	Name    string
	Method  string
	Path    string
	Changes bool // it changes something: it is recorded, and may need two people
	Roles   []Role
}

// Table returns every act. Where two have one path, what is asked for decides.
func Table() []Act {
	readers := []Role{Administrator, RegistrationOfficer, SecurityOfficer, Auditor}
	return []Act{
		{ReadStatus, http.MethodGet, "/api/v1/status", false, Roles()},
		{CreateChallenge, http.MethodPost, "/api/v1/challenges", true, []Role{Administrator, RegistrationOfficer}},
		{CreateChallenges, http.MethodPost, "/api/v1/challenges", true, []Role{Administrator, RegistrationOfficer}},
		{ListChallenges, http.MethodGet, "/api/v1/challenges", false, readers},
		{RevokeChallenge, http.MethodDelete, "/api/v1/challenges/*", true, []Role{Administrator, RegistrationOfficer, SecurityOfficer}},
		{ListCertificates, http.MethodGet, "/api/v1/certificates", false, readers},
		{ShowCertificate, http.MethodGet, "/api/v1/certificates/*", false, readers},
		{RevokeCertificate, http.MethodDelete, "/api/v1/certificates/*", true, []Role{Administrator, SecurityOfficer}},
		{ReadPublication, http.MethodGet, "/api/v1/publication", false, Roles()},
		{ShowRecords, http.MethodGet, "/api/v1/records", false, readers},
		{ListPending, http.MethodGet, "/api/v1/pending", false, readers},
		{ShowPending, http.MethodGet, "/api/v1/pending/*", false, readers},
		{ApprovePending, http.MethodPost, "/api/v1/approvals/*", true, []Role{Administrator, RegistrationOfficer}},
		{DenyPending, http.MethodPost, "/api/v1/denials/*", true, []Role{Administrator, RegistrationOfficer}},
		{ReportClients, http.MethodGet, "/api/v1/reports/clients", false, readers},
		{ListCAs, http.MethodGet, "/api/v1/cas", false, readers},
		{ShowRollover, http.MethodGet, "/api/v1/rollover", false, readers},
		{SwitchCA, http.MethodPost, "/api/v1/cas/switch", true, []Role{Administrator}},
		// What these two do is recorded, and they change nothing that could be put right
		// by a second person: an auditor depends on nobody.
		{ExportBundle, http.MethodPost, "/api/v1/exports", false, []Role{Administrator, Auditor}},
		{SignCheckpoint, http.MethodPost, "/api/v1/checkpoints", false, []Role{Administrator, Auditor}},
		{SubmitOrder, http.MethodPost, "/api/v1/acts", false, []Role{Administrator, RegistrationOfficer, SecurityOfficer}},
	}
}

// Named returns the row of an act.
func Named(name string) (Act, bool) {
	table := Table()
	i := slices.IndexFunc(table, func(a Act) bool { return a.Name == name })
	if i < 0 {
		return Act{}, false
	}
	return table[i], true
}

// May reports whether one of the roles may do the act.
func (a Act) May(roles []Role) bool {
	return slices.ContainsFunc(roles, func(r Role) bool { return slices.Contains(a.Roles, r) })
}

// A Person is who the gate names by ID: "key:" and the hex SHA-256 of the
// SubjectPublicKeyInfo of a certificate, or "uid:" and a user's number.
type Person struct {
	Name  string
	ID    string
	Roles []Role
}

// Rules are who may do what here.
type Rules struct {
	People    []Person
	TwoPerson []string // names of acts that need [Signers] people
	Default   bool     // the local users are not from the configuration
}

// Who returns the person of an ID.
func (r Rules) Who(id string) (Person, bool) {
	i := slices.IndexFunc(r.People, func(p Person) bool { return p.ID == id })
	if i < 0 {
		return Person{}, false
	}
	return r.People[i], true
}

// NeedsTwo reports whether the act is under the two-person rule.
func (r Rules) NeedsTwo(act string) bool { return slices.Contains(r.TwoPerson, act) }
