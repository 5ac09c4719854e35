package storetest

import (
	"errors"
	"slices"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/policy/challenge"
)

func testEmpty(f *fixture) {
	f.next(0)
	if _, err := f.ix.ByTag(f.ctx, [32]byte{1}); !errors.Is(err, challenge.ErrUnknown) {
		f.Errorf("ByTag: %v, want ErrUnknown", err)
	}
	if _, err := f.ix.Challenge(f.ctx, "c1"); !errors.Is(err, store.ErrNotFound) {
		f.Errorf("Challenge: %v, want ErrNotFound", err)
	}
	if _, err := f.ix.Certificate(f.ctx, "0a"); !errors.Is(err, store.ErrNotFound) {
		f.Errorf("Certificate: %v, want ErrNotFound", err)
	}
	if _, err := f.ix.Transaction(f.ctx, "", "", "", "", ""); !errors.Is(err, store.ErrNotFound) {
		f.Errorf("Transaction: %v, want ErrNotFound", err)
	}
	if _, err := f.ix.RenewalOf(f.ctx, "", "", "", ""); !errors.Is(err, store.ErrNotFound) {
		f.Errorf("RenewalOf: %v, want ErrNotFound", err)
	}
	if n, err := f.ix.LineageRenewals(f.ctx, ""); n != -1 || !errors.Is(err, store.ErrNotFound) {
		f.Errorf("LineageRenewals: %d, %v, want -1, ErrNotFound", n, err)
	}
	if used, err := f.ix.InUse(f.ctx, store.Use{Now: Day()}); used != (store.Used{}) || err != nil {
		f.Errorf("InUse: %+v, %v, want nothing", used, err)
	}
	if list, err := f.ix.OpenIntents(f.ctx); len(list) != 0 || err != nil {
		f.Errorf("OpenIntents: %v, %v, want none", list, err)
	}
}

func testCreated(f *fixture) {
	bare := Challenge("bare")
	bare.Names = policy.Names{}
	full := Challenge("full")
	full.Names.IP, full.Names.Email, full.Names.URI = []string{"192.0.2.1", "2001:db8::1"}, []string{"a@example.com"}, []string{"urn:uuid:1"}
	f.follow(f.log.Created(bare), f.log.Created(full))
	for _, want := range []challenge.Record{bare, full} {
		got, err := f.ix.ByTag(f.ctx, want.Tag)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			f.Errorf("ByTag of %s: %v\n%s", want.ID, err, diff)
		}
		if diff := cmp.Diff(want, f.challenge(want.ID)); diff != "" {
			f.Errorf("Challenge %s:\n%s", want.ID, diff)
		}
	}
	if _, err := f.ix.ByTag(f.ctx, [32]byte{1}); !errors.Is(err, challenge.ErrUnknown) {
		f.Errorf("ByTag of another tag: %v, want ErrUnknown", err)
	}
}

func testCreatedOnce(f *fixture) {
	f.follow(f.log.Created(Challenge("c1")))
	f.refuse("the same id", func(l *Log) audit.Line {
		c := Challenge("c1")
		c.Tag[0]++
		return l.Created(c)
	})
	f.refuse("the same tag", func(l *Log) audit.Line {
		c := Challenge("c1")
		c.ID = "c2"
		return l.Created(c)
	})
}

func testRevoked(f *fixture) {
	spent := Issuance("d1", "0a")
	spent.Challenge = "spent"
	f.follow(f.log.Created(Challenge("open")), f.log.Created(Challenge("spent")), f.log.Created(Challenge("other")),
		f.log.Intent(spent), f.log.Revoked("open"), f.log.Revoked("spent"), f.log.Revoked("unknown"), f.log.Revoked("open"))
	f.state("open", challenge.Revoked, 0, "")
	f.state("spent", challenge.Spent, 3, spent.Lineage)
	f.state("other", challenge.Open, 0, "")
	f.next(8)
}

func testRefused(f *fixture) {
	f.follow(f.log.Created(Challenge("c1")), f.log.Created(Challenge("c2")), f.log.Refused("c1"), f.log.Refused("unknown"), f.log.Refused(""))
	f.follow(f.log.Refused("c1"))
	for id, want := range map[string]int{"c1": 2, "c2": 0} {
		if got := f.challenge(id).Refusals; got != want {
			f.Errorf("%s was refused %d times, want %d", id, got, want)
		}
	}
	f.state("c1", challenge.Open, 0, "")
}

func testNotOpen(f *fixture) {
	intent := func(serial, id string) func(l *Log) audit.Line {
		i := Issuance(serial, serial)
		i.Challenge = id
		return func(l *Log) audit.Line { return l.Intent(i) }
	}
	f.follow(f.log.Created(Challenge("spent")), f.log.Created(Challenge("revoked")), f.log.Revoked("revoked"), intent("0a", "spent")(f.log))
	f.refuse("a challenge spent twice", intent("0b", "spent"))
	f.refuse("a revoked challenge", intent("0b", "revoked"))
	f.refuse("an unknown challenge", intent("0b", "unknown"))
	f.follow(f.log.Result(3, store.Issued))
	f.refuse("a challenge of an issued certificate", intent("0b", "spent"))
}

func testChallenges(f *fixture) {
	const many = 1005
	for n := range many {
		c := Challenge(Digest(string(rune('a' + n))))
		if n%2 == 1 {
			c.Profile = "vpn"
		}
		f.log.Created(c)
	}
	f.follow(f.log.Lines...)
	all := slices.Clone(f.log.Lines)
	slices.Reverse(all)
	spent := Issuance("d", "0a")
	spent.Challenge = all[0].Record.Object.String("id")
	f.follow(f.log.Intent(spent), f.log.Revoked(all[1].Record.Object.String("id")))

	for _, c := range []struct {
		filter store.ChallengeFilter
		n      int
		newest int // in all
	}{
		{store.ChallengeFilter{}, 100, 0},
		{store.ChallengeFilter{Limit: 1}, 1, 0},
		{store.ChallengeFilter{Limit: 5000}, 1000, 0},
		{store.ChallengeFilter{Profile: "vpn", Limit: 1000}, many / 2, 1},
		{store.ChallengeFilter{State: challenge.Open, Limit: 1000}, 1000, 2},
		{store.ChallengeFilter{State: challenge.Spent}, 1, 0},
		{store.ChallengeFilter{State: challenge.Revoked}, 1, 1},
		{store.ChallengeFilter{State: challenge.Revoked, Profile: "wifi"}, 0, 0},
		{store.ChallengeFilter{State: "unheard of"}, 0, 0},
	} {
		list, err := f.ix.Challenges(f.ctx, c.filter)
		if err != nil || len(list) != c.n {
			f.Errorf("%+v: %d challenges, %v, want %d", c.filter, len(list), err, c.n)
		} else if c.n > 0 && list[0].ID != all[c.newest].Record.Object.String("id") {
			f.Errorf("%+v: begins with %s", c.filter, list[0].ID)
		}
	}
}
