package listen

import (
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func prefix(n int) netip.Prefix {
	ip := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
	p, _ := ip.Prefix(64)
	return p
}

// A flood of sources is forgotten, not kept.
func TestTheTableOfSourcesIsBounded(t *testing.T) {
	r, at := newRates(10, 20, 100), time.Unix(1, 0)
	for n := range 100_000 {
		if !r.allow(prefix(n), at) {
			t.Fatalf("source %d is refused its first connection", n)
		}
		if len(r.now) > 100 || len(r.before) > 100 {
			t.Fatalf("%d and %d entries", len(r.now), len(r.before))
		}
		at = at.Add(time.Microsecond)
	}
}

// Whatever comes when, a source never has more than its burst and its rate, and
// always has its rate.
func TestRatesOfFewSourcesAreExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		perSecond, burst := rapid.IntRange(1, 50).Draw(t, "rate"), rapid.IntRange(1, 50).Draw(t, "burst")
		r, at := newRates(perSecond, burst, 64), time.Unix(1, 0)
		full := map[int]float64{} // the bucket of a model
		seen := map[int]time.Time{}
		for range rapid.IntRange(1, 400).Draw(t, "n") {
			at = at.Add(time.Duration(rapid.IntRange(0, 3000).Draw(t, "ms")) * time.Millisecond / time.Duration(rapid.SampledFrom([]int{1, 50}).Draw(t, "pace")))
			who := rapid.IntRange(0, 3).Draw(t, "who")
			if _, ok := seen[who]; !ok {
				full[who], seen[who] = float64(burst), at
			}
			full[who] = min(float64(burst), full[who]+at.Sub(seen[who]).Seconds()*float64(perSecond))
			seen[who] = at
			got := r.allow(prefix(who), at)
			const hair = 1e-5 // the interval is whole nanoseconds
			if got && full[who] < 1-hair || !got && full[who] >= 1+hair {
				t.Fatalf("allow %v with %v in the bucket of %d", got, full[who], who)
			}
			if got {
				full[who]--
			}
		}
	})
}
