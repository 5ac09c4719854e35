package audit_test

import (
	"bytes"
	"encoding/base64"
	"testing"
	"time"

	"github.com/postern-pki/postern/audit"
)

func decode(s string) ([]byte, error) { return base64.StdEncoding.DecodeString(s) }

func sample(t testing.TB) audit.Line {
	t.Helper()
	l, err := audit.Encode(audit.Record{
		Prev: "00000000000000000000000000000000000000000000000000000000000000ff", Time: time.Unix(1795241083, 137332000), Boot: "b", Mono: 7,
		Seq: 3, Event: "e", Outcome: "o", Request: "r", Actor: audit.Actor{Kind: "device", ID: "i", Source: "s"},
		Object: audit.Object{"a": []string{"x"}, "b": audit.Object{"c": -1}, "é": "\u2028<&>\x01\n"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestParseLineTakesTheCanonicalFormAlone(t *testing.T) {
	good := sample(t).Raw
	if _, err := audit.ParseLine(good); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"no LF":             bytes.TrimSuffix(good, []byte("\n")),
		"CRLF":              bytes.Replace(good, []byte("\n"), []byte("\r\n"), 1),
		"a space":           bytes.Replace(good, []byte(`,"boot"`), []byte(`, "boot"`), 1),
		"an escaped letter": bytes.Replace(good, []byte(`"ev":"e"`), []byte(`"ev":"\u0065"`), 1),
		"keys unsorted":     bytes.Replace(good, []byte(`"ev":"e","mono":7`), []byte(`"mono":7,"ev":"e"`), 1),
		"a missing field":   bytes.Replace(good, []byte(`,"req":"r"`), nil, 1),
		"a field more":      bytes.Replace(good, []byte(`"v":1`), []byte(`"v":1,"w":1`), 1),
		"a float":           bytes.Replace(good, []byte(`"mono":7`), []byte(`"mono":7.0`), 1),
		"a null":            bytes.Replace(good, []byte(`"mono":7`), []byte(`"mono":null`), 1),
		"another version":   bytes.Replace(good, []byte(`"v":1`), []byte(`"v":2`), 1),
		"a time in a zone":  bytes.Replace(good, []byte("Z\""), []byte("+00:00\""), 1),
		"an upper-case sum": bytes.Replace(good, []byte("ff\""), []byte("FF\""), 1),
	} {
		if bytes.Equal(bad, good) {
			t.Fatalf("%s: the case changes nothing", name)
		}
		if l, err := audit.ParseLine(bad); err == nil {
			t.Errorf("%s: accepted: %+v", name, l.Record)
		}
	}
}

func FuzzParseLine(f *testing.F) {
	f.Add(sample(f).Raw)
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		l, err := audit.ParseLine(raw)
		if err != nil {
			return
		}
		again, err := audit.Encode(l.Record)
		if err != nil || !bytes.Equal(again.Raw, raw) {
			t.Errorf("accepted %q, but writes %q (%v)", raw, again.Raw, err)
		}
	})
}

func FuzzCheckpoint(f *testing.F) {
	w := newWorld(f)
	f.Add([]byte(audit.NoteText(origin, audit.Head{Size: 3}) + "\n\u2014 " + origin + " AAAAAAAA\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if size, _, err := audit.OpenCheckpoint(data, w.verifier); err == nil {
			t.Errorf("accepted a note of %d that nobody signed: %q", size, data)
		}
	})
}
