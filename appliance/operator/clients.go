package operator

import (
	"cmp"
	"context"
	"math/bits"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/protocol"
)

// ClientReport is the answer of GET /api/v1/reports/clients: which devices showed
// something old, or odd, in what they asked for. Clients are newest first; More is
// how many are left out.
type ClientReport struct {
	Since    time.Time   `json:"since"`
	Until    time.Time   `json:"until"`
	Requests int         `json:"requests"` // messages that ask for something, refused or not
	Old      int         `json:"old"`      // of them with at least one trait
	Traits   []TraitUse  `json:"traits"`   // those that occur
	Clients  []ClientUse `json:"clients"`
	More     int         `json:"more"`
}

// TraitUse is one trait, and how often it occurs.
type TraitUse struct {
	Trait    string `json:"trait"`
	Says     string `json:"says"`
	Requests int    `json:"requests"`
	Clients  int    `json:"clients"`
}

// ClientUse is one client: a subject of a profile, as it was asked for, or where
// none is known an address and a User-Agent.
type ClientUse struct {
	Profile  string    `json:"profile"`
	Subject  string    `json:"subject,omitempty"`
	Source   string    `json:"source"` // the address that the last one came from
	Agent    string    `json:"agent,omitempty"`
	Traits   []string  `json:"traits"`
	Requests int       `json:"requests"` // with a trait
	Refused  int       `json:"refused"`  // of them
	Last     time.Time `json:"last"`
}

// Bounds of a report: what strangers claim to be must not fill the memory.
const (
	maxClients      = 50_000
	maxClientAnswer = 1000
	reportsOn       = 30 * 24 * time.Hour // where nothing else is asked for
)

// clientKey tells clients apart.
type clientKey struct{ profile, subject, source, agent string }

// client is what was counted of one.
type client struct {
	ClientUse
	traits protocol.Traits
}

// tally counts the records of a report.
type tally struct {
	ClientReport
	profile string // "" for all
	clients map[clientKey]*client
	uses    [64]int // requests by trait
	seen    int
}

// clients reads the log for what is old.
func (s *Service) clients(ctx context.Context, r *request) (int, any, error) {
	until := s.Now().UTC()
	since := until.Add(-reportsOn)
	if v := r.query.Get("since"); v != "" {
		var err error
		if since, err = time.Parse(time.RFC3339, v); err != nil {
			return 0, nil, refuse(http.StatusBadRequest, "since is a time such as 2026-11-21T12:00:00Z", "")
		}
	}
	from, err := s.From(since)
	if err != nil {
		return 0, nil, err
	}
	t := &tally{ClientReport: ClientReport{Since: since.UTC(), Until: until}, profile: r.query.Get("profile"), clients: make(map[clientKey]*client)}
	err = s.Scan(from, func(l audit.Line) error {
		if t.seen++; t.seen%1024 == 0 && ctx.Err() != nil {
			return refuse(http.StatusServiceUnavailable, "the log is too long to be read in time", "ask for a shorter time, by since")
		}
		if !l.Record.Time.Before(since) {
			t.add(l.Record)
		}
		return nil
	})
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, t.report(), nil
}

// asks reports whether a record is the one of a device's message that says what it
// was like; what follows, such as the certificate, says no more.
func asks(r audit.Record) bool {
	if r.Actor.Kind != "device" {
		return false
	}
	switch r.Event + "/" + r.Outcome {
	case "enroll/intent", "enroll/refused", "enroll/repeated", "message/rejected":
		return true
	default:
		_, has := r.Object["client"]
		return has
	}
}

func (t *tally) add(r audit.Record) {
	profile := r.Object.String("profile")
	if intent := r.Object.Object("intent"); profile == "" && intent != nil {
		profile = intent.String("profile")
	}
	if !asks(r) || t.profile != "" && profile != t.profile {
		return
	}
	t.Requests++
	shown := r.Object.Object("client")
	traits := protocol.TraitsOf(shown.Strings("traits"))
	if traits == 0 {
		return
	}
	t.Old++
	for rest := traits; rest != 0; rest &= rest - 1 {
		t.uses[bits.TrailingZeros64(uint64(rest))]++
	}
	host := r.Actor.Source
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	key := clientKey{profile: profile, subject: subjectOf(r.Object)}
	if key.subject == "" {
		key.source, key.agent = host, shown.String("agent")
	}
	c := t.clients[key]
	if c == nil {
		if len(t.clients) == maxClients {
			t.More++
			return
		}
		c = &client{ClientUse: ClientUse{Profile: profile, Subject: key.subject}}
		t.clients[key] = c
	}
	c.traits |= traits
	c.Source, c.Agent, c.Last = host, shown.String("agent"), r.Time
	c.Requests++
	if r.Outcome == "refused" || r.Outcome == "rejected" {
		c.Refused++
	}
}

// subjectOf is the subject that was asked for, or "".
func subjectOf(o audit.Object) string {
	if s := o.String("subject"); s != "" {
		return s
	}
	var subject []policy.Attribute
	for _, a := range o.Object("facts").Objects("subject") {
		subject = append(subject, policy.Attribute{Name: a.String("name"), Value: a.String("value")})
	}
	return policy.FormatSubject(subject)
}

// report sorts what was counted.
func (t *tally) report() ClientReport {
	r := t.ClientReport
	r.Traits, r.Clients = []TraitUse{}, []ClientUse{}
	var by [64]int
	for _, c := range t.clients {
		c.Traits = c.traits.Words()
		for rest := c.traits; rest != 0; rest &= rest - 1 {
			by[bits.TrailingZeros64(uint64(rest))]++
		}
		r.Clients = append(r.Clients, c.ClientUse)
	}
	for i, n := range t.uses {
		if one := protocol.Traits(1) << i; n > 0 {
			r.Traits = append(r.Traits, TraitUse{one.Words()[0], one.Says(), n, by[i]})
		}
	}
	slices.SortFunc(r.Clients, func(a, b ClientUse) int {
		return cmp.Or(b.Last.Compare(a.Last), strings.Compare(a.Profile, b.Profile), strings.Compare(a.Subject, b.Subject), strings.Compare(a.Source, b.Source))
	})
	if n := len(r.Clients); n > maxClientAnswer {
		r.Clients, r.More = r.Clients[:maxClientAnswer], r.More+n-maxClientAnswer
	}
	return r
}
