package storetest

import (
	"errors"
	"slices"
	"time"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
)

// Switched appends a switch of an issuer's current CA.
func (l *Log) Switched(issuer, from, to string) audit.Line {
	return l.Add(store.EventCA, store.OutSwitched, "", store.SwitchedObject(issuer, from, to))
}

// Fetched appends an answer to GetNextCACert. The suite's lines have no source.
func (l *Log) Fetched(profile, generation string) audit.Line {
	return l.Add(store.EventMessage, store.OutServed, "", audit.Object{"profile": profile, "operation": "GetNextCACert", "next_ca": generation})
}

func testSwitched(f *fixture) {
	if got, err := f.ix.CurrentCAs(f.ctx); err != nil || len(got) != 0 {
		f.Errorf("CurrentCAs of an empty index: %v, %v", got, err)
	}
	f.follow(f.log.Switched("corp", "first", "2027"), f.log.Switched("lab", "a", "b"), f.log.Switched("corp", "2027", "2028"))
	got, err := f.ix.CurrentCAs(f.ctx)
	if err != nil || len(got) != 2 || got["corp"] != (store.CurrentCA{Generation: "2028", Before: "2027", Since: Day()}) || got["lab"].Generation != "b" {
		f.Errorf("CurrentCAs: %+v, %v", got, err)
	}
	f.refuse("a switch to nothing", func(l *Log) audit.Line { return l.Switched("corp", "2028", "") })
	f.refuse("a switch of nothing", func(l *Log) audit.Line { return l.Switched("", "2028", "first") })
}

func testFetches(f *fixture) {
	f.follow(f.log.Fetched("wifi", "2027"), f.log.Fetched("wifi", "2027"), f.log.Fetched("vpn", "2027"), f.log.Fetched("wifi", ""))
	list, all, err := f.ix.Fetches(f.ctx, "wifi", "2027", 10)
	if want := (store.Fetch{Profile: "wifi", Generation: "2027", First: Day(), Last: Day(), Count: 2}); err != nil || all != 1 || !slices.Equal(list, []store.Fetch{want}) {
		f.Errorf("Fetches: %+v of %d, %v", list, all, err)
	}
	if at, err := f.ix.Fetched(f.ctx, "wifi", "2027", ""); err != nil || !at.Equal(Day()) {
		f.Errorf("Fetched: %v, %v", at, err)
	}
	for _, c := range [][3]string{{"wifi", "2028", ""}, {"lan", "2027", ""}, {"wifi", "2027", "192.0.2.1"}} {
		if at, err := f.ix.Fetched(f.ctx, c[0], c[1], c[2]); !errors.Is(err, store.ErrNotFound) {
			f.Errorf("Fetched(%q): %v, %v, want ErrNotFound", c, at, err)
		}
	}
}

func testCountCAs(f *fixture) {
	now := Day().Add(time.Hour)
	first := Issuance("d1", "0a")
	moved := Renewal(first, "0b")
	moved.Issuer = "corp.2027"
	other, ended, failed, ours, due := Issuance("d2", "0c"), Issuance("d3", "0d"), Issuance("d4", "0e"), Issuance("d5", "0f"), Issuance("d6", "1a")
	ended.NotAfter = now
	ours.Profile = store.ServerProfile
	for _, i := range []store.Issuance{first, moved, other, ended, ours, due} {
		f.end(i, store.Issued)
	}
	f.end(failed, store.Failed)
	f.follow(f.log.Due("1a"))
	got, err := f.ix.CountCAs(f.ctx, now)
	want := []store.CACount{{Issuer: "corp", Profile: "wifi", Live: 1}, {Issuer: "corp.2027", Profile: "wifi", Live: 1}}
	if err != nil || !slices.Equal(got, want) {
		f.Errorf("CountCAs: %+v, %v, want %+v", got, err, want)
	}
	list, err := f.ix.Certificates(f.ctx, store.CertificateFilter{Issuers: []string{"corp", "lab"}, Living: now})
	if err != nil || len(list) != 1 || list[0].Serial != "0c" {
		f.Errorf("Certificates that live: %+v, %v", list, err)
	}
	if list, err := f.ix.Certificates(f.ctx, store.CertificateFilter{Issuers: []string{"corp.2027"}}); err != nil || len(list) != 1 || list[0].Serial != "0b" {
		f.Errorf("Certificates of a CA: %+v, %v", list, err)
	}
}
