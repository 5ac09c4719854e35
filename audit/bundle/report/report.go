// Package report says for people what a part of the log holds: range, who acted, how
// often what happened and why, certificates, exceptions, gaps, clock steps, and
// changes of keys and policy; as text and as HTML.
//
// # What a caller may rely on
//
// Counts are of all records. Lists have a bound, and say how many there were; so the
// memory has one. Texts of strangers are escaped in HTML and on a terminal.
//
// # What it does not protect against
//
// It repeats what the records say: verify them first. What it calls an exception is
// for a person to judge.
package report

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/audit/jcs"
)

// Bounds of lists, and of what is told apart in counts.
const (
	maxList   = 10_000
	maxCounts = 10_000
	maxText   = 300
)

// gapAfter is how long a log may be without a record: an idle one has a checkpoint
// every hour.
const gapAfter = 65 * time.Minute

// A Count is how often something happened.
type Count struct {
	What   string `json:"what"`             // event and outcome, or who
	Reason string `json:"reason,omitempty"` // as the record has it
	N      int64  `json:"count"`
}

// An Item is one record, in words.
type Item struct {
	Seq  uint64 `json:"record"`
	Time string `json:"time"`
	What string `json:"what"`
}

// A List has at most 10,000 items of Total.
type List struct {
	Total int64  `json:"total"`
	Items []Item `json:"items"`
}

func (l *List) add(seq uint64, t, what string) {
	if l.Total++; l.Total <= maxList {
		l.Items = append(l.Items, Item{seq, t, cut(what)})
	}
}

// A Report is what a [Collector] collected.
type Report struct {
	Title      string  `json:"title"`
	Facts      []Count `json:"-"` // shown first, as what and reason
	Records    int64   `json:"records"`
	First      string  `json:"first"`
	Last       string  `json:"last"`
	Actors     []Count `json:"actors"`
	Events     []Count `json:"events"`
	Issued     List    `json:"issued"`
	Revoked    List    `json:"revoked"`
	Exceptions List    `json:"exceptions"`
	Gaps       List    `json:"gaps"`
	Clock      List    `json:"clock"`
	Changes    List    `json:"changes"`
}

// A Collector takes the records of a walk. The zero value is ready.
type Collector struct {
	r       Report
	events  map[string]*Count
	actors  map[string]*Count
	key     []byte
	last    []byte // time
	version string
}

// Each takes one record, see [audit.WalkOptions].
func (c *Collector) Each(s *audit.Seen) error {
	if c.events == nil {
		c.events, c.actors = make(map[string]*Count), make(map[string]*Count)
		c.r.First = plain(s.Time)
	}
	c.r.Records++
	reason := reasonOf(s.Object)
	c.key = append(append(append(append(append(c.key[:0], s.Event...), ' '), s.Outcome...), ' '), reason...)
	count(c.events, c.key, func() Count { return Count{What: plain(s.Event) + " " + plain(s.Outcome), Reason: cut(plain(reason))} })
	who := actorOf(s.Actor)
	count(c.actors, who, func() Count { return Count{What: cut(string(who))} })
	c.clock(s)
	return c.special(s)
}

// count counts under a key; beyond the bound, all others together.
func count(m map[string]*Count, key []byte, first func() Count) {
	n := m[string(key)]
	if n == nil {
		if len(m) >= maxCounts {
			if n = m[""]; n == nil {
				n = &Count{What: "others"}
				m[""] = n
			}
		} else {
			one := first()
			n = &one
			m[string(key)] = n
		}
	}
	n.N++
}

// clock looks for gaps and for times that go back.
func (c *Collector) clock(s *audit.Seen) {
	const minute = len(`"2026-11-21T02:27`)
	if len(c.last) == len(s.Time) && bytes.Equal(c.last[:minute], s.Time[:minute]) && bytes.Compare(c.last, s.Time) <= 0 {
		c.last = append(c.last[:0], s.Time...)
		return
	}
	was, _ := time.Parse(time.RFC3339Nano, plain(c.last))
	now, _ := time.Parse(time.RFC3339Nano, plain(s.Time))
	switch {
	case was.IsZero() || now.IsZero():
	case now.Before(was):
		c.r.Clock.add(s.Seq, plain(s.Time), "the time of the record before is later: "+plain(c.last))
	case now.Sub(was) > gapAfter:
		c.r.Gaps.add(s.Seq, plain(s.Time), "no record for "+now.Sub(was).Round(time.Second).String()+", since "+plain(c.last))
	}
	c.last = append(c.last[:0], s.Time...)
}

