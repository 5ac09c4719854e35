package storetest

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/policy/challenge"
)

// A model is an index in the plainest form: maps and loops over them.
type model struct {
	challenges map[string]challenge.Record
	issued     map[string]store.Issuance // all states, by serial
	pending    map[string]store.Pending  // all states, by request
	crls       map[string]store.CRL      // by issuer
}

func newModel() model {
	return model{map[string]challenge.Record{}, map[string]store.Issuance{}, map[string]store.Pending{}, map[string]store.CRL{}}
}

// clone returns a model that changes apart from m.
func (m model) clone() model {
	c := newModel()
	for k, v := range m.pending {
		c.pending[k] = v
	}
	for k, v := range m.challenges {
		c.challenges[k] = v
	}
	for k, v := range m.issued {
		c.issued[k] = v
	}
	for k, v := range m.crls {
		c.crls[k] = v
	}
	return c
}

// apply reports whether the line is one that an index follows.
func (m model) apply(l audit.Line) bool {
	changes, err := store.Changes(l)
	ok := err == nil
	for _, c := range changes {
		switch c := c.(type) {
		case store.ChallengeCreated:
			_, exists := m.challenges[c.Record.ID]
			ok = ok && !exists
			m.challenges[c.Record.ID] = c.Record
		case store.ChallengeRevoked:
			if r := m.challenges[c.ID]; r.State == challenge.Open {
				r.State = challenge.Revoked
				m.challenges[c.ID] = r
			}
		case store.ChallengeRefused:
			if r, exists := m.challenges[c.ID]; exists {
				r.Refusals++
				m.challenges[c.ID] = r
			}
		case store.Intent:
			ok = m.intend(c) && ok
		case store.PendingAdded:
			_, exists := m.pending[c.Pending.Request]
			ok = m.spend(c.Pending.Challenge, c.Pending.Seq, c.Pending.Request) && !exists && ok
			m.pending[c.Pending.Request] = c.Pending
		case store.PendingDenied:
			p := m.pending[c.Request]
			ok = p.State == store.Waiting && ok
			p.State, p.DeniedSeq, p.Why = store.Denied, c.Seq, c.Why
			m.pending[c.Request] = p
		case store.Result:
			ok = ok && m.close(c)
		case store.RevocationDue:
			i, exists := m.issued[c.Serial]
			ok = ok && exists
			if !i.RevocationDue {
				i.RevocationDue, i.Reason, i.RevokedAt = true, c.Reason, c.At
			}
			m.issued[c.Serial] = i
			m.free(i)
		case store.CRLIntent:
			ok = ok && c.CRL.Number > m.crls[c.CRL.Issuer].Number
			m.crls[c.CRL.Issuer] = c.CRL
		case store.CRLIssued:
			m.sign(c)
		}
	}
	return ok
}

func (m model) intend(c store.Intent) bool {
	i := c.Issuance
	if _, exists := m.issued[i.Serial]; exists {
		return false
	}
	m.issued[i.Serial] = i
	if c.Pending != "" {
		p := m.pending[c.Pending]
		if p.State != store.Waiting {
			return false
		}
		p.State, p.Serial = store.Approved, i.Serial
		m.pending[c.Pending] = p
	}
	return m.spend(i.Challenge, i.IntentSeq, i.Lineage)
}

func (m model) spend(id string, seq uint64, lineage string) bool {
	if id == "" {
		return true
	}
	r := m.challenges[id]
	open := r.State == challenge.Open
	r.State, r.SpentBy, r.Lineage = challenge.Spent, seq, lineage
	m.challenges[id] = r
	return open
}

// answered says what a result is to the request that was approved.
func (m model) answered(i store.Issuance) {
	for id, p := range m.pending {
		if p.Serial != i.Serial || p.State != store.Approved {
			continue
		}
		if p.State = store.Waiting; i.State == store.Issued {
			p.State = store.Granted
		}
		m.pending[id] = p
	}
}

