package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/postern-pki/postern/test/site"
)

var shared *site.Site

func TestMain(m *testing.M) {
	os.Exit(site.Main(context.Background(), profiles(), func(s *site.Site) int { shared = s; return m.Run() }))
}

// TestNothingTellsWhatIsWrong has each class of message that proves nothing, new
// requests and renewals, answered the same, octet for octet, but for nonces, times,
// the request's id and the signature.
// Covers: S-087, S-091, S-103, A-8, F-1
func TestNothingTellsWhatIsWrong(t *testing.T) {
	classes, d, err := makeClasses(t.Context(), shared, 2)
	if err != nil {
		t.Fatal(err)
	}
	if len(classes) != 12 {
		t.Fatalf("%d classes", len(classes))
	}
	for _, c := range classes {
		for range 2 {
			if err := c.send(t.Context(), d); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	}
}

// TestWelch compares with a sample whose t is known, and with classes that differ by a
// fifth of their deviation, which 5,000 messages tell.
func TestWelch(t *testing.T) {
	// 3 / sqrt(2.5/5 + 10/5)
	if got := welch(sampleOf([]float64{1, 2, 3, 4, 5}), sampleOf([]float64{2, 4, 6, 8, 10})); math.Abs(got-1.897367) > 1e-6 {
		t.Errorf("t is %f, want 1.897367", got)
	}
	if got := welch(sampleOf([]float64{1, 1}), sampleOf([]float64{2, 2})); !math.IsInf(got, 1) {
		t.Errorf("of two that do not vary: %f", got)
	}
	random := rand.New(rand.NewPCG(1, 2))
	classes := []*class{{name: "one"}, {name: "same"}, {name: "other"}}
	for range 5000 {
		for i, c := range classes {
			c.took = append(c.took, 0.05+0.01*random.NormFloat64()+0.001*float64(i/2)*2)
		}
	}
	if got := report(io.Discard, classes[:2]); got >= told {
		t.Errorf("two of a kind are told apart: %.2f", got)
	}
	if got := report(io.Discard, classes); got < told {
		t.Errorf("two that differ are not told apart: %.2f", got)
	}
}

// TestAnAnswerOfAnotherShapeIsSeen: the comparison would not be one otherwise.
func TestAnAnswerOfAnotherShapeIsSeen(t *testing.T) {
	classes, d, err := makeClasses(t.Context(), shared, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := classes[0].send(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	classes[0].shape.first = fmt.Sprintf("%s.", classes[0].shape.first)
	if err := classes[1].send(t.Context(), d); err == nil {
		t.Error("an answer that differs was taken for the same")
	}
}
