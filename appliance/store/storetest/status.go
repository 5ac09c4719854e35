package storetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
)

// List is an intended list of an issuer.
func List(issuer string, number uint64) store.CRL {
	return store.CRL{Issuer: issuer, Number: number, ThisUpdate: Day(), NextUpdate: Day().Add(168 * time.Hour), Entries: int64(number)}
}

func (m model) sign(c store.CRLIssued) {
	for issuer, l := range m.crls {
		if l.Seq == c.Seq && !l.Issued {
			l.Issued, l.SHA256 = true, c.SHA256
			m.crls[issuer] = l
		}
	}
}

// statusLine draws a line about what is revoked.
func (f *fixture) statusLine(rt *rapid.T, serial string) audit.Line {
	switch rapid.IntRange(0, 2).Draw(rt, "status") {
	case 0:
		return f.log.RevokedFor(store.Revocation{Serial: serial, Reason: rapid.SampledFrom([]int{0, 1, 9}).Draw(rt, "reason"), At: Day().Add(time.Duration(f.log.Next()) * time.Second)})
	case 1:
		return f.log.CRL(List(rapid.SampledFrom([]string{"corp", "other"}).Draw(rt, "issuer"), rapid.Uint64Range(1, 20).Draw(rt, "number")))
	default:
		return f.log.CRLIssued(rapid.Uint64Range(0, max(f.log.Next(), 1)-1).Draw(rt, "list"))
	}
}

// compareStatus returns what the index says otherwise than the model about what is revoked.
func (m model) compareStatus(f *fixture) string {
	for _, issuer := range []string{"corp", "other"} {
		var want []store.Revocation
		for _, i := range m.sorted(func(i store.Issuance) bool { return i.RevocationDue && i.Issuer == issuer }) {
			want = append(want, store.Revocation{Serial: i.Serial, Reason: i.Reason, At: i.RevokedAt})
		}
		slices.SortFunc(want, func(a, b store.Revocation) int { return strings.Compare(a.Serial, b.Serial) })
		got, err := f.ix.Revocations(f.ctx, issuer, Day())
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			return fmt.Sprintf("Revocations of %s: %v\n%s", issuer, err, diff)
		}
		list, err := f.ix.CRL(f.ctx, issuer)
		if _, ok := m.crls[issuer]; !ok && errors.Is(err, store.ErrNotFound) {
			continue
		}
		if diff := cmp.Diff(m.crls[issuer], list); err != nil || diff != "" {
			return fmt.Sprintf("CRL of %s: %v\n%s", issuer, err, diff)
		}
	}
	return ""
}

func testRevokedOnce(f *fixture) {
	one, burnt := Issuance("d1", "0a"), Issuance("d2", "0b")
	f.follow(f.log.Start()...)
	f.follow(f.log.Intent(one), f.log.Intent(burnt), f.log.Result(1, store.Issued))
	first := store.Revocation{Serial: "0a", Reason: 1, At: Day().Add(time.Hour)}
	f.follow(f.log.RevokedFor(first), f.log.RevokedFor(store.Revocation{Serial: "0a", Reason: 9, At: Day().Add(2 * time.Hour)}), f.log.Due("0a"))
	if i := f.certificate("0a"); !i.RevocationDue || i.Reason != 1 || !i.RevokedAt.Equal(first.At) || i.State != store.Issued {
		f.Errorf("after three revocations: %+v", i)
	}
	f.follow(f.log.Due("0b"), f.log.Result(2, store.Unknown), f.log.RevokedFor(store.Revocation{Serial: "0b", Reason: 9, At: Day()}))
	if i := f.certificate("0b"); !i.RevocationDue || i.Reason != 0 || !i.RevokedAt.Equal(Day()) {
		f.Errorf("a burnt serial: %+v", i)
	}
	f.refuse("a revocation of nothing", func(l *Log) audit.Line { return l.RevokedFor(store.Revocation{Serial: "ff", At: Day()}) })
	f.refuse("a revocation without its time", func(l *Log) audit.Line {
		return l.Add(store.EventRevocation, store.OutRevoked, "", audit.Object{"serial": "0a", "reason": 1})
	})
}