func (m model) close(c store.Result) bool {
	for _, i := range m.issued {
		if i.IntentSeq == c.IntentSeq && i.State == store.Intended {
			i.State, i.ResultSeq, i.Certificate = c.State, c.Seq, c.Certificate
			m.issued[i.Serial] = i
			m.free(i)
			m.answered(i)
			return true
		}
	}
	return false
}

func (m model) free(i store.Issuance) {
	if i.State != store.Failed && (i.State != store.Unknown || !i.RevocationDue) {
		return
	}
	if r := m.challenges[i.Challenge]; r.State == challenge.Spent && r.SpentBy == i.IntentSeq {
		r.State, r.SpentBy, r.Lineage = challenge.Open, 0, ""
		m.challenges[i.Challenge] = r
	}
}

// sorted returns the issuances that are wanted, in the order of their intents.
func (m model) sorted(want func(store.Issuance) bool) []store.Issuance {
	var out []store.Issuance
	for _, i := range m.issued {
		if want(i) {
			out = append(out, i)
		}
	}
	slices.SortFunc(out, func(a, b store.Issuance) int { return int(a.IntentSeq) - int(b.IntentSeq) })
	return out
}

func valid(i store.Issuance) bool { return i.State == store.Issued || i.State == store.Intended }

// The names of a life cycle are few, so that lines meet.
const (
	devices = 3
	ids     = 4
)

// testModel draws logs, most of whose lines make sense, in batches of any size.
func testModel(t *testing.T, open Opener) {
	rapid.Check(t, func(rt *rapid.T) {
		f := &fixture{TB: t, ctx: t.Context(), open: open, log: NewLog(t), ix: open(t, tempDir(rt))}
		defer f.close()
		m := newModel()
		for range rapid.IntRange(1, 12).Draw(rt, "batches") {
			m = f.draw(rt, m)
			if diff := m.compare(f); diff != "" {
				rt.Fatalf("after %d lines: %s", len(f.log.Lines), diff)
			}
		}
		rebuilt := &fixture{TB: t, ctx: t.Context(), ix: open(t, tempDir(rt))}
		defer rebuilt.close()
		rebuilt.follow(f.log.Lines...)
		if diff := cmp.Diff(f.dump(), rebuilt.dump()); diff != "" {
			rt.Fatalf("rebuilt:\n%s", diff)
		}
	})
}

// draw feeds one batch and returns the model after it: m itself if a line of it
// was one to be refused.
func (f *fixture) draw(rt *rapid.T, m model) model {
	after, good, mark, from := m.clone(), true, f.log.at, len(f.log.Lines)
	for range rapid.IntRange(1, 5).Draw(rt, "lines") {
		good = after.apply(f.line(rt, after)) && good
	}
	err := f.ix.Follow(f.ctx, f.log.Lines[from:])
	if (err == nil) != good {
		rt.Fatalf("a batch that is good, %v: %v", good, err)
	}
	if !good {
		f.log.back(mark)
		return m
	}
	return after
}

