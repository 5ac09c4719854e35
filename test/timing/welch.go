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
	samples := make([]sample, len(classes))
	_, _ = fmt.Fprintf(out, "%-36s %6s %10s %10s %10s %10s %8s\n", "", "n", "mean", "deviation", "median", "p99", "> 50 ms")
	for i, c := range classes {
		samples[i] = sampleOf(c.took)
		sorted := slices.Sorted(slices.Values(c.took))
		at := func(q float64) float64 { return sorted[int(q*float64(len(sorted)-1))] * 1e3 }
		late := len(sorted) - slices.IndexFunc(append(slices.Clone(sorted), math.Inf(1)), func(v float64) bool { return v > 0.075 })
		_, _ = fmt.Fprintf(out, "%2d %-33s %6d %7.3f ms %7.3f ms %7.3f ms %7.3f ms %8d\n", i+1, c.name, samples[i].n, samples[i].mean*1e3, math.Sqrt(samples[i].variance)*1e3, at(0.5), at(0.99), max(0, late))
	}
	_, _ = fmt.Fprintf(out, "\nWelch's t of each pair; below %.1f nobody tells two classes apart:\n   ", told)
	for i := range classes {
		_, _ = fmt.Fprintf(out, "%7d", i+1)
	}
	for i, a := range samples {
		_, _ = fmt.Fprintf(out, "\n%2d ", i+1)
		for _, b := range samples[:i] {
			t := welch(a, b)
			worst = max(worst, t)
			_, _ = fmt.Fprintf(out, "%7.2f", t)
		}
	}
	_, _ = fmt.Fprintf(out, "\n\nlargest t: %.2f\n\n", worst)
	return worst
}
