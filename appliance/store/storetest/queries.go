package storetest

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/postern-pki/postern/appliance/store"
)

// end follows an intent and its result; an intent that stays open has the state
// intended.
func (f *fixture) end(i store.Issuance, s store.State) {
	f.Helper()
	f.follow(f.log.Intent(i))
	if s != store.Intended {
		f.follow(f.log.Result(f.log.Next()-1, s))
	}
}

func testTransaction(f *fixture) {
	base := Issuance("d1", "0a")
	same := base
	same.Serial = "0b"
	failed, unknown, intended := same, same, same
	failed.Serial, unknown.Serial, intended.Serial = "0c", "0d", "0e"
	f.end(base, store.Issued)
	f.end(same, store.Issued)
	f.end(failed, store.Failed)
	f.end(unknown, store.Unknown)
	f.end(intended, store.Intended)
	got, err := f.ix.Transaction(f.ctx, base.Issuer, base.Profile, base.Transaction, base.Signer, base.CSR)
	if err != nil || got.Serial != "0b" || string(got.Certificate) != string(DER(got.IntentSeq)) {
		f.Errorf("Transaction: %s with %q, %v, want 0b", got.Serial, got.Certificate, err)
	}
	for _, c := range [][5]string{
		{"corp.2027", base.Profile, base.Transaction, base.Signer, base.CSR},
		{base.Issuer, "vpn", base.Transaction, base.Signer, base.CSR},
		{base.Issuer, base.Profile, "tx", base.Signer, base.CSR},
		{base.Issuer, base.Profile, base.Transaction, "key:other", base.CSR},
		{base.Issuer, base.Profile, base.Transaction, base.Signer, Digest("another")},
		{base.Issuer, base.Profile, "", base.Signer, base.CSR},
	} {
		if got, err := f.ix.Transaction(f.ctx, c[0], c[1], c[2], c[3], c[4]); !errors.Is(err, store.ErrNotFound) {
			f.Errorf("Transaction(%q): %s, %v, want ErrNotFound", c, got.Serial, err)
		}
	}
}

func testRenewalOf(f *fixture) {
	first := Issuance("d1", "0a")
	renewal := Renewal(first, "0b")
	again, failed := renewal, renewal
	again.Serial, again.Transaction = "0c", "tx-other"
	failed.Serial = "0d"
	f.end(first, store.Issued)
	f.end(renewal, store.Issued)
	f.end(again, store.Issued)
	f.end(failed, store.Failed)
	got, err := f.ix.RenewalOf(f.ctx, renewal.Issuer, renewal.Profile, renewal.Signer, renewal.CSR)
	if err != nil || got.Serial != "0c" {
		f.Errorf("RenewalOf: %s, %v, want 0c", got.Serial, err)
	}
	for _, c := range [][4]string{
		{"corp.2027", renewal.Profile, renewal.Signer, renewal.CSR},
		{renewal.Issuer, "vpn", renewal.Signer, renewal.CSR},
		{renewal.Issuer, renewal.Profile, first.Signer, renewal.CSR},
		{renewal.Issuer, renewal.Profile, renewal.Signer, first.CSR},
	} {
		if got, err := f.ix.RenewalOf(f.ctx, c[0], c[1], c[2], c[3]); !errors.Is(err, store.ErrNotFound) {
			f.Errorf("RenewalOf(%q): %s, %v, want ErrNotFound", c, got.Serial, err)
		}
	}
}

func testLineage(f *fixture) {
	first := Issuance("d1", "0a")
	want := func(n int64, after string) {
		f.Helper()
		got, err := f.ix.LineageRenewals(f.ctx, first.Lineage)
		if got != n || (n < 0) != errors.Is(err, store.ErrNotFound) || n >= 0 && err != nil {
			f.Errorf("after %s: %d, %v, want %d", after, got, err, n)
		}
	}
	f.end(Issuance("d2", "aa"), store.Issued)
	want(-1, "another lineage")
	failed := first
	failed.Serial = "00"
	f.end(failed, store.Failed)
	want(-1, "a failed intent")
	f.end(first, store.Intended)
	want(0, "the intent of an enrollment")
	f.follow(f.log.Result(f.log.Next()-1, store.Issued))
	want(0, "an enrollment")
	second := Renewal(first, "0b")
	f.end(second, store.Intended)
	want(1, "the intent of a renewal")
	f.follow(f.log.Result(f.log.Next()-1, store.Failed))
	want(0, "a failed renewal")
	second.Serial = "0c"
	f.end(second, store.Issued)
	third := Renewal(second, "0d")
	f.end(third, store.Issued)
	want(2, "two renewals")
	f.follow(f.log.Due("0d"))
	want(2, "the revocation of the second")
	f.end(Renewal(third, "0e"), store.Unknown)
	want(2, "an unknown renewal")
}

