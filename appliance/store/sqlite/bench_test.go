package sqlite_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/appliance/store/sqlite"
	"github.com/postern-pki/postern/appliance/store/storetest"
	"github.com/postern-pki/postern/audit"
)

// benchSize is the number of certificates in the index that is measured.
const benchSize = 100_000

// device is the n-th enrollment: a challenge, an intent that spends it, and the
// certificate, with the sizes of real ones.
func device(n int) (serial string, i store.Issuance) {
	name := fmt.Sprintf("device-%d", n)
	serial = storetest.Digest("serial " + name)[:32]
	i = storetest.Issuance(name, serial)
	i.Challenge = "challenge-of-" + name
	return serial, i
}

func enroll(l *storetest.Log, n int) (created, intent, issued audit.Line) {
	_, i := device(n)
	created = l.Created(storetest.Challenge(i.Challenge))
	intent = l.Intent(i)
	issued = l.Add(store.EventEnroll, store.OutIssued, i.Request, store.ResultObject(intent.Record.Seq, i.Serial, make([]byte, 700)))
	return created, intent, issued
}

// filled returns an index of so many certificates, and its log.
func filled(b *testing.B, certificates int) (*sqlite.Store, *storetest.Log) {
	b.Helper()
	s, l := openIn(b, b.TempDir()), storetest.NewLog(b)
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	for n := range certificates {
		enroll(l, n)
		if len(l.Lines) >= 1000 || n == certificates-1 {
			if err := s.Follow(b.Context(), l.Lines); err != nil {
				b.Fatal(err)
			}
			l.Forget()
		}
	}
	return s, l
}

// BenchmarkFollow feeds batches of two lines, as enrollments that meet make them:
// the certificate of one and the intent of the next.
func BenchmarkFollow(b *testing.B) {
	for _, size := range []int{0, benchSize} {
		b.Run(fmt.Sprintf("after=%d", size), func(b *testing.B) {
			s, l := filled(b, size)
			var batches [][]audit.Line
			const chunk = 5000
			n := size
			refill := func() {
				batches = batches[:0]
				l.Forget()
				for from := n; n < from+chunk; n++ {
					enroll(l, n) // the order of its lines is that of a device alone
				}
				for at := 0; at+6 <= len(l.Lines); at += 6 {
					batches = append(batches, l.Lines[at:at+2], l.Lines[at+2:at+4], l.Lines[at+4:at+6])
				}
			}
			b.ReportAllocs()
			b.ResetTimer()
			for b.Loop() {
				if len(batches) == 0 {
					b.StopTimer()
					refill()
					b.StartTimer()
				}
				if err := s.Follow(b.Context(), batches[0]); err != nil {
					b.Fatal(err)
				}
				batches = batches[1:]
			}
		})
	}
}

// BenchmarkRead asks what an enrollment asks.
func BenchmarkRead(b *testing.B) {
	s, _ := filled(b, benchSize)
	ctx, now := b.Context(), storetest.Day().Add(time.Hour)
	for _, c := range []struct {
		name string
		read func(i store.Issuance) error
	}{
		{"ByTag", func(i store.Issuance) error {
			_, err := s.ByTag(ctx, storetest.Challenge(i.Challenge).Tag)
			return err
		}},
		{"Certificate", func(i store.Issuance) error { _, err := s.Certificate(ctx, i.Serial); return err }},
		{"Transaction", func(i store.Issuance) error {
			_, err := s.Transaction(ctx, i.Issuer, i.Profile, i.Transaction, i.Signer, i.CSR)
			return err
		}},
		{"RenewalOf", func(i store.Issuance) error {
			_, err := s.RenewalOf(ctx, i.Issuer, i.Profile, i.Signer, i.CSR)
			return err
		}},
		{"LineageRenewals", func(i store.Issuance) error { _, err := s.LineageRenewals(ctx, i.Lineage); return err }},
		{"InUse", func(i store.Issuance) error {
			_, err := s.InUse(ctx, store.Use{Profile: i.Profile, Names: i.Names, SPKI: i.SPKI, Now: now})
			return err
		}},
		{"OpenIntents", func(store.Issuance) error { _, err := s.OpenIntents(ctx); return err }},
		{"Certificates", func(i store.Issuance) error {
			_, err := s.Certificates(ctx, store.CertificateFilter{State: store.Issued, Limit: 10})
			return err
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				n = (n + 7919) % benchSize
				_, i := device(n)
				if err := c.read(i); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
