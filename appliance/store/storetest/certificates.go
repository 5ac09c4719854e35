package storetest

import (
	"github.com/google/go-cmp/cmp"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/policy/challenge"
)

func testIntent(f *fixture) {
	first := Issuance("d1", "0a")
	first.Challenge = "c1"
	f.follow(f.log.Created(Challenge("c1")), f.log.Intent(first))
	f.state("c1", challenge.Spent, 1, first.Lineage)
	first.IntentSeq = 1
	if diff := cmp.Diff(first, f.certificate("0a")); diff != "" {
		f.Errorf("an enrollment:\n%s", diff)
	}
	f.follow(f.log.Result(1, store.Issued))
	renewal := Renewal(first, "0b")
	f.follow(f.log.Intent(renewal))
	renewal.IntentSeq = 3
	if diff := cmp.Diff(renewal, f.certificate("0b")); diff != "" {
		f.Errorf("a renewal:\n%s", diff)
	}
}

func testSerialOnce(f *fixture) {
	f.follow(f.log.Intent(Issuance("d1", "0a")), f.log.Intent(Issuance("d2", "0b")), f.log.Result(1, store.Failed))
	f.refuse("the serial of an intent", func(l *Log) audit.Line { return l.Intent(Issuance("d3", "0a")) })
	f.refuse("the serial of a failed intent", func(l *Log) audit.Line { return l.Intent(Issuance("d3", "0b")) })
}

// intended follows an intent that spends challenge c1, and returns its seq.
func (f *fixture) intended(serial string) uint64 {
	f.Helper()
	if f.log.Next() == 0 {
		f.follow(f.log.Created(Challenge("c1")))
	}
	i := Issuance("d1", serial)
	i.Challenge = "c1"
	f.follow(f.log.Intent(i))
	return f.log.Next() - 1
}

// is checks the state of a serial.
func (f *fixture) is(serial string, state store.State, result uint64, due bool) {
	f.Helper()
	i := f.certificate(serial)
	if i.State != state || i.ResultSeq != result || i.RevocationDue != due {
		f.Errorf("%s is %s by %d, due %v; want %s, %d, %v", serial, i.State, i.ResultSeq, i.RevocationDue, state, result, due)
	}
	want := ""
	if state == store.Issued {
		want = string(DER(i.IntentSeq))
	}
	if string(i.Certificate) != want {
		f.Errorf("%s has certificate %q, want %q", serial, i.Certificate, want)
	}
}

func testIssued(f *fixture) {
	seq := f.intended("0a")
	f.is("0a", store.Intended, 0, false)
	f.follow(f.log.Result(seq, store.Issued))
	f.is("0a", store.Issued, 2, false)
	f.follow(f.log.Due("0a"), f.log.Due("0a"))
	f.is("0a", store.Issued, 2, true)
	f.state("c1", challenge.Spent, seq, "req-0a")
}

func testFailed(f *fixture) {
	seq := f.intended("0a")
	f.follow(f.log.Refused("c1"), f.log.Result(seq, store.Failed))
	f.is("0a", store.Failed, 3, false)
	f.state("c1", challenge.Open, 0, "")
	if got := f.challenge("c1"); got.Refusals != 1 || !got.Expires.Equal(Challenge("c1").Expires) {
		f.Errorf("freed with %d refusals, expires %s", got.Refusals, got.Expires)
	}
	again := f.intended("0b")
	f.state("c1", challenge.Spent, again, "req-0b")
	f.follow(f.log.Intent(Issuance("d2", "0c")), f.log.Result(again+1, store.Failed))
	f.state("c1", challenge.Spent, again, "req-0b") // another's failure frees nothing
}

func testUnknown(f *fixture) {
	seq := f.intended("0a")
	f.follow(f.log.Result(seq, store.Unknown))
	f.is("0a", store.Unknown, 2, false)
	f.state("c1", challenge.Spent, seq, "req-0a")
	f.follow(f.log.Due("0a"))
	f.is("0a", store.Unknown, 2, true)
	f.state("c1", challenge.Open, 0, "")

	seq = f.intended("0b")
	f.follow(f.log.Due("0b")) // before it is known that nothing is known
	f.state("c1", challenge.Spent, seq, "req-0b")
	f.follow(f.log.Result(seq, store.Unknown))
	f.state("c1", challenge.Open, 0, "")
}

func testNotTaken(f *fixture) {
	seq := f.intended("0a")
	f.follow(f.log.Result(seq, store.Unknown), f.log.Due("0a"))
	second := f.intended("0b")
	f.follow(f.log.Due("0a"))
	f.state("c1", challenge.Spent, second, "req-0b")

	f.follow(f.log.Result(second, store.Failed), f.log.Revoked("c1"), f.log.Due("0a"))
	f.state("c1", challenge.Revoked, 0, "")
}

func testOneResult(f *fixture) {
	result := func(seq uint64, s store.State) func(l *Log) audit.Line {
		return func(l *Log) audit.Line { return l.Result(seq, s) }
	}
	seq := f.intended("0a")
	f.refuse("a result of no intent", result(seq+100, store.Issued))
	f.refuse("a result of a line that is no intent", result(0, store.Failed))
	for n, s := range []store.State{store.Issued, store.Failed, store.Unknown} {
		serial := string(rune('b'+n)) + "0"
		f.follow(f.log.Intent(Issuance(serial, serial)))
		seq := f.log.Next() - 1
		f.follow(f.log.Result(seq, s))
		for _, again := range []store.State{store.Issued, store.Failed, store.Unknown} {
			f.refuse(string(again)+" after "+string(s), result(seq, again))
		}
	}
}

func testDueOfNothing(f *fixture) {
	f.intended("0a")
	f.refuse("an unknown serial", func(l *Log) audit.Line { return l.Due("0b") })
}
