package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// A Source is one file of profiles. Name is what faults and reasons call it.
type Source struct {
	Name string
	Data []byte
}

// maxSource bounds one file: more than a thousand profiles fit.
const maxSource = 1 << 20

// A Fault is one thing that is wrong with a file.
type Fault struct {
	File         string
	Line, Column int    // from 1; 0 if the fault has no place
	Path         string // such as "profiles[0].key.rsa.min"
	Say          string
	Nearest      string // the known key that an unknown one is closest to, or ""
}

// String returns the fault on one line, with its place first.
func (f Fault) String() string {
	s := f.File
	if f.Line > 0 {
		s += fmt.Sprintf(":%d:%d", f.Line, f.Column)
	}
	if f.Path != "" {
		s += ": " + f.Path
	}
	s += ": " + f.Say
	if f.Nearest != "" {
		s += fmt.Sprintf("; did you mean %q?", f.Nearest)
	}
	return s
}

// LoadError is every fault of the files, by file and place.
type LoadError struct{ Faults []Fault }

// Error returns the faults, one a line.
func (e *LoadError) Error() string {
	lines := make([]string, len(e.Faults))
	for i, f := range e.Faults {
		lines[i] = f.String()
	}
	return strings.Join(lines, "\n")
}

// Load reads profiles. It is strict: a key that is unknown, given twice or not
// enforced by this version is a fault, and so is a rule that can never be met.
// The error is a [*LoadError] with all of them.
func Load(sources ...Source) (*Set, error) {
	sources = slices.Clone(sources)
	slices.SortStableFunc(sources, func(a, b Source) int { return strings.Compare(a.Name, b.Name) })
	set := &Set{profiles: map[string]*compiled{}}
	var faults []Fault
	sum := sha256.New()
	for _, src := range sources {
		_, _ = fmt.Fprintf(sum, "%d:%s%d:", len(src.Name), src.Name, len(src.Data))
		_, _ = sum.Write(src.Data)
		l := &loader{file: src.Name}
		for _, c := range l.profiles(src.Data) {
			if was, ok := set.profiles[c.Name]; ok {
				l.faults = append(l.faults, Fault{File: src.Name, Line: c.Line, Column: 1, Path: "profiles",
					Say: fmt.Sprintf("profile %q is already defined at %s:%d", c.Name, was.Source, was.Line)})
				continue
			}
			set.profiles[c.Name] = c
		}
		faults = append(faults, l.faults...)
	}
	if len(sources) == 0 {
		faults = append(faults, Fault{File: "profiles", Say: "there is no file of profiles"})
	}
	if len(faults) > 0 {
		slices.SortStableFunc(faults, func(a, b Fault) int {
			if c := strings.Compare(a.File, b.File); c != 0 {
				return c
			}
			return (a.Line-b.Line)*10_000 + a.Column - b.Column
		})
		return nil, &LoadError{faults}
	}
	set.digest = "sha256:" + hex.EncodeToString(sum.Sum(nil))
	return set, nil
}

// loader reads one file and collects its faults.
type loader struct {
	file   string
	faults []Fault
}

func (l *loader) fault(n *yaml.Node, path, format string, args ...any) {
	l.faults = append(l.faults, Fault{File: l.file, Line: n.Line, Column: n.Column, Path: path, Say: fmt.Sprintf(format, args...)})
}

// yamlLine finds the line in an error of the YAML parser, which has it nowhere else.
var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// profiles returns the profiles of a file. Those that have faults come back too,
// so that their names are known.
func (l *loader) profiles(data []byte) []*compiled {
	if len(data) > maxSource {
		l.fault(&yaml.Node{}, "", "the file is larger than %d octets", maxSource)
		return nil
	}
	if !utf8.Valid(data) {
		l.fault(&yaml.Node{}, "", "the file is not UTF-8")
		return nil
	}
	var doc, second yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&doc); err != nil {
		l.syntax(err)
		return nil
	}
	if err := dec.Decode(&second); err == nil {
		l.fault(&second, "", "a second document in one file")
	} else if !errors.Is(err, io.EOF) {
		l.syntax(err)
	}
	top := l.mapping(doc.Content[0], "", keys{must: []string{"profiles"}})
	var out []*compiled
	for i, n := range l.list(top.get("profiles"), top.at("profiles")) {
		if c := l.profile(n, fmt.Sprintf("profiles[%d]", i)); c != nil {
			out = append(out, c)
		}
	}
	return out
}

func (l *loader) syntax(err error) {
	if errors.Is(err, io.EOF) {
		l.fault(&yaml.Node{}, "", "the file is empty; it needs a list of profiles")
		return
	}
	n := &yaml.Node{}
	text := err.Error()
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		if line, err := strconv.Atoi(m[1]); err == nil {
			n.Line, n.Column = line, 1
		}
		text = text[len(m[0]):]
	}
	l.fault(n, "", "not YAML: %s", text)
}

// keys are those that a mapping may have. Later maps a key that is known and not
// enforced yet to a reason, "" for none.
type keys struct {
	must, may []string
	later     map[string]string
}

// A section is a mapping whose keys were checked.
type section struct {
	node   *yaml.Node
	path   string
	names  []string // in the order of the file
	values map[string]*yaml.Node
}

