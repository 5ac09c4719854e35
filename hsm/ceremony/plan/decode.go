package plan

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// A Fault is one thing that is wrong with a plan.
type Fault struct {
	Line, Column int    // from 1; 0 if the fault has no place
	Path         string // such as "certificates.ca.subject"
	Say          string
	Nearest      string // the known key that an unknown one is closest to, or ""
}

// String returns the fault on one line, with its place first.
func (f Fault) String() string {
	var s string
	if f.Line > 0 {
		s = fmt.Sprintf("line %d, column %d: ", f.Line, f.Column)
	}
	if f.Path != "" {
		s += f.Path + ": "
	}
	s += f.Say
	if f.Nearest != "" {
		s += fmt.Sprintf("; did you mean %q?", f.Nearest)
	}
	return s
}

// An Error is every fault of a plan, by its place.
type Error struct{ Faults []Fault }

// Error returns the faults, one a line.
func (e *Error) Error() string {
	lines := []string{"the plan is not usable"}
	for _, f := range e.Faults {
		lines = append(lines, f.String())
	}
	return strings.Join(lines, "\n  ")
}

// A decoder walks a plan's nodes and collects every fault, so that a person
// mends a plan once and not once for each fault.
type decoder struct{ faults []Fault }

func (d *decoder) fault(n *yaml.Node, path, nearest, format string, args ...any) {
	f := Fault{Path: path, Say: fmt.Sprintf(format, args...), Nearest: nearest}
	if n != nil {
		f.Line, f.Column = n.Line, n.Column
	}
	d.faults = append(d.faults, f)
}

// err returns the faults in the order of their places.
func (d *decoder) err() error {
	if len(d.faults) == 0 {
		return nil
	}
	slices.SortStableFunc(d.faults, func(a, b Fault) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	return &Error{d.faults}
}

// document reads the one document of a plan; nil if there is none to walk.
func (d *decoder) document(text string) *yaml.Node {
	dec := yaml.NewDecoder(strings.NewReader(text))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); err != nil {
		say := "the plan is empty"
		if !errors.Is(err, io.EOF) {
			say = strings.TrimPrefix(err.Error(), "yaml: ")
		}
		d.fault(nil, "", "", "%s", say)
		return nil
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		d.fault(&more, "", "", "more than one document")
		return nil
	}
	if len(doc.Content) != 1 {
		d.fault(nil, "", "", "the plan is empty")
		return nil
	}
	return doc.Content[0]
}

// A field is one key of a mapping.
type field struct {
	key      string
	required bool
	read     func(n *yaml.Node, path string)
}

// mapping reads a mapping's keys: unknown ones, repeated ones and missing ones are faults.
func (d *decoder) mapping(n *yaml.Node, path string, fields ...field) {
	if n.Kind != yaml.MappingNode {
		d.fault(n, path, "", "must be a mapping of keys to values")
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		at := strings.TrimPrefix(path+"."+k.Value, ".")
		j := slices.IndexFunc(fields, func(f field) bool { return f.key == k.Value && k.Kind == yaml.ScalarNode })
		switch {
		case j < 0:
			d.fault(k, at, nearestField(k.Value, fields), "unknown key")
		case seen[k.Value]:
			d.fault(k, at, "", "given twice")
		default:
			seen[k.Value] = true
			fields[j].read(v, at)
		}
	}
	for _, f := range fields {
		if f.required && !seen[f.key] {
			d.fault(n, strings.TrimPrefix(path+"."+f.key, "."), "", "is missing")
		}
	}
}

// scalar returns a plain value. Anchors, aliases and null are faults: what a
// reviewer reads at one place must not be said at another.
func (d *decoder) scalar(n *yaml.Node, path string) (string, bool) {
	switch {
	case n.Kind != yaml.ScalarNode || n.Anchor != "":
		d.fault(n, path, "", "must be a plain value")
	case n.Tag == "!!null" || n.Value == "":
		d.fault(n, path, "", "is empty")
	default:
		return n.Value, true
	}
	return "", false
}