// line draws the next line.
func (f *fixture) line(rt *rapid.T, m model) audit.Line {
	id := fmt.Sprintf("c%d", rapid.IntRange(0, ids-1).Draw(rt, "challenge"))
	all := m.sorted(func(store.Issuance) bool { return true })
	some := store.Issuance{Serial: "ffff", IntentSeq: 1 << 40}
	if len(all) > 0 {
		some = rapid.SampledFrom(all).Draw(rt, "issuance")
	}
	switch rapid.IntRange(0, 16).Draw(rt, "kind") {
	case 0, 1:
		return f.log.Created(Challenge(id))
	case 2:
		return f.log.Revoked(id)
	case 3:
		return f.log.Refused(id)
	case 4, 5:
		i := Issuance(fmt.Sprintf("d%d", rapid.IntRange(1, devices).Draw(rt, "device")), fmt.Sprintf("%04x", f.log.Next()))
		i.CSR = Digest(i.Subject)
		i.Transaction = rapid.SampledFrom([]string{"t1", "t2"}).Draw(rt, "transaction")
		i.Profile = rapid.SampledFrom([]string{"wifi", "vpn", store.ServerProfile}).Draw(rt, "profile")
		if r := m.challenges[id]; r.State == challenge.Open || rapid.IntRange(0, 9).Draw(rt, "spend what is not open") == 0 {
			i.Challenge = id
		}
		return f.log.Intent(i)
	case 6:
		return f.log.Intent(Renewal(some, fmt.Sprintf("%04x", f.log.Next()))) // whatever became of some
	case 7:
		return f.log.Due(some.Serial)
	case 10, 11, 12:
		return f.waitingLine(rt, m, id)
	case 13, 14, 15:
		return f.statusLine(rt, some.Serial)
	default:
		if open := m.sorted(func(i store.Issuance) bool { return i.State == store.Intended }); len(open) > 0 {
			some = rapid.SampledFrom(open).Draw(rt, "open intent")
		}
		return f.log.Result(some.IntentSeq, rapid.SampledFrom([]store.State{store.Issued, store.Failed, store.Unknown}).Draw(rt, "result"))
	}
}

// waitingLine draws a line of a request that waits.
func (f *fixture) waitingLine(rt *rapid.T, m model, challengeID string) audit.Line {
	request := fmt.Sprintf("r%d", rapid.IntRange(0, ids-1).Draw(rt, "request"))
	device := fmt.Sprintf("d%d", rapid.IntRange(1, devices).Draw(rt, "device"))
	_, exists := m.pending[request]
	switch {
	case !exists || rapid.IntRange(0, 9).Draw(rt, "request twice") == 0:
		p := Pending(device, request)
		if m.challenges[challengeID].State == challenge.Open {
			p.Challenge = challengeID
		}
		return f.log.Pending(p)
	case rapid.IntRange(0, 3).Draw(rt, "deny") == 0:
		return f.log.Denied(request)
	default:
		return f.log.Approved(Issuance(device, fmt.Sprintf("%04x", f.log.Next())), request)
	}
}

// comparePending returns what the index says otherwise of requests that wait.
func (m model) comparePending(f *fixture) string {
	waiting := map[string]int64{}
	for id, want := range m.pending {
		got, err := f.ix.Pending(f.ctx, id)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			return fmt.Sprintf("request %s: %v\n%s", id, err, diff)
		}
		if want.State == store.Waiting {
			waiting[want.Profile]++
		}
	}
	list, err := f.ix.PendingList(f.ctx, store.PendingFilter{Limit: 1000})
	if err != nil || len(list) != len(m.pending) {
		return fmt.Sprintf("PendingList: %d, %v, want %d", len(list), err, len(m.pending))
	}
	if n, err := f.ix.PendingCount(f.ctx, "wifi", Day()); err != nil || n != waiting["wifi"] {
		return fmt.Sprintf("PendingCount: %d, %v, want %d", n, err, waiting["wifi"])
	}
	return ""
}