// get returns the value of a key, nil if it is not there.
func (s section) get(key string) *yaml.Node { return s.values[key] }

// at returns the path of a key.
func (s section) at(key string) string {
	if s.path == "" {
		return key
	}
	return s.path + "." + key
}

// plain refuses what makes one value stand for another: anchors, aliases and
// explicit tags.
func (l *loader) plain(n *yaml.Node, path string) bool {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		l.fault(n, path, "anchors and aliases are not allowed: write the value out")
	case n.Style&yaml.TaggedStyle != 0:
		l.fault(n, path, "tags are not allowed")
	default:
		return true
	}
	return false
}

// mapping reads a mapping. A nil node gives an empty section without a fault,
// because its parent has one already or allows it to be missing.
func (l *loader) mapping(n *yaml.Node, path string, k keys) section {
	s := section{node: n, path: path, values: map[string]*yaml.Node{}}
	if n == nil || !l.plain(n, path) {
		return s
	}
	if n.Kind != yaml.MappingNode {
		l.fault(n, path, "has to be a mapping, with keys such as %s", strings.Join(slices.Concat(k.must, k.may), ", "))
		return s
	}
	known := slices.Concat(k.must, k.may)
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if !l.plain(key, path) {
			continue
		}
		reason, later := k.later[key.Value]
		line, twice := seen[key.Value]
		switch {
		case key.Kind != yaml.ScalarNode:
			l.fault(key, path, "a key has to be a word")
			continue
		case twice:
			l.fault(key, s.at(key.Value), "is given twice, first on line %d", line)
		case later:
			l.fault(key, s.at(key.Value), "not supported by this version%s", reason)
		case known != nil && !slices.Contains(known, key.Value):
			l.fault(key, s.at(key.Value), "unknown key")
			l.faults[len(l.faults)-1].Nearest = Nearest(key.Value, known)
		default:
			s.names = append(s.names, key.Value)
			s.values[key.Value] = value
		}
		seen[key.Value] = key.Line
	}
	for _, key := range k.must {
		if _, ok := seen[key]; !ok {
			l.fault(n, s.at(key), "is missing")
		}
	}
	return s
}

// list reads a list that is not empty.
func (l *loader) list(n *yaml.Node, path string) []*yaml.Node {
	if n == nil || !l.plain(n, path) {
		return nil
	}
	if n.Kind != yaml.SequenceNode || len(n.Content) == 0 {
		l.fault(n, path, "has to be a list that is not empty")
		return nil
	}
	return n.Content
}

// words reads a list of text without repetitions.
func (l *loader) words(n *yaml.Node, path string) (out []string, nodes []*yaml.Node) {
	for i, item := range l.list(n, path) {
		at := fmt.Sprintf("%s[%d]", path, i)
		w, ok := l.text(item, at)
		if ok && slices.Contains(out, w) {
			l.fault(item, at, "%q is given twice", w)
			continue
		}
		if ok {
			out, nodes = append(out, w), append(nodes, item)
		}
	}
	return out, nodes
}

// scalar reads one value of the given YAML tag.
func (l *loader) scalar(n *yaml.Node, path, tag, want string) (string, bool) {
	if n == nil || !l.plain(n, path) {
		return "", false
	}
	if n.Kind != yaml.ScalarNode || n.Tag != tag {
		l.fault(n, path, "has to be %s", want)
		return "", false
	}
	return n.Value, true
}

func (l *loader) text(n *yaml.Node, path string) (string, bool) {
	v, ok := l.scalar(n, path, "!!str", "text; put quotes around it if it is")
	if ok && v == "" {
		l.fault(n, path, "is empty")
		return "", false
	}
	return v, ok
}

// choice reads one of the words; what later maps is refused with a reason.
func (l *loader) choice(n *yaml.Node, path string, later map[string]string, words ...string) string {
	v, ok := l.text(n, path)
	reason, known := later[v]
	switch {
	case !ok:
		return ""
	case known:
		l.fault(n, path, "%q is not supported by this version%s", v, reason)
		return ""
	case !slices.Contains(words, v):
		l.fault(n, path, "%q is none of %s", v, strings.Join(words, ", "))
		l.faults[len(l.faults)-1].Nearest = Nearest(v, words)
		return ""
	}
	return v
}

func (l *loader) boolean(n *yaml.Node, path string) bool {
	v, ok := l.scalar(n, path, "!!bool", "true or false")
	if ok && v != "true" && v != "false" {
		l.fault(n, path, "has to be true or false")
	}
	return ok && v == "true"
}

var decimal = regexp.MustCompile(`^(?:0|[1-9][0-9]{0,8})$`)

// integer reads a decimal number between the bounds; what is wrong is a fault
// and comes back as low.
func (l *loader) integer(n *yaml.Node, path string, low, high int) int {
	v, ok := l.scalar(n, path, "!!int", "a whole number")
	if !ok {
		return low
	}
	i, err := strconv.Atoi(v)
	if err != nil || !decimal.MatchString(v) || i < low || i > high {
		l.fault(n, path, "has to be a whole number from %d to %d", low, high)
		return low
	}
	return i
}
