// Package storetest holds the contract of a state index: what passes [Run] may
// take the place of what else does.
//
// # What a caller may rely on
//
// The suite makes real log lines, in a real chain, and looks at an index through
// its reads alone. It checks each effect that appliance/store gives a line, that a
// batch has all of its effects or none, and that the state depends on the lines and
// on nothing else: not on the batches, on a restart or on who parsed them.
//
// # What it does not protect against
//
// It measures nothing, and does not break the index's storage: each kind of index
// tests that for itself.
package storetest

import (
	"bytes"
	"context"
	"io"
	"os"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/policy/challenge"
)

// Index is what the suite asks of an index: all that the appliance uses.
type Index interface {
	audit.Follower
	challenge.Store
	Challenge(ctx context.Context, id string) (challenge.Record, error)
	Challenges(ctx context.Context, f store.ChallengeFilter) ([]challenge.Record, error)
	Certificate(ctx context.Context, serial string) (store.Issuance, error)
	Certificates(ctx context.Context, f store.CertificateFilter) ([]store.Issuance, error)
	Transaction(ctx context.Context, issuer, profile, transaction, signer, csr string) (store.Issuance, error)
	RenewalOf(ctx context.Context, issuer, profile, signer, csr string) (store.Issuance, error)
	LineageRenewals(ctx context.Context, lineage string) (int64, error)
	InUse(ctx context.Context, u store.Use) (store.Used, error)
	Revocations(ctx context.Context, issuer string, ends time.Time) ([]store.Revocation, error)
	Serials(ctx context.Context, issuer, after string, ends time.Time, limit int) ([]string, error)
	CRL(ctx context.Context, issuer string) (store.CRL, error)
	OpenIntents(ctx context.Context) ([]store.Issuance, error)
	CurrentCAs(ctx context.Context) (map[string]store.CurrentCA, error)
	CountCAs(ctx context.Context, now time.Time) ([]store.CACount, error)
	Fetches(ctx context.Context, profile, generation string, limit int) ([]store.Fetch, int64, error)
	Fetched(ctx context.Context, profile, generation, source string) (time.Time, error)
	Pending(ctx context.Context, request string) (store.Pending, error)
	PendingOf(ctx context.Context, profile, transaction, signer string) (store.Pending, error)
	DeniedBefore(ctx context.Context, profile, signer, csr string) (store.Pending, error)
	PendingCount(ctx context.Context, profile string, now time.Time) (int64, error)
	PendingList(ctx context.Context, f store.PendingFilter) ([]store.Pending, error)
	Polled(ctx context.Context, profile, transaction, signer, spki, predecessor string) (store.Issuance, error)
	Untold(ctx context.Context, serial string) (store.Notice, error)
	UntoldBefore(ctx context.Context, then time.Time) ([]store.Notice, error)
	Dump(ctx context.Context, w io.Writer) error
	Close() error
}

// An Opener opens the index that is kept in dir, and makes an empty one the first
// time. The suite closes what it opens.
type Opener func(t testing.TB, dir string) Index

// Run checks the indexes that open opens against the contract.
func Run(t *testing.T, open Opener) {
	for _, c := range []struct {
		property string
		test     func(*fixture)
	}{
		{"an empty index knows nothing", testEmpty},
		{"a challenge is found as it was created", testCreated},
		{"a challenge is created once", testCreatedOnce},
		{"a revocation closes an open challenge alone", testRevoked},
		{"each refusal is counted", testRefused},
		{"an intent is found as it was recorded, and spends its challenge", testIntent},
		{"a challenge that is not open is not spent", testNotOpen},
		{"a serial is used once", testSerialOnce},
		{"an issued certificate keeps its challenge spent", testIssued},
		{"a failed intent frees its challenge", testFailed},
		{"an unknown outcome frees the challenge once the serial is to be revoked", testUnknown},
		{"a challenge is not taken from who spent it next", testNotTaken},
		{"an intent has one result", testOneResult},
		{"a revocation of nothing is refused", testDueOfNothing},
		{"the first revocation stands", testRevokedOnce},
		{"revocations are of an issuer, by serial, until they end", testRevocations},
		{"serials of an issuer come in order", testSerials},
		{"the newest CRL of an issuer is known", testCRL},
		{"a CRL's number only grows", testCRLNumber},
		{"a transaction is the newest certificate for exactly these", testTransaction},
		{"a renewal is found by signer and CSR", testRenewalOf},
		{"a lineage counts what is or may be issued", testLineage},
		{"active certificates are counted", testCountActive},
		{"a renewed certificate is not counted", testCountRenewed},
		{"a key of other names is found", testKeyUsed},
		{"open intents come in order", testOpenIntents},
		{"a request that waits is found as it was recorded, and spends its challenge", testPending},
		{"a request is decided once", testDecidedOnce},
		{"an approval that was not signed leaves the request waiting", testUnsigned},
		{"a denial is remembered for the signer and the CSR", testDenied},
		{"the newest request of a transaction is found", testPendingOf},
		{"requests that wait are counted and listed", testPendingList},
		{"a poll finds the newest certificate of its transaction", testPolled},
		{"what a validator has to hear of is known until it has", testNotices},
		{"certificates are listed newest first", testCertificates},
		{"challenges are listed newest first", testChallenges},
		{"the newest switch of an issuer stands", testSwitched},
		{"who was given the next CA is counted by address", testFetches},
		{"living certificates are counted and listed by CA", testCountCAs},
		{"lines without effect count", testNoEffect},
		{"a batch that fails leaves nothing", testAtomic},
		{"only the next line is taken", testGap},
		{"a line has to continue the chain", testChain},
		{"a line of ours that lacks something is refused", testLacking},
		{"a restart forgets nothing", testReopen},
		{"what is durable is followed after a cancellation", testCanceled},
		{"reads go on beside batches", testConcurrent},
	} {
		t.Run(c.property, func(t *testing.T) { c.test(newFixture(t, open)) })
	}
	t.Run("a rebuild gives the same state", func(t *testing.T) { testRebuild(t, open) })
	t.Run("any life cycle is as the model says", func(t *testing.T) { testModel(t, open) })
}

