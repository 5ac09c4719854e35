package challenge_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"pgregory.net/rapid"

	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/policy/challenge"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// memory is a store that a test can change between two look-ups.
type memory struct {
	mu    sync.Mutex
	asked func(n int) // before the version is told for the nth time
	times int
	v     uint64
	byTag map[[32]byte]challenge.Record
	err   error
}

func (m *memory) ByTag(_ context.Context, tag [32]byte) (challenge.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return challenge.Record{}, m.err
	}
	r, ok := m.byTag[tag]
	if !ok {
		return challenge.Record{}, fmt.Errorf("memory: %w", challenge.ErrUnknown)
	}
	return r, nil
}

func (m *memory) Version() uint64 {
	if m.asked != nil {
		m.times++
		m.asked(m.times)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.v
}

func (m *memory) change(tag [32]byte, f func(*challenge.Record)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.byTag[tag]
	f(&r)
	m.byTag[tag] = r
	m.v++
}

type fixture struct {
	store   *memory
	service *challenge.Service
	holds   *challenge.Holds
	now     time.Time
	tag     [32]byte
	claim   challenge.Claim
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	tagger, err := challenge.NewTagger(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{now: start, store: &memory{byTag: map[[32]byte]challenge.Record{}}}
	secret := challenge.New()
	names := policy.Names{Subject: []policy.Attribute{{Name: "CN", Value: "a"}}, DNS: []string{"a.example"}}
	f.tag = tagger.Tag(secret)
	f.store.byTag[f.tag] = challenge.Record{ID: "c1", Profile: "demo", Names: names, Tag: f.tag, Created: start, Expires: start.Add(time.Hour), State: challenge.Open}
	f.holds = challenge.NewHolds(func() time.Time { return f.now })
	f.service = challenge.NewService(f.store, tagger, f.holds)
	f.claim = challenge.Claim{Profile: "demo", Secret: secret, Names: names, Request: [32]byte{1}, Now: start}
	return f
}

func TestCheckSaysWhyInOrder(t *testing.T) {
	spend := func(r *challenge.Record) { r.State, r.Lineage, r.SpentBy = challenge.Spent, "l1", 9 }
	for name, tt := range map[string]struct {
		record func(*challenge.Record)
		claim  func(*fixture)
		why    challenge.Why
	}{
		"an open challenge":            {nil, nil, ""},
		"names in another case":        {nil, func(f *fixture) { f.claim.Names.DNS = []string{"A.EXAMPLE"} }, ""},
		"another secret":               {nil, func(f *fixture) { f.claim.Secret = challenge.New() }, challenge.WhyUnknown},
		"no secret":                    {nil, func(f *fixture) { f.claim.Secret = challenge.SecretOf([]byte("hunter2")) }, challenge.WhyUnknown},
		"revoked":                      {func(r *challenge.Record) { r.State = challenge.Revoked }, nil, challenge.WhyRevoked},
		"refused five times":           {func(r *challenge.Record) { r.Refusals = challenge.MaxRefusals }, nil, challenge.WhyRevoked},
		"refused four times":           {func(r *challenge.Record) { r.Refusals = challenge.MaxRefusals - 1 }, nil, ""},
		"a state that nobody knows":    {func(r *challenge.Record) { r.State = "paused" }, nil, challenge.WhyRevoked},
		"spent":                        {spend, nil, challenge.WhySpent},
		"spent comes before expired":   {spend, func(f *fixture) { f.claim.Now = start.Add(2 * time.Hour) }, challenge.WhySpent},
		"expired in this very second":  {nil, func(f *fixture) { f.claim.Now = start.Add(time.Hour) }, challenge.WhyExpired},
		"expired comes before profile": {nil, func(f *fixture) { f.claim.Now, f.claim.Profile = start.Add(time.Hour), "x" }, challenge.WhyExpired},
		"another profile":              {nil, func(f *fixture) { f.claim.Profile, f.claim.Names = "interop", policy.Names{} }, challenge.WhyOtherProfile},
		"a name less":                  {nil, func(f *fixture) { f.claim.Names.DNS = nil }, challenge.WhyOtherNames},
		"a name more":                  {nil, func(f *fixture) { f.claim.Names.IP = []string{"10.0.0.1"} }, challenge.WhyOtherNames},
		"another subject": {nil, func(f *fixture) { f.claim.Names.Subject = []policy.Attribute{{Name: "CN", Value: "b"}} },
			challenge.WhyOtherNames},
		"held":                {nil, func(f *fixture) { _ = f.holds.Hold("c1", [32]byte{2}, start.Add(time.Minute)) }, challenge.WhyHeld},
		"held by the same":    {nil, func(f *fixture) { _ = f.holds.Hold("c1", f.claim.Request, start.Add(time.Minute)) }, challenge.WhyHeld},
		"a tag that is other": {func(r *challenge.Record) { r.Tag[0] ^= 1 }, nil, challenge.WhyUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			if tt.record != nil {
				f.store.change(f.tag, tt.record)
			}
			if tt.claim != nil {
				tt.claim(f)
			}
			g, err := f.service.Check(t.Context(), f.claim)
			if tt.why == "" {
				if err != nil || g.ID != "c1" || !g.Expires.After(start) {
					t.Fatalf("%+v, %v", g, err)
				}
				return
			}
			r, ok := errors.AsType[*challenge.Refusal](err)
			if !ok || r.Why != tt.why || (r.ID == "") != (tt.why == challenge.WhyUnknown) || (r.Lineage == "l1") != (tt.why == challenge.WhySpent) {
				t.Errorf("%+v, want %s", err, tt.why)
			}
		})
	}
}

// The record was open when it was read, and its holder spent it before the hold
// was ours.
func TestAChallengeSpentBehindTheLookUpIsRefused(t *testing.T) {
	f := newFixture(t)
	f.store.asked = func(n int) {
		if n == 2 { // after the look-up and the hold
			f.store.change(f.tag, func(r *challenge.Record) { r.State = challenge.Spent })
		}
	}
	_, err := f.service.Check(t.Context(), f.claim)
	if r, ok := errors.AsType[*challenge.Refusal](err); !ok || r.Why != challenge.WhySpent {
		t.Fatalf("%v", err)
	}
	if err := f.holds.Hold("c1", [32]byte{2}, start.Add(time.Minute)); err != nil {
		t.Errorf("the refused claim still holds: %v", err)
	}
}

func TestAStoreThatFailsIsNoRefusal(t *testing.T) {
	f := newFixture(t)
	f.store.err = errors.New("disk")
	_, err := f.service.Check(t.Context(), f.claim)
	if _, ok := errors.AsType[*challenge.Refusal](err); ok || !errors.Is(err, f.store.err) {
		t.Errorf("%v", err)
	}
}

func TestOneOf64HoldsAndItsEndFrees(t *testing.T) {
	f := newFixture(t)
	var granted atomic.Int64
	var grant atomic.Pointer[challenge.Grant]
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			c := f.claim
			c.Request = [32]byte{byte(i % 8)} // some are the same request
			if g, err := f.service.Check(context.Background(), c); err == nil {
				granted.Add(1)
				grant.Store(&g)
			}
		})
	}
	wg.Wait()
	if granted.Load() != 1 {
		t.Fatalf("%d of 64 hold the challenge", granted.Load())
	}
	f.service.Release(challenge.Grant{})
	f.service.Release(challenge.Grant{ID: "c1", Request: [32]byte{99}})
	if _, err := f.service.Check(t.Context(), f.claim); err == nil {
		t.Fatal("somebody else's release freed it")
	}
	f.service.Release(*grant.Load())
	if _, err := f.service.Check(t.Context(), f.claim); err != nil {
		t.Errorf("after the release: %v", err)
	}
}