func testRevocations(f *fixture) {
	f.follow(f.log.Start()...)
	other := Issuance("d3", "01")
	other.Issuer = "other"
	short := Issuance("d4", "03")
	short.NotAfter = Day().Add(time.Hour)
	for _, i := range []store.Issuance{Issuance("d1", "0b"), Issuance("d2", "0a"), other, short, Issuance("d5", "02")} {
		f.follow(f.log.Intent(i))
	}
	for _, s := range []string{"0b", "0a", "01", "03"} {
		f.follow(f.log.RevokedFor(store.Revocation{Serial: s, Reason: 4, At: Day()}))
	}
	for ends, want := range map[time.Time]string{Day(): "[03 0a 0b]", short.NotAfter: "[03 0a 0b]", short.NotAfter.Add(time.Second): "[0a 0b]"} {
		list, err := f.ix.Revocations(f.ctx, "corp", ends)
		var serials []string
		for _, r := range list {
			serials = append(serials, r.Serial)
			if r.Reason != 4 || !r.At.Equal(Day()) {
				f.Errorf("%+v", r)
			}
		}
		if err != nil || fmt.Sprint(serials) != want {
			f.Errorf("those that end from %s on: %v, %v; want %s", ends, serials, err, want)
		}
	}
}

func testSerials(f *fixture) {
	f.follow(f.log.Start()...)
	other := Issuance("d3", "02")
	other.Issuer = "other"
	short := Issuance("d4", "07")
	short.NotAfter = Day().Add(-time.Second)
	for n, i := range []store.Issuance{Issuance("d1", "0b"), other, short, Issuance("d5", "05"), Issuance("d6", "03"), Issuance("d7", "04")} {
		f.follow(f.log.Intent(i))
		if n < 4 {
			f.follow(f.log.Result(f.log.Next()-1, store.Issued))
		}
	}
	f.follow(f.log.Due("03")) // burnt; 04 is intended yet
	for after, want := range map[string]string{"": "[03 05]", "03": "[05 0b]", "0b": "[]"} {
		got, err := f.ix.Serials(f.ctx, "corp", after, Day(), 2)
		if err != nil || fmt.Sprint(got) != want {
			f.Errorf("after %q: %v, %v; want %s", after, got, err, want)
		}
	}
}

func testCRL(f *fixture) {
	f.follow(f.log.Start()...)
	if _, err := f.ix.CRL(f.ctx, "corp"); !errors.Is(err, store.ErrNotFound) {
		f.Errorf("without one: %v", err)
	}
	want := List("corp", 7)
	want.Seq = 1
	f.follow(f.log.CRL(want))
	f.list(want)
	want.Issued, want.SHA256 = true, Digest("crl1")
	f.follow(f.log.CRLIssued(1))
	f.list(want)
	next := List("corp", 8)
	next.Seq = 3
	f.follow(f.log.CRL(next), f.log.CRL(List("other", 2)), f.log.CRLIssued(1)) // that one is not the newest any more
	f.list(next)
}

func (f *fixture) list(want store.CRL) {
	f.Helper()
	got, err := f.ix.CRL(f.ctx, want.Issuer)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		f.Errorf("CRL: %v\n%s", err, diff)
	}
}

func testCRLNumber(f *fixture) {
	f.follow(f.log.Start()...)
	f.follow(f.log.CRL(List("corp", 7)))
	f.refuse("the same number again", func(l *Log) audit.Line { return l.CRL(List("corp", 7)) })
	f.refuse("a lower one", func(l *Log) audit.Line { return l.CRL(List("corp", 6)) })
	f.refuse("one that signs nothing", func(l *Log) audit.Line {
		return l.Add(store.EventCRL, store.OutIssued, "", audit.Object{"intent_seq": 1})
	})
	f.follow(f.log.CRL(List("other", 1)))
}
