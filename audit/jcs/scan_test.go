package jcs_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-pki/postern/audit/jcs"
)

func TestAppend(t *testing.T) {
	for name, tt := range map[string]struct {
		in   any
		want string
	}{
		"line separators stay as they are":          {"\u2028\u2029", "\"\u2028\u2029\""},
		"HTML stays as it is":                       {"<a&b>", `"<a&b>"`},
		"controls have the short form, else \\u00":  {"\x00\b\t\n\v\f\r\x1f\x7f", "\"\\u0000\\b\\t\\n\\u000b\\f\\r\\u001f\x7f\""},
		"quote, backslash, slash":                   {`"\/`, `"\"\\/"`},
		"the string of RFC 8785, section 3.2.2.2":   {"\u20ac$\x0f\nA'B\"\\\\\"/", "\"\u20ac$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\""},
		"what is no UTF-8 becomes U+FFFD":           {"a\xffb", "\"a\ufffdb\""},
		"the largest integer":                       {int64(1<<53 - 1), "9007199254740991"},
		"the smallest":                              {-(1<<53 - 1), "-9007199254740991"},
		"a uint64":                                  {uint64(7), "7"},
		"nothing in it":                             {map[string]any{"a": []any{}, "b": map[string]any{}}, `{"a":[],"b":{}}`},
		"a list of strings":                         {[]string{"b", "a"}, `["b","a"]`},
		"keys by UTF-16 code units (section 3.2.3)": {map[string]any{"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\u0080": 6, "\u00f6": 7}, "{\"\\r\":2,\"1\":4,\"\u0080\":6,\"\u00f6\":7,\"\u20ac\":1,\"\U0001f600\":5,\"\ufb33\":3}"},
		"a key that another begins with":            {map[string]any{"ab": 1, "a": 2, "": 3}, `{"":3,"a":2,"ab":1}`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := jcs.Append(nil, tt.in)
			if err != nil || string(got) != tt.want {
				t.Fatalf("Append = %s, %v, want %s", got, err, tt.want)
			}
			back, err := jcs.Parse(got)
			if err != nil {
				t.Fatalf("Parse: %v", err)
			}
			if again, err := jcs.Append(nil, back); err != nil || string(again) != tt.want {
				t.Errorf("read and written again: %s, %v", again, err)
			}
		})
	}
}

func TestAppendRefuses(t *testing.T) {
	deep := any("x")
	for range 20 {
		deep = []any{deep}
	}
	for name, tt := range map[string]struct {
		in   any
		want error
	}{
		"a float":              {1.5, jcs.ErrType},
		"a bool":               {true, jcs.ErrType},
		"nil":                  {map[string]any{"a": nil}, jcs.ErrType},
		"an integer too large": {int64(1 << 53), jcs.ErrRange},
		"one too small":        {[]any{int64(-1 << 53)}, jcs.ErrRange},
		"a uint64 too large":   {uint64(1 << 53), jcs.ErrRange},
		"a nest too deep":      {deep, jcs.ErrDepth},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := jcs.Append(nil, tt.in); !errors.Is(err, tt.want) {
				t.Errorf("Append = %s, %v, want %v", got, err, tt.want)
			}
		})
	}
}

// TestParseRefuses has forms that JSON allows and RFC 8785 does not, or that a
// record may not hold.
func TestParseRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"space":                    `{"a": 1}`,
		"space after":              `1 `,
		"two values":               `1,2`,
		"nothing":                  ``,
		"keys out of order":        `{"b":1,"a":2}`,
		"a key twice":              `{"a":1,"a":2}`,
		"a key twice, escaped":     `{"\n":1,"\n":2}`,
		"UTF-8 order":              "{\"\ufb33\":3,\"\U0001f600\":5}",
		"a needless escape":        `"\u0041"`,
		"an escaped slash":         `"\/"`,
		"a long escape":            `"\u000a"`,
		"upper-case hex":           `"\u001F"`,
		"an escaped surrogate":     `"\ud83d\ude00"`,
		"a raw control":            "\"\n\"",
		"octets that are no UTF-8": "\"\xff\"",
		"a surrogate in UTF-8":     "\"\xed\xa0\x80\"",
		"the same after an escape": "\"\\n\xff\"",
		"a leading zero":           `01`,
		"minus zero":               `-0`,
		"a plus":                   `+1`,
		"a fraction":               `1.0`,
		"an exponent":              `1e3`,
		"too large":                `9007199254740992`,
		"far too large":            `99999999999999999999`,
		"a lone minus":             `-`,
		"null":                     `null`,
		"true":                     `true`,
		"a comma at the end":       `[1,]`,
		"no end":                   `{"a":[1`,
		"no end of a string":       `"a`,
		"an escape cut short":      `"\u00`,
		"too deep":                 strings.Repeat("[", 18) + strings.Repeat("]", 18),
	} {
		t.Run(name, func(t *testing.T) {
			if v, err := jcs.Parse([]byte(in)); err == nil {
				t.Errorf("Parse accepted it as %v", v)
			}
			if n, err := jcs.Scan([]byte(in), 0); err == nil && n == len(in) {
				t.Error("Scan accepted it")
			}
		})
	}
}

// FuzzScan: what Parse accepts Append writes, and Scan accepts the same.
func FuzzScan(f *testing.F) {
	for _, s := range []string{`{"a":[1,-2,"x\n"],"b":{}}`, "{\"\\r\":2,\"\u00f6\":7,\"\U0001f600\":5,\"\ufb33\":3}", `"\u001f"`, `-9007199254740991`, `[]`, `{"":0}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := jcs.Parse(b)
		n, scanErr := jcs.Scan(b, 0)
		if whole := scanErr == nil && n == len(b); whole != (err == nil) {
			t.Fatalf("%q: Parse says %v, Scan %d of %d, %v", b, err, n, len(b), scanErr)
		}
		if err != nil {
			return
		}
		out, err := jcs.Append(nil, v)
		if err != nil || !bytes.Equal(out, b) {
			t.Errorf("%q: %v; %s", b, err, cmp.Diff(string(b), string(out)))
		}
	})
}