func TestHoldsEndByThemselvesAndAreBounded(t *testing.T) {
	now := start
	h := challenge.NewHolds(func() time.Time { return now })
	for i := range 100_000 {
		if err := h.Hold(fmt.Sprint(i), [32]byte{}, start.Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Hold("more", [32]byte{}, start.Add(time.Minute)); !errors.Is(err, challenge.ErrFull) {
		t.Errorf("one too many: %v", err)
	}
	now = start.Add(time.Minute)
	if err := h.Hold("more", [32]byte{}, now.Add(time.Minute)); err != nil {
		t.Errorf("after the others ended: %v", err)
	}
	if err := h.Hold("more", [32]byte{1}, now.Add(time.Minute)); !errors.Is(err, challenge.ErrHeld) {
		t.Errorf("held: %v", err)
	}
}

func TestASecretCanNotBePrinted(t *testing.T) {
	s := challenge.New()
	tagger, err := challenge.NewTagger(bytes.Repeat([]byte("k"), 32))
	if err != nil {
		t.Fatal(err)
	}
	type inside struct {
		s      challenge.Secret
		Shown  challenge.Secret
		Many   []challenge.Secret
		tagger *challenge.Tagger
	}
	v := inside{s, s, []challenge.Secret{s}, tagger}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c", "%p"} {
		for _, x := range []any{s, &s, v, &v, []any{s}, map[string]any{"s": s}, challenge.Claim{Secret: s}, tagger, *tagger} {
			fmt.Fprintf(&out, verb, x)
		}
	}
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(text)
	core := zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(&out), zap.DebugLevel)
	zap.New(core).Info("x", zap.Any("secret", s), zap.Stringer("s", s), zap.Any("claim", challenge.Claim{Secret: s}), zap.Any("tagger", tagger))
	b := s.Bytes()
	for _, clear := range []string{s.Text(), string(b), hex.EncodeToString(b), strings.ToUpper(hex.EncodeToString(b)), fmt.Sprintf("%d", b), fmt.Sprintf("%#v", [16]byte(b)), fmt.Sprintf("%#v", b)[7:20], "kkkk", "107 107", "6b6b"} {
		if strings.Contains(out.String(), clear) {
			t.Errorf("found %q in what was printed", clear)
		}
	}
}

