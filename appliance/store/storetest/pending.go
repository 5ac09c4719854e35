package storetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/policy/challenge"
)

func (f *fixture) pending(request string) store.Pending {
	f.Helper()
	p, err := f.ix.Pending(f.ctx, request)
	if err != nil {
		f.Fatalf("Pending(%q): %v", request, err)
	}
	return p
}

// waits checks the state of a request, and the serial of its newest approval.
func (f *fixture) waits(request string, want store.PendingState, serial string) {
	f.Helper()
	if p := f.pending(request); p.State != want || p.Serial != serial {
		f.Errorf("request %s is %s with serial %q, want %s, %q", request, p.State, p.Serial, want, serial)
	}
}

func testPending(f *fixture) {
	p := Pending("d1", "r1")
	p.Challenge = "c1"
	f.follow(f.log.Created(Challenge("c1")))
	line := f.log.Pending(p)
	f.follow(line)
	hash := line.Hash()
	p.Seq, p.Digest = 1, fmt.Sprintf("%x", hash)
	if diff := cmp.Diff(p, f.pending("r1")); diff != "" {
		f.Errorf("it waits as\n%s", diff)
	}
	f.state("c1", challenge.Spent, 1, "r1")
	again := Pending("d2", "r2")
	again.Challenge = "c1"
	f.refuse("a challenge that another request spent", func(l *Log) audit.Line { return l.Pending(again) })
	f.refuse("a request twice", func(l *Log) audit.Line { return l.Pending(Pending("d3", "r1")) })
	if _, err := f.ix.Pending(f.ctx, "r2"); !errors.Is(err, store.ErrNotFound) {
		f.Errorf("a request that nobody made: %v", err)
	}
	f.follow(f.log.Approved(Issuance("d1", "0a"), "r1"), f.log.Result(f.log.Next()-1, store.Failed))
	f.state("c1", challenge.Spent, 1, "r1") // it is the request's, whatever comes of an approval
}

func testDecidedOnce(f *fixture) {
	f.follow(f.log.Pending(Pending("d1", "r1")), f.log.Pending(Pending("d2", "r2")))
	approve := func(serial, request string) func(l *Log) audit.Line {
		return func(l *Log) audit.Line { return l.Approved(Issuance("d1", serial), request) }
	}
	deny := func(request string) func(l *Log) audit.Line {
		return func(l *Log) audit.Line { return l.Denied(request) }
	}
	f.refuse("an approval of nothing", approve("0a", "r3"))
	f.refuse("a denial of nothing", deny("r3"))
	f.follow(f.log.Approved(Issuance("d1", "0a"), "r1"))
	f.waits("r1", store.Approved, "0a")
	f.refuse("an approval while one is under way", approve("0b", "r1"))
	f.refuse("a denial while an approval is under way", deny("r1"))
	f.follow(f.log.Result(f.log.Next()-1, store.Issued))
	f.waits("r1", store.Granted, "0a")
	f.refuse("an approval of what is issued", approve("0b", "r1"))
	f.refuse("a denial of what is issued", deny("r1"))
	f.follow(f.log.Denied("r2"))
	f.waits("r2", store.Denied, "")
	if p := f.pending("r2"); p.Why != "not of <our> fleet" || p.DeniedSeq != f.log.Next()-1 {
		f.Errorf("denied by %d: %q", p.DeniedSeq, p.Why)
	}
	f.refuse("an approval of what was denied", approve("0b", "r2"))
	f.refuse("a second denial", deny("r2"))
}

func testUnsigned(f *fixture) {
	f.follow(f.log.Pending(Pending("d1", "r1")))
	for n, s := range []store.State{store.Failed, store.Unknown} {
		serial := fmt.Sprintf("0%d", n)
		f.follow(f.log.Approved(Issuance("d1", serial), "r1"), f.log.Result(f.log.Next()-1, s))
		f.waits("r1", store.Waiting, serial)
	}
	f.follow(f.log.Approved(Issuance("d1", "0a"), "r1"), f.log.Result(f.log.Next()-1, store.Issued))
	f.waits("r1", store.Granted, "0a")
}

func testDenied(f *fixture) {
	p := Pending("d1", "r1")
	later := p
	later.Request, later.Transaction = "r2", "another"
	f.follow(f.log.Pending(p), f.log.Pending(later))
	if _, err := f.ix.DeniedBefore(f.ctx, p.Profile, p.Signer, p.CSR); !errors.Is(err, store.ErrNotFound) {
		f.Errorf("nothing was denied: %v", err)
	}
	f.follow(f.log.Denied("r1"))
	if got, err := f.ix.DeniedBefore(f.ctx, p.Profile, p.Signer, p.CSR); err != nil || got.Request != "r1" {
		f.Errorf("%q, %v", got.Request, err)
	}
	f.follow(f.log.Denied("r2"))
	if got, err := f.ix.DeniedBefore(f.ctx, p.Profile, p.Signer, p.CSR); err != nil || got.Request != "r2" {
		f.Errorf("the newest: %q, %v", got.Request, err)
	}
	for _, c := range [][3]string{{"vpn", p.Signer, p.CSR}, {p.Profile, "key:other", p.CSR}, {p.Profile, p.Signer, Digest("another")}} {
		if got, err := f.ix.DeniedBefore(f.ctx, c[0], c[1], c[2]); !errors.Is(err, store.ErrNotFound) {
			f.Errorf("%q: %q, %v", c, got.Request, err)
		}
	}
}

