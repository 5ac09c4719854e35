package audit_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-pki/postern/audit"
)

// sample is a line of a log.
func sampleLine(t testing.TB, e audit.Entry) audit.Line {
	t.Helper()
	l, err := audit.Encode(audit.Record{Seq: 7, Prev: strings.Repeat("0a", 32), Time: time.Date(2026, 11, 21, 2, 27, 3, 123456789, time.UTC), Boot: "b", Mono: 5,
		Event: e.Event, Outcome: e.Outcome, Request: e.Request, Actor: e.Actor, Object: e.Object})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLineIsCanonical(t *testing.T) {
	want := `{"actor":{"id":"-","kind":"device","src":"192.0.2.1:5"},"boot":"b","ev":"scep.enroll","mono":5,"ob":{"i":3,"why":["subject.CN"]},"out":"refused","prev":"` +
		strings.Repeat("0a", 32) + `","req":"req-3","seq":7,"t":"2026-11-21T02:27:03.123456Z","v":1}` + "\n"
	if got := string(sampleLine(t, refusal(3)).Raw); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
}

func nested(n int) audit.Object {
	o := audit.Object{"x": "y"}
	for range n {
		o = audit.Object{"o": o}
	}
	return o
}

// TestFollowersSeeWhatAReaderSees: an index that is rebuilt from the file has to
// come out as the one that was fed.
func TestFollowersSeeWhatAReaderSees(t *testing.T) {
	every := audit.Object{"int": 1, "int64": int64(-2), "uint64": uint64(3), "list": []string{"a", "b"}, "any": []any{1, "x", audit.Object{"k": uint64(1)}},
		"none": []string{}, "map": map[string]any{"a": audit.Object{"b": []any{}}}, "objects": []audit.Object{{"z": 1}}, "odd": "\u2028<>&\x01\xff"}
	for name, e := range map[string]audit.Entry{
		"every type":                  {Event: "e", Outcome: "o", Actor: audit.Actor{Kind: "system"}, Object: every},
		"no object":                   {Event: "e", Outcome: "o", Actor: audit.Actor{Kind: "system"}},
		"strings that are no UTF-8":   {Event: "e\xff\xfe", Outcome: "o\xff", Request: "r\xff", Actor: audit.Actor{Kind: "k\xff", ID: "i\xff", Source: "s\xff"}},
		"an object nested quite deep": {Event: "e", Outcome: "o", Actor: audit.Actor{Kind: "system"}, Object: nested(14)},
	} {
		t.Run(name, func(t *testing.T) {
			f := &follower{t: t}
			l := open(t, options(t, t.TempDir(), nil, f))
			line, err := l.Append(context.Background(), e)
			if err != nil {
				t.Fatal(err)
			}
			back, err := audit.ParseLine(line.Raw)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(back.Record, f.lines[1].Record); d != "" {
				t.Errorf("fed another record than a reader sees (-read +fed):\n%s", d)
			}
			if d := cmp.Diff(back.Record, line.Record); d != "" {
				t.Errorf("returned another record than a reader sees:\n%s", d)
			}
		})
	}
}

// TestAppendRefuses: a record that cannot be stored is the caller's fault, and
// the log goes on.
func TestAppendRefuses(t *testing.T) {
	with := func(o audit.Object) audit.Entry { e := refusal(0); e.Object = o; return e }
	own := func(ev string) audit.Entry { e := refusal(0); e.Event = ev; return e }
	for name, tt := range map[string]struct {
		e    audit.Entry
		want error
	}{
		"more than 64 KiB":            {with(audit.Object{"x": strings.Repeat("y", 64<<10)}), audit.ErrTooLarge},
		"just more, once it is JSON":  {with(audit.Object{"x": strings.Repeat("\x01", 11<<10)}), audit.ErrTooLarge},
		"a request id beyond measure": {audit.Entry{Event: "e", Outcome: "o", Request: strings.Repeat("r", 70<<10), Actor: audit.Actor{Kind: "k"}}, audit.ErrTooLarge},
		"a float":                     {with(audit.Object{"x": 1.5}), nil},
		"a bool":                      {with(audit.Object{"x": true}), nil},
		"null":                        {with(audit.Object{"x": nil}), nil},
		"an integer beyond 2^53":      {with(audit.Object{"x": uint64(1 << 53)}), nil},
		"what no reader would accept": {with(nested(15)), nil},
		"no event":                    {audit.Entry{Outcome: "o", Actor: audit.Actor{Kind: "k"}}, audit.ErrRecord},
		"no actor":                    {audit.Entry{Event: "e", Outcome: "o"}, audit.ErrRecord},
		"a checkpoint":                {own("log.checkpoint"), audit.ErrReserved},
		"a segment":                   {own("log.segment"), audit.ErrReserved},
		"a clock step":                {own("time.step"), audit.ErrReserved},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := open(t, options(t, dir, nil))
			if _, err := l.Append(context.Background(), tt.e); err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("Append: %v, want %v", err, tt.want)
			}
			if err := l.Healthy(); err != nil {
				t.Errorf("the log is poisoned: %v", err)
			}
			appendN(t, l, 1)
			if got := len(readAll(t, dir)); got != 2 {
				t.Errorf("%d lines, want 2", got)
			}
		})
	}
}