// Covers: S-106
func TestSecretForms(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "bytes")
		s, err := challenge.ParseSecret([]byte(hex.EncodeToString(b)))
		if err != nil || !bytes.Equal(s.Bytes(), b) {
			t.Fatal(err)
		}
		for _, text := range []string{s.Text(), strings.ToUpper(s.Text()), strings.NewReplacer("0", "o", "1", "L").Replace(s.Text())} {
			again, err := challenge.ParseSecret([]byte(text))
			if err != nil || !bytes.Equal(again.Bytes(), b) || len(text) != 26 {
				t.Fatalf("%q: %v", text, err)
			}
		}
	})
	for name, text := range map[string]string{
		"nothing": "", "25 characters": strings.Repeat("0", 25), "27 characters": strings.Repeat("0", 27), "a u": strings.Repeat("u", 26),
		"129 bits": "8" + strings.Repeat("0", 25), "hex and more": strings.Repeat("0", 31) + "g", "a newline": strings.Repeat("0", 25) + "\n",
	} {
		if _, err := challenge.ParseSecret([]byte(text)); !errors.Is(err, challenge.ErrSecret) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if a, b := challenge.New(), challenge.New(); a.Text() == b.Text() {
		t.Error("the same secret twice")
	}
}

func TestTags(t *testing.T) {
	a, err := challenge.NewTagger(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	b, err := challenge.NewTagger(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	s := challenge.New()
	copied, err := challenge.ParseSecret([]byte(s.Text()))
	if err != nil || a.Tag(s) != a.Tag(copied) || a.Tag(s) == b.Tag(s) || a.Tag(s) == a.Tag(challenge.New()) {
		t.Error("a tag depends on the key and the secret, and on nothing else")
	}
	if _, err := challenge.NewTagger(make([]byte, 31)); !errors.Is(err, challenge.ErrKey) {
		t.Errorf("a short key: %v", err)
	}
}

// FuzzParseSecret checks that what is read is one secret with one text.
func FuzzParseSecret(f *testing.F) {
	f.Add([]byte("7zzzzzzzzzzzzzzzzzzzzzzzzz"))
	f.Add([]byte("00112233445566778899aabbccddeeff"))
	f.Add([]byte("OIL0000000000000000000000u"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := challenge.ParseSecret(text)
		if err != nil {
			return
		}
		again, err := challenge.ParseSecret([]byte(s.Text()))
		if err != nil || !bytes.Equal(again.Bytes(), s.Bytes()) {
			t.Errorf("%q reads back otherwise (%v)", text, err)
		}
	})
}