func testPendingOf(f *fixture) {
	p := Pending("d1", "r1")
	second, other := p, Pending("d2", "r3")
	second.Request, second.CSR, other.Transaction = "r2", Digest("another"), p.Transaction
	f.follow(f.log.Pending(p), f.log.Denied("r1"), f.log.Pending(second), f.log.Pending(other))
	for _, c := range []struct{ profile, transaction, signer, want string }{
		{p.Profile, p.Transaction, p.Signer, "r2"}, {p.Profile, p.Transaction, other.Signer, "r3"}, {p.Profile, p.Transaction, "", "r3"},
		{"vpn", p.Transaction, "", ""}, {p.Profile, "tx", "", ""}, {p.Profile, p.Transaction, "key:other", ""},
	} {
		got, err := f.ix.PendingOf(f.ctx, c.profile, c.transaction, c.signer)
		if got.Request != c.want || errors.Is(err, store.ErrNotFound) != (c.want == "") {
			f.Errorf("%+v: %q, %v", c, got.Request, err)
		}
	}
}

func testPendingList(f *fixture) {
	vpn, short := Pending("d5", "vpn"), Pending("d6", "short")
	vpn.Profile, vpn.Facts.Profile, short.Expires = "vpn", "vpn", Day().Add(time.Hour)
	for n, r := range []string{"waiting", "denied", "approved", "issued"} {
		f.follow(f.log.Pending(Pending(fmt.Sprintf("d%d", n), r)))
	}
	f.follow(f.log.Pending(vpn), f.log.Pending(short), f.log.Denied("denied"))
	f.follow(f.log.Approved(Issuance("d2", "0a"), "approved"), f.log.Approved(Issuance("d3", "0b"), "issued"), f.log.Result(f.log.Next()-1, store.Issued))
	for _, c := range []struct {
		profile string
		after   time.Duration
		want    int64
	}{{"wifi", 0, 2}, {"wifi", time.Hour, 1}, {"wifi", 8 * 24 * time.Hour, 0}, {"vpn", 0, 1}, {"none", 0, 0}} {
		if n, err := f.ix.PendingCount(f.ctx, c.profile, Day().Add(c.after)); err != nil || n != c.want {
			f.Errorf("%+v: %d wait, %v", c, n, err)
		}
	}
	for _, c := range []struct {
		filter store.PendingFilter
		want   string
	}{
		{store.PendingFilter{}, "short vpn issued approved denied waiting"}, {store.PendingFilter{Limit: 2}, "short vpn"},
		{store.PendingFilter{State: store.Waiting}, "short vpn waiting"}, {store.PendingFilter{State: store.Denied}, "denied"},
		{store.PendingFilter{State: store.Approved}, "approved"}, {store.PendingFilter{State: store.Granted}, "issued"},
		{store.PendingFilter{Profile: "vpn"}, "vpn"}, {store.PendingFilter{Before: 2}, "denied waiting"},
		{store.PendingFilter{State: store.Waiting, After: Day().Add(time.Hour)}, "vpn waiting"}, {store.PendingFilter{State: "none"}, ""},
	} {
		list, err := f.ix.PendingList(f.ctx, c.filter)
		var got []string
		for _, p := range list {
			got = append(got, p.Request)
		}
		if err != nil || !slices.Equal(got, strings.Fields(c.want)) {
			f.Errorf("%+v: %q, %v, want %s", c.filter, got, err, c.want)
		}
	}
}

func testPolled(f *fixture) {
	first := Issuance("d1", "0a")
	newest, failed := first, first
	newest.Serial, newest.CSR, failed.Serial = "0b", Digest("another"), "0c"
	f.end(first, store.Issued)
	f.end(newest, store.Issued)
	f.end(failed, store.Failed)
	renewal := Renewal(first, "0d")
	f.end(renewal, store.Issued)
	for _, c := range []struct{ profile, transaction, signer, spki, predecessor, want string }{
		{first.Profile, first.Transaction, first.Signer, first.SPKI, "", "0b"},
		{renewal.Profile, renewal.Transaction, renewal.Signer, "", "0a", "0d"},
		{"vpn", first.Transaction, first.Signer, first.SPKI, "", ""}, {first.Profile, "tx", first.Signer, first.SPKI, "", ""},
		{first.Profile, first.Transaction, "key:other", first.SPKI, "", ""}, {first.Profile, first.Transaction, first.Signer, Digest("key"), "", ""},
		{renewal.Profile, renewal.Transaction, renewal.Signer, "", "0b", ""}, {renewal.Profile, renewal.Transaction, renewal.Signer, "", "", ""},
	} {
		got, err := f.ix.Polled(f.ctx, c.profile, c.transaction, c.signer, c.spki, c.predecessor)
		if got.Serial != c.want || errors.Is(err, store.ErrNotFound) != (c.want == "") {
			f.Errorf("%+v: %q, %v", c, got.Serial, err)
		}
	}
}
