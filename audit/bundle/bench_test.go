package bundle_test

import (
	"bytes"
	"testing"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/audit/bundle"
	"github.com/postern-pki/postern/audit/bundle/report"
)

// BenchmarkVerify has records per second, of a bundle that is in memory: alone, and
// with a report for people.
func BenchmarkVerify(b *testing.B) {
	const n = 50_000
	s, dir := newSigner(b), b.TempDir()
	newLog(b, s, dir, n, 4<<20, 10_000)
	data, _ := export(b, s.options(b, dir))
	for name, each := range map[string]func() func(*audit.Seen) error{
		"alone": func() func(*audit.Seen) error { return nil }, "report": func() func(*audit.Seen) error { return new(report.Collector).Each },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if _, err := bundle.Verify(b.Context(), bytes.NewReader(data), bundle.VerifyOptions{Trust: s.cert, Each: each()}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "records/s")
		})
	}
}