// text reads a line of text of at most limit bytes.
func (d *decoder) text(dst *string, limit int) func(*yaml.Node, string) {
	return func(n *yaml.Node, path string) {
		s, ok := d.scalar(n, path)
		switch {
		case !ok:
		case len(s) > limit:
			d.fault(n, path, "", "is longer than %d bytes", limit)
		case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
			d.fault(n, path, "", "has a control character in it")
		default:
			*dst = s
		}
	}
}

// oneOf reads a word out of a list.
func oneOf[T ~string](d *decoder, dst *T, words ...T) func(*yaml.Node, string) {
	return func(n *yaml.Node, path string) {
		s, ok := d.scalar(n, path)
		if !ok {
			return
		}
		if !slices.Contains(words, T(s)) {
			var known []string
			for _, w := range words {
				known = append(known, string(w))
			}
			d.fault(n, path, nearest(s, known), "%q is none of %s", s, strings.Join(known, ", "))
			return
		}
		*dst = T(s)
	}
}

func (d *decoder) boolean(dst *bool) func(*yaml.Node, string) {
	return func(n *yaml.Node, path string) {
		switch s, ok := d.scalar(n, path); {
		case !ok:
		case s == "true" || s == "false":
			*dst = s == "true"
		default:
			d.fault(n, path, "", "must be true or false")
		}
	}
}

// duration reads a whole number of hours, days or years of 365 days.
func (d *decoder) duration(dst *time.Duration, least, most time.Duration) func(*yaml.Node, string) {
	return func(n *yaml.Node, path string) {
		s, ok := d.scalar(n, path)
		if !ok {
			return
		}
		v, err := parseDuration(s)
		switch {
		case err != nil:
			d.fault(n, path, "", "%v", err)
		case v < least || v > most:
			d.fault(n, path, "", "%s is not between %s and %s", s, formatDuration(least), formatDuration(most))
		default:
			*dst = v
		}
	}
}

// list reads a sequence of at least one entry and at most limit.
func (d *decoder) list(limit int, each func(n *yaml.Node, path string)) func(*yaml.Node, string) {
	return func(n *yaml.Node, path string) {
		switch {
		case n.Kind != yaml.SequenceNode:
			d.fault(n, path, "", "must be a list")
		case len(n.Content) == 0 || len(n.Content) > limit:
			d.fault(n, path, "", "must have 1 to %d entries", limit)
		default:
			for i, e := range n.Content {
				each(e, fmt.Sprintf("%s[%d]", path, i))
			}
		}
	}
}

const (
	day  = 24 * time.Hour
	year = 365 * day
)

func parseDuration(s string) (time.Duration, error) {
	units := map[byte]time.Duration{'h': time.Hour, 'd': day, 'y': year}
	if len(s) >= 2 {
		unit, known := units[s[len(s)-1]]
		n, err := strconv.ParseUint(s[:len(s)-1], 10, 20)
		if known && err == nil && time.Duration(n) <= 100*year/unit { // far from an overflow
			return time.Duration(n) * unit, nil
		}
	}
	return 0, fmt.Errorf("%q is no duration: write 12h, 825d or 10y", s)
}

func formatDuration(v time.Duration) string {
	switch {
	case v != 0 && v%year == 0:
		return fmt.Sprintf("%dy", v/year)
	case v != 0 && v%day == 0:
		return fmt.Sprintf("%dd", v/day)
	default:
		return fmt.Sprintf("%dh", v/time.Hour)
	}
}

func nearestField(s string, fields []field) string {
	var known []string
	for _, f := range fields {
		known = append(known, f.key)
	}
	return nearest(s, known)
}

// maxTypos is how many letters may be wrong for a word to be taken for another.
const maxTypos = 3

// nearest returns the known word that s was most likely meant to be, or "".
func nearest(s string, known []string) string {
	best, found := maxTypos+1, ""
	if len(s) > 64 {
		return ""
	}
	for _, k := range known {
		if n := editDistance(strings.ToLower(s), strings.ToLower(k)); n < best && n < len(k) {
			best, found = n, k
		}
	}
	return found
}

// editDistance is Levenshtein's.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
