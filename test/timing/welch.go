package main

import (
	"fmt"
	"io"
	"math"
	"slices"
)

// A sample is what is known of a class's times.
type sample struct {
	n              int
	mean, variance float64
}

func sampleOf(x []float64) (s sample) {
	s.n = len(x)
	for _, v := range x {
		s.mean += v / float64(s.n)
	}
	for _, v := range x {
		s.variance += (v - s.mean) * (v - s.mean) / float64(s.n-1)
	}
	return s
}

// welch is Welch's t of two samples of unequal variances, without its sign.
func welch(a, b sample) float64 {
	if a.n < 2 || b.n < 2 {
		return 0 // there is no variance
	}
	spread := math.Sqrt(a.variance/float64(a.n) + b.variance/float64(b.n))
	if spread == 0 {
		if a.mean == b.mean {
			return 0
		}
		return math.Inf(1)
	}
	return math.Abs(a.mean-b.mean) / spread
}

// report prints what was measured, and returns the largest t.
func report(out io.Writer, classes []*class) (worst float64) {
	limits := limitsOf(classes)
	_, _ = fmt.Fprintf(out, "%-36s %6s %10s %10s %10s %10s %8s\n", "", "n", "mean", "deviation", "median", "p99", "> 50 ms")
	for i, c := range classes {
		s := sampleOf(c.took)
		sorted := slices.Sorted(slices.Values(c.took))
		at := func(q float64) float64 { return sorted[int(q*float64(len(sorted)-1))] * 1e3 }
		late := len(sorted) - slices.IndexFunc(append(slices.Clone(sorted), math.Inf(1)), func(v float64) bool { return v > 0.075 })
		_, _ = fmt.Fprintf(out, "%2d %-33s %6d %7.3f ms %7.3f ms %7.3f ms %7.3f ms %8d\n", i+1, c.name, s.n, s.mean*1e3, math.Sqrt(s.variance)*1e3, at(0.5), at(0.99), max(0, late))
	}
	_, _ = fmt.Fprintf(out, "\nWelch's t of each pair, the largest of all answers, the fastest 90 %% and the fastest half; below %.1f nobody tells two classes apart:\n   ", told)
	for i := range classes {
		_, _ = fmt.Fprintf(out, "%7d", i+1)
	}
	at := make([]float64, len(parts()))
	for i, a := range classes {
		_, _ = fmt.Fprintf(out, "\n%2d ", i+1)
		for _, b := range classes[:i] {
			t := 0.0
			for k, limit := range limits {
				one := welch(sampleOf(upTo(a.took, limit)), sampleOf(upTo(b.took, limit)))
				at[k], t = max(at[k], one), max(t, one)
			}
			worst = max(worst, t)
			_, _ = fmt.Fprintf(out, "%7.2f", t)
		}
	}
	_, _ = fmt.Fprintf(out, "\n\nlargest t: %.2f (of all %.2f, of the fastest 90 %% %.2f, of the fastest half %.2f)\n\n", worst, at[0], at[1], at[2])
	return worst
}

// parts are how much of the answers is compared, the fastest ones: what a busy machine
// adds to some of them hides small differences between all.
func parts() []float64 { return []float64{1, 0.9, 0.5} }

// limitsOf are the times below which these parts of all answers lie.
func limitsOf(classes []*class) (limits []float64) {
	var all []float64
	for _, c := range classes {
		all = append(all, c.took...)
	}
	slices.Sort(all)
	for _, part := range parts() {
		limits = append(limits, all[int(part*float64(len(all)-1))])
	}
	return limits
}

func upTo(x []float64, limit float64) (out []float64) {
	for _, v := range x {
		if v <= limit {
			out = append(out, v)
		}
	}
	return out
}
