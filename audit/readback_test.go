package audit_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/postern-pki/postern/audit"
)

// values are what an event's object may hold.
func values(depth int) *rapid.Generator[any] {
	leaves := []*rapid.Generator[any]{
		rapid.String().AsAny(), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }).AsAny(),
		rapid.Int64Range(-1<<53+1, 1<<53-1).AsAny(), rapid.IntRange(-9, 9).AsAny(), rapid.Uint64Range(0, 1<<53-1).AsAny(),
		rapid.SliceOfN(rapid.String(), 0, 3).AsAny(),
	}
	if depth == 0 {
		return rapid.OneOf(leaves...)
	}
	object := rapid.Map(rapid.MapOfN(rapid.StringMatching(`[a-zé]{1,4}`), values(depth-1), 0, 3), func(m map[string]any) audit.Object { return m })
	return rapid.OneOf(append(leaves, object.AsAny(), rapid.SliceOfN(values(depth-1), 0, 3).AsAny(), rapid.SliceOfN(object, 0, 3).AsAny(),
		rapid.Map(object, func(o audit.Object) map[string]any { return o }).AsAny())...)
}

// Whoever follows the log sees the object that a reader of the file sees.
func TestFollowersSeeWhatReadersSee(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := audit.Object{}
		for range rapid.IntRange(0, 4).Draw(t, "fields") {
			o[rapid.StringMatching(`[a-zé]{1,4}`).Draw(t, "key")] = values(3).Draw(t, "value")
		}
		line, err := audit.Encode(audit.Record{Version: 1, Prev: strings.Repeat("0a", 32), Time: time.Date(2026, 11, 21, 2, 27, 3, 0, time.UTC), Event: "e", Outcome: "o", Actor: audit.Actor{Kind: "k"}, Object: o})
		if err != nil {
			t.Fatal(err)
		}
		read, err := audit.ParseLine(line.Raw)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(line.Record.Object, read.Record.Object) {
			t.Fatalf("followers see\n%#v\nreaders\n%#v", line.Record.Object, read.Record.Object)
		}
	})
}

func TestTwoKeysThatBecomeOneAreRefused(t *testing.T) {
	_, err := audit.Encode(audit.Record{Version: 1, Prev: strings.Repeat("0a", 32), Time: time.Date(2026, 11, 21, 2, 27, 3, 0, time.UTC), Event: "e", Outcome: "o", Actor: audit.Actor{Kind: "k"},
		Object: audit.Object{"in": audit.Object{"\xff": "a", "\xfe": "b"}}})
	if err == nil {
		t.Error("encoded")
	}
}