// active checks the count for device d1 at the given time.
func (f *fixture) active(want int64, profile, except string, now time.Time, why string) {
	f.Helper()
	used, err := f.ix.InUse(f.ctx, store.Use{Profile: profile, Names: Digest("names of d1"), Except: except, Now: now})
	if err != nil || used.Active != want {
		f.Errorf("%s: %d active, %v, want %d", why, used.Active, err, want)
	}
}

func testCountActive(f *fixture) {
	one := Issuance("d1", "01")
	f.end(one, store.Issued)
	f.active(1, "wifi", "", Day(), "one certificate")
	f.active(0, "vpn", "", Day(), "another profile")
	f.active(0, "wifi", "01", Day(), "but for that one")
	f.active(1, "wifi", "02", Day(), "but for another")
	f.active(1, "wifi", "", one.NotAfter.Add(-time.Second), "in its last second")
	f.active(0, "wifi", "", one.NotAfter, "at its end")
	f.end(Issuance("d2", "02"), store.Issued)
	f.active(1, "wifi", "", Day(), "other names")
	f.end(Issuance("d1", "03"), store.Intended)
	f.active(2, "wifi", "", Day(), "an intent as well")
	f.end(Issuance("d1", "04"), store.Failed)
	f.end(Issuance("d1", "05"), store.Unknown)
	f.active(2, "wifi", "", Day(), "failed and unknown ones as well")
	vpn := Issuance("d1", "06")
	vpn.Profile = "vpn"
	f.end(vpn, store.Issued)
	f.active(2, "wifi", "", Day(), "one of another profile as well")
	f.active(1, "vpn", "", Day(), "that profile")
	f.follow(f.log.Due("01"))
	f.active(1, "wifi", "", Day(), "one due to be revoked")
}

func testCountRenewed(f *fixture) {
	first := Issuance("d1", "01")
	f.end(first, store.Issued)
	second := Renewal(first, "02")
	f.end(second, store.Intended)
	f.active(1, "wifi", "", Day(), "being renewed")
	f.follow(f.log.Result(f.log.Next()-1, store.Failed))
	f.active(1, "wifi", "", Day(), "a renewal that failed")
	f.end(Renewal(first, "03"), store.Unknown)
	f.active(1, "wifi", "", Day(), "a renewal that is unknown")
	f.active(0, "wifi", "01", Day(), "but for the one to be renewed")
	second.Serial = "04"
	f.end(second, store.Issued)
	f.active(1, "wifi", "", Day(), "renewed")
	f.end(Renewal(second, "05"), store.Issued)
	f.active(1, "wifi", "", Day(), "renewed twice")
	stranger := Renewal(Issuance("d9", "05"), "06")
	stranger.Lineage = "another"
	f.end(stranger, store.Issued)
	f.active(1, "wifi", "", Day(), "a successor of another lineage")
}