// A fixture is one index and the log that it follows.
type fixture struct {
	testing.TB
	ctx  context.Context
	open Opener
	dir  string
	ix   Index
	log  *Log
}

func newFixture(t testing.TB, open Opener) *fixture {
	f := &fixture{TB: t, ctx: t.Context(), open: open, dir: t.TempDir(), log: NewLog(t)}
	f.ix = open(t, f.dir)
	t.Cleanup(func() { f.close() })
	return f
}

func (f *fixture) close() {
	f.Helper()
	if err := f.ix.Close(); err != nil {
		f.Errorf("Close: %v", err)
	}
}

// follow feeds the lines, as one batch.
func (f *fixture) follow(lines ...audit.Line) {
	f.Helper()
	if err := f.ix.Follow(f.ctx, lines); err != nil {
		f.Fatalf("Follow: %v", err)
	}
}

// refuse makes a line and checks that the index refuses it, and that nothing of
// its batch stays. The log goes on without it.
func (f *fixture) refuse(why string, line func(l *Log) audit.Line) {
	f.Helper()
	before, mark := f.dump(), f.log.at
	batch := []audit.Line{f.log.Other(), f.log.Created(Challenge("of a refused batch")), line(f.log)}
	if err := f.ix.Follow(f.ctx, batch); err == nil {
		f.Errorf("%s: was followed", why)
	}
	f.log.back(mark)
	if after := f.dump(); after != before {
		f.Errorf("%s: the batch was refused, but left\n%s\nin place of\n%s", why, after, before)
	}
}

func (f *fixture) dump() string {
	f.Helper()
	var b bytes.Buffer
	if err := f.ix.Dump(f.ctx, &b); err != nil {
		f.Fatalf("Dump: %v", err)
	}
	return b.String()
}

func (f *fixture) next(want uint64) {
	f.Helper()
	if n, err := f.ix.Next(f.ctx); err != nil || n != want {
		f.Errorf("Next: %d, %v, want %d", n, err, want)
	}
}

func (f *fixture) challenge(id string) challenge.Record {
	f.Helper()
	r, err := f.ix.Challenge(f.ctx, id)
	if err != nil {
		f.Fatalf("Challenge(%q): %v", id, err)
	}
	return r
}

// state checks where a challenge stands, and who spent it.
func (f *fixture) state(id string, want challenge.State, spentBy uint64, lineage string) {
	f.Helper()
	r := f.challenge(id)
	if r.State != want || r.SpentBy != spentBy || r.Lineage != lineage {
		f.Errorf("challenge %s is %s, spent by %d for %q; want %s, %d, %q", id, r.State, r.SpentBy, r.Lineage, want, spentBy, lineage)
	}
}

func (f *fixture) certificate(serial string) store.Issuance {
	f.Helper()
	i, err := f.ix.Certificate(f.ctx, serial)
	if err != nil {
		f.Fatalf("Certificate(%q): %v", serial, err)
	}
	return i
}

// tempDir is the folder of one index of one case: the test has thousands.
func tempDir(rt *rapid.T) string {
	dir, err := os.MkdirTemp("", "storetest")
	if err != nil {
		rt.Fatal(err)
	}
	rt.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
