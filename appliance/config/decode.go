package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/postern-pki/postern/policy"
)

// maxFile bounds the configuration file.
const maxFile = 1 << 20

// decoder reads a YAML tree into structs and keeps every fault with its place.
type decoder struct {
	file   string
	faults []policy.Fault
	at     map[string]*yaml.Node // where each path stands, for faults that are found later
}

func (d *decoder) fault(path, say, nearest string) {
	f := policy.Fault{File: d.file, Path: path, Say: say, Nearest: nearest}
	for p := path; f.Line == 0; p = p[:strings.LastIndexAny(p, ".[")] {
		if n, ok := d.at[p]; ok {
			f.Line, f.Column = n.Line, n.Column
		}
		if strings.LastIndexAny(p, ".[") < 0 {
			break
		}
	}
	d.faults = append(d.faults, f)
}

func (d *decoder) err() error {
	if len(d.faults) == 0 {
		return nil
	}
	return &policy.LoadError{Faults: d.faults}
}

var syntaxLine = regexp.MustCompile(`^yaml: line (\d+): `)

// decode reads exactly one document into f.
func (d *decoder) decode(data []byte, f *File) {
	d.at = make(map[string]*yaml.Node)
	if len(data) > maxFile {
		d.fault("", fmt.Sprintf("the file is larger than %d bytes", maxFile), "")
		return
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		fault := policy.Fault{File: d.file, Say: "not YAML: " + err.Error()}
		if m := syntaxLine.FindStringSubmatch(err.Error()); m != nil {
			fault.Line, _ = strconv.Atoi(m[1])
		}
		if errors.Is(err, io.EOF) {
			fault.Say = "the file is empty"
		}
		d.faults = append(d.faults, fault)
		return
	}
	d.value("", doc.Content[0], reflect.ValueOf(f).Elem())
	if err := dec.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		d.fault("", "one document only", "")
	}
}

func (d *decoder) value(path string, n *yaml.Node, v reflect.Value) {
	d.at[path] = n
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		d.fault(path, "anchors and aliases are not allowed: write the value out", "")
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.mapping(path, n, v)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			d.fault(path, "has to be a list", "")
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
		for i, c := range n.Content {
			d.value(fmt.Sprintf("%s[%d]", path, i), c, v.Index(i))
		}
	case reflect.Int:
		i, err := strconv.Atoi(n.Value)
		if n.Kind != yaml.ScalarNode || n.Tag != "!!int" || err != nil {
			d.fault(path, "has to be a whole number", "")
			return
		}
		v.SetInt(int64(i))
	case reflect.String:
		if n.Kind != yaml.ScalarNode || n.Tag != "!!str" || n.Value == "" {
			d.fault(path, "has to be text that is not empty; put quotes around it if it is", "")
			return
		}
		v.SetString(n.Value)
	}
}

func (d *decoder) mapping(path string, n *yaml.Node, v reflect.Value) {
	if n.Kind != yaml.MappingNode {
		d.fault(path, "has to be a mapping", "")
		return
	}
	fields := map[string][]int{}
	var known []string
	for _, f := range reflect.VisibleFields(v.Type()) {
		if f.Anonymous { // its fields stand beside the others
			continue
		}
		key := f.Tag.Get("yaml")
		fields[key] = f.Index
		known = append(known, key)
	}
	var seen []string
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		at := strings.TrimPrefix(path+"."+key.Value, ".")
		d.at[at] = key
		field, ok := fields[key.Value]
		switch {
		case slices.Contains(seen, key.Value):
			d.fault(at, "is given twice", "")
		case !ok:
			d.fault(at, "unknown key", policy.Nearest(key.Value, known))
		default:
			d.value(at, n.Content[i+1], v.FieldByIndex(field))
		}
		seen = append(seen, key.Value)
	}
}
