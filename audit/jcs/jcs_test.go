package jcs_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/postern-pki/postern/audit/jcs"
)

func TestCanonicalForm(t *testing.T) {
	for want, v := range map[string]any{
		`"\u0000\b\t\n\f\r\u001f \"\\/<>&"`: "\x00\b\t\n\f\r\x1f \"\\/<>&",
		"\"\u2028\u00e9\U0001f600\"":        "\u2028\u00e9\U0001f600",
		"\"\ufffd\"":                        "\xff",
		`9007199254740991`:                  int64(1<<53 - 1),
		`[-1,0,["a"],{}]`:                   []any{-1, 0, []string{"a"}, map[string]any{}},
		"{\"\U0001f600\":1,\"\ufb33\":2}":   map[string]any{"\U0001f600": 1, "\ufb33": 2}, // UTF-16: D83D before FB33
		`{"":1,"a":2,"aa":3,"b":4}`:         map[string]any{"b": 4, "aa": 3, "a": 2, "": 1},
	} {
		got, err := jcs.Append(nil, v)
		if err != nil || string(got) != want {
			t.Errorf("Append: %s, %v, want %s", got, err, want)
		}
		if _, err := jcs.Parse(got); err != nil {
			t.Errorf("Parse(%s): %v", got, err)
		}
	}
}

func TestRefusals(t *testing.T) {
	for name, in := range map[string]string{
		"null": `null`, "true": `true`, "a float": `1.5`, "an exponent": `1e3`, "minus zero": `-0`, "a leading zero": `01`,
		"a plus": `+1`, "white space": ` 1`, "a line": "1\n", "duplicate keys": `{"a":1,"a":2}`, "unsorted keys": `{"b":1,"a":2}`,
		"a comma too many": `[1,]`, "an open string": `"a`, "a control character": "\"\x01\"", "a needless escape": `"\u0041"`,
		"a slash escaped": `"\/"`, "upper-case hex": `"\u001F"`, "not UTF-8": "\"\xff\"", "nothing": ``, "two values": `1 2`,
		"beyond 2^53": `9007199254740992`, "a surrogate": `"\ud83d"`,
	} {
		if v, err := jcs.Parse([]byte(in)); err == nil {
			t.Errorf("%s: %s was read as %v", name, in, v)
		}
	}
	if _, err := jcs.Parse(bytes.Repeat([]byte("["), 1000)); !errors.Is(err, jcs.ErrDepth) {
		t.Errorf("deep nesting: %v, want ErrDepth", err)
	}
	for _, v := range []any{true, 1.5, nil, uint64(1 << 60), int64(-1 << 60), struct{}{}} {
		if b, err := jcs.Append(nil, v); err == nil {
			t.Errorf("%T was written as %s", v, b)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{`{"a":[1,"x",{}]}`, `"\u0001\n\\"`, `-12`, "\"\U0001f600\"", `[[[[]]]]`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		v, err := jcs.Parse(in)
		if err != nil {
			return
		}
		if out, err := jcs.Append(nil, v); err != nil || !bytes.Equal(out, in) {
			t.Errorf("accepted %q, but writes %q (%v)", in, out, err)
		}
	})
}