func TestParseLineRefuses(t *testing.T) {
	good := string(sampleLine(t, refusal(0)).Raw)
	if _, err := audit.ParseLine([]byte(good)); err != nil || !audit.ReadFields([]byte(good)) {
		t.Fatal(err)
	}
	for name, r := range map[string][2]string{
		"no LF":                       {"\n", ""},
		"CR LF":                       {"\n", "\r\n"},
		"two lines":                   {"\n", "\n\n"},
		"another version":             {`"v":1`, `"v":2`},
		"a version in words":          {`"v":1`, `"v":"1"`},
		"a field more":                {`"v":1`, `"v":1,"w":1`},
		"a field less":                {`"boot":"b",`, ``},
		"an object that is a list":    {`{"i":0,"why":["subject.CN"]}`, `[]`},
		"an actor's field that is 7":  {`"id":"-"`, `"id":7`},
		"an actor's empty field":      {`"id":"-"`, `"id":""`},
		"an actor's unknown field":    {`"src":"192.0.2.1:5"`, `"src":"192.0.2.1:5","tls":"1.3"`},
		"an actor without kind":       {`"kind":"device",`, ``},
		"an actor that is a string":   {`{"id":"-","kind":"device","src":"192.0.2.1:5"}`, `"x"`},
		"an empty event":              {`"ev":"scep.enroll"`, `"ev":""`},
		"an outcome that is a number": {`"out":"refused"`, `"out":1`},
		"a negative seq":              {`"seq":7`, `"seq":-7`},
		"a seq that is a string":      {`"seq":7`, `"seq":"7"`},
		"a mono that is a string":     {`"mono":5`, `"mono":"5"`},
		"a short prev":                {`"prev":"0a`, `"prev":"`},
		"an upper-case prev":          {`"prev":"0a`, `"prev":"0A`},
		"a prev that is not hex":      {`"prev":"0a`, `"prev":"0g`},
		"a local time":                {`.123456Z`, `.123456+01:00`},
		"a time in milliseconds":      {`.123456Z`, `.123Z`},
		"a comma in the time":         {`.123456Z`, `,123456Z`},
		"the 30th of February":        {`2026-11-21`, `2026-02-30`},
		"a space":                     {`"seq":7`, `"seq": 7`},
		"another order":               {`"seq":7,"t":"2026-11-21T02:27:03.123456Z"`, `"t":"2026-11-21T02:27:03.123456Z","seq":7`},
		"too long":                    {`"subject.CN"`, `"` + strings.Repeat("x", 64<<10) + `"`},
	} {
		t.Run(name, func(t *testing.T) {
			bad := strings.Replace(good, r[0], r[1], 1)
			if bad == good {
				t.Fatal("the case changes nothing")
			}
			if _, err := audit.ParseLine([]byte(bad)); err == nil {
				t.Errorf("accepted %s", bad)
			}
			if audit.ReadFields([]byte(bad)) {
				t.Errorf("the verifier accepted %s", bad)
			}
		})
	}
}

func TestIntent(t *testing.T) {
	in := audit.Intent{Serial: "0a", TBS: []byte{0x30, 0}, Issuer: "corp", IssuerKey: "ff", Challenge: "c", RequestDigest: "dd", Profile: "wifi", Lineage: "l"}
	line := func(out string, o audit.Object) audit.Line {
		l, err := audit.ParseLine(sampleLine(t, audit.Entry{Event: "issue", Outcome: out, Actor: audit.Actor{Kind: "system"}, Object: o}).Raw)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	if got, ok := audit.IntentOf(line("intent", audit.Object{"intent": in.Object()})); !ok || !cmp.Equal(got, in) {
		t.Errorf("IntentOf = %+v, %v", got, ok)
	}
	if _, ok := audit.IntentOf(line("issued", audit.Object{"intent": in.Object()})); ok {
		t.Error("a result was taken for an intent")
	}
	long := in
	long.TBS = make([]byte, 9<<10)
	if _, ok := audit.IntentOf(line("intent", audit.Object{"intent": long.Object()})); ok {
		t.Error("an intent beyond the bound was accepted")
	}
	for name, tt := range map[string]struct {
		out string
		seq any
		ok  bool
	}{
		"issued":                  {"issued", 3, true},
		"failed":                  {"failed", 3, true},
		"unknown":                 {"unknown", 0, true},
		"another outcome":         {"refused", 3, false},
		"a line that comes later": {"issued", 7, false},
		"a negative one":          {"issued", -1, false},
		"one in words":            {"issued", "3", false},
	} {
		t.Run(name, func(t *testing.T) {
			if _, out, ok := audit.OutcomeOf(line(tt.out, audit.Object{"intent_seq": tt.seq})); ok != tt.ok || ok && out != tt.out {
				t.Errorf("OutcomeOf = %q, %v, want %v", out, ok, tt.ok)
			}
		})
	}
}

// FuzzParseLine: nothing in a log's file can panic its readers; what one accepts
// the verifier accepts, and would be written the same way.
func FuzzLineReaders(f *testing.F) {
	f.Add(sampleLine(f, refusal(0)).Raw)
	f.Add(sampleLine(f, audit.Entry{Event: "e\n\u2028", Outcome: "o", Actor: audit.Actor{Kind: "k"}, Object: nested(14)}).Raw)
	f.Add(sampleLine(f, audit.Entry{Event: "e", Outcome: "o", Actor: audit.Actor{Kind: "k", ID: "\x01"}, Object: audit.Object{"\U0001f600": 1, "\ufb33": []any{}}}).Raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		l, err := audit.ParseLine(raw)
		if audit.ReadFields(raw) != (err == nil) {
			t.Fatalf("ParseLine says %v, and the verifier the opposite, of %q", err, raw)
		}
		if err != nil {
			return
		}
		if out, err := audit.Encode(l.Record); err == nil && !bytes.Equal(out.Raw, raw) {
			t.Errorf("accepted %q, but writes %q", raw, out.Raw)
		}
	})
}