func testKeyUsed(f *fixture) {
	used := func(spki, names string, want bool, why string) {
		f.Helper()
		if got, err := f.ix.InUse(f.ctx, store.Use{SPKI: Digest(spki), Names: Digest(names), Now: Day()}); err != nil || got.KeyByOther != want {
			f.Errorf("%s: %v, %v, want %v", why, got.KeyByOther, err, want)
		}
	}
	f.end(Issuance("d1", "01"), store.Issued)
	used("key of d1", "names of d1", false, "the same names")
	used("key of d1", "names of d2", true, "other names")
	used("key of d2", "names of d2", false, "another key")
	vpn := Issuance("d2", "02")
	vpn.Profile = "vpn"
	f.end(vpn, store.Intended)
	used("key of d2", "names of d1", true, "an intent of another profile")
	f.end(Issuance("d3", "03"), store.Failed)
	f.end(Issuance("d3", "04"), store.Unknown)
	used("key of d3", "names of d1", false, "a certificate that was never seen")
	server := Issuance("d4", "05")
	server.Profile = store.ServerProfile
	f.end(server, store.Issued)
	used("key of d4", "names of d1", false, "our own listener")
	both := Issuance("d1", "06")
	both.SPKI = Digest("key of d4")
	f.end(both, store.Issued)
	used("key of d4", "names of d1", false, "our own listener and the same names")
	used("key of d4", "names of d5", true, "our own listener and other names")
}

func testOpenIntents(f *fixture) {
	var want []string
	for n := range 20 {
		serial := fmt.Sprintf("%02x", 255-n)
		switch i := Issuance(serial, serial); n % 4 {
		case 0:
			f.end(i, store.Issued)
		case 1:
			f.end(i, store.Unknown)
		case 2:
			f.end(i, store.Failed)
		case 3:
			f.end(i, store.Intended)
			want = append(want, serial)
		}
	}
	list, err := f.ix.OpenIntents(f.ctx)
	if err != nil || !slices.Equal(serials(list), want) {
		f.Errorf("OpenIntents: %v, %v, want %v", serials(list), err, want)
	}
}

func serials(list []store.Issuance) []string {
	var out []string
	for _, i := range list {
		out = append(out, i.Serial)
	}
	return out
}

func testCertificates(f *fixture) {
	const many = 1010
	var lines []store.Issuance
	for n := range many {
		i := Issuance(fmt.Sprintf("device-%04d", n), fmt.Sprintf("%04x", n))
		if n%2 == 1 {
			i.Profile = "vpn"
		}
		lines = append(lines, i)
		f.log.Intent(i)
	}
	f.follow(f.log.Lines...)
	for n := range 10 {
		f.follow(f.log.Result(uint64(n), []store.State{store.Issued, store.Failed, store.Unknown}[n%3]))
	}
	serial := func(n int) string { return lines[n].Serial }
	for _, c := range []struct {
		filter        store.CertificateFilter
		n             int
		newest, bound string
	}{
		{store.CertificateFilter{}, 100, serial(1009), serial(910)},
		{store.CertificateFilter{Limit: 3}, 3, serial(1009), serial(1007)},
		{store.CertificateFilter{Limit: 9999}, 1000, serial(1009), serial(10)},
		{store.CertificateFilter{Before: 910, Limit: 2}, 2, serial(909), serial(908)},
		{store.CertificateFilter{Before: 1 << 63, Limit: 1}, 1, serial(1009), serial(1009)},
		{store.CertificateFilter{Profile: "vpn", Limit: 2}, 2, serial(1009), serial(1007)},
		{store.CertificateFilter{Subject: "device-010"}, 10, serial(109), serial(100)},
		{store.CertificateFilter{Subject: "DEVICE-010"}, 0, "", ""},
		{store.CertificateFilter{Subject: "%"}, 0, "", ""},
		{store.CertificateFilter{State: store.Issued}, 4, serial(9), serial(0)},
		{store.CertificateFilter{State: store.Failed, Profile: "vpn"}, 2, serial(7), serial(1)},
		{store.CertificateFilter{State: store.Unknown, Before: 8}, 2, serial(5), serial(2)},
		{store.CertificateFilter{State: store.Intended, Limit: 1000}, 1000, serial(1009), serial(10)},
		{store.CertificateFilter{State: "unheard of"}, 0, "", ""},
	} {
		list, err := f.ix.Certificates(f.ctx, c.filter)
		if err != nil || len(list) != c.n {
			f.Errorf("%+v: %d certificates, %v, want %d", c.filter, len(list), err, c.n)
		} else if c.n > 0 && (list[0].Serial != c.newest || list[c.n-1].Serial != c.bound) {
			f.Errorf("%+v: %s to %s, want %s to %s", c.filter, list[0].Serial, list[c.n-1].Serial, c.newest, c.bound)
		}
	}
}
