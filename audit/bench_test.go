package audit_test

import (
	"context"
	"strings"
	"testing"

	"github.com/postern-pki/postern/audit"
)

// big is the size of a record of an enrollment.
func big(i, size int) audit.Entry {
	e := refusal(i)
	e.Object = audit.Object{"i": i, "tbs": strings.Repeat("QUJD", size/4), "dns": []string{"a.corp.example", "b.corp.example"}, "policy": audit.Object{"digest": "sha256:00", "rules": []string{"subject.CN"}}}
	return e
}

func BenchmarkAppend(b *testing.B) {
	l := open(b, options(b, b.TempDir(), nil))
	b.SetParallelism(8) // 16 writers on two cores
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := l.Append(context.Background(), big(0, 3000)); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

func BenchmarkVerify(b *testing.B) {
	const records = 20_000
	for name, size := range map[string]int{"300": 300, "3000": 3000} {
		b.Run(name, func(b *testing.B) {
			s, dir := newSigner(b), b.TempDir()
			l := open(b, options(b, dir, s))
			var batch []audit.Entry
			for i := range 1000 {
				batch = append(batch, big(i, size))
			}
			for range records / len(batch) {
				if _, err := l.AppendAll(context.Background(), batch...); err != nil {
					b.Fatal(err)
				}
			}
			closeLog(b, l)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := audit.Verify(context.Background(), dir, audit.VerifyOptions{Verifier: s.verifier()}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)*records/b.Elapsed().Seconds(), "records/s")
		})
	}
}
