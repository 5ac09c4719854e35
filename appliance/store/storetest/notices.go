package storetest

import (
	"errors"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
)

// Told appends that a validator has heard of a certificate.
func (l *Log) Told(serial string) audit.Line {
	return l.Add(store.EventValidator, store.OutTold, "", store.ToldObject(serial, "corp"))
}

// IntentTo appends an intent of whose certificate a validator has to hear.
func (l *Log) IntentTo(i store.Issuance, validator string) audit.Line {
	o := store.IntentObject(intentFor(i), i)
	store.TellObject(o, validator)
	return l.Add(store.EventEnroll, store.OutIntent, i.Request, o)
}

// testNotices has certificates of which somebody has to hear, and some of which nobody.
func testNotices(f *fixture) {
	owed := func(i store.Issuance) audit.Line { return f.log.IntentTo(i, "corp") }
	a, b, c, d := Issuance("a", "0a"), Issuance("b", "0b"), Issuance("c", "0c"), Issuance("d", "0d")
	lines := []audit.Line{owed(a), owed(b), owed(c), f.log.Intent(d)}
	for _, l := range lines {
		f.follow(l)
	}
	f.follow(f.log.Result(lines[0].Record.Seq, store.Issued), f.log.Result(lines[1].Record.Seq, store.Issued), f.log.Result(lines[2].Record.Seq, store.Failed),
		f.log.Result(lines[3].Record.Seq, store.Issued))
	since := func(n int) time.Time { return lines[n].Record.Time.Truncate(time.Second).UTC() }
	want := []store.Notice{{Serial: "0a", Validator: "corp", Since: since(0)}, {Serial: "0b", Validator: "corp", Since: since(1)}}
	check := func(what string, want ...store.Notice) {
		f.Helper()
		got, err := f.ix.UntoldBefore(f.ctx, since(3).Add(time.Hour))
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			f.Errorf("%s: %v\n%s", what, err, diff)
		}
	}
	check("issued, and not told", want...)
	if n, err := f.ix.Untold(f.ctx, "0a"); err != nil || n != want[0] {
		f.Errorf("of one: %+v, %v", n, err)
	}
	if got, err := f.ix.UntoldBefore(f.ctx, since(0)); err != nil || len(got) != 0 {
		f.Errorf("before it was owed: %v, %v", got, err)
	}
	for _, serial := range []string{"0d", "ff"} {
		if _, err := f.ix.Untold(f.ctx, serial); !errors.Is(err, store.ErrNotFound) {
			f.Errorf("%s: %v", serial, err)
		}
	}
	f.follow(f.log.Told("0a"))
	check("one was told", want[1])
	if _, err := f.ix.Untold(f.ctx, "0a"); !errors.Is(err, store.ErrNotFound) {
		f.Errorf("told: %v", err)
	}
	f.follow(f.log.Told("0a"), f.log.Due("0b"))
	check("told twice, and the other revoked")
	rebuilt := newFixture(f, f.open)
	rebuilt.follow(f.log.Lines...)
	if diff := cmp.Diff(f.dump(), rebuilt.dump()); diff != "" {
		f.Errorf("rebuilt:\n%s", diff)
	}
}