// compare returns what the index says otherwise than the model.
func (m model) compare(f *fixture) string {
	for id, want := range m.challenges {
		got, err := f.ix.ByTag(f.ctx, want.Tag)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			return fmt.Sprintf("challenge %s: %v\n%s", id, err, diff)
		}
	}
	for serial, want := range m.issued {
		got, err := f.ix.Certificate(f.ctx, serial)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			return fmt.Sprintf("serial %s: %v\n%s", serial, err, diff)
		}
		if diff := m.compareReads(f, want); diff != "" {
			return fmt.Sprintf("as serial %s asks: %s", serial, diff)
		}
	}
	if diff := m.compareStatus(f) + m.comparePending(f); diff != "" {
		return diff
	}
	all := m.sorted(func(store.Issuance) bool { return true })
	slices.Reverse(all)
	got, err := f.ix.Certificates(f.ctx, store.CertificateFilter{Limit: 1000})
	if diff := cmp.Diff(all, got); err != nil || diff != "" {
		return fmt.Sprintf("Certificates: %v\n%s", err, diff)
	}
	got, err = f.ix.OpenIntents(f.ctx)
	want := m.sorted(func(i store.Issuance) bool { return i.State == store.Intended })
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		return fmt.Sprintf("OpenIntents: %v\n%s", err, diff)
	}
	if n, err := f.ix.Next(f.ctx); err != nil || n != f.log.Next() {
		return fmt.Sprintf("Next: %d, %v, want %d", n, err, f.log.Next())
	}
	return ""
}

// compareReads asks what an enrollment like i would ask.
func (m model) compareReads(f *fixture, i store.Issuance) string {
	last := func(what string, got store.Issuance, err error, like func(store.Issuance) bool) string {
		list := m.sorted(func(o store.Issuance) bool { return o.State == store.Issued && like(o) })
		if len(list) == 0 {
			if errors.Is(err, store.ErrNotFound) {
				return ""
			}
			return fmt.Sprintf("%s: %s, %v, want ErrNotFound", what, got.Serial, err)
		}
		if diff := cmp.Diff(list[len(list)-1], got); err != nil || diff != "" {
			return fmt.Sprintf("%s: %v\n%s", what, err, diff)
		}
		return ""
	}
	renewal := func(o store.Issuance) bool {
		return o.Issuer == i.Issuer && o.Profile == i.Profile && o.Signer == i.Signer && o.CSR == i.CSR
	}
	got, err := f.ix.RenewalOf(f.ctx, i.Issuer, i.Profile, i.Signer, i.CSR)
	if diff := last("RenewalOf", got, err, renewal); diff != "" {
		return diff
	}
	got, err = f.ix.Transaction(f.ctx, i.Issuer, i.Profile, i.Transaction, i.Signer, i.CSR)
	if diff := last("Transaction", got, err, func(o store.Issuance) bool { return renewal(o) && o.Transaction == i.Transaction }); diff != "" {
		return diff
	}
	generation := int64(-1)
	for _, o := range m.sorted(func(o store.Issuance) bool { return valid(o) && o.Lineage == i.Lineage }) {
		generation = max(generation, o.Generation)
	}
	if n, err := f.ix.LineageRenewals(f.ctx, i.Lineage); n != generation || (err != nil) != (n < 0) {
		return fmt.Sprintf("LineageRenewals: %d, %v, want %d", n, err, generation)
	}
	except, now := i.Predecessor, Day().Add(time.Hour)
	for _, names := range []string{i.Names, Digest("names of d1")} {
		want := store.Used{KeyByOther: len(m.sorted(func(o store.Issuance) bool {
			return valid(o) && o.SPKI == i.SPKI && o.Names != names && o.Profile != store.ServerProfile
		})) > 0}
		want.Active = int64(len(m.sorted(func(o store.Issuance) bool {
			return valid(o) && o.Profile == i.Profile && o.Names == names && o.Serial != except && !o.RevocationDue && o.NotAfter.After(now) && !m.renewed(o)
		})))
		got, err := f.ix.InUse(f.ctx, store.Use{Profile: i.Profile, Names: names, SPKI: i.SPKI, Except: except, Now: now})
		if err != nil || got != want {
			return fmt.Sprintf("InUse: %+v, %v, want %+v", got, err, want)
		}
	}
	return ""
}

// renewed reports whether the certificate has a successor in its lineage.
func (m model) renewed(o store.Issuance) bool {
	return len(m.sorted(func(s store.Issuance) bool { return valid(s) && s.Lineage == o.Lineage && s.Predecessor == o.Serial })) > 0
}