// exceptions are events, with their outcomes, that a person should look at; "" stands
// for every outcome.
var exceptions = map[string][]string{
	"security": {""}, "keyholder": {"refused"}, "system.unclean": {""}, "log.recovered": {""}, "operator": {"denied", "refused"},
	"audit": {"failed"}, "enroll": {"unknown", "failed"},
}

// special lists the records that are not only counted.
func (c *Collector) special(s *audit.Seen) error {
	event, out := plain(s.Event), plain(s.Outcome)
	seldom, listed := exceptions[event]
	exception := listed && (seldom[0] == "" || slices.Contains(seldom, out))
	issued := out == "issued" && event == "enroll"
	revoked := event == "revocation"
	change := event == "log.genesis" || event == "system.start" || event == "operator" && out == "approved" || event == "config" || event == "policy" || strings.HasPrefix(event, "ca.") || strings.HasPrefix(event, "key.")
	if !exception && !issued && !revoked && !change && event != "time.step" {
		return nil
	}
	if issued && c.r.Issued.Total >= maxList {
		c.r.Issued.Total++
		return nil
	}
	l, err := audit.ParseLine(s.Raw)
	if err != nil {
		return err
	}
	o, t := l.Record.Object, plain(s.Time)
	switch {
	case exception:
		c.r.Exceptions.add(s.Seq, t, words(event+" "+out, o, l.Record.Actor))
	case issued:
		c.r.Issued.add(s.Seq, t, o.String("serial")+certificate(o.String("certificate")))
	case revoked:
		c.r.Revoked.add(s.Seq, t, strings.TrimSpace(o.String("serial")+" "+o.String("why")))
	case event == "time.step":
		c.r.Clock.add(s.Seq, t, "the clock was set: expected "+o.String("expected")+", found "+o.String("found"))
	case event == "system.start":
		now := "version " + o.String("version") + ", policy " + o.String("policy") + ", configuration " + o.String("config")
		if now != c.version {
			c.r.Changes.add(s.Seq, t, "started with "+now)
		}
		c.version = now
	default:
		c.r.Changes.add(s.Seq, t, words(event+" "+out, o, l.Record.Actor))
	}
	return nil
}

// words are what a record says, without what is long.
func words(what string, o audit.Object, who audit.Actor) string {
	out := []string{what, "by " + strings.TrimSpace(who.Kind+" "+who.ID)}
	for _, key := range []string{"what", "why", "act", "name", "path", "serial", "sha256", "transcript_sha256"} {
		if v := o.String(key); v != "" {
			out = append(out, key+" "+v)
		}
	}
	if list := o.Strings("refused"); len(list) > 0 {
		out = append(out, list...)
	}
	return strings.Join(out, "; ")
}

// Report returns what was collected, most frequent first.
func (c *Collector) Report() *Report {
	r := c.r
	r.Last = plain(c.last)
	r.Events, r.Actors = sorted(c.events), sorted(c.actors)
	return &r
}

func sorted(m map[string]*Count) []Count {
	out := make([]Count, 0, len(m))
	for _, n := range m {
		out = append(out, *n)
	}
	slices.SortFunc(out, func(a, b Count) int {
		if a.N != b.N {
			return int(min(max(b.N-a.N, -1), 1))
		}
		return strings.Compare(a.What+"\x00"+a.Reason, b.What+"\x00"+b.Reason)
	})
	return out
}

// plain is a string as it is written in a line, without quotes and escapes.
func plain(b []byte) string {
	if len(b) < 2 || b[0] != '"' {
		return string(b)
	}
	if bytes.IndexByte(b, '\\') < 0 {
		return string(b[1 : len(b)-1])
	}
	var s string
	if json.Unmarshal(b, &s) != nil {
		return string(b)
	}
	return s
}

// cut bounds a text.
func cut(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText], "") + "..."
}

// reasonOf is why something was refused: the rule that the first reason names, or else
// the kind of the refusal.
func reasonOf(ob []byte) []byte {
	if reasons := audit.Field(ob, "reasons"); len(reasons) > 2 {
		n, err := jcs.Scan(reasons[1:], 3)
		if err == nil {
			if rule := audit.Field(reasons[1:1+n], "rule"); rule != nil {
				return rule
			}
		}
	}
	return audit.Field(ob, "kind")
}

// actorOf is who acted: operators and gates by their id, all devices as one.
func actorOf(actor []byte) []byte {
	kind := audit.Field(actor, "kind")
	if id := audit.Field(actor, "id"); id != nil && string(kind) != `"device"` {
		return []byte(plain(kind) + " " + plain(id))
	}
	return []byte(plain(kind))
}
